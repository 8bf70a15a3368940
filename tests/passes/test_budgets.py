"""Budgets of prune-channels and sparsify: never exceeded, or refused with the constraint and by how much."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import pytest

from compiler.codegen.predict import planner_clock
from compiler.cost.count import totals
from compiler.errors import ConfigError, PassError
from compiler.ir.encoding import Dense
from compiler.ir.graph import Graph
from compiler.passes.base import Pass, Resources
from compiler.passes.budget.accuracy import EVALUATIONS, cheapest
from compiler.passes.budget.knapsack import choose
from compiler.passes.budget.limits import QUANTITIES, Limit, Quantity
from compiler.passes.prune.channels import PruneChannels
from compiler.passes.sparsify.magnitude import Sparsify
from compiler.pipeline import parse
from tests.graphs import Builder
from tests.passes.test_sparsify import network

TARGET = "x86-64-v3"
RESOURCES = Resources(clock=planner_clock)


def cost(graph: Graph, quantity: Quantity, use: Resources = RESOURCES) -> float:
    return Limit(quantity, 0.0, TARGET).cost(graph, use)


# ---------------------------------------------------------------------- knapsack
def best(losses: list[list[float]], costs: list[list[float]], capacity: float) -> float | None:
    """By trying everything."""
    found = [
        sum(row[n] for row, n in zip(losses, ways, strict=True))
        for ways in itertools.product(*map(range, map(len, losses)))
        if sum(row[n] for row, n in zip(costs, ways, strict=True)) <= capacity
    ]
    return min(found, default=None)


@pytest.mark.parametrize("seed", range(12))
def test_the_choice_fits_and_is_nearly_the_best(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, 5)
    losses, costs = ([list(rng.random(n)) for n in sizes] for _ in range(2))
    capacity = float(rng.uniform(0.5, 4))
    chosen, optimum = choose(losses, costs, capacity), best(losses, costs, capacity)
    if chosen is None:
        assert optimum is None
        return
    assert sum(row[n] for row, n in zip(costs, chosen, strict=True)) <= capacity
    exact = best(losses, [[c * 1.003 for c in row] for row in costs], capacity)  # costs are rounded up to 1 / 2000
    assert exact is None or sum(row[n] for row, n in zip(losses, chosen, strict=True)) <= exact + 1e-12
    assert optimum is not None and sum(r[n] for r, n in zip(losses, chosen, strict=True)) >= optimum - 1e-12


# ---------------------------------------------------------------------- budgets of the passes
@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("kind", [PruneChannels, Sparsify])
def test_what_is_left_costs_no_more_than_allowed(kind: type[Pass], quantity: Quantity) -> None:
    graph = network()
    allowed = 0.85 * cost(graph, quantity)
    pass_ = kind(**{quantity: allowed}, target=TARGET)  # type: ignore[call-arg]
    after = pass_(graph, RESOURCES)
    assert 0.5 * allowed < cost(after, quantity) <= allowed


def test_a_budget_that_holds_already_changes_nothing() -> None:
    graph = network()
    limit = cost(graph, "weight_bytes")
    for pass_ in (PruneChannels(weight_bytes=limit), Sparsify(weight_bytes=limit)):
        assert cost(pass_(graph), "weight_bytes") == limit


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_a_share_is_of_a_network_whose_readers_share_vectors(share: float) -> None:
    """Pruned apart, the two layers keep a bias each; the copies that this takes are no part of the original."""
    b = Builder("net")
    x, common = b.input("x", 1, 1, 2, 2), b.weight(16)
    for task in "ab":
        y = b.apply("Conv", x, b.weight(16, 1, 1, 1), common, kernel_shape=(1, 1))
        flat = b.apply("Flatten", b.apply("GlobalAveragePool", b.apply("Relu", y)))
        b.task(task, b.apply("Gemm", flat, b.weight(2, 16), transB=1))
    graph = b.done()
    assert cost(PruneChannels(weight_bytes=share)(graph), "weight_bytes") <= share * cost(graph, "weight_bytes")
    assert totals(PruneChannels(parameters=share)(graph)).parameters <= share * totals(graph).parameters
    assert PruneChannels(parameters=1.0)(graph).parameters() == graph.parameters()
    assert cost(PruneChannels(weight_bytes=1.0)(graph), "weight_bytes") == cost(graph, "weight_bytes")


@pytest.mark.parametrize("pass_", [PruneChannels(weight_bytes=500.0), Sparsify(weight_bytes=500.0)], ids=str)
def test_a_budget_out_of_reach_is_refused_with_what_is_missing(pass_: Pass) -> None:
    with pytest.raises(
        PassError, match=r"weight_bytes: at most 500 bytes of weights are allowed and \d+ remain"
    ) as e:
        pass_(network())
    least = float(str(e.value).partition("allowed and ")[2].partition(" remain")[0])
    kind = type(pass_)
    assert cost(kind(weight_bytes=least)(network()), "weight_bytes") == least  # type: ignore[call-arg]
    with pytest.raises(PassError):
        kind(weight_bytes=0.98 * least)(network())  # type: ignore[call-arg]


def test_layers_stay_dense_where_that_loses_least() -> None:
    """One layer has nothing but small weights in all but a few inputs; it is thinned, the others are not."""
    b = Builder(seed=2)
    h = b.apply("Relu", b.apply("MatMul", b.input("x", 1, 64), b.weight(64, 64)))
    thin = b.weight(64, 64)
    data = b.graph.value(thin).constant.copy()
    data[6:] *= 1e-4
    b.graph.update(thin, data=data)
    b.task("t", b.apply("MatMul", b.apply("Relu", b.apply("MatMul", h, thin)), b.weight(64, 64)))
    graph = b.done()
    outcome = Sparsify(weight_bytes=0.75, dense=()).run(graph)
    sparse = [v.ref for v in outcome.graph.parameters() if v.type.encoding != Dense()]
    assert sparse == [thin]
    assert "1 layers sparse, 2 dense" in outcome.notes[-1].reason


def test_the_expected_call_of_the_workload_is_what_counts() -> None:
    b = Builder(seed=3)
    x = b.input("x", 1, 64)
    for name in ("often", "rarely"):
        h = b.apply("Relu", b.apply("MatMul", x, b.weight(64, 64)))
        b.task(name, b.apply("MatMul", h, b.weight(64, 64)))
    graph = b.done()
    use = Resources(workload={frozenset({"often"}): 0.9, frozenset({"rarely"}): 0.1})
    after = Sparsify(flops=0.6, dense=())(graph, use)
    assert cost(after, "flops", use) <= 0.6 * cost(graph, "flops", use)
    dense = {v.ref.name for v in after.parameters() if v.type.encoding == Dense()}
    assert {"w.2", "w.3"} <= dense  # what the rare task alone reads saves little


# ---------------------------------------------------------------------- accuracy
def by_flops(graph: Graph) -> Mapping[str, float]:
    """A task that loses as much accuracy as it has lost FLOPs."""
    return {"t": 1 - cost(graph, "flops") / cost(network(), "flops")}


@pytest.mark.parametrize("pass_", [PruneChannels(accuracy_drop=0.3), Sparsify(accuracy_drop=0.3)], ids=str)
def test_the_fewest_flops_within_an_accuracy_drop(pass_: Pass) -> None:
    outcome = pass_.run(network(), Resources(judge=by_flops))
    assert 0.2 < by_flops(outcome.graph)["t"] <= 0.3
    assert sum("accuracy drop" in n.reason or "reached" in n.reason for n in outcome.notes) == EVALUATIONS


@pytest.mark.parametrize("drops", [{"t": math.nan}, {"other": 0.0, "t": math.nan}, {"t": math.nan, "other": 0.0}])
def test_a_metric_that_is_no_number_any_more_is_a_loss(drops: dict[str, float]) -> None:
    with pytest.raises(PassError, match="accuracy_drop: the metric of task 't' is no number"):
        Sparsify(flops=0.5, accuracy_drop=0.9)(network(), Resources(judge=lambda graph: drops))
    whole = totals(network()).flops
    judged = Resources(judge=lambda graph: {"t": 0.0} if totals(graph).flops == whole else drops)
    assert totals(Sparsify(accuracy_drop=0.9)(network(), judged)).flops == whole


def test_an_accuracy_drop_needs_a_task_with_a_metric() -> None:
    with pytest.raises(PassError, match="none of the tasks that are left has a metric"):
        Sparsify(flops=0.5, accuracy_drop=0.9)(network(), Resources(judge=lambda graph: {}))


def test_an_accuracy_drop_at_a_budget_is_refused_with_the_task() -> None:
    with pytest.raises(
        PassError, match=r"accuracy_drop: task 't' loses 0\.\d+ where 0.1 is allowed, 0\.\d+ too much"
    ):
        Sparsify(flops=0.5, accuracy_drop=0.1)(network(), Resources(judge=by_flops))
    Sparsify(flops=0.5, accuracy_drop=0.9)(network(), Resources(judge=by_flops))


def test_shares_that_cannot_be_reached_are_too_small() -> None:
    def make(share: float) -> Graph:
        if share < 0.3:
            raise PassError("too small")
        return network()

    share, points = cheapest(make, Resources(judge=lambda g: {"t": 0.0}), 0.1)
    assert 0.3 <= share < 0.31
    assert {p.drop for p in points} == {0.0, None}


# ---------------------------------------------------------------------- options
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sparsify{flops=0.5,density=0.5}", "a budget chooses the densities"),
        ("sparsify{flops=0.5,weight_bytes=0.5}", "give one of flops, weight_bytes: a budget is in one quantity"),
        ("sparsify{latency_us=10}", "latency_us needs predictions of a planner"),
        ("sparsify{accuracy_drop=0.01}", "accuracy_drop needs evaluation data with a metric"),
        ("sparsify{flops=-1}", "flops must be above 0, not -1.0"),
        ("compress{latency_us=inf}", "latency_us=inf limits nothing"),
        ("sparsify{flops=30}", "flops=30 is neither a share"),
        ("sparsify{density=0.5,among=regular8}", "among is for budgets"),
        ("prune-channels{flops=0.5,latency_us=10}", "give one of flops, latency_us"),
        ("prune-channels{accuracy_drop=-1}", "accuracy_drop must be 0 or more, not -1"),
    ],
)
def test_wrong_options(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(text)(network())


def test_spec_strings_read_back() -> None:
    text = "sparsify{latency_us=20.5,target=x86-64-v3,among=block16x1+regular8}"
    assert str(parse(text)) == text


def test_the_time_of_a_layer_depends_on_how_its_weights_are_stored() -> None:
    """Two layers of equal shapes, one in blocks, one dense; then the same blocks with more of them stored."""

    def layer(density: float) -> Graph:
        b = Builder()
        b.task("t", b.apply("Conv", b.input("x", 1, 64, 28, 28), b.weight(64, 64, 3, 3), pads=[1, 1, 1, 1]))
        return parse(f"sparsify{{density={density},dense=()}}")(b.done()) if density < 1 else b.done()

    clock = planner_clock("x86-64-v4")
    seconds = [clock.site(next(layer(d).sites()), frozenset({1})) for d in (1.0, 0.05, 0.1)]
    assert seconds[1] < seconds[2] < seconds[0]
