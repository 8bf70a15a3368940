"""Constant channels go, exactly; the naive rule (delete them with their bias) fails the same checks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from compiler.errors import VerifyError
from compiler.ir.graph import Graph
from compiler.ir.reference import difference, evaluate, random_feeds
from compiler.ir.ties import Closure
from compiler.ir.types import Axis, DType, ValueRef
from compiler.ir.verify import verify
from compiler.passes import dead_channels
from compiler.passes.constants import known_elements
from compiler.passes.dead_channels import DeadChannels
from compiler.passes.prune.surgery import remove
from tests.graphs import Builder


def silence(b: Builder, weight: ValueRef, rows: tuple[int, ...]) -> None:
    """Zero some output rows of a weight."""
    data = b.graph.value(weight).constant.copy()
    data[list(rows)] = 0
    b.graph.update(weight, data=data)


def dead_conv(b: Builder, x: ValueRef, out: int, dead: tuple[int, ...], k: int = 1) -> ValueRef:
    """A convolution whose `dead` output channels are their (positive) bias."""
    weight = b.weight(out, b.graph.value(x).shape[1], k, k)
    silence(b, weight, dead)
    bias = b.const((np.abs(b.rng.normal(size=out)) + 0.3).astype(np.float32))
    return b.apply("Conv", x, weight, bias, pads=(k // 2,) * 4)  # type: ignore[no-any-return]


def drift(before: Graph, after: Graph) -> float:
    feeds = random_feeds(before, np.random.default_rng(5))
    expected, found = evaluate(before, feeds), evaluate(after, feeds)
    pairs = zip(before.outputs, after.outputs, strict=True)
    return max(difference(found[n.ref.name], expected[o.ref.name]) for o, n in pairs)


def channels(graph: Graph, name: str = "conv:0") -> int:
    return graph.value(ValueRef(name)).shape[1]


def reader(k: int, stride: int, dilation: int, pads: tuple[int, ...], bias: bool, dead: tuple[int, ...]) -> Graph:
    b = Builder(seed=3)
    h = b.apply("Relu", dead_conv(b, b.input("x", 1, 3, 9, 8), 6, dead, 3))
    y = b.conv(h, 5, k, bias=bias, strides=(stride,) * 2, dilations=(dilation,) * 2, pads=pads)
    b.task("t", b.apply("Relu", y))
    return b.done()


PADS = ((0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 2, 0))


@pytest.mark.parametrize(("k", "stride", "dilation"), list(itertools.product((1, 3, 5), (1, 2), (1, 2))))
def test_exact_at_every_border(k: int, stride: int, dilation: int) -> None:
    for pads, bias in itertools.product(PADS, (True, False)):
        graph = reader(k, stride, dilation, pads, bias, (1, 4))
        after = DeadChannels()(graph)
        assert drift(graph, after) < 1e-5
        assert channels(after) in ((4, 5) if any(pads) else (4,))


def test_naive_deletion_is_wrong() -> None:
    """Deleting dead channels with their bias, as size checks allow, changes the network."""
    for pads in PADS:
        graph = reader(3, 1, 1, pads, True, (1, 4))
        closure = Closure(graph)
        atoms = [closure.atom_of(Axis(ValueRef("conv:0"), 1), c) for c in (1, 4)]
        after = graph.copy()
        remove(after, closure.removal([a for a in atoms if a is not None]))
        verify(after)
        assert drift(graph, after) > 1e-2


def test_unpadded_reader_takes_a_bias() -> None:
    after = DeadChannels()(reader(3, 1, 1, (0, 0, 0, 0), False, (1, 4)))
    assert channels(after) == 4
    conv = next(s for s in after.sites() if s.results[0].ref.name == "conv.1:0")
    assert len(conv.operands) == 3 and conv.operands[2].shape == (5,)


def test_padded_reader_keeps_one_stand_in() -> None:
    after = DeadChannels()(reader(3, 1, 1, (1, 1, 1, 1), True, (0, 1, 4)))
    assert channels(after) == 4
    assert [n.op.name for n in after.nodes()] == ["Conv", "Relu", "Conv", "Relu"]
    assert channels(DeadChannels()(after)) == 4, "running it again changes nothing"


@pytest.mark.parametrize("biases", ["same", "others"])
def test_readers_that_share_their_weights_hand_them_over_once(biases: str) -> None:
    """Two tasks with the same weights; with biases of their own the constants differ, and nothing fits both."""
    b = Builder(seed=3)
    first, second = b.weight(6, 3, 3, 3), b.weight(5, 6, 3, 3)
    silence(b, first, (0, 1, 4))
    own = [b.const((np.abs(b.rng.normal(size=6)) + 0.3).astype(np.float32)) for _ in range(2)]
    for number, task in enumerate("ab"):
        bias = own[number if biases == "others" else 0]
        h = b.apply("Relu", b.apply("Conv", b.input(f"x{task}", 1, 3, 9, 8), first, bias, pads=(1,) * 4))
        b.task(task, b.apply("Conv", h, second, pads=(1,) * 4))
    graph = b.done()
    after = DeadChannels()(graph)
    assert drift(graph, after) < 1e-5
    assert biases == "others" or channels(after) == 4


def test_a_single_padded_channel_stays_when_its_map_is_larger() -> None:
    outcome = DeadChannels().run(reader(3, 1, 1, (1, 1, 1, 1), True, (2,)))
    assert channels(outcome.graph) == 6
    assert "storing that takes more (360) than it frees" in str(outcome.refusals[0])


def test_a_map_where_it_is_smaller() -> None:
    b = Builder(seed=1)
    h = b.apply("Sigmoid", dead_conv(b, b.input("x", 1, 64, 4, 4), 6, (2,), 3))
    b.task("t", b.conv(h, 2, 3, pads=(1, 1, 1, 1)))
    graph = b.done()
    after = DeadChannels()(graph)
    assert channels(after) == 5 and after.nodes()[-1].op.name == "Add"
    assert drift(graph, after) < 1e-5
    assert [t.outputs for t in after.tasks.values()] == [t.outputs for t in graph.tasks.values()]


def test_zero_needs_no_compensation() -> None:
    b = Builder(seed=1)
    x = b.input("x", 1, 3, 8, 8)
    weight = b.weight(6, 3, 3, 3)
    silence(b, weight, (0, 3))
    h = b.apply("Relu", b.apply("Conv", x, weight, b.const(-np.ones(6, np.float32)), pads=(1, 1, 1, 1)))
    b.task("t", b.conv(h, 4, 3, pads=(1, 1, 1, 1)))
    graph = b.done()
    after = DeadChannels()(graph)
    assert channels(after) == 4 and len(after.nodes()) == 3 and drift(graph, after) < 1e-5


def test_constants_go_through_everything_up_to_the_classifier() -> None:
    """BatchNormalization, depthwise, pooling that counts padding, concatenation, Flatten."""
    b = Builder(seed=2)
    h = dead_conv(b, b.input("x", 1, 3, 8, 8), 6, (1, 2), 3)
    h = b.apply(
        "BatchNormalization", h, *(b.const(b.rng.uniform(0.5, 1.5, 6).astype(np.float32)) for _ in range(4))
    )
    h = b.apply("HardSwish", h)
    left = b.conv(h, 6, 3, group=6, pads=(1, 1, 1, 1))
    right = b.apply("AveragePool", h, kernel_shape=(3, 3), pads=(1, 1, 1, 1), count_include_pad=1)
    pooled = b.apply("MaxPool", b.apply("Concat", left, right, axis=1), kernel_shape=(2, 2), strides=(2, 2))
    flat = b.apply("Flatten", pooled)
    b.task("t", b.apply("Gemm", flat, b.weight(10, 12 * 16), b.weight(10), transB=1))
    graph = b.done()
    after = DeadChannels()(graph)
    assert channels(after) == 4 and after.value(ValueRef("flatten:0")).shape == (1, 8 * 16)
    assert drift(graph, after) < 1e-5


def test_a_live_partner_keeps_the_channel() -> None:
    b = Builder(seed=2)
    x = b.apply("Relu", b.conv(b.input("x", 1, 3, 8, 8), 6, 3, pads=(1, 1, 1, 1)))
    y = b.apply("Add", x, dead_conv(b, x, 6, (0, 5)))
    b.task("t", b.conv(y, 4, 3, pads=(1, 1, 1, 1)))
    graph = b.done()
    after = DeadChannels()(graph)
    assert channels(after, "add:0") == 6 and drift(graph, after) < 1e-5


def test_a_dead_branch_becomes_a_constant_and_a_zero_branch_vanishes() -> None:
    for level, nodes in ((0.7, ["Conv", "Relu", "Add", "Conv"]), (0.0, ["Conv", "Relu", "Conv"])):
        b = Builder(seed=2)
        x = b.apply("Relu", b.conv(b.input("x", 1, 3, 8, 8), 6, 3, pads=(1, 1, 1, 1)))
        zero = b.const(np.zeros((6, 6, 1, 1), np.float32))
        branch = b.apply("Conv", b.apply("Relu", b.conv(x, 6, 1)), zero, b.const(np.full(6, level, np.float32)))
        b.task("t", b.conv(b.apply("Add", x, branch), 4, 3, pads=(1, 1, 1, 1)))
        graph = b.done()
        after = DeadChannels()(graph)
        assert [n.op.name for n in after.nodes()] == nodes
        assert drift(graph, after) < 1e-5


def test_dead_in_both_partners_goes() -> None:
    b = Builder(seed=2)
    x = b.input("x", 1, 3, 8, 8)
    y = b.apply("Add", dead_conv(b, x, 6, (0, 5)), dead_conv(b, x, 6, (3, 5)))
    b.task("t", b.conv(b.apply("Relu", y), 4, 1))
    graph = b.done()
    after = DeadChannels()(graph)
    assert channels(after, "add:0") == 5 and drift(graph, after) < 1e-5


def test_a_reader_that_cannot_take_a_constant_is_named() -> None:
    b = Builder(seed=2)
    h = b.apply("Relu", dead_conv(b, b.input("x", 1, 3, 4, 4), 6, (1,)))
    rows = b.apply("Reshape", h, b.const(np.array([6, 16])))
    b.task("t", b.apply("MatMul", b.apply("Transpose", rows, perm=(1, 0)), rows))
    outcome = DeadChannels().run(b.done())
    assert channels(outcome.graph) == 6
    assert "MatMul 'matmul' cannot take up its constant" in str(outcome.refusals[0])


def test_a_zero_factor_is_known() -> None:
    b = Builder()
    gate = b.const(np.array([1, 0, 2], np.float32).reshape(3, 1, 1))
    y = b.apply("Mul", b.input("x", 1, 3, 2, 2), gate)
    b.task("t", b.apply("Add", y, b.const(np.ones((1, 1, 1, 1), np.float32))))
    known = known_elements(b.done())
    np.testing.assert_array_equal(known[ValueRef("add:0")].known[0, :, 0, 0], [False, True, False])
    assert known[ValueRef("add:0")].data[0, 1, 0, 0] == 1


def test_a_forgotten_constant_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_channels, "_add", lambda graph, site, part: None)
    with pytest.raises(VerifyError, match=r"dead-channels: 'relu\.1:0' differs by"):
        DeadChannels()(reader(3, 1, 1, (0, 0, 0, 0), True, (1, 4)))


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, -1.0), (-1.0, 1.0), (0.5, -0.5), (0.0, 1.0), (1.0, 0.0)])
def test_factors_of_a_product_hide_nothing(alpha: float, beta: float) -> None:
    """With factors of opposite signs, what depends on the input through the product and through the sum is both."""
    b = Builder(seed=2)
    weight = b.const(np.array([[1, 0], [0, 0]], np.float32))
    y = b.apply("Gemm", b.input("x", 1, 2), weight, b.input("c", 1, 1), alpha=alpha, beta=beta)
    b.task("t", b.apply("MatMul", y, b.weight(2, 3)))
    before = b.done()
    assert not known_elements(before)[y].known.any()
    assert drift(before, DeadChannels()(before)) < 1e-5


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 3), (2, 1), (2, 3)])
def test_a_constant_goes_into_any_form_of_addend(shape: tuple[int, ...]) -> None:
    b = Builder(seed=4)
    weight = b.weight(4, 6)
    data = b.graph.value(weight).constant.copy()
    data[:, 2] = 0
    b.graph.update(weight, data=data)
    h = b.apply("Gemm", b.input("x", 2, 4), weight, b.weight(6))
    b.task("t", b.apply("Gemm", h, b.weight(6, 3), b.const(np.full(shape, 0.5, np.float32)), beta=0.5))
    before = b.done()
    after = DeadChannels()(before)
    assert after.value(h).shape == (2, 5)
    assert drift(before, after) < 1e-5


@pytest.mark.parametrize(("lead", "columns"), [((), ()), ((), (3,)), ((5,), ()), ((2, 5), ()), ((2, 5), (3,))])
def test_products_of_vectors_and_stacks(lead: tuple[int, ...], columns: tuple[int, ...]) -> None:
    """A constant is taken up by a product, or it stays where the product is one number."""
    b = Builder(seed=6)
    data = b.rng.normal(size=(4, 6)).astype(np.float32)
    data[:, 2] = 0
    h = b.apply("Add", b.apply("MatMul", b.input("x", *lead, 4), b.const(data)), b.weight(6))
    b.task("t", b.apply("MatMul", h, b.weight(6, *columns)))
    before = b.done()
    outcome = DeadChannels().run(before)
    assert drift(before, outcome.graph) < 1e-5
    scalar = not lead and not columns
    assert outcome.graph.value(h).shape == (*lead, 6 if scalar else 5)
    assert any("cannot take up its constant" in r.reason for r in outcome.refusals) == scalar


@pytest.mark.parametrize("lead", [(40,), (2, 5)])
def test_a_constant_that_differs_from_row_to_row_is_stored_for_every_row(lead: tuple[int, ...]) -> None:
    """What is added along an axis in front of the channels, such as an embedding of positions."""
    b = Builder(seed=6)
    data = b.rng.normal(size=(4, 60)).astype(np.float32)
    data[:, 2:] = 0
    h = b.apply(
        "Add",
        b.apply("MatMul", b.input("x", *lead, 4), b.const(data)),
        b.weight(lead[0], *(1,) * len(lead[1:]), 60),
    )
    b.task("t", b.apply("MatMul", h, b.weight(60, 1)))
    before = b.done()
    after = DeadChannels()(before)
    assert after.value(h).shape[-1] == 2
    assert drift(before, after) < 1e-5


def test_a_constant_that_differs_from_sample_to_sample_is_stored_for_every_sample() -> None:
    b = Builder(seed=6)
    h = b.apply("Add", dead_conv(b, b.input("x", 2, 3, 2, 2), 8, tuple(range(1, 7))), b.weight(2, 8, 1, 1))
    b.task("t", b.conv(h, 1, 1))
    before = b.done()
    after = DeadChannels()(before)
    assert after.value(h).shape[1] == 2
    assert drift(before, after) < 1e-5


def test_a_bound_with_more_axes_than_its_operand() -> None:
    b = Builder(seed=6)
    h = b.apply(
        "Clip", dead_conv(b, b.input("x", 1, 3, 2, 2), 4, (1,)), b.const(np.full((1,) * 5, 0.1, np.float32))
    )
    b.task("t", b.conv(h, 2, 1))
    before = b.done()
    after = DeadChannels()(before)
    assert after.value(h).shape[1] == 3
    assert drift(before, after) < 1e-5


def test_a_constant_in_front_of_a_computed_slope_keeps_its_axes() -> None:
    b = Builder(seed=6)
    x = b.input("x", 1, 4)
    zero = b.const(np.zeros((4, 4), np.float32))
    constant = b.apply("Gemm", x, zero, b.const(np.full(4, -1, np.float32)))
    b.task("t", b.apply("MatMul", b.apply("PRelu", constant, x), b.weight(4, 2)))
    before = b.done()
    assert drift(before, DeadChannels()(before)) < 1e-5


def test_a_constant_that_becomes_another_type_keeps_its_axes() -> None:
    b = Builder(seed=6)
    x = b.input("x", 4, 4)
    constant = b.apply("Mul", x, b.const(np.zeros((), np.float32)))
    b.task("t", b.apply("Add", b.apply("CastLike", constant, x), x))
    before = b.done()
    assert drift(before, DeadChannels()(before)) < 1e-5


@pytest.mark.parametrize("alike", [False, True])
def test_rows_that_are_constant_go(alike: bool) -> None:
    """What a product makes of them goes with them; only who adds rows up misses anything."""
    b = Builder(seed=6)
    rows = b.weight(1, 5, 60)
    if alike:
        b.graph.update(rows, data=np.arange(1, 301, dtype=np.float32).reshape(1, 5, 60) // 60)
    masked = b.apply("Mul", b.input("x", 1, 1, 60), b.const(np.array([0, 0, 1, 2, 3], np.float32).reshape(1, 5, 1)))
    weight = b.const(np.abs(b.rng.normal(size=(60, 2))).astype(np.float32))
    h = b.apply("Relu", b.apply("MatMul", b.apply("Add", masked, rows), weight))
    b.task("t", b.apply("MatMul", b.apply("Transpose", h, perm=(0, 2, 1)), b.weight(5, 3)))
    before = b.done()
    after = DeadChannels()(before)
    assert after.value(h).shape == (1, 3, 2)
    assert drift(before, after) < 1e-5


def test_the_place_an_unknown_index_sets_is_unknown() -> None:
    """An index that is known says nothing about the row of another one."""
    b = Builder(seed=6)
    index = b.apply("Mul", b.input("i", 2, dtype=DType.INT64), b.const(np.array([0, 1])))
    rows = b.apply("OneHot", index, b.const(np.array(3)), b.const(np.array([0, 1], np.float32)), axis=-1)
    last = b.apply("Slice", rows, *(b.const(np.array([n])) for n in (2, 3, 1)))
    b.task("t", b.apply("Add", last, b.input("x", 2, 1)))
    before = b.done()
    assert not known_elements(before)[rows].known[1].any()
    feeds = {"i": np.array([2, 2]), "x": np.zeros((2, 1), np.float32)}
    found = evaluate(DeadChannels()(before), feeds)
    np.testing.assert_array_equal(next(iter(found.values())), [[0], [1]])
