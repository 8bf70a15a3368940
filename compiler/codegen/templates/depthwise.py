"""Depthwise convolution on blocked activations: every input cell of a register tile is loaded once.

Weights [C / v][K][L][v]. Vectors run over channels, so a stride needs no shuffle. A cell stays in one register for
all its products, so that registers hold the sums and, where they fit, the weights.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.templates.blocked import Epilogue, Output, Plane
from compiler.codegen.templates.common import KernelBuilder, Registers, chunks, kernel, vector, view
from compiler.codegen.templates.units import Units

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class DepthwiseShape:
    """Everything the generated code depends on."""

    batch: int
    x: Plane
    y: Plane
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pad: tuple[int, int]
    epilogue: Epilogue = field(default_factory=Epilogue)
    tile: tuple[int, int] = (1, 1)
    """Output columns and rows held in registers; rows divide the height."""
    by_tiles: bool = True
    """Whether threads divide the image, else the channels."""
    row_by_row: bool = False
    """Whether kernel rows are a loop, so that registers hold the weights of one row; else all taps are unrolled."""

    @property
    def parameters(self) -> tuple[str, ...]:
        return ("x", "w", "b", *self.epilogue.parameters, "y")

    @property
    def steps(self) -> int:
        """Row tiles of an image."""
        return self.y.height // self.tile[1]

    @property
    def units(self) -> Units:
        """Independent units: a row tile of a block of channels."""
        return Units(self.batch * self.steps, self.y.blocks, self.by_tiles)

    def at(self, axis: int, position: Any, tap: Any) -> Any:
        """Physical input coordinate of a tap for an output coordinate."""
        return position * self.stride[axis] + tap * self.dilation[axis] + self.x.before[axis] - self.pad[axis]


def tile_products(
    kernel: Pair, stride: Pair, dilation: Pair, rows: int, columns: int
) -> dict[Pair, list[tuple[int, int, int, int]]]:
    """Input cells of a tile of rows x columns outputs, by offset from the first tap of the first output, in order;
    each with its products (output row, output column, tap row, tap column)."""
    found: dict[Pair, list[tuple[int, int, int, int]]] = {}
    for kh, kw, h, u in itertools.product(*map(range, (*kernel, rows, columns))):
        cell = h * stride[0] + kh * dilation[0], u * stride[1] + kw * dilation[1]
        found.setdefault(cell, []).append((h, u, kh, kw))
    return dict(sorted(found.items()))


def pack(weight: np.ndarray, block: int) -> np.ndarray:
    """[C, 1, K, L] to [C / block][K][L][block]."""
    channels = weight.shape[0]
    padded = np.zeros((-(-channels // block) * block, *weight.shape[2:]), np.float32)
    padded[:channels] = weight[:, 0]
    return np.ascontiguousarray(padded.reshape(-1, block, *weight.shape[2:]).transpose(0, 2, 3, 1))


def depthwise_kernel(shape: DepthwiseShape) -> Any:
    """The PrimFunc for `shape`; parameters as `shape.parameters`, then the range of units."""
    with kernel(shape.parameters, divided=True) as made:
        _Depthwise(shape, made).emit()
    return made.func


class _Depthwise:
    """Emission state of one kernel."""

    def __init__(self, shape: DepthwiseShape, made: KernelBuilder) -> None:
        self.s, self.made, self.v = shape, made, shape.y.block
        self.X = view(made.pointers["x"], shape.x.physical(shape.batch))
        self.W = view(made.pointers["w"], (shape.y.blocks, *shape.kernel, self.v))
        self.out = Output(made, shape.y, shape.batch, shape.epilogue)
        self.acc = Registers(shape.tile[0] * shape.tile[1], self.v)
        self.x = Registers(1, self.v)

    def emit(self) -> None:
        """Units of one row tile each."""
        self.out.clear_halo(self.made, self.s.units)
        columns, rows = self.s.tile
        with self.s.units.each(self.made, panels_outer=True) as (tile, block):
            n, step = tirx.truncdiv(tile, self.s.steps), tirx.truncmod(tile, self.s.steps)
            for left, width, count in chunks(self.s.y.width, columns):
                with T.serial(count) as j:
                    self._tile((n, block), step * rows, j * width + left, width)

    def _tile(self, at: tuple[Any, Any], row: Any, column: Any, width: int) -> None:
        """One register tile. Each input cell is loaded once and used by all outputs it belongs to."""
        rows = self.s.tile[1]
        cells = [(h, u, h * width + u) for h in range(rows) for u in range(width)]
        for _, _, k in cells:
            self.acc.put(k, self.out.bias(at[1]))
        if self.s.row_by_row:
            with T.serial(self.s.kernel[0]) as first:
                self._products(at, (row, column), (rows, width), first, 1)
        else:
            self._products(at, (row, column), (rows, width), 0, self.s.kernel[0])
        for h, u, k in cells:
            self.out.store((*at, row + h, column + u), self.acc.get(k))

    def _products(self, at: tuple[Any, Any], corner: tuple[Any, Any], size: Pair, first: Any, count: int) -> None:
        """Adds `count` rows of the kernel from `first` on to the tile of `size` rows and columns at `corner`."""
        lanes, width = vector(0, self.v), size[1]
        tile = tile_products((count, self.s.kernel[1]), self.s.stride, self.s.dilation, *size)
        for (r, c), products in tile.items():
            origin = self.s.at(0, corner[0], first) + r, self.s.at(1, corner[1], 0) + c
            self.x.put(0, self.X[at[0], at[1], origin[0], origin[1], lanes])
            for h, u, kh, kw in products:
                k = h * width + u
                self.acc.put(k, self.acc.get(k) + self.x.get(0) * self.W[at[1], first + kh, kw, lanes])
