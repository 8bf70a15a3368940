from __future__ import annotations

import numpy as np
import pytest

from compiler.cost.count import Cost, totals
from compiler.ir.encoding import BlockSparse, RegularBlock, Unstructured
from tests.graphs import Builder
from tests.sparse import sparse_weight


def test_a_small_network_by_hand():
    net = Builder()
    x = net.input("x", 1, 3, 8, 8)
    y = net.apply("Relu", net.conv(x, 4, 3))
    y = net.apply("Reshape", y, net.const(np.array([1, 144], np.int64)))
    net.task("t", net.apply("Gemm", y, net.weight(144, 5), net.weight(5, scale=1.0)))
    macs = 36 * 4 * 27 + 144 * 5
    values = 4 * 27 + 4 + 144 * 5 + 5
    activations = (192 + 144) + (144 + 144) + 0 + (144 + 5)
    cost = totals(net.done())
    assert cost == Cost(macs, 2 * macs + 144, values, 4 * values + 2 * 8, 4 * activations, macs)


def test_a_splat_counts_as_one_number():
    net = Builder()
    x = net.input("x", 1)
    net.task("t", net.apply("Add", x, net.const(np.broadcast_to(np.float32(1), (1 << 20, 1 << 10)))))
    assert totals(net.done()).parameters == 1


def test_costs_add():
    assert Cost(1, 2, 3, 4, 5, 6) + Cost(10, 20, 30, 40, 50, 60) == Cost(11, 22, 33, 44, 55, 66)


@pytest.mark.parametrize("encoding", [BlockSparse(block=(8, 1)), RegularBlock(sizes=(4,)), Unstructured()], ids=str)
def test_only_stored_weights_count(encoding):
    net = Builder()
    weight = sparse_weight(net.graph, encoding, (8, 8, 3, 3))
    net.task("t", net.apply("Conv", net.input("x", 1, 8, 6, 6), weight, pads=(1, 1, 1, 1), strides=(2, 2)))
    cost, kept = totals(net.done()), np.count_nonzero(net.graph.value(weight).constant)
    assert cost.macs == 9 * kept  # 3x3 positions
    assert cost.flops == 2 * cost.macs
    assert cost.macs_dense == 9 * 8 * 8 * 9
    assert cost.parameters == kept
    indices = encoding.index_bytes((8, 8, 3, 3), net.graph.value(weight).constant)
    assert cost.weight_bytes == 4 * kept + indices
    assert indices > 0


def test_stored_weights_of_a_recurrent_layer_count_once_per_step_and_sample():
    net = Builder()
    w = sparse_weight(net.graph, Unstructured(1), (1, 32, 6))
    r = sparse_weight(net.graph, RegularBlock(1, 2, (8,)), (1, 32, 8))
    y = net.apply("LSTM", net.input("x", 5, 2, 6), w, r, hidden_size=8)
    net.task("t", y)
    kept = sum(np.count_nonzero(net.graph.value(v).constant) for v in (w, r))
    cost = totals(net.done())
    assert cost.macs == 5 * 2 * kept
    assert cost.macs_dense == 5 * 2 * 32 * 14


def test_stored_elements_of_a_product_whose_left_factor_is_constant():
    net = Builder()
    left = sparse_weight(net.graph, BlockSparse(block=(4, 1)), (8, 6))
    net.task("t", net.apply("MatMul", left, net.input("x", 6, 7)))
    assert totals(net.done()).macs == 7 * np.count_nonzero(net.graph.value(left).constant)
