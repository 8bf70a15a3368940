"""How well every task does: originals against the graph after the passes against the compiled library.

Drift needs no labels: it is the largest absolute difference over the largest magnitude of the originals' output, on
the whole data set. `flipped` is the share of class decisions that changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from compiler.calibration.metrics import METRICS, Metric, classes
from compiler.errors import ConfigError
from compiler.ir.reference import comparable, difference

DIGITS = 14
"""Of a metric that count: float64 has 15 to 17."""

Outputs = Mapping[str, tuple[np.ndarray, ...]]
"""Task -> its outputs."""

Runner = Callable[[Mapping[str, np.ndarray]], Outputs]
"""One feed -> the outputs of every task."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One version of a task: metric (None without labels), drift and flipped decisions against the originals.

    The drift is NaN where an output of the original has no finite number.
    """

    metric: float | None
    drift: float
    flipped: float | None

    def record(self) -> dict[str, float | None]:
        """JSON-ready."""
        return {"metric": self.metric, "drift": self.drift, "flipped": self.flipped}


@dataclass(frozen=True, slots=True)
class TaskEvaluation:
    """One task at one level. `metric_name` is empty without labels; `bundle` is None where no library was
    run."""

    task: str
    metric_name: str
    lower_is_better: bool
    samples: int
    original: float | None
    graph: Measured
    bundle: Measured | None
    level: int = 0

    @property
    def final(self) -> Measured:
        """The compiled library where it ran, else the graph: what gates look at."""
        return self.bundle or self.graph

    def worse_by(self, found: Measured) -> float | None:
        """How much worse a version's metric is than the original's; None without labels."""
        if self.original is None or found.metric is None:
            return None
        first, second = (found.metric, self.original) if self.lower_is_better else (self.original, found.metric)
        return less(first, second)

    def record(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "task": self.task,
            "level": self.level,
            "metric": self.metric_name or None,
            "samples": self.samples,
            "original": self.original,
            "graph": self.graph.record(),
            "bundle": None if self.bundle is None else self.bundle.record(),
        }


def less(first: float, second: float) -> float:
    """`first` - `second` to the digits that both have: six samples of 300 are 0.02, where 1 - 0.98 is more."""
    size = max(abs(first), abs(second))
    if not size or not math.isfinite(size):
        return first - second
    return round(first - second, DIGITS - math.ceil(math.log10(size)))


def collect(run: Runner, feeds: Iterable[Mapping[str, np.ndarray]]) -> dict[str, tuple[np.ndarray, ...]]:
    """Outputs over all feeds: [samples, ...] per output, batches one after another."""
    parts: dict[str, list[tuple[np.ndarray, ...]]] = {}
    for feed in feeds:
        for task, outputs in run(feed).items():
            parts.setdefault(task, []).append(outputs)
    return {
        task: tuple(np.concatenate([np.atleast_1d(a) for a in column]) for column in zip(*rows, strict=True))
        for task, rows in parts.items()
    }


def compare(
    original: Outputs,
    graph: Outputs,
    bundle: Outputs | None,
    labels: Mapping[str, np.ndarray],
    metrics: Mapping[str, Metric],
    level: int = 0,
) -> tuple[TaskEvaluation, ...]:
    """A row per task of `graph`, which is that of `level`; metrics for the tasks that have one and labels."""
    rows = []
    for task, outputs in graph.items():
        metric, truth = metrics.get(task), _labels(task, metrics.get(task), labels, original[task][0])
        rows.append(
            TaskEvaluation(
                task=task,
                metric_name=metric.name if metric else "",
                lower_is_better=bool(metric and metric.lower),
                samples=len(outputs[0]),
                original=_score(metric, original[task], truth),
                graph=_measured(metric, original[task], outputs, truth),
                bundle=_measured(metric, original[task], bundle[task], truth) if bundle else None,
                level=level,
            )
        )
    return tuple(rows)


def _labels(
    task: str, metric: Metric | None, labels: Mapping[str, np.ndarray], outputs: np.ndarray
) -> np.ndarray | None:
    if metric is None:
        return None
    if task not in labels:
        raise ConfigError(f"the evaluation data lacks labels '{task}'; it has {', '.join(sorted(labels))}")
    truth = labels[task][: len(outputs)]
    if metric.name in METRICS and truth.dtype.kind not in "biuf":
        raise ConfigError(
            f"the labels '{task}' are {truth.dtype}; metrics compare numbers, such as numbers of classes"
        )
    if len(truth) < len(outputs):
        raise ConfigError(f"the evaluation data has {len(truth)} labels '{task}' for {len(outputs)} samples")
    return truth


def _score(metric: Metric | None, outputs: tuple[np.ndarray, ...], truth: np.ndarray | None) -> float | None:
    if metric is None or truth is None:
        return None
    try:
        return float(metric.function(outputs[0], truth))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"metric {metric.name} does not fit outputs {list(outputs[0].shape)} and labels {list(truth.shape)}: "
            f"{error}"
        ) from error


def _measured(
    metric: Metric | None,
    original: tuple[np.ndarray, ...],
    found: tuple[np.ndarray, ...],
    truth: np.ndarray | None,
) -> Measured:
    drift = max(difference(b, a) for a, b in zip(original, found, strict=True))
    if not all(map(comparable, original)) and not math.isinf(drift):
        drift = math.nan
    return Measured(_score(metric, found, truth), drift, _flipped(original[0], found[0]))


def _flipped(original: np.ndarray, found: np.ndarray) -> float | None:
    """Share of class decisions that differ; None where the output is no row of scores."""
    if original.ndim != 2 or original.shape[1] < 2 or original.shape != found.shape:
        return None
    return float(np.mean(classes(original) != classes(found)))
