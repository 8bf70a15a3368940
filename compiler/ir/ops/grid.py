"""GridSample: reading an image at positions computed at run time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from compiler.ir.graph import Node, Operands, Site
from compiler.ir.op import Emitter, Expr, Op, Tensor, Tie, identity
from compiler.ir.ops.elementwise import check, check_choice, required
from compiler.ir.types import DType, TensorType

_CUBIC = -0.75  # the coefficient ONNX fixes for GridSample

_TAPS = {"nearest": 1, "linear": 2, "cubic": 4}


class Sampler:
    """Expressions of one GridSample: source coordinates, padding, interpolation weights."""

    def __init__(self, emit: Emitter, site: Site, x: Tensor, grid: Tensor) -> None:
        self.emit, self.x, self.grid = emit, x, grid
        self.mode, self.padding = site.str("mode"), site.str("padding_mode")
        self.aligned = bool(site.int("align_corners"))
        self.sizes = x.shape[2:]
        self.dtype = DType.FLOAT64 if grid.dtype is DType.FLOAT64 else DType.FLOAT32

    def const(self, value: float) -> Expr:
        """A literal of the computation's type."""
        return self.emit.const(value, self.dtype)

    def work(self, tensor: Tensor, *at: Expr) -> Expr:
        """An element in the type of the computation."""
        value = tensor(*at)
        return value if tensor.dtype is self.dtype else self.emit.cast(value, self.dtype)

    def coordinate(self, at: Sequence[Expr], dim: int) -> Expr:
        """Where result position `at` (batch, spatial...) lies on spatial axis `dim`, in entries."""
        size = self.sizes[dim]
        last = self.emit.const(len(self.sizes) - 1 - dim, DType.INT32)  # the grid lists the innermost axis first
        unit = self.work(self.grid, *at, last) + self.const(1)
        scale, shift = ((size - 1) / 2, 0.0) if self.aligned else (size / 2, 0.5)
        where = unit * self.const(scale) - self.const(shift)
        if self.padding == "reflection" and self.mode != "cubic":
            return self.reflected(where, size)
        if self.padding == "border" and self.mode != "cubic":
            return self.clipped(where, 0, size - 1)
        return self.limited(where, size)

    def clipped(self, value: Expr, low: float, high: float) -> Expr:
        """`value` limited to low..high."""
        return self.emit.call("min", self.const(high), self.emit.call("max", self.const(low), value))

    def entry(self, value: Expr, size: int) -> Expr:
        """`value` limited to the entries of an axis; the first where it is NaN, of which no integer is made."""
        return self.emit.call("min", self.emit.call("max", value, self.const(0)), self.const(size - 1))

    def limited(self, value: Expr, size: int) -> Expr:
        """A coordinate kept in the range of a 32-bit integer."""
        return self.clipped(value, -(2.0**24), size + 2.0**24)

    def reflected(self, value: Expr, size: int) -> Expr:
        """`value` mirrored at the centres (aligned) or edges of the outermost entries, as often as needed."""
        low, high = (0.0, size - 1.0) if self.aligned else (-0.5, size - 0.5)
        span = high - low
        if span == 0:
            return self.const(0)
        away = self.emit.call("abs", value - self.const(low))
        turns = self.emit.call("floor", away / self.const(2 * span))
        rest = away - turns * self.const(2 * span)
        mirrored = self.emit.call("min", rest, self.const(2 * span) - rest)
        return mirrored + self.const(low)

    def taps(self, where: Expr) -> list[tuple[Expr, Expr]]:
        """(entry as a whole float, weight) of every tap along one axis."""
        if self.mode == "nearest":
            return [(self.emit.call("round", where), self.const(1))]
        base = self.emit.call("floor", where)
        part = where - base
        if self.mode == "linear":
            return [(base, self.const(1) - part), (base + self.const(1), part)]
        offsets = (-1, 0, 1, 2)
        return [(base + self.const(o), self.keys(part - self.const(o), abs(2 * o - 1) == 3)) for o in offsets]

    def keys(self, distance: Expr, far: bool) -> Expr:
        """Cubic convolution weight for a distance in 0..1 or (far) 1..2 (Keys, 1981)."""
        d, a = self.emit.call("abs", distance), _CUBIC
        if far:
            return ((self.const(a) * d - self.const(5 * a)) * d + self.const(8 * a)) * d - self.const(4 * a)
        return (self.const(a + 2) * d - self.const(a + 3)) * d * d + self.const(1)

    def read(self, n: Expr, c: Expr, entries: Sequence[Expr]) -> Expr:
        """The element at whole-numbered `entries`, padded where they lie outside."""
        emit, index, inside = self.emit, [], self.emit.const(True, DType.BOOL)
        for value, size in zip(entries, self.sizes, strict=True):
            place = self.reflected(value, size) if self.padding == "reflection" else value
            index.append(emit.cast(self.entry(place, size), DType.INT32))
            if self.padding == "zeros":
                within = emit.call("and", value >= self.const(0), value <= self.const(size - 1))
                inside = emit.call("and", inside, within)
        element = self.work(self.x, n, c, *index)
        if self.padding != "zeros":
            return element
        return emit.select(inside, element, self.const(0))


