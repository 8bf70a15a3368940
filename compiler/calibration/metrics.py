"""Metrics of one task from stacked outputs and labels."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from compiler.calibration.data import named_function

Function = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True, slots=True)
class Metric:
    """`function(outputs [samples, ...], labels [samples, ...])`; `lower` says that less is better, `most` how far
    two of its values can lie apart.
    """

    name: str
    function: Function
    lower: bool = False
    most: float = math.inf


ROUNDING = 1e-3
"""How far beyond 0 and 1 a probability may lie: a compiled sigmoid that ends at 1.0000001 is one still."""


def classes(outputs: np.ndarray) -> np.ndarray:
    """Class decisions [samples, ...]: the largest score along the last axis.

    A single score per sample means two classes: above 0.5 where all scores are probabilities up to ROUNDING,
    else above 0.
    """
    scores = outputs.reshape(len(outputs), -1) if outputs.ndim < 2 else outputs
    if scores.shape[-1] > 1:
        return np.asarray(scores.argmax(axis=-1))
    probabilities = scores.min(initial=0) >= -ROUNDING and scores.max(initial=0) <= 1 + ROUNDING
    threshold = 0.5 if probabilities else 0.0
    return (scores[..., 0] > threshold).astype(np.int64)


def class_count(outputs: np.ndarray) -> int:
    """How many classes outputs tell of: one per score along the last axis, two by a single score."""
    return max(outputs.shape[-1] if outputs.ndim > 1 else 1, 2)


def truth_of(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Labels in the shape of the class decisions; ValueError where some are numbers of no class.

    No decision could be right there, before a pass or after it, and a gate on accuracy would see no loss.
    """
    truth = labels.reshape(classes(outputs).shape)
    last = class_count(outputs) - 1
    known = (truth >= 0) & (truth <= last) & (truth == np.round(truth))
    if not known.all():
        raise ValueError(f"label {truth[~known][0]} is no class; the outputs tell of classes 0 to {last}")
    return truth


def accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Share of right class decisions; ValueError for labels that are no classes."""
    return float(np.mean(classes(outputs) == truth_of(outputs, labels)))


def f1(outputs: np.ndarray, labels: np.ndarray) -> float:
    """F1 of the positive class where outputs tell of two, else the mean over all classes that occur (macro).

    ValueError for labels that are no classes.
    """
    found, truth = classes(outputs), truth_of(outputs, labels)
    wanted = [1] if class_count(outputs) == 2 else np.union1d(found, truth)
    return float(np.mean([_f1_of(found == c, truth == c) for c in wanted]))


def _f1_of(found: np.ndarray, truth: np.ndarray) -> float:
    right, total = int(np.sum(found & truth)), int(np.sum(found) + np.sum(truth))
    return 2 * right / total if total else 1.0


def mae(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Mean absolute error."""
    return float(np.mean(np.abs(outputs.astype(np.float64) - labels.reshape(outputs.shape))))


def rmse(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Root of the mean squared error."""
    return float(np.sqrt(np.mean((outputs.astype(np.float64) - labels.reshape(outputs.shape)) ** 2)))


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "accuracy": Metric("accuracy", accuracy, most=1.0),
        "f1": Metric("f1", f1, most=1.0),
        "mae": Metric("mae", mae, lower=True),
        "rmse": Metric("rmse", rmse, lower=True),
    }
)


def metric(name: str) -> Metric:
    """A metric by name, or "package.module:function".

    Such a function takes (outputs, labels) and returns a number; set its attribute `lower_is_better` where less is
    better. ConfigError where it cannot be imported.
    """
    if name in METRICS:
        return METRICS[name]
    function = named_function(name)
    return Metric(name, function, bool(getattr(function, "lower_is_better", False)))


def source_of(name: str) -> bytes:
    """The file that holds the function of a metric; empty for metrics by name, and for functions of no file."""
    if name in METRICS:
        return b""
    file = getattr(sys.modules.get(named_function(name).__module__), "__file__", None)
    return Path(file).read_bytes() if file else b""
