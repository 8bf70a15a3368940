"""join-siblings: layers that read the same value side by side become one layer, and what follows them one chain.

Networks that were merged keep the layers they came with: of three networks that share everything, a layer is three
nodes that read the same channels, each followed by its own activation and pooling, and a Concat puts the results
together for the next layer. As one node they read the input once and fill vectors with channels of all three
(horizontal fusion, as in Jia et al. 2019, TASO, sections 2 and 4). Nodes are joined that all the same tasks need,
so every combination of tasks costs what it did. Exact: each channel is the sum it was, but for the order of its
terms.

A row is values that one value can hold one after the other. It stands only if whatever reads its values is joined
as well, or is a Concat that has all of them: in this order, or in any order if what reads the Concat can follow.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from compiler.ir.dead import sweep
from compiler.ir.graph import Attrs, Graph, Node, Ref, Value
from compiler.ir.op import Op
from compiler.ir.ops.conv import Convolving
from compiler.ir.ops.elementwise import Broadcast
from compiler.ir.types import NodeRef, TensorType, ValueRef
from compiler.passes.base import NewNames, Note, Pass, Refusal, Resources, check_outputs
from compiler.passes.dedupe import Deduplicate, attribute_key
from compiler.passes.join_shapes import equal, grouped, joint_axis, same_but_for, spans, wide
from compiler.passes.linear import per_output
from compiler.passes.reorder import Reordering, is_plain

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
    attrs: Attrs


@dataclass(frozen=True)
class JoinSiblings(Pass):
    """Make one layer of layers that read the same value, with the same attributes and for the same tasks.

    Conv and ConvTranspose without groups, Gemm and MatMul with dense constant weights start a row; element-wise
    operators, poolings, depthwise and grouped convolutions, BatchNormalization and flattening go on with it, up to
    the Concats that read all of it. A Concat that has other values between them gets another order where the
    weights that read it can.
    """

    name: ClassVar[str] = "join-siblings"
    exact: ClassVar[bool] = True
    new_names: ClassVar[NewNames] = NewNames.DERIVED

    def rewrite(self, graph: Graph, use: Resources) -> Iterable[Refusal]:
        told: list[Refusal] = []
        while joints := self._joints(graph, use):
            told += [
                Note(j.nodes[0].ref.name, f"one layer with {', '.join(n.ref.name for n in j.nodes[1:])}")
                for j in joints
                if j.nodes[0].op.name in LAYERS
            ]
        return told

    def _joints(self, graph: Graph, use: Resources) -> list[Joint]:
        """Join what can be joined now, and say what that was."""
        tuple(Deduplicate().rewrite(graph, use))  # not two Concats of the same
        rows = _Rows(graph)
        joints = rows.standing()
        _carry_out(graph, joints, rows.orders)
        sweep(graph)
        return joints

    def ensures(self, before: Graph, after: Graph) -> None:
        check_outputs(self.name, before, after)


# ---------------------------------------------------------------------- layers that start a row
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def _layer_axes(graph: Graph, node: Node) -> tuple[int, tuple[int, ...]] | None:
    """(channel axis of the result, axis of outputs by operand) of a layer that can be joined, else None."""
    operands, result = graph.operands(node), graph.results(node)[0]
    weight, bias = operands[1], operands.optional(2)
    if operands[0].data is not None or not is_plain(weight) or (bias is not None and not is_plain(bias)):
        return None
    if isinstance(node.op, Convolving):
        return (1, (0, int(node.op.transposed), 0)) if node.attrs["group"] == 1 else None
    if weight.rank != 2 or (bias is not None and not per_output(bias, result.shape[-1])):
        return None
    turned = node.op.name == "Gemm" and bool(node.attrs["transB"])
    return result.rank - 1, (0, 0 if turned else 1, -1)


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a value: of two with the same `number`, the same nodes make the same up to the same Concats.
    `places`: in each of these the first place of what becomes of it.
    """

    number: int
    places: Mapping[NodeRef, int]


def _fates(graph: Graph, masks: Mapping[Ref, int]) -> dict[ValueRef, Fate]:
    numbers: dict[Hashable, int] = {}
    found: dict[ValueRef, Fate] = {}
    for value in [v for node in reversed(graph.nodes()) for v in graph.results(node)]:
        steps: set[Hashable] = {value.ref} if graph.is_output(value.ref) else set()
        places: dict[NodeRef, int] = {}
        for node, index in graph.uses(value.ref):
            if node.op.name == "Concat":
                steps.add(node.ref)
                _first(places, {node.ref: index})
            elif node.op.name in LAYERS and not grouped(graph, node):
                steps.add((node.ref, index))
            else:
                after = [found[v.ref] for v in graph.results(node)]
                steps.add((*_kind(graph, node), index, masks.get(node.ref), *(f.number for f in after)))
                for fate in after:
                    _first(places, fate.places)
        found[value.ref] = Fate(numbers.setdefault(frozenset(steps), len(numbers)), places)
    return found


