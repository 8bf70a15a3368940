"""Element-wise functions of one tensor."""

from __future__ import annotations

from compiler.ir.graph import Site
from compiler.ir.op import Emitter, Expr
from compiler.ir.ops.elementwise import Called, Unary


class Relu(Unary):
    """max(0, x)."""

    name = "Relu"

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        return emit.call("max", emit.const(0, site.results[0].dtype), x[0])  # this order keeps NaN


class Sigmoid(Called):
    """1 / (1 + exp(-x))."""

    name = "Sigmoid"
    function = "sigmoid"
    cost = 4
