"""Comparison rules of `taskgraft verify`."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.check import _compare, close_calls, drawn_feeds, relative, verify_model
from compiler.errors import ConfigError
from compiler.ir.onnx_out import save
from compiler.ir.types import DType
from tests.graphs import Builder, half_network

LEAST = {"y": 1e-4}


@pytest.mark.parametrize(
    "found,expected,error",
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.1, 2.0], [1.0, 2.0], 0.05),
        ([1e-3, 0], [0, 0], 0.1),  # scales below the floor count as 1e-2
        ([np.nan, 1], [np.nan, 1], 0.0),
        ([np.nan, 1], [0, 1], np.inf),
        ([np.inf, 1], [-np.inf, 1], np.inf),
        ([[1.0]], [1.0], np.inf),
    ],
)
def test_error_relative_to_the_tensor(found, expected, error):
    assert relative(np.array(found), np.array(expected)) == pytest.approx(error)


def test_the_limit_grows_with_the_spread_of_the_judge():
    r = {"y": np.array([1.0], np.float32)}
    (row,) = _compare("compiled", {"y": np.array([1.0003], np.float32)}, r, {"y": 0.0}, {}, LEAST)
    assert not row.right
    (row,) = _compare("compiled", {"y": np.array([1.0003], np.float32)}, r, {"y": 1e-4}, {}, LEAST)
    assert row.right
    assert row.limit == pytest.approx(4e-4)
    (row,) = _compare("compiled", {"y": np.array([1.0])}, r, {"y": 0.0}, {}, LEAST)
    assert not row.right  # float64 instead of float32
    (row,) = _compare("compiled", {}, r, {"y": 0.0}, {}, LEAST)
    assert not row.right
    assert row.record()["error"] is None


def test_integer_outputs_are_equal_unless_the_decision_was_too_close():
    net = Builder()
    x = net.input("x", 3, 2)
    net.task("t", net.apply("Cast", net.apply("ArgMax", x, axis=1, keepdims=0), to=6))
    graph = net.done()
    (label,) = graph.tasks["t"].labels
    feeds = {"x": np.array([[1, 1.00001], [5, 2], [2, 5]], np.float32)}
    close = close_calls(graph, feeds)
    assert close[label].tolist() == [True, False, False]
    expected = {label: np.array([1, 0, 1], np.int32)}
    (row,) = _compare("imported", {label: np.array([0, 0, 1], np.int32)}, expected, {}, close, {})
    assert row.right
    assert "margin below" in row.note
    (row,) = _compare("imported", {label: np.array([1, 1, 1], np.int32)}, expected, {}, close, {})
    assert not row.right


def test_arg_min_looks_at_the_small_end():
    net = Builder()
    net.task("t", net.apply("ArgMin", net.input("x", 1, 3), axis=1, keepdims=1))
    graph = net.done()
    (label,) = graph.tasks["t"].labels
    assert close_calls(graph, {"x": np.array([[5, 5, 1]], np.float32)})[label].tolist() == [[False]]
    assert close_calls(graph, {"x": np.array([[5, 1, 1]], np.float32)})[label].tolist() == [[True]]


def close_of(op: str, *arrays, results: int = 1, dtype=DType.FLOAT32, **attrs) -> list[list[bool]]:
    """Where the last result of an operator is too close to call; the first array is an input."""
    net = Builder()
    first, *others = (np.asarray(a) for a in arrays)
    x = net.input("x", *first.shape, dtype=dtype)
    made = net.apply(op, net.apply("Relu", x), *map(net.const, others), results=results, **attrs)
    net.task("t", net.apply("Identity", made[-1] if results > 1 else made))
    (ties,) = close_calls(net.done(), {"x": first.astype(dtype.numpy)}).values()
    return ties.tolist()


def test_places_of_a_topk_are_close_to_those_before_and_behind():
    x = np.array([[1, 5, 3, 3.0001, 7]], np.float32)
    order = {"results": 2, "axis": 1, "sorted": 1}
    assert close_of("TopK", x, np.array([3]), largest=1, **order) == [[False, False, True]]
    assert close_of("TopK", x, np.array([4]), largest=1, **order) == [[False, False, True, True]]
    assert close_of("TopK", x, np.array([2]), largest=0, **order) == [[False, True]]
    assert close_of("TopK", x, np.array([1]), largest=1, **order) == [[False]]


@pytest.mark.parametrize("op", ["Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"])
def test_a_comparison_is_close_where_both_nearly_agree(op):
    x, y = np.array([[1, 2, 2.0001, 0]], np.float32), np.array([[3, 2.0001, 2, 0]], np.float32)
    assert close_of(op, x, y) == [[False, True, True, False]]  # the zeros of a Relu are equal for a reason
    half = close_of(op, np.array([[1, 2]], np.float16), np.array([[3, 2]], np.float16), dtype=DType.FLOAT16)
    assert half == [[False, True]]  # equal after rounding


def test_a_cut_float_is_close_to_where_another_whole_number_begins():
    x = np.array([[0.5, 1.9999, 2.00001, 3, 7.25]], np.float32)
    assert close_of("Cast", x, to=6) == [[False, True, True, False, False]]
    assert close_of("Cast", np.array([[0, 1e-5, 1]], np.float32), to=9) == [[False, True, False]]
    large = np.array([[1e6, 0.5, 0.01]], np.float32)
    assert close_of("Cast", large, to=6) == [[False, False, True]]  # not all of them, by a margin of 100
    for op, close in (("Floor", [False, True]), ("Ceil", [False, True]), ("Round", [True, False])):
        net = Builder()
        net.task("t", net.apply("Cast", net.apply(op, net.input("x", 2)), to=6))
        (ties,) = close_calls(net.done(), {"x": np.array([0.50001, 1.00001], np.float32)}).values()
        assert ties.tolist() == close


def test_float16_scores_tie_within_their_own_rounding():
    """1 and the next float16 are no decision; of float32 they are one."""
    found = []
    for dtype in (DType.FLOAT16, DType.FLOAT32):
        net = Builder()
        scores = net.apply("Relu", net.input("x", 1, 2, dtype=dtype))
        net.task("t", net.apply("ArgMax", scores, axis=1, keepdims=0))
        graph = net.done()
        feeds = {"x": np.array([[1, 1 + 2**-10]], dtype.numpy)}
        found += [ties.tolist() for ties in close_calls(graph, feeds).values()]
    assert found == [[True], [False]]


def test_near_ties_move_with_the_output_that_repeats_them():
    net = Builder()
    best = net.apply("ArgMax", net.input("x", 2, 3, 2), axis=2, keepdims=0)
    net.task("t", net.apply("Transpose", best, perm=(1, 0)))
    graph = net.done()
    x = np.tile(np.array([1, 5], np.float32), (2, 3, 1))
    x[0, 2] = 5
    (ties,) = close_calls(graph, {"x": x}).values()
    assert ties.tolist() == [[False, False], [False, False], [True, False]]


def test_float16_is_verified_within_its_own_rounding(tmp_path):
    path = tmp_path / "half.onnx"
    save(half_network(), path)
    found = verify_model(path)
    assert found.right
    limits = {c.output.split("/")[-1]: c.limit for c in found.comparisons}
    assert sorted(limits.values()) == [1e-4, 16 * 2**-10, 16 * 2**-10]
    assert max(c.error for c in found.comparisons) > 1e-4


def test_inputs_are_seeded_and_ranges_hold():
    net = Builder()
    net.task("t", net.apply("Add", net.input("x", 1000), net.input("y", 1000)))
    net.task("u", net.apply("Cast", net.input("i", 1000, dtype=DType.INT64), to=1))
    graph = net.done()
    first = drawn_feeds(graph, {"x": (0, 255), "i": (3, 9)}, 1)
    again = drawn_feeds(graph, {"x": (0, 255), "i": (3, 9)}, 1)
    assert all(first[n].tobytes() == again[n].tobytes() for n in first)
    assert 0 <= first["x"].min() < 5 < 250 < first["x"].max() <= 255
    assert abs(first["y"].std() - 1) < 0.1
    assert set(first["i"].tolist()) == set(range(3, 9))
    with pytest.raises(ConfigError, match="no such input"):
        drawn_feeds(graph, {"z": (0, 1)}, 1)
