"""Matrix product with constant weights: activations [M][K] times packed weights [N / (v * ocb)][K][v * ocb].

One row (batch-1 fully connected layer) unrolls the reduction so that enough independent accumulators hide the
latency of a multiply-add; several rows are held in registers together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from compiler.codegen.templates.activation import Activation
from compiler.codegen.templates.common import Registers, chunks, kernel, splat, vector, view


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
    """Rows, column vectors, and steps of the reduction held in registers."""

    @property
    def parameters(self) -> tuple[str, ...]:
        return ("x", "w", "b", *(("r",) if self.residual else ()), "y")

    @property
    def lanes(self) -> int:
        """Columns one panel of packed weights covers."""
        return self.block * self.tile[1]


def choose_tile(rows: int, inner: int, columns: int, block: int, budget: int) -> tuple[int, int, int]:
    """(rows, vectors, reduction steps) within `budget` accumulators."""
    vectors = -(-columns // block)
    if rows == 1:
        wide = next(q for q in (8, 4, 2, 1) if q <= vectors and q <= max(1, budget // 2))
        steps = next(q for q in (8, 4, 2, 1) if q * wide <= max(8, wide) and inner % q == 0 and q * wide <= budget)
        return 1, wide, steps
    wide = 2 if vectors >= 2 and budget >= 4 else 1
    return min(rows, max(1, budget // wide)), wide, 1


def pack(weight: np.ndarray, lanes: int) -> np.ndarray:
    """[K, N] to [N / lanes][K][lanes], zero columns added to fill the last panel."""
    inner, columns = weight.shape
    padded = np.zeros((inner, -(-columns // lanes) * lanes), np.float32)
    padded[:, :columns] = weight
    return np.ascontiguousarray(padded.reshape(inner, -1, lanes).transpose(1, 0, 2))


def gemm_kernel(shape: GemmShape) -> Any:
    """The PrimFunc for `shape`; parameters as `shape.parameters`."""
    with kernel(shape.parameters) as made:
        _Gemm(shape, made.pointers).emit()
    return made.func


class _Gemm:
    """Emission state of one matrix product."""

    def __init__(self, shape: GemmShape, pointers: dict[str, Any]) -> None:
        self.s = shape
        panels = -(-shape.columns // shape.lanes)
        self.X = view(pointers["x"], (shape.rows, shape.inner))
        self.W = view(pointers["w"], (panels, shape.inner, shape.lanes))
        self.B = view(pointers["b"], (panels * shape.lanes,))
        self.R = view(pointers["r"], (shape.rows, shape.columns)) if shape.residual else None
        self.Y = view(pointers["y"], (shape.rows, shape.columns))
        rows, vectors, steps = shape.tile
        self.acc = Registers(rows * vectors * steps, shape.block)

    def emit(self) -> None:
        """Panels of columns outermost: a panel of weights stays in cache over all rows."""
        full, rest = divmod(self.s.columns, self.s.lanes)
        if full:
            with T.serial(full) as panel:
                self._panel(panel, self.s.lanes)
        if rest:
            self._panel(full, rest)

    def _panel(self, panel: Any, columns: int) -> None:
        for top, count, repeat in chunks(self.s.rows, self.s.tile[0]):
            with T.serial(repeat) as i:
                self._tile(panel, columns, i * count + top, count)

    def _tile(self, panel: Any, columns: int, top: Any, rows: int) -> None:
        v, (_, wide, steps) = self.s.block, self.s.tile
        vectors = -(-columns // v)
        cells = [
            (m, o, q, (m * wide + o) * steps + q) for m in range(rows) for o in range(vectors) for q in range(steps)
        ]
        for _, o, q, k in cells:
            first = self.B[vector(panel * self.s.lanes + o * v, v)] if q == 0 else splat(0.0, v)
            self.acc.put(k, first)
        with T.serial(self.s.inner // steps) as i:
            for m, o, q, k in cells:
                at = i * steps + q
                product = splat(self.X[top + m, at], v) * self.W[panel, at, vector(o * v, v)]
                self.acc.put(k, self.acc.get(k) + product)
        for m in range(rows):
            for o in range(vectors):
                self._finish(panel, top + m, o, (m * wide + o) * steps, min(v, columns - o * v))

    def _finish(self, panel: Any, row: Any, o: int, k: int, valid: int) -> None:
        """Add the partial sums, then store a whole vector or the valid lanes of the last one."""
        v, steps = self.s.block, self.s.tile[2]
        for q in range(1, steps):
            self.acc.put(k, self.acc.get(k) + self.acc.get(k + q))
        column = panel * self.s.lanes + o * v
        if valid == v:
            self._store(row, vector(column, v), self.acc.get(k), v)
            return
        for lane in range(valid):
            self._store(row, column + lane, self.acc.lane(k, lane), 1)

    def _store(self, row: Any, at: Any, value: Any, width: int) -> None:
        other = None if self.R is None else self.R[row, at]
        T.buffer_store(self.Y, self.s.activation.apply(value, width, other), [row, at])
