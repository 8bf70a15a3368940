from __future__ import annotations

import numpy as np
import pytest

from compiler.calibration.engine import Engine
from compiler.errors import UnsupportedModelError
from compiler.ir.reference import difference, evaluate
from tests.graphs import Builder


def test_a_graph_in_onnxruntime_equals_the_reference():
    net = Builder()
    x = net.input("x", 1, 3, 6, 6)
    net.task("t", net.apply("Relu", net.conv(x, 4, 3)), net.apply("Sigmoid", x))
    graph = net.done()
    feeds = {"x": net.rng.normal(size=(1, 3, 6, 6)).astype(np.float32)}
    found, expected = Engine.of(graph).run(feeds), evaluate(graph, feeds)
    assert Engine.of(graph).inputs == ("x",)
    assert all(difference(found[n], expected[n]) < 1e-5 for n in expected)


def test_what_it_cannot_open_or_run_is_a_model_error():
    with pytest.raises(UnsupportedModelError, match="cannot open"):
        Engine(b"no model")
    net = Builder()
    net.task("t", net.apply("Relu", net.input("x", 2)))
    with pytest.raises(UnsupportedModelError, match="cannot run"):
        Engine.of(net.done()).run({"x": np.zeros((3, 3), np.float32)})
