"""1x1 convolution with seven products instead of eight (Strassen 1969, in Winograd's form with fifteen additions).

Input channels, output channels and positions are halved; the two halves of the positions are the upper and the
lower row of each pair of rows or, in small images of an odd number of rows, the first and the second half of the
cells. With A the weights, B a pair of rows and C its results,

    C11 = P1 + P2              P1 = A11 B11                T1 = B12 - B11    S1 = A21 + A22
    C21 = P1 + P6 + P7 - P4    P2 = A12 B21                T2 = B22 - T1     S2 = S1 - A11
    C12 = P1 + P6 + P5 + P3    P3 = S4 B22   P4 = A22 T4   T3 = B22 - B12    S3 = A11 - A21
    C22 = P1 + P6 + P7 + P5    P5 = S1 T1    P6 = S2 T2    T4 = T2 - B21     S4 = A12 - S2
                               P7 = S3 T3

The sums of weights S are made when they are packed, in float64. Those of inputs, T, are made for a group of pairs
at a time and lie in scratch. Those of products happen where the products do: in registers, with three register
tiles in the nearest cache. One product in eight is saved for 7/4 of the weight bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.templates.blocked import Output
from compiler.codegen.templates.common import (
    KernelBuilder,
    Registers,
    blocks_at_once,
    chunks,
    kernel,
    prefetch,
    splat,
    vector,
    view,
    when,
)
from compiler.codegen.templates.conv import ConvShape, segment_names
from compiler.codegen.templates.product import ProductTile, ReadRow, ReadVector, cells
from compiler.codegen.templates.units import Units

PRODUCTS = 7
SUMS = 4
"""Sums of inputs, T1 to T4."""

LINE = 16
"""Floats in a cache line."""

VOLATILE = "tirx.volatile"
"""TVM's mark of buffers whose every load and store is made where it stands."""

P1, P2, P6, P7, P4, P5, P3 = range(PRODUCTS)
"""Products in the order in which they are computed and their weights are stored; P4 is made with -A22."""


@dataclass(frozen=True, slots=True)
class StrassenShape:
    """Everything the generated code depends on."""

    conv: ConvShape
    """Geometry, epilogue, columns and vectors of the tile; loop order is not used. The blocks of the result and
    those of every segment are even in number and full."""
    group: int
    """Pairs of rows whose sums of inputs are made together."""

    @property
    def by_cells(self) -> bool:
        """Whether the halves of the positions are those of all cells, not the rows of pairs."""
        return self.conv.y.height % 2 == 1

    @property
    def pairs(self) -> int:
        """Pairs of rows of an image, or the one pair of halves of its cells."""
        return 1 if self.by_cells else self.conv.y.height // 2

    @property
    def span(self) -> int:
        """Positions in the first half of a pair; the second half may have one less."""
        return half_of_cells(self.conv.y.extent) if self.by_cells else self.conv.y.width

    @property
    def inner(self) -> int:
        """Channels of half of the input: the first halves of its segments, or the second."""
        return self.conv.channels // 2

    @property
    def lanes(self) -> int:
        """Output channels of a panel."""
        return self.conv.y.block * self.conv.tile[2]

    @property
    def panels(self) -> int:
        """Panels of one half of the output channels; a unit computes one of each half."""
        return self.conv.panels // 2

    @property
    def units(self) -> Units:
        """Independent units: a pair of rows by a panel of both halves."""
        return Units(self.conv.batch * self.pairs, self.panels)


