"""Convolution and matrix product with R x 1 blocks: per group of R outputs a list of input taps, R weights each.

The innermost loop is that of the dense kernel with one look-up more: an offset from a list instead of a count. The
list is data: kernel size, dilation and the pattern are in it, so layers, levels and subsets of equal image geometry
share one kernel, and a list that ends early is a sparser layer. Offsets hold for one geometry of the input buffers
only. A group with an empty list still writes its bias and epilogue.

Layouts: x blocked or rows of a matrix (see sparse_tiles); w [taps][R]; index int32 [taps], an offset into the
segment the tap lies in; first, last int32 [groups][segments], the list of each segment. Sparsity levels differ in
`last` and b alone: a list begins with the taps of the sparsest level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from compiler.codegen.templates.blocked import Epilogue, Plane
from compiler.codegen.templates.common import KernelBuilder, Registers, kernel, splat, vector, view
from compiler.codegen.templates.conv import segment_names
from compiler.codegen.templates.sparse_tiles import Store, Tile, Tiling, group_lanes, tap_offsets, tiles

DTYPES = dict.fromkeys(("index", "first", "last"), "int32")
"""Element types of the parameters that are not float32."""

MOST_TAPS = 1 << 26
"""Declared length of a list; the real one is data."""


@dataclass(frozen=True, slots=True)
class BlockSparseShape:
    """Everything the generated code depends on: equal shapes share one kernel."""

    batch: int
    x: tuple[Plane, ...]
    """Segments of the input; their channels follow each other."""
    y: Plane
    stride: tuple[int, int]
    height: int
    """R, outputs that share a list."""
    width: int
    """Lanes of a register: divides R, and the block of `y` unless that is the only one."""
    epilogue: Epilogue = field(default_factory=Epilogue)
    tile: tuple[int, int, int] = (1, 1, 1)
    """Output columns and rows in registers; taps added to accumulators of their own."""
    weights_outer: bool = True
    turn: int = 1
    """Taps per turn of the loop at least: loop control and addresses are shared by them (ARM)."""

    @property
    def parameters(self) -> tuple[str, ...]:
        return (*segment_names(self.x), "w", "index", "first", "last", "b", *self.epilogue.parameters, "y")

    @property
    def groups(self) -> int:
        """Lists."""
        return -(-self.y.lanes // self.height)

    @property
    def tiling(self) -> Tiling:
        """Loops over the output."""
        columns, rows, _ = self.tile
        return Tiling(self.batch, self.y, columns, rows, self.groups, self.weights_outer)


@dataclass(frozen=True, eq=False)
class PackedBlocks:
    """Lists of a weight: values float32 [taps, R]; index int32 [taps]; first int32 [groups, segments]; last the
    same for every level."""

    values: np.ndarray
    index: np.ndarray
    first: np.ndarray
    last: tuple[np.ndarray, ...]


def pack(
    levels: Sequence[np.ndarray],
    height: int,
    x: Sequence[Plane],
    pad: tuple[int, int],
    dilation: tuple[int, int],
) -> PackedBlocks:
    """Lists for a weight [O, I, K, L] over input segments `x`; blocks that are all zero are left out.

    `levels`: the weight at every sparsity level, nested, densest first. A list has the taps of sparser levels
    first; those of one level are in the order of memory, block of channels by block, so that neighbours share
    cache lines.
    """
    weight = levels[0]
    rows = _groups(weight, height)
    ranks = sum((_groups(w, height) != 0).any(axis=1).astype(np.int64) for w in levels)
    bounds = np.cumsum([0, *(plane.channels for plane in x)])
    assert bounds[-1] == weight.shape[1]
    values, index, counts = [], [], []
    for group, rank in zip(rows, ranks, strict=True):
        for plane, first, end in zip(x, bounds, bounds[1:], strict=False):
            taps, offsets, kept = _taps(group[:, first:end], rank[first:end], plane, pad, dilation)
            values.append(taps)
            index.append(offsets)
            counts.append([np.count_nonzero(kept > level) for level in range(len(levels))])
    lengths = np.asarray(counts, np.int64)
    first = np.cumsum(lengths[:, 0]) - lengths[:, 0]
    shape = (len(rows), len(x))
    return PackedBlocks(
        np.ascontiguousarray(np.concatenate(values), np.float32),
        np.concatenate(index),
        first.astype(np.int32).reshape(shape),
        tuple((first + length).astype(np.int32).reshape(shape) for length in lengths.T),
    )


def _groups(weight: np.ndarray, height: int) -> np.ndarray:
    """[groups, R, I, K, L], the last group filled up with zeros."""
    rest = -len(weight) % height
    padded = np.pad(weight, [(0, rest), (0, 0), (0, 0), (0, 0)])
    return padded.reshape(-1, height, *weight.shape[1:])


def _taps(
    weight: np.ndarray, ranks: np.ndarray, plane: Plane, pad: tuple[int, int], dilation: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values [taps, R], offsets and ranks of the blocks of [R, I, K, L] that some level stores: rank > 0.

    A block is stored at `rank` levels, the densest ones.
    """
    c, kh, kw = np.nonzero(ranks)
    order = np.lexsort((c % plane.block, kw, kh, c // plane.block, -ranks[c, kh, kw]))
    c, kh, kw = c[order], kh[order], kw[order]
    return weight[:, c, kh, kw].T, tap_offsets(plane, c, kh, kw, pad, dilation), ranks[c, kh, kw]


def block_sparse_kernel(shape: BlockSparseShape) -> Any:
    """The PrimFunc for `shape`; parameters as `shape.parameters`, then the range of units."""
    with kernel(shape.parameters, DTYPES, divided=True) as made:
        BlockSparseEmitter(shape, made).emit()
    return made.func


class BlockSparseEmitter:
    """Emission state of one kernel, or of this product as part of another kernel."""

    def __init__(self, shape: BlockSparseShape, made: KernelBuilder) -> None:
        self.s, self.made = shape, made
        pointers, names = made.pointers, segment_names(shape.x)
        self.X = [
            view(pointers[name], (math.prod(x.physical(shape.batch)),))
            for name, x in zip(names, shape.x, strict=True)
        ]
        self.W = view(pointers["w"], (MOST_TAPS * shape.height,))
        self.index = view(pointers["index"], (MOST_TAPS,), "int32")
        bounds = (shape.groups, len(shape.x))
        self.first, self.last = (view(pointers[n], bounds, "int32") for n in ("first", "last"))
        self.B = view(pointers["b"], (shape.groups * shape.height,))
        self.store = Store(made, shape.y, shape.batch, shape.epilogue)
        columns, rows, self.unroll = shape.tile
        self.vectors = shape.height // shape.width
        self.acc = Registers(columns * rows * self.vectors * self.unroll, shape.width)

    def emit(self) -> None:
        """Every tile: bias, lists of all segments, epilogue."""
        for tile in tiles(self.made, self.s.tiling):
            self._start(tile)
            for segment in range(len(self.s.x)):
                self._reduce(tile, segment)
            self._finish(tile)

    def _number(self, cell: int, vector_: int, copy: int = 0) -> int:
        return (cell * self.vectors + vector_) * self.unroll + copy

    def _start(self, tile: Tile) -> None:
        v = self.s.width
        for cell in range(len(tile.cells)):
            for o in range(self.vectors):
                at = tile.group * self.s.height + o * v
                for q in range(self.unroll):
                    start = splat(0.0, v) if q else self.B[vector(at, v)]
                    self.acc.put(self._number(cell, o, q), start)

    def _reduce(self, tile: Tile, segment: int) -> None:
        first = self.first[tile.group, segment]
        count = self.last[tile.group, segment] - first
        step = self.unroll * max(1, self.s.turn // self.unroll)
        if step == 1:
            with T.serial(count) as k:
                self._tap(tile, segment, first + k, 0)
            return
        with T.serial(count // step) as i:
            for q in range(step):
                self._tap(tile, segment, first + i * step + q, q % self.unroll)
        with T.serial(count % step) as k:
            self._tap(tile, segment, first + count // step * step + k, 0)

    def _tap(self, tile: Tile, segment: int, tap: Any, copy: int) -> None:
        """One input value per cell times the R weights of a tap."""
        x, v = self.s.x[segment], self.s.width
        _, blocks, rows, columns, block = x.physical(1)
        down, across = self.s.stride[0] * columns * block, self.s.stride[1] * block
        origin = self.index[tap] + (
            tile.n * (blocks * rows * columns * block) + tile.row * down + tile.column * across
        )
        for cell, (h, u) in enumerate(tile.cells):
            value = splat(self.X[segment][origin + (h * down + u * across)], v)
            for o in range(self.vectors):
                k = self._number(cell, o, copy)
                weight = self.W[vector(tap * self.s.height + o * v, v)]
                self.acc.put(k, self.acc.get(k) + value * weight)

    def _finish(self, tile: Tile) -> None:
        for o, lanes in enumerate(group_lanes(self.s.y, tile.group, self.s.height, self.s.width)):
            numbers = [self._number(cell, o) for cell in range(len(tile.cells))]
            for k in numbers:
                for q in range(1, self.unroll):
                    self.acc.put(k, self.acc.get(k) + self.acc.get(k + q))
            self.store.vectors(tile, lanes, self.acc, numbers)
