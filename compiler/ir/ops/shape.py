"""Operators that only move elements between positions given by shapes: Reshape, Transpose, Concat..."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from compiler.ir.graph import Attrs, Node, Operands, Site, Value
from compiler.ir.op import Emitter, Expr, Kept, Rebuilt, Tensor, Tie, entrywise, identity
from compiler.ir.ops.elementwise import Movement, Static, check, check_choice, positive, required
from compiler.ir.types import Axis, TensorType

Span = tuple[int, int]
"""A run of row-major factors: the products of all sizes to the left of its begin and of its end."""


def spans(shape: Sequence[int]) -> dict[int, Span]:
    """The span of every axis with more than one entry."""
    found, left = {}, 1
    for dim, size in enumerate(shape):
        if size > 1:
            found[dim] = (left, left * size)
        left *= size
    return found


def common_factors(before: dict[int, Span], after: dict[int, Span]) -> list[Span]:
    """The coarsest spans of which every understood axis on both sides is a run.

    Axes (6, 4) and (8, 3) have no common factors: they are left out, hence without ties and pinned.
    """
    ends = [{end for _, end in side.values()} | {1} for side in (before, after)]
    shared = sorted(ends[0] & ends[1])
    factors: list[Span] = []
    for low, high in pairwise(shared):
        chain = sorted(c for c in ends[0] | ends[1] if low <= c <= high)
        if all(right % left == 0 for left, right in pairwise(chain)):
            factors += pairwise(chain)
    return factors


def reshape_ties(site: Site, x: Value, y: Value) -> Iterator[Tie]:
    """Ties of a row-major reshape.

    An axis that is one factor on both sides is an identity; an axis made of several factors has one tie per factor
    (flat entry j holds entry `j // stride % size` of it), the factor being an axis of the other side or virtual.
    """
    if x.size == 0:
        return
    before, after = spans(x.shape), spans(y.shape)
    factors = common_factors(before, after)
    sides = ((x, before), (y, after))
    for low, high in factors:
        whole = [v.axis(d) for v, side in sides for d, span in side.items() if span == (low, high)]
        parent = whole[0] if whole else Axis(site.node.ref, f"factor{low}")
        if len(whole) == 2:
            yield entrywise(whole[0], whole[1], np.arange(high // low))
        for value, side in sides:
            for dim, (first, last) in side.items():
                if first <= low and high <= last and (first, last) != (low, high):
                    index = np.arange(value.shape[dim]) // (last // high) % (high // low)
                    yield entrywise(parent, value.axis(dim), index)


def unravel(flat: Expr, shape: Sequence[int]) -> list[Expr]:
    """Row-major index of element number `flat`."""
    at: list[Expr] = []
    for size in reversed(shape):
        at.append(0 if size == 1 else flat % size)
        flat = flat if size == 1 else flat // size
    return at[::-1]


def ravel(at: Sequence[Expr], shape: Sequence[int]) -> Expr:
    """Row-major number of the element at `at`."""
    flat: Expr = 0
    for index, size in zip(at, shape, strict=True):
        if size > 1:
            flat = flat * size + index
    return flat


class Reinterpreted(Movement):
    """An operator whose result has the elements of x in row-major order under another shape."""

    reinterprets = True

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x = required(arrays)
        return (x.reshape(site.results[0].shape),)  # onnx.reference cannot flatten an empty tensor

    def ties(self, site: Site) -> Iterator[Tie]:
        return reshape_ties(site, site.operands[0], site.results[0])

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y = required(tensors), site.results[0]
        return (emit.compute(y.shape, y.dtype, lambda *at: x(*unravel(ravel(at, y.shape), x.shape))),)


class Reshape(Static, Reinterpreted):
    """x with the constant target shape of operand 1 (0 copies a size unless allowzero, -1 is computed)."""

    name = "Reshape"
    static = ((1, "shape"),)

    def rebuild(self, site: Site, kept: Kept) -> Rebuilt:
        return Rebuilt(site.attrs, {1: np.array(kept.shape(site.results[0]), np.int64)})


class Flatten(Reinterpreted):
    """Axes before `axis` become one, those from `axis` on another."""

    name = "Flatten"

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        return {**attrs, "axis": positive(attrs.get("axis", 1), operands[0].rank)}


class Transpose(Movement):
    """Axis d of the result is axis perm[d] of x."""

    name = "Transpose"

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        return {**attrs, "perm": tuple(attrs.get("perm") or reversed(range(operands[0].rank)))}

    def ties(self, site: Site) -> Iterator[Tie]:
        x, y = site.operands[0], site.results[0]
        yield from (identity(x, source, y, dim) for dim, source in enumerate(site.ints("perm")))

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y, perm = required(tensors), site.results[0], site.ints("perm")
        return (emit.compute(y.shape, y.dtype, lambda *at: x(*(at[perm.index(d)] for d in range(len(perm))))),)


class Concat(Movement):
    """Operands one after the other along `axis`."""

    name = "Concat"

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        return {**attrs, "axis": positive(attrs["axis"], operands[0].rank)}

    def ties(self, site: Site) -> Iterator[Tie]:
        y, axis, offset = site.results[0], site.int("axis"), 0
        for x in site.operands[:]:
            for dim in range(y.rank):
                if dim != axis:
                    yield identity(x, dim, y, dim)
            index = np.full(y.shape[axis], -1)
            index[offset : offset + x.shape[axis]] = np.arange(x.shape[axis])
            yield entrywise(x.axis(axis), y.axis(axis), index)
            offset += x.shape[axis]

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        y, axis = site.results[0], site.int("axis")
        parts = [t for t in tensors if t is not None and t.shape[axis]]
        ends = np.cumsum([t.shape[axis] for t in parts])

        def element(*at: Expr) -> Expr:
            value = None
            for part, end in reversed(list(zip(parts, map(int, ends), strict=True))):
                inside = part(*at[:axis], at[axis] - (end - part.shape[axis]), *at[axis + 1 :])
                value = inside if value is None else emit.select(at[axis] < end, inside, value)
            return value

        return (emit.compute(y.shape, y.dtype, element),)


class Squeeze(Static, Reinterpreted):
    """x without axes of size 1: those of the constant operand 1, or all."""

    name = "Squeeze"
    static = ((1, "axes"),)


class Unsqueeze(Static, Reinterpreted):
    """x with axes of size 1 inserted at the constant operand 1."""

    name = "Unsqueeze"
    static = ((1, "axes"),)


class Identity(Movement):
    """x itself."""

    name = "Identity"
    reinterprets = True

    def ties(self, site: Site) -> Iterator[Tie]:
        x, y = site.operands[0], site.results[0]
        yield from (identity(x, dim, y, dim) for dim in range(x.rank))

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y = required(tensors), site.results[0]
        return (emit.compute(y.shape, y.dtype, lambda *at: x(*at)),)


class DepthToSpace(Movement):
    """Blocks of channels become `blocksize` x `blocksize` squares of positions.

    Channel order of the operand: DCR (row, column, channel) or CRD (channel, row, column).
    """

    name = "DepthToSpace"

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        check_choice(node, "mode", "DCR", "CRD")
        types = super().infer(node, operands, count)
        check(node, types[0].size == operands[0].size, "blocksize squared does not divide the channels")
        return types

    def ties(self, site: Site) -> Iterator[Tie]:
        x, y, area = site.operands[0], site.results[0], site.int("blocksize") ** 2
        channel = np.arange(x.shape[1])
        index = channel // area if site.str("mode") == "CRD" else channel % y.shape[1]
        yield identity(x, 0, y, 0)
        if y.shape[1] > 1 or x.shape[1] == 1:  # the parts of a single channel come and go with nothing else
            yield entrywise(y.axis(1), x.axis(1), index)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y, block = required(tensors), site.results[0], site.int("blocksize")

        def element(n: Expr, c: Expr, row: Expr, column: Expr) -> Expr:
            cell = row % block * block + column % block
            crd = site.str("mode") == "CRD"
            channel = c * block**2 + cell if crd else cell * y.shape[1] + c
            return x(n, channel, row // block, column // block)

        return (emit.compute(y.shape, y.dtype, element),)


class SpaceToDepth(Movement):
    """Squares of `blocksize` x `blocksize` positions become blocks of channels (row, column, channel)."""

    name = "SpaceToDepth"

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        types = super().infer(node, operands, count)
        check(node, types[0].size == operands[0].size, "blocksize does not divide the spatial axes")
        return types

    def ties(self, site: Site) -> Iterator[Tie]:
        x, y = site.operands[0], site.results[0]
        yield identity(x, 0, y, 0)
        if x.shape[1] > 1 or y.shape[1] == 1:  # as above
            yield entrywise(x.axis(1), y.axis(1), np.arange(y.shape[1]) % x.shape[1])

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y, block = required(tensors), site.results[0], site.int("blocksize")

        def element(n: Expr, c: Expr, row: Expr, column: Expr) -> Expr:
            cell = c // x.shape[1]
            return x(n, c % x.shape[1], row * block + cell // block, column * block + cell % block)

        return (emit.compute(y.shape, y.dtype, element),)
