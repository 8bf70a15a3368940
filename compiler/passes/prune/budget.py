"""What atoms cost, and how many to remove: whole rounding steps, cheapest first, until the budget holds.

Removal is quadratic (a narrower producer makes its consumers narrower too), so prices are taken anew after every
5 % of the original cost.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from compiler.errors import PassError
from compiler.ir.graph import Graph, Ref, Site, Value
from compiler.ir.op import Kept
from compiler.ir.ties import Atom, Group
from compiler.ir.types import Axis, TaskSet, splat_value
from compiler.passes.base import Timer
from compiler.passes.budget.limits import MICRO, shares
from compiler.passes.prune.surgery import shrunk

Quantity = Literal["flops", "parameters", "weight_bytes", "latency_us"]
Scope = Literal["global", "local"]

REPRICE = 0.05


def is_parameter(value: Value) -> bool:
    """Whether a value counts as learnt parameters: constant floats, not shapes, indices or one repeated number."""
    return value.data is not None and value.dtype.is_float and splat_value(value.data) is None


class Meter:
    """The cost of a graph while atoms are taken away and put back, without surgery.

    `flops` counts multiply-adds of product operators (2 FLOPs each, so the share is that of the headline number),
    weighted with the probability that the workload needs the node; `latency_us` sums the predicted times of these
    nodes on their own, weighted alike (`timer`); `parameters` counts elements of float parameters, `weight_bytes`
    their bytes if they are dense. `axes` (axis -> size) are those that must not become empty.
    """

    def __init__(
        self,
        graph: Graph,
        quantity: Quantity,
        workload: Mapping[TaskSet, float] | None = None,
        axes: Mapping[Axis, int] | None = None,
        timer: Timer | None = None,
    ) -> None:
        self._timer = timer if quantity == "latency_us" else None
        self._bytes = quantity == "weight_bytes"
        self._units, self._weights = _units(graph, quantity, workload or {})
        self._numbers = {_ref(u): i for i, u in enumerate(self._units)}
        self._sizes = [_sizes(u) for u in self._units]
        self._by_axis: dict[Axis, list[int]] = {}
        self._times_gone = {a: np.zeros(n, np.int32) for a, n in (axes or {}).items()}
        for i, sizes in enumerate(self._sizes):
            for axis, size in sizes.items():
                self._by_axis.setdefault(axis, []).append(i)
                self._times_gone[axis] = np.zeros(size, np.int32)
        self._costs = [self._cost(i) for i in range(len(self._units))]

    @property
    def total(self) -> float:
        """Cost of what is left."""
        return math.fsum(self._costs)

    @property
    def refs(self) -> tuple[Ref, ...]:
        """What is priced: nodes, or parameters."""
        return tuple(self._numbers)

    def cost_of(self, ref: Ref) -> float:
        """What one of them costs now."""
        return self._costs[self._numbers[ref]]

    def touched(self, atoms: Sequence[Atom]) -> tuple[Ref, ...]:
        """Those whose cost depends on `atoms`."""
        refs = self.refs
        return tuple(refs[i] for i in self._touched(atoms))

    def remove(self, atoms: Sequence[Atom]) -> None:
        """Take atoms away."""
        self._count(atoms, 1)
        for i in self._touched(atoms):
            self._costs[i] = self._cost(i)

    def restore(self, atoms: Sequence[Atom]) -> None:
        """Put atoms back that were taken away; entries that another removed atom holds stay away."""
        self._count(atoms, -1)
        for i in self._touched(atoms):
            self._costs[i] = self._cost(i)

    def saving(self, atoms: Sequence[Atom]) -> float:
        """What removing `atoms` now would save."""
        self._count(atoms, 1)
        saved = math.fsum(self._costs[i] - self._cost(i) for i in self._touched(atoms))
        self._count(atoms, -1)
        return saved

    @property
    def gone(self) -> dict[Axis, np.ndarray]:
        """Entries that are away, per axis that lost any."""
        return {a: np.flatnonzero(n) for a, n in self._times_gone.items() if n.any()}

    def leaves_some(self, atoms: Sequence[Atom]) -> bool:
        """Whether every axis keeps an entry without `atoms`: those of different groups can share axes."""
        self._count(atoms, 1)
        axes = {axis for atom in atoms for axis in atom.entries if axis in self._times_gone}
        found = all((self._times_gone[axis] == 0).any() for axis in axes)
        self._count(atoms, -1)
        return found

    def _count(self, atoms: Sequence[Atom], change: int) -> None:
        for atom in atoms:
            for axis, entries in atom.entries.items():
                if axis in self._times_gone:
                    self._times_gone[axis][entries] += change

    def _touched(self, atoms: Sequence[Atom]) -> list[int]:
        axes = dict.fromkeys(axis for atom in atoms for axis in atom.entries)
        return list(dict.fromkeys(i for axis in axes for i in self._by_axis.get(axis, ())))

    def _cost(self, unit: int) -> float:
        what, gone = self._units[unit], self._times_gone
        if isinstance(what, Value):
            count = math.prod(int(np.sum(gone[axis] == 0)) for axis in self._sizes[unit])
            return float(count * what.dtype.bytes if self._bytes else count)
        kept = {a: np.flatnonzero(gone[a] == 0) for a in self._sizes[unit] if gone[a].any()}
        small = shrunk(what, Kept(kept)) if kept else what
        if self._timer is not None:
            constants = frozenset(i for i, v in what.operands.present() if v.data is not None)
            return self._timer.site(small, constants) * MICRO * self._weights[unit]
        return what.node.op.macs(small) * self._weights[unit]


def _units(
    graph: Graph, quantity: Quantity, workload: Mapping[TaskSet, float]
) -> tuple[list[Site | Value], list[float]]:
    """What is priced: parameters, or nodes with multiply-adds and the probability that they run."""
    if quantity in ("parameters", "weight_bytes"):
        values: list[Site | Value] = [v for v in graph.parameters() if is_parameter(v)]
        return values, [1.0] * len(values)
    share = shares(graph, workload)
    sites: list[Site | Value] = [s for s in graph.sites() if s.node.op.macs(s)]
    return sites, [share.get(s.node.ref, 0.0) for s in sites if isinstance(s, Site)]


def _ref(unit: Site | Value) -> Ref:
    return unit.ref if isinstance(unit, Value) else unit.node.ref


def _sizes(unit: Site | Value) -> dict[Axis, int]:
    """Size of every axis of a priced thing, virtual ones included."""
    if isinstance(unit, Value):
        return {unit.axis(d): n for d, n in enumerate(unit.shape)}
    values = (*(v for _, v in unit.operands.present()), *unit.results)
    sizes = {v.axis(d): n for v in values for d, n in enumerate(v.shape)}
    for tie in unit.node.op.ties(unit):
        for axis, size in ((tie.b, len(tie.index)), (tie.a, int(tie.index.max(initial=-1)) + 1)):
            if axis.owner == unit.node.ref:
                sizes[axis] = max(size, sizes.get(axis, 0))
    return sizes


# ---------------------------------------------------------------------- choosing
@dataclass(frozen=True, slots=True)
class Selection:
    """The atoms to remove. `kept` is the share of the original cost that stays.

    Putting the last step of any group back would exceed the budget; `step` is the smallest such step, as a share.
    """

    atoms: tuple[Atom, ...]
    kept: float
    step: float


class Ladder:
    """The steps of one group: its atoms by rising score, removed so that the width stays a multiple."""

    def __init__(self, group: Group, scores: np.ndarray, multiple: int, floor: float) -> None:
        self._group = group
        self._atoms: list[Atom] = list(group.atoms)
        self._scores = scores
        self._multiple = multiple
        self._least = max(multiple, math.ceil(floor * len(self._atoms)))
        self._cuts = [0]
        self.rank(scores)

    def rank(self, scores: np.ndarray) -> None:
        """Order what is left by new scores, given in the order of the group's atoms."""
        by_atom = dict(zip((a.index for a in self._group.atoms), scores.tolist(), strict=True))
        done = self._cuts[-1]
        self._atoms[done:] = sorted(self._atoms[done:], key=lambda a: (by_atom[a.index], a.index))
        self._scores = np.array([by_atom[a.index] for a in self._atoms])

    @property
    def removed(self) -> Sequence[Atom]:
        """Atoms taken away so far."""
        return self._atoms[: self._cuts[-1]]

    @property
    def last(self) -> Sequence[Atom]:
        """Atoms of the last step taken, none before the first."""
        return self._atoms[self._cuts[-2] : self._cuts[-1]] if len(self._cuts) > 1 else []

    @property
    def next(self) -> Sequence[Atom]:
        """Atoms of the next step; none where the group may not become narrower."""
        return self._atoms[self._cuts[-1] : self._next_cut()]

    def _next_cut(self) -> int:
        width = len(self._atoms) - self._cuts[-1]
        target = (width - 1) // self._multiple * self._multiple
        return self._cuts[-1] if target < self._least else len(self._atoms) - target

    def advance(self) -> None:
        """Take the next step."""
        self._cuts.append(self._next_cut())

    def back(self) -> None:
        """Undo the last step."""
        self._cuts.pop()

    def key(self, meter: Meter, scope: Scope) -> float | None:
        """How soon the next step is due; None where there is none or it saves nothing."""
        start, stop = self._cuts[-1], self._next_cut()
        if stop == start or not meter.leaves_some(self.next):
            return None
        price = meter.saving(self.next)
        if price <= 0:
            return None
        if scope == "local":
            return stop / len(self._atoms)
        # A layer that has lost much already gets dearer, or it would be emptied before others are touched.
        return float(self._scores[start:stop].sum()) / price * len(self._atoms) / (len(self._atoms) - start)


