"""The lattice search of one stream: channels of different networks are joined, best value first, within a budget.

At the start every channel is on its own, which is the separate networks. Joining channel v to channel u means
that the networks of v read u from now on and v is not computed any more; u's label grows by v's. That never costs
a subset anything: each of its networks sees as many channels as before. What it saves is the making of v wherever
both were needed. What it damages is told by every layer that reads v (`readings`), given what else that layer
reads by now, and by how well u can still be computed from what its larger label may read.

Joins are taken some at a time, those of least damage per multiply-add saved first; then everything is measured
anew. A batch that damages more than it promised, so that a budget is exceeded, is undone and halved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.passes.merge.labels import Channel, Unit, own
from compiler.passes.merge.readings import Look, Reading
from compiler.passes.merge.relevance import Likeness, Prices
from compiler.passes.merge.streams import Stream, Streams

EXACT = 1e-8
"""Damage that is allowed even where no loss is: rounding of float32 networks."""

BATCH = 0.1
"""Share of a stream's channels that are joined before everything is measured anew."""

SNAP = 1e-4
"""Slopes closer to 1 than this are 1."""

Reach = Callable[[int, tuple[int, ...]], np.ndarray]
"""(group, label) -> [channels]: how much of each channel's variance is lost if it is computed from what the label
may read; infinite where it may read nothing."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Channels that were joined: `owner` is the one that is computed, `members` are all, one per group."""

    owner: Unit
    members: tuple[Unit, ...]

    @property
    def groups(self) -> tuple[int, ...]:
        """The networks that read it."""
        return tuple(sorted(m.group for m in self.members))

    def of(self, group: int) -> Unit:
        """The member that it stands for in one network."""
        return next(m for m in self.members if m.group == group)

    def taking(self, other: Joined) -> Joined:
        """This owner for the members of both."""
        return Joined(self.owner, (*self.members, *other.members))


@dataclass(frozen=True, slots=True)
class Candidate:
    """Number `kept` stands for number `gone` too."""

    price: float
    kept: int
    gone: int
    damages: tuple[tuple[int, float], ...]


