"""The lowering language of operators as stages: what each tensor's element is, before loops are decided.

`Stages` implements `compiler.ir.op.Emitter`. Bodies are kept as functions and evaluated again wherever code is
made, so that indices, and with them the conditions that guard reads, are simplified for the loops they stand in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx

from compiler.codegen.generic.index import Compound, Condition, Index, LoopVar, index_or_none, known_truth
from compiler.codegen.generic.scalar import (
    COSTLY,
    FUNCTIONS,
    INDEXED,
    LOGIC,
    NO_HALF,
    as_expr,
    dtype_of,
    identity,
    literal,
)
from compiler.codegen.generic.tables import Break, holds_positions, piece
from compiler.errors import LoweringError
from compiler.ir.graph import Site
from compiler.ir.op import Combine, Expr, Tensor
from compiler.ir.types import DType, splat_value

_INLINE = 1  # constants of this many elements become literals


@dataclass(eq=False)
class Source:
    """A buffer that bodies read: an input as it lies in memory, or a constant table (`array`).

    `order` lists the axes from the slowest to the fastest; tables may be stored transposed, inputs lie as they are.
    """

    name: str
    extents: tuple[int, ...]
    dtype: str
    array: np.ndarray | None = None
    order: tuple[int, ...] = ()
    buffer: Any = None
    used: bool = False

    def __post_init__(self) -> None:
        self.order = tuple(range(len(self.extents)))

    @property
    def size(self) -> int:
        return math.prod(self.extents)

    def strides(self) -> tuple[int, ...]:
        """Elements between neighbours, per axis."""
        found, step = [0] * len(self.extents), 1
        for axis in reversed(self.order):
            found[axis], step = step, step * self.extents[axis]
        return tuple(found)

    def address(self, at: Sequence[Any]) -> Any:
        """Flat position of the element at `at`: an `Index`, or a TVM expression where data decides."""
        total: Any = Index({})
        for position, stride in zip(at, self.strides(), strict=True):
            total = total + position * stride
        return total


@dataclass(frozen=True, eq=False)
class Access:
    """One read or write found by looking at a body: where, and which variables data-dependent parts vary by."""

    source: Source | None
    at: tuple[Any, ...]
    address: Index | None
    unknown: frozenset[LoopVar]
    write: bool = False

    def step(self, variable: LoopVar) -> int | None:
        """Elements between the accesses of neighbouring values of the variable; None where that varies."""
        if variable in self.unknown or self.address is None:
            return None
        return self.address.step(variable)

    def crosses(self, outer: LoopVar, inner: LoopVar, extent: int) -> bool:
        """Whether one loop over `inner` that goes on past its `extent` values reads what the two loops would.

        Never in a table of positions: a row of it may be read as a line, which no other row need follow.
        """
        step, unit = self.step(outer), self.step(inner)
        if self.source is not None and self.source.array is not None:
            address = self.source.address(self.at)  # a table may lie otherwise than when it was looked at
            if holds_positions(self.source.array) or not isinstance(address, Index):
                return False
            step, unit = address.step(outer), address.step(inner)
        return step is not None and unit is not None and step == unit * extent


@dataclass(eq=False)
class Stage:
    """A tensor that an operator defines. `extents` of a reduction follow the indices in calls of `body`."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    body: Callable[..., Any]
    extents: tuple[int, ...] = ()
    kind: Combine | None = None
    inline: bool = True
    region: Any = None
    """Where computed elements are found while code is made (`nest.Region`)."""


