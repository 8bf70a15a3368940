"""Scalars of the lowering language as TVM expressions: literals, functions, and how a reduction combines."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import tirx

from compiler.codegen.generic.index import both, either, negated
from compiler.ir.op import Combine
from compiler.ir.types import DType


def dtype_of(expr: Any) -> str:
    """The element type of a TVM expression."""
    return str(expr.dtype) if hasattr(expr, "dtype") else str(expr.ty.dtype)


def as_expr(value: Any) -> Any:
    """A TVM expression from a number, an index, a condition, a comparison or an expression."""
    if isinstance(value, bool):
        return tirx.const(value, "bool")
    return value.asobject() if hasattr(value, "asobject") else tirx.convert(value)


def _from_library(name: str) -> Callable[..., Any]:
    """A function of the C library that TVM cannot call for vectors itself."""

    def call(*arguments: Any) -> Any:
        kind = dtype_of(arguments[0])
        return tirx.call_pure_extern(kind, name + "f" if kind == "float32" else name, *arguments)

    return call


def _or_nan(larger: Callable[..., Any]) -> Callable[..., Any]:
    """`larger` (or smaller) of two numbers, which gives the second where one is NaN, made to give NaN then."""

    def call(a: Any, b: Any) -> Any:
        whole = not dtype_of(a).startswith("float")
        return larger(a, b) if whole else tirx.Select(tirx.isnan(a), a, larger(a, b))

    return call


_WIDE = {"int32": "int64", "int64": "int128"}
"""Types in which sums, differences and products of integers fit."""


def _wrapping(operation: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """`operation`, of integers wrapped around where the result does not fit.

    To LLVM a plain sum or product of 32 or 64 bits never overflows, and it draws conclusions from that. So does
    TVM, which bounds results by those of their operands unless bits are inverted. One instruction is left of it.
    """

    def call(a: Any, b: Any) -> Any:
        kind = dtype_of(a)
        if kind.removeprefix("u") not in _WIDE:
            return operation(a, b)
        if isinstance(a, tirx.IntImm) and isinstance(b, tirx.IntImm):
            return tirx.const(_lowest_bits(operation(int(a.value), int(b.value)), kind), kind)
        return tirx.bitwise_not(tirx.bitwise_not(tirx.Cast(kind, operation(_widened(a), _widened(b)))))

    return call


def _lowest_bits(number: int, kind: str) -> int:
    """A number wrapped around in an integer type."""
    limits = np.iinfo(kind)
    return (number - int(limits.min)) % (1 << limits.bits) + int(limits.min)


def _widened(value: Any) -> Any:
    """An integer in the wide type, by its bits: an unsigned one as if it were signed."""
    kind = dtype_of(value)
    signed = kind.removeprefix("u")
    if isinstance(value, tirx.IntImm):  # TVM makes no unsigned literal of a negative one
        return tirx.const(_lowest_bits(int(value.value), signed), _WIDE[signed])
    return tirx.Cast(_WIDE[signed], value if kind == signed else tirx.Cast(signed, value))


def _divided(a: Any, b: Any) -> Any:
    """a / b; TVM refuses to divide by the number zero, and times infinity is the same."""
    if isinstance(b, tirx.FloatImm) and b.value == 0:
        return a * literal(math.copysign(math.inf, b.value), DType(dtype_of(b)))
    return a / b


def _absolute(x: Any) -> Any:
    """|x|; the lowest integer stays, as it has no opposite."""
    kind = dtype_of(x)
    if not kind.startswith("int"):
        return tirx.abs(x)
    zero = tirx.const(0, kind)
    return tirx.Select(x < zero, FUNCTIONS["sub"](zero, x), x)


def _erf(x: Any) -> Any:
    """Vectors of it are made for float32 alone (`functions`)."""
    return tirx.erf(x) if dtype_of(x).startswith("float32") else _from_library("erf")(x)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(tirx, name)
        for name in (
            "exp log sqrt tanh sigmoid sin cos tan asin acos atan asinh acosh atanh "
            "floor ceil trunc isnan isinf min max"
        ).split()
    },
    **{name: _from_library(name) for name in ("sinh", "cosh", "fmod")},
    "erf": _erf,
    "round": tirx.nearbyint,
    "maximum": _or_nan(tirx.max),
    "minimum": _or_nan(tirx.min),
    "div": _divided,
    "quotient": tirx.truncdiv,
    "abs": _absolute,
    **{name: _wrapping(getattr(operator, name)) for name in ("add", "sub", "mul")},
    "pow": tirx.power,
    "xor": lambda a, b: tirx.And(tirx.Or(a, b), tirx.Not(tirx.And(a, b))),
    "bitand": tirx.bitwise_and,
    "bitor": tirx.bitwise_or,
    "bitxor": tirx.bitwise_xor,
    "bitnot": tirx.bitwise_not,
    "shl": tirx.shift_left,
    "shr": tirx.shift_right,
}

LOGIC: dict[str, Callable[..., Any]] = {"and": both, "or": either, "not": negated}
"""Functions of conditions, which settle what they can."""

INDEXED: dict[str, Callable[..., Any]] = {name: getattr(operator, name) for name in ("add", "sub", "mul")}
"""Functions that of two indices give an index, which fits."""

NO_HALF = frozenset("erf asin acos atan sinh cosh asinh acosh atanh fmod".split())
"""Functions that come from the C library, which has none for half floats."""

COSTLY = frozenset(
    "exp log tanh sigmoid erf sin cos tan asin acos atan sinh cosh asinh acosh atanh pow fmod".split()
)
"""Functions that several readers should not repeat."""


def literal(value: bool | int | float, dtype: DType) -> Any:
    """A scalar constant."""
    if dtype is DType.BOOL:
        return tirx.const(bool(value), "bool")
    if dtype.is_integer:
        whole = int(value)
        if dtype in (DType.INT32, DType.INT64) and whole == np.iinfo(dtype.value).min:
            return tirx.bitwise_not(tirx.const(~whole, dtype.value))  # TVM moves numbers between sides, negated
        return tirx.const(whole, dtype.value)
    number = float(value)
    if math.isinf(number):
        bound = tirx.infinity(dtype.value)
        return bound if number > 0 else -bound
    if math.isnan(number):
        return tirx.infinity(dtype.value) - tirx.infinity(dtype.value)
    return tirx.const(number, dtype.value)


def identity(kind: Combine, dtype: DType) -> Any:
    """The value of a reduction over nothing (ONNX: -inf / +inf or the extreme integer for max / min)."""
    if kind in ("sum", "prod"):
        return literal(kind == "prod", dtype)
    low = kind in ("max", "maximum")
    if dtype is DType.BOOL:
        return literal(not low, dtype)
    if dtype.is_float:
        return literal(-math.inf if low else math.inf, dtype)
    limits = np.iinfo(dtype.value)
    return literal(int(limits.min if low else limits.max), dtype)


def combine(kind: Combine, a: Any, b: Any) -> Any:
    """One step of a reduction: what was combined so far, and the next term."""
    if kind in ("sum", "prod"):
        return FUNCTIONS["add" if kind == "sum" else "mul"](a, b)
    return FUNCTIONS[kind](b, a)  # what decides about NaN looks at the term, beside the chain of steps
