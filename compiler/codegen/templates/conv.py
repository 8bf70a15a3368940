"""Direct convolution on blocked activations.

Activations lie as [N][C / v][H + halo][W + halo][v]; weights in the order of the loops, so that they stream.
Vectors run over output channels. The input may lie in several buffers (segments): their channels follow each
other, so the concatenation that the graph asks for is never made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.templates.blocked import Epilogue, Output, Plane
from compiler.codegen.templates.common import (
    KernelBuilder,
    Registers,
    blocks_at_once,
    chunks,
    kernel,
    splat,
    vector,
    view,
)
from compiler.codegen.templates.grouped import Grouping
from compiler.codegen.templates.units import Units


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
    by_tiles: bool = True
    """Whether threads divide the image, else the weights."""
    prefetch: bool = False
    """Whether the cells a tile will write are asked for before its sums: worth it where they left the caches."""
    lane_unroll: int = 1
    """Input channels read as one vector and multiplied by element (ARM); 1: broadcast loads (x86)."""
    flat_rows: bool = False
    """Whether the inputs of a row of the kernel are read as one run of lanes: they follow each other in memory."""
    grouping: Grouping | None = None
    """The groups that the channels of a single segment come in."""

    @property
    def parameters(self) -> tuple[str, ...]:
        return (*segment_names(self.x), "w", "b", *self.epilogue.parameters, "y")

    @property
    def channels(self) -> int:
        """Input channels that a panel reads."""
        return (
            sum(x.channels for x in self.x) if self.grouping is None else self.grouping.span * self.grouping.block
        )

    @property
    def panels(self) -> int:
        """Groups of output channels that share a register tile."""
        return self.y.blocks // self.tile[2]

    @property
    def steps(self) -> int:
        """Row tiles of an image."""
        return self.y.height // self.tile[1]

    @property
    def units(self) -> Units:
        """Independent units: a row tile by a panel."""
        return Units(self.batch * self.steps, self.panels, self.by_tiles)

    @property
    def parts(self) -> int:
        """Number of units."""
        return self.units.count

    def at(self, segment: int, axis: int, position: Any, tap: Any) -> Any:
        """Physical input coordinate of a tap for an output coordinate."""
        origin = self.x[segment].before[axis] - self.pad[axis]
        return position * self.stride[axis] + tap * self.dilation[axis] + origin


def segment_names(segments: tuple[Plane, ...]) -> tuple[str, ...]:
    """Pointer parameters of the input's segments."""
    return tuple(f"x{i}" for i in range(len(segments)))


