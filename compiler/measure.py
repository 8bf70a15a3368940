"""Evaluate a release: the original files, the graph after the passes, and the compiled library on the same data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from compiler.calibration.engine import Engine
from compiler.calibration.evaluation import Outputs, Runner, TaskEvaluation, collect, compare
from compiler.calibration.judge import graph_runner
from compiler.calibration.metrics import metric
from compiler.calibration.samples import Feeds
from compiler.ir.adapters import Adapter
from compiler.ir.graph import Graph
from compiler.ir.levels import at_level, level_count
from compiler.ir.onnx_in import TASKS_KEY, output_names
from compiler.ir.reference import evaluate
from compiler.progress import tracked
from compiler.release import Release, Say, calibration_of, evaluation_of, member_of, silent


class Runnable(Protocol):
    """An opened bundle, as far as evaluation cares."""

    def run(self, inputs: Mapping[str, np.ndarray], *, level: int = 0) -> Mapping[str, object]:
        """Task -> array, or label -> array where a task has several outputs."""


@dataclass(frozen=True)
class _Original:
    """One source file in onnxruntime, with what turns the shared inputs into its own."""

    engine: Engine
    tasks: Mapping[str, tuple[str, ...]]
    """Task of the joined graph -> output names of the file."""
    sources: Mapping[str, str]
    """Own input -> shared input."""
    adapter: Graph | None
    """From the shared inputs to the own ones, one task per own input."""

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, ...]]:
        if self.adapter is None:
            own = {name: feed[shared] for name, shared in self.sources.items()}
        else:
            wanted = {v.ref.name: feed[v.ref.name] for v in self.adapter.inputs}
            made = evaluate(self.adapter, wanted)
            own = {t.name: made[t.outputs[0].name] for t in self.adapter.tasks.values()}
        found = self.engine.run(own)
        return {task: tuple(found[label] for label in labels) for task, labels in self.tasks.items()}


def originals(release: Release) -> Runner:
    """Every source file in onnxruntime, behind its adapter: one feed -> the outputs of every task."""
    parts = [_original(release, key) for key in release.members]

    def run(feed: Mapping[str, np.ndarray]) -> Outputs:
        return {task: outputs for part in parts for task, outputs in part.run(feed).items()}

    return run


def _original(release: Release, key: str) -> _Original:
    task, graph, shared = release.config.tasks[key], release.members[key], release.graph.inputs
    names = [v.ref.name for v in shared]
    own = [v.ref.name for v in graph.inputs]
    sources = {n: task.inputs.get(n, n if n in names else names[0]) for n in own}
    alone = len(graph.tasks) == 1
    engine = Engine(release.config.path(task.model))
    named = output_names(engine.metadata.get(TASKS_KEY))
    joined = {key if alone else f"{key}_{t}": t for t in graph.tasks}
    tasks = {
        name: tuple(named.get((t, label), label) for label in release.graph.tasks[name].labels)
        for name, t in joined.items()
        if name in release.graph.tasks
    }
    bindings = member_of(task, graph, release.config.inputs or {}).inputs
    steps = {n: bindings[n].steps if n in bindings else () for n in own}
    adapter = _adapter(release, steps, sources) if task.adapter else None
    return _Original(engine, tasks, sources, adapter)


def _adapter(
    release: Release, steps: Mapping[str, Sequence[Mapping[str, object]]], sources: Mapping[str, str]
) -> Graph:
    """From shared inputs to own ones; `steps` by own input."""
    graph = Graph("adapter")
    inputs = {
        v.ref.name: graph.add_input(v.ref.name, v.type)
        for v in release.graph.inputs
        if v.ref.name in sources.values()
    }
    adapter = Adapter(graph)
    for own, shared in sources.items():
        graph.set_task(own, [adapter.apply(inputs[shared], steps[own]).ref])
    return graph.freeze()


def bundle_runner(network: Runnable, graph: Graph, level: int = 0) -> Runner:
    """A compiled library at a level, outputs in the order of the graph's tasks."""

    def run(feed: Mapping[str, np.ndarray]) -> Outputs:
        found = network.run(feed, level=level)
        return {t.name: _ordered(found[t.name], t.labels) for t in graph.tasks.values()}

    return run


def _ordered(found: object, labels: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    if isinstance(found, Mapping):
        return tuple(found[label] for label in labels)
    assert isinstance(found, np.ndarray)
    return (found,)


def evaluate_release(
    release: Release, graph: Graph, network: Runnable | None = None, *, say: Say = silent
) -> tuple[TaskEvaluation, ...]:
    """Every task of `graph` at every level on the release's evaluation data, else on its calibration data (drift
    only).

    Empty where the release names no data. Raises ConfigError where data and network do not fit.
    """
    config = release.config
    labelled = evaluation_of(config, release.graph)
    feeds = labelled[0] if labelled else calibration_of(config, release.graph)
    if feeds is None:
        return ()
    labels, metrics = (labelled[1], config.evaluation.metric) if labelled else ({}, {})
    say(f"evaluate on {feeds.batches * feeds.batch_size} samples: originals, graph{', bundle' * bool(network)}")

    def counted(stage: str, samples: Iterable[Mapping[str, np.ndarray]]) -> Iterator[Mapping[str, np.ndarray]]:
        return tracked(say, f"evaluate: {stage}", samples, feeds.batches)

    before = collect(originals(release), counted("originals", feeds()))
    chosen = {t: metric(name) for t, name in metrics.items() if t in graph.tasks}
    rows: list[TaskEvaluation] = []
    for level in range(level_count(graph)):
        after = collect(
            graph_runner(at_level(graph, level)), counted(f"graph, level {level}", inputs_of(feeds, graph))
        )
        compiled = None
        if network:
            samples = counted(f"bundle, level {level}", inputs_of(feeds, graph))
            compiled = collect(bundle_runner(network, graph, level), samples)
        rows += compare(before, after, compiled, labels, chosen, level)
    return tuple(rows)


def inputs_of(feeds: Feeds, graph: Graph) -> Iterator[dict[str, np.ndarray]]:
    """What a graph reads, feed by feed: not all of them need fit into memory."""
    names = [v.ref.name for v in graph.inputs]
    return ({n: feed[n] for n in names} for feed in feeds())
