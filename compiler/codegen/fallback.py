"""Generic lowering: operators' `lower` methods on TVM tensor expressions, fused per group, with a default schedule.

Every operator has this route; hand-written templates replace it where the planner prefers them, and are tested
against it. A group of nodes becomes one PrimFunc: stages without reduction are inlined, the others live in
scratch memory. Layouts are index maps at the edge of the group, so a group reads and writes any layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tvm
import tvm_ffi
from tvm import te, tirx
from tvm.sym.analyzer import Analyzer

from compiler.codegen.layout import Layout, Plain
from compiler.errors import LoweringError
from compiler.ir.graph import Site, Value
from compiler.ir.op import Expr, Tensor
from compiler.ir.types import DType, ValueRef, splat_value

_INLINE = 1  # constants of this many elements become literals


def _expr(value: Any) -> Any:
    """A PrimExpr from a Python number, a comparison or an expression."""
    return value.asobject() if hasattr(value, "asobject") else tirx.convert(value)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(tirx, name)
        for name in (
            "exp log sqrt tanh sigmoid erf sin cos tan asin acos atan sinh cosh asinh acosh atanh "
            "floor ceil trunc abs isnan isinf min max"
        ).split()
    },
    "round": tirx.nearbyint,
    "pow": tirx.power,
    "and": lambda a, b: tirx.And(a, b),
    "or": lambda a, b: tirx.Or(a, b),
    "not": lambda a: tirx.Not(a),
    "xor": lambda a, b: tirx.And(tirx.Or(a, b), tirx.Not(tirx.And(a, b))),
    "fmod": lambda a, b: tirx.call_pure_extern(_dtype(a), "fmodf" if _dtype(a) == "float32" else "fmod", a, b),
    "bitand": tirx.bitwise_and,
    "bitor": tirx.bitwise_or,
    "bitxor": tirx.bitwise_xor,
    "bitnot": tirx.bitwise_not,
    "shl": tirx.shift_left,
    "shr": tirx.shift_right,
}

_NO_HALF = frozenset("erf asin acos atan sinh cosh asinh acosh atanh fmod".split())
"""Functions that come from the C library, which has none for half floats."""


class Operand:
    """A tensor of the lowering language: logical shape, read through a layout's index map."""

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


