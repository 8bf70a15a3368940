from __future__ import annotations

import numpy as np
import pytest

from compiler.ir.reference import difference, evaluate, random_feeds
from compiler.ir.types import splat_value
from compiler.passes.fold import FoldConstants
from compiler.passes.fold_batch_norm import FoldBatchNorm
from tests.graphs import Builder

ROUNDING = 1e-5


def same(before, after, limit=ROUNDING):
    feeds = random_feeds(before, np.random.default_rng(3))
    a, b = evaluate(before, feeds), evaluate(after, feeds)
    worst = max(difference(y, x) for x, y in zip(a.values(), b.values(), strict=True))
    assert worst <= limit, worst


def kinds(graph):
    return [n.op.name for n in graph.nodes()]


def batch_norm(net, x, channels):
    vectors = [net.rng.uniform(0.5, 2, channels), net.rng.normal(size=channels), net.rng.normal(size=channels)]
    variance = net.rng.uniform(0.3, 3, channels)
    operands = [net.const(v.astype(np.float32)) for v in (*vectors, variance)]
    return net.apply("BatchNormalization", x, *operands)


def vector(net, channels, axes=(1, -1, 1, 1)):
    shape = [channels if a == -1 else a for a in axes]
    return net.const(net.rng.uniform(0.5, 2, shape).astype(np.float32))


def test_constant_chain_becomes_one_parameter():
    net = Builder()
    x = net.input("x", 2, 3)
    a = net.apply("Exp", net.const(np.ones((2, 3), np.float32)))
    net.task("t", net.apply("Add", x, net.apply("Neg", a)))
    before = net.done()
    after = FoldConstants()(before)
    assert kinds(after) == ["Add"]
    assert len(after.parameters()) == 1
    same(before, after, 0.0)


def test_shape_of_a_static_tensor_is_constant():
    net = Builder()
    x = net.input("x", 2, 3, 4)
    net.task("t", net.apply("Add", net.apply("Cast", net.apply("Size", x), to=1), x))
    assert kinds(FoldConstants()(net.done())) == ["Add"]


def test_a_huge_constant_stays_one_element():
    net = Builder()
    x = net.input("x", 1)
    huge = net.apply("ConstantOfShape", net.const(np.array([1 << 20, 1 << 14], np.int64)))
    shifted = net.apply("Add", huge, net.const(np.full((1, 1), 2, np.float32)))
    turned = net.apply("Transpose", shifted, perm=(1, 0))
    net.task("t", net.apply("Add", x, turned))
    after = FoldConstants()(net.done())
    (parameter,) = (p for p in after.parameters())
    assert parameter.shape == (1 << 14, 1 << 20)
    assert splat_value(parameter.constant) == 2
    assert kinds(after) == ["Add"]


def test_results_beyond_the_limit_stay_and_are_reported():
    net = Builder()
    x = net.input("x", 64, 64)
    net.task(
        "t", net.apply("Add", x, net.apply("Exp", net.const(np.arange(4096, dtype=np.float32).reshape(64, 64))))
    )
    outcome = FoldConstants(limit=1000).run(net.done())
    assert kinds(outcome.graph) == ["Exp", "Add"]
    assert "16384 bytes" in str(outcome.refusals[0])


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_behind_a_convolution(group, bias):
    net = Builder()
    x = net.input("x", 1, 4, 6, 6)
    net.task("t", batch_norm(net, net.conv(x, 8, 3, bias=bias, group=group, pads=(1, 1, 1, 1)), 8))
    before = net.done()
    after = FoldBatchNorm()(before)
    assert kinds(after) == ["Conv"]
    same(before, after)


