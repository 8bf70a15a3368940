"""nest{flops=...}: levels by what they cost, with densities of their own for every layer."""

from __future__ import annotations

from dataclasses import replace

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from compiler import Resources, cost_report, parse_pass
from compiler.cost.count import parameter_cost
from compiler.errors import ConfigError, PassError
from compiler.ir.encoding import BlockSparse
from compiler.ir.graph import Graph
from compiler.ir.levels import at_level, level_count
from compiler.ir.reference import evaluate
from compiler.passes.budget.knapsack import CELLS
from compiler.passes.sparsify.level_budgets import DENSITIES
from tests.graphs import Builder

TASKS = frozenset({"a", "b"})


def network(seed: int = 0) -> Graph:
    """Two convolutions on large images, whose weights are dear to run, and a matrix product, whose are cheap."""
    b = Builder(seed=seed)
    y = b.apply("Relu", b.conv(b.input("x", 1, 16, 12, 12), 32, 3))
    b.task("a", b.apply("GlobalAveragePool", b.conv(y, 24, 3)))
    flat = b.apply("Flatten", b.apply("GlobalAveragePool", y))
    b.task("b", b.apply("Gemm", flat, b.weight(20, 32), b.weight(20), transB=1))
    return b.done()


def inputs(count: int = 8) -> Resources:
    rng = np.random.default_rng(1)
    return Resources(calibration={"x": rng.normal(size=(count, 1, 16, 12, 12)).astype(np.float32)})


def flops(graph: Graph, tasks: frozenset[str] = TASKS) -> float:
    return next(float(r.cost.flops) for r in cost_report(graph).combinations if frozenset(r.tasks) == tasks)


def densities(graph: Graph, level: int) -> list[float]:
    """Share of its blocks that every weight with levels stores."""
    found = []
    for value in graph.parameters():
        if value.sparser:
            alive = value.type.encoding.alive([value.constant, *value.sparser][level])
            found.append(float(alive.mean()))
    return found


@hypothesis.given(
    shares=st.lists(st.integers(3, 20), min_size=2, max_size=4, unique=True),
    height=st.sampled_from([4, 8]),
    seed=st.integers(0, 100),
    calibrated=st.booleans(),
)
@hypothesis.settings(max_examples=8, deadline=None)
def test_every_level_is_within_its_flops_and_nested(
    shares: list[int], height: int, seed: int, calibrated: bool
) -> None:
    before, budgets = network(seed), [n / 20 for n in sorted(shares, reverse=True)]
    spec = f"nest{{flops={'+'.join(map(str, budgets))},pattern=block{height}x1,dense=()}}"
    after = parse_pass(spec)(before, inputs() if calibrated else Resources())
    assert level_count(after) == len(budgets)
    for level, budget in enumerate(budgets):
        cost = flops(at_level(after, level, alone=True)) / flops(before)
        assert cost <= budget
        assert cost > min(budget - 0.25, 0.5), "what may stay is not thrown away"
    form = BlockSparse(0, (height, 1))
    for value in after.parameters():
        for denser, sparser in zip([value.constant, *value.sparser], value.sparser, strict=False):
            assert not np.any(form.alive(sparser) & ~form.alive(denser))
            kept = sparser != 0
            assert np.array_equal(sparser[kept], denser[kept])


def test_all_of_the_flops_are_the_network_as_it_is() -> None:
    before, after = network(), parse_pass("nest{flops=1+0.5,dense=()}")(network())
    feed = {"x": inputs(1).calibration["x"][0]}  # type: ignore[index]
    wanted, found = evaluate(before, feed), evaluate(at_level(after, 0, alone=True), feed)
    assert all(np.array_equal(wanted[n], found[n]) for n in found)
    assert densities(after, 0) == [1.0] * 3


def test_amounts_are_flops_of_the_expected_call() -> None:
    graph = network()
    both = replace(Resources(), workload={TASKS: 1.0})
    half = int(flops(graph) / 2)
    after = parse_pass(f"nest{{flops={2 * half}+{half},dense=()}}")(graph, both)
    assert flops(at_level(after, 1, alone=True)) <= half
    b = frozenset({"b"})
    only = replace(Resources(), workload={b: 1.0})
    asked = int(flops(graph, b) / 2)
    after = parse_pass(f"nest{{flops={2 * asked}+{asked},dense=()}}")(graph, only)
    assert flops(at_level(after, 1, alone=True), b) <= asked
    assert flops(at_level(after, 1, alone=True)) > half, "the other task's layers are not in the expected call"


def test_weights_that_are_cheap_to_run_stay_where_dear_ones_leave() -> None:
    graph = network()
    for use in (Resources(), inputs()):
        after = parse_pass("nest{flops=0.5+0.2,pattern=block4x1,dense=()}")(graph, use)
        for level in (0, 1):
            *convolutions, product = densities(after, level)
            assert product > max(convolutions), "a matrix product of few multiply-adds"


