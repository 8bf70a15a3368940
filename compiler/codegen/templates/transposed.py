"""Transposed convolution as plain ones: output cells a stride apart are a convolution with every stride-th tap.

Output cell `start + i * stride` gets tap `t` of input cell `(start + i * stride + pad - t) / stride`, so for one
start per residue of the stride the taps that divide form a small convolution at stride 1, turned round. Nothing is
multiplied by the zeros that spreading the input would insert (as in Dumoulin and Visin, "A guide to convolution
arithmetic for deep learning", 2016, section 4.6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.codegen.templates.blocked import Epilogue, Output, Plane
from compiler.codegen.templates.common import KernelBuilder, kernel
from compiler.codegen.templates.conv import ConvLoops, ConvShape, segment_names
from compiler.codegen.templates.units import Units


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a phase: the output cells start, start + stride, ... (`count` of them)."""

    start: int
    count: int
    first_tap: int
    taps: int
    pad: int
    """Cells before the input that the first output cell reads; negative where it starts inside."""

    def border(self, extent: int, dilation: int) -> tuple[int, int]:
        """Cells read before and after an input of `extent`."""
        return max(self.pad, 0), max(self.count - 1 + dilation * (self.taps - 1) - self.pad - (extent - 1), 0)


def axis_phases(extent: int, kernel: int, stride: int, dilation: int, pad: int) -> tuple[Axis, ...]:
    """The phases of an output axis of `extent`. Dilation only at stride 1; no fewer taps than strides."""
    assert kernel >= stride and 1 in (stride, dilation)
    found = []
    for start in range(min(stride, extent)):
        first = (start + pad) % stride
        taps = -(-(kernel - first) // stride)
        before = dilation * (taps - 1) - (start + pad - first) // stride
        found.append(Axis(start, -(-(extent - start) // stride), first, taps, before))
    return tuple(found)


def pack(weight: np.ndarray, rows: Axis, columns: Axis, stride: tuple[int, int]) -> np.ndarray:
    """[I, O, K, L] to the weights [O, I, taps, taps] of the convolution of one phase."""
    taps = weight[:, :, rows.first_tap :: stride[0], columns.first_tap :: stride[1]]
    return np.ascontiguousarray(taps[:, :, ::-1, ::-1].transpose(1, 0, 2, 3))


@dataclass(frozen=True, slots=True)
class TransposedShape:
    """Everything the generated code depends on."""

    y: Plane
    stride: tuple[int, int]
    epilogue: Epilogue
    phases: tuple[tuple[tuple[int, int], ConvShape], ...]
    """First output cell of each phase, and the convolution that computes its cells as an image of their own."""

    @property
    def parameters(self) -> tuple[str, ...]:
        weights = (f"w{i}" for i in range(len(self.phases)))
        return (*segment_names(self.phases[0][1].x), *weights, "b", *self.epilogue.parameters, "y")

    @property
    def parts(self) -> int:
        """Independent units: those of every phase, one after another."""
        return sum(conv.parts for _, conv in self.phases)


def transposed_kernel(shape: TransposedShape) -> Any:
    """The PrimFunc for `shape`; parameters as `shape.parameters`, then the range of units."""
    with kernel(shape.parameters, divided=True) as made:
        batch = shape.phases[0][1].batch
        Output(made, shape.y, batch, shape.epilogue).clear_halo(made)
        first = 0
        for i, (start, conv) in enumerate(shape.phases):
            part = made.portion(first, conv.parts, w=made.pointers[f"w{i}"])
            ConvLoops(conv, part, _Spread(part, shape, batch, start)).emit()
            first += conv.parts
    return made.func


class _Spread(Output):
    """Stores the cells of one phase where they belong in the whole result."""

    def __init__(self, made: KernelBuilder, shape: TransposedShape, batch: int, start: tuple[int, int]) -> None:
        super().__init__(made, shape.y, batch, shape.epilogue)
        self._start, self._stride = start, shape.stride

    def store(self, at: Sequence[Any], value: Any) -> None:
        super().store(self._spread(at), value)

    def prefetch(self, at: Sequence[Any]) -> None:
        super().prefetch(self._spread(at))

    def clear_halo(self, made: KernelBuilder, units: Units | None = None) -> None:
        """The halo belongs to the whole result."""

    def _spread(self, at: Sequence[Any]) -> tuple[Any, ...]:
        n, block, row, column = at
        return (
            n,
            block,
            row * self._stride[0] + self._start[0],
            column * self._stride[1] + self._start[1],
        )
