"""Layers as rows of numbers: patches of what a layer reads and of what it makes, at sampled positions of all
samples.

A row is one output position of one sample. Column c * taps + t of a patch is tap t of input channel c.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from compiler.calibration.tape import Tape
from compiler.ir.graph import Site, Value
from compiler.ir.types import ValueRef
from compiler.passes.linear import channel_dim
from compiler.passes.prune.fit import POSITIONS, Pick, reader, spread

CHUNK = 32
"""Samples that are unfolded at a time."""

HELD_OUT = 4
"""One sample in this many is held out."""


def taps(site: Site) -> int:
    """Columns of a patch per input channel."""
    return reader(site).taps


def matrix(site: Site) -> np.ndarray:
    """The weight of a layer as [columns, outputs], float64."""
    return np.asarray(reader(site).matrix(site.operands[1].constant)[0])


def restored(site: Site, weights: np.ndarray) -> np.ndarray:
    """[columns, outputs] as a weight of the layer's form, however many columns and outputs there are."""
    weight = site.operands[1]
    if site.node.op.name == "ConvTranspose":
        tapped = weights.reshape(-1, taps(site), weights.shape[1]).swapaxes(1, 2)
        return np.ascontiguousarray(tapped.reshape(-1, weights.shape[1], *weight.shape[2:]))
    if site.node.op.name == "Conv":
        return np.asarray(weights.T.reshape(weights.shape[1], -1, *weight.shape[2:]))
    return np.ascontiguousarray(weights.T if site.attrs.get("transB") else weights)


def bias(site: Site) -> np.ndarray | None:
    """The bias of a layer, [outputs], float64; None where it has none."""
    value = site.operands.optional(2)
    return None if value is None else value.constant.astype(np.float64).reshape(-1)


# ---------------------------------------------------------------------- sampled positions
def positions(result: Value, channel: int) -> int:
    """Output positions per sample of a value with channels on axis `channel`."""
    return result.size // result.shape[channel]


def held_out(samples: int, count: int) -> np.ndarray:
    """For every row of all samples whether it is held out, where each has `count` positions."""
    rows = np.repeat(np.arange(samples), min(count, POSITIONS))
    return np.asarray(rows % HELD_OUT == HELD_OUT - 1)


def flat_rows(array: np.ndarray, channel: int, count: int, first: int, pick: Pick = spread) -> np.ndarray:
    """[rows, channels] of stacked samples at their chosen positions; `first` is the number of the first sample."""
    flat = np.moveaxis(array, channel, -1).reshape(-1, array.shape[channel])
    return np.asarray(flat[_picked(pick, count, first, len(flat) // count)])


def _picked(pick: Pick, count: int, first: int, samples: int) -> np.ndarray:
    """The chosen positions of samples that lie one behind the other, `count` positions each."""
    return np.concatenate([pick(count, first + i) + i * count for i in range(samples)])


def value_rows(tape: Tape, ref: ValueRef, channel: int, pick: Pick = spread) -> np.ndarray:
    """[rows, channels] of a value over all samples."""
    count = positions(tape.graph.value(ref), channel)
    parts = (flat_rows(tape.read(ref, i, i + CHUNK), channel, count, i, pick) for i in chunks(tape))
    return np.concatenate(list(parts))


def made_rows(tape: Tape, site: Site) -> np.ndarray:
    """[rows, channels] of what a layer makes over all samples, in the rows of `patch_rows`."""
    result = site.results[0]
    return value_rows(tape, result.ref, channel_dim(site, result), reader(site).pick)


def chunks(tape: Tape) -> range:
    """First samples of the runs that are unfolded together."""
    return range(0, tape.samples, CHUNK)


def patch_rows(tape: Tape, site: Site, read: Sequence[ValueRef]) -> Iterator[np.ndarray]:
    """Chunk by chunk, [groups, rows, columns] of a node like `site` that reads the given values side by side.

    `site` gives kernel, strides, padding and map size; channels come from the values.
    """
    channel, y, one = channel_dim(site, site.operands[0]), site.results[0], reader(site)
    count = positions(y, channel_dim(site, y))
    for first in chunks(tape):
        x = np.concatenate([tape.read(r, first, first + CHUNK) for r in read], axis=channel)
        samples = min(CHUNK, tape.samples - first)
        at = _picked(one.pick, count, first, samples)
        stacked = Value(y.ref, replace(y.type, shape=(samples * y.shape[0], *y.shape[1:])))
        yield replace(one, y=stacked).patches(x, at)
