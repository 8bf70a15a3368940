"""The parts of sparsify: patterns, DARB, goals, layers, checks, second order, biases of levels; by enumeration."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from compiler.errors import PassError, VerifyError
from compiler.ir.encoding import BlockSparse, RegularBlock, Sparse, Unstructured
from compiler.ir.graph import Graph
from compiler.ir.reference import evaluate
from compiler.ir.types import DType, TensorType, ValueRef
from compiler.passes.base import Resources
from compiler.passes.budget.limits import Limit
from compiler.passes.sparsify import compensate as compensate_module
from compiler.passes.sparsify.assign import assign, costs_of, losses_of, trial, ways_of
from compiler.passes.sparsify.checks import Count, check_density, check_survivors, count_survivors
from compiler.passes.sparsify.compensate import Quadratic, compensate, solve, work
from compiler.passes.sparsify.goals import Goal, form_of, goals_of, largest
from compiler.passes.sparsify.layers import Candidate, first_layers, last_layers, weights_of
from compiler.passes.sparsify.level_biases import HELD_OUT, correct
from compiler.passes.sparsify.magnitude import Sparsify
from compiler.passes.sparsify.patterns import DARB_SIZES, darb_sizes, keep_blocks, keep_largest, matrix, ranked
from compiler.passes.sparsify.problems import GateReader, base_of, problems, put
from compiler.passes.sparsify.update import Walk, fitted, shift
from tests.graphs import Builder


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---------------------------------------------------------------------- patterns
@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    rows=st.integers(1, 5),
    inputs=st.integers(1, 40),
    size=st.sampled_from([4, 8]),
    turned=st.booleans(),
    levels=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_each_run_keeps_its_largest_and_of_equal_ones_the_first(
    rows: int, inputs: int, size: int, turned: bool, levels: int, seed: int
) -> None:
    data = np.random.default_rng(seed).integers(-levels, levels + 1, (rows, inputs)).astype(np.float32)
    given, form = (data.T, RegularBlock(1, 0, (size,))) if turned else (data, RegularBlock(0, 1, (size,)))
    expected = np.zeros_like(data)
    for row, start in itertools.product(range(rows), range(0, inputs, size)):
        at = start + int(np.argmax(np.abs(data[row, start : start + size])))
        expected[row, at] = data[row, at]
    found = keep_largest(given, form)
    np.testing.assert_array_equal(found.T if turned else found, expected)


def test_rows_may_have_runs_of_their_own() -> None:
    data = np.arange(1, 33, dtype=np.float32).reshape(2, 16)
    found = keep_largest(data, RegularBlock(0, 1, (4, 8)))
    assert [np.flatnonzero(r).tolist() for r in found] == [[3, 7, 11, 15], [7, 15]]


def test_the_last_block_may_be_lower() -> None:
    data = drawn(6, 3, 2)
    alive = np.array([[True] * 6, [False, True] * 3])
    found = keep_blocks(data, BlockSparse(0, (4, 1)), alive)
    np.testing.assert_array_equal(found[:4], data[:4])
    np.testing.assert_array_equal(found[4:].reshape(2, 6)[:, 1::2], data[4:].reshape(2, 6)[:, 1::2])
    assert not found[4:].reshape(2, 6)[:, ::2].any()


def test_a_weight_as_rows_of_inputs() -> None:
    data = drawn(3, 4, 2)
    np.testing.assert_array_equal(matrix(data, 1), data.transpose(1, 0, 2).reshape(4, 6).astype(np.float64))


def darb_by_trying(weights: np.ndarray, density: float) -> float:
    """How near to the density any common shift of the rows' own run lengths can come."""
    (alive,) = ranked([np.abs(weights)], density, 0.0)
    own = np.log2(1 / np.maximum(alive.mean(axis=1), 2.0**-16))
    found = []
    for shift_ in np.linspace(-16, 16, 801):
        sizes = [min(DARB_SIZES, key=lambda s, w=w: abs(math.log2(s) - w)) for w in own + shift_]
        found.append(abs(np.mean([1 / s for s in sizes]) - density))
    return float(min(found))


