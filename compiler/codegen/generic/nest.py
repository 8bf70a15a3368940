"""Loops around element-wise stages over a box: vectors, and pieces on which the same conditions hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.generic.index import Index, LoopVar
from compiler.codegen.generic.lanes import arrange_tables, best_option, options, power_of_two, scalar_cost, width
from compiler.codegen.generic.language import Notes, Source, Stage, Stages
from compiler.codegen.generic.scalar import as_expr
from compiler.codegen.generic.survey import Box, cuts, look, pieces

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

    axis: int | None = None
    """The axis of the result whose entries the units should be, where it can be walked first."""
    begin: Any = None
    end: Any = None
    count: int = 0

    def bounds(self, first: int, number: int) -> tuple[Any, Any]:
        """Loop bounds of the `number` units from `first` on that a call does."""
        return tirx.max(self.begin, first), tirx.min(self.end, first + number)


@dataclass
class Lanes:
    """The axes that become vectors of `n`: the last of `axes` moves, the ones before it are contiguous with it."""

    axes: tuple[int, ...]
    extent: int
    n: int

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
        self.notes = self._look(self.box.at(self.variables), self.variables)
        self.vector = self._choose()

    def _look(self, at: Sequence[Index], variables: Sequence[LoopVar]) -> Notes:
        return look(self.maker.stages, self.stage, at, (), [*self.outer, *variables], self.target)

    def _choose(self) -> Lanes | None:
        """The axis with the least cost, joined with the axes before it where everything is contiguous over both."""
        free = self.target is None
        best = best_option(options(self.box, self.variables, self.notes, self.maker.lanes, self._look, free))
        if best is None or best.cost >= scalar_cost(self.notes):
            return None
        long = [d for d, n in enumerate(self.box.extent) if n > 1]
        axes, extent = [best.axis], self.box.extent[best.axis]
        kept = long[0] if self.parts is not None and long[0] != best.axis else -1
        for d in reversed([d for d in long if d < best.axis]):
            if free or d == kept or not self._joins(d, best.axis, extent):
                break
            axes.insert(0, d)
            extent *= self.box.extent[d]
        return Lanes(tuple(axes), extent, best.n if len(axes) == 1 else width(extent, self.maker.lanes))

    def _joins(self, axis: int, best: int, extent: int) -> bool:
        """Whether every access moves along `axis` as it would past the end of the axes after it."""
        moving, lane = self.variables[axis], self.variables[best]
        involved = {moving, lane}
        if involved & self.notes.valued or any(v in involved for v, _ in self.notes.breaks):
            return False
        if any(involved & c.index.variables() for c in self.notes.conditions) or self.notes.reads:
            return False
        return all(a.crosses(moving, lane, extent) for a in self.notes.accesses)

    def serial_axes(self) -> list[int]:
        """Axes that are walked one entry at a time, outermost first."""
        joined = set() if self.vector is None else set(self.vector.axes)
        return [d for d, n in enumerate(self.box.extent) if n > 1 and d not in joined]

    def emit(self) -> None:
        """Write the loops."""
        along = () if self.vector is None else self.vector.axes
        arrange_tables(self.notes, [self.variables[d] for d in along], self.maker.arranged)
        settled = not (self.notes.conditions or self.notes.breaks or _has_parts(self.notes))
        order = self.serial_axes()
        if self.parts is not None and order:
            self.parts.count = self.box.extent[order[0]]
        self._loops(order, {}, settled, self.parts)

    # ------------------------------------------------------------------ loops
    def _loops(self, order: Sequence[int], chosen: dict[int, Index], settled: bool, parts: Parts | None) -> None:
        if not order:
            self._lanes(chosen, settled)
            return
        axis = order[0]
        for first, last in self._pieces(axis, chosen, settled):
            if first == last and parts is None:
                self._loops(order[1:], {**chosen, axis: Index({}, first)}, settled, None)
                continue
            bounds = (first, last + 1) if parts is None else parts.bounds(first, last - first + 1)
            with counted(*bounds) as i:
                variable = LoopVar(f"i{axis}", first, last, i)
                self._loops(order[1:], {**chosen, axis: Index.of(variable)}, settled, None)

    def _pieces(self, axis: int, chosen: dict[int, Index], settled: bool) -> list[tuple[int, int]]:
        """The runs of an axis over which the same conditions hold."""
        extent = self.box.extent[axis]
        if settled:
            return [(0, extent - 1)]
        own = [Index.of(v) for v in self.variables]
        at = [base + chosen.get(d, own[d]) for d, base in enumerate(self.box.base)]
        known = [v for i in chosen.values() for v in i.variables()]
        found = pieces(0, extent - 1, cuts([self._look(at, [*known, *self.variables])], self.variables[axis]))
        self.maker.bodies += len(found) - 1
        return found if self.maker.bodies <= MOST_BODIES else [(0, extent - 1)]

    def _lanes(self, chosen: dict[int, Index], settled: bool) -> None:
        if self.vector is None:
            self._statement(chosen)
            return
        axis = self.vector.axis
        runs = [(0, self.vector.extent - 1)]
        if len(self.vector.axes) == 1:
            runs = self._pieces(axis, chosen, settled)
        for first, last in runs:
            self._run(chosen, first, last - first + 1)

    def _run(self, chosen: dict[int, Index], first: int, extent: int) -> None:
        """`extent` elements from `first` on; where vectors do not divide them, the last one overlaps.

        Not so in a region: TVM may let it share memory with an operand that dies here, entry by entry.
        """
        assert self.vector is not None
        n = width(extent, self.vector.n)
        full, rest = divmod(extent, n)
        if full <= UNROLLED_CHUNKS:
            for k in range(full):
                self._chunk(chosen, Index({}, first + k * n), n)
        else:
            with T.serial(full) as i:
                self._chunk(chosen, Index.of(LoopVar("q", 0, full - 1, i)) * n + first, n)
        if rest and self.target is not None:
            self._chunk(chosen, Index({}, first + extent - n), n)
            return
        while rest:
            n = power_of_two(rest)
            self._chunk(chosen, Index({}, first + extent - rest), n)
            rest -= n

    def _chunk(self, chosen: dict[int, Index], start: Index, n: int) -> None:
        assert self.vector is not None
        with self.maker.vector(n) as lane:
            at = start + Index.of(LoopVar("l", 0, n - 1, lane))
            if len(self.vector.axes) > 1:  # the last axis goes on where it ends, into the ones before it
                at = Index.of(LoopVar("v", 0, self.box.extent[self.vector.axis] - 1, as_expr(at)))
            self._statement({**chosen, self.vector.axis: at})

    def _statement(self, chosen: dict[int, Index]) -> None:
        stages, none = self.maker.stages, Index({})
        at = [base + chosen.get(d, none) for d, base in enumerate(self.box.base)]
        stages.begin()
        self.store(at, stages.element(self.stage, at))


def _has_parts(notes: Notes) -> bool:
    """Whether some address has a quotient or remainder that shorter loops might settle."""
    return any(a.address is not None and next(a.address.parts(), None) is not None for a in notes.accesses)
