"""Corresponding layers of networks that were trained apart, from dataflow structure and shapes alone.

Every network is laid out as one sequence, depth first from its outputs, so that a branch stays together. Sequences
are aligned one after the other with a growing common supersequence by the longest common subsequence of equal
kinds; nodes with the same past or future count more. What was aligned is then checked from the inputs on: two nodes
are partners only if what they read, followed up through nodes that have no partner, comes from the same places. So
an extra layer, another adapter or a shallower network costs the partners of its own nodes and no others.

No decision looks at a name: renaming nodes, reordering a file or giving the networks in another order changes
nothing but the order in which equal things are listed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from compiler.ir.graph import Graph, Node, NodeRef, Ref, Site, Value
from compiler.ir.op import MacOp
from compiler.ir.types import ValueRef
from compiler.passes.merge.kinds import COMMUTATIVE, Kind, free_axes, kind_of

SAME_NODE, LAYER, OTHER = 1000.0, 8.0, 1.0
"""Worth of aligning a node with itself (it is shared already), two layers with weights, two other nodes."""

PREFERENCES = ((4.0, 1.0), (1.0, 4.0))
"""Extra worth where everything in front of two nodes, and behind them, is of equal kind: a network that lacks a
block corresponds to others in front of it by the first, behind it by the second. What leaves more partners counts.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A node at a position; `mask` are the tasks that need it (bit i: i-th task name in sorted order)."""

    node: Node
    mask: int


@dataclass(frozen=True, slots=True, eq=False)
class Position:
    """Nodes of different networks that correspond to each other: one layer of the family, masks disjoint."""

    index: int
    members: tuple[Member, ...]

    @property
    def mask(self) -> int:
        """All tasks that have the layer."""
        return sum(m.mask for m in self.members)


@dataclass(frozen=True, slots=True)
class Apart:
    """Why the layer `node` of the tasks `mask` has no partner in the task with bit `other`."""

    node: NodeRef
    mask: int
    other: int
    reason: str


@dataclass(frozen=True, slots=True)
class Alignment:
    """Positions in an order in which every node comes after what it reads."""

    tasks: tuple[str, ...]
    """Sorted names; bit i of every mask is task i."""
    positions: tuple[Position, ...]
    of: Mapping[NodeRef, Position]
    masks: Mapping[Ref, int]
    apart: tuple[Apart, ...]

    def names(self, mask: int) -> tuple[str, ...]:
        """The tasks of a mask."""
        return tuple(t for i, t in enumerate(self.tasks) if mask >> i & 1)


def align(graph: Graph) -> Alignment:
    """Find corresponding nodes of the tasks' networks in `graph`.

    Every needed node is at exactly one position; one without partner is alone there.
    """
    return _Aligner(graph).run()


def sorted_masks(graph: Graph) -> tuple[tuple[str, ...], dict[Ref, int]]:
    """Task names sorted, and the owner mask of every needed vertex with bits in that order."""
    names = tuple(sorted(graph.tasks))
    place = [1 << names.index(t) for t in graph.tasks]
    masks = graph.needed_masks()
    return names, {r: sum(b for i, b in enumerate(place) if m >> i & 1) for r, m in masks.items()}


@dataclass(slots=True, eq=False)
class _Slot:
    """A place in the common supersequence."""

    kind: str
    members: list[NodeRef] = field(default_factory=list)
    mask: int = 0
    pasts: set[str] = field(default_factory=set)
    futures: set[str] = field(default_factory=set)

    def copy(self) -> _Slot:
        """The same, to be added to."""
        return _Slot(self.kind, [*self.members], self.mask, {*self.pasts}, {*self.futures})


class _Aligner:
    """One alignment."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tasks, self.masks = sorted_masks(graph)
        self._sites = {s.node.ref: s for s in graph.sites() if s.node.ref in self.masks}
        free = free_axes(graph)
        self._kinds = {ref: kind_of(site, free) for ref, site in self._sites.items()}
        self._keys = {ref: kind.key for ref, kind in self._kinds.items()}
        self._pasts, self._futures = _Fingerprints(graph, self._sites, self._keys).both()
        self._above: dict[NodeRef, int] = _ancestor_counts(graph, self._sites)

    def run(self) -> Alignment:
        slots: list[_Slot] = []
        sequences = {t: self._sequence(t) for t in self.tasks}
        for task in sorted(self.tasks, key=lambda t: (-len(sequences[t]), self._signature(sequences[t]), t)):
            slots = self._insert(slots, sequences[task])
        positions = _Check(self.graph, self.masks, slots).positions()
        of = {m.node.ref: p for p in positions for m in p.members}
        apart = tuple(_Reasons(self, positions, of, sequences).all())
        return Alignment(self.tasks, positions, of, self.masks, apart)

    def site(self, ref: NodeRef) -> Site:
        """The site of a needed node."""
        return self._sites[ref]

    def kind(self, ref: NodeRef) -> Kind:
        """The kind of a needed node."""
        return self._kinds[ref]

    def _signature(self, sequence: Sequence[NodeRef]) -> str:
        return hashlib.sha256("".join(self._pasts[n] for n in sequence).encode()).hexdigest()

    def _sequence(self, task: str) -> list[NodeRef]:
        """The task's nodes, depth first from its outputs: what a node reads comes before it."""
        order: dict[NodeRef, None] = {}
        for output in self.graph.tasks[task].outputs:
            waiting: list[tuple[NodeRef, bool]] = [(n, False) for n in self._producers([self.graph.value(output)])]
            while waiting:
                ref, done = waiting.pop()
                if done:
                    order[ref] = None
                elif ref not in order:
                    waiting.append((ref, True))
                    read = self._producers(self._read(self._sites[ref]))
                    waiting += [(n, False) for n in reversed(read) if n not in order]
        return list(order)

    def _producers(self, values: Sequence[Value]) -> list[NodeRef]:
        made = (self.graph.producer(v.ref) for v in values)
        return [n.ref for n in made if n is not None]

    def _read(self, site: Site) -> list[Value]:
        """Data operands, those of a commutative operator in an order that does not depend on the file."""
        data = [v for _, v in site.operands.present() if v.data is None]
        if site.node.op.name not in COMMUTATIVE:
            return data
        return sorted(data, key=self._rank)

    def _rank(self, value: Value) -> tuple[int, str]:
        node = self.graph.producer(value.ref)
        return (-1, "") if node is None else (self._above[node.ref], self._pasts[node.ref])

    # ------------------------------------------------------------------ the supersequence
    def _insert(self, slots: list[_Slot], sequence: list[NodeRef]) -> list[_Slot]:
        """The supersequence of `slots` and one more network, by the preference that leaves it more partners."""
        found: list[list[tuple[int, int]]] = []
        for prefer in PREFERENCES:
            pairs = _best_pairs(slots, sequence, partial(self._worth, prefer))
            if pairs not in found:
                found.append(pairs)
        trials = [self._inserted([s.copy() for s in slots], sequence, pairs) for pairs in found]
        return trials[0] if len(trials) == 1 else max(trials, key=self._partners)

    def _partners(self, slots: list[_Slot]) -> float:
        """What the nodes with partners are worth that the check leaves."""
        positions = _Check(self.graph, self.masks, slots).positions()
        return sum(self._base(m.node.ref) for p in positions for m in p.members[1:])

    def _inserted(self, slots: list[_Slot], sequence: list[NodeRef], pairs: list[tuple[int, int]]) -> list[_Slot]:
        placed = {ref for slot in slots for ref in slot.members}
        merged: list[_Slot] = []
        at = taken = 0
        for slot, node in [*pairs, (len(slots), len(sequence))]:
            merged += slots[at:slot]
            merged += [self._slot(ref) for ref in sequence[taken:node] if ref not in placed]
            if slot < len(slots):
                self._join(slots[slot], sequence[node])
                merged.append(slots[slot])
            at, taken = slot + 1, node + 1
        return merged

    def _worth(self, prefer: tuple[float, float], slot: _Slot, ref: NodeRef) -> float:
        """How good it is to put a node into a slot; 0 where it does not belong there."""
        if ref in slot.members:
            return SAME_NODE
        if slot.mask & self.masks[ref] or slot.kind != self._keys[ref]:
            return 0.0
        past, future = prefer
        past, future = past * (self._pasts[ref] in slot.pasts), future * (self._futures[ref] in slot.futures)
        return self._base(ref) + past + future

    def _base(self, ref: NodeRef) -> float:
        return LAYER if isinstance(self._sites[ref].node.op, MacOp) else OTHER

    def _slot(self, ref: NodeRef) -> _Slot:
        slot = _Slot(self._keys[ref])
        self._join(slot, ref)
        return slot

    def _join(self, slot: _Slot, ref: NodeRef) -> None:
        if ref not in slot.members:
            slot.members.append(ref)
            slot.mask |= self.masks[ref]
            slot.pasts.add(self._pasts[ref])
            slot.futures.add(self._futures[ref])


