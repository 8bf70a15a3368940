"""Closure of ties: what must be removed together, what must stay, and why.

Vertices are the entries of every axis; a tie joins entries. Connected components of that graph are what exists or
vanishes together. One case is not a plain join: an axis with several parents, such as a flat axis made of heads x
width, whose entry exists where *all* its parents do. Those ties become joint constraints between components.

An **atom** is the smallest removable set of components: one component, whatever its joint constraints drag along,
and nothing that is pinned. Pinned are graph inputs, task outputs, and axes that some operator reads or makes
without a tie: not understood means not prunable, never wrong.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from compiler.ir.graph import Graph, Site
from compiler.ir.op import Kind, Tie
from compiler.ir.types import Axis, NodeRef, ValueRef


@dataclass(frozen=True, slots=True, eq=False)
class Atom:
    """Entries that can only be removed together. `entries` are ascending positions per axis.

    `frozen` atoms may not be removed (`Closure.why` says why); `mixed` ones change a statistic of what remains.
    """

    index: int
    entries: Mapping[Axis, np.ndarray]
    frozen: bool
    mixed: bool


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Atoms that span the same axes: the channels of one layer, to be ranked and rounded together."""

    axes: tuple[Axis, ...]
    atoms: tuple[Atom, ...]

    @property
    def name(self) -> str:
        """The first produced value among its axes, for reports."""
        return str(self.axes[0].owner)


@dataclass(frozen=True, slots=True, eq=False)
class Pin:
    """Entries that must stay: `vertex` ids and the reason, a phrase that continues the axis."""

    vertices: np.ndarray
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Edge:
    """Vertices joined by one tie of one node."""

    a: np.ndarray
    b: np.ndarray
    site: Site
    mixed: bool


class Entries:
    """Numbers the entries of all axes: `axis` has vertices start..start + size - 1."""

    def __init__(self) -> None:
        self.axes: list[Axis] = []
        self.count = 0
        self._spans: dict[Axis, tuple[int, int]] = {}
        self._starts: list[int] = []

    def add(self, axis: Axis, size: int) -> None:
        """Number the entries of a new axis; an axis that is known keeps its numbers."""
        if axis not in self._spans:
            self._spans[axis] = (self.count, size)
            if size:
                self.axes.append(axis)
                self._starts.append(self.count)
            self.count += size

    def size(self, axis: Axis) -> int:
        """Number of entries of an axis."""
        return self._spans[axis][1]

    def of(self, axis: Axis, positions: np.ndarray | None = None) -> np.ndarray:
        """Vertices of an axis, or of some positions along it."""
        start, size = self._spans[axis]
        return start + (np.arange(size) if positions is None else positions)

    def at(self, vertex: int) -> tuple[Axis, int]:
        """Axis and position of a vertex."""
        i = bisect_right(self._starts, vertex) - 1
        return self.axes[i], vertex - self._starts[i]

    def split(self, vertices: np.ndarray) -> dict[Axis, np.ndarray]:
        """Ascending positions per axis."""
        vertices, starts = np.sort(vertices), np.array(self._starts)
        ids = np.searchsorted(starts, vertices, side="right") - 1
        cuts = np.flatnonzero(np.diff(ids)) + 1
        firsts = ids[np.concatenate([[0], cuts])]
        return {self.axes[i]: p - starts[i] for i, p in zip(firsts, np.split(vertices, cuts), strict=True)}


