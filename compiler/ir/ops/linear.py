"""Matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from compiler.ir.graph import Attrs, Operands, Site
from compiler.ir.op import Emitter, Expr, MacOp, Tensor, Tie, entrywise, identity
from compiler.ir.ops.elementwise import aligned, broadcast_ties, required
from compiler.ir.types import Axis


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
            return emit.call("mul", left, b(j, k) if site.int("transB") else b(k, j))

        total = emit.reduce(y.shape, y.dtype, (depth,), "sum", product)
        alpha, beta = site.float("alpha"), site.float("beta")

        def element(*at: Expr) -> Expr:
            value = total(*at) if alpha == 1 else emit.call("mul", total(*at), emit.const(alpha, y.dtype))
            if addend is None:
                return value
            extra = aligned(addend, at)
            return emit.call(
                "add", value, extra if beta == 1 else emit.call("mul", extra, emit.const(beta, y.dtype))
            )

        if alpha == 1 and addend is None:
            return (total,)
        return (emit.compute(y.shape, y.dtype, element),)


class MatMul(MacOp):
    """numpy.matmul: [..., M, K] x [..., K, N], leading axes broadcast; a 1-D operand is a row or a column."""

    name = "MatMul"

    def macs(self, site: Site) -> int:
        return site.results[0].size * site.operands[0].shape[-1]

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        a, b = required(arrays), required(arrays, 1)
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
            return emit.call("mul", _batched(a, batch, [*row, k]), _batched(b, batch, [k, *rest]))

        return (emit.reduce(y.shape, y.dtype, (a.shape[-1],), "sum", product),)


def _batched(tensor: Tensor, batch: tuple[Expr, ...], last: list[Expr]) -> Expr:
    """Element of `tensor` whose leading axes are broadcast against the index `batch`."""
    count = max(len(tensor.shape) - 2, 0)
    sizes = tensor.shape[:count]
    own = [0 if n == 1 else i for n, i in zip(sizes, batch[len(batch) - count :], strict=True)]
    return tensor(*own, *last)


Label = str
"""A dimension of an einsum: a letter, or "...k" for the k-th dimension under the ellipsis, from the right."""


def einsum_labels(equation: str, ranks: Sequence[int]) -> tuple[list[list[Label]], list[Label]]:
    """Labels of the operands and of the result. ValueError if a term does not fit its operand's rank.

    Without "->" the result has the ellipsis first, then the letters used once, in alphabetical order.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise ValueError(f"'{equation}' has {len(terms)} terms for {len(ranks)} operands")
    operands = [_term_labels(term, rank) for term, rank in zip(terms, ranks, strict=True)]
    hidden = max((sum(x.startswith("...") for x in labels) for labels in operands), default=0)
    under = [f"...{k}" for k in reversed(range(hidden))]
    if not arrow:
        letters = left.replace(",", "").replace("...", "")
        return operands, [*under, *sorted(x for x in letters if letters.count(x) == 1)]
    before, dots, after = right.partition("...")
    return operands, [*before, *(under if dots else []), *after]


def _term_labels(term: str, rank: int) -> list[Label]:
    before, dots, after = term.partition("...")
    covered = rank - len(before) - len(after)
    if covered < 0 or (covered and not dots):
        raise ValueError(f"term '{term}' does not fit an operand of rank {rank}")
    return [*before, *(f"...{k}" for k in reversed(range(covered))), *after]


class Einsum(MacOp):
    """Sum of products over labelled dimensions; several operands are contracted from left to right."""

    name = "Einsum"

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        return {"equation": attrs["equation"].replace(" ", "")}

    def labels(self, site: Site) -> tuple[list[list[Label]], list[Label]]:
        """Labels of the operands and of the result."""
        return einsum_labels(site.str("equation"), [v.rank for v in site.operands[:]])

    def extents(self, site: Site) -> dict[Label, int]:
        """Size of every label (a dimension of 1 broadcasts)."""
        sizes: dict[Label, int] = {}
        for labels, value in zip(self.labels(site)[0], site.operands[:], strict=True):
            for label, size in zip(labels, value.shape, strict=True):
                sizes[label] = max(sizes.get(label, 1), size)
        return sizes

    def contractions(self, site: Site) -> list[tuple[list[Label], list[Label]]]:
        """For every step (kept labels, summed labels): operand 0 alone if it is the only one, else 0 with 1, ..."""
        operands, result = self.labels(site)
        steps, have = [], list(dict.fromkeys(operands[0]))
        for number in range(1, max(len(operands), 2)):
            have = list(dict.fromkeys([*have, *(operands[number] if number < len(operands) else [])]))
            needed = {*result, *(x for later in operands[number + 1 :] for x in later)}
            last = number + 1 >= len(operands)
            kept = result if last else [x for x in have if x in needed]
            steps.append((kept, [x for x in have if x not in kept]))
            have = kept
        return steps

    def macs(self, site: Site) -> int:
        if len(site.operands) == 1:
            return 0
        sizes = self.extents(site)
        return sum(math.prod(sizes[x] for x in (*kept, *summed)) for kept, summed in self.contractions(site))

    def products(self, site: Site, index: int) -> int:
        return super().products(site, index) if len(site.operands) == 2 else 0

    def flops(self, site: Site) -> int:
        alone = len(site.operands) == 1 and site.operands[0].size > site.results[0].size
        return site.operands[0].size if alone else 2 * self.macs(site)

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        y = site.results[0]
        factors = [a for a in arrays if a is not None]
        return (np.asarray(np.einsum(site.str("equation"), *factors, optimize="greedy"), y.dtype.numpy),)

    def ties(self, site: Site) -> Iterator[Tie]:
        operands, result = self.labels(site)
        sizes = self.extents(site)
        first: dict[Label, Axis] = {}
        for labels, value in zip([*operands, result], [*site.operands[:], site.results[0]], strict=True):
            for dim, label in enumerate(labels):
                if value.shape[dim] != sizes[label]:
                    continue  # broadcast
                if label in first:
                    yield entrywise(first[label], value.axis(dim), np.arange(sizes[label]))
                first.setdefault(label, value.axis(dim))

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        operands, _ = self.labels(site)
        sizes, kind = self.extents(site), site.results[0].dtype
        have, labels = required(tensors), operands[0]
        for number, (kept, summed) in enumerate(self.contractions(site), start=1):
            factors = [(have, labels)]
            if number < len(operands):
                factors.append((required(tensors, number), operands[number]))
            shape, inner = [sizes[x] for x in kept], [sizes[x] for x in summed]
            have = emit.reduce(shape, kind, inner, "sum", _product(emit, factors, [*kept, *summed]))
            labels = kept
        return (have,)


def _product(
    emit: Emitter, factors: Sequence[tuple[Tensor, list[Label]]], order: Sequence[Label]
) -> Callable[..., Expr]:
    """Product of the factors at an index given in the label order `order`."""

    def element(*at: Expr) -> Expr:
        index, total = dict(zip(order, at, strict=True)), None
        for tensor, labels in factors:
            own = [0 if n == 1 else index[x] for x, n in zip(labels, tensor.shape, strict=True)]
            value = tensor(*own)
            total = value if total is None else emit.call("mul", total, value)
        return total

    return element
