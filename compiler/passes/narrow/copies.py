"""A multitask graph as one network per task, so that its channels can be given to tasks anew.

Nothing has to be found out about which layers correspond: a copy of a node corresponds to the other copies of it.
Labels are then what they are in `merge`, and its assembly makes one node per label again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from compiler.ir.graph import Graph, Site, Value
from compiler.ir.relations import where
from compiler.ir.types import Axis, NodeRef, ValueRef
from compiler.passes.merge.channels import ChannelMap, made_axis, one_label
from compiler.passes.merge.labels import Channel, Labelling, Unit, base_name
from compiler.passes.merge.match import Alignment, Member, Position, sorted_masks
from compiler.passes.merge.streams import Stream, Streams


class Copies:
    """`graph` with a copy of every node for each task that needs it, and the channels of corresponding copies.

    A channel has one number, whichever copy it is looked up in. `exclude(name)`: values and nodes of `graph` whose
    channels stay as they are.
    """

    def __init__(self, graph: Graph, exclude: Callable[[str], bool] = lambda name: False) -> None:
        self.original = graph
        self.tasks, self._masks = sorted_masks(graph)
        apart = set[str]()

        def excluded(name: str) -> bool:
            return name in apart or exclude(name)

        self._look_at(excluded)
        while found := self._seen_apart():
            apart |= found
            self._look_at(excluded)
        self._obstacles += [f"the tasks see the channels of '{name}' in different ways" for name in sorted(apart)]

    def _look_at(self, exclude: Callable[[str], bool]) -> None:
        """Copies and channels, where some channels stay as they are."""
        self._exclude = self._everybodys(exclude)
        self._values: dict[tuple[int, ValueRef], ValueRef] = {}
        self._nodes: dict[tuple[int, NodeRef], NodeRef] = {}
        self._source: dict[str, str] = {}
        self.graph = self._copied().freeze()
        channels = _channel_map(self.graph, lambda name: self._exclude(self._source.get(name, name)))
        self.streams = Streams(self.graph, self._alignment(), channels)
        self._first: dict[int, int] = {}
        self.count = 0
        """Number of channels."""
        for stream in self.streams.streams:
            self._first[stream.index] = self.count
            self.count += self._width(stream)

    def owners(self, node: NodeRef) -> int:
        """The tasks that need a node of the original graph."""
        return self._masks.get(node, 0)

    def full(self) -> np.ndarray:
        """Per channel the tasks that have it: what its label is at first."""
        found = np.zeros(self.count, np.int64)
        for stream in self.streams.streams:
            found[self.numbers(stream)] = self.streams.mask_of(stream.groups)
        return found

    def numbers(self, stream: Stream) -> np.ndarray:
        """The channels of a stream."""
        return self._first[stream.index] + np.arange(self._width(stream))

    def on(self, value: Value, mask: int) -> np.ndarray | None:
        """Which channel every entry of an original value's channel axis belongs to, as the tasks of `mask` see it.

        None where the copies do not agree or the value is read whole.
        """
        found = [self._on_copy(bit, value) for bit in range(len(self.tasks)) if mask >> bit & 1]
        first = found[0] if found else None
        if first is None or any(other is None or not np.array_equal(first, other) for other in found[1:]):
            return None
        return first

    def axis(self, value: Value) -> Axis | None:
        """The axis of an original value on which the first task that needs it has channels; None without one."""
        bit = next(b for b in range(len(self.tasks)) if (b, value.ref) in self._values)
        dim = self.streams.channels.channel_dim(self.graph.value(self._values[bit, value.ref]))
        return None if dim is None else value.axis(dim)

    def obstacle(self) -> str:
        """The first reason why channels of some group are read whole, behind a colon; empty where there is none."""
        return f": {self._obstacles[0]}" if self._obstacles else ""

    def used_up(self) -> str:
        """What layers of one channel mean, and what to do, on a line of its own; empty where there are none."""
        axes = ((s, made_axis(s)) for s in self.original.sites() if not self.original.is_output(s.results[0].ref))
        found = [s for s, made in axes if made is not None and _entries(s.results[0], made) == 1]
        if not found:
            return ""
        more = f" and {len(found) - 1} more have" if len(found) > 1 else " has"
        return (
            f"\n{where(found[0])}{more} one channel left. One entry counts no channels, so what is made there, and "
            "what it is made from for several tasks, stays for all of them. Narrow the network that has more, once "
            "and down to the whole budget, rather than twice"
        )

    def copy(self, site: Site) -> Site:
        """The copy of an original node in the first task that needs it."""
        bit = (self.owners(site.node.ref) & -self.owners(site.node.ref)).bit_length() - 1
        return self.graph.site(self.graph.node(self._nodes[bit, site.node.ref]))

    def labelling(self, labels: np.ndarray) -> Labelling:
        """What the assembly is told: per stream the channels that some task has, each for just these tasks."""
        found = {}
        for stream in self.streams.streams:
            group_of = {self.streams.group_masks[g]: g for g in stream.groups}
            channels = []
            for channel, label in enumerate(labels[self.numbers(stream)]):
                groups = tuple(sorted(g for bit, g in group_of.items() if bit & int(label)))
                if groups:
                    members = tuple(Unit(g, channel) for g in groups)
                    share = 1 / len(groups)
                    channels.append(Channel(groups, members, (1.0,) * len(groups), (share,) * len(groups)))
            found[stream.index] = tuple(channels)
        return found

    # ------------------------------------------------------------------ pieces
    def _everybodys(self, exclude: Callable[[str], bool]) -> Callable[[str], bool]:
        """`exclude`, which also holds for values in front of nodes that read them whole for several tasks.

        Such a node is one for all of its tasks, so everything that it reads has to be for all of them.
        """
        names: set[str] = set()

        def excluded(name: str) -> bool:
            return name in names or exclude(name)

        channels = _channel_map(self.original, excluded)
        self._obstacles = [g.reason for g in channels.groups if not g.split]
        while found := self._before_whole(channels):
            names |= found
            channels = _channel_map(self.original, excluded)
        return excluded

    def _before_whole(self, channels: ChannelMap) -> set[str]:
        """The values with channels from which some node of several tasks makes results that are read whole."""
        reached: set[ValueRef] = set()
        for site in reversed(tuple(self.original.sites())):
            mask = self.owners(site.node.ref)
            whole = mask & (mask - 1) and all(channels.channel_dim(v) is None for v in site.results)
            read = [v for _, v in site.operands.present() if v.data is None]
            if whole or reached.intersection(v.ref for v in site.results):
                reached.update(v.ref for v in read)
            if whole and any(channels.channel_dim(v) is not None for v in read):
                self._obstacles.append(f"{where(site)} is computed as a whole, for several tasks at once")
        return {r.name for r in reached if channels.channel_dim(self.original.value(r)) is not None}

    def _seen_apart(self) -> set[str]:
        """The values with channels of which the tasks that need them see other ones: one adds what another one
        keeps apart, or reads a part. These have to be for all of them.
        """
        found = set()
        for site in self.original.sites():
            mask = self.owners(site.node.ref)
            for value in site.results if mask else ():
                alone = (self.on(value, 1 << bit) for bit in self._bits(site.node.ref))
                if self.on(value, mask) is None and any(a is not None for a in alone):
                    found.add(value.ref.name)
        return found

    def _width(self, stream: Stream) -> int:
        return max(self.streams.group(g).width for g in stream.groups)

    def _on_copy(self, bit: int, value: Value) -> np.ndarray | None:
        copy = self.graph.value(self._values[bit, value.ref])
        dim = self.streams.channels.channel_dim(copy)
        if dim is None:
            return None
        found = np.full(copy.shape[dim], -1)
        for group in self.streams.channels.parts(copy):
            entries = self.streams.group(group).entries(copy.axis(dim))
            found[entries] = self.numbers(self.streams.of_group[group])[: len(entries), None]
        return found

    def _alignment(self) -> Alignment:
        _, masks = sorted_masks(self.graph)
        positions: list[Position] = []
        for node in self.original.nodes():
            masks_of: dict[NodeRef, int] = {}
            for bit in self._bits(node.ref):
                copy = self._nodes[bit, node.ref]
                masks_of[copy] = masks_of.get(copy, 0) | 1 << bit
            if masks_of:
                members = tuple(Member(self.graph.node(r), m) for r, m in masks_of.items())
                positions.append(Position(len(positions), members))
        of = {m.node.ref: p for p in positions for m in p.members}
        return Alignment(self.tasks, tuple(positions), of, masks, ())

    def _copied(self) -> Graph:
        made = Graph(self.original.name)
        channels = _channel_map(self.original, self._exclude)
        common: set[ValueRef] = set()
        for value in self.original.inputs:
            made.add_input(value.ref.name, value.type)
            self._values |= {(b, value.ref): value.ref for b in range(len(self.tasks))}
            common.add(value.ref)
        for site in self.original.sites():
            bits, read = self._bits(site.node.ref), (v.ref for _, v in site.operands.present() if v.data is None)
            if common.issuperset(read) and all(channels.channel_dim(v) is None for v in site.results):
                common |= {v.ref for v in site.results}
                self._share_node(made, site, bits)
            else:
                for bit in bits:
                    self._copy_node(made, site, bit, own=len(bits) == 1)
        for name, task in self.original.tasks.items():
            bit = self.tasks.index(name)
            refs = [self._value(made, bit, self.original.value(r)) for r in task.outputs]
            made.set_task(name, refs, task.labels)
        return made

    def _bits(self, node: NodeRef) -> list[int]:
        return [b for b in range(len(self.tasks)) if self.owners(node) >> b & 1]

    def _share_node(self, made: Graph, site: Site, bits: Sequence[int]) -> None:
        """One copy for all tasks: its channels cannot have labels of their own, so all copies would be equal."""
        for bit in bits[:1]:
            self._copy_node(made, site, bit, own=True)
        for bit in bits[1:]:
            self._nodes[bit, site.node.ref] = self._nodes[bits[0], site.node.ref]
            self._values |= {(bit, v.ref): self._values[bits[0], v.ref] for v in site.results}

    def _copy_node(self, made: Graph, site: Site, bit: int, own: bool) -> None:
        operands = [site.operands.optional(i) for i in range(len(site.operands))]
        reads = [None if v is None else self._value(made, bit, v) for v in operands]
        results = []
        for value in site.results:
            name = self._named(made, value.ref.name, bit, own)
            results.append(made.add_value(name, value.type).ref)
            self._values[bit, value.ref] = results[-1]
        name = self._named(made, site.node.ref.name, bit, own)
        made.add_node(name, site.node.op, site.node.attrs, reads, results, site.node.origin)
        self._nodes[bit, site.node.ref] = NodeRef(name)

    def _value(self, made: Graph, bit: int, value: Value) -> ValueRef:
        """The copy of a value; every reader has its own copy of a parameter, which takes no memory."""
        if value.data is None:
            return self._values[bit, value.ref]
        alone = len(self.original.uses(value.ref)) == 1 and value.ref not in made
        name = self._named(made, value.ref.name, bit, alone)
        return made.add_value(name, value.type, value.data).ref

    def _named(self, made: Graph, name: str, bit: int, own: bool) -> str:
        found = name if own else f"{self.tasks[bit]}/{base_name(name, self.tasks)}"
        taken = ValueRef(found) in made or NodeRef(found) in made
        found = made.fresh(found) if taken else found
        self._source[found] = name
        return found


def _entries(value: Value, axis: Axis) -> int:
    """How long an axis of `value` is."""
    return next(value.shape[d] for d in range(value.rank) if value.axis(d) == axis)


def _channel_map(graph: Graph, exclude: Callable[[str], bool]) -> ChannelMap:
    return ChannelMap(graph, exclude, recurrent=True, beside=True)


def joint_channels(copies: Copies) -> np.ndarray:
    """Per channel whether it goes from all of its tasks at once: the layer that makes it has one label."""
    found = np.zeros(copies.count, bool)
    for site in copies.original.sites():
        mask = copies.owners(site.node.ref)
        made = copies.on(site.results[0], mask) if mask and one_label(site) else None
        if made is not None:
            found[made[made >= 0]] = True
    return found
