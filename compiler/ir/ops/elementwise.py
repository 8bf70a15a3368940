"""Base classes of operators that work element by element, with numpy-style broadcasting."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, TypeVar

import numpy as np

from compiler.errors import UnsupportedModelError, VerifyError
from compiler.ir.graph import Node, Operands, Site, Value
from compiler.ir.op import Emitter, Expr, Op, Tensor, Tie, identity
from compiler.ir.types import DType, TensorType

T = TypeVar("T")


def positive(axis: int, rank: int) -> int:
    """`axis` counted from the front."""
    return axis + rank if axis < 0 else axis


def required(operands: Sequence[T | None], index: int = 0) -> T:
    """The operand at `index` (an array, or a lowered tensor), which the operator's schema makes mandatory."""
    operand = operands[index]
    assert operand is not None
    return operand


def aligned(tensor: Tensor, at: Sequence[Expr]) -> Expr:
    """Element of `tensor` broadcast to the (higher or equal) rank of the index `at`."""
    rank = len(tensor.shape)
    tail = at[len(at) - rank :]
    return tensor(*(0 if n == 1 else i for n, i in zip(tensor.shape, tail, strict=True)))


def broadcast_ties(operand: Value, result: Value) -> Iterator[Tie]:
    """Identity for every axis the operand really has; a broadcast axis (size 1) has no tie."""
    shift = result.rank - operand.rank
    for dim, size in enumerate(operand.shape):
        if size > 1:
            yield identity(operand, dim, result, dim + shift)


def check(node: Node, holds: bool, reason: str) -> None:
    """Raise VerifyError with `reason` unless it holds: what ONNX's own inference lets pass."""
    if not holds:
        raise VerifyError(f"{node.op.name} '{node.ref}': {reason}")


def check_choice(node: Node, name: str, *allowed: str) -> None:
    """Raise VerifyError unless the string attribute `name` is one of `allowed`."""
    value = node.attrs[name]
    check(node, value in allowed, f"{name}='{value}'; the choices are {', '.join(allowed)}")


class Static(Op):
    """An operator some of whose operands must be constants, such as the target shape of a Reshape.

    Folding turns computed shapes into constants first; what is left depends on the input data, so the shape of
    the result would too.
    """

    static: ClassVar[tuple[tuple[int, str], ...]]
    """Formal position and ONNX name of each operand that must be constant when it is present."""

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        self.check_static(node, operands)
        return super().infer(node, operands, count)

    def check_static(self, node: Node, operands: Operands) -> None:
        """Raise UnsupportedModelError for every operand that must be constant and is not."""
        wrong = [
            f"'{name}' (operand {i}, value '{value.ref}')"
            for i, name in self.static
            if (value := operands.optional(i)) is not None and value.data is None
        ]
        if wrong:
            raise UnsupportedModelError(
                f"{self.name} '{node.ref}': {' and '.join(wrong)} must be constant after folding, because shapes "
                f"are static; export the model with fixed shapes or make it an initializer"
            )


class Movement(Op):
    """An operator that copies elements and computes nothing."""

    def flops(self, site: Site) -> int:
        return 0


class Broadcast(Op):
    """Element by element over operands broadcast to one shape: every result entry reads one of each operand."""

    cost: ClassVar[int] = 1
    """Scalar operations per result element (docs/cost.md)."""

    @abc.abstractmethod
    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        """The result element from the operand elements."""

    def flops(self, site: Site) -> int:
        return self.cost * site.results[0].size

    def ties(self, site: Site) -> Iterator[Tie]:
        for _, operand in site.operands.present():
            yield from broadcast_ties(operand, site.results[0])

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        present = [t for t in tensors if t is not None]
        y = site.results[0]

        def element(*at: Expr) -> Expr:
            return self.scalar(emit, site, *(aligned(t, at) for t in present))

        return (emit.compute(y.shape, y.dtype, element),)


class Unary(Broadcast):
    """One operand, same shape: every axis keeps its entries."""

    def ties(self, site: Site) -> Iterator[Tie]:
        x, y = site.operands[0], site.results[0]
        yield from (identity(x, dim, y, dim) for dim in range(x.rank))


class Called(Unary):
    """A unary operator that is one scalar function of the lowering language."""

    function: ClassVar[str]

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        return emit.call(self.function, x[0])


def limits(dtype: DType) -> tuple[float | int, float | int]:
    """Lowest and highest value: neutral for max and min. Infinite for floats."""
    if dtype.is_float:
        return -math.inf, math.inf
    if dtype is DType.BOOL:
        return 0, 1
    info = np.iinfo(dtype.value)
    return int(info.min), int(info.max)
