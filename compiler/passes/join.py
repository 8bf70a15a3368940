"""join-siblings: layers that read the same value side by side become one layer, and what follows them one chain.

Networks that were merged keep the layers they came with: of three networks that share everything, a layer is three
nodes that read the same channels, each followed by its own activation and pooling, and a Concat puts the results
together for the next layer. As one node they read the input once and fill vectors with channels of all three
(horizontal fusion, as in Jia et al. 2019, TASO, sections 2 and 4). Nodes are joined that all the same tasks need,
so every combination of tasks costs what it did. Exact: each channel is the sum it was.

A `Row` holds values that one value can hold one after the other. It stands only if whatever reads its values is
joined as well, or is a Concat that has all of them in this order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from compiler.ir.encoding import Dense
from compiler.ir.graph import Graph, Node, Ref, Value
from compiler.ir.op import Op
from compiler.ir.ops.elementwise import Broadcast
from compiler.ir.ops.pool import GlobalPool, Pool
from compiler.ir.types import NodeRef, TensorType, ValueRef
from compiler.passes.base import Note, Pass, Refusal, Resources, check_outputs
from compiler.passes.dead import sweep
from compiler.passes.dedupe import Deduplicate, attribute_key
from compiler.passes.linear import per_output

FAR = 16
"""Most nodes between a layer and the Concat that says in which order its results are read."""

Members = tuple[ValueRef, ...]


@dataclass(frozen=True, slots=True)
class Joint:
    """Nodes that become one. `axis`: of their results, along which these lie one after the other. `operands`: by
    position the values that the nodes read there; one value is read by all, several become one; None is absent.
    """

    nodes: tuple[Node, ...]
    members: Members
    axis: int
    operands: tuple[Members | None, ...]
    axes: tuple[int, ...]
    """By position the axis along which several operands become one."""


@dataclass(frozen=True)
class JoinSiblings(Pass):
    """Make one layer of layers that read the same value, with the same attributes and for the same tasks.

    Conv without groups, Gemm and MatMul with dense constant weights start a row; element-wise operators, poolings,
    BatchNormalization and flattening go on with it, up to the Concats that read all of it.
    """

    name: ClassVar[str] = "join-siblings"
    exact: ClassVar[bool] = True

    def rewrite(self, graph: Graph, use: Resources) -> Iterable[Refusal]:
        told: list[Refusal] = []
        tuple(Deduplicate().rewrite(graph, use))  # not two Concats of the same
        while joints := _Rows(graph).standing():
            _carry_out(graph, joints)
            sweep(graph)
            told += [
                Note(j.nodes[0].ref.name, f"one layer with {', '.join(n.ref.name for n in j.nodes[1:])}")
                for j in joints
                if j.nodes[0].op.name in LAYERS
            ]
        return told

    def ensures(self, before: Graph, after: Graph) -> None:
        check_outputs(self.name, before, after)


# ---------------------------------------------------------------------- layers that start a row
LAYERS = ("Conv", "Gemm", "MatMul")


def _layer_axes(graph: Graph, node: Node) -> tuple[int, tuple[int, ...]] | None:
    """(channel axis of the result, axis of outputs by operand) of a layer that can be joined, else None."""
    operands, result = graph.operands(node), graph.results(node)[0]
    weight, bias = operands[1], operands.optional(2)
    if operands[0].data is not None or not _plain(weight) or (bias is not None and not _plain(bias)):
        return None
    if node.op.name == "Conv":
        return (1, (0, 0, 0)) if node.attrs["group"] == 1 else None
    if weight.rank != 2 or (bias is not None and not per_output(bias, result.shape[-1])):
        return None
    turned = node.op.name == "Gemm" and bool(node.attrs["transB"])
    return result.rank - 1, (0, 0 if turned else 1, -1)


def _plain(value: Value) -> bool:
    return value.data is not None and isinstance(value.type.encoding, Dense) and not value.sparser


def _ahead(graph: Graph, value: ValueRef) -> tuple[NodeRef, int] | None:
    """The Concat that a value leads to, and its place there."""
    for _ in range(FAR):
        uses = graph.uses(value)
        found = next(((n.ref, i) for n, i in uses if n.op.name == "Concat"), None)
        if found or not uses:
            return found
        value = graph.results(uses[0][0])[0].ref
    return None


def _siblings(graph: Graph, masks: Mapping[Ref, int]) -> Iterator[Joint]:
    """Layers alike in all but their weights, in the order in which a Concat has what becomes of them."""
    groups: dict[tuple[object, ...], list[tuple[int, Node]]] = {}
    axes: dict[NodeRef, tuple[int, tuple[int, ...]]] = {}
    for node in graph.nodes():
        found = _layer_axes(graph, node) if node.op.name in LAYERS and node.ref in masks else None
        ahead = None if found is None else _ahead(graph, graph.results(node)[0].ref)
        if found is None or ahead is None:
            continue
        axes[node.ref] = found
        source, weight = graph.operands(node)[:2]
        inner = tuple(n for d, n in enumerate(weight.shape) if d != found[1][1])
        alike = (node.op.name, attribute_key(node.attrs), node.absent, len(graph.operands(node)))
        key = (*alike, source.ref, masks[node.ref], inner, weight.dtype, ahead[0])
        groups.setdefault(key, []).append((ahead[1], node))
    for placed in groups.values():
        for run in _runs(sorted(placed, key=lambda f: f[0])):
            read, *rest = ([graph.operands(n)[i].ref for n in run] for i in range(len(graph.operands(run[0]))))
            axis, stacked = axes[run[0].ref]
            yield Joint(run, _results(graph, run), axis, (tuple(read[:1]), *map(tuple, rest)), stacked)


def _runs(placed: Sequence[tuple[int, Node]]) -> Iterator[tuple[Node, ...]]:
    """Nodes at places that follow one another, where there are two or more."""
    run: list[tuple[int, Node]] = []
    for place, node in placed:
        if run and place != run[-1][0] + 1:
            yield from _long(run)
            run = []
        run.append((place, node))
    yield from _long(run)


def _long(run: Sequence[tuple[int, Node]]) -> Iterator[tuple[Node, ...]]:
    if len(run) > 1:
        yield tuple(node for _, node in run)


def _results(graph: Graph, nodes: Sequence[Node]) -> Members:
    return tuple(graph.results(n)[0].ref for n in nodes)


# ---------------------------------------------------------------------- rows
class _Rows:
    """All that could be joined, and of that what stands."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._masks = graph, graph.needed_masks()
        self._made: dict[Members, Joint] = {}
        starts = {j.nodes[0].ref: j for j in _siblings(graph, self._masks)}
        first: dict[ValueRef, Members] = {}
        for node in graph.nodes():
            joint = starts.get(node.ref) or self._follows(node, first)
            if joint is not None:
                self._made[joint.members] = joint
                first[joint.members[0]] = joint.members

    def standing(self) -> list[Joint]:
        """What can be joined, in topological order."""
        while True:
            lost = [m for m, joint in self._made.items() if not self._stands(joint)]
            if not lost:
                return list(self._made.values())
            for members in lost:
                del self._made[members]

    def _stands(self, joint: Joint) -> bool:
        rows = (o for o in joint.operands if o is not None and len(o) > 1)
        if any(self._graph.value(row[0]).data is None and row not in self._made for row in rows):
            return False
        return not any(map(self._graph.is_output, joint.members)) and all(
            self._covered(joint, node, position) for m in joint.members for node, position in self._graph.uses(m)
        )

    def _covered(self, joint: Joint, node: Node, position: int) -> bool:
        """Whether a reader of one of the values is joined as well, or has all of them."""
        if node.op.name == "Concat":
            return node.attrs["axis"] == joint.axis and _place(self._graph, node, joint.members) is not None
        others = (j for j in self._made.values() if any(n.ref == node.ref for n in j.nodes))
        return any(position < len(j.operands) and j.operands[position] == joint.members for j in others)

    # ------------------------------------------------------------------ what goes on with a row
    def _follows(self, node: Node, first: Mapping[ValueRef, Members]) -> Joint | None:
        """The node with those that do the same to the other values of a row it reads the first of."""
        graph = self._graph
        if node.ref not in self._masks or len(graph.results(node)) != 1:
            return None
        for position, value in graph.operands(node).present():
            row = first.get(value.ref)
            if row is None:
                continue
            nodes = self._parallel(node, position, row)
            return None if nodes is None else self._joint(nodes, position, self._made[row])
        return None

    def _parallel(self, node: Node, position: int, row: Members) -> tuple[Node, ...] | None:
        found = [node]
        for member in row[1:]:
            same = [n for n, i in self._graph.uses(member) if i == position and self._same(n, node)]
            if len(same) != 1:
                return None
            found.append(same[0])
        return tuple(found) if len({n.ref for n in found}) == len(found) else None

    def _same(self, a: Node, b: Node) -> bool:
        return (
            a.op is b.op
            and attribute_key(a.attrs) == attribute_key(b.attrs)
            and a.absent == b.absent
            and len(self._graph.operands(a)) == len(self._graph.operands(b))
            and self._masks.get(a.ref) == self._masks.get(b.ref)
        )

    def _joint(self, nodes: tuple[Node, ...], position: int, row: Joint) -> Joint | None:
        graph, op = self._graph, nodes[0].op
        results = [graph.results(n)[0] for n in nodes]
        read = [graph.value(m) for m in row.members]
        axis = _leading(results[0]) if op.reinterprets else row.axis
        if not _alike(results, axis):
            return None
        if op.reinterprets:
            fits = all(_in_front(v, d) for found, d in ((read, row.axis), (results, axis)) for v in found)
        elif isinstance(op, Broadcast):
            fits = _spans(read, results, axis)
        else:
            fits = axis == 1 and (isinstance(op, (Pool, GlobalPool)) or op.name == "BatchNormalization")
        if not fits:
            return None
        operands: list[Members | None] = []
        axes: list[int] = []
        for index in range(len(graph.operands(nodes[0]))):
            values = [graph.operands(n).optional(index) for n in nodes]
            column = [v for v in values if v is not None]
            found = (row.members, row.axis) if index == position else self._column(op, column, results, axis)
            if found is None:
                return None
            operands.append(found[0] or None)
            axes.append(found[1])
        return Joint(nodes, tuple(r.ref for r in results), axis, tuple(operands), tuple(axes))

    def _column(
        self, op: Op, values: Sequence[Value], results: Sequence[Value], axis: int
    ) -> tuple[Members, int] | None:
        """What several nodes read at a position as one operand, and along which axis that is put together."""
        if not values:
            return (), 0
        column = tuple(v.ref for v in values)
        if column in self._made:
            fits = self._made[column].axis == axis and _spans(values, results, axis)
            return (column, axis) if fits else None
        if op.reinterprets:  # the shape, which the joint result decides
            return column[:1], 0
        own = 0 if op.name == "BatchNormalization" else values[0].rank - results[0].rank + axis
        along = [v.shape[own] if 0 <= own < v.rank else 1 for v in values]
        if set(along) == {1} and _equal(values):
            return column[:1], 0
        stacked = own >= 0 and along == [r.shape[axis] for r in results] and _alike(values, own)
        return (column, own) if stacked and all(map(_plain, values)) else None


