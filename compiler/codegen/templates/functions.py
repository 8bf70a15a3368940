"""Activation functions on vectors, from arithmetic only: TVM would call `expf` once per lane."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.templates.common import Registers, splat

_LOG2E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 0.693359375, -2.1219444005469058e-4
_ROUND = 12582912.0
"""1.5 * 2**23: adding it leaves the nearest integer in the low bits of a float32."""

_TAYLOR = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2)
"""(exp(r) - 1 - r) / r**2, highest power first; |r| <= ln(2) / 2 leaves an error below 1e-8."""


class Functions:
    """Vector functions with registers of their own for intermediate values.

    A result is an expression on these registers: store it before the next call.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._t = Registers(3, width)

    def apply(self, name: str, x: Any) -> Any:
        """`Sigmoid`, `Tanh` or `Relu` of the vector x; NaN stays NaN."""
        if name == "Relu":
            return T.max(self._const(0), x)
        return self._sigmoid(x) if name == "Sigmoid" else self._tanh(x)

    def clamp(self, x: Any, low: float, high: float) -> Any:
        """x limited to [low, high]; the order of the operands keeps NaN."""
        return T.min(self._const(high), T.max(self._const(low), x))

    def _const(self, value: float) -> Any:
        return splat(value, self._width)

    def _sigmoid(self, x: Any) -> Any:
        scale, rest = self._exponential(self._const(0) - x, 87)
        return self._const(1) / (self._const(1) + (scale + scale * rest))

    def _tanh(self, x: Any) -> Any:
        """(e - 1) / (e + 1) for e = exp(2x), with e - 1 formed before it can round to zero."""
        scale, rest = self._exponential(x + x, 20)
        self._t.put(2, (scale - self._const(1)) + scale * rest)
        return self._t.get(2) / (self._t.get(2) + self._const(2))

    def _exponential(self, x: Any, limit: float) -> tuple[Any, Any]:
        """(s, p) with exp(x) = s + s * p, x limited to [-limit, limit]: s = 2**n and p = exp(x - n ln 2) - 1."""
        t, const = self._t, self._const
        t.put(0, self.clamp(x, -limit, limit))
        t.put(1, t.get(0) * const(_LOG2E) + const(_ROUND))
        n = t.get(1) - const(_ROUND)
        t.put(0, (t.get(0) - n * const(_LN2_HIGH)) - n * const(_LN2_LOW))
        r, series = t.get(0), const(_TAYLOR[0])
        for coefficient in _TAYLOR[1:]:
            series = series * r + const(coefficient)
        t.put(2, r + r * r * series)
        # the integer n sits in the low bits of t1; shifted into the exponent it is 2**n
        t.put(0, _from_bits(_shifted(_bits(t.get(1), self._width), self._width), self._width))
        return t.get(0), t.get(2)


def _int(value: int, width: int) -> Any:
    scalar = tirx.IntImm("int32", value)
    return scalar if width == 1 else tirx.Broadcast(scalar, width)


def _bits(x: Any, width: int) -> Any:
    return tirx.reinterpret("int32" if width == 1 else f"int32x{width}", x)


def _from_bits(x: Any, width: int) -> Any:
    return tirx.reinterpret("float32" if width == 1 else f"float32x{width}", x)


def _shifted(bits: Any, width: int) -> Any:
    return tirx.shift_left(bits + _int(127, width), _int(23, width))