# ---------------------------------------------------------------------- reading the ties of a graph
class Relations:
    """Every tie of a graph as edges, joint constraints and pins over numbered entries."""

    def __init__(self, graph: Graph, excluded: Callable[[str], bool]) -> None:
        self.graph = graph
        self.entries = Entries()
        self.edges: list[Edge] = []
        self.joints: list[tuple[np.ndarray, np.ndarray, Site]] = []
        self.pins: list[Pin] = []
        for value in graph.values():
            for dim, size in enumerate(value.shape):
                self.entries.add(value.axis(dim), size)
        for site in graph.sites():
            self._read(site)
        self._pin_ends(excluded)
        self._pin_lone()

    def _read(self, site: Site) -> None:
        ties = [t for t in site.node.op.ties(site) if t.index.size]
        self._number_virtual(site, ties)
        by_child: dict[Axis, list[Tie]] = {}
        for tie in ties:
            lone = self.entries.size(tie.a) == 1 and np.count_nonzero(tie.index >= 0) > 1
            if not lone:  # a parent that is the only entry of its axis always stays
                by_child.setdefault(tie.b, []).append(tie)
        for child, group in by_child.items():
            several = [t for t in group if not _injective(t.index)]
            if len(several) > 1 and _overlap(several):
                self._join(child, several, site)
                group = [t for t in group if not any(t is s for s in several)]
            for tie in group:
                self._connect(tie, site)
        self._pin_silent(site, ties)

    def _number_virtual(self, site: Site, ties: Iterable[Tie]) -> None:
        sizes: dict[Axis, int] = {}
        for tie in ties:
            if isinstance(tie.a.owner, NodeRef):
                sizes[tie.a] = max(sizes.get(tie.a, 0), int(tie.index.max()) + 1)
            if isinstance(tie.b.owner, NodeRef):
                sizes[tie.b] = max(sizes.get(tie.b, 0), len(tie.index))
        for axis, size in sizes.items():
            self.entries.add(axis, size)

    def _connect(self, tie: Tie, site: Site) -> None:
        at = np.flatnonzero(tie.index >= 0)
        a, b = self.entries.of(tie.a, tie.index[at]), self.entries.of(tie.b, at)
        self.edges.append(Edge(a, b, site, tie.kind is Kind.MIXED))

    def _join(self, child: Axis, ties: list[Tie], site: Site) -> None:
        common = np.flatnonzero(np.all([t.index >= 0 for t in ties], axis=0))
        parents = np.stack([self.entries.of(t.a, t.index[common]) for t in ties], axis=1)
        self.joints.append((self.entries.of(child, common), parents, site))

    def _pin_silent(self, site: Site, ties: list[Tie]) -> None:
        """Pin what this node touches without a tie, and entries of results that come from nowhere."""
        named = {t.a for t in ties} | {t.b for t in ties}
        values = {v.ref: v for v in (*(v for _, v in site.operands.present()), *site.results)}
        for value in values.values():
            for dim, size in enumerate(value.shape):
                axis = value.axis(dim)
                if axis not in named and size:
                    self._pin(self.entries.of(axis), f"is not tied by {_name(site)}")
        for value in site.results:
            for dim in range(value.rank):
                if value.axis(dim) in named:
                    self._pin_uncovered(value.axis(dim), ties, site)

    def _pin_uncovered(self, axis: Axis, ties: list[Tie], site: Site) -> None:
        covered = np.zeros(self.entries.size(axis), bool)
        for tie in ties:
            if tie.b == axis:
                covered |= tie.index >= 0
            if tie.a == axis:
                covered[tie.index[tie.index >= 0]] = True
        loose = np.flatnonzero(~covered)
        if loose.size:
            self._pin(self.entries.of(axis, loose), f"is filled in by {_name(site)}")

    def _pin_lone(self) -> None:
        """Pin the only entry of an axis: an axis cannot become empty."""
        lone = [self.entries.of(axis) for axis in self.entries.axes if self.entries.size(axis) == 1]
        if lone:
            self._pin(np.concatenate(lone), "has only one entry")

    def _pin_ends(self, excluded: Callable[[str], bool]) -> None:
        inputs = {v.ref for v in self.graph.inputs}
        for value in self.graph.values():
            producer = self.graph.producer(value.ref)
            reasons = [
                (value.ref in inputs, "is a graph input"),
                (self.graph.is_output(value.ref), "is a task output"),
                (excluded(value.ref.name), "is excluded by name"),
                (producer is not None and excluded(producer.ref.name), "is made by a node excluded by name"),
            ]
            for holds, reason in reasons:
                if holds:
                    for dim in range(value.rank):
                        self._pin(self.entries.of(value.axis(dim)), reason)

    def _pin(self, vertices: np.ndarray, reason: str) -> None:
        self.pins.append(Pin(vertices, reason))


def _name(site: Site) -> str:
    return f"{site.node.op.name} '{site.node.ref}'"


def _injective(index: np.ndarray) -> bool:
    used = index[index >= 0]
    return len(np.unique(used)) == len(used)


def _overlap(ties: list[Tie]) -> bool:
    return bool(np.all([t.index >= 0 for t in ties], axis=0).any())


