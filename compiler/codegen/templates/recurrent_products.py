"""Products of a recurrent layer with sparse weights: the kernels of sparse matrix products, inside the layer's own.

W times the inputs of all steps is one product of many rows; R times the state is one product of one row per sample
and step. Both write sums in the order in which the cell reads them: [panels][gates][v]. Rows of a weight are put in
that order when it is packed, and lanes beyond the hidden units are rows of zeros; so the kernels know nothing of
gates, and pattern and order are data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tvm.script.ir_builder import tirx as T

from compiler.codegen.templates import block_sparse, regular_block
from compiler.codegen.templates.blocked import Plane
from compiler.codegen.templates.common import KernelBuilder, vector
from compiler.codegen.templates.conv import segment_names
from compiler.codegen.templates.recurrent_shape import RecurrentShape

DTYPES = regular_block.DTYPES | block_sparse.DTYPES


ProductShape = regular_block.RegularShape | block_sparse.BlockSparseShape


@dataclass(frozen=True, slots=True)
class GateProduct:
    """One weight times inputs (`w`) or state (`r`), for some of the gates, by kernels that skip zeros."""

    operand: Literal["w", "r"]
    gates: tuple[int, ...]
    kernels: tuple[ProductShape, ...]
    """One per direction."""

    def parameters(self, direction: int) -> tuple[str, ...]:
        """Pointers of one direction, in the order of the kernel's constants."""
        return tuple(self._named(direction).values())

    def dtypes(self, direction: int) -> dict[str, str]:
        """Element types of those that are not float32."""
        return {name: DTYPES[own] for own, name in self._named(direction).items() if own in DTYPES}

    def _named(self, direction: int) -> dict[str, str]:
        """The kernel's own name of each constant, and its name here."""
        kernel = self.kernels[direction]
        own = (n for n in kernel.parameters if n not in {*segment_names(kernel.x), "y"})
        return {n: f"{self.operand}{self.gates[0]}_{direction}_{n}" for n in own}

    def emitter(self, direction: int, made: KernelBuilder, x: Any, y: Any) -> Emitter:
        """The product of a direction, which reads x and writes y; its constants are parameters of `made`."""
        kernel = self.kernels[direction]
        named = {own: made.pointers[name] for own, name in self._named(direction).items()}
        part = made.renamed(**{segment_names(kernel.x)[0]: x, "y": y, **named})
        if isinstance(kernel, regular_block.RegularShape):
            return Emitter(part, regular_block.RegularBlockEmitter(kernel, part), kernel.tiling.parts)
        return Emitter(part, block_sparse.BlockSparseEmitter(kernel, part), kernel.tiling.parts)


@dataclass(frozen=True, eq=False)
class Emitter:
    """Emission of a product with its buffers; `parts`: its units, those of one row of a batch after the other."""

    made: KernelBuilder
    body: regular_block.RegularBlockEmitter | block_sparse.BlockSparseEmitter
    parts: int

    def emit(self, first: Any = 0, count: int = 1, batch: int = 1) -> None:
        """The rows first to first + count - 1 of a batch, whose rows may be images themselves."""
        each = self.parts // batch
        self.made.begin, self.made.end = first * each, (first + count) * each
        self.body.emit()


def parameters(shape: RecurrentShape, products: Sequence[GateProduct]) -> tuple[str, ...]:
    """Names of the kernel's pointers in order: constants of products stand in the place of the weight."""
    found: list[str] = []
    for name in shape.parameters:
        own = [p for p in products if p.operand == name]
        found += [n for p in own for d in range(shape.directions) for n in p.parameters(d)] if own else [name]
    return tuple(found)


def dtypes(shape: RecurrentShape, products: Sequence[GateProduct]) -> Mapping[str, str]:
    """Element types of the parameters that are not float32."""
    given = {"lengths": "int32"}
    for product in products:
        for d in range(shape.directions):
            given |= product.dtypes(d)
    return given


def gate_passes(shape: RecurrentShape) -> tuple[tuple[int, ...], ...]:
    """The gates of R that are multiplied with the same state: all, or the candidate on its own behind the reset."""
    return ((0, 1), (2,)) if shape.two_passes else (tuple(range(shape.gates)),)


def gate_rows(shape: RecurrentShape, gates: Sequence[int]) -> np.ndarray:
    """int64 [panels * gates * v]: the row of W, R or B that each sum belongs to; -1 beyond the hidden units."""
    units = np.arange(shape.panels * shape.block).reshape(shape.panels, 1, shape.block)
    rows = np.asarray(gates)[None, :, None] * shape.hidden + units
    return np.where(units < shape.hidden, rows, -1).ravel()


def rows_of(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The rows of an array in the order of `gate_rows`; zeros where there is none."""
    picked = np.asarray(array[np.maximum(rows, 0)])
    return np.where((rows >= 0).reshape(-1, *(1,) * (array.ndim - 1)), picked, np.zeros((), array.dtype))


def planes(shape: RecurrentShape, operand: str, gates: Sequence[int]) -> tuple[Plane, Plane, int]:
    """What a product reads and writes, and the rows of its batch: for W the rows are cells of one image."""
    sums = shape.panels * len(gates) * shape.block
    if operand == "w":
        return Plane(shape.inputs, 1, shape.rows, shape.inputs), Plane(sums, 1, shape.rows, sums), 1
    state = Plane(shape.hidden, 1, 1, shape.panels * shape.block)
    return state, Plane(sums, 1, 1, sums), shape.samples


class Gates:
    """Sums of gates [rows][panels][gates][v], before activations."""

    def __init__(self, plane: Plane, batch: int, gates: int, block: int) -> None:
        self.buffer = T.alloc_buffer(plane.physical(batch), "float32")
        self._batch, self._gates, self._block = batch > 1 or plane.width == 1, gates, block

    def get(self, row: Any, panel: Any, gate: int) -> Any:
        """One vector of units."""
        return self.buffer[self._at(row, panel, gate)]

    def put(self, row: Any, panel: Any, gate: int, value: Any) -> None:
        """Store one vector of units."""
        T.buffer_store(self.buffer, value, self._at(row, panel, gate))

    def _at(self, row: Any, panel: Any, gate: int) -> list[Any]:
        lanes = vector((panel * self._gates + gate) * self._block, self._block)
        return [row, 0, 0, 0, lanes] if self._batch else [0, 0, 0, row, lanes]
