"""compress: one budget for channels and patterns, the search behind it, and what it refuses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest

from compiler.codegen.predict import planner_clock
from compiler.errors import ConfigError, PassError
from compiler.ir.encoding import Dense
from compiler.ir.graph import Graph
from compiler.ir.ties import Closure
from compiler.passes.base import Resources
from compiler.passes.budget.limits import QUANTITIES, Limit, Quantity, prices
from compiler.passes.budget.sensitivity import Sensitivity
from compiler.passes.compress import compress
from compiler.passes.compress.compress import Compress
from compiler.passes.compress.search import Layer, Space, Steps, choices, narrowest, path, settle
from compiler.passes.compress.widths import cuts_of
from compiler.passes.prune.budget import Meter
from compiler.passes.prune.recover import output_error
from compiler.passes.prune.surgery import remove
from compiler.pipeline import parse
from tests.graphs import Builder
from tests.passes.test_sparsify import network

TARGET = "x86-64-v3"
RESOURCES = Resources(clock=planner_clock)


def inputs(count: int, *shape: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def cost(graph: Graph, quantity: Quantity) -> float:
    return Limit(quantity, 0.0, TARGET).cost(graph, RESOURCES)


# ---------------------------------------------------------------------- the search
def small() -> Graph:
    """Three products with two groups of hidden units."""
    b = Builder(seed=1)
    h = b.apply("Relu", b.apply("MatMul", b.input("x", 1, 32), b.weight(32, 40)))
    h = b.apply("Relu", b.apply("MatMul", h, b.weight(40, 32)))
    b.task("t", b.apply("MatMul", h, b.weight(32, 8)))
    return b.done()


def space_of(graph: Graph, seed: int = 0, layers: bool = True) -> tuple[Space, Closure, list[Steps]]:
    """Real widths and FLOPs of a network, with losses that are drawn; two ways for every product."""
    rng = np.random.default_rng(seed)
    closure = Closure(graph)
    groups = closure.groups
    cuts = [cuts_of(g, rng.random(len(g.atoms)), 8, 0.1) for g in groups]
    steps = [Steps(c, (0.0, *np.cumsum(rng.random(len(c) - 1)).tolist())) for c in cuts]
    meter = Meter(graph, "flops", {}, {a: closure.size(a) for g in groups for a in g.axes})
    ways = [Layer((r,), (0.0, float(rng.random()), float(rng.random())), (1.0, 0.5, 0.25)) for r in meter.refs]
    return Space(meter, ways if layers else [], steps, 2.0), closure, steps


def every_widths(space: Space) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(len(g.cuts)) for g in space.groups))


def test_a_layer_costs_what_it_costs_in_the_pruned_network() -> None:
    graph = network()
    space, closure, _ = space_of(graph)
    draw = np.random.default_rng(3)
    found = [tuple(int(draw.integers(len(g.cuts))) for g in space.groups) for _ in range(6)]
    for widths in [*found, space.original, *reversed(found)]:  # the meter goes back and forth
        small = graph.copy()
        if gone := space.gone(widths):
            remove(small, closure.removal(gone))
        macs = {s.node.ref: 2.0 * s.node.op.macs(s) for s in small.sites()}
        for number, layer in enumerate(space.layers):
            assert space.cost(number, widths) == sum(macs[r] for r in layer.refs)


def lagrangian(space: Space, widths: tuple[int, ...], price: float) -> float:
    """Written out: losses of the widths, and of every layer's cheapest way."""
    lost = sum(g.losses[k] for g, k in zip(space.groups, widths, strict=True))
    for number, layer in enumerate(space.layers):
        paid = price * space.cost(number, widths)
        lost += min(loss + paid * ratio for loss, ratio in zip(layer.losses, layer.ratios, strict=True))
    return lost


@pytest.mark.parametrize("seed", range(3))
def test_no_group_has_a_cheaper_width_at_the_final_price(seed: int) -> None:
    space, _, _ = space_of(small(), seed)
    total = sum(space.cost(n, space.original) for n in range(len(space.layers)))
    moved = 0
    for price in np.array([0.1, 2.0, 20.0]) / total:
        widths = settle(space, price, space.original)
        moved += widths != space.original
        least = lagrangian(space, widths, price)
        for group, steps in enumerate(space.groups):
            for k in range(len(steps.cuts)):
                other = (*widths[:group], k, *widths[group + 1 :])
                assert lagrangian(space, other, price) >= least - 1e-12
    assert moved


@pytest.mark.parametrize("seed", range(3))
def test_choices_fit_and_lose_less_than_patterns_or_channels_alone(seed: int) -> None:
    space, _, _ = space_of(small(), seed)
    only, _, _ = space_of(small(), seed, layers=False)
    total = sum(space.cost(n, space.original) for n in range(len(space.layers)))
    for share in (0.7, 0.3):
        found = choices(space, share * total)
        assert all(c.cost <= share * total * (1 + 1e-12) for c in found)
        assert found[0].loss == min(c.loss for c in found)
        patterns = [c.loss for c in found if c.widths == space.original]
        channels = [c.loss for c in choices(only, share * total)]
        assert found[0].loss <= min([*patterns, *channels, np.inf]) + 1e-12
        best = min((lagrangian_free(space, w, share * total) for w in every_widths(space)), default=np.inf)
        assert best <= found[0].loss <= 1.6 * best + 1e-9  # the best of all, by trying every width


