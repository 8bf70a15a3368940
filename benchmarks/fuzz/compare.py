"""What the stages share: what becomes of a case, and how results are named and compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from compiler.ir.graph import Graph
from compiler.ir.reference import random_feeds

Arrays = dict[str, np.ndarray]
CALIBRATION = 8
"""Random inputs for passes that want some."""


class Wrong(Exception):
    """A result that differs from what it has to be; the message says which and by how much."""


class Refused(Exception):
    """The compiler said that it does not take the case, and why: one line per reason."""

    def __init__(self, stage: str, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.stage = stage
        self.reasons = tuple(reasons)


class Unrunnable(Exception):
    """onnxruntime itself does not run a network: there is no judge."""


@dataclass
class Done:
    """What a case that went through showed. `skipped`: passes that gave a reason not to run."""

    nodes: int = 0
    unjudged: int = 0
    skipped: list[str] = field(default_factory=list)


Tell = Callable[[str], None]
"""Hears the name of each stage before it starts."""


def hold(wrong: str) -> None:
    """Wrong with the complaint of a judge, if there is one."""
    if wrong:
        raise Wrong(wrong)


def outputs_of(graph: Graph, values: Mapping[str, np.ndarray]) -> Arrays:
    """Outputs by value name, in the order of tasks."""
    return {r.name: values[r.name] for t in graph.tasks.values() for r in t.outputs}


def believe(graph: Graph, judged: Arrays) -> None:
    """Unrunnable where onnxruntime divided by the deviation of constants; ONNX's own function adds 1e-9 to it."""
    normalises = any(n.op.name == "MeanVarianceNormalization" for n in graph.nodes())
    if normalises and any(np.isnan(a).any() for a in judged.values() if a.dtype.kind == "f"):
        raise Unrunnable("NaN for MeanVarianceNormalization of constants, where ONNX's function gives zeros")


def own_feeds(graph: Graph, feeds: Arrays) -> Arrays:
    """What a graph reads: a pass may have dropped inputs that nothing needs."""
    return {v.ref.name: feeds[v.ref.name] for v in graph.inputs}


def renamed(before: Graph, after: Graph, values: Arrays) -> Arrays:
    """Outputs of the graph after a pass under the names they had before it."""
    return {
        a.name: values[b.name]
        for t in before.tasks
        for a, b in zip(before.tasks[t].outputs, after.tasks[t].outputs, strict=True)
    }


def calibration(graph: Graph, seed: int) -> Arrays:
    """Random inputs as passes take them."""
    draws = [random_feeds(graph, np.random.default_rng([seed, 5, i])) for i in range(CALIBRATION)]
    return {n: (np.concatenate if draws[0][n].ndim else np.stack)([d[n] for d in draws]) for n in draws[0]}


def subsets(graph: Graph, seed: int, most: int = 4) -> Iterator[tuple[str, ...]]:
    """A few random subsets of tasks."""
    tasks = list(graph.tasks)
    every = [s for n in range(1, len(tasks) + 1) for s in combinations(tasks, n)]
    chosen = np.random.default_rng([seed, 6]).permutation(len(every))[:most]
    yield from (every[i] for i in sorted(chosen))


def by_value(graph: Graph, found: Mapping[str, object]) -> Arrays:
    """What a library gave, by value name."""
    named: Arrays = {}
    for task in graph.tasks.values():
        if task.name not in found:
            continue
        result = found[task.name]
        for ref, label in zip(task.outputs, task.labels, strict=True):
            named[ref.name] = result[label] if isinstance(result, Mapping) else np.asarray(result)
    return named


def equal(full: Arrays, part: Arrays, what: str, than: str) -> None:
    """Wrong unless outputs of the reference evaluator are equal; one NaN is as good as another."""
    for name, array in part.items():
        if not np.array_equal(array, full[name], equal_nan=array.dtype.kind == "f"):
            raise Wrong(f"{what}: '{name}' has other bits than {than}")


def same_bits(full: Arrays, part: Arrays, what: str, than: str = "in one call for all tasks") -> None:
    """Wrong unless all that `part` has is there in `full`, bit for bit."""
    for name, array in part.items():
        if array.tobytes() != full[name].tobytes():
            raise Wrong(f"{what}: '{name}' has other bits than {than}")
