"""Winograd convolution F(2x2, 3x3) on blocked activations (Lavin and Gray, CVPR 2016, section 4.1).

Four outputs of a 3x3 convolution cost 16 multiplications per channel pair instead of 36. A group of tiles is
transformed, multiplied as 16 small matrix products, and transformed back; both intermediates live in scratch.
Stride 1 and dilation 1 only. Weights are transformed in float64 when they are packed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.templates.common import Registers, chunks, kernel, splat, vector, view
from compiler.codegen.templates.conv import ConvShape, Plane, clear_halo

_INPUT = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_WEIGHT = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_OUTPUT = ((1, 1, 1, 0), (0, 1, -1, -1))
POINTS = 16
OUTPUTS = 2
"""Outputs of a tile along each axis; a tile reads OUTPUTS + 2 inputs."""

SCRATCH_BYTES = 3 << 19
"""Transformed tiles of one group, inputs and outputs together: about the second-level cache with its weights."""


@dataclass(frozen=True, slots=True)
class WinogradShape:
    """Everything the generated code depends on; `conv.tile` is not used."""

    conv: ConvShape
    group: int
    """Tiles transformed together."""
    rows: int
    vectors: int
    """Tiles and output vectors held in registers during the products."""

    @property
    def tiles(self) -> tuple[int, int]:
        """Tiles along the rows and columns of the output."""
        return -(-self.conv.y.height // OUTPUTS), -(-self.conv.y.width // OUTPUTS)


def choose(shape: ConvShape, budget: int) -> WinogradShape:
    """Tile sizes by rule: the group fits SCRATCH_BYTES, the products fill `budget` accumulators."""
    count = -(-shape.y.height // OUTPUTS) * -(-shape.y.width // OUTPUTS)
    lanes = shape.x.blocks * shape.x.block + shape.y.blocks * shape.y.block
    most = max(14, SCRATCH_BYTES // (POINTS * 4 * lanes))
    group = -(-count // -(-count // most))
    vectors = next(v for v in (4, 2, 1) if shape.y.blocks % v == 0 and 4 * v <= budget)
    fitting = range(1, min(group, budget // vectors) + 1)
    rows = min(fitting, key=lambda r: (-(-group // r) * (r + 1.5), -r))
    return WinogradShape(shape, group, rows, vectors)


def pack(weight: np.ndarray, lanes: int) -> np.ndarray:
    """[O, I, 3, 3] to [16][O / lanes][I][lanes], transformed; zero rows fill the last panel."""
    matrix = np.array(_WEIGHT)
    padded = np.zeros((-(-weight.shape[0] // lanes) * lanes, *weight.shape[1:]))
    padded[: weight.shape[0]] = weight
    made = np.einsum("ai,ocij,bj->aboc", matrix, padded, matrix)
    made = made.reshape(POINTS, -1, lanes, weight.shape[1]).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(made, np.float32)


def winograd_kernel(shape: WinogradShape) -> Any:
    """The PrimFunc for `shape`; parameters as those of the direct convolution."""
    with kernel(shape.conv.parameters) as made:
        _Winograd(shape, made.pointers).emit()
    return made.func


def _combined(row: Sequence[float], terms: Sequence[Any]) -> Any:
    """The sum of row[i] * terms[i] for coefficients 0, 1 and -1, the positive ones first."""
    plus = [t for c, t in zip(row, terms, strict=True) if c > 0]
    minus = [t for c, t in zip(row, terms, strict=True) if c < 0]
    total = plus[0]
    for term in plus[1:]:
        total = total + term
    for term in minus:
        total = total - term
    return total


class _Winograd:
    """Emission state of one kernel."""

    def __init__(self, shape: WinogradShape, pointers: dict[str, Any]) -> None:
        self.s, self.c = shape, shape.conv
        x, y = self.c.x, self.c.y
        self.lanes = y.block * shape.vectors
        self.panels = y.blocks // shape.vectors
        self.X = view(pointers["x"], x.physical(self.c.batch))
        self.Y = view(pointers["y"], y.physical(self.c.batch))
        self.W = view(pointers["w"], (POINTS, self.panels, x.channels, self.lanes))
        self.B = view(pointers["b"], (y.blocks * y.block,))
        self.R = None
        if self.c.residual is not None:
            other = Plane(y.channels, y.height, y.width, y.block, self.c.residual)
            self.R = view(pointers["r"], other.physical(self.c.batch))
        self.inputs = T.alloc_buffer((POINTS, shape.group, x.blocks * x.block), "float32")
        self.products = T.alloc_buffer((POINTS, shape.group, y.blocks * y.block), "float32")
        self.input_tile = Registers(POINTS, x.block)
        self.output_tile = Registers(4 * OUTPUTS, y.block)
        self.acc = Registers(shape.rows * shape.vectors, y.block)

    def emit(self) -> None:
        """Groups of tiles: transform, multiply, transform back."""
        clear_halo(self.c, self.Y)
        count = self.s.tiles[0] * self.s.tiles[1]
        with T.serial(self.c.batch) as n, T.serial(-(-count // self.s.group)) as group:
            with self._each_tile(group, count) as (t, row, column):
                self._transform_input(n, t, row, column)
            with T.serial(POINTS) as point, T.serial(self.panels) as panel:
                for first, rows, repeat in chunks(self.s.group, self.s.rows):
                    with T.serial(repeat) as i:
                        self._multiply(point, panel, i * rows + first, rows)
            with self._each_tile(group, count) as (t, row, column):
                self._transform_output(n, t, row, column)

    @contextmanager
    def _each_tile(self, group: Any, count: int) -> Iterator[tuple[Any, Any, Any]]:
        """(index in the group, first output row, first output column) of each tile that exists."""
        across = self.s.tiles[1]

        def place(t: Any) -> tuple[Any, Any, Any]:
            tile = group * self.s.group + t
            return t, tirx.floordiv(tile, across) * OUTPUTS, tirx.floormod(tile, across) * OUTPUTS

        with T.serial(self.s.group) as t:
            if count % self.s.group == 0:
                yield place(t)
            else:
                with T.If(group * self.s.group + t < count), T.Then():
                    yield place(t)

    def _transform_input(self, n: Any, t: Any, row: Any, column: Any) -> None:
        x = self.c.x
        lanes = vector(0, x.block)
        top, left = row + self.c.origin(0), column + self.c.origin(1)
        with T.serial(x.blocks) as block:
            for j in range(4):
                cells = [self.X[n, block, top + q, left + j, lanes] for q in range(4)]
                for i in range(4):
                    self.input_tile.put(i * 4 + j, _combined(_INPUT[i], cells))
            for i in range(4):
                cells = [self.input_tile.get(i * 4 + q) for q in range(4)]
                for j in range(4):
                    value = _combined(_INPUT[j], cells)
                    T.buffer_store(self.inputs, value, [i * 4 + j, t, vector(block * x.block, x.block)])

    def _multiply(self, point: Any, panel: Any, first: Any, rows: int) -> None:
        v = self.c.y.block
        cells = [(u, o, u * self.s.vectors + o) for u in range(rows) for o in range(self.s.vectors)]
        for _, _, k in cells:
            self.acc.put(k, splat(0.0, v))
        with T.serial(self.c.x.channels) as c:
            for u, o, k in cells:
                weight = self.W[point, panel, c, vector(o * v, v)]
                self.acc.put(k, self.acc.get(k) + splat(self.inputs[point, first + u, c], v) * weight)
        for u, o, k in cells:
            T.buffer_store(
                self.products, self.acc.get(k), [point, first + u, vector(panel * self.lanes + o * v, v)]
            )

    def _transform_output(self, n: Any, t: Any, row: Any, column: Any) -> None:
        y = self.c.y
        with T.serial(y.blocks) as block:
            at = vector(block * y.block, y.block)
            for j in range(4):
                cells = [self.products[q * 4 + j, t, at] for q in range(4)]
                for i in range(OUTPUTS):
                    self.output_tile.put(i * 4 + j, _combined(_OUTPUT[i], cells))
            for i in range(OUTPUTS):
                cells = [self.output_tile.get(i * 4 + q) for q in range(4)]
                for j in range(OUTPUTS):
                    value = _combined(_OUTPUT[j], cells) + self.B[at]
                    self._guarded(n, block, row + i, column + j, (i, j), value)

    def _guarded(self, n: Any, block: Any, row: Any, column: Any, at: tuple[int, int], value: Any) -> None:
        """Store one output; only the last tile of an odd extent can lie outside the image."""
        y = self.c.y
        outside = []
        if at[0] and y.height % OUTPUTS:
            outside.append(row < y.height)
        if at[1] and y.width % OUTPUTS:
            outside.append(column < y.width)
        if not outside:
            self._store(n, block, row, column, value)
            return
        condition = outside[0] if len(outside) == 1 else tirx.And(*outside)
        with T.If(condition), T.Then():
            self._store(n, block, row, column, value)

    def _store(self, n: Any, block: Any, row: Any, column: Any, value: Any) -> None:
        lanes, halo = vector(0, self.c.y.block), self.c.y.halo
        if self.R is not None and self.c.residual is not None:
            value = value + self.R[n, block, row + self.c.residual[0], column + self.c.residual[1], lanes]
        value = self.c.activation.apply(value, self.c.y.block)
        T.buffer_store(self.Y, value, [n, block, row + halo[0], column + halo[1], lanes])
