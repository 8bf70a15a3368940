"""The parts of budgets: knapsack, shares and prices, bisection over accuracy, sensitivity; against enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from compiler.codegen.predict import planner_clock
from compiler.cost.count import totals
from compiler.errors import PassError
from compiler.ir.graph import Graph, Site
from compiler.ir.types import NodeRef
from compiler.passes.base import Note, Resources
from compiler.passes.budget.accuracy import EVALUATIONS, Point, cheapest, within_drop
from compiler.passes.budget.knapsack import CELLS, choose
from compiler.passes.budget.limits import Limit, check_drop, limit_of, prices, problems_of, shares, worst
from compiler.passes.budget.sensitivity import PROBES, Sensitivity
from compiler.passes.prune.channels import PruneChannels
from compiler.pipeline import parse
from tests.graphs import Builder


# ---------------------------------------------------------------------- knapsack
def least_loss(losses: list[list[int]], costs: list[list[int]], capacity: int) -> int | None:
    """The least sum of losses of all choices that fit."""
    sums = [
        sum(row[n] for row, n in zip(losses, ways, strict=True))
        for ways in itertools.product(*(range(len(row)) for row in costs))
        if sum(row[n] for row, n in zip(costs, ways, strict=True)) <= capacity
    ]
    return min(sums, default=None)


pair = st.tuples(st.integers(0, 9), st.integers(0, 12))


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(
    layers=st.lists(st.lists(pair, min_size=1, max_size=4), min_size=1, max_size=4),
    left=st.sampled_from([d for d in range(-1, 51) if d <= 0 or CELLS % d == 0]),
)
def test_whole_costs_that_cells_divide_give_the_optimum(layers: list[list[tuple[int, int]]], left: int) -> None:
    losses, costs = ([[way[part] for way in row] for row in layers] for part in (0, 1))
    capacity = sum(map(min, costs)) + left
    chosen, optimum = choose(losses, costs, capacity), least_loss(losses, costs, capacity)
    assert (chosen is None) == (optimum is None) == (left < 0)
    if chosen is not None:
        assert sum(row[n] for row, n in zip(costs, chosen, strict=True)) <= capacity
        assert sum(row[n] for row, n in zip(losses, chosen, strict=True)) == optimum


def test_of_ways_that_lose_alike_the_first_is_taken() -> None:
    """The first is the dense one: nothing is thinned for nothing."""
    assert choose([[0.0, 0.0, 0.0], [1.0, 1.0]], [[3.0, 2.0, 1.0], [2.0, 1.0]], 6.0) == [0, 0]


# ---------------------------------------------------------------------- shares and prices
def two_tasks() -> tuple[Graph, list[NodeRef]]:
    """A common product, and one for each of two tasks."""
    b = Builder()
    h = b.apply("MatMul", b.input("x", 1, 8), b.weight(8, 6))
    b.task("a", b.apply("MatMul", h, b.weight(6, 4)))
    b.task("b", b.apply("MatMul", h, b.weight(6, 2)))
    graph = b.done()
    return graph, [n.ref for n in graph.nodes()]


CALLS: Mapping[frozenset[str], float] = {frozenset({"a"}): 5.0, frozenset({"a", "b"}): 3.0}


def test_a_vertex_costs_as_often_as_calls_need_it() -> None:
    graph, (trunk, first, second) = two_tasks()
    found = shares(graph, CALLS)
    assert [found[r] for r in (trunk, first, second)] == [1.0, 1.0, 3 / 8]
    assert set(shares(graph, {}).values()) == {1.0}
    use = Resources(workload=CALLS)
    flops = prices(graph, "flops", "", use)
    assert [flops[r] for r in (trunk, first, second)] == [2 * 48, 2 * 24, 2 * 12 * 3 / 8]
    assert sorted(prices(graph, "weight_bytes", "", use).values()) == [4 * 12, 4 * 24, 4 * 48]


@dataclass(frozen=True)
class Clock:
    """A microsecond for every node."""

    target: str
    lanes: int = 8

    def graph(self, graph: Graph) -> Mapping[NodeRef, float]:
        return {n.ref: 1e-6 for n in graph.nodes()}

    def site(self, site: Site, constants: frozenset[int]) -> float:
        return 1e-6


def test_time_is_in_microseconds_of_the_target_that_is_asked() -> None:
    graph, (trunk, first, second) = two_tasks()
    asked: list[str] = []

    def clock(target: str) -> Clock:
        asked.append(target)
        return Clock(target)

    use = Resources(workload=CALLS, clock=clock)
    found = prices(graph, "latency_us", "armv7", use)
    assert [found[r] for r in (trunk, first, second)] == pytest.approx([1.0, 1.0, 3 / 8])
    assert Limit("latency_us", 0.0, "armv7").cost(graph, use) == pytest.approx(2.375)
    assert asked == ["armv7", "armv7"]
    with pytest.raises(PassError, match="times on 'armv7' are not known here"):
        prices(graph, "latency_us", "armv7", Resources())


def test_up_to_one_a_budget_is_a_share_but_for_time() -> None:
    graph, _ = two_tasks()
    use = Resources(clock=Clock)
    whole = {"flops": 2.0 * (48 + 24 + 12), "weight_bytes": 4.0 * (48 + 24 + 12)}
    for quantity, cost in whole.items():
        for value, limit in ((1.0, cost), (0.25, cost / 4), (1.5, 1.5), (100, 100.0)):
            options = PruneChannels(**{quantity: value}, target="armv7")
            assert limit_of(options, graph, use) == Limit(quantity, limit)
    assert limit_of(PruneChannels(latency_us=0.5, target="armv7"), graph, use) == Limit("latency_us", 0.5, "armv7")
    assert limit_of(PruneChannels(accuracy_drop=0.1), graph, use) is None


def test_a_missed_budget_says_by_how_much() -> None:
    error = Limit("weight_bytes", 200.0).missed(250.0, "at the narrowest")
    assert error.found == 250
    assert str(error).startswith(
        "weight_bytes: at most 200 bytes of weights are allowed and 250 remain at the narrowest, "
        "50 too many (25.0%); allow more"
    )
    assert "(7.767e+299 times as many); allow more" in str(Limit("latency_us", 1e-300).missed(0.7767, ""))
    assert "at most 3 us predicted are" in str(Limit("latency_us", 3.0).missed(4.0, ""))
    assert "at most 3 FLOPs are" in str(Limit("flops", 3.0).missed(4.0, ""))


def judged(drops: Mapping[str, float]) -> Resources:
    return Resources(judge=lambda graph: drops)


def test_what_is_wrong_with_a_budget() -> None:
    def found(use: Resources | None = None, **options: float) -> list[str]:
        return problems_of(PruneChannels(**options), use or Resources())  # type: ignore[arg-type]

    assert found(flops=0.5) == found(weight_bytes=1e9) == found(judged({}), accuracy_drop=0) == []
    assert found(flops=math.nan) == ["flops must be above 0, not nan"]
    assert found(weight_bytes=0.0) == ["weight_bytes must be above 0, not 0.0"]
    assert found(judged({}), accuracy_drop=math.nan) == ["accuracy_drop must be 0 or more, not nan"]
    assert found(accuracy_drop=0.1) == ["accuracy_drop needs evaluation data with a metric"]
    assert found(flops=1.5) == [
        "flops=1.5 is neither a share, which is at most 1, nor an amount of FLOPs, which is above 100; half of the "
        "original is 0.5"
    ]
    assert "flops=50 is neither" in found(flops=50.0)[0] and "weight_bytes=100" in found(weight_bytes=100.0)[0]
    assert found(flops=1.0) == found(flops=101.0) == found(weight_bytes=100.5) == []
    assert found(weight_bytes=math.inf) == ["weight_bytes=inf limits nothing; leave it out"]
    assert "never a share" in str(Limit("latency_us", 0.5).missed(2.0, "here"))
    assert "never a share" not in str(Limit("latency_us", 1.5).missed(2.0, "here"))
    assert len(found(latency_us=1.0)) == 1 and not found(Resources(clock=Clock), latency_us=1.0)


def test_a_target_that_nobody_knows_is_wrong_with_any_budget() -> None:
    graph, _ = two_tasks()
    use = Resources(clock=planner_clock)
    for spec in ("prune-channels{flops=0.5,%s}", "sparsify{density=0.5,%s}", "compress{latency_us=1,%s}"):
        (problem,) = parse(spec % "target=nowhere").wrong(graph, use)
        assert problem.startswith("unknown target 'nowhere'; known are host")
        assert not parse(spec % "target=armv7-neon").wrong(graph, use)


# ---------------------------------------------------------------------- accuracy
class Bounded:
    """Accuracies, which lie from 0 to 1."""

    most_drop = 1.0

    def __call__(self, graph: Graph) -> dict[str, float]:
        return {}


def test_a_drop_that_no_metric_can_make_is_refused() -> None:
    options = PruneChannels(accuracy_drop=2.0)
    (problem,) = problems_of(options, Resources(judge=Bounded()))
    assert problem == "accuracy_drop=2 limits nothing: metrics drop by 1 at most; two per cent are 0.02"
    assert problems_of(options, judged({})) == problems_of(PruneChannels(accuracy_drop=0.9), judged({})) == []


def test_the_task_that_loses_most() -> None:
    assert worst({"a": 0.1, "b": 0.3, "c": -1.0}) == "b"
    assert worst({"a": 5.0, "b": math.nan, "c": math.inf}) == "b"


def test_a_drop_is_refused_only_above_what_is_allowed() -> None:
    graph, _ = two_tasks()
    options = PruneChannels(flops=0.5, accuracy_drop=0.25)
    check_drop(options, graph, judged({"a": 0.25, "b": 0.0}))
    check_drop(PruneChannels(flops=0.5), graph, judged({"a": 9.0}))
    check_drop(options, graph, Resources())
    with pytest.raises(PassError) as caught:
        check_drop(options, graph, judged({"a": 0.3, "b": 0.5}))
    assert str(caught.value) == (
        "accuracy_drop: task 'b' loses 0.5 where 0.25 is allowed, 0.25 too much, at the best found for flops=0.5; "
        "allow more of either"
    )


@pytest.mark.parametrize("least", [0.0, 0.004, 0.25, 0.3, 0.7, 0.995, 1.0])
def test_bisection_finds_the_least_share_that_keeps_the_accuracy(least: float) -> None:
    """Against all shares that seven halvings can tell apart. A task that loses nothing changes nothing."""
    tried: list[float] = []

    def make(share: float) -> Graph:
        tried.append(share)
        return two_tasks()[0]

    use = Resources(judge=lambda graph: {"same": 0.0, "worse": 0.1 if tried[-1] >= least else 0.2})
    share, points = cheapest(make, use, 0.1)
    steps = 1 << EVALUATIONS
    assert share == min((k / steps for k in range(1, steps) if k / steps >= least), default=1.0)
    assert [p.share for p in points] == tried and tried[0] == 0.5 and len(tried) == EVALUATIONS
    assert all(p.drop == (0.1 if p.share >= least else 0.2) for p in points)


def test_points_are_told() -> None:
    assert Point(0.5, 0.0123).note == Note("share 0.5000", "accuracy drop 0.0123")
    assert Point(0.25, None).note == Note("share 0.2500", "cannot be reached")


def test_where_nothing_cheaper_is_as_good_nothing_changes() -> None:
    graph, _ = two_tasks()
    flops = totals(graph).flops
    use = Resources(judge=lambda g: {"a": 0.0 if totals(g).flops == flops else 1.0})
    work = graph.copy()
    told = within_drop(PruneChannels(accuracy_drop=0.5), work, use)
    assert totals(work).flops == flops
    assert len(told) == EVALUATIONS and all(isinstance(t, Note) for t in told)


# ---------------------------------------------------------------------- sensitivity
def shifted(count: int, last: float) -> Sensitivity:
    """Of y = x + b for inputs of 1, the last one of `last`; a second output that b does not reach."""
    b = Builder()
    x = b.input("x", 1, 1)
    b.task("t", b.apply("Add", x, b.const(np.zeros((1, 1), np.float32), "b")), b.apply("Relu", x))
    values = [1.0] * (count - 1) + [last]
    return Sensitivity(b.done(), [{"x": np.full((1, 1), v, np.float32)} for v in values])


def moved(made: Graph, number: int) -> None:
    (value,) = made.parameters()
    made.update(value.ref, data=np.full((1, 1), number, np.float32))


@pytest.mark.parametrize(("count", "seen"), [(1, 1), (3, 3), (16, 16), (40, PROBES)])
def test_errors_are_scaled_to_what_the_outputs_lose(count: int, seen: int) -> None:
    """b = 1 adds 1 to each of `seen` outputs of power 1, ... 1, 100; the other output loses nothing."""
    loss = seen / (seen - 1 + 100) / 2
    found = shifted(count, 10.0).scaled([0.0, 0.2, 5.0], moved)
    assert found == pytest.approx([0.0, loss, 25 * loss])


def test_the_change_is_made_whose_error_is_nearest_to_the_typical() -> None:
    asked: list[int] = []

    def change(made: Graph, number: int) -> None:
        asked.append(number)
        moved(made, 1)

    probe = shifted(4, 1.0)
    for errors, wanted in (([0.0, 0.01, 0.3, 0.9], 2), ([0.03, 0.5], 0), ([1e-12, 0.0], None)):
        asked.clear()
        found = probe.scaled(errors, change)
        assert asked == ([] if wanted is None else [wanted])
        assert found == (errors if wanted is None else pytest.approx([e * 0.5 / errors[wanted] for e in errors]))
