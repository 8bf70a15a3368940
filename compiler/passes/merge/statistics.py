"""Nodes per channel that hold statistics or taps: what their parameters become on the merged network's values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from compiler.calibration.tape import Tape
from compiler.passes.merge.emit import Clone, present_members
from compiler.passes.merge.entries import Entry
from compiler.passes.merge.labels import Channel
from compiler.passes.merge.originals import Originals
from compiler.passes.merge.rows import Spread, held_out, patch_rows, positions
from compiler.passes.merge.solve import Freedom, measure, solve
from compiler.passes.merge.streams import Source

MEAN, VARIANCE = 3, 4
"""Operands of a BatchNormalization."""

WIDEST = 4.0
"""A variance is scaled by at most this factor, and at least by its inverse."""


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """New parameters of a convolution per channel, and its held-out residual."""

    parameters: dict[int, np.ndarray]
    residual: float


def depthwise_taps(
    tape: Tape, originals: Originals, sources: Sequence[Source], entry: Entry, clone: Clone, freedom: Freedom
) -> Taps:
    """Fit every channel's taps to what the original network computed from the channel it stands for."""
    site = sources[0].site
    channels = _in_order(entry, clone.columns(site.results[0]))
    width = len(channels)
    narrow = replace(site, node=replace(site.node, attrs={**site.attrs, "group": width}))
    count = positions(site.results[0], 1)
    targets = np.stack([_target(originals, sources, clone, c) for c in channels])[:, :, None]
    rows = patch_rows(tape, narrow, [entry.value])
    measured = measure(rows, targets, held_out(originals.samples, count))
    old = clone.parameter(1)
    prior = old.astype(np.float64).reshape(width, -1, 1)
    has_bias = site.operands.optional(2) is not None
    offset = clone.parameter(2).astype(np.float64).reshape(width, 1) if has_bias else None
    solved = solve(measured, prior, offset, freedom)
    if not solved.refitted:
        return Taps({}, solved.residual)
    parameters = {1: solved.weights.reshape(old.shape)}
    if has_bias:
        parameters[2] = solved.offset[:, 0]
    return Taps(parameters, solved.residual)


def _target(originals: Originals, sources: Sequence[Source], clone: Clone, channel: Channel) -> np.ndarray:
    """[rows]: the weighted mean of what the members' nodes computed."""
    members = present_members(sources, channel)
    parts = [w * originals.targets[s.ref][:, clone.entry(u, s.site.results[0])] for s, u, w in members]
    return np.asarray(np.sum(parts, axis=0))


def _in_order(entry: Entry, places: Sequence[np.ndarray]) -> list[Channel]:
    """The channels of an entry by their place, one entry each."""
    channels = [c for slab in entry.slabs for c in slab.channels]
    order = np.argsort(np.concatenate([p.reshape(-1) for p in places]))
    return [channels[i] for i in order]


def moved_statistics(
    tape: Tape, originals: Originals, sources: Sequence[Source], entry: Entry, clone: Clone
) -> dict[int, np.ndarray]:
    """Shift and scale the statistics of a BatchNormalization by what those of its input changed."""
    means, variances = Spread().add_all(tape, entry.value).result()
    mean, variance = (clone.parameter(i).astype(np.float64) for i in (MEAN, VARIANCE))
    columns = clone.columns(sources[0].site.results[0])
    placed = [pair for s, p in zip(entry.slabs, columns, strict=True) for pair in zip(s.channels, p, strict=True)]
    for channel, at in placed:  # behind a Flatten a channel has several entries
        members = [(s, clone.entries(u, s.site.results[0]), w) for s, u, w in present_members(sources, channel)]
        before = sum(w * originals.spreads[s.ref][0][i] for s, i, w in members)
        spread = sum(w * originals.spreads[s.ref][1][i] for s, i, w in members)
        mean[at] += means[at] - before
        variance[at] *= np.clip(variances[at] / np.maximum(spread, 1e-12), 1 / WIDEST, WIDEST)
    return {MEAN: mean, VARIANCE: variance}
