"""The default policy: labels of any set of tasks, found stream by stream, checked on the merged network itself.

A round labels every stream from the inputs on, with budgets for the estimated damage, and builds the whole
network. Then the real residual of every layer and the real loss of every task on held-out inputs are looked at.
Streams whose layers lost more than allowed get half of their budget, and another round runs; after a few halvings
nothing is joined there that is not exact. The separate networks, which lose nothing, are where this ends at the
latest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.ir.types import ValueRef
from compiler.passes.merge.assemble import Assembly, Findings
from compiler.passes.merge.channels import Role
from compiler.passes.merge.join import Joiner
from compiler.passes.merge.labels import Channel, Labelling, Unit, average, own, whole_multiples
from compiler.passes.merge.originals import Originals
from compiler.passes.merge.readings import Reading, readings
from compiler.passes.merge.relevance import Likeness, Prices
from compiler.passes.merge.rows import HELD_OUT
from compiler.passes.merge.streams import Place, Stream, Streams
from compiler.progress import noted

LEAST = 2.0**-6
"""Share of its first budget below which a stream joins exact channels only."""

CLOSED = -1.0
"""Share of a stream that joins nothing any more."""

ROUNDING = 1e-6
"""Residual that counts as none."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a merge may lose. `drift`: of one layer's results, `loss`: of each task's outputs on held-out inputs;
    both as shares of their variance.
    """

    drift: float
    loss: Mapping[str, float]


@dataclass(slots=True)
class Round:
    """A finished assembly and what it lost."""

    assembly: Assembly
    findings: Findings
    losses: Mapping[str, float]


class Lattice:
    """Rounds over one set of networks. `build(decide)` runs an assembly."""

    def __init__(
        self,
        streams: Streams,
        originals: Originals,
        prices: Prices,
        limits: Limits,
        multiple: int,
        likeness: Likeness,
        build: Callable[[Callable[[Assembly, Place, Sequence[Stream]], Labelling]], Assembly],
    ) -> None:
        self._streams, self._originals, self._prices = streams, originals, prices
        self._limits, self._multiple, self._build = limits, multiple, build
        self._likeness = likeness
        self._readings: dict[int, dict[int, list[Reading]]] = {}
        self._shares = {s.index: 1.0 for s in streams.streams}

    def run(self) -> Round:
        """The first round in which everything stays within the limits."""
        rounds = 0
        while True:
            noted("merge: rounds", rounds)
            rounds += 1
            assembly = self._build(self._decide)
            losses = task_losses(self._streams, self._originals, assembly)
            blamed = self._blamed(assembly, losses)
            if not blamed:
                return Round(assembly, assembly.findings, losses)
            for index in blamed:
                self._shares[index] = _less(self._shares[index])

    # ------------------------------------------------------------------ labels
    def _decide(self, assembly: Assembly, place: Place, streams: Sequence[Stream]) -> Labelling:
        found = {}
        for stream in streams:
            if len(stream.groups) > 1 and self._shares[stream.index] >= 0:
                channels = self._joined(assembly, place, stream)
                if any(len(c.groups) > 1 for c in channels):
                    found[stream.index] = channels
        return found

    def _joined(self, assembly: Assembly, place: Place, stream: Stream) -> tuple[Channel, ...]:
        budget = self._limits.drift * self._shares[stream.index]
        reach = Reaching(self._streams, assembly, place)
        if stream.index not in self._readings:
            self._readings[stream.index] = readings(self._streams, self._originals, stream.index)
        joiner = Joiner(
            self._streams,
            stream,
            self._readings[stream.index],
            self._likeness,
            self._prices,
            reach,
            dict.fromkeys(stream.groups, budget),
        )
        return whole_multiples(joiner.run(), self._multiple)

    # ------------------------------------------------------------------ what went wrong
    def _blamed(self, assembly: Assembly, losses: Mapping[str, float]) -> list[int]:
        """Streams that joined too much and can still join less."""
        found: dict[int, None] = {}
        for _, groups in assembly.findings.unread:
            found |= dict.fromkeys(self._streams.of_group[g].index for g in groups)
        for place, mask in drifted_layers(assembly, self._limits.drift):
            found |= dict.fromkeys(self._read(place, mask))
        for task in lost_tasks(losses, self._limits):
            bit = 1 << self._streams.alignment.tasks.index(task)
            found |= {s.index: None for s in self._streams.streams if self._streams.mask_of(s.groups) & bit}
        return [i for i in sorted(found) if i in assembly.labelling]

    def _read(self, place: Place, mask: int) -> list[int]:
        """The streams that a network's own layer reads."""
        read = [s.site.operands[0] for s in place.sources if s.mask == mask]
        return [self._streams.of_group[g].index for v in read for g in self._streams.channels.parts(v)]


