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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

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
    """Channels that were joined: `owner` is the one that is computed, `members` are all, one per group.

    `groups`: the networks that read it, ascending.
    """

    owner: Unit
    members: tuple[Unit, ...]
    groups: tuple[int, ...]

    def of(self, group: int) -> Unit:
        """The member that it stands for in one network."""
        return next(m for m in self.members if m.group == group)

    def taking(self, other: Joined) -> Joined:
        """This owner for the members of both."""
        return Joined(self.owner, (*self.members, *other.members), _both(self.groups, other.groups))


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """Classes whose owners are of one group and that the same groups read.

    `numbers` of the classes and `channels` of their owners, both [classes].
    """

    group: int
    groups: tuple[int, ...]
    numbers: np.ndarray
    channels: np.ndarray

    def only(self, which: np.ndarray) -> Kind:
        """Some of them. `which`: true or false, or numbers within the kind."""
        return Kind(self.group, self.groups, self.numbers[which], self.channels[which])


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What has been lost and what could be joined.

    `left`: group -> what its readers may still lose. `tables`: group -> [given up, kept]: damage over all classes.
    `price`: [kept, given up]: damage per multiply-add saved, infinite where a pair cannot be joined within what is
    left; `unlike`: among those that cost nothing, how little alike they are.
    """

    left: Mapping[int, float]
    tables: Mapping[int, np.ndarray]
    price: np.ndarray
    unlike: np.ndarray

    def pairs(self) -> Iterator[tuple[int, int]]:
        """(kept, given up): cheapest first; among those that cost nothing, those that are most alike."""
        price = self.price.ravel()
        found = np.flatnonzero(np.isfinite(price))
        for at in found[np.lexsort((self.unlike.ravel()[found], price[found]))]:
            yield divmod(int(at), len(self.price))


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
        self._classes = [Joined(u, (u,), (u.group,)) for u in units]
        self._batch = max(1, round(BATCH * len(units)))

    def run(self) -> tuple[Channel, ...]:
        """Join until the budget is used up; the channels of the stream, joined or not."""
        size, found = self._batch, self._measure()
        while batch := self._batch_of(found, size):
            before = self._classes
            self._apply(batch)
            if self._within(self._losses()):
                size, found = self._batch, self._measure()
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
            noise[one.owner] = self._lost(one.owner, _both(one.groups, (group,)))
        return reading.look(units, [o.owner for o in others], noise)

    def _noise(self, one: Joined, unit: Unit) -> float:
        """Share of a member's variance that what is computed for it does not tell."""
        lost = self._lost(one.owner, one.groups)
        return lost if unit == one.owner else 1 - self._correlation(one.owner, unit) ** 2 * (1 - min(lost, 1.0))

    def _lost(self, unit: Unit, groups: tuple[int, ...]) -> float:
        return float(self._losing(unit.group, groups)[unit.channel])

    def _losing(self, group: int, groups: tuple[int, ...]) -> np.ndarray:
        """[channels of the group]: what is lost of each where `groups` read it."""
        if len(groups) > 1:
            return self._reach(group, groups)
        return np.broadcast_to(0.0, self._streams.group(group).width)

    def _correlation(self, a: Unit, b: Unit) -> float:
        both = self._likeness.between(a.group, b.group)
        return 0.0 if both is None else float(both[0][a.channel, b.channel])

    def _correlations(self, a: int, channels: np.ndarray, b: int, others: np.ndarray) -> np.ndarray:
        """[channels of group a, others of group b]: 0 where the groups do not meet."""
        both = self._likeness.between(a, b)
        shape = (len(channels), len(others))
        return np.zeros(shape) if both is None else np.asarray(both[0][np.ix_(channels, others)])

    # ------------------------------------------------------------------ candidates
    def _measure(self) -> Measured:
        losses, tables = {}, {}
        kinds = self._kinds()
        for group in self._stream.groups:
            losses[group], tables[group] = self._table(group, kinds)
        count, left = len(self._classes), {g: self._budgets[g] - losses[g] for g in self._budgets}
        found = Measured(left, tables, np.full((count, count), np.inf), np.zeros((count, count)))
        for kept, gone in product(kinds, kinds):
            if saved := self._saving(kept, gone):
                self._enter(found, kept, gone, saved)
        return found

    def _kinds(self) -> list[Kind]:
        found: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        for number, one in enumerate(self._classes):
            found.setdefault((one.owner.group, one.groups), []).append(number)
        return [
            Kind(*kind, np.array(numbers), np.array([self._classes[n].owner.channel for n in numbers]))
            for kind, numbers in found.items()
        ]

    def _table(self, group: int, kinds: Sequence[Kind]) -> tuple[float, np.ndarray]:
        """(loss, damage [given up, kept]) for one network over all classes; the mean over its readers."""
        count = len(self._classes)
        read = [i for i, c in enumerate(self._classes) if group in c.groups]
        members = np.array([self._classes[i].of(group).channel for i in read])
        outside = sorted(int(i) for kind in kinds for i in kind.numbers[self._may_join(kind, group)])
        loss, table = 0.0, np.zeros((count, count))
        for reading in self._readings[group]:
            known = [i for i in outside if reading.knows(self._classes[i].owner)]
            look = self._look(group, reading, [self._classes[i] for i in known])
            loss += look.loss
            table[np.ix_(read, known)] += look.swap
            for column in sorted(set(outside).difference(known)):
                table[read, column] += look.removal * self._unexplained(group, members, self._classes[column])
            table[read, read] += look.power
        readers = max(len(self._readings[group]), 1)
        return loss / readers, table / readers

    def _may_join(self, kind: Kind, group: int) -> np.ndarray:
        """[classes]: whether a network could read channels of others, as far as tasks and inputs go."""
        if self._streams.mask_of(kind.groups) & self._streams.mask_of([group]):
            return np.zeros(len(kind.numbers), bool)
        return np.asarray(np.isfinite(self._losing(kind.group, _both(kind.groups, (group,)))[kind.channels]))

    def _unexplained(self, group: int, members: np.ndarray, other: Joined) -> np.ndarray:
        """[members]: share of the variance of some of a network's channels that another class does not tell."""
        owner = other.owner
        lost = min(self._lost(owner, _both(other.groups, (group,))), 1.0)
        alike = self._correlations(owner.group, np.array([owner.channel]), group, members)[0]
        return np.asarray(1 - alike**2 * (1 - lost))

    def _saving(self, kept: Kind, gone: Kind) -> float:
        """Multiply-adds of the expected call that a join saves; 0 where it saves none or cannot be."""
        mask, other = self._streams.mask_of(kept.groups), self._streams.mask_of(gone.groups)
        if not set(kept.groups).isdisjoint(gone.groups) or mask & other:
            return 0.0
        if not self._stream.may_own(kept.group, _both(kept.groups, gone.groups)):
            return 0.0
        prices = self._prices
        saved = prices.making(gone.group) * prices.runs(other)
        return max(saved - prices.making(kept.group) * (prices.runs(mask | other) - prices.runs(mask)), 0.0)

    def _enter(self, found: Measured, kept: Kind, gone: Kind, saved: float) -> None:
        """The prices of pairs whose damages are within what is left."""
        kept = kept.only(np.isfinite(self._losing(kept.group, _both(kept.groups, gone.groups))[kept.channels]))
        damages = self._damages(found.tables, kept, gone)
        total = np.asarray(sum(damages.values()))
        fits = np.logical_and.reduce([d <= max(found.left[g], EXACT) for g, d in damages.items()])
        free, at = total <= EXACT, np.ix_(kept.numbers, gone.numbers)
        found.price[at] = np.where(fits, np.where(free, 0.0, total / saved), np.inf)
        alike = self._correlations(kept.group, kept.channels, gone.group, gone.channels) ** 2
        found.unlike[at] = np.where(free, -alike, 0.0)

    def _damages(self, tables: Mapping[int, np.ndarray], kept: Kind, gone: Kind) -> dict[int, np.ndarray]:
        """Group -> [kept, given up]: what its readers lose by each join."""
        lost = self._losing(kept.group, _both(kept.groups, gone.groups))[kept.channels]
        worse = np.maximum(lost - self._losing(kept.group, kept.groups)[kept.channels], 0.0)
        shape, at = (len(kept.numbers), len(gone.numbers)), np.ix_(gone.numbers, kept.numbers)
        found = {g: tables[g][at].T for g in gone.groups}
        for group in kept.groups:
            own_readers = worse * tables[group][kept.numbers, kept.numbers]
            found[group] = np.broadcast_to(own_readers[:, None], shape)
        return found

    def _batch_of(self, found: Measured, size: int) -> list[tuple[int, int]]:
        """The first pairs (kept, given up) that fit into the budgets together and do not touch each other."""
        left = dict(found.left)
        used: set[int] = set()
        chosen: list[tuple[int, int]] = []
        for kept, gone in found.pairs() if size else ():
            if kept in used or gone in used:
                continue
            u, v = self._kind(kept), self._kind(gone)
            damages = {g: float(d[0, 0]) for g, d in self._damages(found.tables, u, v).items()}
            if any(d > max(left[g], EXACT) for g, d in damages.items()):
                continue
            chosen.append((kept, gone))
            used |= {kept, gone}
            for group, damage in damages.items():
                left[group] -= damage
            if len(chosen) == size:
                break
        return chosen

    def _kind(self, number: int) -> Kind:
        """One class as a kind of its own."""
        one = self._classes[number]
        return Kind(one.owner.group, one.groups, np.array([number]), np.array([one.owner.channel]))

    def _apply(self, batch: Sequence[tuple[int, int]]) -> None:
        classes: list[Joined | None] = list(self._classes)
        for kept, gone in batch:
            classes[kept] = self._classes[kept].taking(self._classes[gone])
            classes[gone] = None
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


def _both(groups: tuple[int, ...], others: tuple[int, ...]) -> tuple[int, ...]:
    """Groups of two classes, ascending."""
    return tuple(sorted((*groups, *others)))
