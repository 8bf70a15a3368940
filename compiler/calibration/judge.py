"""How much accuracy a graph loses against the one it was made from, on labelled data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compiler.calibration.engine import Engine
from compiler.calibration.evaluation import Outputs, Runner, collect, compare
from compiler.calibration.metrics import metric
from compiler.calibration.samples import Feeds
from compiler.ir.graph import Graph
from compiler.progress import counted


def graph_runner(graph: Graph) -> Runner:
    """A graph in onnxruntime, through its ONNX form."""
    engine = Engine.of(graph)

    def run(feed: Mapping[str, np.ndarray]) -> Outputs:
        found = engine.run(feed)
        return {t.name: tuple(found[r.name] for r in t.outputs) for t in graph.tasks.values()}

    return run


class AccuracyJudge:
    """Called with a graph: task -> how much worse its metric is than that of `original`, at least those tasks that
    have a metric. Better is below zero."""

    def __init__(
        self,
        original: Graph,
        feeds: Feeds,
        labels: Mapping[str, np.ndarray],
        metrics: Mapping[str, str],
    ) -> None:
        self._original, self._feeds, self._labels = original, feeds, labels
        self._metrics = {t: metric(name) for t, name in metrics.items()}
        self._before: Outputs | None = None

    def __call__(self, graph: Graph) -> dict[str, float]:
        """Evaluate `graph`; the original is evaluated once, when it is first needed."""
        if self._before is None:
            self._before = self._collected(self._original)
        after = self._collected(graph)
        metrics = {t: m for t, m in self._metrics.items() if t in graph.tasks}
        rows = compare(self._before, after, None, self._labels, metrics)
        drops = {r.task: r.worse_by(r.graph) for r in rows}
        return {task: drop for task, drop in drops.items() if drop is not None}

    def _collected(self, graph: Graph) -> Outputs:
        """Outputs on all samples."""
        return collect(graph_runner(graph), counted("accuracy: batches", self._feeds(), self._feeds.batches))
