"""Mathematical functions of float32 vectors, from arithmetic only.

TVM lowers exp and its relatives to one call into libm per lane. `expand` replaces such calls by expressions that
work on vectors and scalars alike, so that every route to code has the same fast functions with the same bits.

Coefficients are minimax fits (iteratively reweighted least squares on Chebyshev nodes, float64) made for this file;
`tests/codegen/test_functions.py` measures the errors over the whole range of float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

_ROUND = 12582912.0
"""1.5 * 2**23: adding it leaves the nearest integer in the low bits of a float32."""

_LOG2E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.1219444005469058e-4
_LOWEST, _HIGHEST = -87.5, 89.0
"""Beyond these exp is 0 or infinite."""

_EXP = (0.001381453825160861, 0.00836874544620514, 0.04166838899254799, 0.1666652113199234, 0.4999999403953552)
"""(exp(r) - 1 - r) / r**2 for |r| <= ln(2) / 2, highest power first; relative error 3e-9."""

_LOG = (
    -0.07634429633617401,
    0.12761549651622772,
    -0.131601944565773,
    0.14201761782169342,
    -0.16623356938362122,
    0.20001226663589478,
    -0.250008225440979,
    0.3333333134651184,
)
"""(log(1 + f) - f + f**2 / 2) / f**3 for 1 + f from sqrt(1/2) to sqrt(2); relative error 6e-9."""

_TANH = (
    (
        1.8162735204718672e-11,
        -1.2743936572690018e-08,
        9.255169970856514e-06,
        0.002919415943324566,
        0.12917976081371307,
        0.9999999403953552,
    ),
    (0.0002279143373016268, 0.023757657036185265, 0.4625125825405121, 1.0),
)
"""tanh(x) / x as a quotient of polynomials in x**2 for |x| <= 9.02; relative error 6e-8."""

_ERF = (
    (
        1.9815347584994925e-08,
        -1.9553797301341547e-06,
        0.00014249379455577582,
        0.0037367751356214285,
        0.05068916827440262,
        0.2008059322834015,
        1.1283791065216064,
    ),
    (0.0009639052441343665, 0.014426890760660172, 0.11536166816949844, 0.5112912058830261, 1.0),
)
"""erf(x) / x likewise for |x| <= 3.93; relative error 5e-8."""


def expand(body: Any) -> Any:
    """A statement with every value that it stores or binds in arithmetic form."""

    def store(statement: Any) -> Any:
        return tirx.BufferStore(statement.buffer, _Flat().nested(statement.value), statement.indices)

    def bind(statement: Any) -> Any:
        return tirx.Bind(statement.var, _Flat().nested(statement.value))

    return tvm_ffi.structural_map(body, [(tirx.BufferStore, store), (tirx.Bind, bind)])


def arithmetic(call: Any) -> Any:
    """What computes a call of exp, log, sigmoid, tanh, erf or a small constant power; any other call as it is.

    NaN stays NaN, infinities have their limits; results below 2e-38 are zero.
    """
    name = str(getattr(call.op, "name", ""))
    if name == "tirx.pow":
        return _power(call)
    make = _EXPANSIONS.get(name)
    if make is None or _element(call.args[0]) != "float32":
        return call
    return let(call.args[0], make)


class _Flat:
    """Names of an expression collected in front of it: code generation rejects a name inside a name's value."""

    def __init__(self) -> None:
        self._named: list[tuple[Any, Any]] = []
        self._kept: dict[Any, Any] = {}

    def nested(self, value: Any) -> Any:
        """`value` in arithmetic form, as names in order around an expression without names."""
        result = self._flat(value)
        for name, meaning in reversed(self._named):
            result = tirx.Let(name, meaning, result)
        return self._restored(result)

    def _restored(self, value: Any) -> Any:
        """`value` with the choices that names stand for."""
        if not self._kept:
            return value
        return tvm_ffi.structural_map(value, [(tvm.ir.Var, lambda v: self._kept.get(v, v))])

    def _flat(self, value: Any) -> Any:
        callbacks = [(tirx.Let, self._let), (tvm.ir.Call, self._call)]
        return tvm_ffi.structural_map(value, callbacks, order="pre")

    def _let(self, let: Any) -> Any:
        self._named.append((let.var, self._flat(let.value)))
        return self._flat(let.body)

    def _call(self, call: Any) -> Any:
        if str(getattr(call.op, "name", "")) == "prim.if_then_else":
            return self._guarded(call)
        made = arithmetic(call)
        return call if made is call else self._flat(made)

    def _guarded(self, call: Any) -> Any:
        """A choice keeps the names of its branches inside them: the branch not taken is not evaluated."""
        condition, *branches = call.args
        kept = [self._restored(self._flat(condition)), *(_Flat().nested(b) for b in branches)]
        place = tirx.Var("kept", _dtype(call))
        self._kept[place] = tvm.ir.Call(call.op, kept, ret_ty=call.ty)
        return place


def let(value: Any, body: Callable[[Any], Any]) -> Any:
    """`body` of a name for `value`, so that the value is computed once."""
    name = tirx.Var("t", _dtype(value))
    return tirx.Let(name, value, body(name))


def clamp(x: Any, low: float, high: float) -> Any:
    """x limited to [low, high]; the order of the operands keeps NaN."""
    return tirx.min(splat(high, x), tirx.max(splat(low, x), x))


def splat(value: float, like: Any) -> Any:
    """A float32 constant in as many lanes as `like` has."""
    lanes = _lanes(like)
    scalar = tirx.FloatImm("float32", value)
    return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)


