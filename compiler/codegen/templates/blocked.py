"""Blocked activation buffers and what kernels do at their edge: halos, bias, residual, activation, store.

A kernel writes the halo of its own output in every call, because workspace contents are undefined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.templates.activation import Activation
from compiler.codegen.templates.common import KernelBuilder, prefetch, splat, vector, view
from compiler.codegen.templates.units import Units


@dataclass(frozen=True, slots=True)
class Plane:
    """A blocked activation buffer [N][C / block][H + halos][W + halos][block]: logical channels and extents, block
    width, and the zero cells before and after the image along rows and columns."""

    channels: int
    height: int
    width: int
    block: int
    before: tuple[int, int] = (0, 0)
    after: tuple[int, int] = (0, 0)

    def physical(self, batch: int) -> tuple[int, ...]:
        """Extents of the buffer."""
        rows, columns = (n + b + a for n, b, a in zip(self.extent, self.before, self.after, strict=True))
        return (batch, self.blocks, rows, columns, self.block)

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns of the image."""
        return self.height, self.width

    @property
    def blocks(self) -> int:
        return -(-self.channels // self.block)

    @property
    def lanes(self) -> int:
        """Channels with those that fill up the last block."""
        return self.blocks * self.block

    @property
    def contiguous(self) -> bool:
        """Whether the image has no halo, so that its rows follow each other in memory."""
        return not any(self.before + self.after)

    def reshaped(self, columns: int) -> Plane:
        """The same cells as rows of another length; only for a contiguous image that they divide."""
        assert self.contiguous and self.height * self.width % columns == 0
        return replace(self, height=self.height * self.width // columns, width=columns)


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What happens to a sum (bias included) before it is stored; the activation may read a residual, a buffer of
    this plane."""

    residual: Plane | None = None
    activation: Activation = field(default_factory=Activation)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the pointers it reads besides the bias."""
        return ("r",) if self.residual else ()


class Output:
    """Emission of bias, epilogue and store for one blocked result."""

    def __init__(self, made: KernelBuilder, plane: Plane, batch: int, epilogue: Epilogue) -> None:
        self.plane, self._epilogue, self._batch = plane, epilogue, batch
        self.Y = view(made.pointers["y"], plane.physical(batch))
        self._bias = view(made.pointers["b"], (plane.lanes,))
        self._residual = None
        if epilogue.residual is not None:
            self._residual = view(made.pointers["r"], epilogue.residual.physical(batch))

    def bias(self, block: Any) -> Any:
        """The bias of a block of channels."""
        return self._bias[vector(block * self.plane.block, self.plane.block)]

    def store(self, at: Sequence[Any], value: Any) -> None:
        """Finish `value` (bias included) and store it at (batch, block, row, column) of the image."""
        self._store(at, vector(0, self.plane.block), value, self.plane.block)

    def store_channels(self, at: Sequence[Any], first: Any, value: Any, width: int) -> None:
        """Finish the values of `width` channels from `first` on, all of one block, and store them at (batch, row,
        column) of the image; `first` is a multiple of `width`."""
        n, row, column = at
        blocks, size = self.plane.blocks, self.plane.block
        block, lane = (0, first) if blocks == 1 else (tirx.floordiv(first, size), tirx.floormod(first, size))
        self._store((n, block, row, column), vector(lane, width), value, width)

    def _store(self, at: Sequence[Any], lanes: Any, value: Any, width: int) -> None:
        n, block, row, column = at
        residual = None
        if self._residual is not None:
            other = self._epilogue.residual
            assert other is not None
            residual = self._residual[n, block, row + other.before[0], column + other.before[1], lanes]
        value = self._epilogue.activation.apply(value, width, residual)
        before = self.plane.before
        T.buffer_store(self.Y, value, [n, block, row + before[0], column + before[1], lanes])

    def clear_empty_lanes(self, at: Sequence[Any]) -> None:
        """Zero the lanes of the last block that are no channels, at (batch, row, column) of the image: readers of
        whole blocks multiply them by zero."""
        (n, row, column), plane = at, self.plane
        place = [n, plane.blocks - 1, row + plane.before[0], column + plane.before[1]]
        for lane in range(plane.channels - plane.lanes + plane.block, plane.block):
            T.buffer_store(self.Y, splat(0.0, 1), [*place, lane])

    def prefetch(self, at: Sequence[Any]) -> None:
        """Ask for the cells that `store` at the same place will touch, long before it does."""
        n, block, row, column = at
        for buffer, plane, write in (
            (self.Y, self.plane, True),
            (self._residual, self._epilogue.residual, False),
        ):
            if buffer is not None and plane is not None:
                prefetch(buffer, (n, block, row + plane.before[0], column + plane.before[1], 0), write=write)

    def clear_halo(self, made: KernelBuilder, units: Units | None = None) -> None:
        """Zero every cell outside the image, as `Halo.clear`."""
        Halo(self.Y, self.plane, self._batch).clear(made, units)


@dataclass(frozen=True, slots=True, eq=False)
class Halo:
    """The cells of a buffer that are outside of its images."""

    buffer: Any
    plane: Plane
    batch: int

    def clear(self, made: KernelBuilder, units: Units | None = None) -> None:
        """Zero them. In a divided kernel the calls share rows or blocks of channels as they do the `units`, so that
        threads write what they read later; None: the first unit's call does it."""
        y = self.plane
        if y.contiguous:
            return
        _, blocks, height, _, _ = y.physical(1)
        rows = self.batch * height
        if made.begin is None:
            self._clear((0, rows), (0, blocks))
        elif units is None:
            with T.If(made.begin == 0), T.Then():
                self._clear((0, rows), (0, blocks))
        elif units.divides_image:
            self._clear(units.share(made, rows), (0, blocks))
        else:
            self._clear((0, rows), units.share(made, blocks))

    def _clear(self, rows: tuple[Any, Any], blocks: tuple[Any, Any]) -> None:
        """In some rows, of all samples one after another, of some blocks of channels."""
        y = self.plane
        _, _, height, width, _ = y.physical(1)
        beside = [*range(y.before[1]), *range(y.before[1] + y.width, width)]
        with T.serial(*rows) as i, T.serial(*blocks) as block:
            n, row = tirx.truncdiv(i, height), tirx.truncmod(i, height)
            with T.If(tirx.Or(row < y.before[0], row >= y.before[0] + y.height)):
                with T.Then(), T.serial(width) as column:
                    self._zero(n, block, row, column)
                if beside:
                    with T.Else():
                        for column in beside:
                            self._zero(n, block, row, column)

    def _zero(self, n: Any, block: Any, row: Any, column: Any) -> None:
        T.buffer_store(
            self.buffer, splat(0.0, self.plane.block), [n, block, row, column, vector(0, self.plane.block)]
        )


def pack_bias(bias: np.ndarray | None, channels: int, lanes: int) -> np.ndarray:
    """Bias (zeros where there is none) filled up to a multiple of `lanes`."""
    padded = np.zeros(-(-channels // lanes) * lanes, np.float32)
    if bias is not None:
        padded[:channels] = bias
    return padded
