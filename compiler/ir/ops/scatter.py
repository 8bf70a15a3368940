"""Writing at computed positions: ScatterND, ScatterElements."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from compiler.ir.graph import Node, Operands, Site
from compiler.ir.op import Combine, Emitter, Expr, Op, Tensor, Tie, identity
from compiler.ir.ops.elementwise import check, check_choice, limits, required
from compiler.ir.ops.index import AxisOp, check_elements, check_range, clamped, positions, wrapped
from compiler.ir.types import DType, TensorType


def combined(emit: Emitter, how: str, old: Expr, new: Expr) -> Expr:
    """One update of an element."""
    return emit.call(how if how in ("add", "mul") else f"{how}imum", old, new)


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
