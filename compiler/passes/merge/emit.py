"""New nodes of the merged graph: a layer for one label, a node per channel with the channels of one slab."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from compiler.ir.graph import Attrs, Graph, Node, NodeRef, Operands, Value
from compiler.ir.op import Kept, Op, operator
from compiler.ir.ties import Atom
from compiler.ir.types import DType, TensorType, ValueRef
from compiler.passes.linear import only_reader
from compiler.passes.merge.channels import ChannelMap
from compiler.passes.merge.labels import Channel, Slab, Unit
from compiler.passes.merge.streams import Source
from compiler.passes.prune.surgery import complement


def emit(
    graph: Graph, name: str, op: Op, attrs: Attrs, operands: Sequence[ValueRef | None], results: int = 1
) -> tuple[Value, ...]:
    """A new node with inferred results; names get a number where they are taken."""
    values = Operands([None if o is None else graph.value(o) for o in operands])
    ref = NodeRef(graph.fresh(name))
    types = op.infer(Node(ref, op, attrs), values, results)
    made = [graph.add_value(graph.fresh(f"{ref.name}:{i}"), t) for i, t in enumerate(types)]
    graph.add_node(ref.name, op, attrs, operands, [v.ref for v in made])
    return tuple(made)


def concat(graph: Graph, name: str, values: Sequence[ValueRef], axis: int) -> ValueRef:
    """The values side by side; a single one is itself."""
    if len(values) == 1:
        return values[0]
    return emit(graph, f"{name}/inputs", operator("Concat"), {"axis": axis}, values)[0].ref


def parameter(graph: Graph, name: str, data: np.ndarray, dtype: DType) -> ValueRef:
    """A new constant of the given element type."""
    return graph.add_parameter(graph.fresh(name), np.ascontiguousarray(data, dtype.numpy)).ref


def set_parameter(graph: Graph, node: NodeRef, index: int, data: np.ndarray) -> None:
    """New data, of any shape, for a constant operand of one node; other readers of the old one keep it."""
    old = graph.operands(graph.node(node)).optional(index)
    array = np.ascontiguousarray(data, graph.results(graph.node(node))[0].dtype.numpy)
    if old is not None and only_reader(graph, old.ref) is not None:
        if old.shape == array.shape:
            graph.update(old.ref, data=array)
        else:
            graph.update(old.ref, type=TensorType(old.dtype, array.shape), data=array)
        return
    hint = f"{node.name}_bias" if old is None else old.ref.name
    graph.set_operand(node, index, graph.add_parameter(graph.fresh(hint), array).ref)


# ---------------------------------------------------------------------- nodes that work on each channel alone
class Clone:
    """A copy of a node that works on each channel alone, for the channels of some slabs.

    `sources`: the networks' nodes at this place that hold the slabs. The first one gives attributes and shapes: its
    own groups cut down to as many channels as the slabs have.
    """

    def __init__(
        self, graph: Graph, channels: ChannelMap, sources: Sequence[Source], slabs: Sequence[Slab], name: str
    ) -> None:
        self._graph, self._channels, self._sources, self._slabs = graph, channels, sources, slabs
        self._name = name
        self._site = sources[0].site
        self._own = [next(g for g in sources[0].groups if g in slab.groups) for slab in slabs]
        self._kept = self._cut()

    def add(self, operands: Mapping[int, ValueRef], change: Mapping[int, np.ndarray]) -> Value:
        """Add the node, reading `operands` (position -> merged value); `change` replaces parameters."""
        site = self._site
        rebuilt = site.node.op.rebuild(site, self._kept)
        reads: list[ValueRef | None] = [None] * len(site.operands)
        for index, value in site.operands.present():
            if value.data is None:
                reads[index] = operands[index]
                continue
            data = change.get(index, rebuilt.constants.get(index))
            data = self.parameter(index) if data is None else np.asarray(data)
            same = data is value.data
            reads[index] = value.ref if same else parameter(self._graph, value.ref.name, data, value.dtype)
        return emit(self._graph, self._name, site.node.op, rebuilt.attrs, reads)[0]

    def columns(self, value: Value) -> tuple[np.ndarray, ...]:
        """Per slab, [channels, entries per channel] on the channel axis of the copy of `value`."""
        dim = self._channels.channel_dim(value)
        assert dim is not None
        return self._places(value, dim)

    def entry(self, unit: Unit, value: Value) -> int:
        """The place of a channel on an original value's channel axis, where it has one."""
        return int(self.entries(unit, value)[0])

    def entries(self, unit: Unit, value: Value) -> np.ndarray:
        """All places of a channel there."""
        dim = self._channels.channel_dim(value)
        assert dim is not None
        return self._channels.groups[unit.group].atoms[unit.channel].entries[value.axis(dim)]

    def parameter(self, index: int) -> np.ndarray:
        """A parameter's entries of every channel: the weighted mean over its members that have the node."""
        value = self._site.operands[index]
        dims = [d for d in range(value.rank) if self._channels.counts(value.axis(d))]
        if not dims:
            return value.constant
        (dim,) = dims
        size = sum(p.size for p in self._places(value, dim))
        data = {s.ref: s.site.operands[index].constant.astype(np.float64) for s in self._sources}
        made = np.zeros([size if d == dim else n for d, n in enumerate(value.shape)])
        for slab, places in zip(self._slabs, self._places(value, dim), strict=True):
            for channel, at in zip(slab.channels, places, strict=True):
                mean = member_mean(self._channels, self._sources, channel, index, dim, data)
                np.moveaxis(made, dim, 0)[at] = np.moveaxis(mean, dim, 0)
        return made.astype(value.dtype.numpy)

    def _cut(self) -> Kept:
        stays = dict.fromkeys(self._sources[0].groups, 0)
        for group, slab in zip(self._own, self._slabs, strict=True):
            stays[group] += len(slab.channels)
        gone: list[Atom] = [a for g, n in stays.items() for a in self._channels.groups[g].atoms[n:]]
        site = self._site
        owners = {site.node.ref, *(v.ref for _, v in site.operands.present()), *(v.ref for v in site.results)}
        removal = {axis: e for axis, e in self._channels.closure.removal(gone).items() if axis.owner in owners}
        return complement(self._graph, removal)

    def _places(self, value: Value, dim: int) -> tuple[np.ndarray, ...]:
        """Per slab, where its channels lie on an axis when only those of the slabs are there."""
        kept = self._kept.of(value, dim)
        found = []
        for group, slab in zip(self._own, self._slabs, strict=True):
            entries = self._channels.groups[group].entries(value.axis(dim))[: len(slab.channels)]
            found.append(np.searchsorted(kept, entries))
        return tuple(found)