@pytest.mark.parametrize("density", [1 / 32, 0.04, 0.07, 0.125, 0.2, 0.25])
def test_darb_lengths_come_as_near_to_the_density_as_a_common_factor_can(density: float) -> None:
    weights = drawn(12, 64) * np.exp(drawn(12, 1, seed=1))
    (sizes,) = darb_sizes([weights.astype(np.float64)], density)
    assert sizes.dtype == np.int64 and set(sizes.tolist()) <= set(DARB_SIZES)
    assert abs(np.mean(1 / sizes) - density) <= darb_by_trying(weights, density) + 1e-9
    order = np.argsort([-np.linalg.norm(w, 1) for w in weights])
    (alive,) = ranked([np.abs(weights)], density, 0.0)
    rates = alive.mean(axis=1)
    assert all(sizes[a] <= sizes[b] for a, b in itertools.product(order, order) if rates[a] > rates[b])


def test_darb_counts_a_row_of_many_inputs_more() -> None:
    """A dense layer of 8 inputs beside one of 64 that is nearly all small: the mean is over weights, not rows."""
    small, large = np.ones((4, 8)), np.full((4, 64), 1e-3)
    first, second = darb_sizes([small, large], 0.1)
    assert first.tolist() == [4] * 4 and len(second) == 4
    stored = (8 * (1 / first).sum() + 64 * (1 / second).sum()) / (8 * 4 + 64 * 4)
    assert stored == pytest.approx(0.1, abs=0.02)


# ---------------------------------------------------------------------- goals
def candidate(*shape: int, rows: int = 0, inputs: int = 1, seed: int = 0) -> Candidate:
    graph = Builder().graph
    value = graph.add_parameter("w", drawn(*shape, seed=seed))
    return Candidate(value, rows, inputs, ())


@pytest.mark.parametrize("form", [Unstructured(0), BlockSparse(0, (4, 1)), Unstructured(1), BlockSparse(1, (4, 1))])
@pytest.mark.parametrize("kept", [1, 3, 7])
def test_a_goal_keeps_just_so_many_units_the_largest(form: Sparse, kept: int) -> None:
    data = drawn(8, 8)
    goal = Goal(form, kept)
    rows = data if form.rows == 0 else data.T
    height = goal.height
    norms = np.sqrt(np.add.reduceat(rows.astype(float) ** 2, np.arange(0, 8, height), axis=0))
    least = np.sort(norms, axis=None)[-kept]
    expected = np.repeat(norms >= least, height, axis=0)
    mask = goal.mask(data)
    np.testing.assert_array_equal(mask if form.rows == 0 else mask.T, expected)
    np.testing.assert_array_equal(largest(data, goal), np.where(mask, data, 0))
    assert largest(data, goal).dtype == np.float32
    assert goal.density((8, 8)) == kept * height / 64 and height == (4 if isinstance(form, BlockSparse) else 1)


def test_a_block_that_is_cut_off_counts_as_one() -> None:
    goal = Goal(BlockSparse(0, (4, 1)), 5)
    assert goal.density((6, 10)) == 5 / 20
    assert Goal(RegularBlock(0, 1, (4,))).density((6, 10)) == 3 / 10


@pytest.mark.parametrize(("kept", "units"), [(7, 40), (1, 64), (2, 64), (1, 2), (39, 40), (28, 40), (40, 40)])
def test_each_stage_keeps_seven_tenths_until_the_goal(kept: int, units: int) -> None:
    """The fewest units that are seven tenths of those before, but one less at least: few units are an end too."""
    counts = [units, *(s.kept for s in Goal(Unstructured(0), kept).stages((units, 1)))]
    assert counts[-1] == kept and (len(counts) == 2 or counts[-2] > kept)
    for before, after in itertools.pairwise(counts[:-1]):
        fewest = next(n for n in range(1, before) if n >= 0.7 * before or n == before - 1)
        assert after == fewest
    assert kept == units or kept >= 0.7 * counts[-2] or counts[-2] == kept + 1


