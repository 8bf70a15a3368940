"""Gradients of the torch function against finite differences of the reference evaluator."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")

from compiler.ir.graph import Graph  # noqa: E402
from compiler.ir.reference import evaluate  # noqa: E402
from compiler.training.module import TorchNet  # noqa: E402
from tests.graphs import Builder  # noqa: E402

STEP = 1e-2


def network() -> Graph:
    """Fast functions and lowerings side by side; all smooth, so that differences say what gradients are."""
    b = Builder(seed=2)
    x = b.input("x", 1, 2, 5, 5)
    h = b.apply("Sigmoid", b.conv(x, 4, 3, pads=(1, 1, 1, 1)))
    h = b.apply("Concat", h, b.apply("Tanh", b.conv(h, 4, 3, pads=(1, 0, 1, 2), group=4)), axis=1)
    h = b.apply("AveragePool", h, kernel_shape=(3, 3), strides=(2, 2), pads=(0, 0, 1, 1))
    h = b.apply("Softmax", b.apply("Flatten", h), axis=1)
    b.task("t", b.apply("Gemm", h, b.weight(3, 32), b.weight(3), transB=1))
    return b.graph.freeze()


def test_gradients_are_those_of_the_reference():
    graph, rng = network(), np.random.default_rng(0)
    feed = {"x": rng.normal(size=(1, 2, 5, 5)).astype(np.float32)}
    output = graph.tasks["t"].outputs[0]
    direction = rng.normal(size=graph.value(output).shape).astype(np.float32)
    net = TorchNet(graph)
    found = net.run(net.feeds({"x": feed["x"][None]}))[output][0]
    (found * torch.from_numpy(direction)).sum().backward()

    def value(ref, change):
        edited = evaluate(graph, feed, edit=lambda r, a: a + change if r == ref else a)
        return float((edited[output.name] * direction).sum())

    assert len(net.weights) == 6
    for ref, weight in net.weights.items():
        change = rng.normal(size=weight.shape).astype(np.float32) * STEP
        expected = (value(ref, change) - value(ref, -change)) / 2
        got = float((weight.grad * torch.from_numpy(change)).sum())
        assert got == pytest.approx(expected, rel=2e-2, abs=1e-5), ref