# ---------------------------------------------------------------------- components and atoms
class Closure:
    """Atoms and groups of a graph, and the reason for everything that must stay.

    `exclude(name)` says which values and nodes must keep all their entries; `allow_mixed` lets axes shrink whose
    entries influence each other. Atoms are those that a parameter's axis takes part in (channels, hidden units,
    heads), in the order of their first entry; parameters with several readers tie these together.
    """

    def __init__(
        self, graph: Graph, *, exclude: Callable[[str], bool] = lambda name: False, allow_mixed: bool = False
    ) -> None:
        self.graph = graph
        self.allow_mixed = allow_mixed
        self._rel = Relations(graph, exclude)
        self._label = self._components()
        self._joints = self._joint_components()
        self._pinned = self._marked(p.vertices for p in self._rel.pins)
        self._mixed = self._marked(v for e in self._rel.edges if e.mixed for v in (e.a, e.b))
        if not allow_mixed:
            self._pinned |= self._mixed
        self._members = self._by_component()
        self.atoms = tuple(self._atoms())

    def _components(self) -> np.ndarray:
        count = self._rel.entries.count
        a = np.concatenate([e.a for e in self._rel.edges] or [np.zeros(0, np.int64)])
        b = np.concatenate([e.b for e in self._rel.edges] or [np.zeros(0, np.int64)])
        matrix = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(count, count))
        return np.asarray(connected_components(matrix, directed=False)[1])

    def _marked(self, vertices: Iterable[np.ndarray]) -> np.ndarray:
        marked = np.zeros(len(self._label) + 1, bool)
        for v in vertices:
            marked[self._label[v]] = True
        return marked

    def _joint_components(self) -> list[tuple[int, tuple[int, ...]]]:
        """(child, parents) of every joint constraint, as components, once each."""
        found: dict[tuple[int, tuple[int, ...]], None] = {}
        for child, parents, _ in self._rel.joints:
            for c, p in zip(self._label[child].tolist(), self._label[parents].tolist(), strict=True):
                found[c, tuple(p)] = None
        return list(found)

    def _by_component(self) -> list[np.ndarray]:
        order = np.argsort(self._label, kind="stable")
        cuts = np.flatnonzero(np.diff(self._label[order])) + 1
        return np.split(order, cuts) if len(order) else []

    def _atoms(self) -> Iterator[Atom]:
        weighted = self._marked(self._weighted_vertices())
        as_child: dict[int, list[int]] = {}
        as_parent: dict[int, list[int]] = {}
        for row, (child, parents) in enumerate(self._joints):
            as_child.setdefault(child, []).append(row)
            for parent in parents:
                as_parent.setdefault(parent, []).append(row)
        search = _Search(self._joints, as_child, as_parent, self._pinned)
        seen: set[frozenset[int]] = set()
        for component in range(len(self._members)):
            if component in as_child or self._lonely(component):
                continue
            members = search.closure(component)
            if members is None:
                found, frozen = frozenset([component]), True
            else:
                found, frozen = members, False
            if found in seen or not any(weighted[c] for c in found):
                continue
            seen.add(found)
            vertices = np.concatenate([self._members[c] for c in sorted(found)])
            mixed = any(self._mixed[c] for c in found)
            yield Atom(len(seen) - 1, self._rel.entries.split(vertices), frozen, mixed)

    def _lonely(self, component: int) -> bool:
        """Whether all its axes have one entry: no channel to speak of."""
        sizes = (self._rel.entries.size(self._rel.entries.at(int(v))[0]) for v in self._members[component])
        return all(size == 1 for size in sizes)

    def _weighted_vertices(self) -> Iterator[np.ndarray]:
        for edge in self._rel.edges:
            for vertices in (edge.a, edge.b):
                owner = self._rel.entries.at(int(vertices[0]))[0].owner if len(vertices) else None
                if isinstance(owner, ValueRef) and self.graph.value(owner).data is not None:
                    yield vertices

    @property
    def groups(self) -> tuple[Group, ...]:
        """Removable atoms by the axes they span, in the order of their first atom."""
        found: dict[tuple[Axis, ...], list[Atom]] = {}
        for atom in self.atoms:
            if not atom.frozen:
                found.setdefault(tuple(atom.entries), []).append(atom)
        return tuple(Group(axes, tuple(atoms)) for axes, atoms in found.items())

    def atom_of(self, axis: Axis, entry: int) -> Atom | None:
        """The first atom that holds an entry; None where only several atoms together could remove it."""
        for atom in self.atoms:
            if axis in atom.entries and entry in atom.entries[axis]:
                return atom
        return None

    def size(self, axis: Axis) -> int:
        """Number of entries of an axis, virtual ones included."""
        return self._rel.entries.size(axis)

    def removal(self, atoms: Iterable[Atom]) -> dict[Axis, np.ndarray]:
        """Entries per axis that vanish with `atoms`, ascending."""
        parts: dict[Axis, list[np.ndarray]] = {}
        for atom in atoms:
            for axis, entries in atom.entries.items():
                parts.setdefault(axis, []).append(entries)
        return {axis: np.unique(np.concatenate(found)) for axis, found in parts.items()}

    def shown(self, atom: Atom) -> Axis:
        """The axis to name an atom by: of its first computed value or input, in topological order."""
        made = [v.ref for v in self.graph.inputs]
        made += [v.ref for site in self.graph.sites() for v in site.results]
        rank = {ref: i for i, ref in enumerate(made)}
        return min(atom.entries, key=lambda a: rank.get(a.owner, len(rank)))  # type: ignore[arg-type]

    def why(self, axis: Axis, entry: int) -> str:
        """Why an entry cannot be removed: the shortest path of ties to something pinned."""
        return explain(self._rel, axis, entry, self.allow_mixed)


