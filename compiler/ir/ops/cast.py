"""Conversion between element types."""

from __future__ import annotations

from onnx import helper

from compiler.errors import UnsupportedModelError
from compiler.ir.graph import Node, Operands, Site
from compiler.ir.op import Emitter, Expr, Tensor
from compiler.ir.ops.elementwise import Unary
from compiler.ir.types import DType, TensorType


class Cast(Unary):
    """x in the element type `to`: towards zero from float to integer, "not zero" to bool."""

    name = "Cast"
    cost = 0

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        wanted = helper.tensor_dtype_to_np_dtype(node.attrs["to"]).name
        if wanted not in [d.value for d in DType]:
            raise UnsupportedModelError(
                f"Cast '{node.ref}': element type {wanted} is not supported; known are "
                f"{', '.join(d.value for d in DType)}"
            )
        return super().infer(node, operands, count)

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        before, after = site.operands[0].dtype, site.results[0].dtype
        return x[0] if before is after else emit.cast(x[0], after)


class CastLike(Cast):
    """Operand 0 in the element type of operand 1."""

    name = "CastLike"

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        return (TensorType(operands[1].dtype, operands[0].shape),)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        return super().lower(emit, site, tensors[0])
