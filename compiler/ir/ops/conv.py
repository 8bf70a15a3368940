"""Convolution and transposed convolution in any number of spatial dimensions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from compiler.ir.graph import Attrs, Operands, Site
from compiler.ir.op import Emitter, Expr, Kept, MacOp, Rebuilt, Tensor, Tie, entrywise
from compiler.ir.ops.elementwise import required
from compiler.ir.ops.windows import Windows, spatial_attrs, split_pads
from compiler.ir.types import Axis


class Convolving(MacOp):
    """What a convolution and its transpose share: grouped channels, bias, attributes.

    Input channels are numbered group * columns + column, output channels group * rows + row. The weight has one
    flat axis (0) and one that counts within a group (1): [group * rows, columns, ...] for a convolution,
    [group * columns, rows, ...] for the transpose.
    """

    transposed = False

    def channels(self, site: Site) -> tuple[int, int, int]:
        """(groups, input channels per group, output channels per group)."""
        group, (flat, each) = site.int("group"), site.operands[1].shape[:2]
        return (group, flat // group, each) if self.transposed else (group, each, flat // group)

    def whole_groups(self, site: Site) -> bool:
        """Whether channels come and go with their group, because a group has one input or one output channel."""
        group, columns, rows = self.channels(site)
        return group > 1 and min(columns, rows) == 1

    def ties(self, site: Site) -> Iterator[Tie]:
        x, weight, y, bias = site.operands[0], site.operands[1], site.results[0], site.operands.optional(2)
        group, columns, rows = self.channels(site)
        yield entrywise(x.axis(0), y.axis(0), np.arange(y.shape[0]))
        inputs, outputs = [x.axis(1)], [y.axis(1)]
        (inputs if self.transposed else outputs).append(weight.axis(0))
        if bias is not None:
            outputs.append(bias.axis(0))
        if self.whole_groups(site):
            parent = Axis(site.node.ref, "group")
            yield from (entrywise(parent, a, np.arange(group * columns) // columns) for a in inputs)
            yield from (entrywise(parent, a, np.arange(group * rows) // rows) for a in outputs)
            return
        within = "row" if self.transposed else "column"
        for name, axes, size in (("column", inputs, columns), ("row", outputs, rows)):
            # each group must keep the same slots, or `group` could not describe what remains
            parent = weight.axis(1) if name == within else Axis(site.node.ref, name)
            yield from (entrywise(parent, a, np.arange(group * size) % size) for a in axes)

    def rebuild(self, site: Site, kept: Kept) -> Rebuilt:
        group, columns, _ = self.channels(site)
        if self.whole_groups(site):
            group = len(kept.of(site.operands[0], 1)) // columns
        return Rebuilt({**site.attrs, "group": group})


def add_bias(emit: Emitter, site: Site, total: Tensor, bias: Tensor | None) -> Tensor:
    """`total` [N, O, ...] plus bias [O] where there is one."""
    if bias is None:
        return total
    y = site.results[0]
    return emit.compute(y.shape, y.dtype, lambda n, o, *at: total(n, o, *at) + bias(o))


def optional(tensors: Sequence[Tensor | None], index: int) -> Tensor | None:
    """The lowered operand at `index`, if it was given."""
    return tensors[index] if index < len(tensors) else None


def with_bias(values: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """`values` [N, O, ...] plus bias [O]."""
    return values if bias is None else values + bias.reshape(-1, *(1,) * (values.ndim - 2))


def taps_first(kernel: np.ndarray) -> np.ndarray:
    """[groups, rows, columns, taps] as one contiguous matrix per tap and group: numpy's fast product needs that."""
    return np.ascontiguousarray(np.moveaxis(kernel, -1, 0))


class Conv(Convolving):
    """N-dimensional convolution: x [N, C, ...], weight [O, C / group, ...], optional bias [O]."""

    name = "Conv"

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        return {"group": 1, **spatial_attrs(attrs, operands[0].shape[2:], operands[1].shape[2:])}

    def macs(self, site: Site) -> int:
        return site.results[0].size * math.prod(site.operands[1].shape[1:])

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x, weight, *bias = arrays
        assert x is not None and weight is not None
        group, y = site.int("group"), site.results[0]
        _, columns, rows = self.channels(site)
        kernel = taps_first(weight.reshape(group, rows, columns, math.prod(weight.shape[2:])))
        places = math.prod(y.shape[2:])  # never -1 in a shape: there may be no elements
        total = np.zeros((y.shape[0], group, rows, places), x.dtype)
        for tap, view in enumerate(Windows.of(site).views(x, 0)):
            total += np.matmul(kernel[tap], view.reshape(view.shape[0], group, columns, places))
        return (with_bias(total.reshape(y.shape), bias[0] if bias else None),)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, w, y = required(tensors), required(tensors, 1), site.results[0]
        group, columns, rows = self.channels(site)
        windows, zero = Windows.of(site), emit.const(0, y.dtype)
        n = len(windows.kernel)

        def product(batch: Expr, o: Expr, *rest: Expr) -> Expr:
            at, c, tap = rest[:n], rest[n], rest[n + 1 :]
            channel = c if group == 1 else o // rows * columns + c
            return windows.read(emit, x, (batch, channel), windows.position(at, tap), zero) * w(o, c, *tap)

        total = emit.reduce(y.shape, y.dtype, w.shape[1:], "sum", product)
        return (add_bias(emit, site, total, optional(tensors, 2)),)


