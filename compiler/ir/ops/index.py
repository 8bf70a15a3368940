"""Reading and writing at computed positions: Gather, Scatter, OneHot, TopK.

Constant indices become tables of non-negative positions. Positions computed at run time wrap when negative and are
clamped to the axis, so that no input can make the compiled code read outside a tensor.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from compiler.ir.graph import Attrs, Node, Operands, Site, Value
from compiler.ir.op import Combine, Emitter, Expr, Kept, Op, Rebuilt, Tensor, Tie, entrywise, identity
from compiler.ir.ops.elementwise import Movement, Static, check, check_choice, limits, positive, required
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
        x, indices, axis = arrays[0], arrays[1], site.int("axis")
        assert x is not None and indices is not None
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
        types, first = super().infer(node, operands, count), node.attrs["batch_dims"]
        check_range(node, operands[1], operands[0].shape[first : first + operands[1].shape[-1]])
        return types

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


# ---------------------------------------------------------------------- scatter
def combined(emit: Emitter, how: str, old: Expr, new: Expr) -> Expr:
    """One update of an element."""
    if how == "add":
        return old + new
    return old * new if how == "mul" else emit.call(f"{how}imum", old, new)


def reducer(how: str, dtype: DType) -> tuple[Combine, float | int]:
    """How all updates of an element combine, and the value that changes nothing."""
    low, high = limits(dtype)
    table: dict[str, tuple[Combine, float | int]] = {
        "add": ("sum", 0),
        "mul": ("prod", 1),
        "max": ("maximum", low),
        "min": ("minimum", high),
    }
    return table[how]


class Scatter(Op):
    """x (operand 0) with updates (operand 2) written at indices (operand 1).

    `reduction` none lets the last update win, as a loop over the updates in row-major order would; the others
    combine the old element with all its updates.
    """

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        check_choice(node, "reduction", "none", "add", "mul", "max", "min")
        return super().infer(node, operands, count)

    def flops(self, site: Site) -> int:
        return 0 if site.str("reduction") == "none" else site.operands[2].size

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y = required(tensors), site.results[0]
        if not site.operands[2].size:
            return (emit.compute(y.shape, y.dtype, lambda *at: x(*at)),)
        return self.updated(emit, site, x, required(tensors, 1), required(tensors, 2))

    @abc.abstractmethod
    def updated(self, emit: Emitter, site: Site, x: Tensor, indices: Tensor, updates: Tensor) -> tuple[Tensor, ...]:
        """The result where there are updates."""

    def scattered(
        self,
        emit: Emitter,
        site: Site,
        x: Tensor,
        extents: Sequence[int],
        hits: Callable[..., Expr],
        update: Callable[..., Expr],
    ) -> tuple[Tensor, ...]:
        """The result from `hits(at, k)` and `update(at, k)`: whether update k touches the element, and its value.

        `k` runs over `extents`; both are called with the element's index followed by k's.
        """
        y, how, rank = site.results[0], site.str("reduction"), len(x.shape)
        if how != "none":
            kind, start = reducer(how, y.dtype)
            idle = emit.const(start, y.dtype)

            def term(*i: Expr) -> Expr:
                return emit.select(hits(*i), update(*i), idle)

            total = emit.reduce(y.shape, y.dtype, extents, kind, term)
            return (emit.compute(y.shape, y.dtype, lambda *at: combined(emit, how, x(*at), total(*at))),)
        nothing = emit.const(-1, DType.INT32)

        def number(*i: Expr) -> Expr:
            flat: Expr = emit.const(0, DType.INT32)
            for k, extent in zip(i[rank:], extents, strict=True):
                flat = flat * extent + k
            return emit.select(hits(*i), flat, nothing)

        last = emit.reduce(y.shape, DType.INT32, extents, "max", number)

        def element(*at: Expr) -> Expr:
            chosen = last(*at)
            return emit.select(chosen >= 0, update(*at, *_digits(chosen, extents)), x(*at))

        return (emit.compute(y.shape, y.dtype, element),)


def _digits(number: Expr, extents: Sequence[int]) -> list[Expr]:
    found: list[Expr] = []
    for extent in reversed(extents):
        found.append(number % extent)
        number = number // extent
    return found[::-1]


class ScatterND(Scatter):
    """Updates written at the index vectors in the last axis of operand 1."""

    name = "ScatterND"

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        x, indices, updates = operands[:3]
        depth = indices.shape[-1]
        check(node, depth <= x.rank, f"indices name {depth} axes of {x.type}")
        wanted = (*indices.shape[:-1], *x.shape[depth:])
        check(node, updates.shape == wanted, f"updates have shape {updates.shape}, the indices ask for {wanted}")
        check_range(node, indices, x.shape[:depth])
        return super().infer(node, operands, count)

    def ties(self, site: Site) -> Iterator[Tie]:
        x, indices, updates, y = *site.operands[:3], site.results[0]
        depth, outer = indices.shape[-1], indices.rank - 1
        for dim in range(depth, x.rank):
            yield identity(x, dim, y, dim)
            yield identity(updates, outer + dim - depth, y, dim)

    def updated(self, emit: Emitter, site: Site, x: Tensor, table: Tensor, updates: Tensor) -> tuple[Tensor, ...]:
        indices, rank = site.operands[1], len(x.shape)
        depth, extents = indices.shape[-1], indices.shape[:-1]
        if indices.data is not None and site.str("reduction") == "none":
            return (self._by_map(emit, site, x, updates),)

        def hits(*i: Expr) -> Expr:
            found = emit.const(True, DType.BOOL)
            for k in range(depth):
                at = clamped(emit, table(*i[rank:], emit.const(k, DType.INT32)), x.shape[k])
                found = emit.call("and", found, at == i[k])
            return found

        return self.scattered(emit, site, x, extents, hits, lambda *i: updates(*i[rank:], *i[depth:rank]))

    def _by_map(self, emit: Emitter, site: Site, x: Tensor, updates: Tensor) -> Tensor:
        """With constant indices: a table of the update each position takes, -1 for none."""
        indices, y = site.operands[1], site.results[0]
        depth, extents = indices.shape[-1], indices.shape[:-1]
        vectors = wrapped(indices.constant, np.array(x.shape[:depth])).reshape(-1, depth)  # type: ignore[arg-type]
        source = np.full(x.shape[:depth], -1, np.int32)
        for number, vector in enumerate(vectors):
            source[tuple(vector)] = number
        table = emit.constant(source)

        def element(*at: Expr) -> Expr:
            chosen = table(*at[:depth])
            return emit.select(chosen >= 0, updates(*_digits(chosen, extents), *at[depth:]), x(*at))

        return emit.compute(y.shape, y.dtype, element)


class ScatterElements(AxisOp, Scatter):
    """updates[p] written at p with p[axis] replaced by indices[p]."""

    name = "ScatterElements"

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        check_elements(node, operands)
        shapes = operands[1].shape, operands[2].shape
        check(node, shapes[0] == shapes[1], f"indices have shape {shapes[0]}, updates {shapes[1]}")
        return super().infer(node, operands, count)

    def ties(self, site: Site) -> Iterator[Tie]:
        return iter(())

    def updated(self, emit: Emitter, site: Site, x: Tensor, table: Tensor, updates: Tensor) -> tuple[Tensor, ...]:
        indices, axis = site.operands[1], site.int("axis")
        where = positions(emit, indices, table, x.shape[axis])

        def hits(*i: Expr) -> Expr:
            at, k = i[:-1], i[-1]
            found = emit.const(True, DType.BOOL)
            for dim, (size, full) in enumerate(zip(indices.shape, x.shape, strict=True)):
                if dim != axis and size < full:
                    found = emit.call("and", found, at[dim] < size)
            place = where(*at[:axis], k, *at[axis + 1 :])
            return emit.select(found, place == at[axis], emit.const(False, DType.BOOL))

        def update(*i: Expr) -> Expr:
            return updates(*i[:axis], i[-1], *i[axis + 1 : -1])

        return self.scattered(emit, site, x, [indices.shape[axis]], hits, update)


# ---------------------------------------------------------------------- one-hot and top-k
class OneHot(Static, Movement):
    """A new `axis` of constant size depth (operand 1): the on value at the index, the off value elsewhere.

    Operand 2 holds (off, on). An index outside -depth..depth-1 gives a row of off values.
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
        indices, values, axis = arrays[0], arrays[2], site.int("axis")
        assert indices is not None and values is not None
        depth = site.results[0].shape[axis]
        front = np.expand_dims(wrapped(indices, depth), axis)
        line = np.arange(depth).reshape((-1,) + (1,) * (indices.ndim - axis))
        return (np.where(front == line, values[1], values[0]),)

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