def test_goals_of_layers_that_are_ranked_together() -> None:
    strong, weak = candidate(8, 4), candidate(8, 4, seed=1)
    importance = [strong.weight.constant + 10, weak.weight.constant * 1e-3]
    first, second = goals_of("block4x1", [strong, weak], importance, 0.5, 0.25)
    assert (first.kept, second.kept) == (6, 2) and first.form == BlockSparse(0, (4, 1))
    assert [g.kept for g in goals_of("unstructured", [strong], importance[:1], 0.25, 0.0)] == [8]
    assert goals_of("regular8", [candidate(4, 16, rows=1, inputs=0)], importance[:1], 1.0, 0.0) == [
        Goal(RegularBlock(1, 0, (8,)))
    ]
    assert form_of("block16x1", strong) == BlockSparse(0, (16, 1)) and form_of(
        "unstructured", weak
    ) == Unstructured(0)


def test_parts_of_a_recurrent_weight_are_goals_of_their_own() -> None:
    b = Builder(seed=3)
    first, second = b.weight(1, 16, 8, scale=1.0), b.weight(1, 16, 8, scale=0.01)
    both = np.concatenate([b.graph.value(first).constant, b.graph.value(second).constant])
    b2 = Builder(seed=3)
    x = b2.input("x", 3, 1, 8)
    weights = [b2.const(both, "w"), b2.weight(2, 16, 4), b2.weight(2, 32)]
    b2.task("t", b2.apply("LSTM", x, *weights, hidden_size=4, direction="bidirectional"))
    graph = b2.done()
    (site,) = graph.sites()
    layer = Candidate(site.operands[1], 1, 2, (site.node.ref,))
    for form in (BlockSparse(1, (4, 1)), Unstructured(1)):
        strong, weak = (p.goal(Goal(form, 6), layer).kept for p in problems(graph, site, layer))
        assert (strong, weak) == (6, 1), "a direction keeps one at least"
    runs = Goal(RegularBlock(1, 2, (4,)))
    assert all(p.goal(runs, layer) == runs for p in problems(graph, site, layer))


# ---------------------------------------------------------------------- checks
def pair(before: np.ndarray, after: np.ndarray, form: Sparse):
    graph = Builder().graph
    old = graph.add_value("w", TensorType(DType.FLOAT32, before.shape), before)
    return old, graph.add_value("v", TensorType(DType.FLOAT32, before.shape, form), after)


BLOCKS = BlockSparse(0, (2, 1))
SIGNED = np.array([[-8, 1, 3], [8, -1, -3], [5, -4, 0], [-5, 4, 0]], np.float32)


def blocks(*alive: tuple[int, int]) -> np.ndarray:
    made = np.zeros_like(SIGNED)
    for row, column in alive:
        made[2 * row : 2 * row + 2, column] = SIGNED[2 * row : 2 * row + 2, column]
    return made


def test_blocks_are_counted_and_compared_by_norm() -> None:
    found = check_survivors(*pair(SIGNED, blocks((0, 0), (1, 0), (1, 1)), BLOCKS))
    assert found == Count("w", 6, 5, 3) == count_survivors(*pair(SIGNED, blocks((0, 0), (1, 0), (1, 1)), BLOCKS))
    with pytest.raises(VerifyError, match=r"'w': something of norm 7.071 was dropped, 5.657 stayed"):
        check_survivors(*pair(SIGNED, blocks((0, 0), (1, 1)), BLOCKS))
    with pytest.raises(VerifyError, match="'w': 2 blocks or weights that stay have other values"):
        check_survivors(*pair(SIGNED, 1.5 * blocks((0, 0), (1, 0)), BLOCKS))
    check_survivors(*pair(SIGNED, np.zeros_like(SIGNED), BLOCKS))
    check_survivors(*pair(SIGNED, SIGNED, BLOCKS))
    negative = -np.arange(1, 5, dtype=np.float32).reshape(2, 2)
    with pytest.raises(VerifyError, match="norm 4 was dropped, 3 stayed"):
        check_survivors(*pair(negative, np.array([[0, 0], [-3, 0]], np.float32), Unstructured(0)))


def test_every_run_has_its_largest() -> None:
    data = np.array([[1, -9, 2, 3, 4, 5, -6, 0]], np.float32)
    form = RegularBlock(0, 1, (4,))
    good = np.array([[0, -9, 0, 0, 0, 0, -6, 0]], np.float32)
    assert check_survivors(*pair(data, good, form)) == Count("w", 8, 7, 2)
    for wrong, message in (
        (np.array([[0, 9, 0, 0, 0, 0, -6, 0]]), "1 weights that stay have other values"),
        (np.array([[0, -9, 0, 0, 0, 5, 0, 0]]), "a run of row 0 or later lost its largest weight"),
    ):
        with pytest.raises(VerifyError, match=message):
            check_survivors(*pair(data, wrong.astype(np.float32), form))