class TensorExpressions:
    """The `Emitter` on TVM tensor expressions. `tables` collects constants the kernel reads by pointer."""

    def __init__(self) -> None:
        self.tables: list[tuple[Any, np.ndarray]] = []
        self._count = 0

    def _name(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self._count}"

    def _wrap(self, tensor: Any, shape: Sequence[int], dtype: DType) -> Operand:
        if not shape:
            return Operand((), dtype, lambda: tensor(0))
        return Operand(shape, dtype, lambda *i: tensor(*i))

    def compute(self, shape: Sequence[int], dtype: DType, body: Callable[..., Expr]) -> Tensor:
        """See `Emitter.compute`."""
        dims = tuple(shape) or (1,)

        def element(*at: Any) -> Any:
            value = _expr(body(*at) if shape else body())
            return value if _dtype(value) == dtype.value else tirx.Cast(dtype.value, value)

        return self._wrap(te.compute(dims, element, name=self._name("t")), shape, dtype)

    def reduce(
        self,
        shape: Sequence[int],
        dtype: DType,
        extents: Sequence[int],
        kind: Literal["sum", "max", "min", "prod"],
        body: Callable[..., Expr],
    ) -> Tensor:
        """See `Emitter.reduce`."""
        if dtype is DType.FLOAT16 and kind in ("sum", "prod"):  # half floats lose what they add up
            wide = self.reduce(shape, DType.FLOAT32, extents, kind, body)
            return self.compute(shape, dtype, lambda *at: self.cast(wide(*at), dtype))
        if math.prod(extents) == 0:
            return self.compute(shape, dtype, lambda *at: _identity(kind, dtype))
        axes = [te.reduce_axis((0, e), name=self._name("k")) for e in extents]
        combine = _REDUCERS[kind]

        def element(*at: Any) -> Any:
            value = _expr(body(*(at if shape else ()), *axes))
            value = value if _dtype(value) == dtype.value else tirx.Cast(dtype.value, value)
            return combine(value, axis=axes) if axes else value

        tensor = te.compute(tuple(shape) or (1,), element, name=self._name("r" if axes else "t"))
        return self._wrap(tensor, shape, dtype)

    def constant(self, array: np.ndarray) -> Tensor:
        """See `Emitter.constant`. A table that no body reads (a target shape, say) is not passed."""
        dtype = DType(array.dtype.name)
        element = splat_value(array)
        if not array.size:  # never read, but operators may mention it
            return Operand(array.shape, dtype, lambda *i: self.const(0, dtype))
        if array.size <= _INLINE or element is not None:
            literal = array.reshape(-1)[0] if element is None else element
            return Operand(array.shape, dtype, lambda *i: self.const(literal.item(), dtype))
        made: list[Tensor] = []

        def read(*at: Expr) -> Expr:
            if not made:
                table = te.placeholder(tuple(array.shape), dtype.value, name=self._name("c"))
                self.tables.append((table, array))
                made.append(self._wrap(table, array.shape, dtype))
            return made[0](*at)

        return Operand(array.shape, dtype, read)

    def const(self, value: bool | int | float, dtype: DType) -> Expr:
        """See `Emitter.const`."""
        return _literal(value, dtype)

    def cast(self, value: Expr, dtype: DType) -> Expr:
        """See `Emitter.cast`."""
        value = _expr(value)
        if dtype is DType.BOOL:
            return tirx.NE(value, tirx.const(0, _dtype(value)))
        return tirx.Cast(dtype.value, value)

    def select(self, condition: Expr, yes: Expr, no: Expr) -> Expr:
        """See `Emitter.select`."""
        return tirx.if_then_else(_expr(condition), _expr(yes), _expr(no))

    def call(self, function: str, *arguments: Expr) -> Expr:
        """See `Emitter.call`."""
        if function not in _FUNCTIONS:
            raise LoweringError(f"the lowering language has no function '{function}'")
        values = [_expr(a) for a in arguments]
        if function in _NO_HALF and _dtype(values[0]) == "float16":
            wide = _FUNCTIONS[function](*(tirx.Cast("float32", v) for v in values))
            return tirx.Cast("float16", wide)
        return _FUNCTIONS[function](*values)

    def recurrent(self, site: Site, tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """Loop-carried state has no tensor expression; the planner uses the template instead."""
        raise LoweringError(f"{site.node.op.name} '{site.node.ref}' is lowered by a template only")


def _dtype(expr: Any) -> str:
    return str(expr.dtype) if hasattr(expr, "dtype") else str(expr.ty.dtype)


def _literal(value: bool | int | float, dtype: DType) -> Any:
    if dtype is DType.BOOL:
        return tirx.const(bool(value), "bool")
    if dtype.is_integer:
        return tirx.const(int(value), dtype.value)
    number = float(value)
    if math.isinf(number):
        bound = tirx.infinity(dtype.value)
        return bound if number > 0 else -bound
    if math.isnan(number):
        return tirx.infinity(dtype.value) - tirx.infinity(dtype.value)
    return tirx.const(number, dtype.value)


def _identity(kind: str, dtype: DType) -> Any:
    """The value of a reduction over nothing (ONNX: -inf / +inf or the extreme integer for max / min)."""
    if kind in ("sum", "prod"):
        return _literal(kind == "prod", dtype)
    low = kind == "max"
    if dtype is DType.BOOL:
        return _literal(not low, dtype)
    if dtype.is_float:
        return _literal(-math.inf if low else math.inf, dtype)
    limits = np.iinfo(dtype.value)
    return _literal(int(limits.min if low else limits.max), dtype)


def _extreme(kind: str) -> Any:
    pick = tirx.max if kind == "max" else tirx.min
    return te.comm_reducer(lambda a, b: pick(a, b), lambda t: _identity(kind, DType(str(t))), name=kind)


_REDUCERS: dict[str, Any] = {
    "sum": te.sum,
    "prod": te.comm_reducer(lambda a, b: a * b, lambda t: tirx.const(1, t), name="prod"),
    "max": _extreme("max"),
    "min": _extreme("min"),
}


@dataclass(frozen=True)
class GenericKernel:
    """A lowered group. Parameters in order: `inputs` (values read), `tables` (constants), then the outputs."""

    func: Any
    inputs: tuple[ValueRef, ...]
    tables: tuple[np.ndarray, ...]


def lower_group(
    sites: Sequence[Site], outputs: Sequence[Value], layouts: Mapping[ValueRef, Layout], vector: int
) -> GenericKernel:
    """One PrimFunc for `sites` (topological order) that stores `outputs`; values without a layout are plain.

    Raises LoweringError naming the node whose lowering failed.
    """
    emit = TensorExpressions()
    known: dict[ValueRef, Tensor] = {}
    inputs: list[tuple[ValueRef, Any]] = []

    def read(value: Value | None) -> Tensor | None:
        if value is None:
            return None
        if value.ref not in known:
            if value.data is not None:
                known[value.ref] = emit.constant(value.data)
            else:
                layout = layouts.get(value.ref, Plain())
                physical = te.placeholder(
                    layout.physical(value.shape) or (1,), value.dtype.value, name=f"i{len(inputs)}"
                )
                inputs.append((value.ref, physical))
                known[value.ref] = _through(layout, value, physical)
        return known[value.ref]

    for site in sites:
        tensors = [read(site.operands.optional(i)) for i in range(len(site.operands))]
        try:
            results = site.node.op.lower(emit, site, *tensors)
        except tvm.error.InternalError as error:
            raise LoweringError(f"{site.node.op.name} '{site.node.ref}': {str(error).splitlines()[-1]}") from error
        known.update({v.ref: t for v, t in zip(site.results, results, strict=True)})
    stored = [_stored(emit, layouts.get(v.ref, Plain()), v, known[v.ref]) for v in outputs]
    parameters = [t for _, t in inputs] + [t for t, _ in emit.tables] + stored
    func = schedule(te.create_prim_func(parameters), vector)
    return GenericKernel(func, tuple(r for r, _ in inputs), tuple(a for _, a in emit.tables))


def _through(layout: Layout, value: Value, physical: Any) -> Tensor:
    if not value.shape:
        return Operand((), value.dtype, lambda: physical(0))
    return Operand(value.shape, value.dtype, lambda *at: physical(*layout.index(at)))


def _stored(emit: TensorExpressions, layout: Layout, value: Value, tensor: Tensor) -> Any:
    """The stage that writes `tensor` in its layout; cells that hold no element (halo, pad lanes) get zero."""
    if not value.shape:
        return te.compute((1,), lambda i: tensor(), name="out")

    def cell(*at: Any) -> Any:
        logical, inside = layout.logical(value.shape, at)
        element = _expr(tensor(*logical))
        if inside is None:
            return element
        return tirx.if_then_else(inside, element, _literal(0, value.dtype))

    return te.compute(layout.physical(value.shape), cell, name="out")


def schedule(func: Any, vector: int) -> Any:
    """Default schedule: inline what is cheap and has no reduction, then vectorise along the last long axis."""
    sch = tvm.s_tir.Schedule(func)
    root = sch.get_sblock("root")
    for block in sch.get_child_blocks(root):
        if _is_reduction(sch, block) or block in sch.get_output_blocks(root):
            continue
        readers = len(sch.get_consumers(block))
        if readers == 1 or (readers and not _calls_function(sch.get(block))):
            sch.compute_inline(block)
    for block in sch.get_child_blocks(root):
        _innermost(sch, block, vector)
    return sch.mod["main"]


def _calls_function(block: Any) -> bool:
    """Whether a block evaluates a transcendental function, which several readers should not repeat."""
    found: list[str] = []

    def note(call: Any) -> None:
        name = str(getattr(call.op, "name", ""))
        if name in _COSTLY:
            found.append(name)

    tvm_ffi.structural_walk(block.body, [(tvm.ir.Call, note)])
    return bool(found)


_COSTLY = frozenset(
    f"tirx.{name}"
    for name in "exp log tanh sigmoid erf sin cos tan asin acos atan sinh cosh asinh acosh atanh pow fmod".split()
)


def _is_reduction(sch: Any, block: Any) -> bool:
    kinds = [int(v.iter_type) for v in sch.get(block).iter_vars]
    return any(k == 2 for k in kinds)


def _innermost(sch: Any, block: Any, vector: int) -> None:
    """Bring a long spatial loop inside the reductions and vectorise it where every access allows that.

    Without it a reduction would be innermost and stay scalar, because sums of floats are not reassociated.
    """
    loops, variables = sch.get_loops(block), sch.get(block).iter_vars
    pairs = list(zip(loops, variables, strict=True))
    spatial = [(loop, v.var) for loop, v in pairs if int(v.iter_type) != 2]
    reduced = [loop for loop, v in pairs if int(v.iter_type) == 2]
    wide = [pair for pair in spatial if int(sch.get(pair[0]).extent) >= vector]
    if not wide or (not reduced and wide[-1] is not spatial[-1]):
        return
    inner, variable = wide[-1]
    if reduced:
        sch.reorder(*[loop for loop, _ in spatial if loop is not inner], *reduced, inner)
    if _runs_along(sch.get(block), variable):
        _vectorize(sch, inner, vector)


def _vectorize(sch: Any, inner: Any, vector: int) -> None:
    """Vectors of `vector` elements, the remainder as a loop of its own."""
    extent = int(sch.get(inner).extent)
    if extent % vector:
        inner = sch.loop_partition(inner, [extent - extent % vector], preserve_unit_iters=True)[0]
    if extent >= 2 * vector:
        inner = sch.split(inner, [None, vector])[1]
    sch.vectorize(inner)


def _runs_along(statement: Any, variable: Any) -> bool:
    """Whether each index of each access grows by 0 with `variable`, or by 1 in the last dimension."""
    analyzer = Analyzer()
    fits: list[bool] = []

    def step(index: Any) -> int | None:
        moved = tvm_ffi.structural_map(index, [(tvm.ir.Var, lambda v: v + 1 if v.same_as(variable) else v)])
        difference = analyzer.simplify(moved - index)
        return int(difference.value) if isinstance(difference, tirx.IntImm) else None

    def note(access: Any) -> None:
        steps = [step(i) for i in access.indices]
        fits.append(all(s == 0 for s in steps[:-1]) and steps[-1] in (0, 1))

    accesses = (tvm.ir.TensorLoad, tirx.BufferStore)
    tvm_ffi.structural_walk(statement.body, [(accesses, note)])
    if statement.init is not None:
        tvm_ffi.structural_walk(statement.init, [(accesses, note)])
    return all(fits)


def run_site(site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
    """Compile one operator application by the generic route for this machine and run it (for tests).

    `arrays` by formal operand position; those of constant operands are ignored (the data is compiled in).
    """
    stored = [v for v in site.results if v.size]  # nothing to compute for the others
    if not stored:
        return tuple(np.zeros(v.shape, v.dtype.numpy) for v in site.results)
    kernel = lower_group([site], stored, {}, 8)
    built = tvm.tirx.build(tvm.IRModule({"main": kernel.func.with_attr("global_symbol", "main")}), target="llvm")
    by_ref = {v.ref: arrays[i] for i, v in site.operands.present()}
    feeds = [np.ascontiguousarray(by_ref[r]).reshape(site_shape(site, r)) for r in kernel.inputs]
    outs = [np.zeros(v.shape or (1,), v.dtype.numpy) for v in stored]
    tensors = [tvm.runtime.tensor(a) for a in [*feeds, *kernel.tables, *outs]]
    built["main"](*tensors)
    made = {v.ref: t.numpy() for v, t in zip(stored, tensors[len(tensors) - len(outs) :], strict=True)}
    return tuple(made.get(v.ref, np.zeros(0, v.dtype.numpy)).reshape(v.shape) for v in site.results)


def site_shape(site: Site, ref: ValueRef) -> tuple[int, ...]:
    """The shape of the operand called `ref`, scalars as (1,)."""
    return next(v.shape for _, v in site.operands.present() if v.ref == ref) or (1,)


def copy_kernel(value: Value, source: Layout, target: Layout, vector: int) -> Any:
    """A PrimFunc (input, output) that stores `value` in another layout."""
    emit = TensorExpressions()
    physical = te.placeholder(source.physical(value.shape) or (1,), value.dtype.value, name="i0")
    stored = _stored(emit, target, value, _through(source, value, physical))
    return schedule(te.create_prim_func([physical, stored]), vector)
