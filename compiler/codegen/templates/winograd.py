"""Winograd convolution F(m x n, 3 x 3) on blocked activations (Lavin and Gray, CVPR 2016, part 4), m and n 2 or 4.

m x n outputs of a 3x3 convolution cost (m + 2) (n + 2) multiplications per channel pair instead of 9 m n: 4 per
output for 2 x 2, 3 for 4 x 2, 2.25 for 4 x 4. A group of tiles is transformed, multiplied as (m + 2) (n + 2) small
matrix products, and transformed back; both intermediates live in scratch. Stride 1 and dilation 1 only. Weights are
transformed in float64 when they are packed. The last tiles read past the image, where the input's buffer must hold
zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.templates.blocked import Output
from compiler.codegen.templates.common import KernelBuilder, Registers, kernel, splat, vector, view
from compiler.codegen.templates.conv import ConvShape, segment_names

_WEIGHT = {
    2: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    4: (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
}
"""G: transform of the weights by outputs per tile and axis, for the points 0, 1, -1, (2, -2,) infinity."""


@dataclass(frozen=True, slots=True)
class WinogradShape:
    """Everything the generated code depends on; `conv.tile` and its loop order are not used."""

    conv: ConvShape
    outputs: tuple[int, int]
    """Rows and columns of outputs of a tile; it reads two more inputs along each axis."""
    group: int
    """Tiles transformed together: a multiple of `rows`."""
    rows: int
    vectors: int
    """Tiles and output vectors held in registers during the products."""

    @property
    def points(self) -> int:
        """Products per tile and channel pair."""
        return (self.outputs[0] + 2) * (self.outputs[1] + 2)

    @property
    def tiles(self) -> tuple[int, int]:
        """Tiles along the rows and columns of the output."""
        return tile_counts(self.conv.y.extent, self.outputs)

    @property
    def count(self) -> int:
        """Tiles of all samples."""
        return self.conv.batch * self.tiles[0] * self.tiles[1]

    @property
    def parts(self) -> int:
        """Independent units: `rows` tiles each."""
        return -(-self.count // self.rows)

    @property
    def lanes(self) -> int:
        """Output channels of a panel of weights."""
        return self.conv.y.block * self.vectors


def tile_counts(extent: Sequence[int], outputs: Sequence[int]) -> tuple[int, int]:
    """Tiles along rows and columns."""
    return -(-extent[0] // outputs[0]), -(-extent[1] // outputs[1])


def cells_read(extent: int, outputs: int) -> int:
    """Input cells along an axis that the tiles of `extent` outputs read."""
    return -(-extent // outputs) * outputs + 2


def pack(weight: np.ndarray, outputs: tuple[int, int], lanes: int) -> np.ndarray:
    """[O, I, 3, 3] to [(m + 2) (n + 2)][O / lanes][I][lanes], transformed; zero rows fill the last panel."""
    rows, columns = (np.array(_WEIGHT[m]) for m in outputs)
    padded = np.zeros((-(-weight.shape[0] // lanes) * lanes, *weight.shape[1:]))
    padded[: weight.shape[0]] = weight
    flat = np.kron(rows, columns) @ padded.reshape(-1, 9).T
    made = flat.reshape(len(flat), -1, lanes, weight.shape[1]).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(made, np.float32)


def winograd_kernel(shape: WinogradShape) -> Any:
    """The PrimFunc for `shape`; parameters as those of the direct convolution, then the range of units."""
    with kernel(shape.conv.parameters, divided=True) as made:
        _Winograd(shape, made).emit()
    return made.func


def _input_transform(outputs: int, d: Sequence[Any], const: Any) -> list[Any]:
    """B^T d: what a row or column of inputs becomes; common terms are written once for LLVM to see."""
    if outputs == 2:
        return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]
    two, four, five = (const(c) for c in (2, 4, 5))
    even, odd = d[4] - four * d[2], d[3] - four * d[1]
    outer, cross = d[4] - d[2], two * (d[3] - d[1])
    first, last = four * d[0] - five * d[2] + d[4], four * d[1] - five * d[3] + d[5]
    return [first, even + odd, even - odd, outer + cross, outer - cross, last]


def _output_transform(outputs: int, m: Sequence[Any], const: Any) -> list[Any]:
    """A^T m: outputs from the products along a row or column."""
    if outputs == 2:
        return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]
    two, four, eight = (const(c) for c in (2, 4, 8))
    near, far = m[1] + m[2], m[3] + m[4]
    near_odd, far_odd = m[1] - m[2], m[3] - m[4]
    return [
        m[0] + near + far,
        near_odd + two * far_odd,
        near + four * far,
        near_odd + eight * far_odd + m[5],
    ]


class _Winograd:
    """Emission state of one kernel."""

    def __init__(self, shape: WinogradShape, made: KernelBuilder) -> None:
        self.s, self.c, self.made = shape, shape.conv, made
        x, y = self.c.x, self.c.y
        self.reads = (shape.outputs[0] + 2, shape.outputs[1] + 2)
        self.X = [
            view(made.pointers[n], p.physical(self.c.batch)) for n, p in zip(segment_names(x), x, strict=True)
        ]
        self.W = view(made.pointers["w"], (shape.points, y.blocks // shape.vectors, self.c.channels, shape.lanes))
        self.out = Output(made, y, self.c.batch, self.c.epilogue)
        self.depth = sum(p.lanes for p in x)
        self.inputs = T.alloc_buffer((shape.points, shape.group, self.depth), "float32")
        self.products = T.alloc_buffer((shape.points, shape.group, y.lanes), "float32")
        blocks = sorted({p.block for p in x})
        self.input_tile = {b: Registers(shape.points, b) for b in blocks}
        self.output_tile = Registers(shape.outputs[0] * self.reads[1], y.block)
        self.acc = Registers(shape.rows * shape.vectors, y.block)

    def emit(self) -> None:
        """Groups of tiles of this call's range: transform, multiply, transform back."""
        s = self.s
        self.out.clear_halo(self.made.begin)
        first = self.made.begin * s.rows
        limit = T.min(self.made.end * s.rows, s.count)
        steps = s.group // s.rows
        with T.serial(tirx.floordiv(self.made.end - self.made.begin + (steps - 1), steps)) as g:
            base = first + g * s.group
            with self._each_tile(base, limit) as at:
                self._transform_inputs(*at)
            with T.serial(s.points) as point, T.serial(self.c.y.blocks // s.vectors) as panel:
                self._multiply_group(point, panel, limit - base)
            with self._each_tile(base, limit) as at:
                self._transform_output(*at)

    @contextmanager
    def _each_tile(self, base: Any, limit: Any) -> Iterator[tuple[Any, Any, Any, Any]]:
        """(index in the group, sample, first output row, first output column) of each tile that exists."""
        down, across = self.s.tiles
        m = self.s.outputs
        with T.serial(self.s.group) as t, T.If(base + t < limit), T.Then():
            # Nothing here is negative. To floor what might be, TVM adds multiples that leave int32 on large planes.
            n, tile = tirx.truncdiv(base + t, down * across), tirx.truncmod(base + t, down * across)
            yield t, n, tirx.truncdiv(tile, across) * m[0], tirx.truncmod(tile, across) * m[1]

    def _transform_inputs(self, t: Any, n: Any, row: Any, column: Any) -> None:
        first = 0
        for segment, x in enumerate(self.c.x):
            with T.serial(x.blocks) as block:
                self._transform_block(segment, (t, n, row, column), block, first)
            first += x.lanes

    def _transform_block(self, segment: int, at: Any, block: Any, first: int) -> None:
        """Columns, then rows of one block of channels."""
        t, n, row, column = at
        x, m, (down, across) = self.c.x[segment], self.s.outputs, self.reads
        lanes, tile = vector(0, x.block), self.input_tile[x.block]
        top, left = self.c.at(segment, 0, row, 0), self.c.at(segment, 1, column, 0)

        def const(value: float) -> Any:
            return splat(value, x.block)

        for j in range(across):
            cells = [self.X[segment][n, block, top + q, left + j, lanes] for q in range(down)]
            for i, value in enumerate(_input_transform(m[0], cells, const)):
                tile.put(i * across + j, value)
        for i in range(down):
            cells = [tile.get(i * across + q) for q in range(across)]
            for j, value in enumerate(_input_transform(m[1], cells, const)):
                place = [i * across + j, t, vector(first + block * x.block, x.block)]
                T.buffer_store(self.inputs, value, place)

    def _multiply_group(self, point: Any, panel: Any, tiles: Any) -> None:
        """The tiles of a group (at most `tiles` exist), `rows` at a time."""
        with T.serial(self.s.group // self.s.rows) as i, T.If(i * self.s.rows < tiles), T.Then():
            self._multiply(point, panel, i * self.s.rows)

    def _multiply(self, point: Any, panel: Any, first: Any) -> None:
        """`rows` tiles by one panel of weights; lanes that fill up a block have no weights and are skipped."""
        v = self.c.y.block
        cells = [(u, o, u * self.s.vectors + o) for u in range(self.s.rows) for o in range(self.s.vectors)]
        for _, _, k in cells:
            self.acc.put(k, splat(0.0, v))
        lane = channel = 0
        for x in self.c.x:
            with T.serial(x.channels) as c:
                for u, o, k in cells:
                    weight = self.W[point, panel, c + channel, vector(o * v, v)]
                    value = splat(self.inputs[point, first + u, c + lane], v)
                    self.acc.put(k, self.acc.get(k) + value * weight)
            lane, channel = lane + x.lanes, channel + x.channels
        for u, o, k in cells:
            place = [point, first + u, vector(panel * self.s.lanes + o * v, v)]
            T.buffer_store(self.products, self.acc.get(k), place)

    def _transform_output(self, t: Any, n: Any, row: Any, column: Any) -> None:
        y, m, (down, across) = self.c.y, self.s.outputs, self.reads

        def const(value: float) -> Any:
            return splat(value, y.block)

        with T.serial(y.blocks) as block:
            at = vector(block * y.block, y.block)
            for j in range(across):
                cells = [self.products[q * across + j, t, at] for q in range(down)]
                for i, value in enumerate(_output_transform(m[0], cells, const)):
                    self.output_tile.put(i * across + j, value)
            for i in range(m[0]):
                cells = [self.output_tile.get(i * across + q) for q in range(across)]
                for j, value in enumerate(_output_transform(m[1], cells, const)):
                    self._guarded((n, block, row + i, column + j), (i, j), value + self.out.bias(block))

    def _guarded(self, place: Any, at: tuple[int, int], value: Any) -> None:
        """Store one output; only those of the last tiles can lie outside the image."""
        outside = [
            position < extent
            for position, extent, i, m in zip(place[2:], self.c.y.extent, at, self.s.outputs, strict=True)
            if extent % m and i >= extent % m
        ]
        if not outside:
            self.out.store(place, value)
            return
        condition = outside[0] if len(outside) == 1 else tirx.And(*outside)
        with T.If(condition), T.Then():
            self.out.store(place, value)


def reference(x: np.ndarray, weights: np.ndarray, outputs: tuple[int, int]) -> np.ndarray:
    """The algorithm in numpy float32: x [T, C, m + 2, n + 2] and weights [points, O, C] give [T, O, m, n]."""
    into, back = [], []
    for m in outputs:
        identity = list(np.eye(m + 2, dtype=np.float32))
        into.append(np.stack(_input_transform(m, identity, np.float32)))
        back.append(np.stack(_output_transform(m, identity, np.float32)))
    moved = np.einsum("ai,tcij,bj->abtc", into[0], x, into[1], optimize=True).astype(np.float32)
    products = np.matmul(moved.reshape(-1, *moved.shape[2:]), weights.transpose(0, 2, 1))
    tiles = products.reshape(*moved.shape[:2], *products.shape[1:])
    made: np.ndarray = np.einsum("ia,abto,jb->toij", back[0], tiles, back[1], optimize=True).astype(np.float32)
    return made
