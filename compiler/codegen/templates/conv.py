"""Direct convolution and depthwise convolution on blocked activations.

Layouts: activations [N][C / v][H + 2p][W + 2q][v] with a zero halo; dense weights
[O / (v * ocb)][I][K][L][v * ocb]; depthwise weights [C / v][K][L][v]. Vectors run over output channels. The
kernel writes the halo of its own output in every call, because workspace contents are undefined.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.templates.common import Activation, Registers, chunks, kernel, splat, vector, view


@dataclass(frozen=True, slots=True)
class Plane:
    """A blocked activation buffer: logical channels and extents, block width, halo on each side."""

    channels: int
    height: int
    width: int
    block: int
    halo: tuple[int, int]

    def physical(self, batch: int) -> tuple[int, ...]:
        """Extents of the buffer."""
        rows, columns = self.height + 2 * self.halo[0], self.width + 2 * self.halo[1]
        return (batch, self.blocks, rows, columns, self.block)

    @property
    def blocks(self) -> int:
        return -(-self.channels // self.block)


@dataclass(frozen=True, slots=True)
class ConvShape:
    """Everything the generated code depends on: equal shapes share one kernel."""

    batch: int
    x: Plane
    y: Plane
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pad: tuple[int, int]
    depthwise: bool
    residual: tuple[int, int] | None = None
    """Halo of the residual operand, which has the block width of `y`."""
    activation: Activation = field(default_factory=Activation)
    tile: tuple[int, int, int] = (1, 1, 1)
    """Output columns, rows and channel vectors held in registers."""

    @property
    def parameters(self) -> tuple[str, ...]:
        return ("x", "w", "b", *(("r",) if self.residual else ()), "y")

    def origin(self, axis: int) -> int:
        """Physical input coordinate of tap 0 at output coordinate 0."""
        return self.x.halo[axis] - self.pad[axis]


def choose_tile(height: int, width: int, vectors: int, budget: int) -> tuple[int, int, int]:
    """(columns, rows, vectors) in registers: up to `budget` accumulators, columns dividing the row if possible.

    Two channel vectors halve the loads per multiply-add; narrow images take several rows.
    """
    ocb = 2 if vectors % 2 == 0 and budget >= 4 else 1
    limit = max(1, budget // ocb)
    columns = next((d for d in range(min(width, limit), 3, -1) if width % d == 0), min(width, limit))
    rows = next((d for d in range(max(1, limit // columns), 0, -1) if height % d == 0), 1)
    return columns, rows if columns == width else 1, ocb


def pack_dense(weight: np.ndarray, block: int, vectors: int) -> np.ndarray:
    """[O, I, K, L] to [O / (block * vectors)][I][K][L][block * vectors], zero rows added to fill the last block."""
    lanes = block * vectors
    padded = np.zeros((-(-weight.shape[0] // lanes) * lanes, *weight.shape[1:]), np.float32)
    padded[: weight.shape[0]] = weight
    return np.ascontiguousarray(padded.reshape(-1, lanes, *weight.shape[1:]).transpose(0, 2, 3, 4, 1))


def pack_depthwise(weight: np.ndarray, block: int) -> np.ndarray:
    """[C, 1, K, L] to [C / block][K][L][block]."""
    return np.ascontiguousarray(pack_dense(weight, block, 1)[:, 0])


def pack_bias(bias: np.ndarray | None, channels: int, lanes: int) -> np.ndarray:
    """Bias (zeros where there is none) filled up to a multiple of `lanes`."""
    padded = np.zeros(-(-channels // lanes) * lanes, np.float32)
    if bias is not None:
        padded[:channels] = bias
    return padded


def conv_kernel(shape: ConvShape) -> Any:
    """The PrimFunc for `shape`; parameters as `shape.parameters`."""
    with kernel(shape.parameters) as made:
        body = _Conv(shape, made.pointers)
        clear_halo(shape, body.Y)
        body.emit()
    return made.func


def clear_halo(shape: ConvShape, output: Any) -> None:
    """Zero every cell of the output buffer outside the image."""
    y = shape.y
    if not any(y.halo):
        return
    _, blocks, rows, columns, _ = y.physical(1)
    zero, lanes = splat(0.0, y.block), vector(0, y.block)
    with T.serial(shape.batch) as n, T.serial(blocks) as c:
        for top in (0, rows - y.halo[0]):
            if y.halo[0]:
                with T.serial(y.halo[0]) as i, T.serial(columns) as j:
                    T.buffer_store(output, zero, [n, c, i + top, j, lanes])
        if y.halo[1]:
            with T.serial(y.height) as i, T.serial(y.halo[1]) as j:
                for left in (0, columns - y.halo[1]):
                    T.buffer_store(output, zero, [n, c, i + y.halo[0], j + left, lanes])


class _Conv:
    """Emission state of one convolution kernel."""

    def __init__(self, shape: ConvShape, pointers: dict[str, Any]) -> None:
        self.s = shape
        x, y = shape.x, shape.y
        self.columns, self.rows, self.vectors = shape.tile
        self.v = y.block
        self.groups = y.blocks // self.vectors
        self.X = view(pointers["x"], x.physical(shape.batch))
        self.Y = view(pointers["y"], y.physical(shape.batch))
        taps = shape.kernel
        if shape.depthwise:
            self.W = view(pointers["w"], (y.blocks, *taps, self.v))
        else:
            self.W = view(pointers["w"], (self.groups, x.channels, *taps, self.v * self.vectors))
        self.B = view(pointers["b"], (y.blocks * self.v,))
        self.R = None
        if shape.residual is not None:
            other = Plane(y.channels, y.height, y.width, y.block, shape.residual)
            self.R = view(pointers["r"], other.physical(shape.batch))
        self.acc = Registers(self.columns * self.rows * self.vectors, self.v)

    def emit(self) -> None:
        """Loops over batch, channel groups and tiles of the image."""
        y = self.s.y
        with T.serial(self.s.batch) as n, T.serial(self.groups) as group:
            for top, rows, repeat in chunks(y.height, self.rows):
                with T.serial(repeat) as i:
                    for left, columns, count in chunks(y.width, self.columns):
                        with T.serial(count) as j:
                            self._tile(n, group, (i * rows + top, rows), (j * columns + left, columns))

    def _tile(self, n: Any, group: Any, rows: tuple[Any, int], columns: tuple[Any, int]) -> None:
        """One register tile: bias, taps, epilogue."""
        cells = [
            (h, u, o, (h * columns[1] + u) * self.vectors + o)
            for h in range(rows[1])
            for u in range(columns[1])
            for o in range(self.vectors)
        ]
        for _, _, o, k in cells:
            self.acc.put(k, self.B[vector((group * self.vectors + o) * self.v, self.v)])
        if self.s.depthwise:
            self._depthwise_taps(n, group, rows[0], columns[0], cells)
        else:
            self._dense_taps(n, group, rows[0], columns[0], cells)
        for h, u, o, k in cells:
            self._store(n, group * self.vectors + o, rows[0] + h, columns[0] + u, self.acc.get(k))

    def _at(self, axis: int, position: Any, tap: Any) -> Any:
        return position * self.s.stride[axis] + tap * self.s.dilation[axis] + self.s.origin(axis)

    def _dense_taps(
        self, n: Any, group: Any, row: Any, column: Any, cells: list[tuple[int, int, int, int]]
    ) -> None:
        x = self.s.x

        def accumulate(block: Any, lane: Any, kh: Any, kw: Any) -> None:
            for h, u, o, k in cells:
                value = self.X[n, block, self._at(0, row + h, kh), self._at(1, column + u, kw), lane]
                weight = self.W[group, block * x.block + lane, kh, kw, vector(o * self.v, self.v)]
                self.acc.put(k, self.acc.get(k) + splat(value, self.v) * weight)

        def block_taps(block: Any, lanes: int) -> None:
            with T.serial(self.s.kernel[0]) as kh, T.serial(self.s.kernel[1]) as kw, T.serial(lanes) as lane:
                accumulate(block, lane, kh, kw)

        full, rest = divmod(x.channels, x.block)
        if full:
            with T.serial(full) as block:
                block_taps(block, x.block)
        if rest:
            block_taps(tirx.IntImm("int32", full), rest)

    def _depthwise_taps(
        self, n: Any, block: Any, row: Any, column: Any, cells: list[tuple[int, int, int, int]]
    ) -> None:
        lanes = vector(0, self.v)
        with T.serial(self.s.kernel[0]) as kh, T.serial(self.s.kernel[1]) as kw:
            for h, u, _, k in cells:
                value = self.X[n, block, self._at(0, row + h, kh), self._at(1, column + u, kw), lanes]
                self.acc.put(k, self.acc.get(k) + value * self.W[block, kh, kw, lanes])

    def _store(self, n: Any, block: Any, row: Any, column: Any, value: Any) -> None:
        lanes = vector(0, self.v)
        if self.R is not None and self.s.residual is not None:
            value = value + self.R[n, block, row + self.s.residual[0], column + self.s.residual[1], lanes]
        value = self.s.activation.apply(value, self.v)
        halo = self.s.y.halo
        T.buffer_store(self.Y, value, [n, block, row + halo[0], column + halo[1], lanes])
