"""Convolution operators."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from compiler.ir.graph import Attrs, Operands, Site
from compiler.ir.op import Emitter, Expr, Kept, MacOp, Rebuilt, Tensor, Tie, entrywise, identity
from compiler.ir.types import Axis


def spatial_attrs(attrs: Attrs, spatial: Sequence[int], kernel: Sequence[int]) -> Attrs:
    """Explicit kernel_shape, strides, dilations and pads (begin.., end..) for `spatial` input extents.

    `auto_pad` is resolved here (ONNX operator specification, Conv) and becomes NOTSET.
    """
    n = len(spatial)
    strides = tuple(attrs.get("strides") or (1,) * n)
    dilations = tuple(attrs.get("dilations") or (1,) * n)
    pads = tuple(attrs.get("pads") or (0,) * 2 * n)
    auto = attrs.get("auto_pad", "NOTSET")
    if auto == "VALID":
        pads = (0,) * 2 * n
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
            for size, s, k, d in zip(spatial, strides, kernel, dilations, strict=True)
        ]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = (*small, *large) if auto == "SAME_UPPER" else (*large, *small)
    return {
        **attrs,
        "kernel_shape": tuple(kernel),
        "strides": strides,
        "dilations": dilations,
        "pads": pads,
        "auto_pad": "NOTSET",
    }


def grouped_input(site: Site, x_axis: Axis, group: int) -> Iterator[Tie]:
    """Ties between the input channels and the weight of a convolution (operand 1, [O, I / group, ...]).

    One group: input channel j is weight column j. Depthwise: output channel j needs input channel
    j // multiplier. Otherwise the columns are a slot axis shared by all groups: equal count per group.
    """
    weight = site.operands[1]
    rows, columns = weight.shape[:2]
    if group == 1:
        yield entrywise(x_axis, weight.axis(1), np.arange(columns))
    elif columns == 1:
        yield entrywise(x_axis, weight.axis(0), np.arange(rows) // (rows // group))
    else:
        slot = Axis(site.node.ref, "slot")
        yield entrywise(slot, weight.axis(1), np.arange(columns))
        yield entrywise(slot, x_axis, np.arange(columns * group) % columns)


class Conv(MacOp):
    """N-dimensional convolution: x [N, C, ...], weight [O, C / group, ...], optional bias [O]."""

    name = "Conv"

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        return spatial_attrs(attrs, operands[0].shape[2:], operands[1].shape[2:])

    def macs(self, site: Site) -> int:
        return site.results[0].size * math.prod(site.operands[1].shape[1:])

    def ties(self, site: Site) -> Iterator[Tie]:
        x, weight, y = site.operands[0], site.operands[1], site.results[0]
        yield identity(weight, 0, y, 1)
        bias = site.operands.optional(2)
        if bias is not None:
            yield identity(weight, 0, bias, 0)
        yield from grouped_input(site, x.axis(1), site.int("group"))

    def rebuild(self, site: Site, kept: Kept) -> Rebuilt:
        group = site.int("group")
        if group > 1 and site.operands[1].shape[1] == 1:
            group = len(kept.of(site.operands[0], 1))
        return Rebuilt({**site.attrs, "group": group})

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, w, y = tensors[0], tensors[1], site.results[0]
        assert x is not None and w is not None
        bias = tensors[2] if len(tensors) > 2 else None
        strides, dilations, pads = site.ints("strides"), site.ints("dilations"), site.ints("pads")
        spatial, rows, columns = x.shape[2:], w.shape[0] // site.int("group"), w.shape[1]

        def product(n: Expr, o: Expr, *rest: Expr) -> Expr:
            at, c, taps = rest[: len(spatial)], rest[len(spatial)], rest[len(spatial) + 1 :]
            steps = zip(at, strides, taps, dilations, pads, strict=False)
            where = [p * s + t * d - low for p, s, t, d, low in steps]
            channel = o // rows * columns + c if site.int("group") > 1 else c
            value = x(n, channel, *where)
            for position, size, low, tap in zip(where, spatial, pads, w.shape[2:], strict=False):
                if low or tap > 1 or any(pads):
                    inside = emit.call("and", position >= 0, position < size)
                    value = emit.select(inside, value, emit.const(0, x.dtype))
            return value * w(o, c, *taps)

        total = emit.reduce(y.shape, y.dtype, w.shape[1:], "sum", product)
        if bias is None:
            return (total,)
        return (emit.compute(y.shape, y.dtype, lambda n, o, *at: total(n, o, *at) + bias(o)),)
