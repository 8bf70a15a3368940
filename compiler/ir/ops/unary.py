"""Element-wise mathematical functions of one tensor."""

from __future__ import annotations

from compiler.ir.graph import Site
from compiler.ir.op import Emitter, Expr
from compiler.ir.ops.elementwise import Called, Unary


class Abs(Called):
    """|x|; the lowest integer stays, as it has no opposite."""

    name = "Abs"
    function = "abs"


class Neg(Unary):
    """-x; the lowest integer stays, as it has no opposite."""

    name = "Neg"

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        dtype = site.results[0].dtype
        return -x[0] if dtype.is_float else emit.call("sub", emit.const(0, dtype), x[0])


class Sign(Unary):
    """1 where x > 0, -1 where x < 0, else 0; NaN stays."""

    name = "Sign"
    cost = 2

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        dtype = site.results[0].dtype
        zero = emit.const(0, dtype)
        above = emit.cast(x[0] > zero, dtype)
        if dtype.numpy.kind == "u":  # TVM makes no literal of 0 - 1
            return above
        sign = above - emit.cast(x[0] < zero, dtype)
        return emit.select(emit.call("isnan", x[0]), x[0], sign) if dtype.is_float else sign


class Reciprocal(Unary):
    """1 / x."""

    name = "Reciprocal"

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        return emit.const(1, site.results[0].dtype) / x[0]


class Exp(Called):
    """e to the power x."""

    name = "Exp"
    function = "exp"


class Log(Called):
    """Natural logarithm."""

    name = "Log"
    function = "log"


class Sqrt(Called):
    """Square root."""

    name = "Sqrt"
    function = "sqrt"


class Erf(Called):
    """Gauss error function."""

    name = "Erf"
    function = "erf"


class Floor(Called):
    """Largest integer not above x."""

    name = "Floor"
    function = "floor"


class Ceil(Called):
    """Smallest integer not below x."""

    name = "Ceil"
    function = "ceil"


class Round(Called):
    """Nearest integer, halves to even."""

    name = "Round"
    function = "round"


class Sin(Called):
    """Sine of an angle in radians."""

    name = "Sin"
    function = "sin"


class Cos(Called):
    """Cosine of an angle in radians."""

    name = "Cos"
    function = "cos"


class Tan(Called):
    """Tangent of an angle in radians."""

    name = "Tan"
    function = "tan"


class Asin(Called):
    """Arc sine."""

    name = "Asin"
    function = "asin"


class Acos(Called):
    """Arc cosine."""

    name = "Acos"
    function = "acos"


class Atan(Called):
    """Arc tangent."""

    name = "Atan"
    function = "atan"


class Sinh(Called):
    """Hyperbolic sine."""

    name = "Sinh"
    function = "sinh"


class Cosh(Called):
    """Hyperbolic cosine."""

    name = "Cosh"
    function = "cosh"


class Asinh(Called):
    """Inverse hyperbolic sine."""

    name = "Asinh"
    function = "asinh"


class Acosh(Called):
    """Inverse hyperbolic cosine."""

    name = "Acosh"
    function = "acosh"


class Atanh(Called):
    """Inverse hyperbolic tangent."""

    name = "Atanh"
    function = "atanh"


class Not(Called):
    """Logical negation."""

    name = "Not"
    function = "not"


class BitwiseNot(Called):
    """Every bit of an integer inverted."""

    name = "BitwiseNot"
    function = "bitnot"


class IsNaN(Called):
    """Whether x is not a number."""

    name = "IsNaN"
    function = "isnan"


class IsInf(Unary):
    """Whether x is infinite, with the sign that `detect_positive` and `detect_negative` ask for."""

    name = "IsInf"
    cost = 2

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        dtype = site.operands[0].dtype
        found = emit.const(False, site.results[0].dtype)
        if site.int("detect_positive"):
            found = emit.call("or", found, x[0] == emit.const(float("inf"), dtype))
        if site.int("detect_negative"):
            found = emit.call("or", found, x[0] == emit.const(float("-inf"), dtype))
        return found