def lagrangian_free(space: Space, widths: tuple[int, ...], capacity: float) -> float:
    """Least loss at these widths within a capacity, by trying every way; inf where nothing fits."""
    rows = [
        list(zip(layer.losses, costs, strict=True))
        for layer, costs in zip(space.layers, space.costs(widths), strict=True)
    ]
    states = {0.0: 0.0}
    for row in rows:
        after: dict[float, float] = {}
        for spent, lost in states.items():
            for loss, price in row:
                key = spent + price
                if key <= capacity and lost + loss < after.get(key, np.inf):
                    after[key] = lost + loss
        states = after
    return min(states.values(), default=np.inf) + sum(
        g.losses[k] for g, k in zip(space.groups, widths, strict=True)
    )


def test_the_path_goes_from_the_original_to_the_narrowest() -> None:
    space, _, _ = space_of(small())
    found = list(path(space))
    assert found[0] == space.original
    costs = [sum(space.cost(n, w) for n in range(len(space.layers))) for w in found]
    assert costs[-1] == sum(space.cost(n, narrowest(space)) for n in range(len(space.layers)))
    assert costs[-1] < 0.2 * costs[0]
    assert min(costs) == costs[-1]


# ---------------------------------------------------------------------- budgets
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_what_is_left_costs_no_more_than_allowed(quantity: Quantity) -> None:
    graph = network()
    allowed = 0.6 * cost(graph, quantity)
    after = Compress(**{quantity: allowed}, target=TARGET)(graph, RESOURCES)  # type: ignore[arg-type]
    assert 0.5 * allowed < cost(after, quantity) <= allowed


def test_a_budget_that_holds_already_changes_nothing() -> None:
    graph = network()
    outcome = Compress(weight_bytes=cost(graph, "weight_bytes")).run(graph)
    assert cost(outcome.graph, "weight_bytes") == cost(graph, "weight_bytes")
    assert "already" in outcome.notes[0].reason


def test_a_budget_out_of_reach_is_refused_with_what_is_missing() -> None:
    with pytest.raises(
        PassError, match=r"weight_bytes: at most 500 bytes of weights are allowed and \d+ remain .* \d+ too many"
    ) as e:
        Compress(weight_bytes=500.0)(network())
    least = float(str(e.value).partition("allowed and ")[2].partition(" remain")[0])
    assert least <= 3416  # which is the least of prune-channels: both work on it
    assert cost(Compress(weight_bytes=least)(network()), "weight_bytes") <= least
    with pytest.raises(PassError):
        Compress(weight_bytes=0.98 * least)(network())


def two_layers() -> Graph:
    """One hidden layer has idle units, the next one wide rows of which only a few inputs matter."""
    b = Builder(seed=4)
    first, second, third = b.weight(64, 64), b.weight(64, 64), b.weight(64, 64)
    idle = b.graph.value(second).constant.copy()
    idle[32:] *= 1e-3  # units 32.. of the first layer are hardly read
    b.graph.update(second, data=idle)
    thin = b.graph.value(third).constant.copy()
    thin[np.arange(64) % 4 != 0] *= 1e-3
    b.graph.update(third, data=thin)
    h = b.apply("Relu", b.apply("MatMul", b.input("x", 1, 64), first))
    h = b.apply("Add", b.apply("MatMul", h, second), b.const(np.ones((1, 64), np.float32)))
    b.task("t", b.apply("MatMul", h, third))
    return b.done()


def test_channels_go_where_units_are_idle() -> None:
    graph = two_layers()
    after = Compress(weight_bytes=0.5, dense=(), among=("block4x1",))(graph)
    shapes = {v.ref.name: v.shape for v in after.parameters()}
    assert shapes["w"][1] == shapes["w.1"][0] <= 32 + 8
    assert cost(after, "weight_bytes") <= 0.5 * cost(graph, "weight_bytes")


@pytest.mark.parametrize("among", [(), ("block4x1",)], ids=str)
def test_nothing_but_what_may_be_used(among: tuple[str, ...]) -> None:
    after = Compress(flops=0.5, among=among, exclude=("w.4",))(network())  # type: ignore[arg-type]
    sparse = {str(v.type.encoding) for v in after.parameters() if v.type.encoding != Dense()}
    assert all("4x1" in s for s in sparse) and bool(sparse) == bool(among)
    assert after.value(next(v.ref for v in after.parameters() if v.ref.name == "w.4")).shape[0] == 32


