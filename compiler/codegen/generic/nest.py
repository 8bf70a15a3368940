"""Loops around element-wise stages over a box: vectors, and pieces on which the same conditions hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.generic.index import Index, LoopVar
from compiler.codegen.generic.language import Notes, Source, Stage, Stages
from compiler.codegen.generic.scalar import as_expr
from compiler.codegen.generic.survey import (
    Box,
    arrange_tables,
    cuts,
    look,
    pieces,
    vector_cost,
    width,
)

MOST_BODIES = 40
"""A kernel is cut into no more pieces of code; conditions that are left are evaluated."""

UNROLLED_CHUNKS = 2


class Region:
    """Elements of a stage that a box of it holds, in a local buffer; the axis `last` is contiguous."""

    def __init__(self, stages: Stages, stage: Stage, box: Box, last: int | None) -> None:
        order = [d for d in range(len(box.extent)) if d != last]
        order += [] if last is None else [last]
        self._stages, self._box = stages, box
        self.source = Source(stage.name, box.extent, stage.dtype.value)
        self.source.order = tuple(order)
        self.source.buffer = T.alloc_buffer((max(box.size, 1),), stage.dtype.value)

    def load(self, at: Sequence[Any]) -> Any:
        """The element at an index of the stage."""
        return self._stages.load(self.source, [i - b for i, b in zip(at, self._box.base, strict=True)])

    def store(self, at: Sequence[Index], value: Any) -> None:
        """Set the element at an index of the stage."""
        place = self.source.address([i - b for i, b in zip(at, self._box.base, strict=True)])
        T.buffer_store(self.source.buffer, value, [as_expr(place)])


Store = Callable[[Sequence[Index], Any], None]


@contextmanager
def counted(first: Any, end: Any) -> Iterator[Any]:
    """A loop over first..end-1 that counts from 0.

    TVM's CanonicalizeLoop forgets to move the bounds of loops inside one that begins elsewhere.
    """
    with T.serial(end - first) as i:
        yield i + first


@dataclass
class Parts:
    """The division of a kernel into independent units: the loop over them takes its bounds from the caller."""

    begin: Any = None
    end: Any = None
    count: int = 0

    def bounds(self, first: int, number: int) -> tuple[Any, Any]:
        """Loop bounds of the `number` units from `first` on that a call does."""
        return tirx.max(self.begin, first), tirx.min(self.end, first + number)


@dataclass
class Lanes:
    """The axes that become vectors: the last of `axes` moves, the ones before it are contiguous with it."""

    axes: tuple[int, ...]
    extent: int

    @property
    def axis(self) -> int:
        return self.axes[-1]


@dataclass
class Maker:
    """What nests share while one kernel is made."""

    stages: Stages
    lanes: int
    arranged: set[Source] = field(default_factory=set)
    bodies: int = 0

    def region(self, stage: Stage, box: Box, last: int | None) -> Region:
        """A buffer for a box of a stage, from now on read in place of the stage."""
        made = Region(self.stages, stage, box, last)
        stage.region = made
        return made

    @contextmanager
    def vector(self, n: int) -> Iterator[Any]:
        """Lanes 0 to n - 1 at once."""
        if n == 1:
            yield tirx.IntImm("int32", 0)
        else:
            with T.vectorized(n) as lane:
                yield lane


@dataclass
class MapNest:
    """Loops over a box of an element-wise stage whose own operands are computed already."""

    maker: Maker
    stage: Stage
    box: Box
    store: Store
    target: Source | None
    outer: Sequence[LoopVar] = ()
    """Variables of the loops around."""
    parts: Parts | None = None

    def __post_init__(self) -> None:
        self.variables = self.box.variables()
        self.notes = self._look(self.variables)
        self.vector = self._choose()

    def _look(self, variables: Sequence[LoopVar]) -> Notes:
        at = self.box.at(variables)
        return look(self.maker.stages, self.stage, at, (), [*self.outer, *variables], self.target)

    def _choose(self) -> Lanes | None:
        """The axis with the least cost, joined with the axes before it where everything is contiguous over both."""
        free = self.target is None
        long = [d for d, n in enumerate(self.box.extent) if n > 1]
        best = min(
            long,
            key=lambda d: (vector_cost(self.notes, self.variables[d], self.maker.lanes, free), -d),
            default=None,
        )
        if best is None:
            return None
        cost = vector_cost(self.notes, self.variables[best], self.maker.lanes, free)
        if cost >= vector_cost(self.notes, None, self.maker.lanes):
            return None
        axes = [best]
        extent = self.box.extent[best]
        kept = long[0] if self.parts is not None and long[0] != best else -1
        while not free and (d := axes[0] - 1) >= 0 and d != kept and self._joins(d, axes[0], best, extent):
            axes.insert(0, d)
            extent *= self.box.extent[d]
        return Lanes(tuple(axes), extent)

    def _joins(self, axis: int, after: int, best: int, extent: int) -> bool:
        """Whether every access moves along `axis` as it would past the end of the axes after it."""
        if self.box.extent[axis] == 1:
            return True
        moving, lane = self.variables[axis], self.variables[best]
        involved = {moving, lane}
        if involved & self.notes.valued or any(v in involved for v, _ in self.notes.breaks):
            return False
        if any(involved & c.index.variables() for c in self.notes.conditions) or self.notes.reads:
            return False
        for access in self.notes.accesses:
            step, unit = access.step(moving), access.step(lane)
            if step is None or unit is None or step != unit * extent:
                return False
        return True

    def serial_axes(self) -> list[int]:
        """Axes that are walked one entry at a time, outermost first."""
        joined = set() if self.vector is None else set(self.vector.axes)
        return [d for d, n in enumerate(self.box.extent) if n > 1 and d not in joined]

    def emit(self) -> None:
        """Write the loops."""
        lane = None if self.vector is None else self.vector.axis
        arrange_tables(self.notes, None if lane is None else self.variables[lane], self.maker.arranged)
        settled = not (self.notes.conditions or self.notes.breaks or _has_parts(self.notes))
        order = self.serial_axes()
        if self.parts is not None and order:
            self.parts.count = self.box.extent[order[0]]
        self._loops(order, {}, settled, self.parts)

    # ------------------------------------------------------------------ loops
    def _loops(self, order: Sequence[int], chosen: dict[int, LoopVar], settled: bool, parts: Parts | None) -> None:
        if not order:
            self._lanes(chosen, settled)
            return
        axis = order[0]
        for first, last in self._pieces(axis, chosen, settled):
            if first == last and parts is None:
                self._loops(order[1:], {**chosen, axis: LoopVar("c", first, first)}, settled, None)
                continue
            bounds = (first, last + 1) if parts is None else parts.bounds(first, last - first + 1)
            with counted(*bounds) as i:
                variable = LoopVar(f"i{axis}", first, last, i)
                self._loops(order[1:], {**chosen, axis: variable}, settled, None)

    def _pieces(self, axis: int, chosen: dict[int, LoopVar], settled: bool) -> list[tuple[int, int]]:
        """The runs of an axis over which the same conditions hold."""
        extent = self.box.extent[axis]
        if settled:
            return [(0, extent - 1)]
        variables = [chosen.get(d, v) for d, v in enumerate(self.variables)]
        found = pieces(0, extent - 1, cuts([self._look(variables)], variables[axis]))
        self.maker.bodies += len(found) - 1
        return found if self.maker.bodies <= MOST_BODIES else [(0, extent - 1)]

    def _lanes(self, chosen: dict[int, LoopVar], settled: bool) -> None:
        if self.vector is None:
            self._statement(chosen)
            return
        axis = self.vector.axis
        runs = [(0, self.vector.extent - 1)]
        if len(self.vector.axes) == 1:
            runs = self._pieces(axis, chosen, settled)
        for first, last in runs:
            self._run(chosen, first, last - first + 1)

    def _run(self, chosen: dict[int, LoopVar], first: int, extent: int) -> None:
        """`extent` elements from `first` on; where vectors do not divide them, the last one overlaps."""
        n = width(extent, self.maker.lanes)
        full, rest = divmod(extent, n)
        if full <= UNROLLED_CHUNKS:
            for k in range(full):
                self._chunk(chosen, first + k * n, n, first, extent)
        else:
            with T.serial(full) as i:
                self._chunk(chosen, i * n + first, n, first, extent)
        if rest:
            self._chunk(chosen, first + extent - n, n, first, extent)

    def _chunk(self, chosen: dict[int, LoopVar], start: Any, n: int, first: int, extent: int) -> None:
        assert self.vector is not None
        axis = self.vector.axis
        with self.maker.vector(n) as lane:
            low, high = (0, self.box.extent[axis] - 1) if len(self.vector.axes) > 1 else (first, first + extent - 1)
            variable = LoopVar(f"v{axis}", low, high, start + lane)
            joined = {d: LoopVar("c", 0, 0) for d in self.vector.axes[:-1]}
            self._statement({**chosen, **joined, axis: variable})

    def _statement(self, chosen: dict[int, LoopVar]) -> None:
        stages = self.maker.stages
        zero = LoopVar("c", 0, 0)
        at = self.box.at([chosen.get(d, zero) for d in range(len(self.box.extent))])
        stages.begin()
        self.store(at, stages.element(self.stage, at))


def _has_parts(notes: Notes) -> bool:
    """Whether some address has a quotient or remainder that shorter loops might settle."""
    return any(a.address is not None and next(a.address.parts(), None) is not None for a in notes.accesses)