def _first(places: dict[NodeRef, int], more: Mapping[NodeRef, int]) -> None:
    for concat, place in more.items():
        places[concat] = min(place, places.get(concat, place))


def _kind(graph: Graph, node: Node) -> tuple[Hashable, ...]:
    """What nodes that become one have in common: all but operands, and how many groups of channels they keep."""
    attrs = {k: v for k, v in node.attrs.items() if k != "group" or not grouped(graph, node)}
    return node.op.name, attribute_key(attrs), node.absent, len(graph.operands(node))


class _Siblings:
    """Layers alike in all but their weights, in the order in which a Concat has what becomes of them."""

    def __init__(self, graph: Graph, masks: Mapping[Ref, int], orders: Reordering) -> None:
        self._graph, self._masks, self._orders = graph, masks, orders
        self._fates = _fates(graph, masks)
        self._rank = {node.ref: rank for rank, node in enumerate(graph.nodes())}

    def joints(self) -> Iterator[Joint]:
        """Those that could be joined, if what follows them can."""
        graph, groups = self._graph, dict[Hashable, list[Node]]()
        for node in graph.nodes():
            axes = _layer_axes(graph, node) if node.op.name in LAYERS and node.ref in self._masks else None
            fate = self._fate(node)
            if axes is None or not fate.places:
                continue
            source, weight = graph.operands(node)[:2]
            inner = tuple(n for d, n in enumerate(weight.shape) if d != axes[1][1])
            alike = (*_kind(graph, node), source.ref, self._masks[node.ref], inner, weight.dtype)
            groups.setdefault((*alike, fate.number), []).append(node)
        for nodes in groups.values():
            for run in self._runs(nodes) if len(nodes) > 1 else ():
                yield self._joint(run)

    def _fate(self, node: Node) -> Fate:
        return self._fates[self._graph.results(node)[0].ref]

    def _runs(self, nodes: Sequence[Node]) -> Iterator[tuple[Node, ...]]:
        """The nodes in order; in runs of neighbours where the order of some Concat is fixed."""
        places = self._fate(nodes[0]).places
        fixed = {c for c in places if not self._orders.allows(c)}
        # all that is added to one another before the last Concat is in its order
        concat = max(fixed or places, key=self._rank.__getitem__)
        placed = sorted(((self._fate(n).places[concat], n) for n in nodes), key=lambda f: f[0])
        runs: list[list[Node]] = []
        for i, (place, node) in enumerate(placed):
            if not runs or (fixed and place != placed[i - 1][0] + 1):
                runs.append([])
            runs[-1].append(node)
        return (tuple(run) for run in runs if len(run) > 1)

    def _joint(self, run: tuple[Node, ...]) -> Joint:
        graph, (axis, stacked) = self._graph, _layer_axes(self._graph, run[0]) or (0, ())
        read, *rest = ([graph.operands(n)[i].ref for n in run] for i in range(len(graph.operands(run[0]))))
        operands = (tuple(read[:1]), *map(tuple, rest))
        return Joint(run, _results(graph, run), axis, operands, stacked, run[0].attrs)


def _results(graph: Graph, nodes: Sequence[Node]) -> Members:
    return tuple(graph.results(n)[0].ref for n in nodes)