def _best_pairs(
    slots: list[_Slot], sequence: list[NodeRef], worth: Callable[[_Slot, NodeRef], float]
) -> list[tuple[int, int]]:
    """The heaviest common subsequence as (slot, node) numbers, ascending."""
    rows, columns = len(slots), len(sequence)
    best = [[0.0] * (columns + 1) for _ in range(rows + 1)]
    weights = [[worth(s, n) for n in sequence] for s in slots]
    for i in range(rows - 1, -1, -1):
        row, below, weight = best[i], best[i + 1], weights[i]
        for j in range(columns - 1, -1, -1):
            row[j] = max(below[j], row[j + 1], below[j + 1] + weight[j] if weight[j] else 0.0)
    pairs, i, j = [], 0, 0
    while i < rows and j < columns:
        if weights[i][j] and best[i][j] == best[i + 1][j + 1] + weights[i][j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    return pairs


# ---------------------------------------------------------------------- fingerprints
class _Fingerprints:
    """Digests of everything in front of a node and of everything behind it, without names and widths."""

    def __init__(self, graph: Graph, sites: Mapping[NodeRef, Site], keys: Mapping[NodeRef, str]) -> None:
        self._graph, self._sites, self._keys = graph, sites, keys

    def both(self) -> tuple[dict[NodeRef, str], dict[NodeRef, str]]:
        """(past, future) of every node."""
        inputs = {v.ref: f"input {i}" for i, v in enumerate(self._graph.inputs)}
        pasts: dict[NodeRef, str] = {}
        for ref, site in self._sites.items():
            read = [self._origin(v, inputs, pasts) for _, v in site.operands.present() if v.data is None]
            read = sorted(read) if site.node.op.name in COMMUTATIVE else read
            pasts[ref] = _digest(self._keys[ref], *read)
        futures: dict[NodeRef, str] = {}
        for ref, site in reversed(list(self._sites.items())):
            futures[ref] = _digest(self._keys[ref], *sorted(self._ends(site, futures)))
        return pasts, futures

    def _origin(self, value: Value, inputs: Mapping[ValueRef, str], pasts: Mapping[NodeRef, str]) -> str:
        node = self._graph.producer(value.ref)
        return inputs[value.ref] if node is None else f"{pasts[node.ref]}:{self._result(node, value)}"

    def _result(self, node: Node, value: Value) -> int:
        return next(i for i, v in enumerate(self._sites[node.ref].results) if v.ref == value.ref)

    def _ends(self, site: Site, futures: Mapping[NodeRef, str]) -> Iterator[str]:
        for i, value in enumerate(site.results):
            yield from (f"{i}:{futures[n.ref]}" for n, _ in self._graph.uses(value.ref) if n.ref in futures)
            yield from (f"{i}:output" for _ in [0] if self._graph.is_output(value.ref))


def _digest(*parts: str) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


def _ancestor_counts(graph: Graph, sites: Mapping[NodeRef, Site]) -> dict[NodeRef, int]:
    """How many nodes are above each node."""
    above: dict[NodeRef, frozenset[NodeRef]] = {}
    for ref, site in sites.items():
        makers = (graph.producer(v.ref) for _, v in site.operands.present() if v.data is None)
        found = [n.ref for n in makers if n is not None]
        above[ref] = frozenset(found).union(*(above[n] for n in found))
    return {ref: len(nodes) for ref, nodes in above.items()}


# ---------------------------------------------------------------------- do partners read partners?
class _Check:
    """Splits slots into positions whose members read from the same places."""

    def __init__(self, graph: Graph, masks: Mapping[Ref, int], slots: Sequence[_Slot]) -> None:
        self._graph, self._masks, self._slots = graph, masks, slots
        self._of: dict[NodeRef, int] = {}
        self._found: list[tuple[Member, ...]] = []

    def positions(self) -> tuple[Position, ...]:
        """All positions, in the order of the slots."""
        for slot in self._slots:
            ordered = sorted(slot.members, key=lambda r: self._masks[r] & -self._masks[r])
            groups: list[list[NodeRef]] = []
            for ref in ordered:
                home = next((g for g in groups if all(self._agree(ref, other) for other in g)), None)
                if home is None:
                    groups.append([ref])
                else:
                    home.append(ref)
            for group in groups:
                self._of |= dict.fromkeys(group, len(self._found))
                self._found.append(tuple(Member(self._graph.node(r), self._masks[r]) for r in group))
        return tuple(Position(i, members) for i, members in enumerate(self._found))

    def _agree(self, a: NodeRef, b: NodeRef) -> bool:
        return self.sources(a, b) == self.sources(b, a)

    def sources(self, ref: NodeRef, other: NodeRef) -> list[list[object]]:
        """Per data operand of `ref`: the inputs and positions it comes from that the network of `other` has too."""
        site = self._graph.site(self._graph.node(ref))
        data = [v for i, v in site.operands.present() if v.data is None]
        found = [sorted(self._sources(v.ref, self._masks[other], {}), key=str) for v in data]
        return sorted(found, key=str) if site.node.op.name in COMMUTATIVE else found

    def _sources(self, value: ValueRef, mask: int, known: dict[ValueRef, frozenset[object]]) -> frozenset[object]:
        """The same of one value, by a walk that networks of any depth allow."""
        waiting = [value]
        while waiting:
            ref = waiting[-1]
            node = self._graph.producer(ref)
            if ref in known:
                waiting.pop()
            elif node is None:
                known[ref] = frozenset([f"input {ref}"])
            elif any(m.mask & mask == mask for m in self._found[self._of[node.ref]]):
                known[ref] = frozenset([self._of[node.ref]])
            else:
                read = [v.ref for _, v in self._graph.operands(node).present() if v.data is None]
                missing = [r for r in read if r not in known]
                waiting += missing
                if not missing:
                    known[ref] = frozenset().union(*(known[r] for r in read))
        return known[value]


# ---------------------------------------------------------------------- why not
class _Reasons:
    """For every layer and every task without a partner of it: why."""

    def __init__(
        self,
        aligner: _Aligner,
        positions: Sequence[Position],
        of: Mapping[NodeRef, Position],
        sequences: Mapping[str, Sequence[NodeRef]],
    ) -> None:
        self._aligner, self._positions, self._of, self._sequences = aligner, positions, of, sequences

    def all(self) -> Iterator[Apart]:
        """Reasons in the order of positions, then of tasks."""
        for position in self._positions:
            for member in position.members:
                if isinstance(member.node.op, MacOp):
                    for bit, task in enumerate(self._aligner.tasks):
                        if not position.mask >> bit & 1:
                            yield Apart(member.node.ref, member.mask, bit, self._why(member, task))

    def _why(self, member: Member, task: str) -> str:
        """Compare with the layer of `task` that stands where a partner would be."""
        between = self._between(self._of[member.node.ref].index, task)
        if not between:
            return f"'{task}' has no layer at this place"
        mine = self._aligner.kind(member.node.ref)
        same = [r for r in between if self._aligner.kind(r) == mine]
        if same:
            return f"'{task}' has such a layer, '{same[0]}', but it reads from another place"
        return f"'{task}' has '{between[0]}' there: {mine.difference(self._aligner.kind(between[0]))}"

    def _between(self, index: int, task: str) -> list[NodeRef]:
        """The layers of `task` without partner here: those between the nearest positions both networks have."""
        bit = 1 << self._aligner.tasks.index(task)
        mask = self._positions[index].mask
        both = [p.index for p in self._positions if p.mask & bit and p.mask & mask]
        low = max((i for i in both if i < index), default=-1)
        high = min((i for i in both if i > index), default=len(self._positions))
        found = [r for r in self._sequences[task] if low < self._of[r].index < high]
        return [r for r in found if isinstance(self._aligner.site(r).node.op, MacOp)]