def stored(graph: Graph) -> float:
    return float(sum(parameter_cost(v).weight_bytes for v in graph.parameters()))


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize(("flops_share", "bytes_share"), [(0.5, 0.4), (0.3, 0.8), (0.8, 0.3)])
def test_both_budgets_hold_and_the_tighter_one_is_used(
    calibrated: bool, flops_share: float, bytes_share: float
) -> None:
    graph, use = network(2), inputs() if calibrated else Resources()
    spec = f"nest{{flops=0.9+{flops_share},weight_bytes=0.9+{bytes_share},pattern=block4x1,dense=()}}"
    after = parse_pass(spec)(graph, use)
    for level, (most, fewest) in enumerate([(0.9, 0.9), (flops_share, bytes_share)]):
        alone = at_level(after, level, alone=True)
        work, size = flops(alone) / flops(graph), stored(alone) / stored(graph)
        assert work <= most and size <= fewest
        assert max(work / most, size / fewest) > 0.8


def test_bytes_count_positions() -> None:
    """All blocks of four take a quarter more than a dense weight, so that a level of all its bytes has fewer."""
    after = parse_pass("nest{weight_bytes=1+0.5,pattern=block4x1,dense=()}")(network())
    assert stored(at_level(after, 0, alone=True)) <= stored(network())
    assert min(densities(after, 0)) > 0.6 and sum(densities(after, 0)) < 3


def test_less_is_lost_than_with_one_density_for_all_layers() -> None:
    """By the squares of the weights, which are what is counted without inputs, at no more FLOPs."""
    graph = network(3)
    first = next(v for v in graph.parameters() if v.shape == (32, 16, 3, 3))
    uneven = graph.copy()
    data = first.constant.copy()
    data[::2] *= 0.01  # half of its outputs hardly matter
    uneven.update(first.ref, data=data)
    graph = uneven.freeze()

    def lost(after: Graph) -> float:
        level = at_level(after, 1, alone=True)
        pairs = [
            (graph.value(v.ref).constant, level.value(v.ref).constant) for v in after.parameters() if v.sparser
        ]
        return sum(1 - float((b**2).sum() / (a**2).sum()) for a, b in pairs)

    alike = parse_pass("nest{levels=0+0.6875,pattern=block4x1,dense=()}")(graph)
    share = flops(at_level(alike, 1, alone=True)) / flops(graph)
    after = parse_pass(f"nest{{flops=1+{share * (1 + 5 / CELLS)},pattern=block4x1,dense=()}}")(graph)
    assert lost(after) < lost(alike)


def test_a_sparse_network_keeps_its_blocks() -> None:
    sparse = parse_pass("sparsify{pattern=block8x1,sparsity=0.5,dense=()}")(network())
    after = parse_pass("nest{flops=1+0.5,dense=()}")(sparse)
    for value in after.parameters():
        if value.sparser:
            assert value.type.encoding == BlockSparse(0, (8, 1))
            assert np.array_equal(value.constant, sparse.value(value.ref).constant)
    assert flops(at_level(after, 1, alone=True)) <= flops(sparse) / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("flops=0.5", "give 2 to 16 budgets"),
        ("flops=0.25+0.5", "budgets of levels fall from level 0 on"),
        ("flops=0.5+0.5", "budgets of levels fall from level 0 on"),
        ("flops=1000000+0.5", "give flops as shares, up to 1, or all as amounts"),
        ("flops=0.5+0", "flops must be above 0"),
        ("flops=50+25", "neither a share"),
        ("flops=0.5+0.25,levels=0+0.5", "give one of them"),
        ("flops=0.5+0.25,scope=global", "leave scope out"),
        ("weight_bytes=0.25+0.5", "budgets of levels fall from level 0 on"),
        ("flops=0.5+0.25,weight_bytes=0.5+0.25+0.1", "for as many levels"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_pass(f"nest{{{options}}}")(network())


def test_a_level_that_cannot_be_had_is_named() -> None:
    least = min(DENSITIES)
    with pytest.raises(PassError, match=r"nest, level 1: flops: at most .* too many"):
        parse_pass(f"nest{{flops=0.5+{least / 2},dense=()}}")(network())
    with pytest.raises(PassError, match="3 calibration inputs; flops needs 4 or more"):
        parse_pass("nest{flops=0.5+0.25,dense=()}")(network(), inputs(3))


def test_what_was_chosen_is_told() -> None:
    told = parse_pass("nest{flops=1+0.5+0.25,dense=()}").run(network(), inputs()).notes
    levels = [r for r in told if r.where.startswith("level")]
    assert [r.where for r in levels] == ["level 1", "level 2"], "level 0 is all there is"
    assert all("of at most" in r.reason for r in levels)