def half_of_cells(extent: tuple[int, int]) -> int:
    """Cells in the first half of an image."""
    return -(-extent[0] * extent[1] // 2)


def sums_of_weights(weight: np.ndarray) -> list[np.ndarray]:
    """The seven matrices [O / 2, I / 2] in the order of the products, for [O, I] whose columns are the first halves
    of all segments, then the second; float64."""
    outputs, inputs = (n // 2 for n in weight.shape)
    wide = weight.astype(np.float64)
    a11, a12, a21, a22 = (
        wide[rows, columns]
        for rows in (slice(outputs), slice(outputs, None))
        for columns in (slice(inputs), slice(inputs, None))
    )
    s1 = a21 + a22
    s2 = s1 - a11
    return [a11, a12, s2, a11 - a21, -a22, s1, a12 - s2]


def halves(weight: np.ndarray, segments: list[int]) -> np.ndarray:
    """[O, I] with the first halves of all segments (their numbers of channels) before the second ones."""
    ends = np.cumsum(segments)
    first = [np.arange(end - n, end - n // 2) for n, end in zip(segments, ends, strict=True)]
    second = [np.arange(end - n // 2, end) for n, end in zip(segments, ends, strict=True)]
    return weight[:, np.concatenate([*first, *second])]


def pack(weight: np.ndarray, segments: list[int], lanes: int) -> np.ndarray:
    """[O, I] in the order the kernel reads it: [O / 2 / lanes][product][I / 2][lanes], float32."""
    made = np.stack(sums_of_weights(halves(weight, segments)))
    panels = made.reshape(PRODUCTS, -1, lanes, made.shape[2]).transpose(1, 0, 3, 2)
    return np.ascontiguousarray(panels, np.float32)


def strassen_kernel(shape: StrassenShape) -> Any:
    """The PrimFunc for `shape`; parameters as its convolution's, then the range of units."""
    with kernel(shape.conv.parameters, divided=True) as made:
        _Strassen(shape, made).emit()
    return made.func


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the loops stand: pair of the group, sample, upper row, panel, first position, positions of a tile."""

    pair: Any
    n: Any
    row: Any
    panel: Any
    left: Any
    columns: int


Source = Callable[[_Place, int, Any, int, Any], Any]
"""(place, segment, block of the half of its channels, position in the tile, lanes) -> inputs of a product."""


class _Strassen:
    """Emission state of one kernel."""

    def __init__(self, shape: StrassenShape, made: KernelBuilder) -> None:
        self.s, self.c, self.made = shape, shape.conv, made
        c = self.c
        self.v, self.columns, self.vectors = c.y.block, c.tile[0], c.tile[2]
        self.X = [view(made.pointers[n], x.physical(c.batch)) for n, x in zip(segment_names(c.x), c.x, strict=True)]
        self.W = view(made.pointers["w"], (shape.panels, PRODUCTS * shape.inner * shape.lanes))
        self.out = Output(made, c.y, c.batch, c.epilogue)
        self.block = c.x[0].block
        blocks = shape.inner // self.block
        self.sums = T.alloc_buffer((SUMS, shape.group, blocks, shape.span, self.block), "float32")
        self.by_element = c.lane_unroll > 1
        # LLVM would carry these through the loops between in registers, of which ARM's loops need all
        held = {VOLATILE: True} if self.by_element else {}
        self.kept = T.alloc_buffer((3, self.columns * self.vectors, self.v), "float32", annotations=held)
        self.inputs = Registers(4, self.block)
        self.tile = ProductTile(self.columns, self.vectors, self.v, lanes=c.lane_unroll)

    def emit(self) -> None:
        """Groups of pairs of this call's units: sums of inputs, then panel by panel."""
        s = self.s
        self.out.clear_halo(self.made, s.units)
        first, behind = s.units.tile_range(self.made)
        with T.serial(tirx.truncdiv(behind - first + (s.group - 1), s.group)) as g:
            base = first + g * s.group
            with self._each_pair(base, behind) as (t, n, row):
                self._add_inputs(t, n, row)
            with (
                T.serial(s.panels) as panel,
                self._each_pair(base, behind) as (t, n, row),
                s.units.where(self.made, base + t, panel),
            ):
                for left, columns in self._each_tile(self.columns):
                    self._tile(_Place(t, n, row, panel, left, columns))

    @contextmanager
    def _each_pair(self, base: Any, behind: Any) -> Iterator[tuple[Any, Any, Any]]:
        """(index in the group, sample, upper row) of each pair that exists."""
        with T.serial(T.min(tirx.IntImm("int32", self.s.group), behind - base)) as t:
            n, pair = tirx.truncdiv(base + t, self.s.pairs), tirx.truncmod(base + t, self.s.pairs)
            yield t, n, pair * 2

    def _each_tile(self, most: int) -> Iterator[tuple[Any, int]]:
        """(first position, positions) of tiles of at most `most` positions of half a pair: in a loop, or one after
        another where every cell has a place of its own. Not where tiles are so small (ARM) that there would be more
        code than the nearest cache holds: places are calculated there."""
        for left, columns, count in chunks(self.s.span, most):
            if self.s.by_cells and not (self.by_element and most > 1):
                yield from ((left + j * columns, columns) for j in range(count))
            else:
                with T.serial(count) as j:
                    yield j * columns + left, columns

    def _cell(self, at: _Place, lower: int, m: int) -> tuple[Any, Any]:
        """Row and column of position m of a tile in one half of the pair. Where the second half has one cell less,
        its last one stands for it."""
        if not self.s.by_cells:
            return at.row + lower, at.left + m
        cell, last = at.left + m + lower * self.s.span, self._cells - 1
        cell = min(cell, last) if isinstance(cell, int) else T.min(cell, last)
        return cell // self.c.y.width, cell % self.c.y.width

    def _exists(self, at: _Place, lower: int, m: int) -> Any:
        """Whether a position is a cell of its own: all but the last one of the second half are."""
        if not self.s.by_cells or not lower or m < at.columns - 1:
            return True
        return at.left + m + self.s.span < self._cells

    @property
    def _cells(self) -> int:
        return self.c.y.height * self.c.y.width

    # ------------------------------------------------------------------ inputs
    def _read(self, at: _Place, half: int, lower: int, segment: int, block: Any, m: int, lanes: Any) -> Any:
        """An input of one half of the channels, in one half of the pair."""
        plane, cell = self.c.x[segment], self._cell(at, lower, m)
        row, column = (self.c.at(segment, axis, position, 0) for axis, position in enumerate(cell))
        return self.X[segment][at.n, block + half * (plane.blocks // 2), row, column, lanes]

    def _segments(self) -> Iterator[tuple[int, int, int]]:
        """(segment, blocks of one half of it, blocks of the halves before it)."""
        before = 0
        for segment, plane in enumerate(self.c.x):
            yield segment, plane.blocks // 2, before
            before += plane.blocks // 2

    def _add_inputs(self, t: Any, n: Any, row: Any) -> None:
        """T1 to T4 of a pair of rows."""
        for segment, blocks, before in self._segments():
            with T.serial(blocks) as block:
                for left, _ in self._each_tile(1):
                    self._add_cell(_Place(t, n, row, 0, left, 1), segment, block, before + block)

    def _add_cell(self, at: _Place, segment: int, block: Any, kept: Any) -> None:
        """T1 to T4 of one position and one block of a segment, to block `kept` of the sums."""
        for i, (half, lower) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
            self.inputs.put(i, self._read(at, half, lower, segment, block, 0, vector(0, self.block)))
        b11, b12, b21, b22 = map(self.inputs.get, range(4))
        self.inputs.put(0, b12 - b11)
        self._keep_input(0, at, kept, self.inputs.get(0))
        self._keep_input(2, at, kept, b22 - b12)
        self.inputs.put(3, b22 - self.inputs.get(0))
        self._keep_input(1, at, kept, self.inputs.get(3))
        self._keep_input(3, at, kept, self.inputs.get(3) - b21)

    def _keep_input(self, number: int, at: _Place, block: Any, value: Any) -> None:
        T.buffer_store(self.sums, value, [number, at.pair, block, at.left, vector(0, self.block)])

    def _row(self, half: int, lower: int) -> Source:
        """Inputs as they are."""
        return lambda at, segment, block, m, lanes: self._read(at, half, lower, segment, block, m, lanes)

    def _sum(self, number: int) -> Source:
        """Sum T`number` of inputs."""
        before = {segment: first for segment, _, first in self._segments()}
        return lambda at, segment, block, m, lanes: self.sums[
            number - 1, at.pair, before[segment] + block, at.left + m, lanes
        ]

    # ------------------------------------------------------------------ products
    def _tile(self, at: _Place) -> None:
        """Four register tiles of results: both rows, a panel of both halves of the output channels."""
        if self.c.prefetch:
            for half, lower, m, o in self._results(at):
                self.out.prefetch(self._result(at, half, lower, m, o))
        zero = splat(0.0, self.v)
        self._begin(at, lambda m, o: zero)
        self._add(at, P1, self._row(0, 0))
        self._keep(at, 0)
        self._add(at, P2, self._row(1, 0))
        self._store(at, 0, 0)
        self._begin(at, self._kept(0))
        self._add(at, P6, self._sum(2))
        self._keep(at, 1)
        self._add(at, P7, self._sum(3))
        self._keep(at, 2)
        self._add(at, P4, self._sum(4))
        self._store(at, 1, 0)
        self._begin(at, lambda m, o: zero)
        self._add(at, P5, self._sum(1))
        self._keep(at, 0)
        self._begin(at, lambda m, o: self._total(m, o) + self._kept(1)(m, o))
        self._add(at, P3, self._row(1, 1))
        self._store(at, 0, 1)
        self._begin(at, lambda m, o: self._kept(0)(m, o) + self._kept(2)(m, o))
        self._store(at, 1, 1)

    def _begin(self, at: _Place, first: Callable[[int, int], Any]) -> None:
        self.tile.start((at.columns, self.vectors), first)

    def _add(self, at: _Place, product: int, source: Source) -> None:
        """Add a product to the sums in registers; meanwhile ask for a part of the next panel's weights.

        Not where inputs are multiplied by element (ARM): weights lie in the order in which they are read, which
        prefetchers follow, and a prefetch per block would be as much as the rest of the loop's control.
        """
        for segment, blocks, before in self._segments():
            step = blocks_at_once(blocks, self.c.lane_unroll)
            with T.serial(blocks // step) as i:
                for block in (i * step + n for n in range(step)):
                    if not self.by_element:
                        self._prefetch(at, product, block + before)
                    first = product * self.s.inner + (block + before) * self.block
                    x, w = self._operands(at, source, segment, block, first)
                    self.tile.accumulate((at.columns, self.vectors), self.block, x, w)

    def _operands(
        self, at: _Place, source: Source, segment: int, block: Any, first: Any
    ) -> tuple[ReadRow, ReadVector]:
        """Inputs of a block of channels, and their weights, whose number among those of the panel is `first`."""

        def x(m: int, k: Any, count: int) -> Any:
            return source(at, segment, block, m, vector(k, count))

        def w(k: Any, o: int) -> Any:
            return self.W[at.panel, vector((first + k) * self.s.lanes + o * self.v, self.v)]

        return x, w

    def _prefetch(self, at: _Place, product: int, block: Any) -> None:
        """The tiles of a group of pairs share the next panel; those of the last panel ask for what follows it."""
        s, blocks = self.s, self.s.inner // self.block
        across = -(-s.span // self.columns)
        steps = s.group * across * PRODUCTS * blocks
        lines = -(-PRODUCTS * s.inner * s.lanes // LINE // steps)
        tile = at.pair * across + tirx.truncdiv(at.left, self.columns)
        first = ((tile * PRODUCTS + product) * blocks + block) * lines
        for i in range(lines):
            prefetch(self.W, (at.panel + 1, (first + i) * LINE), near=False)

    def _total(self, m: int, o: int) -> Any:
        return self.tile.sums.get(self.tile.place(m, o))

    def _kept(self, number: int) -> Callable[[int, int], Any]:
        return lambda m, o: self.kept[number, m * self.vectors + o, vector(0, self.v)]

    def _keep(self, at: _Place, number: int) -> None:
        for m, o in cells((at.columns, self.vectors)):
            place = [number, m * self.vectors + o, vector(0, self.v)]
            T.buffer_store(self.kept, self._total(m, o), place)

    # ------------------------------------------------------------------ results
    def _results(self, at: _Place) -> Iterator[tuple[int, int, int, int]]:
        """(half of the channels, half of the pair, position, vector) of every vector of results."""
        extent = (at.columns, self.vectors)
        every = ((half, lower, m, o) for half in (0, 1) for lower in (0, 1) for m, o in cells(extent))
        return (r for r in every if self._exists(at, r[1], r[2]) is not False)

    def _result(self, at: _Place, half: int, lower: int, m: int, o: int) -> tuple[Any, Any, Any, Any]:
        """(sample, block, row, column) of a vector of results."""
        block = at.panel * self.vectors + (half * (self.c.y.blocks // 2) + o)
        return at.n, block, *self._cell(at, lower, m)

    def _store(self, at: _Place, half: int, lower: int) -> None:
        """The register tile is complete for one half of the output channels and one half of the pair."""
        for m, o in cells((at.columns, self.vectors)):
            exists, place = self._exists(at, lower, m), self._result(at, half, lower, m, o)
            if exists is False:
                continue
            with when(exists):
                self.out.store(place, self._total(m, o) + self.out.bias(place[1]))


def reference(x: np.ndarray, weight: np.ndarray, segments: list[int]) -> np.ndarray:
    """The algorithm in numpy float32: x [I, 2, W], weights [O, I] to [O, 2, W]."""
    moved = halves(x.reshape(len(x), -1).T, segments).T.reshape(x.shape)
    (b11, b12), (b21, b22) = ((half[:, 0], half[:, 1]) for half in np.split(moved, 2))
    t1 = b12 - b11
    t2 = b22 - t1
    inputs = {P1: b11, P2: b21, P6: t2, P7: b22 - b12, P4: t2 - b21, P5: t1, P3: b22}
    sums = [w.astype(np.float32) for w in sums_of_weights(halves(weight, segments))]
    p = {number: sums[number] @ inputs[number] for number in range(PRODUCTS)}
    u2 = p[P1] + p[P6]
    u3 = u2 + p[P7]
    upper = np.concatenate([p[P1] + p[P2], u3 + p[P4]])
    lower = np.concatenate([u2 + p[P5] + p[P3], u3 + p[P5]])
    return np.stack([upper, lower], axis=1)
