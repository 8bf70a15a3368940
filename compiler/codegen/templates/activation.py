"""What a template does to a sum before it stores it: element-wise operators on vectors in registers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tvm import tirx

from compiler.codegen.functions import let
from compiler.codegen.generic.language import Stages
from compiler.ir.graph import Site
from compiler.ir.op import Expr
from compiler.ir.ops.elementwise import Broadcast
from compiler.ir.types import DType


@dataclass(frozen=True, slots=True)
class Taken:
    """An operand made in the kernel: 0 is the sum, k the result of step k, -1 the residual."""

    index: int


@dataclass(frozen=True, slots=True)
class Number:
    """An operand that is the same for every element."""

    value: float


Source = Taken | Number
SUM, RESIDUAL = Taken(0), Taken(-1)


@dataclass(frozen=True, slots=True)
class Step:
    """One operator; `operands` by formal position, None where absent. Equal steps compute the same."""

    op: str
    attrs: tuple[tuple[str, Any], ...]
    operands: tuple[Source | None, ...]
    site: Site = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Activation:
    """Steps in order; the last one's result is stored. No steps store the sum."""

    steps: tuple[Step, ...] = ()

    def apply(self, value: Any, width: int, residual: Any = None) -> Any:
        """The vector to store for the vector `value` (bias included) and the residual's vector."""
        return self._after(0, {SUM: value, RESIDUAL: residual}, _Lanes(width))

    def _after(self, done: int, known: dict[Source, Any], emit: _Lanes) -> Any:
        """The result of the last step; values that several steps may read get a name."""
        if done == len(self.steps):
            return known[Taken(done)]
        step = self.steps[done]
        operator = step.site.node.op
        assert isinstance(operator, Broadcast)

        def scalar(known: dict[Source, Any]) -> Any:
            given = [o for o in step.operands if o is not None]
            x = [emit.const(o.value, DType.FLOAT32) if isinstance(o, Number) else known[o] for o in given]
            return operator.scalar(emit, step.site, *x)

        def rest(name: Any) -> Any:
            here = {**known, Taken(done): name}
            return self._after(done + 1, {**here, Taken(done + 1): scalar(here)}, emit)

        return let(known[Taken(done)], rest)


class _Lanes(Stages):
    """The scalar language of operators on vectors of `width` lanes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width

    def const(self, value: bool | int | float, dtype: DType) -> Expr:
        """A literal in every lane."""
        return self._splat(super().const(value, dtype))

    def cast(self, value: Expr, dtype: DType) -> Expr:
        """Conversion lane by lane."""
        if dtype is DType.BOOL:
            return super().cast(value, dtype)
        return tirx.Cast(dtype.value if self._width == 1 else f"{dtype.value}x{self._width}", value)

    def select(self, condition: Expr, yes: Expr, no: Expr) -> Expr:
        """Choice lane by lane; both branches are evaluated."""
        return tirx.Select(condition, yes, no)

    def _splat(self, value: Any) -> Any:
        return value if self._width == 1 else tirx.Broadcast(value, self._width)