def _less(share: float) -> float:
    """Half of a budget; where little is left only exact joins, and where these fail on held-out inputs none."""
    if share <= 0:
        return CLOSED
    return share / 2 if share / 2 > LEAST else 0.0


def drifted_layers(assembly: Assembly, drift: float) -> list[tuple[Place, int]]:
    """Networks' own layers whose results lost more than `drift`: (place, tasks)."""
    found = []
    for (index, mask), residual in assembly.findings.residuals.items():
        place = assembly.streams.places[index]
        own_layer = place.role is Role.LAYER and any(s.mask == mask for s in place.sources)
        if own_layer and not residual <= max(drift, ROUNDING):
            found.append((place, mask))
    return found


def lost_tasks(losses: Mapping[str, float], limits: Limits) -> list[str]:
    """Tasks whose outputs lost more than allowed."""
    return [t for t, loss in losses.items() if not loss <= max(limits.loss[t], ROUNDING)]


def exceeds(outcome: Round, limits: Limits) -> bool:
    """Whether a merge loses more than allowed, or has a layer that reads nothing."""
    drifted = drifted_layers(outcome.assembly, limits.drift)
    return bool(outcome.findings.unread or drifted or lost_tasks(outcome.losses, limits))


class Reaching:
    """How well channels can be computed at a place from what a label may read there."""

    def __init__(self, streams: Streams, assembly: Assembly, place: Place) -> None:
        self._streams, self._assembly, self._place = streams, assembly, place
        self._fit = assembly.fit(place)
        self._known: dict[tuple[int, tuple[int, ...]], np.ndarray] = {}

    def __call__(self, group: int, groups: tuple[int, ...]) -> np.ndarray:
        if (group, groups) not in self._known:
            self._known[group, groups] = self._measure(group, groups)
        return self._known[group, groups]

    def _measure(self, group: int, groups: tuple[int, ...]) -> np.ndarray:
        width = self._streams.group(group).width
        sources = self._place.holding([group])
        entries = self._assembly.readable(self._place, groups)
        if not entries:
            return np.full(width, np.inf)
        if not sources:
            return np.zeros(width)
        channels = [own_for(group, i, groups) for i in range(width)]
        return self._fit.reach(sources, channels, entries)


def own_for(group: int, channel: int, groups: Sequence[int]) -> Channel:
    """An original channel that a larger label may read."""
    unit = Unit(group, channel)
    return own(unit) if tuple(groups) == (group,) else average([unit], groups)


def task_losses(streams: Streams, originals: Originals, assembly: Assembly) -> dict[str, float]:
    """Task -> error of its outputs on held-out samples, as a share of their variance (the largest of its
    outputs).
    """
    found = {}
    for task in streams.alignment.tasks:
        before = streams.graph.tasks[task].outputs
        after = assembly.graph.tasks[task].outputs
        pairs = zip(before, after, strict=True)
        found[task] = float(np.max([_loss(originals, assembly, a, b) for a, b in pairs]))
    return found


def _loss(originals: Originals, assembly: Assembly, before: ValueRef, after: ValueRef) -> float:
    samples = originals.samples
    wanted, found = originals.outputs[before], assembly.outputs(after)
    return lost_share(wanted.reshape(samples, -1), found.reshape(samples, -1))


def lost_share(before: np.ndarray, after: np.ndarray) -> float:
    """Error of values [samples, ...] on held-out samples, as a share of the variance they had before."""
    samples = len(before)
    out = np.arange(samples) % HELD_OUT == HELD_OUT - 1
    out = out if out.any() else ~out
    wanted, found = (x.reshape(samples, -1)[out].astype(np.float64) for x in (before, after))
    error = float(np.sum((found - wanted) ** 2))
    power = float(np.sum((wanted - wanted.mean(axis=0)) ** 2))
    return error / max(power, 1e-12 * max(float(np.sum(wanted**2)), 1e-30))