class GridSample(Op):
    """x [N, C, D...] read at the positions of grid [N, E..., rank] (operand 1, -1..1 spans the image).

    `mode` nearest, linear or cubic; outside the image `padding_mode` gives zeros, the border or a reflection.
    """

    name = "GridSample"

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        check_choice(node, "mode", *_TAPS)
        check_choice(node, "padding_mode", "zeros", "border", "reflection")
        volume = operands[0].rank > 4 and node.attrs["mode"] == "cubic"
        check(node, not volume, "ONNX defines the cubic mode for images only")
        check(node, operands[0].size > 0, "the image is empty")
        return super().infer(node, operands, count)

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x, grid = required(arrays), required(arrays, 1)
        if site.str("mode") == "cubic" and site.str("padding_mode") == "border":
            # onnx.reference clamps the position too; a border of equal entries gives what the standard says
            x, grid = _framed(x, grid, bool(site.int("align_corners")))
        if site.str("padding_mode") == "reflection":  # onnx.reference cannot mirror at the two ends of one entry
            for axis in (d for d in range(2, x.ndim) if x.shape[d] == 1):
                x = x.repeat(2, axis)
        return super().evaluate(site, (x, grid))

    def flops(self, site: Site) -> int:
        y, mode = site.results[0], site.str("mode")
        rank = y.rank - 2
        return 0 if mode == "nearest" else 2 * _TAPS[mode] ** rank * y.size

    def ties(self, site: Site) -> Iterator[Tie]:
        x, grid, y = site.operands[0], site.operands[1], site.results[0]
        yield identity(x, 0, y, 0)
        yield identity(grid, 0, y, 0)
        yield identity(x, 1, y, 1)
        yield from (identity(grid, d, y, d + 1) for d in range(1, grid.rank - 1))

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, grid, y = required(tensors), required(tensors, 1), site.results[0]
        sampler, rank = Sampler(emit, site, x, grid), y.rank - 2
        outer = (y.shape[0], *y.shape[2:])
        places = [
            emit.compute(outer, sampler.dtype, lambda *at, dim=dim: sampler.coordinate(at, dim))
            for dim in range(rank)
        ]

        def element(n: Expr, c: Expr, *at: Expr) -> Expr:
            total = None
            for taps in itertools.product(*(sampler.taps(place(n, *at)) for place in places)):
                value = sampler.read(n, c, [entry for entry, _ in taps])
                if sampler.mode != "nearest":
                    for _, weight in taps:
                        value = value * weight
                total = value if total is None else total + value
            return total if y.dtype is sampler.dtype else emit.cast(total, y.dtype)

        return (emit.compute(y.shape, y.dtype, element),)


_FRAME = 4  # entries a cubic tap can lie outside, once positions are limited to two entries beyond the image


def _framed(x: np.ndarray, grid: np.ndarray, aligned: bool) -> tuple[np.ndarray, np.ndarray]:
    """The image with a border of repeated entries, and the grid that means the same positions in it."""
    sizes = np.array(x.shape[:1:-1], np.float64)
    where = (grid + 1) / 2 * (sizes - 1) if aligned else ((grid + 1) * sizes - 1) / 2
    where = np.clip(where, -2, sizes + 1) + _FRAME
    wide = sizes + 2 * _FRAME
    unit = where / (wide - 1) * 2 - 1 if aligned else (2 * where + 1) / wide - 1
    frame = [(0, 0), (0, 0)] + [(_FRAME, _FRAME)] * (x.ndim - 2)
    return np.pad(x, frame, mode="edge"), unit.astype(grid.dtype)
