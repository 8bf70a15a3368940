"""How the work of a kernel is divided among threads: tiles of the image by panels of output channels.

A call does the units begin to end - 1. Where consecutive units are the panels of one tile, threads divide the
image: each reads all weights, and mostly activations that it wrote itself. Where they are the tiles of one panel,
threads divide the weights: each reads all of the input.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.templates.common import KernelBuilder

MOST_PRODUCT = 2**31 - 1
"""Largest number in the 32 bits in which kernels count."""


@dataclass(frozen=True, slots=True)
class Units:
    """A grid of independent units of work."""

    tiles: int
    panels: int
    by_tiles: bool = True
    """Whether consecutive units are the panels of one tile, else the tiles of one panel."""

    @property
    def count(self) -> int:
        return self.tiles * self.panels

    @property
    def divides_image(self) -> bool:
        """Whether threads divide the image rather than the channels of the result."""
        return self.panels == 1 or (self.by_tiles and self.tiles > 1)

    def share(self, made: KernelBuilder, extent: int) -> tuple[Any, Any]:
        """First, and the one behind the last, of `extent` things that belong to no unit: calls share them as they
        do the units; the call with the first unit has all where the numbers are too large to multiply."""
        if self.count * extent > MOST_PRODUCT:
            return 0, tirx.Select(tirx.EQ(made.begin, 0), extent, 0)
        first, behind = (tirx.truncdiv(at * extent, self.count) for at in (made.begin, made.end))
        return first, behind

    def tile_range(self, made: KernelBuilder) -> tuple[Any, Any]:
        """First tile, and the one behind the last, of which the call has a panel."""
        return _slow(made, self.panels) if self.by_tiles else _fast(made, self.tiles)

    def panel_range(self, made: KernelBuilder) -> tuple[Any, Any]:
        """First panel, and the one behind the last, of which the call has a tile."""
        return _fast(made, self.panels) if self.by_tiles else _slow(made, self.tiles)

    @contextmanager
    def where(self, made: KernelBuilder, tile: Any, panel: Any) -> Iterator[None]:
        """The body runs if the unit is the call's: the ranges hold some, at their ends, that are not."""
        unit = tile * self.panels + panel if self.by_tiles else panel * self.tiles + tile
        with T.If(tirx.And(unit >= made.begin, unit < made.end)), T.Then():
            yield

    @contextmanager
    def each(self, made: KernelBuilder, panels_outer: bool) -> Iterator[tuple[Any, Any]]:
        """Loops over (tile, panel) of the call's units, panel by panel or tile by tile."""
        tiles, panels = self.tile_range(made), self.panel_range(made)
        (first, behind), (inner_first, inner_behind) = (panels, tiles) if panels_outer else (tiles, panels)
        with T.serial(first, behind) as slow, T.serial(inner_first, inner_behind) as fast:
            tile, panel = (fast, slow) if panels_outer else (slow, fast)
            with self.where(made, tile, panel):
                yield tile, panel


def _slow(made: KernelBuilder, row: int) -> tuple[Any, Any]:
    """Rows of the grid, `row` units each, that a call touches."""
    return tirx.truncdiv(made.begin, row), tirx.truncdiv(made.end + (row - 1), row)


def _fast(made: KernelBuilder, row: int) -> tuple[Any, Any]:
    """Positions within the rows of the grid that a call touches: all, unless it has part of one row only."""
    last = made.end - 1
    single = tirx.EQ(tirx.truncdiv(made.begin, row), tirx.truncdiv(last, row))
    first = tirx.Select(single, tirx.truncmod(made.begin, row), tirx.IntImm("int32", 0))
    return first, tirx.Select(single, tirx.truncmod(last, row) + 1, tirx.IntImm("int32", row))