def test_fitting_to_calibration_inputs_loses_less() -> None:
    graph, mixing = small(), np.random.default_rng(1).standard_normal((6, 32)).astype(np.float32)
    x = inputs(40, 6) @ mixing + 0.1 * inputs(40, 32)
    use, feeds = Resources(calibration={"x": x}), [{"x": a[None]} for a in x]
    lost = {}
    for update in ("none", "obs"):
        outcome = Compress(flops=0.5, update=update, dense=()).run(graph, use)  # type: ignore[arg-type]
        assert cost(outcome.graph, "flops") <= 0.5 * cost(graph, "flops")
        lost[update] = output_error(graph, outcome.graph, feeds)
    assert lost["obs"] < 0.5 * lost["none"]


def test_a_network_whose_error_is_no_number_is_never_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    use = Resources(calibration={"x": inputs(40, 32)})
    calls: list[float] = []

    def first_is_nan(original: Graph, pruned: Graph, feeds: Sequence[Mapping[str, np.ndarray]]) -> float:
        calls.append(math.nan if not calls else output_error(original, pruned, feeds))
        return calls[-1]

    monkeypatch.setattr(compress, "output_error", first_is_nan)
    after = Compress(flops=0.5)(small(), use)
    assert len(calls) > 1
    assert output_error(small(), after, [{"x": a[None]} for a in use.calibration["x"]]) == min(calls[1:])
    monkeypatch.setattr(compress, "output_error", lambda *given: math.nan)
    with pytest.raises(PassError, match="every network that was made gives no numbers"):
        Compress(flops=0.5)(small(), use)


def test_what_a_layer_loses_is_weighted_by_what_that_means_for_the_outputs() -> None:
    b = Builder(seed=6)
    x = b.input("x", 1, 16)
    loud, quiet = b.weight(16, 16), b.weight(16, 16)
    h = b.apply("Mul", b.apply("MatMul", x, quiet), b.const(np.float32(0.01)))
    b.task("t", b.apply("Add", b.apply("MatMul", x, loud), h))
    graph = b.done()
    probe = Sensitivity(graph, [{"x": a[None]} for a in inputs(16, 16)])

    def halved(name: str) -> list[float]:
        def change(made: Graph, number: int) -> None:
            value = next(v for v in made.parameters() if v.ref.name == name)
            made.update(value.ref, data=value.constant * np.float32(1 - 0.5 * number))

        return probe.scaled([0.0, 0.25], change)

    assert halved("w")[1] == pytest.approx(0.25, rel=0.05)
    assert halved("w.1")[1] < 1e-3
    assert halved("w")[0] == 0


# ---------------------------------------------------------------------- accuracy and options
def by_flops(graph: Graph) -> Mapping[str, float]:
    return {"t": 1 - cost(graph, "flops") / cost(small(), "flops")}


def test_an_accuracy_drop_alone_or_beside_a_budget() -> None:
    use = Resources(judge=by_flops)
    with pytest.raises(PassError, match=r"accuracy_drop: task 't' loses 0\.\d+ where 0.1 is allowed"):
        Compress(flops=0.5, accuracy_drop=0.1)(small(), use)
    after = Compress(accuracy_drop=0.3)(small(), use)
    assert 0.15 < by_flops(after)["t"] <= 0.3


def test_the_expected_call_of_the_workload_is_what_counts() -> None:
    b = Builder(seed=3)
    x = b.input("x", 1, 64)
    for name in ("often", "rarely"):
        h = b.apply("Relu", b.apply("MatMul", x, b.weight(64, 64)))
        b.task(name, b.apply("MatMul", h, b.weight(64, 64)))
    graph = b.done()
    use = Resources(workload={frozenset({"often"}): 0.9, frozenset({"rarely"}): 0.1})
    before = prices(graph, "flops", "", use)
    after = Compress(flops=0.6, dense=())(graph, use)
    assert sum(prices(after, "flops", "", use).values()) <= 0.6 * sum(before.values())
    shares = {r: prices(after, "flops", "", use)[r] / before[r] for r in before}
    assert np.mean([shares[r] for r in list(shares)[:3]]) < np.mean([shares[r] for r in list(shares)[3:]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("compress", "give a budget, for example compress"),
        ("compress{flops=0.5,weight_bytes=0.5}", "give one of flops, weight_bytes"),
        ("compress{latency_us=10}", "latency_us needs predictions of a planner"),
        ("compress{flops=0.5,update=obs}", "update=obs needs calibration inputs"),
        ("compress{flops=0.5,floor=1}", r"floor lies in \[0, 1\)"),
        ("compress{flops=0.5,dense=middle}", "dense is 'middle'"),
    ],
)
def test_wrong_options(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(text)(network())


def test_spec_strings_read_back() -> None:
    text = "compress{latency_us=20.5,target=x86-64-v3,among=block16x1}"
    assert str(parse(text)) == text


@pytest.mark.parametrize("batches", [1, 3])
def test_too_few_batches_to_judge_by_are_refused(batches: int) -> None:
    use = Resources(calibration={"x": inputs(batches, 3, 8, 8)})
    with pytest.raises(PassError, match=f"{batches} calibration batch(es)?; update=obs needs 4 at least"):
        Compress(flops=0.5, dense=())(network(), use)
    Compress(flops=0.5, among=(), update="none")(network(), use)