def select(
    meter: Meter,
    ladders: Sequence[Ladder],
    target: float,
    scope: Scope,
    score: Callable[[Mapping[Axis, np.ndarray]], Sequence[np.ndarray]],
    refusals: Sequence[object] = (),
) -> Selection:
    """Remove the cheapest steps until the cost is at most `target` of the original.

    `global`: rising score per unit saved, over all groups. `local`: equal shares of every group. `score(gone)`
    gives the scores of all groups again when entries are gone. Raises PassError (with `refusals`) where even the
    narrowest groups cost more, or the networks cost nothing.
    """
    original = meter.total
    if not original:
        raise PassError("there is nothing to save: the networks have none of what the budget counts", refusals)
    budget = target * original
    history: list[Ladder] = []
    while meter.total > budget:
        if history:
            for ladder, scores in zip(ladders, score(meter.gone), strict=True):
                ladder.rank(scores)
        taken = _round(meter, ladders, max(budget, meter.total - REPRICE * original), scope)
        if not taken:
            raise PassError(
                f"the budget {target:.3f} cannot be reached: {meter.total / original:.3f} of the original remains "
                f"when every removable channel is gone" + "".join(f"\n  {r}" for r in refusals),
                refusals,
            )
        history += taken
    _put_back(meter, history, budget)
    atoms = tuple(a for ladder in ladders for a in ladder.removed)
    return Selection(atoms, meter.total / original, _smallest_step(meter, ladders) / original)


