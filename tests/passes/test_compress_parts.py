"""The parts of compress: widths that are tried, what they lose, prices and ways, and what is made in full."""

from __future__ import annotations

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from compiler.errors import ConfigError
from compiler.ir.graph import Graph
from compiler.ir.reference import evaluate
from compiler.ir.ties import Closure
from compiler.ir.types import Axis, ValueRef
from compiler.passes.base import Resources
from compiler.passes.budget.limits import Limit
from compiler.passes.compress.compress import Compress, _finalists
from compiler.passes.compress.search import Choice, Layer, Space, Steps, choices, narrowest, settle
from compiler.passes.compress.widths import STEPS, cuts_of, width_losses
from compiler.passes.prune.budget import Meter
from tests.graphs import Builder


def chain(*widths: int, seed: int = 1, relu: bool = False) -> Graph:
    b = Builder(seed=seed)
    h = b.input("x", 1, widths[0])
    for i in range(1, len(widths)):
        h = b.apply("MatMul", h, b.weight(widths[i - 1], widths[i]))
        if relu and i < len(widths) - 1:
            h = b.apply("Relu", h)
    b.task("t", h)
    return b.done()


def inputs(count: int, width: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).normal(size=(width // 2, width))
    rows = rng.normal(size=(count, width // 2)) @ mixing + 0.3 * rng.normal(size=(count, width))
    return [{"x": r[None].astype(np.float32)} for r in rows]


# ---------------------------------------------------------------------- widths
@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(
    width=st.integers(2, 70),
    multiple=st.integers(1, 9),
    floor=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 9),
)
def test_about_eight_widths_down_to_the_narrowest(width: int, multiple: int, floor: float, seed: int) -> None:
    (group,) = Closure(chain(3, width, 2)).groups
    scores = np.random.default_rng(seed).random(width)
    cuts = cuts_of(group, scores, multiple, floor)
    assert cuts[0] == ()
    left = [width - len(cut) for cut in cuts]
    fewest = max(multiple, math.ceil(floor * width))
    possible = [w for w in range(width) if w % multiple == 0 and w >= fewest]
    assert set(left[1:]) <= set(possible) and left == sorted(set(left), reverse=True)
    assert left[-1] == min(possible, default=width)
    assert len(cuts) <= 2 * STEPS + 3
    assert len(possible) < STEPS or multiple > 1 or floor > 0.1 or 4 * len(cuts) >= 3 * STEPS  # 12 channels: six
    order = [group.atoms[i].index for i in np.argsort(scores, kind="stable")]
    for cut in cuts:
        assert [a.index for a in cut] == order[: len(cut)]


@pytest.fixture(scope="module")
def cut_chain():
    """A chain of two hidden layers, with cuts of both."""
    graph = chain(8, 12, 10, 4)
    closure = Closure(graph)
    groups = closure.groups
    scores = [np.random.default_rng(n).random(len(g.atoms)) for n, g in enumerate(groups)]
    return graph, closure, groups, [cuts_of(g, s, 2, 0.1) for g, s in zip(groups, scores, strict=True)], scores


def gone_of(graph: Graph, closure: Closure, weight: str, cut) -> np.ndarray:
    return closure.removal(cut).get(Axis(ValueRef(weight), 0), np.zeros(0, int))


def reading(closure: Closure, group) -> str:
    """The weight that reads a group's channels."""
    return next(w for w in ("w.1", "w.2") if Axis(ValueRef(w), 0) in group.axes)


def test_without_inputs_a_width_loses_the_share_of_squared_weights_that_read_it(cut_chain) -> None:
    graph, closure, groups, cuts, scores = cut_chain
    found = width_losses(graph, closure, groups, cuts, scores, [])
    for group, own, lost in zip(groups, cuts, found, strict=True):
        weight = reading(closure, group)
        energy = (graph.value(ValueRef(weight)).constant.astype(np.float64) ** 2).sum(axis=1)
        expected = [energy[gone_of(graph, closure, weight, cut)].sum() / energy.sum() for cut in own]
        assert lost == pytest.approx(tuple(expected))


def test_a_width_loses_the_same_whatever_others_are_looked_at(cut_chain) -> None:
    graph, closure, groups, cuts, scores = cut_chain
    found = width_losses(graph, closure, groups, cuts, scores, [])
    ends = [(own[0], own[-1]) for own in cuts]
    assert width_losses(graph, closure, groups, ends, scores, []) == [(lost[0], lost[-1]) for lost in found]


def test_with_inputs_it_loses_what_the_outputs_lose_when_the_rest_is_fitted(cut_chain) -> None:
    """The last layer's outputs are the network's; against least squares over the channels that stay."""
    graph, closure, groups, cuts, scores = cut_chain
    feeds = inputs(160, 8)
    found = width_losses(graph, closure, groups, cuts, scores, feeds)
    number = next(n for n, g in enumerate(groups) if reading(closure, g) == "w.2")
    h = np.concatenate([evaluate(graph, f, keep=["matmul.1:0"])["matmul.1:0"] for f in feeds]).astype(np.float64)
    y = h @ graph.value(ValueRef("w.2")).constant.astype(np.float64)
    held = np.arange(len(h)) % 4 == 3
    for cut, lost in zip(cuts[number], found[number], strict=True):
        stays = np.setdiff1d(np.arange(h.shape[1]), gone_of(graph, closure, "w.2", cut))
        w = np.linalg.lstsq(h[~held][:, stays], y[~held], rcond=None)[0]
        expected = ((h[held][:, stays] @ w - y[held]) ** 2).sum() / (y[held] ** 2).sum()
        assert lost == pytest.approx(expected, rel=0.5, abs=2e-3)
    assert all(own[0] == 0 for own in found)


def test_channels_that_no_layer_reads_lose_their_scores() -> None:
    b = Builder(seed=2)
    y = b.apply("LSTM", b.input("x", 3, 1, 4), b.weight(1, 24, 4), b.weight(1, 24, 6), hidden_size=6)
    b.task("t", b.apply("ReduceSum", y, b.const(np.array([3])), keepdims=0))
    graph = b.done()
    closure = Closure(graph)
    (group,) = closure.groups
    scores = np.arange(1.0, 7.0)
    cuts = cuts_of(group, scores, 2, 0.0)
    for feeds in ([], [{"x": np.ones((3, 1, 4), np.float32)}] * 4):
        (found,) = width_losses(graph, closure, [group], [cuts], [scores], feeds)
        assert found == (0.0, 1 + 2, 1 + 2 + 3 + 4)


def test_depthwise_readers_lose_nothing_and_grouped_ones_by_their_weights() -> None:
    b = Builder(seed=2)
    h = b.conv(b.conv(b.input("x", 1, 4, 5, 5), 8, 1), 8, 3, group=8)
    b.task("t", b.conv(b.conv(h, 8, 3, group=2), 3, 1))
    graph = b.done()
    closure = Closure(graph)
    feeds = [{"x": x[None]} for x in np.random.default_rng(0).normal(size=(8, 4, 5, 5)).astype(np.float32)]
    groups = [g for g in closure.groups if any(a.owner == ValueRef("conv.1:0") for a in g.axes)]
    (group,) = groups
    scores = np.random.default_rng(0).random(len(group.atoms))
    cuts = [cuts_of(group, scores, 1, 0.1)]
    (found,) = width_losses(graph, closure, groups, cuts, [scores], feeds)
    data = graph.value(ValueRef("w.4")).constant.astype(np.float64) ** 2
    per_channel = np.concatenate([data[part].sum(axis=(0, 2, 3)) for part in (slice(0, 4), slice(4, 8))])
    axis = Axis(ValueRef("conv.1:0"), 1)
    expected = [per_channel[closure.removal(cut).get(axis, np.zeros(0, int))].sum() / data.sum() for cut in cuts[0]]
    assert found == pytest.approx(tuple(expected))


# ---------------------------------------------------------------------- the search
def test_a_choice_has_the_loss_and_cost_of_its_ways_and_widths() -> None:
    graph = chain(8, 12, 10, 4)
    closure = Closure(graph)
    rng = np.random.default_rng(3)
    steps = []
    for group in closure.groups:
        cuts = cuts_of(group, rng.random(len(group.atoms)), 2, 0.1)
        steps.append(Steps(cuts, (0.0, *np.cumsum(rng.random(len(cuts) - 1)).tolist())))
    meter = Meter(graph, "flops", axes={a: closure.size(a) for g in closure.groups for a in g.axes})
    first, *others = meter.refs
    space = Space(meter, [Layer((first,), (0.0, 0.5), (1.0, 0.25))], steps, 2.0)
    assert [layer.refs for layer in space.layers] == [(r,) for r in meter.refs], "others cost what they cost dense"
    total = sum(space.cost(n, space.original) for n in range(3))
    assert total == 2 * (8 * 12 + 12 * 10 + 10 * 4)
    found = choices(space, 0.5 * total)
    assert [(c.loss, c.cost) for c in found] == sorted((c.loss, c.cost) for c in found)
    for choice in found:
        ways = choice.ways
        assert ways[1:] == (0, 0)
        assert choice.cost == pytest.approx(
            sum(space.cost(n, choice.widths) * (0.25 if n == 0 and w else 1) for n, w in enumerate(ways))
        )
        widths_lost = sum(s.losses[k] for s, k in zip(steps, choice.widths, strict=True))
        assert choice.loss == pytest.approx(0.5 * (ways[0] == 1) + widths_lost)
    assert len({c.widths for c in found}) == len(found) and len(others) == 2


def test_groups_that_share_an_axis_do_not_empty_it_together() -> None:
    """Two halves of one group as groups of their own: each may go, not both."""
    graph = chain(4, 6, 3)
    closure = Closure(graph)
    (group,) = closure.groups
    halves = [Steps(((), half), (0.0, 1e-3)) for half in (group.atoms[:3], group.atoms[3:])]
    meter = Meter(graph, "flops", axes={a: closure.size(a) for a in group.axes})
    space = Space(meter, [], halves, 2.0)
    assert space.possible(0, (1, 0)) and space.possible(1, (0, 1))
    assert not space.possible(0, (1, 1)) and not space.possible(1, (1, 1))
    assert narrowest(space) == (1, 0)
    assert settle(space, 1e3, space.original) == (1, 0)
    assert settle(space, 1e-9, (1, 0)) == (0, 0)


def test_of_equal_widths_the_present_one_stays() -> None:
    graph = chain(4, 6, 3)
    closure = Closure(graph)
    (group,) = closure.groups
    meter = Meter(graph, "flops", axes={a: closure.size(a) for a in group.axes})
    space = Space(meter, [], [Steps(((), group.atoms[:2]), (0.0, 0.0))], 2.0)
    assert settle(space, 0.0, (0,)) == (0,) and settle(space, 0.0, (1,)) == (1,)


def test_two_choices_are_made_in_full_where_the_second_is_nearly_as_good() -> None:
    def made(*losses: float) -> list[tuple[int, ...]]:
        return _finalists([Choice((n,), (), loss, 0.0) for n, loss in enumerate(losses)])

    assert made(1.0, 1.5, 1.5) == [(0,), (1,)]
    assert made(1.0, 1.51) == [(0,)]
    assert made(0.0, 0.0) == [(0,), (1,)] and made() == []


# ---------------------------------------------------------------------- the pass
def test_options_of_widths_hold() -> None:
    graph = chain(16, 48, 40, 8, relu=True)
    after = Compress(flops=0.45, multiple=8, floor=0.5, among=())(graph)
    widths = [v.shape[1] for v in after.parameters()][:2]
    assert all(w % 8 == 0 for w in widths) and widths[0] >= 24 and widths[1] >= 20
    kept = Compress(flops=0.6, exclude=("matmul:0",), among=())(graph)
    assert kept.value(ValueRef("matmul:0")).shape[1] == 48
    told: list[str] = []
    Compress(flops=0.6, among=("block4x1",)).run(graph, Resources(say=told.append))
    assert any("of the widths tried can meet the budget" in t for t in told)


def test_what_changed_is_told_by_shape() -> None:
    graph = chain(16, 48, 40, 8, relu=True)
    outcome = Compress(flops=0.4, among=()).run(graph)
    notes = {n.where: n.reason for n in outcome.notes if "became" in n.reason}
    for value in graph.parameters():
        new = outcome.graph.value(value.ref).shape
        told = notes.get(f"'{value.ref}'")
        assert told == (None if new == value.shape else f"shape {list(value.shape)} became {list(new)}")
    assert len(notes) >= 2


def test_recurrent_weights_are_thinned_within_the_budget() -> None:
    """A node with two sparse weights: the search takes it as dense, the assignment after it does not."""
    b = Builder(seed=2)
    steps = b.apply("MatMul", b.input("x", 4, 1, 16), b.weight(16, 24))
    y = b.apply("LSTM", steps, b.weight(1, 96, 24), b.weight(1, 96, 24), hidden_size=24)
    flat = b.apply("Reshape", y, b.const(np.array([4, -1])))
    b.task("t", b.apply("MatMul", flat, b.weight(24, 16)))
    graph = b.done()
    limit = Limit("weight_bytes", 0.4 * Limit("weight_bytes", 0.0).cost(graph, Resources()))
    after = Compress(weight_bytes=0.4, dense=(), among=("block8x1",))(graph)
    assert 0.6 * limit.value < limit.cost(after, Resources()) <= limit.value


def test_fitting_needs_inputs_and_is_left_out_on_request() -> None:
    graph = chain(16, 24, 8)
    use = Resources(calibration={"x": np.concatenate([f["x"] for f in inputs(16, 16)])})
    with pytest.raises(ConfigError, match="update=obs needs calibration inputs"):
        Compress(flops=0.5, update="obs")(graph)
    plain = Compress(flops=0.5, update="none", among=())(graph, use)
    fitted = Compress(flops=0.5, update="auto", among=())(graph, use)

    def kept(made: Graph) -> bool:
        rows = {r.tobytes() for r in graph.value(ValueRef("w")).constant.T}
        return all(c.tobytes() in rows for c in np.ascontiguousarray(made.value(ValueRef("w")).constant.T))

    assert kept(plain) and kept(fitted)
    old = set(graph.value(ValueRef("w.1")).constant.ravel().tolist())
    assert set(plain.value(ValueRef("w.1")).constant.ravel().tolist()) <= old
    assert not set(fitted.value(ValueRef("w.1")).constant.ravel().tolist()) <= old