# ---------------------------------------------------------------------- rows
class _Rows:
    """All that could be joined, and of that what stands."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._masks, self.orders = graph, graph.needed_masks(), Reordering(graph)
        self._made: dict[Members, Joint] = {}
        starts = {j.nodes[0].ref: j for j in _Siblings(graph, self._masks, self.orders).joints()}
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
            return node.attrs["axis"] == joint.axis and self._has(node, joint.members)
        others = (j for j in self._made.values() if any(n.ref == node.ref for n in j.nodes))
        return any(position < len(j.operands) and j.operands[position] == joint.members for j in others)

    def _has(self, concat: Node, members: Members) -> bool:
        """Whether a Concat has, or can have, the values one after the other, each of them once."""
        operands = [v.ref for v in self._graph.operands(concat)[:]]
        if sorted(o for o in operands if o in members) != sorted(members):
            return False
        start = operands.index(members[0])
        return tuple(operands[start : start + len(members)]) == members or self.orders.allows(concat.ref)

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
        alike = _kind(self._graph, a) == _kind(self._graph, b)
        return alike and self._masks.get(a.ref) == self._masks.get(b.ref)

    def _joint(self, nodes: tuple[Node, ...], position: int, row: Joint) -> Joint | None:
        graph, op = self._graph, nodes[0].op
        results = [graph.results(n)[0] for n in nodes]
        axis = joint_axis(graph, nodes, [graph.value(m) for m in row.members], row.axis)
        if axis is None:
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
        attrs = nodes[0].attrs
        if isinstance(op, Convolving):
            attrs = {**attrs, "group": sum(int(n.attrs["group"]) for n in nodes)}
        return Joint(nodes, tuple(r.ref for r in results), axis, tuple(operands), tuple(axes), attrs)

    def _column(
        self, op: Op, values: Sequence[Value], results: Sequence[Value], axis: int
    ) -> tuple[Members, int] | None:
        """What several nodes read at a position as one operand, and along which axis that is put together."""
        if not values:
            return (), 0
        column = tuple(v.ref for v in values)
        if column in self._made:
            fits = self._made[column].axis == axis and spans(values, results, axis)
            return (column, axis) if fits else None
        if op.reinterprets:  # a shape, which the joint result decides, or axes
            return (column[:1], 0) if op.name == "Reshape" or equal(values) else None
        spread = isinstance(op, Broadcast)
        own = values[0].rank - results[0].rank + axis if spread else 0
        along = [v.shape[own] if 0 <= own < v.rank else 1 for v in values]
        if spread and set(along) == {1} and equal(values):
            return column[:1], 0
        stacked = own >= 0 and along == [r.shape[axis] for r in results] and same_but_for(values, own)
        return (column, own) if stacked and all(map(is_plain, values)) else None


# ---------------------------------------------------------------------- rewriting
def _carry_out(graph: Graph, joints: Sequence[Joint], orders: Reordering) -> None:
    made: dict[Members, ValueRef] = {}
    concats = {n.ref: n for j in joints for m in j.members for n, _ in graph.uses(m) if n.op.name == "Concat"}
    rows = {m: j.members for j in joints for m in j.members}
    parts = {ref: _side_by_side([v.ref for v in graph.operands(n)[:]], rows) for ref, n in concats.items()}
    for ref, concat in concats.items():
        order = _order(graph, concat, parts[ref])
        if np.any(np.diff(order) < 0):
            orders.put(ref, order)
    for joint in joints:
        made[joint.members] = _one(graph, joint, made)
    for ref, concat in concats.items():
        _shorten(graph, concat, [made.get(part, part[0]) for part in parts[ref]])


def _side_by_side(operands: Sequence[ValueRef], rows: Mapping[ValueRef, Members]) -> list[Members]:
    """What a Concat has, with the values of a row where the first of them was."""
    found: list[Members] = []
    for operand in operands:
        part = rows.get(operand, (operand,))
        if len(part) == 1 or part not in found:
            found.append(part)
    return found


def _order(graph: Graph, concat: Node, parts: Sequence[Members]) -> np.ndarray:
    """Which of its channels now each channel will be when a Concat has its values in the order of the parts."""
    axis, start = int(concat.attrs["axis"]), 0
    held: dict[ValueRef, list[np.ndarray]] = {}
    for value in graph.operands(concat)[:]:
        held.setdefault(value.ref, []).append(start + np.arange(value.shape[axis]))
        start += value.shape[axis]
    return np.concatenate([held[ref].pop(0) for part in parts for ref in part])


def _one(graph: Graph, joint: Joint, made: Mapping[Members, ValueRef]) -> ValueRef:
    """Add the node that stands for all; its result."""
    first = graph.results(joint.nodes[0])[0]
    shape = wide([graph.value(m) for m in joint.members], joint.axis)
    operands: list[ValueRef | None] = []
    for index, (column, axis) in enumerate(zip(joint.operands, joint.axes, strict=False)):
        if column is None:
            operands.append(None)
        elif joint.nodes[0].op.name == "Reshape" and index:
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
    graph.add_node(graph.fresh(f"{node.ref}/joined"), node.op, joint.attrs, operands, [result.ref], origin)
    return result.ref


def _shorten(graph: Graph, concat: Node, operands: Sequence[ValueRef]) -> None:
    """Let a Concat read rows instead of their values; it goes where it reads one row alone."""
    (old,) = graph.results(concat)
    if len(operands) == 1:
        graph.replace_uses(old.ref, operands[0])
        return
    new = graph.add_value(graph.fresh(f"{old.ref}/joined"), TensorType(old.dtype, old.shape))
    graph.add_node(graph.fresh(f"{concat.ref}/joined"), concat.op, concat.attrs, operands, [new.ref], concat.origin)
    graph.replace_uses(old.ref, new.ref)
