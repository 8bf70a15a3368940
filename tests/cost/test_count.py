from __future__ import annotations

import numpy as np

from compiler.cost.count import Cost, totals
from tests.graphs import Builder


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
    assert cost == Cost(macs, 2 * macs + 144, values, 4 * values + 2 * 8, 4 * activations)


def test_a_splat_counts_as_one_number():
    net = Builder()
    x = net.input("x", 1)
    net.task("t", net.apply("Add", x, net.const(np.broadcast_to(np.float32(1), (1 << 20, 1 << 10)))))
    assert totals(net.done()).parameters == 1


def test_costs_add():
    assert Cost(1, 2, 3, 4, 5) + Cost(10, 20, 30, 40, 50) == Cost(11, 22, 33, 44, 55)
