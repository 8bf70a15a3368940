"""Parts of a tensor: Slice, Split, Compress, ReverseSequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from compiler.errors import UnsupportedModelError
from compiler.ir.graph import Attrs, Node, Operands, Site
from compiler.ir.op import Emitter, Expr, Kept, Rebuilt, Tensor, Tie, entrywise, identity
from compiler.ir.ops.elementwise import Movement, Static, check, positive, required
from compiler.ir.ops.shape import unravel
from compiler.ir.types import Axis, DType, TensorType


def bounds(start: int, end: int, step: int, size: int) -> range:
    """Positions a slice takes of an axis (ONNX Slice: bounds are clamped, negative ones count from the end)."""
    first, last = positive(start, size), positive(end, size)
    if step > 0:
        return range(min(max(first, 0), size), min(max(last, 0), size), step)
    return range(min(max(first, 0), size - 1), min(max(last, -1), size - 1), step)


def _strided(taken: range) -> bool:
    return abs(taken.step) != 1 and len(taken) > 1


def _run(ascending: np.ndarray, step: int) -> range:
    """The slice that takes these adjacent positions, in the direction of `step`."""
    if not ascending.size:
        return range(0, 0, step)
    low, high = int(ascending[0]), int(ascending[-1])
    return range(low, high + 1, step) if step > 0 else range(high, low - 1, step)


class Slice(Static, Movement):
    """x[starts:ends:steps] along `axes`; operands 1 to 4 are constant."""

    name = "Slice"
    static = ((1, "starts"), (2, "ends"), (3, "axes"), (4, "steps"))

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        self.check_static(node, operands)
        taken = self._taken(operands)
        shape = [len(taken[d]) if d in taken else size for d, size in enumerate(operands[0].shape)]
        return (TensorType(operands[0].dtype, tuple(shape)),)

    def ties(self, site: Site) -> Iterator[Tie]:
        x, y, taken = site.operands[0], site.results[0], self._taken(site.operands)
        for dim in range(x.rank):
            positions = taken.get(dim, range(x.shape[dim]))
            if not _strided(positions):  # what is left of a stride is no slice
                yield entrywise(x.axis(dim), y.axis(dim), np.array(positions))

    def rebuild(self, site: Site, kept: Kept) -> Rebuilt:
        x, taken = site.operands[0], self._taken(site.operands)
        spelled = []
        for dim, old in taken.items():
            left = kept.of(x, dim)
            new = old if _strided(old) else _run(np.flatnonzero(np.isin(left, old)), old.step)
            spelled.append((new.start, new.stop if new.stop >= 0 else -len(left) - 1))
        # in the type they had: axes and steps, which stay, have the same
        starts, ends = np.array(spelled, site.operands[1].dtype.numpy).reshape(-1, 2).T
        return Rebuilt(site.attrs, {1: starts.copy(), 2: ends.copy()})

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x = required(arrays)
        for dim, taken in self._taken(site.operands).items():  # onnx.reference clamps bounds as numpy does
            x = np.take(x, np.array(taken, np.int64), axis=dim)
        return (x,)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y, taken = required(tensors), site.results[0], self._taken(site.operands)

        def element(*at: Expr) -> Expr:
            return x(*(taken[d].start + i * taken[d].step if d in taken else i for d, i in enumerate(at)))

        return (emit.compute(y.shape, y.dtype, element),)

    def _taken(self, operands: Operands) -> dict[int, range]:
        """Positions taken of every axis that is sliced, in the order of the operands."""
        starts, ends = operands[1].constant, operands[2].constant
        axes, steps, shape = operands.optional(3), operands.optional(4), operands[0].shape
        dims = range(len(starts)) if axes is None else [positive(int(a), len(shape)) for a in axes.constant]
        strides = np.ones_like(starts) if steps is None else steps.constant
        found = zip(dims, starts, ends, strides, strict=True)
        return {d: bounds(int(b), int(e), int(s), shape[d]) for d, b, e, s in found}


class Split(Static, Movement):
    """x cut along `axis` into parts of the constant sizes of operand 1, or into `num_outputs` equal parts."""

    name = "Split"
    static = ((1, "split"),)

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        return {**attrs, "axis": positive(attrs.get("axis", 0), operands[0].rank)}

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        self.check_static(node, operands)
        axis, x, sizes = node.attrs["axis"], operands[0], operands.optional(1)
        if sizes is not None:
            parts = [int(s) for s in sizes.constant]
        else:
            chunk = -(-x.shape[axis] // count)
            parts = [min(chunk, x.shape[axis] - i * chunk) for i in range(count)]
        if len(parts) != count or sum(parts) != x.shape[axis] or min(parts) < 0:
            raise UnsupportedModelError(
                f"Split '{node.ref}': axis {axis} has {x.shape[axis]} entries and cannot be cut into {parts} "
                f"for {count} results; correct the split sizes of the model"
            )
        return tuple(TensorType(x.dtype, (*x.shape[:axis], n, *x.shape[axis + 1 :])) for n in parts)

    def ties(self, site: Site) -> Iterator[Tie]:
        x, axis, offset = site.operands[0], site.int("axis"), 0
        for y in site.results:
            yield from (identity(x, dim, y, dim) for dim in range(x.rank) if dim != axis)
            yield entrywise(x.axis(axis), y.axis(axis), offset + np.arange(y.shape[axis]))
            offset += y.shape[axis]
        if site.operands.optional(1) is None:  # equal parts have to stay equal
            slot = np.arange(x.shape[axis]) % site.results[0].shape[axis]
            yield entrywise(Axis(site.node.ref, "slot"), x.axis(axis), slot)

    def rebuild(self, site: Site, kept: Kept) -> Rebuilt:
        axis = site.int("axis")
        sizes = np.array([len(kept.of(y, axis)) for y in site.results], np.int64)
        if site.operands.optional(1) is not None:
            return Rebuilt(site.attrs, {1: sizes})
        return Rebuilt(site.attrs)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, axis, offset, parts = required(tensors), site.int("axis"), 0, []
        for y in site.results:

            def element(*at: Expr, low: int = offset) -> Expr:
                return x(*at[:axis], at[axis] + low, *at[axis + 1 :])

            parts.append(emit.compute(y.shape, y.dtype, element))
            offset += y.shape[axis]
        return tuple(parts)


class Compress(Static, Movement):
    """Entries of `axis` where the constant condition (operand 1) holds; without `axis`, of the flattened x."""

    name = "Compress"
    static = ((1, "condition"),)

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        self.check_static(node, operands)
        x, axis, taken = operands[0], node.attrs.get("axis"), np.flatnonzero(operands[1].constant)
        if axis is None:
            return (TensorType(x.dtype, (len(taken),)),)
        axis = positive(axis, x.rank)
        return (TensorType(x.dtype, (*x.shape[:axis], len(taken), *x.shape[axis + 1 :])),)

    def ties(self, site: Site) -> Iterator[Tie]:
        x, y, axis = site.operands[0], site.results[0], self._axis(site)
        if axis is not None:
            yield from (identity(x, dim, y, dim) for dim in range(x.rank) if dim != axis)
            yield entrywise(x.axis(axis), y.axis(axis), np.flatnonzero(site.operands[1].constant))

    def rebuild(self, site: Site, kept: Kept) -> Rebuilt:
        x, axis, condition = site.operands[0], self._axis(site), site.operands[1].constant
        if axis is None:
            return Rebuilt(site.attrs)
        taken = np.isin(np.arange(x.shape[axis]), np.flatnonzero(condition))
        return Rebuilt(site.attrs, {1: taken[kept.of(x, axis)]})

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y, axis = required(tensors), site.results[0], self._axis(site)
        table = emit.constant(np.flatnonzero(site.operands[1].constant).astype(np.int32))
        if axis is None:
            return (emit.compute(y.shape, y.dtype, lambda i: x(*unravel(table(i), x.shape))),)

        def element(*at: Expr) -> Expr:
            return x(*at[:axis], table(at[axis]), *at[axis + 1 :])

        return (emit.compute(y.shape, y.dtype, element),)

    def _axis(self, site: Site) -> int | None:
        axis = site.attrs.get("axis")
        return None if axis is None else positive(axis, site.operands[0].rank)


class ReverseSequence(Movement):
    """The first `sequence_lens` (operand 1, one per batch entry) entries of the time axis in reverse order.

    A length beyond the axis counts as all of it, so that no input can make the compiled code read outside.
    """

    name = "ReverseSequence"

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        axes = {node.attrs["batch_axis"], node.attrs["time_axis"]}
        check(node, axes == {0, 1}, f"batch_axis and time_axis are {sorted(axes)}; they must be 0 and 1")
        batch, lengths = operands[0].shape[node.attrs["batch_axis"]], operands[1].shape
        check(node, lengths == (batch,), f"sequence_lens has shape {lengths}, the batch {batch} entries")
        return super().infer(node, operands, count)

    def ties(self, site: Site) -> Iterator[Tie]:
        x, y, batch = site.operands[0], site.results[0], site.int("batch_axis")
        yield from (identity(x, dim, y, dim) for dim in range(x.rank) if dim != site.int("time_axis"))
        yield identity(x, batch, site.operands[1], 0)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, lengths, y = required(tensors), required(tensors, 1), site.results[0]
        batch, time = site.int("batch_axis"), site.int("time_axis")
        whole = emit.const(x.shape[time], DType.INT64)

        def element(*at: Expr) -> Expr:
            step = emit.cast(at[time], DType.INT64)
            length = emit.call("min", lengths(at[batch]), whole)
            source = list(at)
            source[time] = emit.select(step < length, length - 1 - step, step)
            return x(*source)

        return (emit.compute(y.shape, y.dtype, element),)
