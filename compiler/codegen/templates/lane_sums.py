"""Convolution of many channels to few: vectors run over the input channels, and their lanes are added at the end.

The input is blocked, [N][C / v][H + halo][W + halo][v], the result planar, [N][O][H + halo][W + halo]: with lanes
for output channels most of a vector would be empty. Weights [I / v][K][L][O][v]. A tile keeps one vector of partial
sums per column and output channel; those of several columns become one vector of sums by a tree of shuffles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.templates.blocked import Epilogue, Plane
from compiler.codegen.templates.common import KernelBuilder, Registers, kernel, splat, vector, view
from compiler.codegen.templates.conv import input_blocks, segment_names
from compiler.codegen.templates.planar import PlanarOutput, starts, taps_across
from compiler.codegen.templates.units import Units


@dataclass(frozen=True, slots=True)
class LaneSumsShape:
    """Everything the generated code depends on. All segments of the input have blocks of the same width."""

    batch: int
    x: tuple[Plane, ...]
    """Segments of the input; their channels follow each other."""
    y: Plane
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pad: tuple[int, int]
    tile: tuple[int, int]
    """Columns whose sums form a vector (a power of two, at most a block and at most the width of the result), and
    such vectors held in registers."""
    epilogue: Epilogue = field(default_factory=Epilogue)

    @property
    def parameters(self) -> tuple[str, ...]:
        return (*segment_names(self.x), "w", "b", *self.epilogue.parameters, "y")

    @property
    def block(self) -> int:
        """Input channels of a vector."""
        return self.x[0].block

    @property
    def units(self) -> Units:
        """Independent units: rows."""
        return Units(self.batch * self.y.height, 1)


def pack(weight: np.ndarray, segments: Sequence[Plane]) -> np.ndarray:
    """[O, I, K, L] as [block of inputs][K][L][O][v]; zeros where a block has no channel."""
    pieces = []
    for first, count in input_blocks(segments):
        piece = np.zeros((*weight.shape[2:], weight.shape[0], segments[0].block), np.float32)
        piece[..., :count] = weight[:, first : first + count].transpose(2, 3, 0, 1)
        pieces.append(piece.reshape(-1))
    return np.concatenate(pieces)


def lane_sums_kernel(shape: LaneSumsShape) -> Any:
    """The PrimFunc for `shape`; parameters as `shape.parameters`, then the range of units."""
    with kernel(shape.parameters, divided=True) as made:
        _Loops(shape, made).emit()
    return made.func


class _Loops:
    """Emission of one convolution."""

    def __init__(self, shape: LaneSumsShape, made: KernelBuilder) -> None:
        self.s, self.made = shape, made
        self.X = [
            view(made.pointers[n], x.physical(shape.batch))
            for n, x in zip(segment_names(shape.x), shape.x, strict=True)
        ]
        self.outputs = shape.y.channels
        blocks = sum(x.blocks for x in shape.x)
        self.W = view(made.pointers["w"], (blocks, *shape.kernel, self.outputs, shape.block))
        self.out = PlanarOutput(made, shape.y, shape.batch, shape.epilogue)
        columns, vectors = shape.tile
        self.acc = Registers(columns * vectors * self.outputs, shape.block)
        self.tree = Tree(columns, shape.block)

    def emit(self) -> None:
        """Units of one row each, from left to right."""
        s, (columns, vectors) = self.s, self.s.tile
        self.out.clear_halo(self.made, s.units)
        with self.made.each_part() as unit:
            n, row = tirx.truncdiv(unit, s.y.height), tirx.truncmod(unit, s.y.height)
            for left, offsets, repeats in starts(s.y.width, columns, vectors):
                with T.serial(repeats) as j:
                    first = j * (columns * vectors) + left
                    self._tile(n, row, [first + offset for offset in offsets])

    def _tile(self, n: Any, row: Any, firsts: Sequence[Any]) -> None:
        """One register tile: products, sums over lanes, bias, epilogue."""
        columns = [first + u for first in firsts for u in range(self.s.tile[0])]
        for k in range(len(columns) * self.outputs):
            self.acc.put(k, splat(0.0, self.s.block))
        before = 0
        for segment, x in enumerate(self.s.x):
            with T.serial(x.blocks) as block, T.serial(self.s.kernel[0]) as kh:
                for kw in taps_across(self.s.kernel[1]):
                    self._tap((n, segment, block, row), before, (kh, kw), columns)
            before += x.blocks
        for v, first in enumerate(firsts):
            for o in range(self.outputs):
                places = range(v * self.s.tile[0], (v + 1) * self.s.tile[0])
                sums = self.tree.sums([self.acc.get(u * self.outputs + o) for u in places])
                width = self.s.tile[0]
                self.out.store_columns((n, o, row, first), sums + self.out.bias_of(o, width), width)

    def _tap(
        self, at: tuple[Any, int, Any, Any], before: int, tap: tuple[Any, Any], columns: Sequence[Any]
    ) -> None:
        """The products of one tap of one block of input channels with all columns of the tile."""
        s, (n, segment, block, row) = self.s, at
        x, lanes = s.x[segment], vector(0, s.block)
        line = row * s.stride[0] + tap[0] * s.dilation[0] + (x.before[0] - s.pad[0])
        for u, column in enumerate(columns):
            place = column * s.stride[1] + tap[1] * s.dilation[1] + (x.before[1] - s.pad[1])
            value = self.X[segment][n, block, line, place, lanes]
            for o in range(self.outputs):
                k = u * self.outputs + o
                weight = self.W[block + before, tap[0], tap[1], o, lanes]
                self.acc.put(k, self.acc.get(k) + value * weight)


class Tree:
    """Registers to add up the lanes of `count` vectors of `width` lanes, both powers of two, count <= width."""

    def __init__(self, count: int, width: int) -> None:
        self._halves, self._pairs = [], []
        while width > count:
            width //= 2
            self._halves.append(Registers(count, 2 * width))
        while count > 1:
            self._pairs.append(Registers(count, width))
            count //= 2

    def sums(self, vectors: Sequence[Any]) -> Any:
        """The vector of the sums over lanes of each of the vectors."""
        values = list(vectors)
        for registers in self._halves:
            width = registers.width // 2
            for k, value in enumerate(values):
                registers.put(k, value)
            values = [registers.part(k, 0, width) + registers.part(k, width, width) for k in range(len(values))]
        for registers in self._pairs:
            for k, value in enumerate(values):
                registers.put(k, value)
            values = [_neighbours(registers, k) for k in range(0, len(values), 2)]
        return values[0]


def _neighbours(registers: Registers, k: int) -> Any:
    """Sums of neighbouring lanes of two vectors, those of the second behind those of the first."""
    both, width = [registers.get(k), registers.get(k + 1)], registers.width
    even, odd = (
        tirx.Shuffle(both, [tirx.IntImm("int32", n) for n in range(first, 2 * width, 2)]) for first in (0, 1)
    )
    return even + odd
