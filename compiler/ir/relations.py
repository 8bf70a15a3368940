"""Every tie of a graph over numbered entries: edges, joint constraints, pins.

Vertices are the entries of every axis. A tie joins entries of two axes. An axis with several many-to-one parents,
such as a flat axis made of heads x width, is different: its entry exists where *all* its parents do (a joint).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from compiler.ir.graph import Graph, Site
from compiler.ir.op import Kind, Tie
from compiler.ir.types import Axis, NodeRef


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


# ---------------------------------------------------------------------- reading a graph
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
                    self._pin(self.entries.of(axis), f"is not tied by {where(site)}")
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
            self._pin(self.entries.of(axis, loose), f"is filled in by {where(site)}")

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


def where(site: Site) -> str:
    """Operator and name of a node."""
    return f"{site.node.op.name} '{site.node.ref}'"


def _injective(index: np.ndarray) -> bool:
    used = index[index >= 0]
    return len(np.unique(used)) == len(used)


def _overlap(ties: list[Tie]) -> bool:
    return bool(np.all([t.index >= 0 for t in ties], axis=0).any())