def pack(weight: np.ndarray, segments: Sequence[Plane], block: int, vectors: int) -> np.ndarray:
    """[O, I, K, L] in the order the kernel reads it: [O / lanes], then per block of input channels [K][L][channel]
    [lanes], with lanes = block * vectors; zero rows fill the last panel."""
    lanes = block * vectors
    padded = np.zeros((-(-weight.shape[0] // lanes) * lanes, *weight.shape[1:]), np.float32)
    padded[: weight.shape[0]] = weight
    panels = padded.reshape(-1, lanes, *weight.shape[1:]).transpose(0, 3, 4, 2, 1)
    pieces = [
        panels[:, :, :, first : first + count].reshape(len(panels), -1) for first, count in input_blocks(segments)
    ]
    return np.concatenate(pieces, axis=1)


def pack_grouped(weight: np.ndarray, plane: Plane, grouping: Grouping, block: int, vectors: int) -> np.ndarray:
    """[O, I / groups, K, L] as `pack` orders it, for each panel the blocks it reads; zeros where groups differ."""
    read = replace(plane, channels=grouping.channels)
    pieces = []
    for panel, first in enumerate(range(0, weight.shape[0], grouping.lanes)):
        spread = np.zeros((grouping.lanes, read.channels, *weight.shape[2:]), np.float32)
        for row in range(first, min(first + grouping.lanes, weight.shape[0])):
            at = row // grouping.outputs * grouping.inputs - grouping.first_block(panel) * grouping.block
            spread[row - first, at : at + grouping.inputs] = weight[row]
        pieces.append(pack(spread, [read], block, vectors))
    return np.concatenate(pieces)


def input_blocks(segments: Sequence[Plane]) -> Iterator[tuple[int, int]]:
    """(first channel, channels) of every block of the input, segment after segment."""
    start = 0
    for plane in segments:
        for at in range(0, plane.channels, plane.block):
            yield start + at, min(plane.block, plane.channels - at)
        start += plane.channels


def conv_kernel(shape: ConvShape) -> Any:
    """The PrimFunc for `shape`; parameters as `shape.parameters`, then the range of units."""
    with kernel(shape.parameters, divided=True) as made:
        ConvLoops(shape, made).emit()
    return made.func


SPREAD = 8
"""Blocks of input up to which the lines of the results are asked for a share at a time, one with each block: where
the sums are short, more lines at once than the core can wait for would hold them up."""

Cells = list[tuple[int, int, int, int]]
"""(row, column, vector, accumulator) of every vector of a register tile."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the loops stand: segment, sample, panel, first output row and columns of the tile, block of input
    channels (of `lanes` channels; the segment's first channel is `first`)."""

    segment: int
    n: Any
    panel: Any
    row: Any
    columns: tuple[Any, int]
    block: Any
    first: int
    lanes: int
    skipped: Any = 0


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
        self.lanes = self.v * self.vectors
        self.taps = shape.kernel[0] * shape.kernel[1]
        self.W = view(made.pointers["w"], (shape.panels, shape.channels * self.taps * self.lanes))
        self.out = out or Output(made, shape.y, shape.batch, shape.epilogue)
        self.acc = Registers(self.columns * self.rows * self.vectors, self.v)
        if shape.lane_unroll > 1:
            self.inputs = Registers(self.columns * self.rows, shape.lane_unroll)

    def emit(self) -> None:
        """Units of one row tile each: its column tiles for one panel of output channels."""
        self.out.clear_halo(self.made, self.s.units)
        with self.s.units.each(self.made, panels_outer=self.s.weights_outer) as (tile, panel):
            n, step = tirx.truncdiv(tile, self.s.steps), tirx.truncmod(tile, self.s.steps)
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
        if self.s.grouping is None:
            self._every_block(n, panel, row, columns, cells)
        else:
            skipped = self.s.grouping.first_block(panel, T.min)
            at = _Place(0, n, panel, row, columns, 0, 0, self.s.grouping.block, skipped)
            self._ask_for_results(at, cells)
            with T.serial(self.s.grouping.span) as block:
                self._block(replace(at, block=block), cells)
        for h, u, o, k in cells:
            self.out.store((n, panel * self.vectors + o, row + h, columns[0] + u), self.acc.get(k))

    def _every_block(self, n: Any, panel: Any, row: Any, columns: tuple[Any, int], cells: Cells) -> None:
        """All input channels, segment after segment; meanwhile the lines of the results are asked for."""
        first = 0
        for segment, x in enumerate(self.s.x):
            full, rest = divmod(x.channels, x.block)
            at = _Place(segment, n, panel, row, columns, tirx.IntImm("int32", full), first, x.block)
            if self.s.prefetch and segment == 0 and 1 < full <= SPREAD:
                share = -(-len(cells) // full)
                for block in range(full):
                    self._ask_for_results(at, cells[block * share : (block + 1) * share])
                    self._block(replace(at, block=tirx.IntImm("int32", block)), cells)
            else:
                self._ask_for_results(at, cells if segment == 0 else [])
                self._full_blocks(at, full, cells)
            if rest:
                self._block(replace(at, lanes=rest), cells)
            first += x.channels

    def _full_blocks(self, at: _Place, full: int, cells: Cells) -> None:
        """The blocks of a segment that have all their channels."""
        if full:
            step = blocks_at_once(full, self.s.lane_unroll) if self.taps == 1 else 1
            with T.serial(full // step) as i:
                for block in range(step):
                    self._block(replace(at, block=i * step + block), cells)

    def _ask_for_results(self, at: _Place, cells: Cells) -> None:
        """Prefetch what the tile will write at some of its cells."""
        for h, u, o, _ in cells if self.s.prefetch else []:
            self.out.prefetch((at.n, at.panel * self.vectors + o, at.row + h, at.columns[0] + u))

    def _block(self, at: _Place, cells: Cells) -> None:
        """The taps of one block of input channels."""
        unroll, across, lanes = self.s.lane_unroll, self.s.kernel[1], at.lanes
        if self.s.flat_rows:
            across, lanes = 1, across * lanes
        whole = lanes // unroll * unroll if unroll > 1 else 0
        if whole:
            with T.serial(self.s.kernel[0]) as kh, T.serial(whole // unroll) as group:
                for kw in range(across):
                    self._by_element(at, cells, (kh, kw), group * unroll)
        if lanes - whole:
            with T.serial(self.s.kernel[0]) as kh, T.serial(across) as kw, T.serial(lanes - whole) as lane:
                self._broadcast(at, cells, (kh, kw), lane + whole)

    def _input(self, at: _Place, cell: tuple[int, int], tap: tuple[Any, Any], lanes: Any) -> Any:
        row, column = (
            self.s.at(at.segment, axis, start + i, k)
            for axis, (start, i, k) in enumerate(zip((at.row, at.columns[0]), cell, tap, strict=True))
        )
        return self.X[at.segment][at.n, at.block + at.skipped, row, column, lanes]

    def _weight(self, at: _Place, tap: tuple[Any, Any], lane: Any, o: int) -> Any:
        block = at.first + at.block * self.s.x[at.segment].block
        step = block * self.taps + (tap[0] * self.s.kernel[1] + tap[1]) * at.lanes + lane
        return self.W[at.panel, vector(step * self.lanes + o * self.v, self.v)]

    def _broadcast(self, at: _Place, cells: Cells, tap: tuple[Any, Any], lane: Any) -> None:
        for h, u, o, k in cells:
            value = splat(self._input(at, (h, u), tap, lane), self.v)
            self.acc.put(k, self.acc.get(k) + value * self._weight(at, tap, lane, o))

    def _by_element(self, at: _Place, cells: Cells, tap: tuple[Any, Any], lane: Any) -> None:
        """One vector of input channels per position, multiplied element by element: no broadcast loads."""
        for h, u, p in sorted({(h, u, k // self.vectors) for h, u, _, k in cells}):
            self.inputs.put(p, self._input(at, (h, u), tap, vector(lane, self.s.lane_unroll)))
        for c in range(self.s.lane_unroll):
            for _, _, o, k in cells:
                value = splat(self.inputs.lane(k // self.vectors, c), self.v)
                self.acc.put(k, self.acc.get(k) + value * self._weight(at, tap, lane + c, o))