class Joiner:
    """One stream. `budgets`: group -> what its readers may lose, as a share of their results' variance."""

    def __init__(
        self,
        streams: Streams,
        stream: Stream,
        readings: Mapping[int, Sequence[Reading]],
        likeness: Likeness,
        prices: Prices,
        reach: Reach,
        budgets: Mapping[int, float],
    ) -> None:
        self._streams, self._stream, self._readings = streams, stream, readings
        self._likeness, self._prices, self._reach = likeness, prices, reach
        self._budgets = {g: max(budgets[g], EXACT) for g in stream.groups}
        units = [Unit(g, i) for g in stream.groups for i in range(streams.group(g).width)]
        self._classes = [Joined(u, (u,)) for u in units]
        self._batch = max(1, round(BATCH * len(units)))

    def run(self) -> tuple[Channel, ...]:
        """Join until the budget is used up; the channels of the stream, joined or not."""
        size = self._batch
        while size:
            losses, candidates = self._measure()
            batch = self._batch_of(candidates, losses, size)
            if not batch:
                break
            before = self._classes
            self._apply(batch)
            if self._within(self._losses()):
                size = self._batch
            else:
                self._classes = before
                size = min(size, len(batch)) // 2
        return tuple(self._channel(c) for c in self._classes)

    # ------------------------------------------------------------------ measuring
    def _losses(self) -> dict[int, float]:
        """Group -> what its readers have lost, the mean over them."""
        found = {}
        for group in self._stream.groups:
            looks = [self._look(group, r, []) for r in self._readings[group]]
            found[group] = float(np.mean([look.loss for look in looks])) if looks else 0.0
        return found

    def _within(self, losses: Mapping[int, float]) -> bool:
        return all(loss <= self._budgets[g] for g, loss in losses.items())

    def _look(self, group: int, reading: Reading, others: Sequence[Joined]) -> Look:
        read = [c for c in self._classes if group in c.groups]
        noise: dict[Unit, float] = {}
        units = []
        for one in read:
            unit = one.owner if reading.knows(one.owner) else one.of(group)
            units.append(unit)
            noise[unit] = self._noise(one, unit)
        for one in others:
            noise[one.owner] = self._lost(one.owner, tuple(sorted({*one.groups, group})))
        return reading.look(units, [o.owner for o in others], noise)

    def _noise(self, one: Joined, unit: Unit) -> float:
        """Share of a member's variance that what is computed for it does not tell."""
        lost = self._lost(one.owner, one.groups)
        return lost if unit == one.owner else 1 - self._correlation(one.owner, unit) ** 2 * (1 - min(lost, 1.0))

    def _lost(self, unit: Unit, groups: tuple[int, ...]) -> float:
        return float(self._reach(unit.group, groups)[unit.channel]) if len(groups) > 1 else 0.0

    def _correlation(self, a: Unit, b: Unit) -> float:
        both = self._likeness.between(a.group, b.group)
        return 0.0 if both is None else float(both[0][a.channel, b.channel])

    # ------------------------------------------------------------------ candidates
    def _measure(self) -> tuple[dict[int, float], list[Candidate]]:
        """What has been lost, and everything that could be joined, cheapest damage per saving first."""
        losses, tables = {}, {}
        for group in self._stream.groups:
            losses[group], tables[group] = self._table(group)
        found = []
        for gone, v in enumerate(self._classes):
            for kept, u in enumerate(self._classes):
                one = self._candidate(kept, u, gone, v, tables)
                if one is not None:
                    found.append(one)
        return losses, sorted(found, key=self._rank)

    def _rank(self, one: Candidate) -> tuple[float, float, int, int]:
        """Cheapest first; among those that cost nothing, those that are most alike."""
        if sum(d for _, d in one.damages) > EXACT:
            return one.price, 0.0, one.kept, one.gone
        u, v = self._classes[one.kept], self._classes[one.gone]
        return 0.0, -(self._correlation(u.owner, v.owner) ** 2), one.kept, one.gone

    def _table(self, group: int) -> tuple[float, np.ndarray]:
        """(loss, damage [given up, kept]) for one network over all classes; the mean over its readers."""
        count = len(self._classes)
        read = [i for i, c in enumerate(self._classes) if group in c.groups]
        loss, table = 0.0, np.zeros((count, count))
        for reading in self._readings[group]:
            outside = [i for i, c in enumerate(self._classes) if self._may_join(c, group)]
            known = [i for i in outside if reading.knows(self._classes[i].owner)]
            look = self._look(group, reading, [self._classes[i] for i in known])
            loss += look.loss
            table[np.ix_(read, known)] += look.swap
            for column in [i for i in outside if i not in set(known)]:
                table[read, column] += look.removal * self._unexplained(group, read, column)
            table[read, read] += look.power
        readers = max(len(self._readings[group]), 1)
        return loss / readers, table / readers

    def _may_join(self, one: Joined, group: int) -> bool:
        """Whether a network could read a channel of others, as far as tasks and inputs go."""
        if self._streams.mask_of(one.groups) & self._streams.mask_of([group]):
            return False
        return bool(np.isfinite(self._lost(one.owner, tuple(sorted({*one.groups, group})))))

    def _unexplained(self, group: int, read: Sequence[int], column: int) -> np.ndarray:
        owner = self._classes[column].owner
        lost = min(self._lost(owner, tuple(sorted({*self._classes[column].groups, group}))), 1.0)
        members = [self._classes[i].of(group) for i in read]
        return np.array([1 - self._correlation(owner, m) ** 2 * (1 - lost) for m in members])

    def _candidate(
        self, kept: int, u: Joined, gone: int, v: Joined, tables: Mapping[int, np.ndarray]
    ) -> Candidate | None:
        if set(u.groups) & set(v.groups):
            return None
        masks = self._streams.mask_of(u.groups), self._streams.mask_of(v.groups)
        groups = tuple(sorted((*u.groups, *v.groups)))
        if masks[0] & masks[1] or not self._stream.may_own(u.owner.group, groups):
            return None
        prices = self._prices
        saved = prices.making(v.owner.group) * prices.runs(masks[1])
        saved -= prices.making(u.owner.group) * (prices.runs(masks[0] | masks[1]) - prices.runs(masks[0]))
        lost = self._lost(u.owner, groups)
        if saved <= 0 or not np.isfinite(lost):
            return None
        worse = max(lost - self._lost(u.owner, u.groups), 0.0)
        damages = {g: float(tables[g][gone, kept]) for g in v.groups}
        damages |= {g: worse * float(tables[g][kept, kept]) for g in u.groups}
        return Candidate(sum(damages.values()) / saved, kept, gone, tuple(sorted(damages.items())))

    def _batch_of(self, candidates: Sequence[Candidate], losses: Mapping[int, float], size: int) -> list[Candidate]:
        """The first candidates that fit into the budgets and do not touch each other."""
        left = {g: self._budgets[g] - losses[g] for g in self._budgets}
        used: set[int] = set()
        chosen: list[Candidate] = []
        for one in candidates:
            if len(chosen) == size:
                break
            free = one.kept not in used and one.gone not in used
            if free and all(d <= max(left[g], EXACT) for g, d in one.damages):
                chosen.append(one)
                used |= {one.kept, one.gone}
                for group, damage in one.damages:
                    left[group] -= damage
        return chosen

    def _apply(self, batch: Sequence[Candidate]) -> None:
        classes: list[Joined | None] = list(self._classes)
        for one in batch:
            classes[one.kept] = self._classes[one.kept].taking(self._classes[one.gone])
            classes[one.gone] = None
        self._classes = [c for c in classes if c is not None]

    # ------------------------------------------------------------------ results
    def _channel(self, one: Joined) -> Channel:
        if len(one.members) == 1:
            return own(one.owner)
        members = (one.owner, *sorted(m for m in one.members if m != one.owner))
        slopes = tuple(self._slope(one.owner, m) for m in members)
        return Channel(one.groups, members, slopes, (1.0, *(0.0 for _ in members[1:])))

    def _slope(self, owner: Unit, member: Unit) -> float:
        both = self._likeness.between(owner.group, member.group) if owner != member else None
        slope = 1.0 if both is None else float(both[1][owner.channel, member.channel])
        return 1.0 if abs(slope - 1) < SNAP else slope
