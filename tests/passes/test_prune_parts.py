"""The parts of prune-channels: costs without surgery, ladders, scores, shared constants; by counting."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import SimpleNamespace

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from compiler.errors import PassError
from compiler.ir.graph import Graph
from compiler.ir.reference import evaluate
from compiler.ir.ties import Atom, Closure
from compiler.ir.types import Axis, NodeRef, ValueRef
from compiler.ir.verify import verify
from compiler.passes.base import Resources
from compiler.passes.budget.limits import Limit, OverBudget
from compiler.passes.prune.budget import Ladder, Meter, Quantity, Selection, narrowed, select
from compiler.passes.prune.channels import PruneChannels, first_difference
from compiler.passes.prune.criteria import activation_scores, fisher_scores, gated_axes, scores
from compiler.passes.prune.surgery import complement, join_shared, masked_difference, remove, split_shared
from compiler.passes.prune.worth import Readers
from tests.graphs import Builder


def chain(*widths: int, seed: int = 1) -> Graph:
    """Products one after the other, each but the last with a Relu behind it."""
    b = Builder(seed=seed)
    h = b.input("x", 1, widths[0])
    for inner, outer in itertools.pairwise(widths):
        h = b.apply("MatMul", h, b.weight(inner, outer))
        if outer != widths[-1]:
            h = b.apply("Relu", h)
    b.task("t", h)
    return b.done()


def mixed() -> Graph:
    """Convolutions with a residual, depthwise and grouped ones, a Concat, a flattened product and an LSTM."""
    b = Builder(seed=2)
    h = b.apply("Relu", b.conv(b.input("x", 1, 3, 4, 4), 8, 3, pads=(1, 1, 1, 1)))
    h = b.apply("Add", h, b.conv(h, 8, 1))
    h = b.apply("Concat", b.conv(h, 8, 3, group=8, pads=(1, 1, 1, 1)), b.conv(h, 4, 1), axis=1)
    h = b.apply("Gemm", b.apply("Flatten", h), b.weight(12, 192), b.weight(12), transB=1)
    steps = b.apply("Reshape", h, b.const(np.array([3, 1, 4])))
    y = b.apply("LSTM", steps, b.weight(1, 24, 4), b.weight(1, 24, 6), hidden_size=6)
    b.task("t", b.apply("MatMul", b.apply("Reshape", y, b.const(np.array([3, 6]))), b.weight(6, 2)))
    return b.done()


# ---------------------------------------------------------------------- costs without surgery
def counted(graph: Graph, quantity: str) -> float:
    if quantity == "flops":
        return float(sum(s.node.op.macs(s) for s in graph.sites()))
    return float(sum(v.size * (4 if quantity == "weight_bytes" else 1) for v in graph.parameters() if v.size > 1))


@pytest.mark.parametrize("quantity", ["flops", "parameters", "weight_bytes"])
def test_the_meter_counts_what_surgery_leaves(quantity: Quantity) -> None:
    graph = mixed()
    closure = Closure(graph)
    groups = closure.groups
    assert len(groups) >= 4
    meter = Meter(graph, quantity, axes={a: closure.size(a) for g in groups for a in g.axes})
    ignored = sum(v.size for v in graph.parameters() if not v.dtype.is_float) * (quantity != "flops")
    ignored *= 4 if quantity == "weight_bytes" else 1
    whole = meter.total
    assert whole == counted(graph, quantity) - ignored
    rng, gone = np.random.default_rng(0), list[Atom]()
    for group in groups:
        picked = [group.atoms[i] for i in rng.permutation(len(group.atoms))[: len(group.atoms) // 2]]
        before, saved = meter.total, meter.saving(picked)
        assert meter.total == before
        meter.remove(picked)
        assert meter.total == before - saved < before
        gone += picked
        small = graph.copy()
        removal = closure.removal(gone)
        remove(small, removal)
        assert meter.total == counted(small, quantity) - ignored
        for axis, entries in meter.gone.items():
            assert np.array_equal(entries, removal[axis])
    meter.restore(gone)
    assert meter.total == whole and not meter.gone


def test_entries_that_two_atoms_hold_come_back_with_the_last_of_them() -> None:
    graph = chain(8, 6, 4)
    first, second, *_ = Closure(graph).groups[0].atoms
    meter = Meter(graph, "flops")
    whole = meter.total
    meter.remove([first, second])
    meter.remove([first])
    meter.restore([first])
    assert meter.total == whole - 2 * 12
    meter.restore([first])
    assert meter.total == whole - 12


def test_a_workload_weighs_nodes_and_names_are_those_of_nodes_or_weights() -> None:
    b = Builder()
    x = b.input("x", 1, 8)
    b.task("a", b.apply("MatMul", x, b.weight(8, 6)))
    b.task("b", b.apply("MatMul", b.apply("MatMul", x, b.weight(8, 5)), b.weight(5, 2)))
    graph = b.done()
    meter = Meter(graph, "flops", {frozenset("a"): 3.0, frozenset("b"): 1.0})
    assert {r.name: meter.cost_of(r) for r in meter.refs} == {"matmul": 36.0, "matmul.1": 10.0, "matmul.2": 2.5}
    assert meter.touched(Closure(graph).groups[0].atoms) == (NodeRef("matmul.1"), NodeRef("matmul.2"))
    assert set(Meter(graph, "parameters").refs) == {v.ref for v in graph.parameters()}


def test_no_axis_may_become_empty() -> None:
    closure = Closure(chain(8, 3, 4))
    (group,) = closure.groups
    meter = Meter(closure.graph, "flops")
    assert meter.leaves_some(group.atoms[:2]) and not meter.leaves_some(group.atoms)
    meter.remove(group.atoms[:1])
    assert not meter.leaves_some(group.atoms[1:])
    ladder = Ladder(group, np.array([1.0, 2.0, 3.0]), 1, 0.0)
    meter.restore(group.atoms[:1])
    assert [a.index for a in narrowed(ladder, meter)] == [a.index for a in group.atoms[:2]]
    assert meter.total == 8 + 4
    left = ladder_of([2.0, 3.0, 1.0])
    assert left.key(meter, "global") is None and left.key(meter, "local") is None
    meter.restore(group.atoms[:1])
    assert left.key(meter, "local") == 1 / 3


# ---------------------------------------------------------------------- ladders
def ladder_of(scores_: Sequence[float], multiple: int = 1, floor: float = 0.0) -> Ladder:
    (group,) = Closure(chain(5, len(scores_), 4)).groups
    return Ladder(group, np.array(scores_), multiple, floor)


def widths(ladder: Ladder, count: int) -> list[int]:
    found = [count]
    while ladder.next:
        ladder.advance()
        found.append(count - len(ladder.removed))
    return found


@pytest.mark.parametrize(
    ("count", "multiple", "floor", "expected"),
    [
        (10, 4, 0.0, [10, 8, 4]),
        (10, 4, 0.5, [10, 8]),
        (8, 4, 0.5, [8, 4]),
        (8, 4, 0.51, [8]),
        (5, 1, 0.4, [5, 4, 3, 2]),
        (5, 1, 0.41, [5, 4, 3]),
        (3, 4, 0.0, [3]),
    ],
)
def test_widths_are_multiples_down_to_the_floor(
    count: int, multiple: int, floor: float, expected: list[int]
) -> None:
    assert widths(ladder_of(range(count), multiple, floor), count) == expected


def test_the_least_worthy_leave_first_and_those_that_left_stay_away() -> None:
    ladder = ladder_of([5.0, 1.0, 4.0, 1.0, 3.0, 2.0], 2)
    assert not ladder.last and not ladder.removed

    def numbers(atoms: Sequence[Atom]) -> list[int]:
        return [int(a.entries[Axis(ValueRef("matmul:0"), 1)][0]) for a in atoms]

    assert numbers(ladder.next) == [1, 3]  # of equal ones the earlier first
    ladder.advance()
    assert numbers(ladder.removed) == numbers(ladder.last) == [1, 3]
    ladder.rank(np.array([0.1, 9.0, 0.3, 9.0, 0.4, 0.2]))
    assert numbers(ladder.next) == [0, 5]
    ladder.advance()
    assert numbers(ladder.removed) == [1, 3, 0, 5] and numbers(ladder.last) == [0, 5]
    ladder.back()
    assert numbers(ladder.removed) == [1, 3] and numbers(ladder.next) == [0, 5]


def test_a_step_is_due_by_score_per_saving_and_by_how_much_has_gone() -> None:
    ladder = ladder_of([1.0, 2.0, 3.0, 4.0], 2)
    meter = Meter(chain(5, 4, 4), "flops")
    assert ladder.key(meter, "global") == pytest.approx((1 + 2) / (2 * 9))
    assert ladder.key(meter, "local") == 0.5
    meter.remove(ladder.next)
    ladder.advance()
    assert ladder.key(meter, "global") is None  # two are the fewest
    fine = ladder_of([1.0, 2.0, 3.0, 4.0])
    meter.restore(ladder.last)
    meter.remove(fine.next)
    fine.advance()
    assert fine.key(meter, "global") == pytest.approx(2 / 9 * 4 / 3)
    assert fine.key(meter, "local") == 0.5


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(
    target=st.floats(0.15, 0.95),
    multiple=st.integers(1, 4),
    scope=st.sampled_from(["global", "local"]),
    seed=st.integers(0, 9),
)
def test_a_selection_meets_the_budget_and_no_step_of_it_is_idle(
    target: float, multiple: int, scope: str, seed: int
) -> None:
    graph = chain(7, 16, 12, 20, 5)
    groups = Closure(graph).groups
    rng = np.random.default_rng(seed)
    given = [rng.random(len(g.atoms)) for g in groups]
    meter = Meter(graph, "flops")
    whole = meter.total
    ladders = [Ladder(g, s, multiple, 0.0) for g, s in zip(groups, given, strict=True)]
    try:
        found = select(meter, ladders, target, scope, lambda gone: given)  # type: ignore[arg-type]
    except PassError:
        least = Meter(graph, "flops")
        for group in groups:
            narrowed(Ladder(group, np.zeros(len(group.atoms)), multiple, 0.0), least)
        assert least.total > target * whole
        return
    again = Meter(graph, "flops")
    again.remove(found.atoms)
    assert again.total == meter.total and found.kept == pytest.approx(again.total / whole) and found.kept <= target
    back = [again.total]
    for ladder in ladders:
        if ladder.last:
            again.restore(ladder.last)
            assert again.total > target * whole, "this step was not needed"
            back.append(again.total)
            again.remove(ladder.last)
    assert found.step == pytest.approx((min(back[1:], default=again.total) - again.total) / whole)
    for group, ladder, worth in zip(groups, ladders, given, strict=True):
        assert not ladder.removed or (len(group.atoms) - len(ladder.removed)) % multiple == 0
        gone = {a.index for a in ladder.removed}
        position = {a.index: n for n, a in enumerate(group.atoms)}
        stays = [worth[n] for i, n in position.items() if i not in gone]
        assert all(worth[position[i]] <= min(stays) for i in gone)


# ---------------------------------------------------------------------- scores
def test_scores_by_weights_are_shares_of_all_that_a_channel_has() -> None:
    graph = chain(6, 5, 3)
    (group,) = groups = Closure(graph).groups
    first, second = (v.constant.astype(np.float64) for v in graph.parameters())
    for kind, sums in (
        ("l1", np.abs(first).sum(axis=0) + np.abs(second).sum(axis=1)),
        ("l2", np.sqrt((first**2).sum(axis=0) + (second**2).sum(axis=1))),
    ):
        (found,) = scores(graph, groups, kind, np.random.default_rng(0))
        np.testing.assert_allclose(found, sums / sums.sum(), rtol=1e-12)
    (drawn,) = scores(graph, groups, "random", np.random.default_rng(0))
    assert drawn.sum() == pytest.approx(1) and drawn.max() < 3 * drawn.min() and len(set(drawn)) == 5
    for ref in [v.ref for v in graph.parameters()]:
        graph = graph.copy()
        graph.update(ref, data=np.zeros_like(graph.value(ref).constant))
    assert scores(graph, Closure(graph).groups, "l2", np.random.default_rng(0))[0].tolist() == [0.2] * 5
    assert group.name == "matmul:0"


def test_biases_and_factors_of_channels_do_not_count() -> None:
    b = Builder(seed=3)
    h = b.apply("Gemm", b.input("x", 1, 6), b.weight(4, 6), b.const(np.full(4, 100, np.float32)), transB=1)
    h = b.apply("Mul", h, b.const(np.full((1, 4), 100, np.float32)))
    b.task("t", b.apply("MatMul", h, b.weight(4, 3)))
    graph = b.done()
    (found,) = scores(graph, Closure(graph).groups, "l1", np.random.default_rng(0))
    first, second = (np.abs(graph.value(ValueRef(n)).constant) for n in ("w", "w.1"))
    sums = first.sum(axis=1) + second.sum(axis=1)
    np.testing.assert_allclose(found, sums / sums.sum(), rtol=1e-6)


def test_rms_is_the_share_of_output_power_if_inputs_were_independent() -> None:
    graph = chain(6, 5, 3)
    groups = Closure(graph).groups
    feeds = [{"x": x[None]} for x in np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32)]
    (found,) = activation_scores(graph, groups, False, Readers(graph, feeds), {})
    hidden = np.stack([evaluate(graph, f, keep=["relu:0"])["relu:0"][0] for f in feeds]).astype(np.float64)
    out = graph.value(ValueRef("w.1")).constant.astype(np.float64)
    expected = (hidden**2).mean(axis=0) * (out**2).sum(axis=1) / ((hidden @ out) ** 2).mean(axis=0).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_groups_that_no_reader_measures_are_scored_at_the_mean_level() -> None:
    b = Builder(seed=3)
    h = b.apply("Relu", b.apply("MatMul", b.input("x", 4, 6), b.weight(6, 4)))
    steps = b.apply("Reshape", b.apply("MatMul", h, b.weight(4, 5)), b.const(np.array([4, 1, 5])))
    y = b.apply("LSTM", steps, b.weight(1, 24, 5), b.weight(1, 24, 6), hidden_size=6)
    b.task("t", b.apply("Reshape", b.apply("ReduceSum", y, b.const(np.array([3]))), b.const(np.array([4]))))
    graph = b.done()
    groups = list(Closure(graph).groups)
    feeds = [{"x": x} for x in np.random.default_rng(1).normal(size=(8, 4, 6)).astype(np.float32)]
    found = activation_scores(graph, groups, True, Readers(graph, feeds), {})
    read = [n for n, g in enumerate(groups) if any(a.owner == ValueRef("relu:0") for a in g.axes)]
    assert len(groups) > len(read) == 1
    level = found[read[0]].sum()
    assert all(s.sum() == pytest.approx(level) for s in found)
    plain = scores(graph, groups, "l2", np.random.default_rng(0))
    other = next(n for n in range(len(groups)) if n not in read)
    assert np.array_equal(np.argsort(found[other]), np.argsort(plain[other]))


def test_fisher_scores_add_up_gates_and_fall_back_on_weights() -> None:
    graph = chain(6, 4, 5, 3)
    first, second = groups = sorted(Closure(graph).groups, key=lambda g: len(g.atoms))
    axes = gated_axes(graph, groups)
    assert [a.owner for a in axes] == [ValueRef("relu:0"), ValueRef("relu.1:0")]
    gradients = np.array([[1.0, 0.0, 2.0, 1.0], [1.0, 0.0, -2.0, 0.0]])
    found = fisher_scores(graph, groups, {axes[0]: gradients})
    root = np.sqrt((gradients**2).mean(axis=0))
    np.testing.assert_allclose(found[0], root / root.sum())
    np.testing.assert_allclose(found[1], scores(graph, [second], "l2", np.random.default_rng(0))[0])
    assert len(first.atoms) == 4


def test_channels_of_a_grouped_reader_keep_what_they_were_worth() -> None:
    """Groups keep equal slots, so what has gone changes nothing; a depthwise reader loses its outputs too."""
    b = Builder(seed=5)
    x = b.input("x", 1, 4, 5, 5)
    grouped = b.conv(b.conv(x, 8, 1), 6, 3, group=2)
    b.task("t", b.conv(b.conv(grouped, 6, 1, group=6), 2, 1))
    graph = b.done()
    feeds = [{"x": a[None]} for a in np.random.default_rng(1).normal(size=(6, 4, 5, 5)).astype(np.float32)]
    readers = Readers(graph, feeds)
    whole = readers.contributions(True, {})
    assert {a.owner.name for a in whole} == {"x", "conv:0", "conv.2:0"}
    axis = Axis(ValueRef("conv:0"), 1)
    assert len(whole[axis]) == 8 and (whole[axis] > 0).all()
    np.testing.assert_array_equal(readers.contributions(True, {axis: np.array([0, 1])})[axis], whole[axis])
    assert (readers.contributions(True, {Axis(ValueRef("x"), 1): np.array([2])})[Axis(ValueRef("x"), 1)][2]) == 0


# ---------------------------------------------------------------------- budgets of the whole graph
@pytest.mark.parametrize("quantity", ["flops", "weight_bytes"])
@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_an_absolute_budget_is_used(quantity: Quantity, share: float) -> None:
    """Narrow steps: next to all of what may be spent is spent."""
    graph = chain(8, 40, 32, 40, 6)
    whole = Limit(quantity, 0.0).cost(graph, Resources())  # type: ignore[arg-type]
    allowed = share * whole
    after = PruneChannels(**{quantity: allowed})(graph)  # type: ignore[arg-type]
    assert 0.93 * allowed < Limit(quantity, 0.0).cost(after, Resources()) <= allowed  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.8, 0.6, 0.4])
def test_a_budget_is_used_where_much_of_the_cost_is_no_product(share: float) -> None:
    """What goes with a channel besides its products is found out by trying."""
    b = Builder(seed=1)
    h = b.apply("MatMul", b.input("x", 1, 4), b.weight(4, 60))
    for _ in range(6):
        h = b.apply("Sigmoid", h)
    b.task("t", b.apply("MatMul", h, b.weight(60, 4)))
    graph = b.done()
    allowed = share * Limit("flops", 0.0).cost(graph, Resources())
    after = PruneChannels(flops=allowed)(graph)
    assert 0.93 * allowed < Limit("flops", 0.0).cost(after, Resources()) <= allowed


# ---------------------------------------------------------------------- shared constants and surgery
def with_shared() -> tuple[Graph, ValueRef, ValueRef]:
    """A scale and a matrix that three and two nodes read."""
    b = Builder()
    scale, weight = b.const(np.array([1.0, np.nan, 3.0, 4.0], np.float32), "scale"), b.weight(4, 4)
    h = b.apply("Mul", b.input("x", 1, 4), scale)
    h = b.apply("Mul", b.apply("MatMul", b.apply("MatMul", h, weight), weight), scale)
    b.task("t", b.apply("Add", h, scale))
    return b.done(), scale, weight


def test_every_reader_but_the_first_gets_its_own_copy() -> None:
    graph, scale, weight = with_shared()
    work = graph.copy()
    origin = split_shared(work)
    assert set(origin.values()) == {scale} and len(origin) == 2
    assert all(np.shares_memory(work.value(c).constant, work.value(scale).constant) for c in origin)
    assert [len(work.uses(r)) for r in (scale, *origin)] == [1, 1, 1] and len(work.uses(weight)) == 2
    changed = next(iter(origin))
    work.update(changed, data=np.zeros(4, np.float32))
    join_shared(work, origin)
    verify(work)
    assert changed in work and len(work.uses(scale)) == 2 and len(work.values()) == len(graph.values()) + 1
    both = graph.copy()
    assert set(split_shared(both, matrices=True).values()) == {scale, weight}


def test_what_a_task_returns_stays_shared() -> None:
    b = Builder()
    bias = b.weight(4)
    b.task("t", b.apply("Add", b.apply("Add", b.input("x", 1, 4), bias), bias), bias)
    assert split_shared(b.graph) == {}


def test_what_stays_is_in_order_and_never_nothing() -> None:
    graph = chain(5, 6, 4)
    axis = Axis(ValueRef("matmul:0"), 1)
    kept = complement(graph, {axis: np.array([0, 3, 4])})
    assert kept.entries[axis].tolist() == [1, 2, 5]


def test_the_size_of_an_inner_state_is_that_of_its_ties() -> None:
    graph = mixed()
    closure = Closure(graph)
    group = next(
        g for g in closure.groups if any(isinstance(a.owner, NodeRef) and "lstm" in a.owner.name for a in g.axes)
    )
    state = next(a for a in group.axes if isinstance(a.owner, NodeRef))
    kept = complement(graph, closure.removal(group.atoms[1:3]))
    assert kept.entries[state].tolist() == [0, 3, 4, 5]


def test_a_difference_is_found_where_it_begins() -> None:
    graph = chain(6, 5, 8, 3)
    closure = Closure(graph)
    (group,) = (g for g in closure.groups if len(g.atoms) == 8)
    removal = closure.removal([group.atoms[2], group.atoms[5]])
    after = graph.copy()
    remove(after, removal)
    assert masked_difference(graph, after, removal) < 1e-6
    wrong = after.copy()
    weight = wrong.value(ValueRef("w.1"))
    wrong.update(weight.ref, data=weight.constant + np.eye(*weight.shape, dtype=np.float32))
    assert masked_difference(graph, wrong, removal) > 1e-2
    assert first_difference(graph, wrong, removal, 1e-5) == ValueRef("matmul.1:0")
    assert first_difference(graph, after, removal, 1e-5) == graph.outputs[0].ref


@pytest.mark.parametrize(
    ("allowed", "tried", "kept"),
    [(62.0, [0.525], 0.525), (22.5, [0.03125, 0.515625, 0.2734375, 0.15234375, 0.212890625, 0.1826171875], 0.0)],
)
def test_shares_are_tried_until_most_of_an_absolute_budget_is_used(
    allowed: float, tried: list[float], kept: float
) -> None:
    """Of a cost of 100 the meter sees 80; shares below 0.2 are too narrow, and at the narrowest 15 remain."""
    assert searched(allowed) == (pytest.approx(tried), kept)


def test_a_share_is_above_nothing_however_small_the_budget() -> None:
    """What the meter sees would not do: from the narrowest the search goes half way back to everything."""
    tried, kept = searched(16.0)
    assert tried[:2] == pytest.approx([0, 0.5], abs=1e-5) and min(tried) > 0 and kept == 0
    with pytest.raises(OverBudget, match="15 remain when every removable channel is gone"):
        searched(14.0)


def searched(allowed: float) -> tuple[list[float], float]:
    """The shares that were tried, and what is kept."""
    tried: list[float] = []

    class Search(PruneChannels):
        def scorer(self, *_):
            return None

        def meter(self, *_):
            return SimpleNamespace(total=80.0)

        def _select(self, graph, closure, use, quantity, share, *_):
            tried.append(share)
            if share < 0.2:
                raise PassError("too narrow")
            return Selection((), share, 0.0)

        def _narrowest(self, *_):
            return Selection((), 0.0, 0.0)

        def _cost(self, graph, closure, selection, *_):
            return 20 + 80 * selection.kept if selection.kept else 15.0

    class Given(Limit):
        def cost(self, *_):
            return 100.0

    search, closure = Search(weight_bytes=allowed), SimpleNamespace(groups=())
    return tried, search._within(Graph("g"), closure, Resources(), Given("weight_bytes", allowed), ()).kept
