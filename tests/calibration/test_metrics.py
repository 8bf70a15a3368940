from __future__ import annotations

import numpy as np
import pytest

from compiler.calibration.metrics import METRICS, accuracy, classes, f1, mae, metric, rmse
from compiler.errors import ConfigError


def span(outputs, labels):
    return float(np.ptp(outputs) + len(labels))


span.lower_is_better = True


def test_decisions():
    assert classes(np.array([[0.1, 0.7, 0.2], [3, 1, 2]])).tolist() == [1, 0]
    assert classes(np.array([[0.2], [0.9]])).tolist() == [0, 1]  # probabilities
    assert classes(np.array([[0.2], [1.0000001]])).tolist() == [0, 1]  # the same, rounded up
    assert classes(np.array([[-2.0], [0.3]])).tolist() == [0, 1]  # logits
    assert classes(np.array([0.2, 0.6])).tolist() == [0, 1]


def test_accuracy_and_errors_by_hand():
    scores = np.array([[1, 0], [0, 1], [1, 0], [1, 0]], np.float32)
    assert accuracy(scores, np.array([0, 1, 1, 0])) == 0.75
    assert accuracy(scores, np.array([[0], [1], [1], [0]])) == 0.75
    assert mae(np.array([[1.0], [3.0]]), np.array([2.0, 5.0])) == 1.5
    assert rmse(np.array([[1.0], [3.0]]), np.array([2.0, 5.0])) == pytest.approx(np.sqrt(2.5))


def test_f1_of_two_classes_and_macro():
    two = np.eye(2)[[1, 1, 0, 0, 1]]
    assert f1(two, np.array([1, 0, 1, 0, 1])) == pytest.approx(2 * 2 / (3 + 3))
    three = np.eye(3)[[0, 1, 2, 2]]
    assert f1(three, np.array([0, 1, 1, 2])) == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


def test_f1_means_the_same_whichever_classes_occur():
    """Of three classes, two that occur are not a positive and a negative one."""
    labels = np.array([0, 0, 0, 1])
    assert f1(np.eye(3)[[0, 0, 1, 1]], labels) == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert f1(np.eye(2)[[0, 0, 1, 1]], labels) == pytest.approx(2 / 3)


@pytest.mark.parametrize("labels", [[1, 2, 3, 1], [0, -1, 0, 0], [0, 0.5, 1, 1], [0, np.nan, 1, 1]])
@pytest.mark.parametrize("function", [accuracy, f1])
def test_labels_that_are_no_class_are_refused(function, labels):
    """Nothing would be right, before a pass or after it: a gate would see no loss."""
    with pytest.raises(ValueError, match=r"is no class; the outputs tell of classes 0 to 1"):
        function(np.eye(2)[[0, 1, 0, 1]], np.array(labels))
    assert function(np.array([[0.2], [0.9]]), np.array([False, True])) == 1.0


@pytest.mark.parametrize("name", METRICS)
def test_the_right_answer_scores_best(name):
    one = metric(name)
    labels = np.array([0, 1, 1, 0])
    truth = np.eye(2)[labels] if name in ("accuracy", "f1") else labels[:, None].astype(float)
    best = one.function(truth, labels)
    worst = one.function(truth[::-1] * 0.3 + 5 * (1 - truth), labels)
    assert best == (0.0 if one.lower else 1.0)
    assert worst != best and (worst > best) == one.lower


def test_metrics_of_your_own():
    own = metric("tests.calibration.test_metrics:span")
    assert own.lower
    assert own.function(np.array([1.0, 4.0]), np.zeros(2)) == 5.0
    with pytest.raises(ConfigError, match="cannot be imported"):
        metric("tests.calibration.test_metrics:absent")
