"""Outputs that record a decision, the arg-max or arg-min of scores: where two of these nearly tie, it may fall
either way when sums are taken in another order.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from compiler.ir.graph import Graph, Node
from compiler.ir.reference import TINY, Edit, evaluate, roundings
from compiler.ir.types import ValueRef

MARGIN = 1e-4
"""Relative margin below which a decision may fall either way, of floats as exact as float32."""

_KEEPS_VALUES = frozenset(("Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Identity", "Transpose"))


def outputs_and_ties(
    graph: Graph,
    feeds: Mapping[str, np.ndarray],
    floor: float = TINY,
    tasks: Collection[str] | None = None,
    edit: Edit | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What `evaluate` gives, and for outputs that record a decision where it is too close to call.

    That is where the two best scores are within MARGIN of the scores' scale, at least `floor`, or within what
    rounding to float16 may change.
    """
    rounded = roundings(graph)
    outputs = [r for name, task in graph.tasks.items() if tasks is None or name in tasks for r in task.outputs]
    sources = {r.name: found for r in outputs if (found := _decision(graph, r)) is not None}
    values = evaluate(graph, feeds, tasks, [d.scores.name for d in sources.values()], edit)
    close = {}
    for name, found in sources.items():
        scores = found.sign * values[found.scores.name].astype(np.float64)
        ties = _near_ties(scores, found.axis, max(MARGIN, rounded[found.scores]), floor)
        for node in found.moves:
            shape = graph.results(node)[0].shape
            ties = ties.transpose(node.attrs["perm"]) if node.op.name == "Transpose" else ties.reshape(shape)
        close[name] = ties
    return {r.name: values[r.name] for r in outputs}, close


def settled(found: np.ndarray, expected: np.ndarray, ties: np.ndarray | None) -> np.ndarray:
    """`found`, with what is expected where the decision is too close to call."""
    return found if ties is None or found.shape != ties.shape else np.where(ties, expected, found)


@dataclass(frozen=True, slots=True)
class _Decision:
    """`sign` is 1 for ArgMax, -1 for ArgMin; `moves` begins with it and goes on to the output that repeats it."""

    scores: ValueRef
    axis: int
    sign: int
    moves: tuple[Node, ...]


def _decision(graph: Graph, ref: ValueRef) -> _Decision | None:
    """The decision that an output repeats."""
    node, moves = graph.producer(ref), list[Node]()
    while node is not None and node.op.name in _KEEPS_VALUES:
        moves.append(node)
        node = graph.producer(graph.operands(node)[0].ref)
    if node is None or node.op.name not in ("ArgMax", "ArgMin"):
        return None
    sign = 1 if node.op.name == "ArgMax" else -1
    return _Decision(graph.operands(node)[0].ref, int(node.attrs["axis"]), sign, (node, *reversed(moves)))


def _near_ties(scores: np.ndarray, axis: int, margin: float, floor: float) -> np.ndarray:
    """Where the two largest scores along an axis differ by at most `margin` of the largest magnitude."""
    ordered = np.sort(scores, axis=axis)
    size = ordered.shape[axis]
    if size < 2:
        return np.zeros(ordered.take(0, axis).shape, bool)
    apart = ordered.take(size - 1, axis) - ordered.take(size - 2, axis)
    return np.asarray(apart <= margin * max(float(np.abs(scores).max()), floor))
