"""Comparisons, boolean operators and selection, with broadcasting."""

from __future__ import annotations

from typing import ClassVar

from compiler.ir.graph import Site
from compiler.ir.op import Emitter, Expr
from compiler.ir.ops.elementwise import Broadcast
from compiler.ir.types import DType


class Equal(Broadcast):
    """a == b."""

    name = "Equal"

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        dtype = site.operands[0].dtype
        if dtype is DType.BOOL:
            return emit.call("not", emit.call("xor", *x))
        if dtype.is_float and site.operands[0].ref == site.operands[1].ref:
            return emit.call("not", emit.call("isnan", x[0]))  # TVM takes x == x for true, of NaN too
        return x[0] == x[1]


class Less(Broadcast):
    """a < b."""

    name = "Less"

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        return x[0] < x[1]


class Greater(Broadcast):
    """a > b."""

    name = "Greater"

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        return x[0] > x[1]


class LessOrEqual(Broadcast):
    """a <= b."""

    name = "LessOrEqual"

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        return x[0] <= x[1]


class GreaterOrEqual(Broadcast):
    """a >= b."""

    name = "GreaterOrEqual"

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        return x[0] >= x[1]


class Logical(Broadcast):
    """A boolean operator that is one scalar function."""

    function: ClassVar[str]

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        return emit.call(self.function, *x)


class And(Logical):
    """Both."""

    name = "And"
    function = "and"


class Or(Logical):
    """Either."""

    name = "Or"
    function = "or"


class Xor(Logical):
    """Exactly one."""

    name = "Xor"
    function = "xor"


class Where(Broadcast):
    """a where the condition (operand 0) holds, else b."""

    name = "Where"

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        return emit.select(x[0], x[1], x[2])
