"""Element-wise functions of two or more tensors."""

from __future__ import annotations

from compiler.ir.graph import Site
from compiler.ir.op import Emitter, Expr
from compiler.ir.ops.elementwise import Broadcast


class Add(Broadcast):
    """a + b."""

    name = "Add"

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        return x[0] + x[1]


class Mul(Broadcast):
    """a * b."""

    name = "Mul"

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        return x[0] * x[1]


class Sub(Broadcast):
    """a - b."""

    name = "Sub"

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        return x[0] - x[1]


class Clip(Broadcast):
    """min(max(x, low), high); either bound may be absent, both are scalars."""

    name = "Clip"

    def flops(self, site: Site) -> int:
        return (len(site.operands.present()) - 1) * site.results[0].size

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        value, bounds = x[0], list(x[1:])
        if site.operands.optional(1) is not None:
            value = emit.call("max", bounds.pop(0), value)
        return emit.call("min", bounds[0], value) if bounds else value