@pytest.mark.parametrize(
    ("kept", "zeros", "density", "floor", "fits"),
    [
        (5, 0, 0.5, 0.0, True),
        (4, 0, 0.5, 0.0, False),
        (6, 0, 0.5, 0.0, False),
        (4, 1, 0.5, 0.0, True),
        (3, 1, 0.5, 0.0, False),
        (3, 0, 0.1, 0.3, True),
        (2, 0, 0.1, 0.25, False),
        (1, 0, 0.01, 0.0, True),
    ],
)
def test_as_many_stay_as_were_asked_for(kept: int, zeros: int, density: float, floor: float, fits: bool) -> None:
    """Of ten; those that were zeros before may be among what was kept."""
    counts = [Count("w", 10, 10 - zeros, kept)]
    if fits:
        check_density(counts, density, floor)
        return
    wanted = max(round(density * 10), math.ceil(floor * 10))
    with pytest.raises(VerifyError, match=f"{kept} of 10 blocks or weights stay in w; {wanted} were asked for"):
        check_density(counts, density, floor)


def test_layers_are_checked_together() -> None:
    counts = [Count(n, 10, 10, k) for n, k in zip("abcd", (10, 1, 1, 8), strict=True)]
    check_density(counts, 0.5, 0.1)
    with pytest.raises(VerifyError, match=r"20 of 40 blocks or weights stay in a, b, c \.\.\.; 10 were asked"):
        check_density(counts, 0.25, 0.1)


# ---------------------------------------------------------------------- which layers
def test_the_first_and_the_last_layers_on_every_way() -> None:
    b = Builder()
    x = b.input("x", 1, 8)
    first = b.apply("MatMul", x, b.weight(8, 8))
    h = b.apply("Add", b.apply("Relu", first), x)  # past the first layer, the input reaches the second one too
    second = b.apply("MatMul", h, b.weight(8, 8))
    b.task("t", b.apply("Sigmoid", b.apply("Add", b.apply("MatMul", second, b.weight(8, 8)), second)))
    b.task("u", b.apply("Relu", first))
    graph = b.done()
    assert {r.name for r in first_layers(graph)} == {"matmul", "matmul.1"}
    assert {r.name for r in last_layers(graph)} == {"matmul", "matmul.1", "matmul.2"}


def test_positions_of_weights() -> None:
    b = Builder()
    y = b.apply("RNN", b.input("x", 3, 1, 8), b.weight(1, 4, 8), b.weight(1, 4, 4), hidden_size=4)
    z = b.apply("ConvTranspose", b.input("i", 1, 2, 3, 3), b.weight(2, 2, 2, 2))
    b.task("t", y, b.apply("MatMul", b.input("m", 2, 3), b.weight(3, 4)), z)
    assert {s.node.op.name: weights_of(s) for s in b.done().sites()} == {
        "RNN": (1, 2),
        "ConvTranspose": (),
        "MatMul": (1,),
    }


# ---------------------------------------------------------------------- one budget for several layers
def three_layers() -> Graph:
    b = Builder(seed=5)
    h = b.apply("Relu", b.apply("MatMul", b.input("x", 1, 16), b.weight(16, 16)))
    h = b.apply("Relu", b.apply("Gemm", h, b.weight(24, 16), transB=1))
    b.task("t", b.apply("MatMul", h, b.weight(24, 8)))
    return b.done()


def able(graph: Graph) -> list[Candidate]:
    return Sparsify(density=0.5, dense=(), min_inputs=1, pattern="block8x1").able(graph, Resources())[0]


