"""Product of two computed operands: tiles of rows x vectors of columns, the loops of the batch outside.

Both operands lie as their producers left them. Where vectors of `b` are no neighbours in memory, or pass several
times, a panel of them is packed first, [K][columns]: copied, or turned in squares where neighbours are the ones
that are summed. The call with a panel's first tile packs it, so that threads may divide the tiles of a panel too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.contractions import Contraction
from compiler.codegen.templates.activation import Activation
from compiler.codegen.templates.common import KernelBuilder, kernel, prefetch, splat, vector, view, when
from compiler.codegen.templates.product import ProductTile, balanced, either, heights, pieces
from compiler.codegen.templates.transpose import MOST, Square, turned_into


@dataclass(frozen=True, slots=True)
class ContractionShape:
    """Everything the generated code depends on."""

    loops: Contraction
    block: int
    """Columns of a vector."""
    residual: bool = False
    """Whether the activation reads a buffer that lies as the result does."""
    activation: Activation = field(default_factory=Activation)
    tile: tuple[int, int, int] = (1, 1, 1)
    """Most rows, column vectors, and independent sums per vector held in registers."""
    input_lanes: int = 1
    """Elements of a row read as one vector and multiplied by element (ARM); 1: broadcast loads (x86)."""

    prefetch: bool = False
    """Whether lines of results are asked for before each tile: large ones lie outside the near caches."""

    @property
    def parameters(self) -> tuple[str, ...]:
        return ("a", "b", *(("r",) if self.residual else ()), "y")

    @property
    def lanes(self) -> int:
        """Columns of a panel."""
        return self.block * self.tile[1]

    @property
    def panels(self) -> int:
        """Panels of one product."""
        return -(-self.loops.column.extent // self.lanes)

    @property
    def tiles(self) -> int:
        """Row tiles of a panel."""
        return balanced(self.loops.row.extent, self.tile[0])[0]

    @property
    def parts(self) -> int:
        """Independent units: row tiles of a panel."""
        return self.loops.products * self.panels * self.tiles

    @property
    def packed(self) -> bool:
        """Whether panels of `b` are packed: they pass several times, or vectors cannot be read where they lie."""
        column, inner = self.loops.column, self.loops.inner
        neighbours = column.b == 1 and column.extent % self.block == 0
        return not (neighbours and (self.tiles == 1 or inner.b == self.lanes == column.extent))

    @property
    def by_element(self) -> int:
        """Elements of a row read at once."""
        return self.input_lanes if self.loops.inner.a == 1 else 1


def contraction_kernel(shape: ContractionShape) -> Any:
    """The PrimFunc for `shape`; parameters as `shape.parameters`, then the range of units."""
    with kernel(shape.parameters, divided=True) as made:
        _Contraction(shape, made).emit()
    return made.func


@dataclass(frozen=True, slots=True)
class _Place:
    """A unit: first elements of its product in `a`, `b` and the result, first column of its panel, row tile."""

    a: Any
    b: Any
    y: Any
    column: Any
    tile: Any


class _Contraction:
    """Emission state of one kernel."""

    def __init__(self, shape: ContractionShape, made: KernelBuilder) -> None:
        self.s, self.n, self.made = shape, shape.loops, made
        a, b, y = shape.loops.spans
        spans = {"a": a, "b": b, "r": y, "y": y}
        self.buffers = {name: view(made.pointers[name], (spans[name],)) for name in shape.parameters}
        self.tiles, self.base, self.longer = balanced(self.n.row.extent, shape.tile[0])
        most = self.base + bool(self.longer)
        self.tile = ProductTile(most, shape.tile[1], shape.block, shape.tile[2], shape.by_element)
        self.panel = None
        if shape.packed:
            self.panel = T.alloc_buffer((self.n.inner.extent, shape.lanes), "float32")
            self.square = Square(self._side())

    def emit(self) -> None:
        """Units in order of products, panels, then row tiles."""
        s, columns = self.s, self.n.column.extent
        with self.made.each_part() as part:
            unit = part if self.tiles == 1 else part // self.tiles
            tile = 0 if self.tiles == 1 else part % self.tiles
            panel = 0 if s.panels == 1 else unit % s.panels
            a, b, y = self._first(unit if s.panels == 1 else unit // s.panels)
            at = _Place(a, b, y, panel * s.lanes, tile)
            last = s.panels == 1 or panel == s.panels - 1
            if self.panel is not None:
                with when(self.tiles == 1 or tirx.Or(tirx.EQ(tile, 0), tirx.EQ(part, self.made.begin))):
                    self._pack(at, last)
            for valid in either(last, columns % s.lanes, s.lanes):
                for rows, top in heights(tile, self.base, self.longer):
                    self._tile(at, valid, top, rows)

    def _first(self, product: Any) -> list[Any]:
        """First elements of a product."""
        found: list[Any] = [0, 0, 0]
        for number, loop in enumerate(reversed(self.n.batch)):
            outermost = number == len(self.n.batch) - 1
            turn = product if outermost else product % loop.extent
            product = product // loop.extent
            found = [f + turn * step if step else f for f, step in zip(found, loop.steps, strict=True)]
        return found

    # ------------------------------------------------------------------ products
    def _tile(self, at: _Place, valid: int, top: Any, rows: int) -> None:
        n, v = self.n, self.s.block
        vectors = -(-valid // v)

        def row(m: int, k: Any, count: int) -> Any:
            return self.buffers["a"][vector(at.a + (top + m) * n.row.a + k * n.inner.a, count)]

        def columns(k: Any, o: int) -> Any:
            if self.panel is not None:
                return self.panel[k, vector(o * v, v)]
            return self.buffers["b"][vector(at.b + k * n.inner.b + (at.column + o * v), v)]

        results = [
            (m, o, at.y + (top + m) * n.row.y + (at.column + o * v)) for m in range(rows) for o in range(vectors)
        ]
        for _, _, first in results if self.s.prefetch else []:
            prefetch(self.buffers["y"], (first,), write=True)
        self.tile.multiply((rows, vectors), n.inner.extent, lambda m, o: splat(0.0, v), row, columns)
        for m, o, first in results:
            self._store(first, self.tile.place(m, o), valid - o * v)

    def _store(self, first: Any, k: int, valid: int) -> None:
        """The valid lanes of a sum, finished."""
        for start, width in pieces(min(valid, self.s.block), self.s.block):
            place = vector(first + start, width)
            value = self.tile.sums.part(k, start, width)
            if self.n.scale != 1:
                value = value * splat(self.n.scale, width)
            other = self.buffers["r"][place] if self.s.residual else None
            T.buffer_store(self.buffers["y"], self.s.activation.apply(value, width, other), [place])

    # ------------------------------------------------------------------ panels
    def _side(self) -> int:
        """Side of the squares that are turned: the largest that the sum and a vector have."""
        if self.n.inner.b != 1:
            return 1
        return next(t for t in (MOST, 4, 2, 1) if t <= min(self.s.block, self.n.inner.extent))

    def _pack(self, at: _Place, last: Any) -> None:
        """The panel from column `at.column` on; lanes that are no columns are zero, or as the last column."""
        if self.n.column.b == 1:
            for valid in either(last, self.n.column.extent % self.s.lanes, self.s.lanes):
                self._copy(at, valid)
            return
        side, block = self.square.side, self.s.block
        left = T.min(self.n.column.extent - at.column, self.s.lanes)
        with T.serial(tirx.truncdiv(left + (block - 1), block) * (block // side)) as i:
            columns = [at.b + self._column(at.column + i * side + k) * self.n.column.b for k in range(side)]
            with T.serial(-(-self.n.inner.extent // side)) as turn:
                self._turn(columns, turn * side, i * side)

    def _copy(self, at: _Place, valid: int) -> None:
        """Columns that are neighbours."""
        block = self.s.block
        with T.serial(self.n.inner.extent) as k:
            first = at.b + k * self.n.inner.b + at.column
            for start in range(0, valid, block):
                for part, width in pieces(min(valid - start, block), block):
                    value = self.buffers["b"][vector(first + (start + part), width)]
                    T.buffer_store(self.panel, value, [k, vector(start + part, width)])
            for lane in range(valid, -(-valid // block) * block):
                T.buffer_store(self.panel, splat(0.0, 1), [k, lane])

    def _column(self, column: Any) -> Any:
        """The column, or the last one for lanes that are none."""
        last = self.n.column.extent - 1
        return T.min(column, last) if self.n.column.extent % self.s.block else column

    def _turn(self, columns: list[Any], first: Any, lane: Any) -> None:
        """Some steps of the sum from `first` on, for as many columns; the last ones overlap."""
        side, extent = self.square.side, self.n.inner.extent
        if extent % side:
            first = T.min(first, extent - side)
        rows = [self.buffers["b"][vector(c + first * self.n.inner.b, side)] for c in columns]
        turned_into(self.square, rows, self.panel, [first + k for k in range(side)], lane)
