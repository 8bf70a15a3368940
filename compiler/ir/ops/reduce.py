"""Reductions along axes, arg-max and cumulative sums."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np

from compiler.ir.graph import Attrs, Node, Operands, Site
from compiler.ir.op import Combine, Emitter, Expr, Kind, Op, Tensor, Tie, identity
from compiler.ir.ops.binary import truncated_quotient
from compiler.ir.ops.elementwise import Static, check, positive, required
from compiler.ir.types import Axis, DType, TensorType


def reduced_axes(site: Site) -> tuple[int, ...]:
    """The axes a reduction removes, ascending; all without operand 1, or none with `noop_with_empty_axes` (then
    every element is a set of one)."""
    axes, rank = site.operands.optional(1), site.operands[0].rank
    if axes is None or axes.size == 0:
        return () if site.int("noop_with_empty_axes") else tuple(range(rank))
    return tuple(sorted(positive(int(a), rank) for a in axes.constant.reshape(-1)))


def kept_axes(rank: int, axes: Sequence[int], keepdims: int) -> Iterator[tuple[int, int]]:
    """(axis of the operand, axis of the result) of every axis that is not reduced."""
    rest = [d for d in range(rank) if d not in axes]
    yield from ((d, d if keepdims else i) for i, d in enumerate(rest))


def outer_index(at: Sequence[Expr], rank: int, axes: Sequence[int], keepdims: int) -> dict[int, Expr]:
    """Index of the operand along its kept axes, from an index of the result."""
    return {d: at[r] for d, r in kept_axes(rank, axes, keepdims)}


def accumulator(dtype: DType) -> DType:
    """The type to combine in: half floats widen, booleans become bytes."""
    return {DType.FLOAT16: DType.FLOAT32, DType.BOOL: DType.UINT8}.get(dtype, dtype)


class Reduce(Static):
    """combine(before(x)) over `axes` (constant operand 1), then `after` per result element.

    An empty set gives the neutral element of `combine` (ONNX: 0, 1, lowest or highest value).
    """

    static = ((1, "axes"),)
    combine: ClassVar[Combine] = "sum"
    kind: ClassVar[Kind | None] = Kind.ENTRYWISE
    """How removing an entry of a reduced axis compares with zeroing it: the same, a shifted statistic, or (None)
    different, which pins the axis."""
    per_input: ClassVar[int] = 1
    per_result: ClassVar[int] = 0

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        self.check_static(node, operands)
        axes = operands.optional(1)
        if axes is not None:
            named = [positive(int(a), operands[0].rank) for a in axes.constant.reshape(-1)]
            check(node, len(set(named)) == len(named), f"axes {named} repeat one")
        return super().infer(node, operands, count)

    def before(self, emit: Emitter, x: Expr, dtype: DType) -> Expr:
        """The term that enters the combination."""
        return x

    def after(self, emit: Emitter, x: Expr, dtype: DType, count: int) -> Expr:
        """The result element from the combination of `count` terms."""
        return x

    def flops(self, site: Site) -> int:
        return self.per_input * site.operands[0].size + self.per_result * site.results[0].size

    def ties(self, site: Site) -> Iterator[Tie]:
        x, y, axes = site.operands[0], site.results[0], reduced_axes(site)
        for dim, to in kept_axes(x.rank, axes, site.int("keepdims")):
            yield identity(x, dim, y, to)
        for dim in axes:
            if self.kind is not None and x.shape[dim] > 1:
                inside = Axis(site.node.ref, f"reduced{dim}")
                yield Tie(inside, x.axis(dim), np.arange(x.shape[dim]), self.kind)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y, axes = required(tensors), site.results[0], reduced_axes(site)
        dtype = accumulator(y.dtype)
        total = reduction(emit, site, axes, dtype, self.combine, lambda at: self._term(emit, site, x, at))
        count = max(math.prod(x.shape[d] for d in axes), 1)

        def element(*at: Expr) -> Expr:
            value = self.after(emit, total(*at), dtype, count)
            return value if dtype is y.dtype else emit.cast(value, y.dtype)

        return (emit.compute(y.shape, y.dtype, element),)

    def _term(self, emit: Emitter, site: Site, x: Tensor, at: Sequence[Expr]) -> Expr:
        dtype = accumulator(x.dtype)
        value = x(*at) if dtype is x.dtype else emit.cast(x(*at), dtype)
        return self.before(emit, value, dtype)


def reduction(
    emit: Emitter,
    site: Site,
    axes: Sequence[int],
    dtype: DType,
    combine: Combine,
    term: Callable[[Sequence[Expr]], Expr],
) -> Tensor:
    """Combination of `term(index of operand 0)` over `axes`, in the shape of the first result."""
    x, y = site.operands[0], site.results[0]
    outer = len(y.shape)

    def body(*at: Expr) -> Expr:
        index = outer_index(at[:outer], x.rank, axes, site.int("keepdims"))
        index.update(zip(axes, at[outer:], strict=True))
        return term([index[d] for d in range(x.rank)])

    return emit.reduce(y.shape, dtype, [x.shape[d] for d in axes], combine, body)


class ReduceSum(Reduce):
    """Sum."""

    name = "ReduceSum"


class ReduceMean(Reduce):
    """Sum / count; integers are rounded towards zero, and of nothing it is zero."""

    name = "ReduceMean"
    kind = Kind.MIXED
    per_result = 1

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x, y, axes = required(arrays), site.results[0], reduced_axes(site)
        if y.dtype.is_float and x.size:
            return super().evaluate(site, arrays)
        total = np.sum(x, axis=axes, dtype=x.dtype)  # onnx.reference divides integers as float64, and zero by zero
        count = np.asarray(max(math.prod(x.shape[d] for d in axes), 1), x.dtype)
        return (np.asarray((total - np.fmod(total, count)) // count, x.dtype).reshape(y.shape),)

    def after(self, emit: Emitter, x: Expr, dtype: DType, count: int) -> Expr:
        size = emit.const(count, dtype)
        return x / size if dtype.is_float else truncated_quotient(emit, dtype, x, size)


class ReduceMax(Reduce):
    """Largest, NaN where there is one; of booleans, any."""

    name = "ReduceMax"
    combine = "maximum"
    kind = None


class ReduceMin(Reduce):
    """Smallest, NaN where there is one; of booleans, all."""

    name = "ReduceMin"
    combine = "minimum"
    kind = None


class ReduceProd(Reduce):
    """Product."""

    name = "ReduceProd"
    combine = "prod"
    kind = None


class ReduceL1(Reduce):
    """Sum of |x|."""

    name = "ReduceL1"
    per_input = 2

    def before(self, emit: Emitter, x: Expr, dtype: DType) -> Expr:
        return emit.call("abs", x)


class ReduceSumSquare(Reduce):
    """Sum of x squared."""

    name = "ReduceSumSquare"
    per_input = 2

    def before(self, emit: Emitter, x: Expr, dtype: DType) -> Expr:
        return emit.call("mul", x, x)


class ReduceL2(ReduceSumSquare):
    """Square root of the sum of x squared."""

    name = "ReduceL2"
    per_result = 1

    def after(self, emit: Emitter, x: Expr, dtype: DType, count: int) -> Expr:
        if dtype.is_float:
            return emit.call("sqrt", x)
        return emit.cast(emit.call("sqrt", emit.cast(x, DType.FLOAT64)), dtype)


class ReduceLogSum(Reduce):
    """Logarithm of the sum."""

    name = "ReduceLogSum"
    per_result = 1

    def after(self, emit: Emitter, x: Expr, dtype: DType, count: int) -> Expr:
        return emit.call("log", x)


class ReduceLogSumExp(Reduce):
    """Logarithm of the sum of exp(x), shifted by the maximum against overflow."""

    name = "ReduceLogSumExp"
    kind = None
    per_input = 4
    per_result = 2

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x, axes = required(arrays), reduced_axes(site)
        wide = x.astype(np.float64)
        peak = np.max(wide, axis=axes, keepdims=True, initial=-np.inf)
        shift = np.where(np.isinf(peak), 0, peak)
        with np.errstate(divide="ignore"):
            total = np.log(np.sum(np.exp(wide - shift), axis=axes, keepdims=True)) + shift
        return (total.astype(x.dtype).reshape(site.results[0].shape),)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y, axes = required(tensors), site.results[0], reduced_axes(site)
        dtype, keepdims = accumulator(y.dtype), site.int("keepdims")
        peak = reduction(emit, site, axes, dtype, "max", lambda at: emit.cast(x(*at), dtype))

        def shift(at: Sequence[Expr]) -> Expr:
            top = peak(*at)
            infinite = emit.call("abs", top) == emit.const(math.inf, dtype)
            return emit.select(infinite, emit.const(0, dtype), top)

        def term(at: Sequence[Expr]) -> Expr:
            rest = {r: at[d] for d, r in kept_axes(x_rank, axes, keepdims)}
            outer = [rest.get(r, 0) for r in range(y.rank)]
            return emit.call("exp", emit.cast(x(*at), dtype) - shift(outer))

        x_rank = site.operands[0].rank
        total = reduction(emit, site, axes, dtype, "sum", term)
        return (emit.compute(y.shape, y.dtype, lambda *at: emit.call("log", total(*at)) + shift(at)),)


class ArgReduce(Op):
    """Position of the extreme entry along `axis`: the first, or the last with `select_last_index`.

    NaN is more extreme than any number.
    """

    combine: ClassVar[Combine]

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        return {**attrs, "axis": positive(attrs["axis"], operands[0].rank)}

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        (type_,) = super().infer(node, operands, count)
        axis = node.attrs["axis"]
        check(node, operands[0].shape[axis] > 0 or not type_.size, f"axis {axis} has no entry")
        return (type_,)

    @abc.abstractmethod
    def extreme(self, array: np.ndarray, axis: int) -> np.ndarray:
        """Position of the first extreme entry, in numpy."""

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x, axis = required(arrays), site.int("axis")
        if site.int("select_last_index"):
            found = x.shape[axis] - 1 - self.extreme(np.flip(x, axis), axis)
        else:
            found = self.extreme(x, axis)
        return (np.asarray(found, np.int64).reshape(site.results[0].shape),)

    def flops(self, site: Site) -> int:
        return site.operands[0].size

    def ties(self, site: Site) -> Iterator[Tie]:
        x, y = site.operands[0], site.results[0]
        for dim, to in kept_axes(x.rank, (site.int("axis"),), site.int("keepdims")):
            yield identity(x, dim, y, to)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y, axis = required(tensors), site.results[0], site.int("axis")
        size, last = x.shape[axis], site.int("select_last_index")
        peak = reduction(emit, site, (axis,), x.dtype, self.combine, lambda at: x(*at))
        absent = emit.const(0 if last else size - 1, DType.INT64)

        def position(*at: Expr) -> Expr:
            index = outer_index(at[:-1], len(x.shape), (axis,), site.int("keepdims"))
            value = x(*(index.get(d, at[-1]) for d in range(len(x.shape))))
            found = value == peak(*at[:-1])
            if x.dtype.is_float:
                found = emit.call("or", found, emit.call("isnan", value))
            return emit.select(found, emit.cast(at[-1], DType.INT64), absent)

        return (emit.reduce(y.shape, y.dtype, [size], "max" if last else "min", position),)


class ArgMax(ArgReduce):
    """Position of the largest entry."""

    name = "ArgMax"
    combine = "maximum"

    def extreme(self, array: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(np.argmax(array, axis=axis))


class ArgMin(ArgReduce):
    """Position of the smallest entry."""

    name = "ArgMin"
    combine = "minimum"

    def extreme(self, array: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(np.argmin(array, axis=axis))


class CumSum(Static):
    """Running sum along the constant `axis` (operand 1); `exclusive` leaves out the entry itself, `reverse` runs
    from the end."""

    name = "CumSum"
    static = ((1, "axis"),)

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        self.check_static(node, operands)
        axis, rank = operands[1].constant, operands[0].rank
        check(node, axis.size == 1 and -rank <= int(axis.reshape(-1)[0]) < rank, f"axis {axis} of rank {rank}")
        return super().infer(node, operands, count)

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x, axis = arrays[0], required(arrays, 1)
        return super().evaluate(site, (x, axis.reshape(())))  # onnx.reference takes no vector of one axis

    def flops(self, site: Site) -> int:
        return site.results[0].size

    def ties(self, site: Site) -> Iterator[Tie]:
        x, y = site.operands[0], site.results[0]
        yield from (identity(x, dim, y, dim) for dim in range(x.rank))

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y = required(tensors), site.results[0]
        axis = positive(int(site.operands[1].constant.reshape(-1)[0]), y.rank)
        reverse, exclusive = site.int("reverse"), site.int("exclusive")
        zero = emit.const(0, y.dtype)

        def term(*at: Expr) -> Expr:
            inner, outer = at[-1], at[axis]
            first, second = (outer, inner) if reverse else (inner, outer)
            taken = first < second if exclusive else first <= second
            return emit.select(taken, x(*at[:axis], inner, *at[axis + 1 : -1]), zero)

        return (emit.reduce(y.shape, y.dtype, [y.shape[axis]], "sum", term),)