class _Search:
    """Smallest closed sets of components under joint constraints."""

    def __init__(
        self,
        joints: list[tuple[int, tuple[int, ...]]],
        as_child: Mapping[int, list[int]],
        as_parent: Mapping[int, list[int]],
        pinned: np.ndarray,
    ) -> None:
        self._joints, self._as_child, self._as_parent, self._pinned = joints, as_child, as_parent, pinned

    def closure(self, seed: int) -> frozenset[int] | None:
        """Everything that must go with `seed`; None where that needs something pinned.

        A child goes with any of its parents. A child that goes for another reason needs one of its parents to go
        too; the parent with the fewest children is taken.
        """
        gone: set[int] = set()
        waiting, unmet = [seed], deque[int]()
        while waiting or unmet:
            if not waiting:
                parents = self._joints[unmet.popleft()][1]
                if gone.isdisjoint(parents):
                    free = [p for p in parents if not self._pinned[p]]
                    if not free:
                        return None
                    waiting.append(min(free, key=lambda p: (len(self._as_parent[p]), p)))
                continue
            component = waiting.pop()
            if component in gone:
                continue
            if self._pinned[component]:
                return None
            gone.add(component)
            waiting += [self._joints[row][0] for row in self._as_parent.get(component, ())]
            unmet.extend(self._as_child.get(component, ()))
        return frozenset(gone)


# ---------------------------------------------------------------------- why not
def explain(relations: Relations, axis: Axis, entry: int, allow_mixed: bool) -> str:
    """The sentence `cannot remove channel 7 of 'a': 'a' -> Add 'add2' -> 'out' axis 1 is a task output`."""
    entries = relations.entries
    reasons = {int(v): pin.reason for pin in reversed(relations.pins) for v in pin.vertices}
    steps = _neighbours(relations)
    start = int(entries.of(axis)[entry])
    came: dict[int, tuple[int, Site] | None] = {start: None}
    queue = deque([start])
    while queue:
        vertex = queue.popleft()
        if vertex in reasons:
            return _sentence(entries, axis, entry, _path(entries, came, vertex), vertex, reasons[vertex])
        for other, site, mixed in steps.get(vertex, ()):
            if mixed and not allow_mixed:
                reason = f"is mixed by {_name(site)}: its entries influence each other"
                return _sentence(entries, axis, entry, _path(entries, came, vertex), vertex, reason)
            if other not in came:
                came[other] = (vertex, site)
                queue.append(other)
    return f"channel {entry} of '{axis.owner}' axis {axis.dim} goes only together with others of its axis"


def _neighbours(relations: Relations) -> dict[int, list[tuple[int, Site, bool]]]:
    found: dict[int, list[tuple[int, Site, bool]]] = {}
    pairs = [(e.a, e.b, e.site, e.mixed) for e in relations.edges]
    pairs += [(p, c, s, False) for c, parents, s in relations.joints for p in parents.T]
    for a, b, site, mixed in pairs:
        for u, v in zip(a.tolist(), b.tolist(), strict=True):
            found.setdefault(u, []).append((v, site, mixed))
            found.setdefault(v, []).append((u, site, mixed))
    return found


def _path(entries: Entries, came: Mapping[int, tuple[int, Site] | None], vertex: int) -> list[str]:
    """Values and nodes from the start to `vertex`, without parameters and virtual axes between them."""
    words: list[str] = [_owner(entries, vertex)]
    step = came[vertex]
    while step is not None:
        previous, site = step
        axis, _ = entries.at(previous)
        if words[-1] != _name(site):
            words.append(_name(site))
        step = came[previous]
        passing = isinstance(axis.owner, NodeRef) or (step is not None and step[1].node.ref == site.node.ref)
        if not passing:
            words.append(_owner(entries, previous))
    return words[::-1]


def _owner(entries: Entries, vertex: int) -> str:
    return f"'{entries.at(vertex)[0].owner}'"


def _sentence(entries: Entries, axis: Axis, entry: int, path: list[str], end: int, reason: str) -> str:
    last, _ = entries.at(end)
    words = [*path[:-1], f"{path[-1]} axis {last.dim} {reason}"]
    return f"cannot remove channel {entry} of '{axis.owner}': {' -> '.join(words)}"
