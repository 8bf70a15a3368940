"""What narrower groups of channels lose: the error of the layers that read them, as `sparsify.assign` has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from compiler.ir.graph import Graph, Site
from compiler.ir.ties import Atom, Closure, Group
from compiler.ir.types import Axis
from compiler.passes.budget.sensitivity import Sensitivity
from compiler.passes.prune.budget import Ladder
from compiler.passes.prune.fit import Reader, reader_of
from compiler.passes.sparsify.assign import masked_losses
from compiler.passes.sparsify.update import RIDGES, Measured, Walk

STEPS = 8
"""Widths of a group, about, between all of its channels and the fewest."""

Cuts = tuple[tuple[Atom, ...], ...]
"""The atoms that are gone after 0, 1, 2 ... steps."""


def cuts_of(group: Group, scores: np.ndarray, multiple: int, floor: float) -> Cuts:
    """About STEPS widths that are multiples of `multiple`, the least worthy channels leaving first; the last one is
    the narrowest there is."""
    step = multiple * max(1, round(len(group.atoms) / (STEPS * multiple)))
    coarse, fine = (_descent(Ladder(group, scores, width, floor)) for width in (step, multiple))
    return (*coarse, *(cut for cut in fine[-1:] if len(cut) > len(coarse[-1])))


def _descent(ladder: Ladder) -> Cuts:
    cuts: list[tuple[Atom, ...]] = [()]
    while ladder.next:
        ladder.advance()
        cuts.append(tuple(ladder.removed))
    return tuple(cuts)


def width_losses(
    graph: Graph,
    closure: Closure,
    groups: Sequence[Group],
    cuts: Sequence[Cuts],
    scores: Sequence[np.ndarray],
    feeds: Sequence[Mapping[str, np.ndarray]],
) -> list[tuple[float, ...]]:
    """Per group the loss after each of its cuts: the sum over the layers that read it.

    With `feeds` what the network's outputs lose by one fit of what stays of the layer (`budget.sensitivity`);
    without them, and for grouped layers, the share of its squared weights that goes. Groups that no such layer
    reads lose the scores of what goes.
    """
    gone = [[closure.removal(cut) for cut in own] for own in cuts]
    owners: dict[Axis, list[int]] = {}
    for number, own in enumerate(gone):
        for axis in own[-1]:
            owners.setdefault(axis, []).append(number)
    totals = [np.zeros(len(own)) for own in cuts]
    seen = [False] * len(groups)
    readers = {r.node.ref: r for s in graph.sites() if (r := _reader(graph, s)) is not None and r.channel in owners}
    walk, sensitivity = (Walk(graph, feeds), Sensitivity(graph, feeds)) if feeds else (None, None)
    for node in walk or graph.nodes():
        if (reader := readers.get(node.ref)) is None:
            continue
        grouped = len(reader.matrix(reader.weight.constant)) > 1
        measured = None if walk is None or grouped else walk.measure(reader)
        for number in owners[reader.channel]:
            entries = [removal.get(reader.channel, np.zeros(0, np.int64)) for removal in gone[number]]
            if measured is None or sensitivity is None:
                totals[number] += _energies(reader, entries)
            else:
                totals[number] += _errors(reader, entries, measured, sensitivity)
            seen[number] = True
    return [
        tuple(total) if known else _scored(group, own, score)
        for total, known, group, own, score in zip(totals, seen, groups, cuts, scores, strict=True)
    ]


def _reader(graph: Graph, site: Site) -> Reader | None:
    """The node as a least-squares problem; None for depthwise ones, whose outputs vanish with their inputs."""
    found = reader_of(graph, site)
    return None if found is None or found.depthwise else found


def _energies(reader: Reader, entries: Sequence[np.ndarray]) -> np.ndarray:
    matrix = reader.matrix(reader.weight.constant)
    channels = (matrix**2).sum(axis=2).reshape(-1, reader.taps).sum(axis=1)
    return np.array([channels[at].sum() for at in entries]) / max(float(channels.sum()), 1e-30)


def _errors(
    reader: Reader, entries: Sequence[np.ndarray], measured: Measured, sensitivity: Sensitivity
) -> np.ndarray:
    old = reader.matrix(reader.weight.constant)[0].T
    masks = [np.ones(old.shape, bool) for _ in entries]
    for alive, at in zip(masks, entries, strict=True):
        alive[:, (at[:, None] * reader.taps + np.arange(reader.taps)).reshape(-1)] = False
    quadratic = measured.quadratic(old, RIDGES[0])
    return np.array(masked_losses(reader, masks, [len(old)] * len(masks), measured, quadratic, sensitivity))


def _scored(group: Group, cuts: Cuts, scores: np.ndarray) -> tuple[float, ...]:
    worth: Mapping[int, float] = dict(zip((a.index for a in group.atoms), scores.tolist(), strict=True))
    return tuple(float(sum(worth[a.index] for a in cut)) for cut in cuts)
