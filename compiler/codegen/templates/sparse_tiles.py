"""What the kernels of sparse weights share: register tiles over an output, and the store of a few channels of it.

An output is a blocked image, or a row-major matrix seen as one: its rows are the columns of a plane one row high
whose only block holds all channels. Outputs are computed group by group (channels sharing a list or a table), the
image of a group tile by tile. Every (group, row tile) is an independent unit of work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.templates.blocked import Epilogue, Output, Plane
from compiler.codegen.templates.common import KernelBuilder, Registers, chunks


def tap_offsets(
    plane: Plane,
    channel: np.ndarray,
    kh: np.ndarray,
    kw: np.ndarray,
    pad: tuple[int, int],
    dilation: tuple[int, int],
) -> np.ndarray:
    """Where taps read in the buffer of `plane`, in elements, seen from the first output cell: int32."""
    _, _, rows, columns, block = plane.physical(1)
    row = kh * dilation[0] + plane.before[0] - pad[0]
    column = kw * dilation[1] + plane.before[1] - pad[1]
    offsets = ((channel // block * rows + row) * columns + column) * block + channel % block
    return np.asarray(offsets, np.int32)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How an output is divided: register tiles of rows x columns, groups of channels, batch."""

    batch: int
    y: Plane
    columns: int
    rows: int
    groups: int
    groups_outer: bool
    """Whether the weights of a group stay while the image passes, or the reverse."""

    @property
    def steps(self) -> int:
        """Row tiles that are units of their own; one where the rows of a tile do not divide the image."""
        return self.y.height // self.rows if self.y.height % self.rows == 0 else 1

    @property
    def parts(self) -> int:
        """Independent units of work."""
        return self.batch * self.groups * self.steps


@dataclass(frozen=True, slots=True)
class Tile:
    """One register tile: batch index, group, first row and column, extents known to the generator."""

    n: Any
    group: Any
    row: Any
    column: Any
    rows: int
    columns: int

    @property
    def cells(self) -> tuple[tuple[int, int], ...]:
        """(row, column) of every position, relative to the first."""
        return tuple((h, u) for h in range(self.rows) for u in range(self.columns))


def tiles(made: KernelBuilder, tiling: Tiling) -> Iterator[Tile]:
    """The loops over the units of this call and their tiles; the body of a `for` over them is emitted inside.

    Must be run to its end: loops close when the next tile is asked for.
    """
    steps, groups = tiling.steps, tiling.groups
    inner = steps if tiling.groups_outer else groups
    with made.each_part() as part:
        n = tirx.floordiv(part, groups * steps)
        slow = tirx.floormod(tirx.floordiv(part, inner), groups * steps // inner)
        fast = tirx.floormod(part, inner)
        group, step = (slow, fast) if tiling.groups_outer else (fast, slow)
        height = tiling.y.height // steps
        for top, rows, repeat in chunks(height, tiling.rows):
            with T.serial(repeat) as i:
                for left, columns, count in chunks(tiling.y.width, tiling.columns):
                    with T.serial(count) as j:
                        yield Tile(n, group, step * height + i * rows + top, j * columns + left, rows, columns)


@dataclass(frozen=True, slots=True)
class Lanes:
    """Channels that are stored as one vector: `width` from `first`, a multiple of it.

    In the last group only `valid` of them exist; `last` is the condition for that, None where all exist everywhere.
    """

    first: Any
    width: int
    valid: int
    last: Any = None


def group_lanes(plane: Plane, group: Any, height: int, width: int) -> list[Lanes]:
    """The vectors of `width` channels that make up a group of `height`; `width` divides both it and the block, or
    the plane has one block."""
    count = -(-plane.lanes // height)
    found = []
    for o in range(height // width):
        valid = min(max(plane.lanes - (count - 1) * height - o * width, 0), width)
        last = None if valid == width else group == count - 1
        found.append(Lanes(group * height + o * width, width, valid, last))
    return found


class Store:
    """Finishes sums and stores them."""

    def __init__(self, made: KernelBuilder, plane: Plane, batch: int, epilogue: Epilogue) -> None:
        self._out = Output(made, plane, batch, epilogue)
        self._out.clear_halo(made)

    def vectors(self, tile: Tile, lanes: Lanes, acc: Registers, numbers: Sequence[int]) -> None:
        """Store accumulator numbers[i] (bias included) at cell i of the tile; of the last group what exists."""
        if lanes.last is None:
            self._whole(tile, lanes, acc, numbers)
            return
        with T.If(tirx.Not(lanes.last)):
            with T.Then():
                self._whole(tile, lanes, acc, numbers)
            if lanes.valid:
                with T.Else():
                    self._first_lanes(tile, lanes, acc, numbers)

    def scattered(self, tile: Tile, rows: Sequence[Any], acc: Registers, numbers: Sequence[int]) -> None:
        """Store lane l of accumulator numbers[i] at channel rows[l] of cell i; a row below 0 does not exist. Lanes
        that are no channels are no rows: see `clear_empty_lanes`."""
        for lane, row in enumerate(rows):
            with T.If(row >= 0), T.Then():
                for (h, u), k in zip(tile.cells, numbers, strict=True):
                    at = (tile.n, tile.row + h, tile.column + u)
                    self._out.store_channels(at, row, acc.lane(k, lane), 1)

    def clear_empty_lanes(self, tile: Tile) -> None:
        """Zero the lanes behind the last channel in the tile's cells, once for all groups."""
        if self._out.plane.lanes == self._out.plane.channels:
            return
        with T.If(tirx.EQ(tile.group, 0)), T.Then():
            for h, u in tile.cells:
                self._out.clear_empty_lanes((tile.n, tile.row + h, tile.column + u))

    def _whole(self, tile: Tile, lanes: Lanes, acc: Registers, numbers: Sequence[int]) -> None:
        for (h, u), k in zip(tile.cells, numbers, strict=True):
            at = (tile.n, tile.row + h, tile.column + u)
            self._out.store_channels(at, lanes.first, acc.get(k), lanes.width)

    def _first_lanes(self, tile: Tile, lanes: Lanes, acc: Registers, numbers: Sequence[int]) -> None:
        for (h, u), k in zip(tile.cells, numbers, strict=True):
            at = (tile.n, tile.row + h, tile.column + u)
            for lane in range(lanes.valid):
                self._out.store_channels(at, lanes.first + lane, acc.lane(k, lane), 1)