def test_ways_of_a_layer_are_dense_and_all_patterns_at_all_densities() -> None:
    layer = candidate(16, 32)
    ways = ways_of(layer, ("block8x1", "regular4", "darb", "unstructured"))
    assert ways[0] is None
    shown = [(type(g.form), g.kept) for g in ways[1:] if g is not None]
    units = {BlockSparse: 64, Unstructured: 512}
    for kind, count in units.items():
        kept = [k for t, k in shown if t is kind]
        assert kept[0] == math.floor(0.8 * count) and sorted(set(kept), reverse=True) == kept
        assert kept[-1] == max(1, math.floor(0.0312 * count))
    runs = [g.form.sizes for g in ways[1:] if g is not None and isinstance(g.form, RegularBlock)]
    assert runs[0] == (4,) and set(runs[1]) == {4} and set(runs[-1]) == {32} and len(runs) == 5


def test_cost_of_a_way_is_what_the_network_with_it_costs_less_the_others() -> None:
    graph = three_layers()
    layers = able(graph)
    goals = [ways_of(c, ("block8x1",))[:4] for c in layers]
    for quantity in ("flops", "weight_bytes"):
        limit, use = Limit(quantity, 0.0), Resources()
        costs = costs_of(graph, layers, goals, limit, use)
        whole = limit.cost(graph, use)
        for layer, own, row in zip(layers, goals, costs, strict=True):
            assert row == tuple(sorted(row, reverse=True))
            for goal, cost in zip(own, row, strict=True):
                made = trial(graph, layers, {layer.weight.ref: goal} if goal else {})
                assert whole - limit.cost(made, use) == pytest.approx(row[0] - cost)


def test_losses_without_inputs_are_the_shares_of_squared_weights() -> None:
    graph = three_layers()
    layers = able(graph)
    goals = [(None, Goal(form_of("block8x1", c), 3)) for c in layers]
    for layer, (none, lost), (_, goal) in zip(layers, losses_of(graph, layers, goals, []), goals, strict=True):
        data = layer.weight.constant.astype(np.float64)
        assert none == 0
        assert lost == pytest.approx(1 - (data[goal.mask(data)] ** 2).sum() / (data**2).sum())


def test_an_assignment_loses_no_more_than_any_other_that_fits() -> None:
    graph = three_layers()
    layers = able(graph)
    use, patterns = Resources(), ("block8x1",)
    whole = Limit("weight_bytes", 0.0).cost(graph, use)
    goals = [ways_of(c, patterns) for c in layers]
    costs = costs_of(graph, layers, goals, Limit("weight_bytes", 0.0), use)
    losses = losses_of(graph, layers, goals, [])
    rest = whole - sum(row[0] for row in costs)
    for share in (0.8, 0.5, 0.35):
        limit = Limit("weight_bytes", share * whole)
        taken, (note,) = assign(graph, layers, patterns, limit, use, [])
        best = min(
            sum(losses[n][w] for n, w in enumerate(ways))
            for ways in itertools.product(*(range(len(g)) for g in goals))
            if rest + sum(costs[n][w] for n, w in enumerate(ways)) <= 0.995 * limit.value
        )
        chosen = [goals[n].index(taken.get(c.weight.ref)) for n, c in enumerate(layers)]
        assert sum(losses[n][w] for n, w in enumerate(chosen)) <= best + 1e-12
        assert Limit("weight_bytes", 0.0).cost(trial(graph, layers, taken), use) <= limit.value
        dense = sum(w == 0 for w in chosen)
        assert f"; {3 - dense} layers sparse, {dense} dense, expected loss" in note.reason
    assert assign(graph, layers, patterns, Limit("weight_bytes", whole), use, [])[0] == {}
    least = rest + sum(map(min, costs))
    with pytest.raises(PassError) as caught:
        assign(graph, layers, patterns, Limit("weight_bytes", 0.5 * least), use, [])
    assert caught.value.found == pytest.approx(least)


# ---------------------------------------------------------------------- second order
def quadratic(rows: int, p: int, seed: int = 0) -> tuple[Quadratic, np.ndarray]:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(p, p))
    hessian = mix @ mix.T / p + 0.05 * np.eye(p)
    best = rng.normal(size=(rows, p))
    return Quadratic(hessian, best @ hessian), best


