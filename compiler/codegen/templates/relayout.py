"""Copies of images between planes, one channel after another, and blocks: squares of channels by columns are turned
in registers.

Element by element, every column of a block is spread over as many planes as the block has channels. If planes are
multiples of 4 KiB (32x32, 64x64, 128x128 elements) all of these lines fall on one set of the nearest cache and
push each other out before they are full. Here a run of columns is copied for as many channels as a square has rows,
then for the next channels of the block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.templates.blocked import Halo, Plane
from compiler.codegen.templates.common import KernelBuilder, chunks, kernel, vector, view
from compiler.codegen.templates.transpose import MOST, QUAD, Square
from compiler.codegen.templates.units import Units

Place = tuple[Any, ...]
"""Indices of a vector."""

RUN = 64
"""Columns copied at a time: as long as those of a block stay in the nearest cache."""


@dataclass(frozen=True, slots=True)
class RelayoutShape:
    """Everything the generated code depends on: a blocked image, whose blocks are full, and which way it is copied.

    `side`: rows and columns of a square; it divides the block, and rows of `plane` are no shorter.
    """

    batch: int
    plane: Plane
    blocking: bool
    """Whether planes are copied into blocks, else blocks into planes."""
    side: int

    @property
    def units(self) -> Units:
        """Independent units: a block of channels of a sample each."""
        return Units(self.batch * self.plane.blocks, 1)


def relayout_shape(batch: int, plane: Plane, blocking: bool, lanes: int) -> RelayoutShape | None:
    """The copy with the largest squares for `lanes`; None where no square fits, or the last block is not full."""
    if plane.contiguous:
        plane = plane.reshaped(plane.height * plane.width)
    for side in (MOST, QUAD):
        if side <= min(plane.width, lanes) and plane.block % side == 0 and plane.channels == plane.lanes:
            return RelayoutShape(batch, plane, blocking, side)
    return None


def relayout_kernel(shape: RelayoutShape) -> Any:
    """The PrimFunc (x, y, then the range of units)."""
    with kernel(("x", "y"), divided=True) as made:
        _Relayout(shape, made).emit()
    return made.func


class _Relayout:
    """Emission state of one kernel."""

    def __init__(self, shape: RelayoutShape, made: KernelBuilder) -> None:
        self.s, self.made = shape, made
        p = shape.plane
        blocked, planar = ("y", "x") if shape.blocking else ("x", "y")
        self.blocks = view(made.pointers[blocked], p.physical(shape.batch))
        self.planes = view(made.pointers[planar], (shape.batch * p.blocks, p.block, p.height * p.width))
        self.square = Square(shape.side)

    def emit(self) -> None:
        """Block by block of this call's units."""
        s = self.s
        if s.blocking:
            Halo(self.blocks, s.plane, s.batch).clear(self.made, s.units)
        columns = s.plane.width
        with self.made.each_part() as unit, T.serial(s.plane.height) as row:
            for first, count, turns in chunks(columns // s.side * s.side, RUN):
                with T.serial(turns) as turn:
                    self._run(unit, row, turn * RUN + first, count // s.side)
            if columns % s.side:  # the last square overlaps the one before it
                self._run(unit, row, columns - s.side, 1)

    def _run(self, unit: Any, row: Any, first: Any, squares: int) -> None:
        """Some squares of columns from `first` on, for all channels of a block."""
        for channel in range(0, self.s.plane.block, self.s.side):
            with T.serial(squares) as i:
                self._turn(unit, row, channel, first + i * self.s.side)

    def _turn(self, unit: Any, row: Any, channel: int, column: Any) -> None:
        p, side, each = self.s.plane, self.s.side, range(self.s.side)
        n, block = tirx.truncdiv(unit, p.blocks), tirx.truncmod(unit, p.blocks)
        down, across = row + p.before[0], column + p.before[1]
        planes: list[Place] = [(unit, channel + k, vector(row * p.width + column, side)) for k in each]
        cells: list[Place] = [(n, block, down, across + k, vector(channel, side)) for k in each]
        if self.s.blocking:
            source, read, target, made = self.planes, planes, self.blocks, cells
        else:
            source, read, target, made = self.blocks, cells, self.planes, planes
        for at, value in zip(made, self.square.turn([source[at] for at in read]), strict=True):
            T.buffer_store(target, value, list(at))
