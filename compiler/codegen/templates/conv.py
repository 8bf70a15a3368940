"""Direct convolution on blocked activations.

Layouts: activations [N][C / v][H + halo][W + halo][v]; weights [O / (v * ocb)][I][K][L][v * ocb]. Vectors run over
output channels. The input may lie in several buffers (segments): their channels follow each other, so the
concatenation that the graph asks for is never made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.templates.blocked import Epilogue, Output, Plane
from compiler.codegen.templates.common import KernelBuilder, Registers, chunks, kernel, splat, vector, view


@dataclass(frozen=True, slots=True)
class ConvShape:
    """Everything the generated code depends on: equal shapes share one kernel."""

    batch: int
    x: tuple[Plane, ...]
    """Segments of the input; their channels follow each other."""
    y: Plane
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pad: tuple[int, int]
    epilogue: Epilogue = field(default_factory=Epilogue)
    tile: tuple[int, int, int] = (1, 1, 1)
    """Output columns, rows and channel vectors held in registers; rows divide the height."""
    weights_outer: bool = True
    """Whether a panel of weights stays while the image passes, or the reverse."""
    prefetch: bool = False
    """Whether the cells a tile will write are asked for before its sums: worth it where they left the caches."""
    lane_unroll: int = 1
    """Input channels read as one vector and multiplied by element (ARM); 1: broadcast loads (x86)."""

    @property
    def parameters(self) -> tuple[str, ...]:
        return (*segment_names(self.x), "w", "b", *self.epilogue.parameters, "y")

    @property
    def channels(self) -> int:
        """Input channels of all segments."""
        return sum(x.channels for x in self.x)

    @property
    def panels(self) -> int:
        """Groups of output channels that share a register tile."""
        return self.y.blocks // self.tile[2]

    @property
    def parts(self) -> int:
        """Independent units: row tiles of a panel."""
        return self.batch * self.panels * (self.y.height // self.tile[1])

    def at(self, segment: int, axis: int, position: Any, tap: Any) -> Any:
        """Physical input coordinate of a tap for an output coordinate."""
        origin = self.x[segment].before[axis] - self.pad[axis]
        return position * self.stride[axis] + tap * self.dilation[axis] + origin


def segment_names(segments: tuple[Plane, ...]) -> tuple[str, ...]:
    """Pointer parameters of the input's segments."""
    return tuple(f"x{i}" for i in range(len(segments)))