def _alike(values: Sequence[Value], axis: int) -> bool:
    """Whether types are the same but for how many entries there are along an axis."""
    kinds = {(v.dtype, v.rank, *(n for d, n in enumerate(v.shape) if d != axis)) for v in values}
    return len(kinds) == 1


def _spans(values: Sequence[Value], results: Sequence[Value], axis: int) -> bool:
    """Whether each value has an entry along the axis for every one of its result."""
    return all(v.rank == r.rank and v.shape[axis] == r.shape[axis] for v, r in zip(values, results, strict=True))


def _equal(values: Sequence[Value]) -> bool:
    """Whether all are one value, or constants of the same numbers."""
    first = values[0]
    return all(v.ref == first.ref for v in values) or all(
        _plain(v) and v.type == first.type and np.array_equal(v.constant, first.constant) for v in values
    )


def _leading(value: Value) -> int:
    """The first axis of more than one entry."""
    return next((d for d, n in enumerate(value.shape) if n > 1), value.rank - 1)


def _in_front(value: Value, axis: int) -> bool:
    """Whether nothing but ones is in front of an axis: then what lies along it lies one after the other."""
    return all(n == 1 for n in value.shape[:axis])


def _place(graph: Graph, concat: Node, members: Members) -> int | None:
    """Where the values stand one after the other among the operands of a Concat, each of them once."""
    operands = [v.ref for v in graph.operands(concat)[:]]
    if members[0] not in operands or sum(o in members for o in operands) != len(members):
        return None
    start = operands.index(members[0])
    return start if tuple(operands[start : start + len(members)]) == members else None