@dataclass
class Notes:
    """What evaluating bodies showed: accesses, undecided conditions, tables that change their slope, readers."""

    accesses: list[Access] = field(default_factory=list)
    conditions: list[Condition] = field(default_factory=list)
    breaks: list[Break] = field(default_factory=list)
    reads: list[tuple[Stage, tuple[Any, ...]]] = field(default_factory=list)
    valued: set[LoopVar] = field(default_factory=set)
    """Variables whose value enters a result, not only an address."""
    costly: bool = False
    origin: dict[Any, frozenset[LoopVar]] = field(default_factory=dict)
    """Stand-ins of elements read, with the variables they vary by."""
    made: dict[Any, tuple[Any, tuple[Any, ...]]] = field(default_factory=dict)
    """Stand-ins with the access or read they stand for and the index it is at."""
    guards: list[tuple[Any, Any]] = field(default_factory=list)

    def keep_used(self, value: Any) -> None:
        """Drop what only branches contain that a settled condition left out of `value`."""
        found: list[Any] = []
        tests: list[Any] = []
        open_ = [value]

        def variable(v: Any) -> None:
            if v in self.made and not any(v.same_as(f) for f in found):
                found.append(v)
                open_.extend(i for i in self.made[v][1] if not isinstance(i, Index | int))

        def call(c: Any) -> None:
            if str(getattr(c.op, "name", "")).endswith("if_then_else"):
                tests.append(c.args[0])

        visitors = [(tvm.ir.Var, variable), (tvm.ir.Call, call)]
        while open_:
            tvm_ffi.structural_walk(as_expr(open_.pop()), visitors)
        kept = [self.made[v][0] for v in found]
        self.accesses = [k for k in kept if isinstance(k, Access)]
        self.reads = [k for k in kept if not isinstance(k, Access)]
        self.conditions = [atom for e, c in self.guards if any(t.same_as(e) for t in tests) for atom in c.atoms()]


class Operand:
    """A tensor of the lowering language: index it to read an element."""

    def __init__(self, shape: Sequence[int], dtype: DType, read: Callable[..., Any]) -> None:
        self._shape, self._dtype, self._read = tuple(shape), dtype, read

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def dtype(self) -> DType:
        return self._dtype

    def __call__(self, *indices: Expr) -> Expr:
        if len(indices) != len(self._shape):
            raise LoweringError(f"{len(indices)} indices for a tensor of shape {self._shape}")
        return self._read(*indices)