# ---------------------------------------------------------------------- the functions
def _exponential(x: Any) -> Any:
    """2**n * exp(r) with n = round(x / ln 2); the last factor 2 is taken out so that n = 128 has an exponent."""

    def scaled(t: Any, x: Any) -> Any:
        n = t - splat(_ROUND, t)
        r = (x - n * splat(_LN2_HIGH, x)) - n * splat(_LN2_LOW, x)
        # the integer n sits in the low bits of t; shifted into the exponent it is 2**(n - 1), or 0 for n = -126
        half = _from_bits(tirx.shift_left(_bits(t) + _int(126, t), _int(23, t)))
        return let(half, lambda s: let(r, lambda r: (s + s * (r + r * r * _horner(_EXP, r))) * splat(2.0, r)))

    def rounded(x: Any) -> Any:
        return let(x * splat(_LOG2E, x) + splat(_ROUND, x), lambda t: scaled(t, x))

    return let(clamp(x, _LOWEST, _HIGHEST), rounded)


def _sigmoid(x: Any) -> Any:
    one = splat(1.0, x)
    return one / (one + _exponential(splat(0.0, x) - x))


def _tanh(x: Any) -> Any:
    return _odd_quotient(x, _TANH, 9.02)


def _erf(x: Any) -> Any:
    return _odd_quotient(x, _ERF, 3.93)


def _odd_quotient(x: Any, series: tuple[Sequence[float], Sequence[float]], limit: float) -> Any:
    """x P(x**2) / Q(x**2), within [-1, 1] in spite of rounding."""

    def quotient(x: Any) -> Any:
        return let(x * x, lambda z: x * _horner(series[0], z) / _horner(series[1], z))

    return clamp(let(clamp(x, -limit, limit), quotient), -1.0, 1.0)


_SQRT_HALF_BITS = 0x3F3504F3
_TINY, _UP, _UP_BITS = 1.1754943508222875e-38, 8388608.0, 23
"""The smallest normal number, and what brings smaller ones into the normal range."""


def _logarithm(x: Any) -> Any:
    """e ln 2 + log(m) for x = 2**e * m with m from sqrt(1/2) to sqrt(2)."""
    tiny = x < splat(_TINY, x)
    normal = tirx.Select(tiny, x * splat(_UP, x), x)
    shift = tirx.Select(tiny, splat(-float(_UP_BITS), x), splat(0.0, x))

    def finite(normal: Any) -> Any:
        exponent = tirx.shift_right(_bits(normal) - _int(_SQRT_HALF_BITS, x), _int(23, x))
        return let(exponent, lambda e: mantissa(normal, e))

    def mantissa(normal: Any, e: Any) -> Any:
        f = _from_bits(_bits(normal) - tirx.shift_left(e, _int(23, x))) - splat(1.0, x)
        return let(f, lambda f: let(tirx.Cast(_dtype(x), e) + shift, lambda n: combined(f, n)))

    def combined(f: Any, n: Any) -> Any:
        series = f * f * f * _horner(_LOG, f) + n * splat(_LN2_LOW, f)
        return f - (splat(0.5, f) * f * f - series) + n * splat(_LN2_HIGH, f)

    value = let(normal, finite)
    at_zero = tirx.Select(tirx.EQ(x, splat(0.0, x)), splat(-math.inf, x), splat(math.nan, x))
    bounded = tirx.Select(x < splat(math.inf, x), value, x)
    return tirx.Select(x > splat(0.0, x), bounded, at_zero)


def _power(call: Any) -> Any:
    """Small whole powers as products; a general power keeps its call."""
    base, exponent = call.args
    number = exponent.value if isinstance(exponent, tirx.Broadcast) else exponent
    if not isinstance(number, tirx.FloatImm) or float(number.value) not in (1.0, 2.0, 3.0):
        return call
    return let(base, lambda x: math.prod([x] * (int(float(number.value)) - 1), start=x))


# TVM has no vectors of erf, and makes their lanes one by one unless it is told that somebody has
tvm.ir.register_op_attr("tirx.erf", "TVectorizable", True)

_EXPANSIONS: dict[str, Callable[[Any], Any]] = {
    "tirx.exp": _exponential,
    "tirx.log": _logarithm,
    "tirx.sigmoid": _sigmoid,
    "tirx.tanh": _tanh,
    "tirx.erf": _erf,
}


# ---------------------------------------------------------------------- expressions
def _horner(coefficients: Sequence[float], x: Any) -> Any:
    series = splat(coefficients[0], x)
    for coefficient in coefficients[1:]:
        series = series * x + splat(coefficient, x)
    return series


def _dtype(x: Any) -> str:
    return str(x.dtype) if hasattr(x, "dtype") else str(x.ty.dtype)


def _element(x: Any) -> str:
    return _dtype(x).partition("x")[0]


def _lanes(x: Any) -> int:
    return int(_dtype(x).partition("x")[2] or 1)


def _vector_type(element: str, like: Any) -> str:
    lanes = _lanes(like)
    return element if lanes == 1 else f"{element}x{lanes}"


def _int(value: int, like: Any) -> Any:
    scalar = tirx.IntImm("int32", value)
    return scalar if _lanes(like) == 1 else tirx.Broadcast(scalar, _lanes(like))


def _bits(x: Any) -> Any:
    return tirx.reinterpret(_vector_type("int32", x), x)


def _from_bits(x: Any) -> Any:
    return tirx.reinterpret(_vector_type("float32", x), x)
