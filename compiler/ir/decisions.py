"""Outputs that record a decision: the arg-max or arg-min of scores, their order (TopK), a comparison, or the whole
number that a float is cut to. Where it nearly falls the other way, it may when sums are taken in another order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.ir.graph import Graph, Node
from compiler.ir.reference import TINY, Edit, evaluate, roundings
from compiler.ir.types import DType, ValueRef

MARGIN = 1e-4
"""Relative margin below which a decision may fall either way, of floats as exact as float32."""
MOST_OF_ONE = 1 / 16
"""Most that a float may be away from where another whole number begins: of large ones the margin is more than one,
and none would have to be right."""

_KEEPS_VALUES = frozenset(("Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Identity", "Transpose", "Not"))
_COMPARES = frozenset(("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"))
_ROUNDS = {"Floor": 0.0, "Ceil": 0.0, "Round": 0.5}
"""Operators that make floats whole, and where between two whole numbers they decide."""

Close = Callable[[Sequence[np.ndarray], float, float], np.ndarray]
"""Operands, relative margin, least scale -> where the decision is too close to call."""


def outputs_and_ties(
    graph: Graph,
    feeds: Mapping[str, np.ndarray],
    floor: float = TINY,
    tasks: Collection[str] | None = None,
    edit: Edit | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What `evaluate` gives, and for outputs that record a decision where it is too close to call.

    That is where two scores (an operand of a comparison and the other, a float and the number at which it becomes
    another whole one) are within MARGIN of their scale, at least `floor`, or within what rounding to float16 may
    change.
    """
    rounded = roundings(graph)
    outputs = [r for name, task in graph.tasks.items() if tasks is None or name in tasks for r in task.outputs]
    sources = {r.name: found for r in outputs if (found := _decision(graph, r)) is not None}
    wanted = [operand.name for d in sources.values() for operand in d.operands]
    values = evaluate(graph, feeds, tasks, wanted, edit)
    close = {}
    for name, found in sources.items():
        operands = [values[r.name].astype(np.float64) for r in found.operands]
        margin = max(MARGIN, *(rounded[r] for r in found.operands))
        with np.errstate(invalid="ignore"):  # infinity beside infinity
            ties = found.close(operands, margin, floor).reshape(graph.value(found.made).shape)
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
    """`made`: the value that records it; `moves` lead from there to the output that repeats it."""

    operands: tuple[ValueRef, ...]
    close: Close
    made: ValueRef
    moves: tuple[Node, ...]


def _decision(graph: Graph, ref: ValueRef) -> _Decision | None:
    """The decision that an output repeats: the first one on the way, behind which there are whole numbers alone."""
    moves, found = list[Node](), None
    while (node := graph.producer(ref)) is not None:
        if made := _made(graph, node, ref):
            found = _Decision(*made, ref, tuple(reversed(moves)))
        if node.op.name not in _KEEPS_VALUES:
            break
        moves.append(node)
        ref = graph.operands(node)[0].ref
    return found


def _made(graph: Graph, node: Node, ref: ValueRef) -> tuple[tuple[ValueRef, ...], Close] | None:
    """What a node that decides decides by, and how close that is; None for other nodes and results."""
    name, first = node.op.name, graph.operands(node)[0]
    if name in ("ArgMax", "ArgMin"):
        sign = 1 if name == "ArgMax" else -1
        return (first.ref,), functools.partial(_best, int(node.attrs["axis"]), sign)
    if name == "TopK" and ref == graph.results(node)[1].ref and graph.value(ref).size:
        sign, count = 1 if node.attrs["largest"] else -1, graph.value(ref).shape[int(node.attrs["axis"])]
        return (first.ref,), functools.partial(_order, int(node.attrs["axis"]), sign, count)
    if name in _COMPARES and first.dtype.is_float:
        return (first.ref, graph.operands(node)[1].ref), _compared
    if name == "Cast" and first.dtype.is_float and not graph.value(ref).dtype.is_float:
        rounding = graph.producer(first.ref)
        if rounding is not None and rounding.op.name in _ROUNDS:
            return (graph.operands(rounding)[0].ref,), functools.partial(_whole, _ROUNDS[rounding.op.name])
        whole = graph.value(ref).dtype is not DType.BOOL
        return (first.ref,), functools.partial(_whole, 0.0) if whole else _compared_with_zero
    return None


def _best(axis: int, sign: int, scores: Sequence[np.ndarray], margin: float, floor: float) -> np.ndarray:
    """Where the two largest scores along an axis, of those times `sign`, are apart by no more than the margin."""
    gaps = _gaps(axis, sign, scores[0], margin, floor)
    return np.asarray(gaps.take(0, axis)) if gaps.shape[axis] else np.zeros(scores[0].take(0, axis).shape, bool)


def _order(
    axis: int, sign: int, count: int, scores: Sequence[np.ndarray], margin: float, floor: float
) -> np.ndarray:
    """Of the `count` best places along an axis those whose score is close to the one before or behind."""
    gaps = _gaps(axis, sign, scores[0], margin, floor)
    edge = np.zeros_like(scores[0].take([0], axis), bool)
    near = np.concatenate([edge, gaps], axis) | np.concatenate([gaps, edge], axis)
    return np.asarray(near.take(range(count), axis))


def _gaps(axis: int, sign: int, scores: np.ndarray, margin: float, floor: float) -> np.ndarray:
    """Along an axis, best first: whether a score and the next one are apart by no more than the margin."""
    ordered = -np.sort(-sign * scores, axis=axis)
    return np.asarray(-np.diff(ordered, axis=axis) <= margin * _scale(floor, scores))


def _compared(operands: Sequence[np.ndarray], margin: float, floor: float) -> np.ndarray:
    return _near(operands[0] - operands[1], margin, _scale(floor, *operands))


def _compared_with_zero(operands: Sequence[np.ndarray], margin: float, floor: float) -> np.ndarray:
    return _near(operands[0], margin, _scale(floor, *operands))


def _whole(offset: float, operands: Sequence[np.ndarray], margin: float, floor: float) -> np.ndarray:
    """Where a float is close to one that becomes another whole number: those `offset` behind whole ones."""
    moved = operands[0] - offset
    scale = _scale(floor, *operands)
    return _near(moved - np.rint(moved), margin, min(scale, MOST_OF_ONE / margin))


def _near(apart: np.ndarray, margin: float, scale: float) -> np.ndarray:
    """Whether a difference is within the margin. None at all counts in float16 alone: two computed float32 that are
    equal are so for a reason, such as the zeros of a Relu, and would let as many others differ."""
    near = np.abs(apart) <= margin * scale
    return np.asarray(near if margin > MARGIN else near & (apart != 0))


def _scale(floor: float, *arrays: np.ndarray) -> float:
    """The largest magnitude of what is finite."""
    return max(floor, *(float(np.abs(a[np.isfinite(a)]).max(initial=0.0)) for a in arrays))
