"""The lattice search of one stream: channels of different networks are joined, best value first, within a budget.

At the start every channel is on its own, which is the separate networks. Joining channel v to channel u means
that the networks of v read u from now on and v is not computed any more; u's label grows by v's. That never costs
a subset anything: each of its networks sees as many channels as before. What it saves is the making of v wherever
both were needed. What it damages is estimated from the correlation of u and v, from what v is worth to its
readers, and from how well u can still be computed from what its larger label may read."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.passes.merge.labels import Channel, Unit, own
from compiler.passes.merge.relevance import Likeness, Prices
from compiler.passes.merge.streams import Stream, Streams

EXACT = 1e-8
"""Damage that is allowed even where no loss is: rounding of float32 networks."""

CANDIDATES = 4
"""Partners in each other network that are considered for a channel."""

SNAP = 1e-4
"""Slopes closer to 1 than this are 1."""

Reach = Callable[[int, tuple[int, ...]], np.ndarray]
"""(group, label) -> [channels]: how much of each channel's variance is lost if it is computed from what the label
may read; infinite where it may read nothing."""


@dataclass(slots=True, eq=False)
class _Class:
    """Channels that were joined: `owner` is the one that is computed."""

    number: int
    owner: Unit
    members: list[Unit]
    groups: tuple[int, ...]
    alive: bool = True


class Joiner:
    """One stream. `budgets`: group -> damage its readers may take, as a share of their output variance."""

    def __init__(
        self,
        streams: Streams,
        stream: Stream,
        likeness: Likeness,
        worth: Mapping[int, np.ndarray],
        prices: Prices,
        reach: Reach,
        budgets: Mapping[int, float],
    ) -> None:
        self._streams, self._stream, self._likeness = streams, stream, likeness
        self._worth, self._prices, self._reach = worth, prices, reach
        self._left = {g: max(budgets[g], EXACT) for g in stream.groups}
        units = [Unit(g, i) for g in stream.groups for i in range(streams.group(g).width)]
        self._classes = [_Class(n, u, [u], (u.group,)) for n, u in enumerate(units)]
        self._of = {c.owner: c for c in self._classes}

    def run(self) -> tuple[Channel, ...]:
        """Join until the budget is used up; the channels of the stream, joined or not."""
        while self._sweep():
            pass
        return tuple(self._channel(c) for c in self._classes if c.alive)

    def _sweep(self) -> bool:
        """Join along the likest pairs of what is left; whether anything was."""
        heap = [entry for pair in self._pairs() if (entry := self._entry(*pair)) is not None]
        heapq.heapify(heap)
        joined = False
        while heap:
            key, keep, gone = heapq.heappop(heap)
            u, v = self._classes[keep], self._classes[gone]
            if not (u.alive and v.alive):
                continue
            fresh = self._entry(u, v)
            if fresh is None:
                continue
            if fresh[0] > key * (1 + 1e-12) + 1e-300:
                heapq.heappush(heap, fresh)
            else:
                joined |= self._try(u, v)
        return joined

    # ------------------------------------------------------------------ candidates
    def _pairs(self) -> list[tuple[_Class, _Class]]:
        """(kept, given up) for every channel and its likest ones in every other network, of those that are left."""
        owned: dict[int, list[int]] = {g: [] for g in self._stream.groups}
        for one in self._classes:
            if one.alive:
                owned[one.owner.group].append(one.owner.channel)
        found = []
        for a in self._stream.groups:
            for b in self._stream.groups:
                both = self._likeness.between(a, b) if a != b else None
                if both is None or self._streams.mask_of([a]) & self._streams.mask_of([b]):
                    continue
                found += self._likest(a, b, both[0][np.ix_(owned[a], owned[b])] ** 2, owned)
        return found

    def _likest(
        self, a: int, b: int, alike: np.ndarray, owned: Mapping[int, Sequence[int]]
    ) -> list[tuple[_Class, _Class]]:
        best = np.argsort(-alike, axis=0, kind="stable")[:CANDIDATES]
        units = [(Unit(a, owned[a][i]), Unit(b, owned[b][j])) for j in range(best.shape[1]) for i in best[:, j]]
        return [(self._of[kept], self._of[gone]) for kept, gone in units]

    def _entry(self, u: _Class, v: _Class) -> tuple[float, int, int] | None:
        """(damage per multiply-add saved, kept, given up) of letting u stand for v; None where it cannot or saves
        nothing."""
        groups = tuple(sorted((*u.groups, *v.groups)))
        masks = self._streams.mask_of(u.groups), self._streams.mask_of(v.groups)
        if masks[0] & masks[1] or not self._stream.may_own(u.owner.group, groups):
            return None
        price = self._prices
        saved = price.making(v.owner.group) * price.runs(masks[1])
        saved -= price.making(u.owner.group) * (price.runs(masks[0] | masks[1]) - price.runs(masks[0]))
        damage = sum(self._damages(u, v).values())
        return (damage / saved, u.number, v.number) if saved > 0 and np.isfinite(damage) else None

    def _damages(self, u: _Class, v: _Class) -> dict[int, float]:
        """Group -> how much more damage its readers take when u stands for v's members too."""
        after = tuple(sorted((*u.groups, *v.groups)))
        lost_before, lost_after = self._lost(u.owner, u.groups), self._lost(u.owner, after)
        found = dict.fromkeys(after, 0.0)
        for unit in u.members:
            before = self._error(u.owner, unit, lost_before) if len(u.groups) > 1 else 0.0
            found[unit.group] += self._value(unit) * (self._error(u.owner, unit, lost_after) - before)
        lost = self._lost(v.owner, v.groups)
        for unit in v.members:
            before = self._error(v.owner, unit, lost) if len(v.groups) > 1 else 0.0
            found[unit.group] += self._value(unit) * (self._error(u.owner, unit, lost_after) - before)
        return found

    def _lost(self, unit: Unit, groups: tuple[int, ...]) -> float:
        return float(min(self._reach(unit.group, groups)[unit.channel], np.inf)) if len(groups) > 1 else 0.0

    def _error(self, owner: Unit, member: Unit, lost: float) -> float:
        """Share of a member's variance that the owner, itself off by `lost`, does not explain."""
        if lost >= 1:
            return 1.0 if np.isfinite(lost) else np.inf
        return 1 - self._correlation(owner, member) ** 2 * (1 - lost)

    def _correlation(self, owner: Unit, member: Unit) -> float:
        if owner == member:
            return 1.0
        both = self._likeness.between(owner.group, member.group)
        return 0.0 if both is None else float(both[0][owner.channel, member.channel])

    def _value(self, unit: Unit) -> float:
        return float(self._worth[unit.group][unit.channel])

    # ------------------------------------------------------------------ joining
    def _try(self, u: _Class, v: _Class) -> bool:
        damages = self._damages(u, v)
        if any(d > self._left[g] for g, d in damages.items()):
            return False
        for group, damage in damages.items():
            self._left[group] -= max(damage, 0.0)
        u.members += v.members
        u.groups = tuple(sorted((*u.groups, *v.groups)))
        v.alive = False
        return True

    def _channel(self, one: _Class) -> Channel:
        if len(one.members) == 1:
            return own(one.owner)
        members = (one.owner, *sorted(m for m in one.members if m != one.owner))
        slopes = tuple(self._slope(one.owner, m) for m in members)
        return Channel(one.groups, members, slopes, (1.0, *(0.0 for _ in members[1:])))

    def _slope(self, owner: Unit, member: Unit) -> float:
        both = self._likeness.between(owner.group, member.group) if owner != member else None
        slope = 1.0 if both is None else float(both[1][owner.channel, member.channel])
        return 1.0 if abs(slope - 1) < SNAP else slope


def narrow_labels_apart(channels: Sequence[Channel], multiple: int) -> tuple[Channel, ...]:
    """Undo joins so that every shared label's width is a multiple of `multiple`: the last channels of a label that
    do not fill one are their own networks' again."""
    if multiple <= 1:
        return tuple(channels)
    by_label: dict[tuple[int, ...], list[Channel]] = {}
    for channel in channels:
        if len(channel.groups) > 1:
            by_label.setdefault(channel.groups, []).append(channel)
    undone = {id(c) for found in by_label.values() for c in found[len(found) // multiple * multiple :]}
    return tuple(part for c in channels for part in ([own(m) for m in c.members] if id(c) in undone else [c]))
