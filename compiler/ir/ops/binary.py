"""Element-wise arithmetic on two or more tensors, with broadcasting."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import ClassVar

import numpy as np

from compiler.ir.graph import Node, Operands, Site
from compiler.ir.op import Emitter, Expr, Tensor
from compiler.ir.ops.elementwise import Broadcast, check, check_choice, required
from compiler.ir.types import DType, TensorType


def truncated_quotient(emit: Emitter, dtype: DType, a: Expr, b: Expr) -> Expr:
    """a / b of integers, rounded towards zero as in C; 0 where b is 0, wrapped around where it does not fit.

    Processors trap on both, and data must not be able to end the program that calls.
    """
    zero, one = emit.const(0, dtype), emit.const(1, dtype)
    if dtype.numpy.kind == "u":
        return emit.select(b == zero, zero, emit.call("quotient", a, emit.select(b == zero, one, b)))
    minus = emit.const(-1, dtype)
    trapped = emit.call("or", b == zero, b == minus)
    whole = emit.call("quotient", a, emit.select(trapped, one, b))
    return emit.select(b == zero, zero, emit.select(b == minus, emit.call("sub", zero, a), whole))


class Add(Broadcast):
    """a + b; integers wrap around."""

    name = "Add"

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        return emit.call("add", *x)


class Sub(Broadcast):
    """a - b; integers wrap around."""

    name = "Sub"

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        return emit.call("sub", *x)


class Mul(Broadcast):
    """a * b; integers wrap around."""

    name = "Mul"

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        return emit.call("mul", *x)


class Div(Broadcast):
    """a / b; integers are rounded towards zero, and anything by zero is zero."""

    name = "Div"

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        dtype = site.results[0].dtype
        return emit.call("div", *x) if dtype.is_float else truncated_quotient(emit, dtype, *x)


class Mod(Broadcast):
    """Remainder of a / b with the sign of b, or with the sign of a as in C when `fmod` is set.

    Of integers, the remainder by zero is zero.
    """

    name = "Mod"

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        a, b = required(arrays), required(arrays, 1)
        return (np.asarray(np.fmod(a, b) if site.int("fmod") else np.mod(a, b), a.dtype),)

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        dtype, (a, b) = site.results[0].dtype, x
        zero = emit.const(0, dtype)
        if dtype.is_float:
            rest = emit.call("fmod", a, b)
        else:
            whole = emit.call("mul", truncated_quotient(emit, dtype, a, b), b)
            rest = emit.select(b == zero, zero, emit.call("sub", a, whole))
        if site.int("fmod") or dtype.numpy.kind == "u":
            return rest
        differ = emit.call("and", rest != zero, emit.call("xor", rest < zero, b < zero))
        return emit.select(differ, rest + b, rest)


class Pow(Broadcast):
    """a to the power b, in the type of a; integers by way of float64, as onnxruntime does it."""

    name = "Pow"

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        a, b = required(arrays), required(arrays, 1)
        if a.dtype.kind == "i" and b.dtype.kind == "i" and (b < 0).any():  # numpy has no such powers
            return (np.power(a.astype(np.float64), b).astype(a.dtype),)
        each = np.broadcast_to(b, site.results[0].shape).copy()  # of one exponent 0.5 numpy takes square roots
        return super().evaluate(site, (a, each))

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        power, dtype = whole_power(site), site.results[0].dtype
        if power is not None:
            return reduce(lambda product, _: emit.call("mul", product, x[0]), range(power - 1), x[0])
        if dtype.is_float:
            return emit.call("pow", x[0], emit.cast(x[1], dtype))
        wide = DType.FLOAT64
        return emit.cast(emit.call("pow", emit.cast(x[0], wide), emit.cast(x[1], wide)), dtype)


def whole_power(site: Site) -> int | None:
    """The exponent of a Pow where it is the constant 1, 2, 3 or 4: repeated products are faster than `pow`."""
    data = site.operands[1].data
    if data is None or data.size == 0 or not np.all(data == data.reshape(-1)[0]):
        return None
    value = data.reshape(-1)[0]
    return int(value) if value in (1, 2, 3, 4) else None


class Folded(Broadcast):
    """Any number of operands combined one after the other; n - 1 combinations per result element."""

    def combine(self, emit: Emitter, a: Expr, b: Expr) -> Expr:
        """One step."""
        return a + b

    def flops(self, site: Site) -> int:
        return (len(site.operands) - 1) * site.results[0].size

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        return reduce(lambda a, b: self.combine(emit, a, b), x)


class Sum(Folded):
    """Sum of all operands."""

    name = "Sum"


class Mean(Folded):
    """Mean of all operands."""

    name = "Mean"

    def flops(self, site: Site) -> int:
        return len(site.operands) * site.results[0].size

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        present = [a for a in arrays if a is not None]  # onnx.reference only broadcasts to the first operand
        total = reduce(np.add, present)
        return (np.asarray(total / total.dtype.type(len(present)), total.dtype),)

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        return super().scalar(emit, site, *x) / emit.const(len(x), site.results[0].dtype)


class Max(Folded):
    """Largest of all operands, NaN where one is."""

    name = "Max"

    def combine(self, emit: Emitter, a: Expr, b: Expr) -> Expr:
        return emit.call("maximum", a, b)


class Min(Folded):
    """Smallest of all operands, NaN where one is."""

    name = "Min"

    def combine(self, emit: Emitter, a: Expr, b: Expr) -> Expr:
        return emit.call("minimum", a, b)


class Clip(Broadcast):
    """min(max(x, low), high); either bound may be absent, or NaN, which limits nothing; both are scalars."""

    name = "Clip"

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        check(node, all(b.size == 1 for b in operands[1:]), "a bound is not a scalar")
        return super().infer(node, operands, count)

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x, low, high = (*arrays, None, None)[:3]
        assert x is not None
        for bound, beyond in ((low, np.less), (high, np.greater)):  # no comparison with NaN holds
            x = x if bound is None else np.where(beyond(x, bound.reshape(())), bound.reshape(()), x)
        return (np.asarray(x),)

    def flops(self, site: Site) -> int:
        return (len(site.operands.present()) - 1) * site.results[0].size

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """Bounds of one entry may have axes, also more of them than x."""
        bounds = [None if t is None else _only_entry(emit, t) for t in tensors[1:]]
        return super().lower(emit, site, tensors[0], *bounds)

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        value, bounds = x[0], list(x[1:])
        if site.operands.optional(1) is not None:
            value = emit.call("max", bounds.pop(0), value)
        return emit.call("min", bounds[0], value) if bounds else value


def _only_entry(emit: Emitter, tensor: Tensor) -> Tensor:
    """A tensor of one entry as a scalar."""
    return emit.compute((), tensor.dtype, lambda: tensor(*(0,) * len(tensor.shape))) if tensor.shape else tensor


class Bitwise(Broadcast):
    """An integer operator that is one scalar function."""

    function: ClassVar[str]

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        return emit.call(self.function, *x)


class BitwiseAnd(Bitwise):
    """a & b."""

    name = "BitwiseAnd"
    function = "bitand"


class BitwiseOr(Bitwise):
    """a | b."""

    name = "BitwiseOr"
    function = "bitor"


class BitwiseXor(Bitwise):
    """a ^ b."""

    name = "BitwiseXor"
    function = "bitxor"


class BitShift(Broadcast):
    """Unsigned a shifted by b bits, `direction` LEFT or RIGHT; nothing is left of it by as many as it has."""

    name = "BitShift"

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        check_choice(node, "direction", "LEFT", "RIGHT")
        return super().infer(node, operands, count)

    def scalar(self, emit: Emitter, site: Site, *x: Expr) -> Expr:
        dtype, (value, count) = site.results[0].dtype, x
        most = emit.const(8 * dtype.numpy.itemsize - 1, dtype)  # processors agree up to here
        shifted = emit.call(
            "shl" if site.str("direction") == "LEFT" else "shr", value, emit.call("min", count, most)
        )
        return emit.select(count > most, emit.const(0, dtype), shifted)