@pytest.mark.parametrize("height", [1, 2, 4])
@pytest.mark.parametrize("memory", [None, 1])
def test_each_row_is_solved_under_its_support(
    height: int, memory: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many inverses are made at a time; the last block of rows may be lower, a support may be empty."""
    if memory:
        monkeypatch.setattr(compensate_module, "_BYTES", memory)
    given, best = quadratic(7, 6)
    alive = np.repeat(np.random.default_rng(1).random((7, 6)) < 0.6, height, axis=0)[:7]
    alive[-1 - (7 - 1) % height :] = False
    found = solve(given, alive, height)
    for row in range(7):
        at = np.flatnonzero(alive[row])
        inverse = np.linalg.inv(given.hessian[np.ix_(at, at)])
        np.testing.assert_allclose(found.weights[row, at], best[row] @ given.hessian[:, at] @ inverse, rtol=1e-9)
        np.testing.assert_allclose(found.spread[row, at], np.diag(inverse), rtol=1e-9)
        assert not np.delete(found.weights[row], at).any() and not np.delete(found.importance[row], at).any()
    supports = {tuple(r) for r in alive[::height]}
    assert work(alive, height) == sum(sum(s) ** 3 for s in supports)


def test_one_at_a_time_is_optimal_brain_surgery() -> None:
    """Remove what has the least w^2 / [H^-1]_jj, change the others by -w_j H^-1[:, j] / [H^-1]_jj, and again."""
    given, best = quadratic(1, 8)
    weights, alive = best[0].copy(), np.ones(8, bool)
    for _ in range(5):
        at = np.flatnonzero(alive)
        inverse = np.linalg.inv(given.hessian[np.ix_(at, at)])
        j = int(np.argmin(weights[at] ** 2 / np.diag(inverse)))
        weights[at] -= weights[at[j]] / inverse[j, j] * inverse[:, j]
        alive[at[j]] = False
        weights[at[j]] = 0
    stages = [lambda i, n=n: np.abs(i) >= np.sort(np.abs(i[0]))[-n] for n in range(7, 2, -1)]
    np.testing.assert_allclose(compensate(given, stages, 1)[0], weights, rtol=1e-9, atol=1e-12)


def test_a_stage_that_takes_too_long_is_left_out_but_for_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    given, _ = quadratic(3, 8)
    stages = [lambda i, n=n: np.abs(i) >= np.sort(np.abs(i), axis=1)[:, -n:][:, :1] for n in (6, 4, 2)]
    staged, at_once = compensate(given, stages, 1), compensate(given, stages[-1:], 1)
    assert not np.allclose(staged, at_once)
    monkeypatch.setattr(compensate_module, "WORK", 0.0)
    np.testing.assert_array_equal(compensate(given, stages, 1), at_once)
    monkeypatch.setattr(compensate_module, "WORK", 3 * 4**3)  # the second stage fits, the first one does not
    np.testing.assert_array_equal(compensate(given, stages, 1), compensate(given, stages[1:], 1))


def product(bias: bool) -> tuple[Graph, list[dict[str, np.ndarray]]]:
    b = Builder(seed=9)
    weight = b.weight(12, 6)
    x = b.input("x", 1, 12)
    b.task("t", b.apply("Gemm", x, weight, b.weight(6)) if bias else b.apply("MatMul", x, weight))
    draw = np.random.default_rng(2)
    mixing = draw.normal(size=(4, 12))
    rows = draw.normal(size=(40, 4)) @ mixing + 0.2 * draw.normal(size=(40, 12)) + 1
    return b.done(), [{"x": r[None].astype(np.float32)} for r in rows]


@pytest.mark.parametrize("bias", [False, True])
def test_the_loss_of_a_fit_is_its_error_on_held_out_inputs(bias: bool) -> None:
    graph, feeds = product(bias)
    (site,) = graph.sites()
    layer = Candidate(site.operands[1], 1, 0, (site.node.ref,))
    (problem,) = problems(graph, site, layer)
    walk = Walk(graph.copy(), feeds)
    (measured,) = [walk.measure(problem.reader) for _ in walk]
    assert measured.central == bias
    found = fitted(problem, Goal(Unstructured(1), 24), measured)
    assert found.updated and np.count_nonzero(found.weights) == 24
    old = site.operands[1].constant.astype(np.float64)
    constant = site.operands[2].constant if bias else np.zeros(6)
    np.testing.assert_array_equal(base_of(problem.reader), constant[None])
    x = np.concatenate([f["x"] for f in feeds]).astype(np.float64)
    y = x @ old + constant
    held = np.arange(len(x)) % 4 == 3
    power = ((y[held] - y[held].mean(axis=0)) ** 2).sum()

    def lost(weights: np.ndarray, offset: np.ndarray) -> float:
        return float(((x[held] @ weights + offset - y[held]) ** 2).sum() / power)

    assert found.loss == pytest.approx(lost(found.weights, found.offset), rel=1e-4)
    assert found.loss < 0.5 * lost(largest(old, Goal(Unstructured(1), 24)), constant)
    if bias:
        mean = (y[~held] - x[~held] @ found.weights).mean(axis=0)
        np.testing.assert_allclose(found.offset[0], mean, rtol=1e-4, atol=1e-6)
    made = graph.copy()
    put(made, problem.reader, found.weights.T)
    shift(made, problem.reader, found.offset)
    (answer,) = evaluate(made, feeds[0]).values()
    np.testing.assert_allclose(answer[0], x[0] @ found.weights + found.offset[0], rtol=1e-4, atol=1e-5)


def test_losses_with_inputs_are_errors_of_one_fit_on_held_out_inputs() -> None:
    """Nothing for the dense way; for the others less than the plain survivors lose, and the more the fewer stay."""
    graph, feeds = product(bias=False)
    (site,) = graph.sites()
    layer = Candidate(site.operands[1], 1, 0, (site.node.ref,))
    kept = (60, 36, 12)
    (found,) = losses_of(graph, [layer], [(None, *(Goal(Unstructured(1), k) for k in kept))], feeds)
    x = np.concatenate([f["x"] for f in feeds]).astype(np.float64)
    old = site.operands[1].constant.astype(np.float64)
    y, held = x @ old, np.arange(len(x)) % 4 == 3
    power = ((y[held] - y[held].mean(axis=0)) ** 2).sum()
    plain = [((x[held] @ largest(old, Goal(Unstructured(1), k)) - y[held]) ** 2).sum() / power for k in kept]
    assert found[0] == 0 and 0 < found[1] < found[2] < found[3]
    assert all(lost < 0.8 * other for lost, other in zip(found[1:], plain, strict=True))
    energy = [1 - (largest(old, Goal(Unstructured(1), k)) ** 2).sum() / (old**2).sum() for k in kept]
    assert not np.allclose(found[1:], energy, rtol=0.05)


def test_where_no_fit_does_better_the_largest_magnitudes_stay() -> None:
    """Inputs that say nothing about each other and weights that are all kept or next to nothing."""
    b = Builder(seed=9)
    data = np.where(np.arange(64).reshape(8, 8) % 2, drawn(8, 8), 0).astype(np.float32)
    b.task("t", b.apply("MatMul", b.input("x", 1, 8), b.const(data)))
    graph = b.done()
    (site,) = graph.sites()
    (problem,) = problems(graph, site, Candidate(site.operands[1], 1, 0, (site.node.ref,)))
    walk = Walk(graph.copy(), [{"x": r[None]} for r in drawn(24, 8, seed=1)])
    (measured,) = [walk.measure(problem.reader) for _ in walk]
    found = fitted(problem, Goal(Unstructured(1), 32), measured)
    assert not found.updated and found.loss < 1e-12
    np.testing.assert_allclose(found.weights, data, rtol=1e-12)


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_gates_read_inputs_and_the_states_that_steps_start_from(direction: str, layout: int) -> None:
    """Patches of W and R times the weights are what the gates of all steps add up, but for the bias."""
    steps, samples, inputs, hidden, ways = 5, 2, 3, 4, 1 + (direction == "bidirectional")
    b = Builder(seed=4)
    shape = (samples, steps, inputs) if layout else (steps, samples, inputs)
    weights = [b.weight(ways, hidden, n) for n in (inputs, hidden)]
    y = b.apply("RNN", b.input("x", *shape), *weights, hidden_size=hidden, direction=direction, layout=layout)
    b.task("t", y)
    graph = b.done()
    (site,) = graph.sites()
    x = drawn(*shape)
    (y_,) = evaluate(graph, {"x": x}).values()
    xs = np.swapaxes(x, 0, 1) if layout else x  # [steps, samples, ...]
    ys = (
        np.moveaxis(y_, (0, 1, 2), (1, 0, 2)) if layout else np.swapaxes(y_, 1, 2)
    )  # [steps, samples, ways, hidden]
    parts = [problems(graph, site, Candidate(site.operands[i], 1, 2, (site.node.ref,))) for i in (1, 2)]
    assert [len(p) for p in parts] == [ways, ways]
    for d, (of_inputs, of_states) in enumerate(zip(*parts, strict=True)):
        back = direction == "reverse" or d == 1
        first, second = of_inputs.reader, of_states.reader
        assert isinstance(first, GateReader) and isinstance(second, GateReader)
        assert (first.positions, second.positions) == (steps * samples, (steps - 1) * samples)
        order = slice(None, None, -1) if back else slice(None)
        states = ys[order][:, :, d]
        added = np.arctanh(states[1:].astype(np.float64))
        by_input = first.patches(x, np.arange(first.positions))[0] @ first.matrix(first.weight.constant)[0]
        by_state = second.patches(y_, np.arange(second.positions))[0] @ second.matrix(second.weight.constant)[0]
        total = by_input.reshape(steps, samples, hidden)[order][1:]
        total = total + by_state.reshape(steps - 1, samples, hidden)[order]
        np.testing.assert_allclose(total, added, atol=1e-3)
        np.testing.assert_array_equal(xs.reshape(-1, inputs), first.patches(x, np.arange(first.positions))[0])


def test_a_change_of_gates_goes_to_its_direction_and_half_of_the_bias() -> None:
    b = Builder(seed=4)
    weights = [b.weight(2, 12, 3), b.weight(2, 12, 4), b.weight(2, 24)]
    x = b.input("x", 5, 1, 3)
    b.task("t", b.apply("GRU", x, *weights, hidden_size=4, direction="bidirectional"))
    graph = b.done()
    (site,) = graph.sites()
    for state, d in itertools.product((0, 1), (0, 1)):
        layer = Candidate(site.operands[1 + state], 1, 2, (site.node.ref,))
        reader = problems(graph, site, layer)[d].reader
        made = graph.copy()
        change = np.arange(1.0, 13.0)[None]
        shift(made, reader, change)
        moved = made.value(weights[2]).constant - graph.value(weights[2]).constant
        expected = np.zeros((2, 24))
        expected[d, 12 * state : 12 * state + 12] = change[0]
        np.testing.assert_allclose(moved, expected, atol=1e-6)
        put(made, reader, np.full((12, 4 if state else 3), 7.0))
        data = made.value(layer.weight.ref).constant
        assert (data[d] == 7).all()
        np.testing.assert_array_equal(data[1 - d], layer.weight.constant[1 - d])


# ---------------------------------------------------------------------- biases of levels
@pytest.mark.parametrize("shape", [(), (1,), (1, 24), (24,)])
@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_means_of_a_level_are_those_of_the_original_whatever_bias_there_was(
    shape: tuple[int, ...], beta: float
) -> None:
    b = Builder(seed=3)
    y = b.apply("Gemm", b.input("x", 1, 16), b.weight(24, 16), b.weight(*shape), transB=1, beta=beta)
    b.task("t", y)
    original = b.done()
    graph = original.copy()
    weight = graph.value(ValueRef("w"))
    data = weight.constant
    form = BlockSparse(0, (4, 1))
    kept = keep_blocks(data, form, form.norms(data) > np.median(form.norms(data)))
    graph.update(weight.ref, type=replace(weight.type, encoding=form), data=data, sparser=[kept])
    rows = np.random.default_rng(0).normal(1.0, 1.0, (24, 1, 16)).astype(np.float32)
    assert correct(graph, original, [{"x": r} for r in rows]) == []
    (site,) = graph.sites()
    bias = site.operands[2]
    assert bias.shape == (24,) and len(bias.sparser) == 1
    old = np.broadcast_to(original.value(ValueRef("w.1")).constant.reshape(-1), (24,))
    np.testing.assert_allclose(bias.constant, old, atol=1e-6)
    fitted_rows = rows[np.arange(24) % HELD_OUT != 0, 0].astype(np.float64)
    lost = (fitted_rows @ (data - kept).T.astype(np.float64)).mean(axis=0)
    np.testing.assert_allclose(bias.sparser[0], old + lost / beta, atol=1e-5)