def narrowed(ladder: Ladder, meter: Meter) -> Sequence[Atom]:
    """Take every step that a ladder has, away from `meter` too; the atoms that are gone then."""
    while ladder.next and meter.leaves_some(ladder.next):
        meter.remove(ladder.next)
        ladder.advance()
    return ladder.removed


def _round(meter: Meter, ladders: Sequence[Ladder], goal: float, scope: Scope) -> list[Ladder]:
    """Steps down to `goal`, starting from fresh prices; the ladders in the order they were taken."""
    heap: list[tuple[float, int]] = []

    def push(i: int) -> None:
        key = ladders[i].key(meter, scope)
        if key is not None:
            heapq.heappush(heap, (key, i))

    for i in range(len(ladders)):
        push(i)
    taken: list[Ladder] = []
    while heap and meter.total > goal:
        _, i = heapq.heappop(heap)
        if not meter.leaves_some(ladders[i].next):
            continue
        meter.remove(ladders[i].next)
        ladders[i].advance()
        taken.append(ladders[i])
        push(i)
    return taken


def _put_back(meter: Meter, history: Sequence[Ladder], budget: float) -> None:
    """Return steps, the latest first, that the budget has room for: the last step may have freed too much."""
    full: set[int] = set()
    for ladder in reversed(history):
        step = ladder.last
        if id(ladder) in full:
            continue
        meter.restore(step)
        if meter.total <= budget:
            ladder.back()
        else:
            meter.remove(step)
            full.add(id(ladder))


def _smallest_step(meter: Meter, ladders: Sequence[Ladder]) -> float:
    """What putting the last step of one group back would cost at least; 0 where nothing was removed."""
    costs = []
    total = meter.total
    for ladder in ladders:
        if ladder.last:
            meter.restore(ladder.last)
            costs.append(meter.total - total)
            meter.remove(ladder.last)
    return min(costs, default=0.0)