def member_mean(
    channels: ChannelMap,
    sources: Sequence[Source],
    channel: Channel,
    index: int,
    dim: int,
    data: Mapping[NodeRef, np.ndarray],
) -> np.ndarray:
    """The entries of a channel along axis `dim` of operand `index`, averaged over its members among `sources`.

    `data`: per node the numbers that stand for the operand; their other axes may be of any size.
    """
    parts = []
    for source, unit, weight in present_members(sources, channel):
        entries = channels.groups[unit.group].atoms[unit.channel].entries[source.site.operands[index].axis(dim)]
        parts.append(np.take(data[source.ref], entries, axis=dim) * weight)
    return np.asarray(sum(parts[1:], parts[0]))


def present_members(sources: Sequence[Source], channel: Channel) -> list[tuple[Source, Unit, float]]:
    """(source, unit, weight) of the members of a channel whose networks are among `sources`; weights sum to 1.

    Where no member with weight is there, the first one that is there stands in.
    """
    found = []
    for unit, weight in zip(channel.members, channel.weights, strict=True):
        source = next((s for s in sources if unit.group in s.groups), None)
        if source is not None:
            found.append((source, unit, weight))
    total = sum(w for _, _, w in found)
    if not total:
        return [(s, u, 1.0) for s, u, _ in found[:1]]
    return [(s, u, w / total) for s, u, w in found if w]