@pytest.mark.parametrize("group", [1, 2])
def test_batch_norm_behind_a_transposed_convolution(group):
    net = Builder()
    x = net.input("x", 1, 4, 5, 5)
    y = net.apply("ConvTranspose", x, net.weight(4, 6 // group, 3, 3), group=group, strides=(2, 2))
    net.task("t", batch_norm(net, y, 6))
    before = net.done()
    after = FoldBatchNorm()(before)
    assert kinds(after) == ["ConvTranspose"]
    same(before, after)


@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("addend", [None, (5,), (3, 1), (3, 5), ()])
def test_affine_chain_behind_gemm(flip, addend):
    net = Builder()
    x = net.input("x", 3, 4)
    operands = [x, net.weight(5, 4) if flip else net.weight(4, 5)]
    if addend is not None:
        operands.append(net.const(net.rng.normal(size=addend).astype(np.float32)))
    y = net.apply("Gemm", *operands, transB=flip, alpha=0.5, beta=2.0)
    y = net.apply("Mul", y, vector(net, 5, (-1,)))
    y = net.apply("Sub", net.const(np.float32(3)), y)
    net.task("t", net.apply("Div", y, vector(net, 5, (1, -1))))
    before = net.done()
    after = FoldBatchNorm()(before)
    assert kinds(after) == ["Gemm"]
    same(before, after)


@pytest.mark.parametrize("group", [1, 2])
def test_a_scale_in_front_of_what_has_no_place_for_a_shift(group):
    """A transposed convolution, whose taps overlap differently at the border, and a product without a bias."""
    for shift in (False, True):
        net = Builder()
        x = net.apply("Mul", net.input("x", 1, 4, 3, 3), vector(net, 4))
        moved = net.apply("Add", x, vector(net, 4)) if shift else x
        net.task("image", net.apply("ConvTranspose", moved, net.weight(4, 3, 2, 2), strides=(2, 2), group=group))
        rows = net.apply("Mul", net.input("y", 2, 5), vector(net, 5, (1, -1)))
        moved = net.apply("Add", rows, vector(net, 5, (1, -1))) if shift else rows
        net.task("rows", net.apply("MatMul", moved, net.weight(5, 3)))
        before = net.done()
        after = FoldBatchNorm()(before)
        assert ("Mul" in kinds(after)) == ("Add" in kinds(after)) == shift
        same(before, after)


def test_matmul_keeps_one_add():
    net = Builder()
    x = net.input("x", 2, 3, 4)
    y = net.apply("Add", net.apply("MatMul", x, net.weight(4, 5)), vector(net, 5, (-1,)))
    net.task("t", net.apply("Mul", y, vector(net, 5, (-1,))))
    before = net.done()
    after = FoldBatchNorm()(before)
    assert kinds(after) == ["MatMul", "Add"]
    same(before, after)


@pytest.mark.parametrize("pads,left", [((0, 0, 0, 0), []), ((1, 1, 1, 1), ["BatchNormalization"])])
def test_batch_norm_in_front_of_convolutions(pads, left):
    net = Builder()
    x = net.input("x", 1, 4, 6, 6)
    y = batch_norm(net, x, 4)
    net.task("a", net.conv(y, 6, 3, pads=pads, group=2))
    net.task("b", net.conv(y, 2, 3, pads=pads, bias=False))
    before = net.done()
    outcome = FoldBatchNorm().run(before)
    assert kinds(outcome.graph) == [*left, "Conv", "Conv"]
    assert ["pads with zeros" in r.reason for r in outcome.refusals] == [True] * len(left)
    same(before, outcome.graph)


def test_scale_and_channel_order_fold_into_a_padded_first_layer():
    net = Builder()
    x = net.input("x", 1, 3, 6, 6)
    y = net.apply("Gather", x, net.const(np.array([2, 0, 1], np.int64)), axis=1)
    y = net.apply("Mul", y, vector(net, 3))
    net.task("t", net.conv(y, 4, 3, pads=(1, 1, 1, 1)))
    before = net.done()
    after = FoldBatchNorm()(before)
    assert kinds(after) == ["Conv"]
    same(before, after)


@pytest.mark.parametrize("rows", [3, 5])
def test_an_order_of_columns_is_none_of_what_a_transposed_operand_sums_over(rows):
    net = Builder()
    x = net.input("x", rows, 3)
    y = net.apply("Gather", x, net.const(np.array([2, 0, 1], np.int64)), axis=1)
    net.task("t", net.apply("Gemm", y, net.weight(rows, 4), transA=1))
    before = net.done()
    after = FoldBatchNorm()(before)
    assert kinds(after) == ["Gather", "Gemm"]
    same(before, after)


def test_a_shared_intermediate_is_left_alone():
    net = Builder()
    x = net.input("x", 1, 3, 6, 6)
    y = net.conv(x, 4, 1)
    net.task("t", net.apply("Add", batch_norm(net, y, 4), y))
    outcome = FoldBatchNorm().run(net.done())
    assert kinds(outcome.graph) == ["Conv", "BatchNormalization", "Add"]
    assert "other readers" in outcome.refusals[0].reason


def test_a_shared_weight_is_not_changed_under_its_other_reader():
    net = Builder()
    x, w = net.input("x", 1, 3, 6, 6), net.weight(4, 3, 1, 1)
    net.task("a", batch_norm(net, net.apply("Conv", x, w), 4))
    net.task("b", net.apply("Conv", x, w))
    before = net.done()
    after = FoldBatchNorm()(before)
    assert kinds(after) == ["Conv", "Conv"]
    same(before, after)


def test_a_constant_that_varies_over_space_is_not_a_channel_scale():
    net = Builder()
    x = net.input("x", 1, 3, 4, 4)
    net.task("t", net.apply("Mul", net.conv(x, 3, 1), net.const(net.rng.normal(size=(4, 1)).astype(np.float32))))
    assert kinds(FoldBatchNorm()(net.done())) == ["Conv", "Mul"]


def test_a_broadcast_that_grows_the_tensor_is_not_folded():
    net = Builder()
    x = net.input("x", 1, 3, 1, 1)
    y = net.conv(x, 1, 1)
    net.task("t", net.apply("Mul", y, net.const(net.rng.normal(size=(1, 3, 1, 1)).astype(np.float32))))
    before = net.done()
    after = FoldBatchNorm()(before)
    assert kinds(after) == ["Conv", "Mul"]
    same(before, after)


def test_readers_of_lower_rank_are_no_channel_scale():
    net = Builder()
    x = net.input("x", 1, 4)
    y = net.apply("Squeeze", net.apply("Gemm", x, net.weight(4, 3)), net.const(np.array([0], np.int64)))
    net.task("t", net.apply("Mul", y, vector(net, 3, (-1,))), net.apply("ArgMax", y, axis=0, keepdims=0))
    before = net.done()
    same(before, FoldBatchNorm()(before))
    net = Builder()
    x = net.input("x", 1, 4)
    net.task("t", net.apply("ReduceSum", net.apply("Gemm", x, net.weight(4, 3)), keepdims=0))
    assert kinds(FoldBatchNorm()(net.done())) == ["Gemm", "ReduceSum"]
