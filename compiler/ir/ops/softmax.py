"""Softmax and its relatives: one axis competes, all others pass through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from compiler.ir.graph import Attrs, Operands, Site
from compiler.ir.op import Emitter, Expr, Op, Tensor, Tie, identity, mixed
from compiler.ir.ops.elementwise import required
from compiler.ir.types import DType


def mixing_ties(site: Site, axes: Sequence[int]) -> Iterator[Tie]:
    """Operand 0 and result 0 have one shape: entries influence each other along `axes`, nowhere else."""
    x, y = site.operands[0], site.results[0]
    for dim in range(x.rank):
        tie = identity(x, dim, y, dim)
        yield mixed(tie.a, tie.b, tie.index) if dim in axes else tie


def without(at: Sequence[Expr], axis: int) -> tuple[Expr, ...]:
    """The index `at` without position `axis`."""
    return (*at[:axis], *at[axis + 1 :])


def along(
    emit: Emitter, shape: Sequence[int], dtype: DType, axis: int, kind: str, body: Callable[..., Expr]
) -> Tensor:
    """Reduction of `body(*index)` over `axis` of `shape`; the result lacks that axis."""

    def element(*at: Expr) -> Expr:
        return body(*at[:axis], at[-1], *at[axis:-1])

    return emit.reduce(without(shape, axis), dtype, (shape[axis],), kind, element)  # type: ignore[arg-type]


class Competing(Op):
    """An operator along one axis, `axis` (counted from the front after normalisation)."""

    cost = 1
    """Scalar operations per element (docs/cost.md)."""

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        return {**attrs, "axis": attrs.get("axis", -1) % max(operands[0].rank, 1)}

    def flops(self, site: Site) -> int:
        return self.cost * site.results[0].size

    def ties(self, site: Site) -> Iterator[Tie]:
        return mixing_ties(site, [site.int("axis")])

    def peak(self, emit: Emitter, site: Site, x: Tensor) -> Tensor:
        """Largest element along the axis."""
        y = site.results[0]
        return along(emit, y.shape, y.dtype, site.int("axis"), "max", x)


class Softmax(Competing):
    """exp(x) / sum exp(x) along the axis, shifted by the largest element."""

    name = "Softmax"
    cost = 5

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y, axis = required(tensors), site.results[0], site.int("axis")
        peak = self.peak(emit, site, x)

        def shifted(*at: Expr) -> Expr:
            return emit.call("exp", x(*at) - peak(*without(at, axis)))

        power = emit.compute(y.shape, y.dtype, shifted)
        total = along(emit, y.shape, y.dtype, axis, "sum", power)
        return (emit.compute(y.shape, y.dtype, lambda *at: power(*at) / total(*without(at, axis))),)


class LogSoftmax(Competing):
    """x - log sum exp(x) along the axis, shifted by the largest element."""

    name = "LogSoftmax"
    cost = 5

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x, axis = required(arrays), site.int("axis")
        with np.errstate(invalid="ignore"):  # infinities
            wide = x.astype(np.float64)  # onnx.reference takes the logarithm of a softmax, which may be zero
            shifted = wide - wide.max(axis=axis, keepdims=True, initial=-np.inf)
            total = np.exp(shifted).sum(axis=axis, keepdims=True)
        return ((shifted - np.log(total)).astype(x.dtype),)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y, axis = required(tensors), site.results[0], site.int("axis")
        peak = self.peak(emit, site, x)

        def shifted(*at: Expr) -> Expr:
            return x(*at) - peak(*without(at, axis))

        total = along(emit, y.shape, y.dtype, axis, "sum", lambda *at: emit.call("exp", shifted(*at)))

        def element(*at: Expr) -> Expr:
            return shifted(*at) - emit.call("log", total(*without(at, axis)))

        return (emit.compute(y.shape, y.dtype, element),)


class Hardmax(Competing):
    """1 at the first largest element along the axis, 0 elsewhere. NaN is larger than any number."""

    name = "Hardmax"

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y, axis = required(tensors), site.results[0], site.int("axis")
        peak, none = along(emit, y.shape, y.dtype, axis, "maximum", x), emit.const(y.shape[axis], DType.INT64)

        def candidate(*at: Expr) -> Expr:
            value = x(*at)
            largest = emit.call("or", value == peak(*without(at, axis)), emit.call("isnan", value))
            return emit.select(largest, emit.cast(at[axis], DType.INT64), none)

        first = along(emit, y.shape, DType.INT64, axis, "min", candidate)

        def element(*at: Expr) -> Expr:
            hit = emit.cast(at[axis], DType.INT64) == first(*without(at, axis))
            return emit.select(hit, emit.const(1, y.dtype), emit.const(0, y.dtype))

        return (emit.compute(y.shape, y.dtype, element),)
