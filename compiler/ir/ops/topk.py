"""The largest or smallest entries of an axis: TopK."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from compiler.ir.graph import Node, Operands, Site
from compiler.ir.op import Emitter, Expr, Tensor, Tie, identity
from compiler.ir.ops.elementwise import Static, check, required
from compiler.ir.ops.index import INDEX, AxisOp
from compiler.ir.types import DType, TensorType


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
        x, axis = required(arrays), site.int("axis")
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
