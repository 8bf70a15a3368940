"""Operators that repeat, pad or make elements: Expand, Tile, Pad, Trilu, and tensors made from a shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import onnx
from onnx import numpy_helper

from compiler.ir.graph import Node, Operands, Site, Value
from compiler.ir.op import Emitter, Expr, Kept, Rebuilt, Tensor, Tie, entrywise, identity
from compiler.ir.ops.elementwise import (
    Movement,
    Static,
    aligned,
    broadcast_ties,
    check,
    check_choice,
    positive,
    required,
)
from compiler.ir.types import Axis, TensorType


def repeated_tie(site: Site, y: Value, dim: int) -> Tie:
    """A free axis of the result: each entry is a copy, so any of them may go."""
    return entrywise(Axis(site.node.ref, f"copies{dim}"), y.axis(dim), np.arange(y.shape[dim]))


class Expand(Static, Movement):
    """x broadcast with the constant shape of operand 1."""

    name = "Expand"
    static = ((1, "shape"),)

    def ties(self, site: Site) -> Iterator[Tie]:
        x, y = site.operands[0], site.results[0]
        yield from broadcast_ties(x, y)
        own = (1,) * (y.rank - x.rank) + x.shape
        yield from (repeated_tie(site, y, d) for d in range(y.rank) if own[d] == 1 < y.shape[d])

    def rebuild(self, site: Site, kept: Kept) -> Rebuilt:
        return Rebuilt(site.attrs, {1: np.array(kept.shape(site.results[0]), np.int64)})

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y = required(tensors), site.results[0]
        return (emit.compute(y.shape, y.dtype, lambda *at: aligned(x, at)),)


class Tile(Static, Movement):
    """x repeated along every axis as often as the constant operand 1 says."""

    name = "Tile"
    static = ((1, "repeats"),)

    def ties(self, site: Site) -> Iterator[Tie]:
        x, y = site.operands[0], site.results[0]
        for dim, size in enumerate(x.shape):
            if size > 1:
                yield entrywise(x.axis(dim), y.axis(dim), np.arange(y.shape[dim]) % size)
            elif y.shape[dim] > 1:
                yield repeated_tie(site, y, dim)

    def rebuild(self, site: Site, kept: Kept) -> Rebuilt:
        x, y = site.operands[0], site.results[0]
        pairs = zip(kept.shape(y), kept.shape(x), strict=True)
        return Rebuilt(site.attrs, {1: np.array([a // b if b else 1 for a, b in pairs], np.int64)})

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y = required(tensors), site.results[0]

        def element(*at: Expr) -> Expr:
            return x(*(0 if n == 1 else i % n for i, n in zip(at, x.shape, strict=True)))

        return (emit.compute(y.shape, y.dtype, element),)


class Pad(Static, Movement):
    """x with entries added (or, for negative pads, removed) at the ends of axes.

    Operands: x, pads (begin.., end..; constant), optional value, optional axes (constant). `mode` is constant,
    edge, reflect or wrap.
    """

    name = "Pad"
    static = ((1, "pads"), (3, "axes"))

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        check_choice(node, "mode", "constant", "edge", "reflect", "wrap")
        types = super().infer(node, operands, count)
        shape, filled = types[0].shape, node.attrs["mode"] == "constant" or not types[0].size
        check(node, min(shape, default=0) >= 0, f"negative pads leave {shape} of {operands[0].shape}")
        left = [
            n + min(a, 0) + min(b, 0) for n, (a, b) in zip(operands[0].shape, self._pads(operands), strict=True)
        ]
        check(node, filled or min(left, default=1) > 0, "nothing is left whose edge could be repeated")
        return types

    def ties(self, site: Site) -> Iterator[Tie]:
        x, y = site.operands[0], site.results[0]
        for dim, (low, high) in enumerate(self._pads(site.operands)):
            if not low and not high:
                yield identity(x, dim, y, dim)
            elif site.str("mode") == "constant" and min(low, high) >= 0:
                inside = np.arange(y.shape[dim]) - low
                data = (inside >= 0) & (inside < x.shape[dim])
                yield entrywise(x.axis(dim), y.axis(dim), np.where(data, inside, -1))
                fill = np.where(data, -1, np.cumsum(~data) - 1)
                yield entrywise(Axis(site.node.ref, f"fill{dim}"), y.axis(dim), fill)

    def rebuild(self, site: Site, kept: Kept) -> Rebuilt:
        x, y, pads = site.operands[0], site.results[0], self._pads(site.operands)
        if min((min(p) for p in pads), default=0) < 0 or site.str("mode") != "constant":
            return Rebuilt(site.attrs)
        ends = [
            (int(np.sum(kept.of(y, d) < low)), int(np.sum(kept.of(y, d) >= low + x.shape[d])))
            for d, (low, _) in enumerate(pads)
        ]
        axes = self._axes(site.operands)
        return Rebuilt(site.attrs, {1: np.array([ends[d][side] for side in (0, 1) for d in axes], np.int64)})

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x, fill = required(arrays), (*arrays, None, None)[2]
        for dim, table in enumerate(self._tables(site)):
            if table.size == 0 or x.shape[dim] == 0:
                x = np.zeros((*x.shape[:dim], table.size, *x.shape[dim + 1 :]), x.dtype)
                table = np.full(table.size, -1)
            x = np.take(x, np.maximum(table, 0), axis=dim) if x.shape[dim] else x
            outside = (table < 0).reshape(-1, *(1,) * (x.ndim - dim - 1))
            x = np.where(outside, x.dtype.type(0) if fill is None else fill.reshape(()), x)
        return (np.asarray(x, site.results[0].dtype.numpy),)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y = required(tensors), site.results[0]
        fill = (*tensors, None, None)[2]
        pads, constant = self._pads(site.operands), site.str("mode") == "constant"
        tables = [emit.constant(t) for t in self._tables(site)] if not constant else []

        def element(*at: Expr) -> Expr:
            missing = emit.const(0, y.dtype) if fill is None else fill(*(0,) * len(fill.shape))
            source = list(at)
            for dim, (low, high) in enumerate(pads):
                if low or high:
                    source[dim] = at[dim] - low if constant else tables[dim](at[dim])
            value = x(*source) if x_size else missing
            for dim, (low, high) in enumerate(pads):
                if constant and low > 0:
                    value = emit.select(at[dim] >= low, value, missing)
                if constant and high > 0:
                    value = emit.select(at[dim] < low + x.shape[dim], value, missing)
            return value

        x_size = site.operands[0].size
        return (emit.compute(y.shape, y.dtype, element),)

    def _axes(self, operands: Operands) -> list[int]:
        axes, rank = operands.optional(3), operands[0].rank
        if axes is None:
            return list(range(rank))
        return [positive(int(a), rank) for a in axes.constant.reshape(-1)]

    def _pads(self, operands: Operands) -> list[tuple[int, int]]:
        """(begin, end) of every axis."""
        axes, flat = self._axes(operands), operands[1].constant.reshape(-1)
        pads = [(0, 0)] * operands[0].rank
        for i, dim in enumerate(axes):
            pads[dim] = (int(flat[i]), int(flat[i + len(axes)]))
        return pads

    def _tables(self, site: Site) -> list[np.ndarray]:
        """Source position of every result position, per axis; -1 where the fill value stands."""
        mode, tables = site.str("mode"), []
        for size, (low, high) in zip(site.operands[0].shape, self._pads(site.operands), strict=True):
            entries = np.arange(size, dtype=np.int32)[max(-low, 0) : size - max(-high, 0)]
            width = (max(low, 0), max(high, 0))
            if mode == "constant":
                tables.append(np.pad(entries, width, constant_values=-1))
            else:
                tables.append(np.pad(entries, width, mode=mode))  # type: ignore[call-overload]
        return tables


class Trilu(Static, Movement):
    """The upper or lower triangle of the last two axes, zero elsewhere; diagonal `k` is constant operand 1."""

    name = "Trilu"
    static = ((1, "k"),)

    def ties(self, site: Site) -> Iterator[Tie]:
        x, y = site.operands[0], site.results[0]
        yield from (identity(x, dim, y, dim) for dim in range(x.rank - 2))

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y, k = required(tensors), site.results[0], self._diagonal(site)
        zero = emit.const(0, y.dtype)

        def element(*at: Expr) -> Expr:
            row, column = at[-2], at[-1]
            taken = column >= row + k if site.int("upper") else column <= row + k
            return emit.select(taken, x(*at), zero)

        return (emit.compute(y.shape, y.dtype, element),)

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        triangle = np.triu if site.int("upper") else np.tril
        return (triangle(required(arrays), self._diagonal(site)),)

    def _diagonal(self, site: Site) -> int:
        """k, limited to the matrix: beyond it nothing changes, and numpy takes no number of 64 bits."""
        operand, (rows, columns) = site.operands.optional(1), site.results[0].shape[-2:]
        k = 0 if operand is None else int(operand.constant.reshape(-1)[0])
        return min(max(k, -rows), columns)


class FromShape(Static, Movement):
    """An operator whose results depend on constants and shapes only: folding normally removes it."""

    static: ClassVar[tuple[tuple[int, str], ...]] = ()

    def ties(self, site: Site) -> Iterator[Tie]:
        return iter(())

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        arrays = [v.data if (v := site.operands.optional(i)) else None for i in range(len(site.operands))]
        return tuple(emit.constant(a) for a in self.evaluate(site, arrays))


class Shape(FromShape):
    """The sizes of axes `start` to `end` as int64."""

    name = "Shape"

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        end = site.attrs.get("end")
        return (np.array(site.operands[0].shape[site.attrs.get("start", 0) : end], np.int64),)


class Size(FromShape):
    """The number of elements as int64."""

    name = "Size"

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        return (np.array(site.operands[0].size, np.int64),)


class ConstantOfShape(FromShape):
    """A tensor of the constant shape (operand 0) filled with `value` (a one-element tensor, 0 by default)."""

    name = "ConstantOfShape"
    static = ((0, "input"),)

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        value, y = site.attrs.get("value"), site.results[0]
        fill = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.zeros(1, np.float32)
        return (np.broadcast_to(fill.reshape(-1)[0], y.shape),)


class Range(FromShape):
    """start, start + delta, ... below limit; all three constant."""

    name = "Range"
    static = ((0, "start"), (1, "limit"), (2, "delta"))

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        start, _, delta = (v.constant.reshape(())[()] for v in site.operands[:3])
        steps = np.arange(site.results[0].size)
        return ((start + steps * delta).astype(site.results[0].dtype.numpy),)


class EyeLike(FromShape):
    """Ones on diagonal `k` of a matrix of the operand's shape, zeros elsewhere."""

    name = "EyeLike"

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        y = site.results[0]
        rows, columns = y.shape
        return (np.eye(rows, columns, site.int("k")).astype(y.dtype.numpy),)
