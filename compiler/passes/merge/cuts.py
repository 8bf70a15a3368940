"""Where networks can be cut in two: single values that everything behind them is computed from.

Statistics over channels and products of activations, which transformer blocks are made of, read channels whole, so
that their channels get no labels one by one. Such a network can be shared up to a cut: all nodes in front of it are
one unit with one label, and what is behind it goes on from the value of another network. The cuts of an encoder are
the values of its residual stream between the layers of its blocks, and what is read by its head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compiler.ir.graph import Graph, Node, NodeRef, Site, Value
from compiler.ir.types import ValueRef
from compiler.passes.merge.channels import ChannelMap
from compiler.passes.merge.kinds import free_axes
from compiler.passes.merge.match import Alignment


@dataclass(frozen=True, slots=True)
class Cut:
    """Corresponding values of two networks, through which alone all that is their own reaches their outputs.

    `position`: of the alignment; later cuts have larger ones. `axis`: the axis that counts channels, None where
    there is no single one.
    """

    position: int
    mine: ValueRef
    theirs: ValueRef
    axis: int | None


def has_blocks(graph: Graph) -> bool:
    """Whether some node is part of a block, which reads channels whole."""
    return any(_reads_whole(graph, s) for s in graph.sites())


def _reads_whole(graph: Graph, site: Site) -> bool:
    """Whether it is a product of activations or takes statistics over channels: attention, layer normalisation."""
    name, data = site.node.op.name, [v for _, v in site.operands.present() if v.data is None]
    if name == "MatMul":
        return len(data) == 2
    if name == "Sub" and len(data) == 2:
        mean = graph.producer(data[1].ref)
        return mean is not None and mean.op.name == "ReduceMean" and graph.operands(mean)[0].ref == data[0].ref
    return name == "LayerNormalization"


class Cuts:
    """The cuts of every pair of networks. `excluded(name)`: nodes and values that have to stay."""

    def __init__(
        self, graph: Graph, alignment: Alignment, channels: ChannelMap, excluded: Callable[[str], bool]
    ) -> None:
        self._graph, self._alignment, self._channels = graph, alignment, channels
        self._excluded, self._free = excluded, free_axes(graph)
        self._known = {(t, o): self._pair(t, o) for t in alignment.tasks for o in alignment.tasks if t != o}

    @property
    def found(self) -> bool:
        """Whether some networks have cuts in common."""
        return any(map(bool, self._known.values()))

    def between(self, task: str, owner: str) -> tuple[Cut, ...]:
        """Where the network of `task` can go on from that of `owner`, from the inputs on."""
        return self._known[task, owner]

    def _pair(self, task: str, owner: str) -> tuple[Cut, ...]:
        mine = [e for e in self._exits(task, owner) if e.left]
        theirs = {self._alignment.of[e.node.ref].index: e for e in self._exits(owner, task)}
        found: list[tuple[int, Cut]] = []
        for one in mine:
            position = self._alignment.of[one.node.ref].index
            cut = self._cut(position, one.node, theirs[position].node) if position in theirs else None
            if cut is None or one.stays:
                continue
            if found and found[-1][0] == one.macs:  # nothing that costs lies between: the later one saves no less
                found.pop()
            found.append((one.macs, cut))
        return tuple(cut for _, cut in found)

    def _exits(self, task: str, other: str) -> list[_Exit]:
        """The single values through which one task's nodes that the other has not reach its outputs."""
        bit, others = (1 << self._alignment.tasks.index(t) for t in (task, other))
        masks, graph = self._alignment.masks, self._graph
        nodes = [n for n in graph.nodes() if masks.get(n.ref, 0) & bit and not masks[n.ref] & others]
        if not any(_reads_whole(graph, graph.site(n)) for n in nodes):
            return []
        return _exits(graph, nodes, self._excluded)

    def _cut(self, position: int, mine: Node, theirs: Node) -> Cut | None:
        a, b = (self._graph.results(n)[0] for n in (mine, theirs))
        if self._channels.channel_dim(a) is not None or self._channels.channel_dim(b) is not None:
            return None
        axes = self._free[a.ref] & self._free[b.ref]
        axis = next(iter(axes)) if len(axes) == 1 and a.rank == b.rank else None
        if not a.dtype.is_float or a.dtype is not b.dtype or _without(a, axis) != _without(b, axis):
            return None
        return Cut(position, a.ref, b.ref, axis)


@dataclass(frozen=True, slots=True)
class _Exit:
    """A node with one result that all of `nodes` pass through; multiply-adds of it and all in front of it (`macs`),
    and of what is `left` behind it.
    """

    node: Node
    macs: int
    left: int
    stays: bool
    """Whether something in front of it was excluded."""


def _exits(graph: Graph, nodes: Sequence[Node], excluded: Callable[[str], bool]) -> list[_Exit]:
    """Nodes (in topological order) that dominate the outputs of `nodes`, in order.

    Sets of nodes are bits of integers: every node is above or below an exit, and nothing above it is read by
    anything that is not.
    """
    number = {n.ref: i for i, n in enumerate(nodes)}
    output = 1 << len(nodes)
    above, leaks, readers = [0] * len(nodes), [0] * len(nodes), [0] * len(nodes)
    for i, node in enumerate(nodes):
        results = graph.results(node)
        reading = [number[n.ref] for v in results for n, _ in graph.uses(v.ref) if n.ref in number]
        readers[i] = sum(1 << j for j in set(reading)) | output * any(graph.is_output(v.ref) for v in results)
        above[i] = 1 << i
        for j in _read(graph, node, number):
            above[i] |= above[j]
            leaks[i] |= leaks[j] | readers[j]
    below = [0] * len(nodes)
    for i in reversed(range(len(nodes))):
        below[i] |= 1 << i
        for j in _read(graph, nodes[i], number):
            below[j] |= below[i]
    macs = [n.op.macs(graph.site(n)) for n in nodes]
    stay = [excluded(n.ref.name) or any(excluded(v.ref.name) for v in graph.results(n)) for n in nodes]
    every, found = output - 1, []
    for i, node in enumerate(nodes):
        single = len(graph.results(node)) == 1 and not readers[i] & output
        if single and above[i] | below[i] == every and not leaks[i] & ~above[i]:
            members = [j for j in range(i + 1) if above[i] >> j & 1]
            paid = sum(macs[j] for j in members)
            found.append(_Exit(node, paid, sum(macs) - paid, any(stay[j] for j in members)))
    return found


def _read(graph: Graph, node: Node, number: dict[NodeRef, int]) -> list[int]:
    made = (graph.producer(v.ref) for _, v in graph.operands(node).present() if v.data is None)
    return [number[n.ref] for n in made if n is not None and n.ref in number]


def _without(value: Value, axis: int | None) -> list[int]:
    return [n for d, n in enumerate(value.shape) if d != axis]