class Stages:
    """The `Emitter`. `notes` is set while bodies are only looked at; otherwise reads become loads."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self.tables: list[Source] = []
        self.notes: Notes | None = None
        self.guards: list[tuple[Any, Any]] = []
        """Undecided conditions met since the statement began: (TVM expression, condition)."""
        self.assumed: set[Any] = set()
        """Keys of conditions that loop bounds make true."""
        self.unsafe: list[Any] = []
        """Loads of the statement that may lie outside their buffer unless a condition guards them."""
        self._memo: dict[Any, Any] = {}
        self._keep: list[Any] = []

    # ------------------------------------------------------------------ Emitter
    def compute(self, shape: Sequence[int], dtype: DType, body: Callable[..., Expr]) -> Tensor:
        """See `Emitter.compute`."""
        return self._tensor(Stage(f"t{len(self.stages)}", tuple(shape), dtype, body))

    def reduce(
        self,
        shape: Sequence[int],
        dtype: DType,
        extents: Sequence[int],
        kind: Combine,
        body: Callable[..., Expr],
    ) -> Tensor:
        """See `Emitter.reduce`."""
        if dtype is DType.FLOAT16 and kind in ("sum", "prod"):  # half floats lose what they add up
            wide = self.reduce(shape, DType.FLOAT32, extents, kind, body)
            return self.compute(shape, dtype, lambda *at: self.cast(wide(*at), dtype))
        if math.prod(extents) == 0:
            return self.compute(shape, dtype, lambda *at: identity(kind, dtype))
        if not extents:
            return self.compute(shape, dtype, body)
        name = f"r{len(self.stages)}"
        return self._tensor(Stage(name, tuple(shape), dtype, body, tuple(extents), kind, inline=False))

    def constant(self, array: np.ndarray) -> Tensor:
        """See `Emitter.constant`. A table is there before any body is: what reads it may only show when bodies are
        put into each other. One that no body reads (a target shape, say) is not passed.
        """
        dtype = DType(array.dtype.name)
        element = splat_value(array)
        if not array.size:  # never read, but operators may mention it
            return Operand(array.shape, dtype, lambda *i: self.const(0, dtype))
        if array.size <= _INLINE or element is not None:
            value = (array.reshape(-1)[0] if element is None else element).item()
            return Operand(array.shape, dtype, lambda *i: self.const(value, dtype))
        table = Source(f"c{len(self.tables)}", array.shape, array.dtype.name, array)
        self.tables.append(table)

        def read(*at: Expr) -> Expr:
            known = piece(array, at, [] if self.notes is None else self.notes.breaks)
            return self.load(table, at) if known is None else known

        return Operand(array.shape, dtype, read)

    def const(self, value: bool | int | float, dtype: DType) -> Expr:
        """See `Emitter.const`."""
        return literal(value, dtype)

    def cast(self, value: Expr, dtype: DType) -> Expr:
        """See `Emitter.cast`."""
        value = self._value(value)
        if dtype is DType.BOOL:
            true = tirx.NE(value, tirx.const(0, dtype_of(value)))  # which NaN is not, to LLVM
            return tirx.Or(tirx.isnan(value), true) if dtype_of(value).startswith("float") else true
        if dtype_of(value) == "bool" != dtype.value:  # a cast of compared vectors cannot be bound to a name
            return tirx.Select(value, literal(1, dtype), literal(0, dtype))
        return value if dtype_of(value) == dtype.value else tirx.Cast(dtype.value, value)

    def select(self, condition: Expr, yes: Expr, no: Expr) -> Expr:
        """See `Emitter.select`."""
        truth = known_truth(condition)
        if truth is None and self.notes is None and self._is_assumed(condition):
            truth = True
        if truth is not None:
            return yes if truth else no
        decided = as_expr(condition)
        if isinstance(condition, Condition | Compound):
            (self.guards if self.notes is None else self.notes.guards).append((decided, condition))
        chosen, other = _alike(self._value(yes), self._value(no))
        if self._harmless(chosen) and self._harmless(other):
            return tirx.Select(decided, chosen, other)
        return tirx.if_then_else(decided, chosen, other)

    def call(self, function: str, *arguments: Expr) -> Expr:
        """See `Emitter.call`."""
        if function in LOGIC:
            return LOGIC[function](*arguments)
        if function not in FUNCTIONS:
            raise LoweringError(f"the lowering language has no function '{function}'")
        if function in INDEXED and all(isinstance(a, Index) for a in arguments):
            return INDEXED[function](*arguments)
        values: Sequence[Any] = [self._value(a) for a in arguments]
        if function in INDEXED:
            values = _alike(*values)
        if self.notes is not None and function in COSTLY:
            self.notes.costly = True
        if function in NO_HALF and dtype_of(values[0]) == "float16":
            wide = FUNCTIONS[function](*(tirx.Cast("float32", v) for v in values))
            return tirx.Cast("float16", wide)
        return FUNCTIONS[function](*values)

    def recurrent(self, site: Site, tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """Loop-carried state has no tensor expression; the planner uses the template instead."""
        raise LoweringError(f"{site.node.op.name} '{site.node.ref}' is lowered by a template only")

    # ------------------------------------------------------------------ evaluation
    def begin(self) -> None:
        """Start a statement: forget what the last one read."""
        self._memo.clear()
        self._keep.clear()
        self.guards.clear()
        self.unsafe.clear()

    def element(self, stage: Stage, at: Sequence[Any]) -> Any:
        """The TVM expression of the stage's body at `at`, in the stage's type."""
        value = self._value(stage.body(*at))
        if stage.dtype is DType.BOOL and self.notes is None:
            value = undecided(value)
        return value if dtype_of(value) == stage.dtype.value else tirx.Cast(stage.dtype.value, value)

    def load(self, source: Source, at: Sequence[Any]) -> Any:
        """The element of `source` at `at`."""
        address = source.address(at)
        if self.notes is not None:
            return self._noted(source, at, address, source.dtype)
        source.used = True
        loaded = tirx.BufferLoad(source.buffer, [as_expr(address)])
        if not isinstance(address, Index) or address.interval[0] < 0 or address.interval[1] >= source.size:
            self.unsafe.append(loaded)
        return loaded

    def varies_by(self, expr: Any) -> frozenset[LoopVar]:
        """The loop variables a data-dependent expression hangs on, as far as noted."""
        assert self.notes is not None
        found: set[LoopVar] = set()
        origin = self.notes.origin

        def note(variable: Any) -> None:
            found.update(origin.get(variable, ()))

        tvm_ffi.structural_walk(as_expr(expr), [(tvm.ir.Var, note)])
        return frozenset(found)

    def known(self, variables: Sequence[LoopVar]) -> None:
        """Let data-dependent expressions be traced to these variables."""
        if self.notes is not None:
            self.notes.origin.update({v.expr: frozenset((v,)) for v in variables})

    def _tensor(self, stage: Stage) -> Tensor:
        self.stages.append(stage)
        return Operand(stage.shape, stage.dtype, lambda *at: self._read(stage, at))

    def _read(self, stage: Stage, at: Sequence[Any]) -> Any:
        at = [i if (known := index_or_none(i)) is None else known for i in at]
        if not stage.inline:
            if self.notes is not None:
                return self._noted(stage, at, sum(at, Index({})), stage.dtype.value)
            if stage.region is None:  # in a branch that is left out; anywhere else this is an undefined variable
                return tirx.Var(f"no_{stage.name}", stage.dtype.value)
            return stage.region.load(at)
        key = (stage, *(i.key if isinstance(i, Index) else id(i) for i in at))
        if key not in self._memo:
            self._keep.append(at)  # an id is only unique while its owner lives
            self._memo[key] = self.element(stage, at)
        return self._memo[key]

    def _noted(self, read: Source | Stage, at: Sequence[Any], address: Any, dtype: str) -> Any:
        assert self.notes is not None
        linear = address if isinstance(address, Index) else None
        unknown = frozenset() if linear is not None else self.varies_by(address)
        stand_in, index = tirx.Var("e", dtype), tuple(at)
        self.notes.origin[stand_in] = unknown if linear is None else frozenset(linear.variables())
        access = Access(read, index, linear, unknown) if isinstance(read, Source) else (read, index)
        self.notes.made[stand_in] = (access, index)
        return stand_in

    def _value(self, value: Any) -> Any:
        """A TVM expression; an index that becomes a value is noted."""
        if isinstance(value, Index | Condition | Compound) and self.notes is not None:
            indices = [value] if isinstance(value, Index) else [a.index for a in value.atoms()]
            for index in indices:
                self.notes.valued |= index.variables()
        return as_expr(value)

    def _is_assumed(self, condition: Any) -> bool:
        parts = _conjuncts(condition)
        return all(isinstance(c, Condition) and c.key in self.assumed for c in parts)

    def _harmless(self, expr: Any) -> bool:
        """Whether evaluating needs no guard: no load may leave its buffer, no integer division may trap."""
        if self.notes is not None:
            return False
        found: list[Any] = []
        divisions = (tirx.Div, tirx.Mod, tirx.FloorDiv, tirx.FloorMod)

        def division(node: Any) -> None:
            if "int" in dtype_of(node) and not isinstance(node.b, tirx.IntImm):
                found.append(node)

        def load(node: Any) -> None:
            if any(node.same_as(u) for u in self.unsafe):
                found.append(node)

        tvm_ffi.structural_walk(expr, [(divisions, division), (tvm.ir.TensorLoad, load)])
        return not found


def undecided(value: Any) -> Any:
    """A comparison of numbers so that TVM takes it as it is: to TVM one that fails means that the opposite holds.

    With NaN neither holds. LLVM leaves nothing of it.
    """
    comparisons = (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE)
    if not isinstance(value, comparisons) or "float" not in dtype_of(value.a):
        return value
    one, zero = (tirx.IntImm("int8", n) for n in (1, 0))
    return tirx.EQ(tirx.Select(value, one, zero), one)


def _alike(a: Any, b: Any) -> tuple[Any, Any]:
    """Both in one type: a run of an int64 table is an index, and indices are int32."""
    kinds = dtype_of(a), dtype_of(b)
    if set(kinds) != {"int32", "int64"}:
        return a, b
    return (tirx.Cast("int64", a), b) if kinds[0] == "int32" else (a, tirx.Cast("int64", b))


def _conjuncts(condition: Any) -> list[Any]:
    """What must hold for a condition to hold."""
    if isinstance(condition, Compound) and condition.kind == "and":
        return [c for part in condition.of for c in _conjuncts(part)]
    return [condition]
