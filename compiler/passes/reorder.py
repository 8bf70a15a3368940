"""Operands of a Concat in another order, exactly: whatever is computed from its result follows with its weights.

A Concat is looked at as if its result came from nowhere: the ties behind it say which entries of which axes belong
to a channel, such as a column of the weights that read it. Where every channel has the same kinds of entries, and
nothing holds one in place, channels may change places if the parameters do.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from compiler.ir.encoding import Dense
from compiler.ir.graph import Graph, Node, Site, Value
from compiler.ir.op import Kept, MacOp, Op, Tie
from compiler.ir.ops.elementwise import Broadcast, Movement
from compiler.ir.ops.pool import GlobalPool, Pool
from compiler.ir.ties import Closure, Group
from compiler.ir.types import Axis, NodeRef, ValueRef
from compiler.passes.prune.surgery import taken

Blocks = Mapping[Axis, np.ndarray]
"""Axis -> positions on it, [channels, entries per channel]."""


def is_plain(value: Value) -> bool:
    """Whether a value is a constant that is stored as it is, at one level."""
    return value.data is not None and isinstance(value.type.encoding, Dense) and not value.sparser


class Reordering:
    """Which Concats of `graph` can have their channels in another order, and that order in what reads them."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._known: dict[NodeRef, Blocks | None] = {}

    def allows(self, concat: NodeRef) -> bool:
        """Whether everything that reads the Concat can follow another order of its channels."""
        return self._blocks(concat) is not None

    def put(self, concat: NodeRef, order: np.ndarray) -> None:
        """Write parameters for a result of the Concat whose channels are `order` of what it has now.

        The operands are left to the caller. The Concat is one that `allows` holds for.
        """
        graph, blocks = self._graph, self._blocks(concat)
        assert blocks is not None
        orders = self._orders(blocks, order)
        for ref in dict.fromkeys(axis.owner for axis in blocks):
            if isinstance(ref, ValueRef) and ref in graph and graph.value(ref).data is not None:
                type_, data = taken(graph.value(ref), Kept(orders))
                graph.update(ref, type=type_, data=data)

    # ------------------------------------------------------------------ what belongs to a channel
    @cached_property
    def _cut(self) -> tuple[Graph, Mapping[NodeRef, Axis]]:
        """The graph with constants in place of what Concats make, and the axes along which these have channels."""
        cut, axes = self._graph.copy(), {}
        for node in self._graph.nodes():
            (result, *_) = self._graph.results(node)
            if node.op.name == "Concat" and result.dtype.is_float:
                zeros = np.broadcast_to(np.zeros((), result.dtype.numpy), result.shape)
                stand_in = cut.add_value(cut.fresh(f"{result.ref}/order"), result.type, zeros)
                cut.replace_uses(result.ref, stand_in.ref)
                axes[node.ref] = stand_in.axis(int(node.attrs["axis"]))
        return cut, axes

    @cached_property
    def _closure(self) -> Closure:
        return Closure(self._cut[0])

    @cached_property
    def _groups(self) -> tuple[Group, ...]:
        return self._closure.groups

    def _blocks(self, concat: NodeRef) -> Blocks | None:
        if concat not in self._known:
            axis = self._cut[1].get(concat)
            self._known[concat] = None if axis is None else self._behind(axis)
        return self._known[concat]

    def _behind(self, axis: Axis) -> Blocks | None:
        """The entries of every channel on an axis, in its order; None where channels cannot change places."""
        groups = [g for g in self._groups if axis in g.axes]
        if len(groups) != 1 or not all(map(self._movable, (a for a in groups[0].axes if a != axis))):
            return None
        (group,) = groups
        atoms = sorted(group.atoms, key=lambda atom: int(atom.entries[axis][0]))
        if any(len({len(atom.entries[a]) for atom in atoms}) > 1 for a in group.axes):
            return None
        blocks = {a: np.stack([atom.entries[a] for atom in atoms]) for a in group.axes}
        alone = np.array_equal(blocks[axis][:, 0], np.arange(self._closure.size(axis)))
        return blocks if alone and self._like_each_other(blocks) else None

    def _movable(self, axis: Axis) -> bool:
        """Whether entries of an axis may change places: not where sparse weights are stored, nor in a Concat."""
        if isinstance(axis.owner, NodeRef):
            return True
        producer = self._cut[0].producer(axis.owner)
        if producer is not None:
            return producer.op.name != "Concat"
        return axis.owner in self._graph and is_plain(self._graph.value(axis.owner))

    def _like_each_other(self, blocks: Blocks) -> bool:
        """Whether nodes tie the entries of each channel as they tie the next one's: then any order is as good."""
        channels = len(next(iter(blocks.values())))
        orders = self._orders(blocks, np.roll(np.arange(channels), 1))
        sites = self._sites(blocks)
        alike = all(_has_no_places(site.node.op) for site in sites)
        return alike and all(_agrees(tie, orders) for site in sites for tie in site.node.op.ties(site))

    def _orders(self, blocks: Blocks, order: np.ndarray) -> dict[Axis, np.ndarray]:
        """For each axis what stands where, when channels are in another order."""
        found = {}
        for axis, entries in blocks.items():
            found[axis] = np.arange(self._closure.size(axis))
            found[axis][entries] = entries[order]
        return found

    def _sites(self, blocks: Blocks) -> list[Site]:
        """All nodes that have one of the axes."""
        cut, nodes = self._cut[0], dict[NodeRef, Node]()
        for owner in dict.fromkeys(axis.owner for axis in blocks):
            if isinstance(owner, NodeRef):
                nodes[owner] = cut.node(owner)
            else:
                producer = cut.producer(owner)
                nodes |= {n.ref: n for n, _ in cut.uses(owner)} | ({producer.ref: producer} if producer else {})
        return [cut.site(node) for node in nodes.values()]


def _has_no_places(op: Op) -> bool:
    """Whether an operator does with each entry of tied axes what it does with the others. CumSum does not: ties
    say only that it can do without some.
    """
    return isinstance(op, (Broadcast, Movement, MacOp, Pool, GlobalPool)) or op.name == "BatchNormalization"


def _agrees(tie: Tie, orders: Mapping[Axis, np.ndarray]) -> bool:
    """Whether a tie holds for both axes in their new orders."""
    if not {tie.a, tie.b} & orders.keys():
        return True
    tied = tie.index >= 0
    b = orders.get(tie.b, np.arange(len(tie.index)))
    a = tie.index if tie.a not in orders else orders[tie.a][tie.index]
    return np.array_equal(tied[b], tied) and np.array_equal(tie.index[b][tied], a[tied])