# ---------------------------------------------------------------------- rewriting
def _carry_out(graph: Graph, joints: Sequence[Joint]) -> None:
    made: dict[Members, ValueRef] = {}
    concats: dict[NodeRef, Node] = {}
    for joint in joints:
        made[joint.members] = _one(graph, joint, made)
        readers = (n for m in joint.members for n, _ in graph.uses(m) if n.op.name == "Concat")
        concats |= {n.ref: n for n in readers}
    for concat in concats.values():
        _shorten(graph, concat, made)


def _one(graph: Graph, joint: Joint, made: Mapping[Members, ValueRef]) -> ValueRef:
    """Add the node that stands for all; its result."""
    first = graph.results(joint.nodes[0])[0]
    width = sum(graph.value(m).shape[joint.axis] for m in joint.members)
    shape = tuple(width if d == joint.axis else n for d, n in enumerate(first.shape))
    operands: list[ValueRef | None] = []
    for index, (column, axis) in enumerate(zip(joint.operands, joint.axes, strict=False)):
        if column is None:
            operands.append(None)
        elif joint.nodes[0].op.reinterprets and index:
            name = graph.fresh(f"{column[0]}/joined")
            operands.append(graph.add_parameter(name, np.array(shape, np.int64)).ref)
        elif len(column) == 1:
            operands.append(column[0])
        elif column in made:
            operands.append(made[column])
        else:
            data = np.concatenate([graph.value(ref).constant for ref in column], axis)
            operands.append(graph.add_parameter(graph.fresh(f"{column[0]}/joined"), data).ref)
    result = graph.add_value(graph.fresh(f"{first.ref}/joined"), replace(first.type, shape=shape))
    origin = tuple(dict.fromkeys(o for n in joint.nodes for o in n.origin))
    node = joint.nodes[0]
    graph.add_node(graph.fresh(f"{node.ref}/joined"), node.op, node.attrs, operands, [result.ref], origin)
    return result.ref


def _shorten(graph: Graph, concat: Node, made: Mapping[Members, ValueRef]) -> None:
    """Let a Concat read rows instead of their values; it goes where it reads one row alone."""
    operands = [v.ref for v in graph.operands(concat)[:]]
    for members, row in made.items():
        start = next((i for i in range(len(operands)) if tuple(operands[i : i + len(members)]) == members), None)
        if start is not None:
            operands[start : start + len(members)] = [row]
    (old,) = graph.results(concat)
    if len(operands) == 1:
        graph.replace_uses(old.ref, operands[0])
        return
    new = graph.add_value(graph.fresh(f"{old.ref}/joined"), TensorType(old.dtype, old.shape))
    graph.add_node(graph.fresh(f"{concat.ref}/joined"), concat.op, concat.attrs, operands, [new.ref], concat.origin)
    graph.replace_uses(old.ref, new.ref)
