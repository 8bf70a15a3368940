"""Convolution of few channels to few, near an image: vectors run along the columns.

Both images are planar, [N][C][H + halo][W + halo]: blocks of channels would leave most lanes of a vector empty.
Weights [I][K][L][O]. Every vector of inputs meets the weights of all output channels, each in all lanes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.templates.blocked import Epilogue, Output, Plane
from compiler.codegen.templates.common import KernelBuilder, Registers, chunks, kernel, splat, vector, view
from compiler.codegen.templates.conv import segment_names
from compiler.codegen.templates.units import Units

MOST_UNROLLED = 9
"""Taps of a row of the kernel up to which they follow each other without a loop."""


@dataclass(frozen=True, slots=True)
class PlanarShape:
    """Everything the generated code depends on. The stride along the columns is one."""

    batch: int
    x: tuple[Plane, ...]
    """Segments of the input; their channels follow each other."""
    y: Plane
    kernel: tuple[int, int]
    row_stride: int
    dilation: tuple[int, int]
    pad: tuple[int, int]
    lanes: int
    """Columns of a vector, at most the width of the result."""
    tile: tuple[int, int]
    """Vectors along the columns, and rows, held in registers; rows divide the height."""
    epilogue: Epilogue = field(default_factory=Epilogue)
    by_element: bool = False
    """Whether the weights of a tap are one vector of which elements are multiplied (64-bit ARM)."""

    @property
    def parameters(self) -> tuple[str, ...]:
        return (*segment_names(self.x), "w", "b", *self.epilogue.parameters, "y")

    @property
    def weights(self) -> int:
        """Weights of a tap, with those that fill up a vector."""
        return WEIGHT_LANES if self.by_element else self.y.channels

    @property
    def units(self) -> Units:
        """Independent units: tiles of rows."""
        return Units(self.batch * self.y.height // self.tile[1], 1)


WEIGHT_LANES = 4
"""Elements of a vector of weights on 64-bit ARM."""


def pack(weight: np.ndarray, shape: PlanarShape) -> np.ndarray:
    """[O, I, K, L] as [I][K][L][O], zeros behind the last output channel."""
    packed = np.zeros((*weight.shape[1:], shape.weights), np.float32)
    packed[..., : weight.shape[0]] = weight.transpose(1, 2, 3, 0)
    return packed.reshape(-1)


def starts(width: int, lanes: int, vectors: int) -> tuple[tuple[int, tuple[int, ...], int], ...]:
    """Tiles of a row: (first column, columns of its vectors from there, repeats). The last vector of a row ends
    with it, so it may repeat columns of the one before."""
    found = []
    for left, count, repeats in chunks(width, lanes * vectors):
        offsets = tuple(min(at, width - lanes - left) for at in range(0, count, lanes))
        found.append((left, offsets, repeats))
    return tuple(found)


def taps_across(count: int) -> Iterator[Any]:
    """The taps of a row of the kernel: one after another, or one in a loop."""
    if count <= MOST_UNROLLED:
        yield from range(count)
    else:
        with T.serial(count) as tap:
            yield tap


def planar_kernel(shape: PlanarShape) -> Any:
    """The PrimFunc for `shape`; parameters as `shape.parameters`, then the range of units."""
    with kernel(shape.parameters, divided=True) as made:
        _Loops(shape, made).emit()
    return made.func


class PlanarOutput(Output):
    """Emission of bias, epilogue and store for a planar result: a vector is a run of columns of one channel."""

    def __init__(self, made: KernelBuilder, plane: Plane, batch: int, epilogue: Epilogue) -> None:
        super().__init__(made, plane, batch, epilogue)
        self._cells = planar_view(made, "y", plane, batch)
        if epilogue.residual is not None:
            self._others = planar_view(made, "r", epilogue.residual, batch)

    def bias_of(self, channel: int, width: int) -> Any:
        """The bias of one channel, in every one of `width` lanes."""
        return splat(self._bias[channel], width)

    def store_columns(self, at: Sequence[Any], value: Any, width: int) -> None:
        """Finish `value` (bias included) and store it at (batch, channel, row, first column) of the image."""

        def cell(plane: Plane) -> list[Any]:
            n, channel, row, column = at
            return [n, channel, row + plane.before[0], vector(column + plane.before[1], width)]

        other = self._epilogue.residual
        residual = None if other is None else self._others[tuple(cell(other))]
        T.buffer_store(self._cells, self._epilogue.activation.apply(value, width, residual), cell(self.plane))


def planar_view(made: KernelBuilder, name: str, plane: Plane, batch: int) -> Any:
    """A planar image behind a pointer: [N][C][H + halo][W + halo]."""
    assert plane.block == 1
    return view(made.pointers[name], plane.physical(batch)[:-1])


class _Loops:
    """Emission of one convolution."""

    def __init__(self, shape: PlanarShape, made: KernelBuilder) -> None:
        self.s, self.made = shape, made
        self.X = [
            planar_view(made, n, x, shape.batch) for n, x in zip(segment_names(shape.x), shape.x, strict=True)
        ]
        channels = sum(x.channels for x in shape.x)
        self.W = view(made.pointers["w"], (channels, *shape.kernel, shape.weights))
        self.out = PlanarOutput(made, shape.y, shape.batch, shape.epilogue)
        vectors, self.rows = shape.tile
        self.acc = Registers(shape.y.channels * vectors * self.rows, shape.lanes)
        self.taps = Registers(1, WEIGHT_LANES) if shape.by_element else None

    def emit(self) -> None:
        """Units of some rows each, from left to right."""
        s = self.s
        self.out.clear_halo(self.made, s.units)
        with self.made.each_part() as unit:
            steps = s.y.height // self.rows
            n, row = tirx.truncdiv(unit, steps), tirx.truncmod(unit, steps) * self.rows
            for left, offsets, repeats in starts(s.y.width, s.lanes, s.tile[0]):
                with T.serial(repeats) as j:
                    first = j * (s.tile[0] * s.lanes) + left
                    self._tile(n, row, [first + offset for offset in offsets])

    def _tile(self, n: Any, row: Any, columns: Sequence[Any]) -> None:
        """One register tile: bias, taps, epilogue."""
        outputs = range(self.s.y.channels)
        cells = [
            (h, u, (h * len(columns) + u) * len(outputs)) for h in range(self.rows) for u in range(len(columns))
        ]
        for _, _, k in cells:
            for o in outputs:
                self.acc.put(k + o, self.out.bias_of(o, self.s.lanes))
        first = 0
        for segment, x in enumerate(self.s.x):
            with T.serial(x.channels) as channel, T.serial(self.s.kernel[0]) as kh:
                for kw in taps_across(self.s.kernel[1]):
                    self._tap((n, segment, channel, row), first, (kh, kw), columns, cells)
            first += x.channels
        for h, u, k in cells:
            for o in outputs:
                self.out.store_columns((n, o, row + h, columns[u]), self.acc.get(k + o), self.s.lanes)

    def _tap(
        self,
        at: tuple[Any, int, Any, Any],
        first: int,
        tap: tuple[Any, Any],
        columns: Sequence[Any],
        cells: Sequence[tuple[int, int, int]],
    ) -> None:
        """The products of one tap of one input channel with all vectors of the tile."""
        s, (n, segment, channel, row) = self.s, at
        x = s.x[segment]
        weights = [self.W[channel + first, tap[0], tap[1], o] for o in range(s.y.channels)]
        if self.taps is not None:
            self.taps.put(0, self.W[channel + first, tap[0], tap[1], vector(0, WEIGHT_LANES)])
            weights = [self.taps.lane(0, o) for o in range(s.y.channels)]
        for h, u, k in cells:
            line = (row + h) * s.row_stride + tap[0] * s.dilation[0] + (x.before[0] - s.pad[0])
            column = columns[u] + tap[1] * s.dilation[1] + (x.before[1] - s.pad[1])
            value = self.X[segment][n, channel, line, vector(column, s.lanes)]
            for o, weight in enumerate(weights):
                self.acc.put(k + o, self.acc.get(k + o) + value * splat(weight, s.lanes))
