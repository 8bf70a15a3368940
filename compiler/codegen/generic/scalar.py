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


def _added(a: Any, b: Any) -> Any:
    """The sum of two integers, wrapped around where it does not fit: to LLVM a plain one of 32 or 64 bits never
    overflows, and with constants it draws conclusions from that."""
    kind = dtype_of(a)
    if kind.endswith("int32"):
        return tirx.Cast(kind, tirx.Cast("int64", a) + tirx.Cast("int64", b))
    if not kind.endswith("int64"):
        return a + b
    x, y = tirx.reinterpret("uint64", a), tirx.reinterpret("uint64", b)
    low, high = tirx.const(2**63 - 1, "uint64"), tirx.const(2**63, "uint64")
    carried = tirx.bitwise_and(x, low) + tirx.bitwise_and(y, low)
    return tirx.reinterpret(kind, tirx.bitwise_xor(carried, tirx.bitwise_and(tirx.bitwise_xor(x, y), high)))


def _subtracted(a: Any, b: Any) -> Any:
    """The difference of two integers, wrapped around: ~a + b is ~(a - b)."""
    return tirx.bitwise_not(_added(tirx.bitwise_not(a), b))


def _erf(x: Any) -> Any:
    """Vectors of it are made for float32 alone (`functions`)."""
    return tirx.erf(x) if dtype_of(x).startswith("float32") else _from_library("erf")(x)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(tirx, name)
        for name in (
            "exp log sqrt tanh sigmoid sin cos tan asin acos atan asinh acosh atanh "
            "floor ceil trunc abs isnan isinf min max"
        ).split()
    },
    **{name: _from_library(name) for name in ("sinh", "cosh", "fmod")},
    "erf": _erf,
    "round": tirx.nearbyint,
    "maximum": _or_nan(tirx.max),
    "minimum": _or_nan(tirx.min),
    "quotient": tirx.truncdiv,
    "add": _added,
    "sub": _subtracted,
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

INDEXED: dict[str, Callable[..., Any]] = {"add": operator.add, "sub": operator.sub}
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
        return tirx.const(int(value), dtype.value)
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
    if kind == "sum":
        return a + b
    if kind == "prod":
        return a * b
    return FUNCTIONS[kind](b, a)  # what decides about NaN looks at the term, beside the chain of steps
