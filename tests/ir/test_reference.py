"""The reference evaluator against onnxruntime, and what it says about wrong feeds."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from benchmarks.networks import NETWORKS
from compiler.errors import ConfigError
from compiler.ir.graph import Graph
from compiler.ir.onnx_in import load
from compiler.ir.reference import difference, evaluate, random_feeds
from tests.graphs import Builder


@pytest.mark.parametrize("name", ["resnet-bn", "shufflenet", "lstm", "transformer"])
def test_equals_onnxruntime(name: str) -> None:
    model = NETWORKS[name]()
    graph = load(model)
    feeds = random_feeds(graph, np.random.default_rng(1))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, feeds)
    (found,) = evaluate(graph, feeds).values()
    assert difference(found, expected) < 1e-5


def two_tasks() -> Graph:
    b = Builder()
    x = b.input("x", 1, 4)
    shared = b.apply("Relu", x)
    b.task("a", b.apply("Neg", shared))
    b.task("b", b.apply("Exp", shared))
    return b.done()


def test_only_the_asked_tasks_and_kept_values() -> None:
    feeds = {"x": np.array([[-1, 0, 1, 2]], np.float32)}
    found = evaluate(two_tasks(), feeds, tasks=["a"], keep=["relu:0"])
    assert list(found) == ["neg:0", "relu:0"]
    np.testing.assert_array_equal(found["relu:0"], [[0, 0, 1, 2]])


def test_edit_acts_before_readers() -> None:
    feeds = {"x": np.ones((1, 4), np.float32)}
    found = evaluate(two_tasks(), feeds, edit=lambda ref, a: a * 0 if ref.name == "relu:0" else a)
    np.testing.assert_array_equal(found["exp:0"], np.ones((1, 4)))


def test_all_wrong_feeds_are_named() -> None:
    with pytest.raises(ConfigError, match=r"'x' has shape \(2,\), expected \(1, 4\); 'y' is not an input"):
        evaluate(two_tasks(), {"x": np.zeros(2), "y": np.zeros(1)})
    with pytest.raises(ConfigError, match="'x' is missing"):
        evaluate(two_tasks(), {})
    with pytest.raises(ConfigError, match="no task 'c', no value 'v'; its tasks are a, b"):
        evaluate(two_tasks(), {"x": np.zeros((1, 4), np.float32)}, tasks=["c"], keep=["v"])


def test_difference_is_relative_to_the_tensor() -> None:
    assert difference(np.array([10.0, 0.1]), np.array([10.0, 0.0])) == pytest.approx(0.01)
    assert difference(np.array([np.nan, 1]), np.array([np.nan, 1])) == 0
    assert difference(np.array([np.nan, 1]), np.array([0.0, 1])) == float("inf")
    assert difference(np.zeros(2), np.zeros(3)) == float("inf")
