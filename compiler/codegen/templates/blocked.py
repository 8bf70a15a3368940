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

    def prefetch(self, at: Sequence[Any]) -> None:
        """Ask for the cells that `store` at the same place will touch, long before it does."""
        n, block, row, column = at
        for buffer, plane, write in (
            (self.Y, self.plane, True),
            (self._residual, self._epilogue.residual, False),
        ):
            if buffer is not None and plane is not None:
                prefetch(buffer, (n, block, row + plane.before[0], column + plane.before[1], 0), write=write)

    def clear_halo(self, begin: Any = None) -> None:
        """Zero every cell outside the image; in a divided kernel (`begin`) the call with the first unit does it."""
        if self.plane.contiguous:
            return
        if begin is None:
            self._clear()
        else:
            with T.If(begin == 0), T.Then():
                self._clear()

    def _clear(self) -> None:
        y = self.plane
        _, blocks, rows, columns, _ = y.physical(1)
        zero, lanes = splat(0.0, y.block), vector(0, y.block)
        with T.serial(self._batch) as n, T.serial(blocks) as c:
            for top, count in ((0, y.before[0]), (rows - y.after[0], y.after[0])):
                if count:
                    with T.serial(count) as i, T.serial(columns) as j:
                        T.buffer_store(self.Y, zero, [n, c, i + top, j, lanes])
            if y.before[1] or y.after[1]:
                with T.serial(y.height) as i:
                    for left, count in ((0, y.before[1]), (columns - y.after[1], y.after[1])):
                        for j in range(count):
                            T.buffer_store(self.Y, zero, [n, c, i + y.before[0], left + j, lanes])


def pack_bias(bias: np.ndarray | None, channels: int, lanes: int) -> np.ndarray:
    """Bias (zeros where there is none) filled up to a multiple of `lanes`."""
    padded = np.zeros(-(-channels // lanes) * lanes, np.float32)
    if bias is not None:
        padded[:channels] = bias
    return padded
