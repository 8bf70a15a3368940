"""Reading at computed positions: Gather, GatherElements, GatherND, OneHot.

Constant indices become tables of non-negative positions. Positions computed at run time wrap when negative and are
clamped to the axis, so that no input can make the compiled code read outside a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from compiler.ir.graph import Attrs, Node, Operands, Site, Value
from compiler.ir.op import Emitter, Expr, Kept, Op, Rebuilt, Tensor, Tie, entrywise, identity
from compiler.ir.ops.elementwise import Movement, Static, check, positive, required
from compiler.ir.types import DType, TensorType

INDEX = DType.INT64

Position = Callable[..., Expr]
"""Index of a position table -> non-negative position."""


def wrapped(data: np.ndarray, size: int) -> np.ndarray:
    """Constant positions counted from the front."""
    return np.where(data < 0, data + size, data).astype(np.int64)


def positions(emit: Emitter, indices: Value, tensor: Tensor, size: int) -> Position:
    """Safe positions on an axis of `size` entries, from an operand of indices."""
    if indices.data is not None:
        return emit.constant(np.clip(wrapped(indices.data, size), 0, max(size - 1, 0)))
    return lambda *at: clamped(emit, tensor(*at), size)


def check_range(node: Node, indices: Value, sizes: Sequence[int]) -> None:
    """Raise VerifyError where constant `indices` leave an axis of the size that their last axis stands for."""
    if indices.data is None or not indices.size:
        return
    limit = np.array(sizes, np.int64)
    data = np.atleast_1d(indices.data)
    wrong = data[(data < -limit) | (data >= limit)]
    check(node, not wrong.size, f"index {wrong[:1]} is out of range for axes of {tuple(sizes)} entries")


def clamped(emit: Emitter, index: Expr, size: int) -> Expr:
    """A run-time index wrapped once if negative, then limited to 0..size-1."""
    wide, zero = emit.cast(index, INDEX), emit.const(0, INDEX)
    front = emit.select(wide < zero, wide + emit.const(size, INDEX), wide)
    return emit.call("max", zero, emit.call("min", front, emit.const(size - 1, INDEX)))


def check_elements(node: Node, operands: Operands) -> None:
    """Raise VerifyError unless indices (operand 1) address elements of operand 0 along the axis."""
    x, indices, axis = operands[0], operands[1], node.attrs["axis"]
    check(node, x.rank == indices.rank, f"indices have rank {indices.rank}, the tensor {x.rank}")
    pairs = zip(indices.shape, x.shape, strict=True)
    fits = all(n <= m for d, (n, m) in enumerate(pairs) if d != axis)
    check(node, fits, f"indices {indices.shape} are larger than {x.shape} beside axis {axis}")
    check_range(node, indices, (x.shape[axis],))


class AxisOp(Op):
    """An operator with an `axis` attribute that counts the axes of operand 0."""

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        return {**attrs, "axis": positive(attrs["axis"], operands[0].rank)}


class Gather(AxisOp, Movement):
    """Entries of `axis` at the positions of operand 1, whose shape replaces the axis."""

    name = "Gather"

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        check_range(node, operands[1], operands[0].shape[node.attrs["axis"] :][:1])
        return super().infer(node, operands, count)

    def ties(self, site: Site) -> Iterator[Tie]:
        x, indices, y, axis = site.operands[0], site.operands[1], site.results[0], site.int("axis")
        for dim in range(x.rank):
            if dim != axis:
                yield identity(x, dim, y, dim if dim < axis else dim - 1 + indices.rank)
        if indices.data is None:
            yield from (identity(indices, d, y, axis + d) for d in range(indices.rank))
        elif indices.rank == 1:
            yield entrywise(x.axis(axis), y.axis(axis), wrapped(indices.data, x.shape[axis]))

    def rebuild(self, site: Site, kept: Kept) -> Rebuilt:
        x, indices, axis = site.operands[0], site.operands[1], site.int("axis")
        if indices.data is None or indices.rank != 1:
            return Rebuilt(site.attrs)
        left = wrapped(indices.data, x.shape[axis])[kept.of(site.results[0], axis)]
        moved = np.searchsorted(kept.of(x, axis), left)
        return Rebuilt(site.attrs, {1: moved.astype(indices.dtype.numpy)})

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y, axis = required(tensors), site.results[0], site.int("axis")
        rank = site.operands[1].rank
        where = positions(emit, site.operands[1], required(tensors, 1), x.shape[axis])

        def element(*at: Expr) -> Expr:
            return x(*at[:axis], where(*at[axis : axis + rank]), *at[axis + rank :])

        return (emit.compute(y.shape, y.dtype, element),)


class GatherElements(AxisOp, Movement):
    """result[p] = x[p with p[axis] replaced by indices[p]]."""

    name = "GatherElements"

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        check_elements(node, operands)
        return super().infer(node, operands, count)

    def ties(self, site: Site) -> Iterator[Tie]:
        indices, y = site.operands[1], site.results[0]
        if indices.data is None:
            yield identity(indices, site.int("axis"), y, site.int("axis"))

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x, indices, axis = required(arrays), required(arrays, 1), site.int("axis")
        at: list[np.ndarray] = list(
            np.indices(indices.shape)
        )  # take_along_axis and onnx.reference want equal other axes
        at[axis] = wrapped(indices, x.shape[axis])
        return (x[tuple(at)],)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y, axis = required(tensors), site.results[0], site.int("axis")
        where = positions(emit, site.operands[1], required(tensors, 1), x.shape[axis])

        def element(*at: Expr) -> Expr:
            return x(*at[:axis], where(*at), *at[axis + 1 :])

        return (emit.compute(y.shape, y.dtype, element),)


class GatherND(Movement):
    """Slices of x at the index vectors in the last axis of operand 1, within `batch_dims` leading axes."""

    name = "GatherND"

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        x, indices, first = operands[0], operands[1], node.attrs["batch_dims"]
        check(node, 0 <= first < min(x.rank, indices.rank), f"batch_dims={first} of {x.type} and {indices.type}")
        depth = indices.shape[-1]
        check(node, 0 < depth <= x.rank - first, f"indices name {depth} axes of {x.type} behind {first}")
        batches = x.shape[:first], indices.shape[:first]
        check(node, batches[0] == batches[1], f"the batches of {x.type} and {indices.type} differ")
        check_range(node, indices, x.shape[first : first + depth])
        # ONNX has no inference for a result without axes
        return (TensorType(x.dtype, (*indices.shape[:-1], *x.shape[first + depth :])),)

    def ties(self, site: Site) -> Iterator[Tie]:
        x, indices, y = site.operands[0], site.operands[1], site.results[0]
        first = site.int("batch_dims") + indices.shape[-1]
        outer = indices.rank - 1
        yield from (identity(x, first + d, y, outer + d) for d in range(x.rank - first))
        if indices.data is None:
            yield from (identity(indices, d, y, d) for d in range(site.int("batch_dims"), outer))

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, table, y, batch = required(tensors), required(tensors, 1), site.results[0], site.int("batch_dims")
        depth, outer = table.shape[-1], len(table.shape) - 1

        def element(*at: Expr) -> Expr:
            vector = [
                clamped(emit, table(*at[:outer], emit.const(k, DType.INT32)), x.shape[batch + k])
                for k in range(depth)
            ]
            return x(*at[:batch], *vector, *at[outer:])

        return (emit.compute(y.shape, y.dtype, element),)


class OneHot(Static):
    """A new `axis` of constant size depth (operand 1): the on value at the index, the off value elsewhere.

    Operand 2 holds (off, on). An index outside -depth..depth-1 gives a row of off values. No `Movement`: what is
    known of an index is nothing that its row holds.
    """

    name = "OneHot"
    static = ((1, "depth"),)

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        return {**attrs, "axis": positive(attrs.get("axis", -1), operands[0].rank + 1)}

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        self.check_static(node, operands)
        axis, shape = node.attrs["axis"], operands[0].shape
        depth = int(operands[1].constant.reshape(-1)[0])
        return (TensorType(operands[2].dtype, (*shape[:axis], depth, *shape[axis:])),)

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        indices, values, axis = required(arrays), required(arrays, 2), site.int("axis")
        depth = site.results[0].shape[axis]
        front = np.expand_dims(wrapped(indices.astype(np.int64), depth), axis)
        line = np.arange(depth).reshape((-1,) + (1,) * (indices.ndim - axis))
        return (np.where(front == line, values[1], values[0]),)

    def flops(self, site: Site) -> int:
        return 0

    def ties(self, site: Site) -> Iterator[Tie]:
        indices, y, axis = site.operands[0], site.results[0], site.int("axis")
        yield from (identity(indices, d, y, d if d < axis else d + 1) for d in range(indices.rank))

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        indices, values, y, axis = required(tensors), required(tensors, 2), site.results[0], site.int("axis")
        depth = emit.const(y.shape[axis], INDEX)

        def element(*at: Expr) -> Expr:
            index = emit.cast(indices(*at[:axis], *at[axis + 1 :]), INDEX)
            front = emit.select(index < emit.const(0, INDEX), index + depth, index)
            return emit.select(front == emit.cast(at[axis], INDEX), values(1), values(0))

        return (emit.compute(y.shape, y.dtype, element),)
