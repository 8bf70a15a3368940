"""Matrix products."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from compiler.ir.graph import Attrs, Operands, Site
from compiler.ir.op import Emitter, Expr, MacOp, Tensor, Tie, identity
from compiler.ir.ops.elementwise import aligned, broadcast_ties, required


class Gemm(MacOp):
    """alpha * A' B' + beta * C for A [M, K], B [K, N] (each stored transposed if transA / transB), C to [M, N]."""

    name = "Gemm"

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        return {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0, **attrs}

    def macs(self, site: Site) -> int:
        return site.results[0].size * site.operands[0].shape[0 if site.int("transA") else 1]

    def ties(self, site: Site) -> Iterator[Tie]:
        a, b, y = site.operands[0], site.operands[1], site.results[0]
        flip_a, flip_b = site.int("transA"), site.int("transB")
        yield identity(a, 1 - flip_a, b, flip_b)
        yield identity(a, flip_a, y, 0)
        yield identity(b, 1 - flip_b, y, 1)
        addend = site.operands.optional(2)
        if addend is not None:
            yield from broadcast_ties(addend, y)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        a, b, y = required(tensors), required(tensors, 1), site.results[0]
        addend = tensors[2] if len(tensors) > 2 else None
        depth = site.operands[0].shape[0 if site.int("transA") else 1]

        def product(i: Expr, j: Expr, k: Expr) -> Expr:
            left = a(k, i) if site.int("transA") else a(i, k)
            return left * (b(j, k) if site.int("transB") else b(k, j))

        total = emit.reduce(y.shape, y.dtype, (depth,), "sum", product)
        alpha, beta = site.float("alpha"), site.float("beta")

        def element(*at: Expr) -> Expr:
            value = total(*at) if alpha == 1 else total(*at) * emit.const(alpha, y.dtype)
            if addend is None:
                return value
            extra = aligned(addend, at)
            return value + (extra if beta == 1 else extra * emit.const(beta, y.dtype))

        if alpha == 1 and addend is None:
            return (total,)
        return (emit.compute(y.shape, y.dtype, element),)


class MatMul(MacOp):
    """numpy.matmul: [..., M, K] x [..., K, N], leading axes broadcast; a 1-D operand is a row or a column."""

    name = "MatMul"

    def macs(self, site: Site) -> int:
        return site.results[0].size * site.operands[0].shape[-1]

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        a, b = arrays[0], arrays[1]
        assert a is not None and b is not None
        return (np.asarray(np.matmul(a, b)),)

    def ties(self, site: Site) -> Iterator[Tie]:
        a, b, y = site.operands[0], site.operands[1], site.results[0]
        yield identity(a, -1, b, max(b.rank - 2, 0))
        has_row, has_column = a.rank > 1, b.rank > 1
        if has_row:
            yield identity(a, a.rank - 2, y, y.rank - 1 - has_column)
        if has_column:
            yield identity(b, b.rank - 1, y, y.rank - 1)
        lead = y.rank - has_row - has_column
        for operand in (a, b):
            batch = operand.rank - 2
            for dim in range(max(batch, 0)):
                if operand.shape[dim] > 1:
                    yield identity(operand, dim, y, lead - batch + dim)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        a, b, y = required(tensors), required(tensors, 1), site.results[0]
        has_row, has_column = len(a.shape) > 1, len(b.shape) > 1
        lead = len(y.shape) - has_row - has_column

        def product(*index: Expr) -> Expr:
            batch, rest, k = index[:lead], list(index[lead:-1]), index[-1]
            row = [rest.pop(0)] if has_row else []
            return _batched(a, batch, [*row, k]) * _batched(b, batch, [k, *rest])

        return (emit.reduce(y.shape, y.dtype, (a.shape[-1],), "sum", product),)


def _batched(tensor: Tensor, batch: tuple[Expr, ...], last: list[Expr]) -> Expr:
    """Element of `tensor` whose leading axes are broadcast against the index `batch`."""
    count = max(len(tensor.shape) - 2, 0)
    sizes = tensor.shape[:count]
    own = [0 if n == 1 else i for n, i in zip(sizes, batch[len(batch) - count :], strict=True)]
    return tensor(*own, *last)
