"""Sliding windows: attributes, index arithmetic and numpy views shared by convolution and pooling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.ir.graph import Attrs, Site
from compiler.ir.op import Emitter, Expr, Tensor


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
        pads = split_pads(total, auto == "SAME_UPPER")
    return {
        **attrs,
        "kernel_shape": tuple(kernel),
        "strides": strides,
        "dilations": dilations,
        "pads": pads,
        "auto_pad": "NOTSET",
    }


def split_pads(total: Sequence[int], upper: bool) -> tuple[int, ...]:
    """Begin and end pads that share `total` per axis; the odd one goes to the end if `upper`, else to the begin."""
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return (*small, *large) if upper else (*large, *small)


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of a convolution or pooling over the spatial axes of x [N, C, ...].

    Window `at` reads input position at * stride + tap * dilation - low on each axis. Past the end there may be
    more than the pad (`ceil_mode`); everything outside the input counts as `fill`.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    low: tuple[int, ...]

    @classmethod
    def of(cls, site: Site) -> Windows:
        """The windows of a normalised convolution or pooling site."""
        spatial, outputs = site.operands[0].shape[2:], site.results[0].shape[2:]
        low = site.ints("pads")[: len(spatial)]
        return cls(spatial, outputs, site.ints("kernel_shape"), site.ints("strides"), site.ints("dilations"), low)

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    def high(self) -> tuple[int, ...]:
        """Cells read beyond the end of the input, per axis."""
        reach = zip(self.outputs, self.strides, self.kernel, self.dilations, self.low, self.inputs, strict=True)
        return tuple(max((o - 1) * s + (k - 1) * d - low - n + 1, 0) for o, s, k, d, low, n in reach)

    def views(self, x: np.ndarray, fill: float) -> Iterator[np.ndarray]:
        """For every tap (row-major) the element of x under it for every window."""
        padded = self._padded(x, fill)
        for tap in itertools.product(*map(range, self.kernel)):
            starts = [t * d for t, d in zip(tap, self.dilations, strict=True)]
            spans = zip(starts, self.outputs, self.strides, strict=True)
            index: tuple[Any, ...] = (..., *(slice(b, b + (o - 1) * s + 1, s) for b, o, s in spans))
            yield padded[index]

    def _padded(self, x: np.ndarray, fill: float) -> np.ndarray:
        """x with what windows read beyond it; `np.pad` takes several times as long on small arrays."""
        edges = list(zip(self.low, x.shape[-len(self.low) :], self.high(), strict=True))
        if not any(before + behind for before, _, behind in edges):
            return x
        lead = x.shape[: -len(self.low)]
        padded = np.full((*lead, *(before + n + behind for before, n, behind in edges)), fill, x.dtype)
        inner: tuple[Any, ...] = (..., *(slice(before, before + n) for before, n, _ in edges))
        padded[inner] = x
        return padded

    def position(self, at: Sequence[Expr], tap: Sequence[Expr]) -> list[Expr]:
        """Input position under `tap` of window `at`; may lie outside the input."""
        steps = zip(at, self.strides, tap, self.dilations, self.low, strict=True)
        return [p * s + t * d - low for p, s, t, d, low in steps]

    def inside(self, emit: Emitter, where: Sequence[Expr]) -> Expr | None:
        """The condition that `where` lies inside the input; None where it always does."""
        condition = None
        for p, low, high, size in zip(where, self.low, self.high(), self.inputs, strict=True):
            checks = ([p >= 0] if low else []) + ([p < size] if high else [])
            for check in checks:
                condition = check if condition is None else emit.call("and", condition, check)
        return condition

    def read(self, emit: Emitter, x: Tensor, lead: Sequence[Expr], where: Sequence[Expr], fill: Expr) -> Expr:
        """x at (*lead, *where), or `fill` outside the input."""
        inside = self.inside(emit, where)
        value = x(*lead, *where)
        return value if inside is None else emit.select(inside, value, fill)

    def counts(self) -> list[np.ndarray]:
        """Per axis and window the number of taps inside the input."""
        found = []
        for n, o, k, s, d, low in zip(
            self.inputs, self.outputs, self.kernel, self.strides, self.dilations, self.low, strict=True
        ):
            where = np.arange(o)[:, None] * s + np.arange(k) * d - low
            found.append(((where >= 0) & (where < n)).sum(1))
        return found
