"""Pooling over sliding windows and over the whole plane."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from compiler.errors import VerifyError
from compiler.ir.graph import Attrs, Node, Operands, Site
from compiler.ir.op import Emitter, Expr, Op, Tensor, Tie, identity, mixed
from compiler.ir.ops.elementwise import limits, required
from compiler.ir.ops.windows import Windows, spatial_attrs
from compiler.ir.types import DType, TensorType


def channel_ties(site: Site) -> Iterator[Tie]:
    """Samples and channels pass one to one into every result [N, C, ...]."""
    for y in site.results:
        yield identity(site.operands[0], 0, y, 0)
        yield identity(site.operands[0], 1, y, 1)


class Pool(Op):
    """x [N, C, ...] -> [N, C, ...], one element per window."""

    onnx_infers = False

    cost = 1
    """Scalar operations per element of a window (docs/cost.md)."""

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        full = spatial_attrs(attrs, operands[0].shape[2:], attrs["kernel_shape"])
        return {"ceil_mode": 0, **full}

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        """The last window starts inside the input or its begin pad, which ONNX's inference forgets (ceil_mode)."""
        x, attrs, outputs = operands[0], node.attrs, []
        half = x.rank - 2
        for size, kernel, stride, dilation, low, high in zip(
            x.shape[2:],
            attrs["kernel_shape"],
            attrs["strides"],
            attrs["dilations"],
            attrs["pads"][:half],
            attrs["pads"][half:],
            strict=True,
        ):
            room = size + low + high - (kernel - 1) * dilation - 1
            windows = (-(-room // stride) if attrs["ceil_mode"] else room // stride) + 1
            beyond = attrs["ceil_mode"] and (windows - 1) * stride >= size + low
            outputs.append(windows - 1 if beyond else windows)
        if min(outputs, default=1) < 1:
            raise VerifyError(f"{self.name} '{node.ref}': a window is larger than the padded input {x.type}")
        shape = (*x.shape[:2], *outputs)
        return (TensorType(x.dtype, shape), TensorType(DType.INT64, shape))[:count]

    def flops(self, site: Site) -> int:
        return self.cost * site.results[0].size * math.prod(site.ints("kernel_shape"))

    def ties(self, site: Site) -> Iterator[Tie]:
        return channel_ties(site)


class MaxPool(Pool):
    """Largest element of each window, and optionally its flat position in x (`Indices`)."""

    name = "MaxPool"

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        return {"storage_order": 0, **super().normalise(attrs, operands)}

    def ties(self, site: Site) -> Iterator[Tie]:
        for tie in channel_ties(site):
            # flat positions change with every channel removed before them
            yield tie if len(site.results) == 1 else mixed(tie.a, tie.b, tie.index)

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x, windows = required(arrays), Windows.of(site)
        best = np.full(site.results[0].shape, limits(site.results[0].dtype)[0], x.dtype)
        for view in windows.views(x, limits(site.results[0].dtype)[0]):
            best = np.where((view > best) | (view != view), view, best)
        if len(site.results) == 1:
            return (best,)
        winner = np.full(best.shape, -1)
        real = windows.views(np.ones(x.shape, bool), False)
        for number, (view, inside) in enumerate(zip(windows.views(x, 0), real, strict=True)):
            winner = np.where((winner < 0) & inside & ((view == best) | (view != view)), number, winner)
        at = np.indices(best.shape)
        tap = np.unravel_index(np.maximum(winner, 0), windows.kernel)  # any, of a window beside the input
        where = [
            p * s + t * d - low
            for p, s, t, d, low in zip(at[2:], windows.strides, tap, windows.dilations, windows.low, strict=True)
        ]
        return best, self._flat(site, [at[0], at[1], *where])

    def _flat(self, site: Site, at: Sequence[Expr]) -> Expr:
        """Position of element `at` (n, c, spatial...) in x; storage_order 1 counts the spatial axes backwards."""
        x = site.operands[0]
        flat = at[0] * x.shape[1] + at[1]
        spatial = list(zip(at[2:], x.shape[2:], strict=True))
        if not site.int("storage_order"):
            for index, size in spatial:
                flat = flat * size + index
            return flat
        plane: Expr = 0
        for index, size in reversed(spatial):
            plane = plane * size + index
        return flat * math.prod(x.shape[2:]) + plane

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y, windows = required(tensors), site.results[0], Windows.of(site)
        n, low = len(windows.kernel), emit.const(limits(y.dtype)[0], y.dtype)

        def element(batch: Expr, c: Expr, *rest: Expr) -> Expr:
            return windows.read(emit, x, (batch, c), windows.position(rest[:n], rest[n:]), low)

        best = emit.reduce(y.shape, y.dtype, windows.kernel, "max", element)
        return (best,) if len(site.results) == 1 else (best, self._indices(emit, site, x, best))

    def _indices(self, emit: Emitter, site: Site, x: Tensor, best: Tensor) -> Tensor:
        windows, shape = Windows.of(site), site.results[0].shape
        n, none = len(windows.kernel), emit.const(windows.taps, DType.INT64)

        def candidate(batch: Expr, c: Expr, *rest: Expr) -> Expr:
            at, tap = rest[:n], rest[n:]
            number: Expr = 0
            for t, k in zip(tap, windows.kernel, strict=True):
                number = number * k + t
            where = windows.position(at, tap)
            number = emit.cast(number, DType.INT64)
            hit = emit.select(x(batch, c, *where) == best(batch, c, *at), number, none)
            inside = windows.inside(emit, where)
            return hit if inside is None else emit.select(inside, hit, none)

        first = emit.reduce(shape, DType.INT64, windows.kernel, "min", candidate)

        def position(batch: Expr, c: Expr, *at: Expr) -> Expr:
            number: Expr = first(batch, c, *at)
            tap: list[Expr] = []
            for k in reversed(windows.kernel):
                tap.insert(0, number % k)
                number = number // k
            return emit.cast(self._flat(site, [batch, c, *windows.position(at, tap)]), DType.INT64)

        return emit.compute(shape, DType.INT64, position)


class AveragePool(Pool):
    """Mean of each window, over the taps inside the input, or inside the padded input (`count_include_pad`)."""

    name = "AveragePool"

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        return {"count_include_pad": 0, **super().normalise(attrs, operands)}

    def divisors(self, site: Site) -> np.ndarray:
        """Number of elements each window averages, over the spatial axes of the result."""
        windows, pads = Windows.of(site), site.ints("pads")
        if site.int("count_include_pad"):
            # windows that hang over the end pad (ceil_mode) count only what is inside the pad
            half = len(windows.low)
            padded = tuple(
                n + low + high for n, low, high in zip(windows.inputs, windows.low, pads[half:], strict=True)
            )
            windows = Windows(
                padded, windows.outputs, windows.kernel, windows.strides, windows.dilations, (0,) * half
            )
        total = np.ones((), np.int64)
        for count in windows.counts():
            total = np.multiply.outer(total, count)
        return np.maximum(total, 1)  # of a window that lies beside the input, the mean of nothing is zero

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x = required(arrays)
        total = np.zeros(site.results[0].shape, x.dtype)
        for view in Windows.of(site).views(x, 0):
            total += view
        return (total / self.divisors(site).astype(x.dtype),)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y, windows = required(tensors), site.results[0], Windows.of(site)
        n, zero = len(windows.kernel), emit.const(0, y.dtype)

        def element(batch: Expr, c: Expr, *rest: Expr) -> Expr:
            return windows.read(emit, x, (batch, c), windows.position(rest[:n], rest[n:]), zero)

        total = emit.reduce(y.shape, y.dtype, windows.kernel, "sum", element)
        counts = self.divisors(site).astype(y.dtype.numpy)
        if (counts == counts.flat[0]).all():
            divisor = emit.const(float(counts.flat[0]), y.dtype)
            return (emit.compute(y.shape, y.dtype, lambda *at: total(*at) / divisor),)
        table = emit.constant(counts)
        return (emit.compute(y.shape, y.dtype, lambda *at: total(*at) / table(*at[2:])),)


def power(emit: Emitter, value: Expr, p: int) -> Expr:
    """|value| ** p for a positive integer p, by multiplication."""
    if p == 2:
        return value * value
    base = emit.call("abs", value)
    total = base
    for _ in range(p - 1):
        total = total * base
    return total


def root(emit: Emitter, value: Expr, p: int, dtype: DType) -> Expr:
    """value ** (1 / p)."""
    if p == 1:
        return value
    return emit.call("sqrt", value) if p == 2 else emit.call("pow", value, emit.const(1 / p, dtype))


class LpPool(Pool):
    """(sum |x| ** p) ** (1 / p) of each window."""

    name = "LpPool"
    cost = 3

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        return {"p": 2, **super().normalise(attrs, operands)}

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x, p = required(arrays), site.int("p")
        total = np.zeros(site.results[0].shape, x.dtype)
        for view in Windows.of(site).views(x, 0):
            total += np.abs(view) ** p
        return (total ** np.asarray(1 / p, x.dtype),)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y, windows = required(tensors), site.results[0], Windows.of(site)
        n, zero, p = len(windows.kernel), emit.const(0, y.dtype), site.int("p")

        def element(batch: Expr, c: Expr, *rest: Expr) -> Expr:
            value = windows.read(emit, x, (batch, c), windows.position(rest[:n], rest[n:]), zero)
            return power(emit, value, p)

        total = emit.reduce(y.shape, y.dtype, windows.kernel, "sum", element)
        return (emit.compute(y.shape, y.dtype, lambda *at: root(emit, total(*at), p, y.dtype)),)


class GlobalPool(Op):
    """x [N, C, ...] -> [N, C, 1, ...]: one element per plane."""

    cost = 1
    """Scalar operations per input element (docs/cost.md)."""

    def flops(self, site: Site) -> int:
        return self.cost * site.operands[0].size

    def ties(self, site: Site) -> Iterator[Tie]:
        return channel_ties(site)


class GlobalMaxPool(GlobalPool):
    """Largest element of each plane."""

    name = "GlobalMaxPool"

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x = required(arrays)
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y = required(tensors), site.results[0]
        plane = len(x.shape) - 2

        def element(n: Expr, c: Expr, *rest: Expr) -> Expr:
            return x(n, c, *rest[plane:])

        return (emit.reduce(y.shape, y.dtype, x.shape[2:], "max", element),)


class GlobalAveragePool(GlobalPool):
    """Mean of each plane."""

    name = "GlobalAveragePool"

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x = required(arrays)
        return (x.mean(axis=tuple(range(2, x.ndim)), keepdims=True, dtype=x.dtype),)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y = required(tensors), site.results[0]
        plane = len(x.shape) - 2

        def element(n: Expr, c: Expr, *rest: Expr) -> Expr:
            return x(n, c, *rest[plane:])

        total = emit.reduce(y.shape, y.dtype, x.shape[2:], "sum", element)
        count = emit.const(math.prod(x.shape[2:]), y.dtype)
        return (emit.compute(y.shape, y.dtype, lambda *at: total(*at) / count),)


class GlobalLpPool(GlobalPool):
    """(sum |x| ** p) ** (1 / p) of each plane."""

    name = "GlobalLpPool"
    cost = 3

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        return {"p": 2, **attrs}

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x, p = required(arrays), site.int("p")
        total = (np.abs(x) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True, dtype=x.dtype)
        return (total ** np.asarray(1 / p, x.dtype),)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y, p = required(tensors), site.results[0], site.int("p")
        plane = len(x.shape) - 2

        def element(n: Expr, c: Expr, *rest: Expr) -> Expr:
            return power(emit, x(n, c, *rest[plane:]), p)

        total = emit.reduce(y.shape, y.dtype, x.shape[2:], "sum", element)
        return (emit.compute(y.shape, y.dtype, lambda *at: root(emit, total(*at), p, y.dtype)),)
