"""Which layer becomes how sparse under one budget: dense, or one of several patterns and densities each.

Every way of every layer is tried on its own: what it loses (held-out error of its outputs, or weight energy without
calibration inputs) and what the whole network then costs. The losses of all layers together become as small as the
budget allows (multiple-choice knapsack). Then the network is made and priced as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compiler.ir.encoding import BlockSparse, Unstructured
from compiler.ir.graph import Graph, Ref
from compiler.ir.types import NodeRef, ValueRef
from compiler.passes.base import Note, Refusal, Resources
from compiler.passes.budget.knapsack import choose
from compiler.passes.budget.limits import Limit, Quantity, prices
from compiler.passes.budget.sensitivity import Sensitivity
from compiler.passes.prune.fit import Reader
from compiler.passes.sparsify.compensate import WORK, Quadratic, solve, work
from compiler.passes.sparsify.goals import Goal, form_of, goals_of, largest
from compiler.passes.sparsify.layers import Candidate, weights_of
from compiler.passes.sparsify.patterns import DARB_SIZES
from compiler.passes.sparsify.problems import Problem, base_of, problems, put
from compiler.passes.sparsify.update import RIDGES, Measured, Walk, shift

DENSITIES = (0.8, 0.65, 0.5, 0.375, 0.25, 0.1875, 0.125, 0.0625, 0.0312)
"""Shares that ranked patterns are tried with."""

TRIES = 6
"""Assignments that are made until the network as a whole is within its budget."""

SAFETY = 1.05

MIXTURES = tuple(n / 8 for n in range(9))
"""Shares of the first of two limits."""


@dataclass(frozen=True, slots=True, eq=False)
class Ways:
    """What one layer can become: None, which is dense, first; the loss of each way, and its costs by quantity."""

    goals: tuple[Goal | None, ...]
    losses: tuple[float, ...]
    costs: Mapping[Quantity, tuple[float, ...]]

    def within(self, most: Goal | None) -> Ways:
        """The ways that store no more units than `most`, all in one form; all ways where that is None."""
        if most is None:
            return self
        taken = [n for n, g in enumerate(self.goals) if g and (g.kept or 0) <= (most.kept or 0)]
        return Ways(
            tuple(self.goals[n] for n in taken),
            tuple(self.losses[n] for n in taken),
            {quantity: tuple(costs[n] for n in taken) for quantity, costs in self.costs.items()},
        )


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """Layers and what each can become. `rest`: what the network costs besides them, in every quantity."""

    graph: Graph
    layers: Sequence[Candidate]
    ways: Sequence[Ways]
    rest: Mapping[Quantity, float]

    def within(self, limits: Sequence[Limit], use: Resources) -> tuple[list[Goal | None], Note]:
        """The goal of every layer, so that least is lost within one limit or two, and what is said of it.

        Of two limits several mixtures are tried, each as one limit (a surrogate constraint: Glover, Operations
        Research 16, 1968). PassError where the network costs too much with every layer as sparse as it can be.
        """
        left = {limit: limit.value - self.rest[limit.quantity] for limit in limits}
        found = []
        if all(value > 0 for value in left.values()):
            shares = MIXTURES if len(limits) > 1 else (1.0,)
            mixtures = [dict(zip(limits, (share, 1 - share), strict=False)) for share in shares]
            found = [made for mixture in mixtures if (made := self._mixed(mixture, left, use))]
        if found:
            chosen, costs = min(found, key=lambda made: self._lost(made[0]))
        else:
            chosen = [_cheapest(w, limits[0].quantity) for w in self.ways]
            costs = self.costs(self._goals(chosen), limits, use)
        for limit, cost in costs:
            if cost > limit.value:
                raise limit.missed(cost, "when every layer is as sparse as it can be")
        return self._goals(chosen), _note(costs, self._goals(chosen), self._lost(chosen))

    def costs(
        self, goals: Sequence[Goal | None], limits: Sequence[Limit], use: Resources
    ) -> list[tuple[Limit, float]]:
        """What the network costs in the quantity of each limit."""
        made = trial(self.graph, self.layers, by_weight(self.layers, goals))
        return [(limit, limit.cost(made, use)) for limit in limits]

    def sparser(self, goals: Sequence[Goal | None]) -> Choice:
        """The same layers, none of which stores more than it does with these goals."""
        return replace(self, ways=[w.within(g) for w, g in zip(self.ways, goals, strict=True)])

    def _mixed(
        self, mixture: Mapping[Limit, float], left: Mapping[Limit, float], use: Resources
    ) -> tuple[list[int], list[tuple[Limit, float]]] | None:
        """The way of every layer by its number, where limits count by their shares, and what that costs; None where
        there is none.
        """
        alone = len(mixture) == 1
        units = {limit: 1.0 if alone else value for limit, value in left.items()}
        costs = [
            [
                math.fsum(share / units[limit] * w.costs[limit.quantity][way] for limit, share in mixture.items())
                for way in range(len(w.goals))
            ]
            for w in self.ways
        ]
        capacity = math.fsum(share * left[limit] / units[limit] for limit, share in mixture.items())
        for _ in range(TRIES):
            chosen = choose([w.losses for w in self.ways], costs, capacity)
            if chosen is None:
                return None
            costing = self.costs(self._goals(chosen), list(mixture), use)
            over = max((cost - limit.value) / units[limit] for limit, cost in costing)
            if over <= 0:
                return chosen, costing
            capacity -= SAFETY * over
        return None

    def _goals(self, chosen: Sequence[int]) -> list[Goal | None]:
        return [w.goals[n] for w, n in zip(self.ways, chosen, strict=True)]

    def _lost(self, chosen: Sequence[int]) -> float:
        return math.fsum(w.losses[n] for w, n in zip(self.ways, chosen, strict=True))


def assign(
    graph: Graph,
    layers: Sequence[Candidate],
    patterns: Sequence[str],
    limit: Limit,
    use: Resources,
    feeds: Sequence[Mapping[str, np.ndarray]],
) -> tuple[dict[ValueRef, Goal], list[Refusal]]:
    """The goal of every weight that does not stay dense, and a note on what was chosen.

    `feeds`: calibration inputs, or none. PassError where the network costs too much with every layer as sparse as
    `patterns` allow.
    """
    total = limit.cost(graph, use)
    if total <= limit.value:
        return {}, [
            Note("budget", f"{limit.quantity} are {total:.6g} already, at most {limit.value:.6g} are allowed")
        ]
    ways = [ways_of(layer, patterns) for layer in layers]
    goals, note = choice_of(graph, layers, ways, [limit], use, feeds).within([limit], use)
    return by_weight(layers, goals), [note]


def choice_of(
    graph: Graph,
    layers: Sequence[Candidate],
    goals: Sequence[tuple[Goal | None, ...]],
    limits: Sequence[Limit],
    use: Resources,
    feeds: Sequence[Mapping[str, np.ndarray]],
) -> Choice:
    """Layers with the loss and the costs, by the quantities of limits, of all goals they can have, None first."""
    losses = losses_of(graph, layers, goals, feeds)
    costs = {limit.quantity: costs_of(graph, layers, goals, limit, use) for limit in limits}
    rest = {
        limit.quantity: limit.cost(graph, use) - math.fsum(own[0] for own in costs[limit.quantity])
        for limit in limits
    }
    ways = [
        Ways(own, lost, {quantity: found[n] for quantity, found in costs.items()})
        for n, (own, lost) in enumerate(zip(goals, losses, strict=True))
    ]
    return Choice(graph, layers, ways, rest)


def by_weight(layers: Sequence[Candidate], goals: Sequence[Goal | None]) -> dict[ValueRef, Goal]:
    """Goals of the weights that have one."""
    return {c.weight.ref: g for c, g in zip(layers, goals, strict=True) if g}


def ways_of(layer: Candidate, patterns: Sequence[str]) -> tuple[Goal | None, ...]:
    """Dense, and every pattern at every density that it can have."""
    found: list[Goal | None] = [None]
    data = layer.weight.constant
    for pattern in patterns:
        if pattern == "darb":
            shares = [1 / s for s in DARB_SIZES]
            found += [g for share in shares for g in goals_of(pattern, [layer], [data], share, 0.0)]
        elif pattern.startswith("regular"):
            found += goals_of(pattern, [layer], [data], 1.0, 0.0)
        else:
            found += ranked_ways(form_of(pattern, layer), layer)
    return tuple(found)


def ranked_ways(
    form: BlockSparse | Unstructured, layer: Candidate, densities: Sequence[float] = DENSITIES
) -> list[Goal]:
    """A form whose units are ranked, at every density."""
    shape, height = layer.weight.shape, form.height if isinstance(form, BlockSparse) else 1
    units = -(-shape[layer.rows] // height) * (math.prod(shape) // shape[layer.rows])
    return [Goal(form, max(1, math.floor(d * units))) for d in densities]


def trial(graph: Graph, layers: Sequence[Candidate], goals: Mapping[ValueRef, Goal]) -> Graph:
    """The graph with the largest magnitudes left where a layer has a goal: costs what the final one costs."""
    made = graph.copy()
    for layer in layers:
        if goal := goals.get(layer.weight.ref):
            type_ = replace(layer.weight.type, encoding=goal.form)
            made.update(layer.weight.ref, type=type_, data=largest(layer.weight.constant, goal))
    return made


def _note(costs: Sequence[tuple[Limit, float]], goals: Sequence[Goal | None], lost: float) -> Note:
    told = [f"{limit.quantity} {cost:.6g} of at most {limit.value:.6g}" for limit, cost in costs]
    dense = sum(goal is None for goal in goals)
    return Note(
        "budget",
        f"{', '.join(told)}; {len(goals) - dense} layers sparse, {dense} dense, expected loss {lost:.3g}",
    )


def _cheapest(ways: Ways, quantity: Quantity) -> int:
    return min(range(len(ways.goals)), key=lambda n: ways.costs[quantity][n])


def costs_of(
    graph: Graph,
    layers: Sequence[Candidate],
    goals: Sequence[Sequence[Goal | None]],
    limit: Limit,
    use: Resources,
) -> list[tuple[float, ...]]:
    """Cost of every way of every layer: way n of all layers is priced in one graph, weights of one node apart.

    What such weights share is in the cost of each, dense or not, so that differences between ways are right.
    """
    found: list[list[float]] = [[] for _ in layers]
    owners: list[tuple[Ref, ...]] = [(*layer.readers, layer.weight.ref) for layer in layers]
    for turn in _apart(layers):
        for number in range(max(len(goals[i]) for i in turn)):
            picked = {layers[i].weight.ref: goals[i][number] for i in turn if number < len(goals[i])}
            made = trial(graph, layers, {ref: goal for ref, goal in picked.items() if goal})
            priced = prices(made, limit.quantity, limit.target, use)
            for i in turn:
                if layers[i].weight.ref in picked:
                    found[i].append(math.fsum(priced.get(r, 0.0) for r in owners[i]))
    return [tuple(own) for own in found]


def _apart(layers: Sequence[Candidate]) -> list[list[int]]:
    """Numbers of layers in groups in which no two weights are read by one node: their costs would add up."""
    groups: list[tuple[list[int], set[NodeRef]]] = []
    for number, layer in enumerate(layers):
        fitting = next((g for g in groups if g[1].isdisjoint(layer.readers)), None)
        if fitting is None:
            groups.append(([number], set(layer.readers)))
        else:
            fitting[0].append(number)
            fitting[1].update(layer.readers)
    return [numbers for numbers, _ in groups]


# ---------------------------------------------------------------------- losses
def losses_of(
    graph: Graph,
    layers: Sequence[Candidate],
    goals: Sequence[Sequence[Goal | None]],
    feeds: Sequence[Mapping[str, np.ndarray]],
    sensitivity: Sensitivity | None = None,
) -> list[tuple[float, ...]]:
    """Loss of every way of every layer on its own, all inputs as in the original: held-out error of the layer's
    outputs, in the unit of `sensitivity` where that is given; lost weight energy without `feeds`."""
    found = {c.weight.ref: tuple(_energy(c, g) for g in own) for c, own in zip(layers, goals, strict=True)}
    if feeds:
        ways = {c.weight.ref: (c, own) for c, own in zip(layers, goals, strict=True)}
        walk = Walk(graph, feeds)
        for node in walk:
            site = graph.site(node)
            for ref in (site.operands[i].ref for i in weights_of(site)):
                layer, own = ways.get(ref, (None, ()))
                parts = [] if layer is None else problems(graph, site, layer)
                if layer is not None and parts:
                    errors = [_errors(p, layer, own, walk.measure(p.reader), sensitivity) for p in parts]
                    found[ref] = tuple(float(np.mean(way)) for way in zip(*errors, strict=True))
    return [found[c.weight.ref] for c in layers]


def _energy(layer: Candidate, goal: Goal | None) -> float:
    """Share of the squared weights that is lost."""
    if goal is None:
        return 0.0
    data = layer.weight.constant.astype(np.float64)
    return 1.0 - float(np.sum(largest(data, goal) ** 2)) / max(float(np.sum(data**2)), 1e-30)


def _errors(
    problem: Problem,
    layer: Candidate,
    goals: Sequence[Goal | None],
    measured: Measured,
    sensitivity: Sensitivity | None,
) -> tuple[float, ...]:
    """Loss of every way after one fit; of the plain survivors where a fit would take too long."""
    reader, shape = problem.reader, problem.layer.weight.shape
    old = reader.matrix(reader.weight.constant)[0].T
    quadratic = measured.quadratic(old, RIDGES[1])
    importance = solve(quadratic, np.ones(old.shape, bool), len(old)).importance
    shaped = np.asarray(reader.restore(importance.T[None])).reshape(shape)

    def mask(whole: Goal | None) -> np.ndarray:
        if whole is None:
            return np.ones(old.shape, bool)
        return np.asarray(reader.matrix(problem.goal(whole, layer).mask(shaped).astype(np.float64))[0].T != 0)

    heights = [goal.height if goal else len(old) for goal in goals]
    return masked_losses(reader, [mask(g) for g in goals], heights, measured, quadratic, sensitivity)


def masked_losses(
    reader: Reader,
    masks: Sequence[np.ndarray],
    heights: Sequence[int],
    measured: Measured,
    quadratic: Quadratic,
    sensitivity: Sensitivity | None,
) -> tuple[float, ...]:
    """What is lost when only these weights [rows, p] of a layer stay, fitted; the old ones as they are where a fit
    would take too long, or everything stays. `heights`: rows that share their support. In the unit of
    `sensitivity`, without one the held-out error of the layer."""
    old, base = reader.matrix(reader.weight.constant)[0].T, base_of(reader)
    fits = []
    for alive, height in zip(masks, heights, strict=True):
        plain = alive.all() or work(alive, height) > WORK
        weights = old * alive if plain else solve(quadratic, alive, height).weights
        fits.append((weights, base if plain else measured.offset(weights, base)))
    errors = [0.0 if m.all() else measured.loss(*fit) for m, fit in zip(masks, fits, strict=True)]

    if sensitivity is None:
        return tuple(errors)

    def change(graph: Graph, number: int) -> None:
        weights, offset = fits[number]
        put(graph, reader, weights)
        shift(graph, reader, offset)

    return tuple(sensitivity.scaled(errors, change))