def pack_dense(weight: np.ndarray, block: int, vectors: int) -> np.ndarray:
    """[O, I, K, L] to [O / (block * vectors)][I][K][L][block * vectors], zero rows added to fill the last block."""
    lanes = block * vectors
    padded = np.zeros((-(-weight.shape[0] // lanes) * lanes, *weight.shape[1:]), np.float32)
    padded[: weight.shape[0]] = weight
    return np.ascontiguousarray(padded.reshape(-1, lanes, *weight.shape[1:]).transpose(0, 2, 3, 4, 1))


def conv_kernel(shape: ConvShape) -> Any:
    """The PrimFunc for `shape`; parameters as `shape.parameters`, then the range of units."""
    with kernel(shape.parameters, divided=True) as made:
        ConvLoops(shape, made).emit()
    return made.func


class ConvLoops:
    """Emission of one convolution; `out` takes its results (default: they are stored as the shape says)."""

    def __init__(self, shape: ConvShape, made: KernelBuilder, out: Output | None = None) -> None:
        self.s, self.made = shape, made
        self.columns, self.rows, self.vectors = shape.tile
        self.v = shape.y.block
        self.X = [
            view(made.pointers[n], x.physical(shape.batch))
            for n, x in zip(segment_names(shape.x), shape.x, strict=True)
        ]
        self.W = view(made.pointers["w"], (shape.panels, shape.channels, *shape.kernel, self.v * self.vectors))
        self.out = out or Output(made, shape.y, shape.batch, shape.epilogue)
        self.acc = Registers(self.columns * self.rows * self.vectors, self.v)
        if shape.lane_unroll > 1:
            self.inputs = Registers(self.columns * self.rows, shape.lane_unroll)

    def emit(self) -> None:
        """Units of one row tile each: its column tiles for one panel of output channels."""
        self.out.clear_halo(self.made.begin)
        panels, steps = self.s.panels, self.s.y.height // self.rows
        inner = steps if self.s.weights_outer else panels
        with self.made.each_part() as part:
            n = tirx.floordiv(part, panels * steps)
            outer, fast = (
                tirx.floormod(tirx.floordiv(part, inner), panels * steps // inner),
                tirx.floormod(part, inner),
            )
            panel, step = (outer, fast) if self.s.weights_outer else (fast, outer)
            for left, columns, count in chunks(self.s.y.width, self.columns):
                with T.serial(count) as j:
                    self._tile(n, panel, step * self.rows, (j * columns + left, columns))

    def _tile(self, n: Any, panel: Any, row: Any, columns: tuple[Any, int]) -> None:
        """One register tile: bias, taps, epilogue."""
        cells = [
            (h, u, o, (h * columns[1] + u) * self.vectors + o)
            for h in range(self.rows)
            for u in range(columns[1])
            for o in range(self.vectors)
        ]
        for _, _, o, k in cells:
            self.acc.put(k, self.out.bias(panel * self.vectors + o))
        if self.s.prefetch:
            for h, u, o, _ in cells:
                self.out.prefetch((n, panel * self.vectors + o, row + h, columns[0] + u))
        first = 0
        for segment, x in enumerate(self.s.x):
            full, rest = divmod(x.channels, x.block)
            if full:
                with T.serial(full) as block:
                    self._block(segment, (n, panel, row, columns), cells, block, first, x.block)
            if rest:
                at = tirx.IntImm("int32", full)
                self._block(segment, (n, panel, row, columns), cells, at, first, rest)
            first += x.channels
        for h, u, o, k in cells:
            self.out.store((n, panel * self.vectors + o, row + h, columns[0] + u), self.acc.get(k))

    def _block(self, segment: int, at: Any, cells: Any, block: Any, first: int, lanes: int) -> None:
        """The taps of one block of input channels; `first` is the weights' first channel of this segment."""
        channel = first + block * self.s.x[segment].block
        unroll = self.s.lane_unroll
        with T.serial(self.s.kernel[0]) as kh, T.serial(self.s.kernel[1]) as kw:
            whole = lanes // unroll * unroll if unroll > 1 else 0
            if whole:
                with T.serial(whole // unroll) as group:
                    self._by_element(segment, at, cells, block, (kh, kw), group * unroll, channel)
            if lanes - whole:
                with T.serial(lanes - whole) as lane:
                    self._broadcast(segment, at, cells, block, (kh, kw), lane + whole, channel)

    def _broadcast(self, segment: int, at: Any, cells: Any, block: Any, tap: Any, lane: Any, channel: Any) -> None:
        n, panel, row, columns = at
        for h, u, o, k in cells:
            place = (self.s.at(segment, 0, row + h, tap[0]), self.s.at(segment, 1, columns[0] + u, tap[1]))
            value = splat(self.X[segment][n, block, place[0], place[1], lane], self.v)
            weight = self.W[panel, channel + lane, tap[0], tap[1], vector(o * self.v, self.v)]
            self.acc.put(k, self.acc.get(k) + value * weight)

    def _by_element(self, segment: int, at: Any, cells: Any, block: Any, tap: Any, lane: Any, channel: Any) -> None:
        """One vector of input channels per position, multiplied element by element: no broadcast loads."""
        n, panel, row, columns = at
        positions = sorted({(h, u, k // self.vectors) for h, u, _, k in cells})
        for h, u, p in positions:
            place = (self.s.at(segment, 0, row + h, tap[0]), self.s.at(segment, 1, columns[0] + u, tap[1]))
            lanes = vector(lane, self.s.lane_unroll)
            self.inputs.put(p, self.X[segment][n, block, place[0], place[1], lanes])
        for c in range(self.s.lane_unroll):
            for _, _, o, k in cells:
                weight = self.W[panel, channel + lane + c, tap[0], tap[1], vector(o * self.v, self.v)]
                value = splat(self.inputs.lane(k // self.vectors, c), self.v)
                self.acc.put(k, self.acc.get(k) + value * weight)