class ConvTranspose(Convolving):
    """Transposed convolution: x [N, C, ...], weight [C, O / group, ...], optional bias [O].

    Element i of x adds to y at i * stride + tap * dilation - pad. `output_shape` and `auto_pad` become pads; SAME
    means as many entries as x has, times the stride; ONNX's inference adds `output_padding` to them.
    """

    name = "ConvTranspose"
    onnx_infers = False
    transposed = True

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        spatial, kernel = operands[0].shape[2:], operands[1].shape[2:]
        plain = {k: v for k, v in attrs.items() if k not in ("auto_pad", "output_shape")}
        full = {**spatial_attrs(plain, spatial, kernel), "group": attrs.get("group", 1)}
        extra = list(attrs.get("output_padding") or (0,) * len(spatial))
        auto, given = attrs.get("auto_pad", "NOTSET"), attrs.get("output_shape")
        wanted = given or [i * s for i, s in zip(spatial, full["strides"], strict=True)]
        if given or auto.startswith("SAME"):
            sizes = zip(spatial, full["strides"], kernel, full["dilations"], extra, wanted, strict=False)
            total = [s * (i - 1) + e + (k - 1) * d + 1 - want for i, s, k, d, e, want in sizes]
            if given:  # SAME never makes a result larger, that of a kernel shorter than its stride for one
                extra = [e + max(-t, 0) for e, t in zip(extra, total, strict=True)]
            full["pads"] = split_pads([max(t, 0) for t in total], auto == "SAME_UPPER")
        return {**full, "output_padding": tuple(extra)}

    def macs(self, site: Site) -> int:
        return site.operands[0].size * math.prod(site.operands[1].shape[1:])

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x, weight, *bias = arrays
        assert x is not None and weight is not None
        (group, columns, rows), y, n = self.channels(site), site.results[0], x.shape[0]
        strides, dilations, pads = site.ints("strides"), site.ints("dilations"), site.ints("pads")
        half = len(strides)
        full = [size + pads[i] + pads[half + i] for i, size in enumerate(y.shape[2:])]
        total = np.zeros((n, group * rows, *full), x.dtype)
        taps = math.prod(weight.shape[2:])
        kernel = taps_first(weight.reshape(group, columns, rows, taps).swapaxes(1, 2))
        columned = x.reshape(n, group, columns, math.prod(x.shape[2:]))
        for number, tap in enumerate(itertools.product(*map(range, weight.shape[2:]))):
            part = np.matmul(kernel[number], columned)
            begins = [t * d for t, d in zip(tap, dilations, strict=True)]
            ends = zip(begins, x.shape[2:], strides, strict=True)
            where: tuple[Any, ...] = (..., *(slice(b, b + (size - 1) * s + 1, s) for b, size, s in ends))
            total[where] += part.reshape(n, group * rows, *x.shape[2:])
        inner: tuple[Any, ...] = (..., *(slice(pads[i], pads[i] + size) for i, size in enumerate(y.shape[2:])))
        return (with_bias(total[inner], bias[0] if bias else None),)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, w, y = required(tensors), required(tensors, 1), site.results[0]
        _, columns, rows = self.channels(site)
        strides, dilations, pads = site.ints("strides"), site.ints("dilations"), site.ints("pads")
        kernel, n = w.shape[2:], len(strides)
        # a multiple of the stride that keeps the dividend non-negative
        lifts = [
            -(-max((k - 1) * d - low, 0) // s)
            for k, d, s, low in zip(kernel, dilations, strides, pads, strict=False)
        ]

        def product(batch: Expr, o: Expr, *rest: Expr) -> Expr:
            at, c, tap = rest[:n], rest[n], rest[n + 1 :]
            where, condition = [], None
            for p, t, s, d, low, lift, size in zip(
                at, tap, strides, dilations, pads, lifts, x.shape[2:], strict=False
            ):
                lifted = p + (low + lift * s) - t * d
                index = lifted // s - lift
                checks = [index >= 0, index < size] + ([(lifted % s) == 0] if s > 1 else [])
                for check in checks:
                    condition = check if condition is None else emit.call("and", condition, check)
                where.append(index)
            channel = o // rows * columns + c
            value = x(batch, channel, *where) * w(channel, o % rows, *tap)
            return emit.select(condition, value, emit.const(0, y.dtype))

        total = emit.reduce(y.shape, y.dtype, (columns, *kernel), "sum", product)
        return (add_bias(emit, site, total, optional(tensors, 2)),)
