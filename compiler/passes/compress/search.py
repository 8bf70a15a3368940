"""One choice of channels and patterns: the least loss together at a price per unit of cost, and within a budget.

What a layer costs depends on the channels that it reads and makes, so groups of channels and layers cannot be
chosen one by one. At a price per unit of cost they are settled in turn: every group takes the width, and every
layer the way, for which loss + price * cost of the whole is least while the others stay (coordinate descent on the
Lagrangian; each step lowers it, so it ends). A rising price leads from the original to the narrowest network. For
each of the widths on this path the patterns are then chosen anew, exactly, within what the budget leaves
(`budget.knapsack`). So the first choice loses no more, as it is estimated, than patterns alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.ir.graph import Ref
from compiler.ir.ties import Atom
from compiler.passes.budget.knapsack import choose
from compiler.passes.prune.budget import Meter

PRICES = np.geomspace(1e-4, 1e3, 48)
"""Prices that are tried: loss for the cost of the whole original."""

SWEEPS = 20
"""Rounds of settling at most; a few are enough, since a round without a change ends it."""

Widths = tuple[int, ...]
"""How many steps every group of channels has taken."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Nodes or parameters that are priced together, and the ways they can be stored, dense first.

    `losses`: of each way; `ratios`: its cost as a share of that of the dense layer, at any width.
    """

    refs: tuple[Ref, ...]
    losses: tuple[float, ...] = (0.0,)
    ratios: tuple[float, ...] = (1.0,)


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """The widths of one group of channels: `cuts[k]` are the atoms that are gone after k steps, each a start of the
    next; `losses[k]` is what that loses."""

    cuts: tuple[tuple[Atom, ...], ...]
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Widths, the way of every layer, the loss expected of both, and their cost."""

    widths: Widths
    ways: tuple[int, ...]
    loss: float
    cost: float


class Space:
    """Everything that can be chosen, with the cost of every layer at any widths: the meter's, times `scale`."""

    def __init__(self, meter: Meter, layers: Sequence[Layer], groups: Sequence[Steps], scale: float = 1.0) -> None:
        owned = {ref for layer in layers for ref in layer.refs}
        rest = [Layer((ref,)) for ref in meter.refs if ref not in owned]
        self.layers, self.groups = (*layers, *rest), tuple(groups)
        self._meter, self._scale = meter, scale
        self._at = [0] * len(groups)
        self._known: dict[tuple[int, tuple[int, ...]], float] = {}
        number = {ref: n for n, layer in enumerate(self.layers) for ref in layer.refs}
        touched = [dict.fromkeys(number[r] for r in meter.touched(g.cuts[-1])) for g in groups]
        self.readers = [tuple(t) for t in touched]
        """Numbers of the layers whose cost depends on each group."""
        self._deciding = [tuple(g for g, t in enumerate(touched) if n in t) for n in range(len(self.layers))]
        axes = [{a for atom in g.cuts[-1] for a in atom.entries} for g in groups]
        self._entangled = [any(a & b for m, b in enumerate(axes) if m != n) for n, a in enumerate(axes)]
        self._values = [(np.array(layer.losses), np.array(layer.ratios)) for layer in self.layers]

    @property
    def original(self) -> Widths:
        """No channel gone."""
        return (0,) * len(self.groups)

    def cost(self, layer: int, widths: Widths) -> float:
        """What a dense layer costs at these widths."""
        key = layer, tuple(widths[g] for g in self._deciding[layer])
        if key not in self._known:
            self._move(widths)
            self._known[key] = self._scale * math.fsum(self._meter.cost_of(r) for r in self.layers[layer].refs)
        return self._known[key]

    def costs(self, widths: Widths) -> list[list[float]]:
        """Cost of every way of every layer."""
        return [[self.cost(n, widths) * r for r in layer.ratios] for n, layer in enumerate(self.layers)]

    def value(self, group: int, widths: Widths, price: float) -> float:
        """What of loss + price * cost depends on the width of a group, every layer stored in its cheapest way."""
        parts = (self._least(n, widths, price) for n in self.readers[group])
        return self.groups[group].losses[widths[group]] + math.fsum(parts)

    def _least(self, layer: int, widths: Widths, price: float) -> float:
        losses, ratios = self._values[layer]
        return float(np.min(losses + price * self.cost(layer, widths) * ratios))

    def possible(self, group: int, widths: Widths) -> bool:
        """Whether every axis keeps an entry: groups can share axes, and only then one could lose them all."""
        if not self._entangled[group]:
            return True
        self._move((*widths[:group], 0, *widths[group + 1 :]))
        return self._meter.leaves_some(self.groups[group].cuts[widths[group]])

    def gone(self, widths: Widths) -> list[Atom]:
        """The atoms that are gone at these widths."""
        return [a for group, k in zip(self.groups, widths, strict=True) for a in group.cuts[k]]

    def _move(self, widths: Widths) -> None:
        """Take from the meter what is gone at these widths, and nothing else."""
        for g, (now, then) in enumerate(zip(self._at, widths, strict=True)):
            before, after = self.groups[g].cuts[now], self.groups[g].cuts[then]
            if then > now:
                self._meter.remove(after[len(before) :])
            elif then < now:
                self._meter.restore(before[len(after) :])
        self._at = list(widths)


def settle(space: Space, price: float, start: Widths) -> Widths:
    """Widths from which no group alone can lower loss + price * cost any further."""
    widths = start
    for _ in range(SWEEPS):
        before = widths
        for group in range(len(space.groups)):
            widths = min(_options(space, group, widths), key=lambda w: (space.value(group, w, price), w != widths))
        if widths == before:
            break
    return widths


def _options(space: Space, group: int, widths: Widths) -> list[Widths]:
    every = [(*widths[:group], k, *widths[group + 1 :]) for k in range(len(space.groups[group].cuts))]
    return [w for w in every if w == widths or space.possible(group, w)]


def narrowest(space: Space) -> Widths:
    """Every group as narrow as it may be beside those before it."""
    widths = space.original
    for group in range(len(space.groups)):
        widths = _options(space, group, widths)[-1]
    return widths


def path(space: Space) -> Iterator[Widths]:
    """Settled widths at rising prices, from the original on."""
    widths = space.original
    total = max(math.fsum(space.cost(n, widths) for n in range(len(space.layers))), 1e-30)
    yield widths
    for price in PRICES:
        widths = settle(space, float(price) / total, widths)
        yield widths


def choices(space: Space, capacity: float) -> list[Choice]:
    """For the widths on the path, and the narrowest, the best ways within `capacity`; the least loss first."""
    found = []
    for widths in dict.fromkeys([*path(space), narrowest(space)]):
        costs = space.costs(widths)
        ways = choose([layer.losses for layer in space.layers], costs, capacity)
        if ways is not None:
            lost = [layer.losses[n] for layer, n in zip(space.layers, ways, strict=True)]
            lost += [g.losses[k] for g, k in zip(space.groups, widths, strict=True)]
            cost = math.fsum(row[n] for row, n in zip(costs, ways, strict=True))
            found.append(Choice(widths, tuple(ways), math.fsum(lost), cost))
    return sorted(found, key=lambda c: (c.loss, c.cost))