class TopK(Static, AxisOp):
    """The constant k (operand 1) largest or smallest entries of `axis` and their positions, best first.

    Equal entries keep their order, and NaN is larger than any number. Lowered by counting, for each entry, those
    that come before it: n * n comparisons, no sorting.
    """

    name = "TopK"
    static = ((1, "K"),)

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        self.check_static(node, operands)
        k = operands[1].constant
        check(node, k.size == 1 and int(k.reshape(-1)[0]) >= 0, f"k is {k}")
        return super().infer(node, operands, count)

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x, axis = arrays[0], site.int("axis")
        assert x is not None
        order = np.argsort(x, axis=axis, kind="stable")
        if site.int("largest"):  # flipped twice: descending, yet stable
            flipped = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
            order = np.flip(x.shape[axis] - 1 - flipped, axis)
        top = np.take(order, np.arange(site.results[0].shape[axis]), axis=axis)
        return np.take_along_axis(x, top, axis=axis), top.astype(np.int64)

    def flops(self, site: Site) -> int:
        return site.operands[0].size * site.operands[0].shape[site.int("axis")]

    def ties(self, site: Site) -> Iterator[Tie]:
        x, axis = site.operands[0], site.int("axis")
        for y in site.results:
            yield from (identity(x, dim, y, dim) for dim in range(x.rank) if dim != axis)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, axis = required(tensors), site.int("axis")
        size, y = x.shape[axis], site.results[0]

        def ahead(*i: Expr) -> Expr:
            at, k = i[:-1], i[-1]
            mine, other = x(*at), x(*at[:axis], k, *at[axis + 1 :])
            best, least = (other, mine) if site.int("largest") else (mine, other)
            better, equal = _above(emit, x.dtype, best, least), other == mine
            if x.dtype.is_float:
                equal = emit.call(
                    "or", equal, emit.call("and", emit.call("isnan", other), emit.call("isnan", mine))
                )
            earlier = emit.call("and", equal, k < at[axis])
            return emit.cast(emit.call("or", better, earlier), DType.INT32)

        rank = emit.reduce(x.shape, DType.INT32, [size], "sum", ahead)

        def holder(*i: Expr) -> Expr:
            at, k = i[:-1], i[-1]
            placed = rank(*at[:axis], k, *at[axis + 1 :]) == at[axis]
            return emit.select(placed, emit.cast(k, INDEX), emit.const(0, INDEX))

        index = emit.reduce(y.shape, INDEX, [size], "max", holder)

        def value(*at: Expr) -> Expr:
            return x(*at[:axis], index(*at), *at[axis + 1 :])

        return emit.compute(y.shape, y.dtype, value), index


def _above(emit: Emitter, dtype: DType, a: Expr, b: Expr) -> Expr:
    """Whether a > b, where NaN is above every number."""
    if not dtype.is_float:
        return a > b
    only = emit.call("and", emit.call("isnan", a), emit.call("not", emit.call("isnan", b)))
    return emit.call("or", a > b, only)
