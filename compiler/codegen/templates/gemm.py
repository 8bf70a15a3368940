"""Matrix product with constant weights: activations [M][K] times packed weights [N / (v * ocb)][K][v * ocb].

Panels of columns are outermost, so that a panel of weights stays in cache while the rows pass. One row (a fully
connected layer at batch 1) runs at the speed at which weights arrive. The last panel stores only the lanes that
exist, in powers of two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from compiler.codegen.templates.activation import Activation
from compiler.codegen.templates.common import KernelBuilder, kernel, vector, view
from compiler.codegen.templates.product import ProductTile, balanced, either, heights, pieces


@dataclass(frozen=True, slots=True)
class GemmShape:
    """Everything the generated code depends on. Activations are row-major, without padding."""

    rows: int
    inner: int
    columns: int
    block: int
    residual: bool = False
    activation: Activation = field(default_factory=Activation)
    tile: tuple[int, int, int] = (1, 1, 1)
    """Most rows, column vectors, and independent sums per vector held in registers."""
    input_lanes: int = 1
    """Elements of a row read as one vector and multiplied by element (ARM); 1: broadcast loads (x86)."""

    @property
    def parameters(self) -> tuple[str, ...]:
        return ("x", "w", "b", *(("r",) if self.residual else ()), "y")

    @property
    def lanes(self) -> int:
        """Columns one panel of packed weights covers."""
        return self.block * self.tile[1]

    @property
    def panels(self) -> int:
        return -(-self.columns // self.lanes)

    @property
    def parts(self) -> int:
        """Independent units: row tiles of a panel."""
        return self.panels * balanced(self.rows, self.tile[0])[0]


def pack(weight: np.ndarray, lanes: int) -> np.ndarray:
    """[K, N] to [N / lanes][K][lanes], zero columns added to fill the last panel."""
    inner, columns = weight.shape
    padded = np.zeros((inner, -(-columns // lanes) * lanes), np.float32)
    padded[:, :columns] = weight
    return np.ascontiguousarray(padded.reshape(inner, -1, lanes).transpose(1, 0, 2))


def gemm_kernel(shape: GemmShape) -> Any:
    """The PrimFunc for `shape`; parameters as `shape.parameters`, then the range of units."""
    with kernel(shape.parameters, divided=True) as made:
        _Gemm(shape, made).emit()
    return made.func


class _Gemm:
    """Emission state of one matrix product."""

    def __init__(self, shape: GemmShape, made: KernelBuilder) -> None:
        self.s, self.made = shape, made
        pointers = made.pointers
        self.X = view(pointers["x"], (shape.rows, shape.inner))
        self.W = view(pointers["w"], (shape.panels, shape.inner, shape.lanes))
        self.B = view(pointers["b"], (shape.panels * shape.lanes,))
        self.R = view(pointers["r"], (shape.rows, shape.columns)) if shape.residual else None
        self.Y = view(pointers["y"], (shape.rows, shape.columns))
        self.tiles, self.base, self.longer = balanced(shape.rows, shape.tile[0])
        most = self.base + bool(self.longer)
        self.tile = ProductTile(most, shape.tile[1], shape.block, shape.tile[2], shape.input_lanes)

    def emit(self) -> None:
        """Units in order of panels, then row tiles."""
        rest = self.s.columns % self.s.lanes
        with self.made.each_part() as part:
            panel, tile = (part, 0) if self.tiles == 1 else (part // self.tiles, part % self.tiles)
            last = self.s.panels == 1 or panel == self.s.panels - 1
            for columns in either(last, rest, self.s.lanes):
                for rows, top in heights(tile, self.base, self.longer):
                    self._tile(panel, columns, top, rows)

    def _tile(self, panel: Any, columns: int, top: Any, rows: int) -> None:
        s, v = self.s, self.s.block
        self.tile.multiply(
            (rows, -(-columns // v)),
            s.inner,
            lambda m, o: self.B[vector(panel * s.lanes + o * v, v)],
            lambda m, k, count: self.X[top + m, vector(k, count)],
            lambda k, o: self.W[panel, k, vector(o * v, v)],
        )
        for m in range(rows):
            for o in range(-(-columns // v)):
                self._store(top + m, panel * s.lanes + o * v, self.tile.place(m, o), min(v, columns - o * v))

    def _store(self, row: Any, column: Any, k: int, valid: int) -> None:
        """The valid lanes of a sum, finished."""
        for start, width in pieces(valid, self.s.block):
            at = vector(column + start, width)
            other = None if self.R is None else self.R[row, at]
            value = self.s.activation.apply(self.tile.sums.part(k, start, width), width, other)
            T.buffer_store(self.Y, value, [row, at])
