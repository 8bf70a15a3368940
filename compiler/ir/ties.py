"""Closure of ties: what must be removed together, what must stay, and why.

Vertices are the entries of every axis; a tie joins entries. Connected components of that graph are what exists or
vanishes together. One case is not a plain join: an axis with several parents, such as a flat axis made of heads x
width, whose entry exists where *all* its parents do. Those ties become joint constraints between components.

An **atom** is the smallest removable set of components: one component, whatever its joint constraints drag along,
and nothing that is pinned. Pinned are graph inputs, task outputs, and axes that some operator reads or makes
without a tie: not understood means not prunable, never wrong.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from compiler.ir.graph import Graph, Site
from compiler.ir.relations import Relations, where
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
        self._explainer: _Explainer | None = None

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
        if self._explainer is None:
            self._explainer = _Explainer(self._rel, self.allow_mixed)
        return self._explainer.sentence(axis, entry)


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
class _Explainer:
    """Shortest paths of ties from an entry to something pinned."""

    def __init__(self, relations: Relations, allow_mixed: bool) -> None:
        self._entries, self._pins = relations.entries, relations.pins
        self._pin_of = np.full(relations.entries.count, -1)
        for number, pin in reversed(list(enumerate(relations.pins))):
            self._pin_of[pin.vertices] = number
        joints = [(p, c, s, False) for c, parents, s in relations.joints for p in parents.T]
        links = [(e.a, e.b, e.site, e.mixed and not allow_mixed) for e in relations.edges] + joints
        self._sites = [(site, blocked) for _, _, site, blocked in links]
        ends = [np.concatenate([x, y]) for x, y, _, _ in links] or [np.zeros(0, np.int64)]
        others = [np.concatenate([y, x]) for x, y, _, _ in links] or [np.zeros(0, np.int64)]
        link = np.repeat(np.arange(len(links)), [2 * len(x) for x, _, _, _ in links])
        start = np.concatenate(ends)
        order = np.argsort(start, kind="stable")
        self._other, self._link = np.concatenate(others)[order], link[order]
        self._first = np.searchsorted(start[order], np.arange(relations.entries.count + 1))

    def sentence(self, axis: Axis, entry: int) -> str:
        """`cannot remove channel 7 of 'a': 'a' -> Add 'add2' -> 'out' axis 1 is a task output`."""
        start = int(self._entries.of(axis)[entry])
        came: dict[int, tuple[int, Site] | None] = {start: None}
        queue = deque([start])
        while queue:
            vertex = queue.popleft()
            if self._pin_of[vertex] >= 0:
                return self._words(axis, entry, came, vertex, self._pins[self._pin_of[vertex]].reason)
            for at in range(self._first[vertex], self._first[vertex + 1]):
                site, blocked = self._sites[self._link[at]]
                if blocked:
                    reason = f"is mixed by {where(site)}: its entries influence each other"
                    return self._words(axis, entry, came, vertex, reason)
                other = int(self._other[at])
                if other not in came:
                    came[other] = (vertex, site)
                    queue.append(other)
        return f"channel {entry} of {axis} goes only together with others of its axis"

    def _words(
        self, axis: Axis, entry: int, came: Mapping[int, tuple[int, Site] | None], end: int, reason: str
    ) -> str:
        last, _ = self._entries.at(end)
        path = self._path(came, end)
        words = [*path[:-1], f"{path[-1]} axis {last.dim} {reason}"]
        return f"cannot remove channel {entry} of '{axis.owner}': {' -> '.join(words)}"

    def _path(self, came: Mapping[int, tuple[int, Site] | None], vertex: int) -> list[str]:
        """Values and nodes from the start to `vertex`, without parameters and virtual axes between them."""
        words: list[str] = [self._owner(vertex)]
        step = came[vertex]
        while step is not None:
            previous, site = step
            axis, _ = self._entries.at(previous)
            if words[-1] != where(site):
                words.append(where(site))
            step = came[previous]
            passing = isinstance(axis.owner, NodeRef) or (step is not None and step[1].node.ref == site.node.ref)
            if not passing:
                words.append(self._owner(previous))
        return words[::-1]

    def _owner(self, vertex: int) -> str:
        return f"'{self._entries.at(vertex)[0].owner}'"
