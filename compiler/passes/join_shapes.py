"""Shapes of values that lie one after the other: along which axis, and when one node makes of all of them
what several nodes make of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from compiler.ir.graph import Graph, Node, Operands, Value
from compiler.ir.ops.conv import Convolving
from compiler.ir.ops.elementwise import Broadcast
from compiler.ir.ops.pool import GlobalPool, Pool
from compiler.passes.reorder import is_plain


def joint_axis(graph: Graph, nodes: Sequence[Node], read: Sequence[Value], axis: int) -> int | None:
    """Along which axis the results of nodes lie one after the other where one node reads what they read, `read`,
    one after the other along `axis`. None where one node would make something else.
    """
    op, results = nodes[0].op, [graph.results(n)[0] for n in nodes]
    if op.reinterprets:
        return _reinterpreted_axis(graph, nodes[0], read, results, axis)
    if not same_but_for(results, axis):
        return None
    if isinstance(op, Broadcast):
        fits = spans(read, results, axis)
    elif isinstance(op, Convolving):
        fits = (
            axis == 1 and all(grouped(graph, n) for n in nodes) and len({_per_group(graph, n) for n in nodes}) == 1
        )
    else:
        fits = axis == 1 and (isinstance(op, (Pool, GlobalPool)) or op.name == "BatchNormalization")
    return axis if fits else None


def _reinterpreted_axis(
    graph: Graph, node: Node, read: Sequence[Value], results: Sequence[Value], axis: int
) -> int | None:
    """The same for nodes like `node`, whose results have the entries of what they read in the same order."""
    kept = _same_in_front(read, results, axis)
    made = axis if kept else _leading(results[0])
    in_order = kept or all(_in_front(v, d) for values, d in ((read, axis), (results, made)) for v in values)
    if not in_order or not same_but_for(results, made):
        return None
    if node.op.name == "Squeeze" and any(v.shape[axis] == 1 for v in read):
        return None
    return made if _makes(graph, node, wide(read, axis), wide(results, made)) else None


def _makes(graph: Graph, node: Node, read: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a node that reads a value of shape `read` makes one of this shape, or can be told to."""
    first, *rest = graph.operands(node)[:]
    joint = replace(first, type=replace(first.type, shape=read))
    return node.op.name == "Reshape" or node.op.infer(node, Operands([joint, *rest]), 1)[0].shape == shape


def grouped(graph: Graph, node: Node) -> bool:
    """Whether a node is a convolution that keeps groups of channels apart."""
    return isinstance(node.op, Convolving) and (node.attrs["group"] != 1 or graph.operands(node)[0].shape[1] == 1)


def _per_group(graph: Graph, node: Node) -> int:
    """Channels that a group makes."""
    return graph.results(node)[0].shape[1] // int(node.attrs["group"])


def wide(values: Sequence[Value], axis: int) -> tuple[int, ...]:
    """The shape of values that lie one after the other along an axis."""
    width = sum(v.shape[axis] for v in values)
    return tuple(width if d == axis else n for d, n in enumerate(values[0].shape))


def same_but_for(values: Sequence[Value], axis: int) -> bool:
    """Whether types are the same but for how many entries there are along an axis."""
    kinds = {(v.dtype, v.rank, *(n for d, n in enumerate(v.shape) if d != axis)) for v in values}
    return len(kinds) == 1


def spans(values: Sequence[Value], results: Sequence[Value], axis: int) -> bool:
    """Whether each value has an entry along the axis for every one of its result."""
    return all(v.rank == r.rank and v.shape[axis] == r.shape[axis] for v, r in zip(values, results, strict=True))


def equal(values: Sequence[Value]) -> bool:
    """Whether all are one value, or constants of the same numbers."""
    first = values[0]
    return all(v.ref == first.ref for v in values) or all(
        is_plain(v) and v.type == first.type and np.array_equal(v.constant, first.constant) for v in values
    )


def _leading(value: Value) -> int:
    """The first axis of more than one entry."""
    return next((d for d, n in enumerate(value.shape) if n > 1), value.rank - 1)


def _same_in_front(values: Sequence[Value], results: Sequence[Value], axis: int) -> bool:
    """Whether each result has the axes in front of this one that its value has."""
    return all(r.rank > axis and v.shape[:axis] == r.shape[:axis] for v, r in zip(values, results, strict=True))


def _in_front(value: Value, axis: int) -> bool:
    """Whether nothing but ones is in front of an axis: then what lies along it lies one after the other."""
    return all(n == 1 for n in value.shape[:axis])
