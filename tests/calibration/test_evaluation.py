from __future__ import annotations

import numpy as np
import pytest

from compiler.calibration.evaluation import collect, compare, less
from compiler.calibration.metrics import Metric, metric
from compiler.errors import ConfigError
from compiler.gates import NO_NUMBER, check_tasks
from compiler.settings import Gates

SCORES = np.array([[2, 1], [0, 3], [1, 0], [0, 1]], np.float32)


def rows(change=0.0, labels=(0, 1, 0, 0), name="accuracy"):
    moved = SCORES + np.array([[change, 0]], np.float32)
    before, after = {"t": (SCORES,)}, {"t": (moved,)}
    return compare(before, after, None, {"t": np.array(labels)}, {"t": metric(name)})


def test_outputs_of_all_feeds_in_order():
    found = collect(lambda f: {"t": (f["x"], f["x"].sum())}, [{"x": np.array([i, i])} for i in range(3)])
    assert found["t"][0].tolist() == [0, 0, 1, 1, 2, 2]
    assert found["t"][1].tolist() == [0, 2, 4]


def test_drift_flips_and_metric():
    (row,) = rows(1.5)
    assert row.original == 0.75
    assert row.graph.metric == 1.0  # the shift mends the wrong decision
    assert row.graph.drift == 0.5
    assert row.graph.flipped == 0.25
    assert row.worse_by(row.graph) == -0.25
    assert row.final is row.graph
    assert row.record()["bundle"] is None


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_outputs_that_are_no_numbers_have_no_drift_and_fail_its_gate(lost):
    nothing, some = np.full_like(SCORES, lost), np.where(SCORES > 2, lost, SCORES)
    for original, verdict in ((nothing, "failed"), (some, "passed")):
        (row,) = compare({"t": (SCORES, original)}, {"t": (SCORES, original)}, None, {}, {})
        (gate,) = check_tasks(Gates(max_output_drift={"t": 0.1}), [row])
        assert gate.verdict == verdict and np.isnan(row.graph.drift) == (verdict == "failed")
    (row,) = compare({"t": (nothing,)}, {"t": (SCORES,)}, None, {}, {})
    assert row.graph.drift == np.inf


def test_a_compiled_library_is_what_gates_look_at():
    broken = SCORES[::-1].copy()
    (row,) = compare({"t": (SCORES,)}, {"t": (SCORES,)}, {"t": (broken,)}, {}, {})
    gates = list(check_tasks(Gates(max_output_drift={"t": 0.1}, max_accuracy_drop={"t": 0.1}), [row]))
    assert [(g.name, g.verdict) for g in gates] == [
        ("max_accuracy_drop", "skipped"),
        ("max_output_drift", "failed"),
    ]
    assert row.graph.drift == 0.0
    assert row.metric_name == ""


@pytest.mark.parametrize("limit,verdict", [(0.0, "passed"), (-0.1, "failed")])
def test_a_limit_is_inclusive(limit, verdict):
    (gate,) = check_tasks(Gates(max_accuracy_drop={"t": limit}), rows())
    assert (gate.value, gate.verdict) == (0.0, verdict)


@pytest.mark.parametrize("by", [1.0, np.nan])
def test_a_metric_that_is_no_number_fails_its_gate_with_a_reason(by):
    label = np.nan if by == 1 else 2.0
    found = rows(by, labels=((2, label), (0, 3), (1, 0), (0, 1)), name="mae")
    (gate,) = check_tasks(Gates(max_accuracy_drop={"t": 10.0}), found)
    assert (gate.verdict, str(gate)) == ("failed", f"max_accuracy_drop t: failed, {NO_NUMBER}")


def test_where_less_is_better_more_is_worse():
    (row,) = rows(1.0, labels=((2, 1), (0, 3), (1, 0), (0, 1)), name="mae")
    assert row.original == 0.0
    assert row.worse_by(row.graph) == 0.5


def test_not_a_number_fails_a_gate():
    (row,) = compare({"t": (SCORES,)}, {"t": (SCORES * np.float32("nan"),)}, None, {}, {})
    (gate,) = check_tasks(Gates(max_output_drift={"t": 1e9}), [row])
    assert gate.verdict == "failed"


@pytest.mark.parametrize(
    "labels,message",
    [
        ({}, "lacks labels 't'"),
        ({"t": np.zeros(2)}, "2 labels 't' for 4 samples"),
        ({"t": np.zeros((4, 3))}, "does not fit"),
    ],
)
def test_labels_that_do_not_fit(labels, message):
    with pytest.raises(ConfigError, match=message):
        compare({"t": (SCORES,)}, {"t": (SCORES,)}, None, labels, {"t": metric("accuracy")})


def test_labels_are_numbers_unless_a_metric_of_ones_own_takes_others():
    words = {"t": np.array(["cat", "dog", "cat", "cat"])}
    with pytest.raises(ConfigError, match="the labels 't' are <U3; metrics compare numbers"):
        compare({"t": (SCORES,)}, {"t": (SCORES,)}, None, words, {"t": metric("accuracy")})
    own = Metric(
        "own", lambda outputs, labels: float(np.mean(np.array(["cat", "dog"])[outputs.argmax(1)] == labels))
    )
    (row,) = compare({"t": (SCORES,)}, {"t": (SCORES,)}, None, words, {"t": own})
    assert row.original == 0.75


def test_a_drop_of_just_the_limit_keeps_the_gate() -> None:
    labels = np.zeros((300, 1), np.int64)
    right = {"t": (np.tile(np.array([[[1.0, 0.0]]], np.float32), (300, 1, 1)),)}
    six = right["t"][0].copy()
    six[:6] = [[0.0, 1.0]]
    rows = compare(right, {"t": (six,)}, None, {"t": labels}, {"t": metric("accuracy")})
    (gate,) = check_tasks(Gates(max_accuracy_drop={"t": 0.02}), rows)
    assert 1 - 294 / 300 > 0.02 and gate.verdict == "passed"
    (gate,) = check_tasks(Gates(max_accuracy_drop={"t": 0.0199}), rows)
    assert gate.verdict == "failed"


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [(1.0, 0.98, 0.02), (1.0, 0.999999, 1e-6), (98.0, 96.7, 1.3), (3e-20, 1e-20, 2e-20), (0.0, 0.0, 0.0)],
)
def test_a_difference_has_the_digits_of_both(first: float, second: float, found: float) -> None:
    assert less(first, second) == pytest.approx(found, rel=1e-14, abs=0) and less(first, second) <= found
    assert less(second, first) == -less(first, second)


def test_a_difference_of_what_is_no_number_is_none() -> None:
    assert np.isnan(less(float("nan"), 1.0)) and less(float("inf"), 1.0) == float("inf")
