"""Element-wise activation functions.

Formulas are written with min and max instead of branches where that is exact, so that they vectorise, and with
the constant first (`max(0, x)`), which keeps NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from compiler.ir.graph import Node, Operands, Site
from compiler.ir.op import Emitter, Expr
from compiler.ir.ops.elementwise import Broadcast, Called, Unary, check, check_choice, required
from compiler.ir.types import DType, TensorType


def positive_part(emit: Emitter, site: Site, x: Expr) -> Expr:
    """max(0, x)."""
    return emit.call("max", emit.const(0, site.results[0].dtype), x)


def negative_part(emit: Emitter, site: Site, x: Expr) -> Expr:
    """min(0, x)."""
    return emit.call("min", emit.const(0, site.results[0].dtype), x)


def unit_clip(emit: Emitter, site: Site, x: Expr) -> Expr:
    """x limited to 0..1."""
    return emit.call("min", emit.const(1, site.results[0].dtype), positive_part(emit, site, x))


def sloped(emit: Emitter, site: Site, x: Expr, slope: Expr, finite: bool) -> Expr:
    """x where x >= 0, else slope x. A slope that may be infinite or NaN is not multiplied with the zero that is the
    negative part of other x."""
    dtype = site.results[0].dtype
    if finite and dtype.is_float:
        return positive_part(emit, site, x) + slope * negative_part(emit, site, x)
    return emit.select(x < emit.const(0, dtype), emit.call("mul", slope, x), x)


def sloped_values(x: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """The same in numpy; onnx.reference multiplies zero too."""
    return np.where(x < 0, np.asarray(slope * x, x.dtype), x)


def exponential_part(emit: Emitter, site: Site, x: Expr) -> Expr:
    """exp(min(0, x)) - 1."""
    return emit.call("exp", negative_part(emit, site, x)) - emit.const(1, site.results[0].dtype)


def bent(emit: Emitter, site: Site, x: Expr, zero: bool) -> Expr:
    """alpha (exp(x) - 1) where x < 0, and for x = 0 if `zero`; else x. An alpha that may be infinite or NaN is not
    multiplied with the zero that is exp(min(0, x)) - 1 of other x."""
    dtype, alpha = site.results[0].dtype, site.float("alpha")
    below = emit.const(alpha, dtype) * exponential_part(emit, site, x)
    if math.isfinite(alpha):
        return positive_part(emit, site, x) + below
    nought = emit.const(0, dtype)
    return emit.select(x <= nought if zero else x < nought, below, x)


def softplus(emit: Emitter, site: Site, x: Expr) -> Expr:
    """log(1 + exp(x)) without overflow: max(0, x) + log(1 + exp(-|x|))."""
    one = emit.const(1, site.results[0].dtype)
    return positive_part(emit, site, x) + emit.call("log", one + emit.call("exp", -emit.call("abs", x)))


class Relu(Unary):
    """max(0, x)."""

    name = "Relu"

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        return positive_part(emit, site, x[0])


class LeakyRelu(Unary):
    """x where x >= 0, else alpha x."""

    name = "LeakyRelu"
    cost = 2

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x = required(arrays)
        return (sloped_values(x, np.asarray(site.float("alpha"), x.dtype)),)

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        alpha = site.float("alpha")
        return sloped(emit, site, x[0], emit.const(alpha, site.results[0].dtype), math.isfinite(alpha))


class PRelu(Broadcast):
    """x where x >= 0, else slope x; the slope (operand 1) broadcasts to x."""

    name = "PRelu"
    cost = 2

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        x, slope = operands[0], operands[1]
        ends = zip(reversed(slope.shape), reversed(x.shape), strict=False)
        fits = slope.rank <= x.rank and all(n in (1, m) for n, m in ends)
        check(node, fits, f"the slope {slope.type} does not broadcast to {x.type}")
        return super().infer(node, operands, count)

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        return (sloped_values(required(arrays), required(arrays, 1)),)

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        slope = site.operands[1].data
        return sloped(emit, site, x[0], x[1], slope is not None and bool(np.isfinite(slope).all()))


class Elu(Unary):
    """x where x >= 0, else alpha (exp(x) - 1)."""

    name = "Elu"
    cost = 4

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x = required(arrays)  # onnx.reference multiplies the zero of zero too
        return (np.where(x < 0, np.asarray(site.float("alpha") * np.expm1(x), x.dtype), x),)

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        return bent(emit, site, x[0], zero=False)


class Selu(Unary):
    """gamma x where x > 0, else gamma alpha (exp(x) - 1)."""

    name = "Selu"
    cost = 5

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        return emit.const(site.float("gamma"), site.results[0].dtype) * bent(emit, site, x[0], zero=True)


class Celu(Unary):
    """max(0, x) + min(0, alpha (exp(x / alpha) - 1))."""

    name = "Celu"
    cost = 7

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        alpha = emit.const(site.float("alpha"), site.results[0].dtype)
        below = emit.call("exp", negative_part(emit, site, x[0]) / alpha) - emit.const(1, site.results[0].dtype)
        return positive_part(emit, site, x[0]) + alpha * below


class Sigmoid(Called):
    """1 / (1 + exp(-x))."""

    name = "Sigmoid"
    function = "sigmoid"
    cost = 4


class HardSigmoid(Unary):
    """alpha x + beta limited to 0..1."""

    name = "HardSigmoid"
    cost = 4

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        dtype = site.results[0].dtype
        alpha, beta = emit.const(site.float("alpha"), dtype), emit.const(site.float("beta"), dtype)
        return unit_clip(emit, site, alpha * x[0] + beta)


class HardSwish(Unary):
    """x times (x / 6 + 1 / 2 limited to 0..1)."""

    name = "HardSwish"
    cost = 5

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        dtype = site.results[0].dtype
        return x[0] * unit_clip(emit, site, x[0] * emit.const(1 / 6, dtype) + emit.const(0.5, dtype))


class Tanh(Called):
    """Hyperbolic tangent."""

    name = "Tanh"
    function = "tanh"


class Softplus(Unary):
    """log(1 + exp(x))."""

    name = "Softplus"
    cost = 3

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        return softplus(emit, site, x[0])


class Softsign(Unary):
    """x / (1 + |x|)."""

    name = "Softsign"
    cost = 3

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x = required(arrays)
        return (np.asarray(x / (1 + np.abs(x)), x.dtype),)  # onnx.reference fails on scalars

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        return x[0] / (emit.const(1, site.results[0].dtype) + emit.call("abs", x[0]))


class Gelu(Unary):
    """x Phi(x), Phi the normal distribution function; `approximate` "tanh" uses the cubic formula."""

    name = "Gelu"

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        check_choice(node, "approximate", "none", "tanh")
        return super().infer(node, operands, count)

    def flops(self, site: Site) -> int:
        return (8 if site.str("approximate") == "tanh" else 5) * site.results[0].size

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        dtype = site.results[0].dtype
        half, one = emit.const(0.5, dtype), emit.const(1, dtype)
        if site.str("approximate") == "tanh":
            cubic = x[0] + emit.const(0.044715, dtype) * x[0] * x[0] * x[0]
            return half * x[0] * (one + emit.call("tanh", emit.const(math.sqrt(2 / math.pi), dtype) * cubic))
        return half * x[0] * (one + emit.call("erf", x[0] * emit.const(math.sqrt(0.5), dtype)))


class Mish(Unary):
    """x tanh(log(1 + exp(x)))."""

    name = "Mish"
    cost = 5

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        return x[0] * emit.call("tanh", softplus(emit, site, x[0]))


class ThresholdedRelu(Unary):
    """x where x > alpha, else 0."""

    name = "ThresholdedRelu"

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        dtype = site.results[0].dtype
        return emit.select(x[0] > emit.const(site.float("alpha"), dtype), x[0], emit.const(0, dtype))


class Shrink(Unary):
    """x + bias below -lambd, x - bias above lambd, else 0."""

    name = "Shrink"
    cost = 3

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        dtype = site.results[0].dtype
        kind = dtype if dtype.is_float else DType.FLOAT64  # threshold and bias need not be whole
        value = emit.cast(x[0], kind)
        edge, bias = site.float("lambd"), emit.const(site.float("bias"), kind)
        above = emit.select(value > emit.const(edge, kind), value - bias, emit.const(0, kind))
        return emit.cast(emit.select(value < emit.const(-edge, kind), value + bias, above), dtype)
