"""A group of nodes as one PrimFunc: stages from the operators, storage by layouts, loops by nests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.codegen.generic.language import Notes, Operand, Source, Stage, Stages
from compiler.codegen.generic.nest import Maker, Parts
from compiler.codegen.generic.root import RootNest, compute
from compiler.codegen.generic.scalar import literal
from compiler.codegen.generic.survey import Box, Use, inner_variables, look
from compiler.codegen.generic.whole import whole_blocks
from compiler.codegen.layout import Blocked, Layout, Plain
from compiler.errors import LoweringError
from compiler.ir.graph import Site, Value
from compiler.ir.op import Tensor
from compiler.ir.types import ValueRef

HEAVY = 48
"""Operations of an expression that several readers should not repeat."""


@dataclass(frozen=True)
class GenericKernel:
    """A lowered group. Parameters in order: `inputs` (values read), `tables` (constants), then the outputs.

    With `parts` > 0 two integers follow: the kernel computes its units begin to end - 1 of so many.
    """

    func: Any
    inputs: tuple[ValueRef, ...]
    tables: tuple[np.ndarray, ...]
    parts: int = 0


@dataclass
class _Output:
    """A result to store."""

    stage: Stage
    target: Source
    divided: int | None = None
    """The axis that threads should divide."""


def lower_group(
    sites: Sequence[Site], outputs: Sequence[Value], layouts: Mapping[ValueRef, Layout], vector: int
) -> GenericKernel:
    """One PrimFunc for `sites` (topological order) that stores `outputs`; values without a layout are plain.

    Raises LoweringError naming the node whose lowering failed.
    """
    sites, outputs = whole_blocks(sites, outputs, layouts)
    stages = Stages()
    known: dict[ValueRef, Tensor] = {}
    inputs: dict[ValueRef, Source] = {}

    def read(value: Value | None) -> Tensor | None:
        if value is None:
            return None
        if value.ref not in known:
            if value.data is not None:
                known[value.ref] = stages.constant(value.data)
            else:
                layout = layouts.get(value.ref, Plain())
                inputs[value.ref] = _source(f"i{len(inputs)}", layout, value)
                known[value.ref] = through(stages, layout, value, inputs[value.ref])
        return known[value.ref]

    for site in sites:
        tensors = [read(site.operands.optional(i)) for i in range(len(site.operands))]
        try:
            results = site.node.op.lower(stages, site, *tensors)
        except tvm.error.InternalError as error:
            raise LoweringError(f"{site.node.op.name} '{site.node.ref}': {str(error).splitlines()[-1]}") from error
        known.update({v.ref: t for v, t in zip(site.results, results, strict=True)})
    stored = []
    for number, value in enumerate(outputs):
        layout = layouts.get(value.ref, Plain())
        target = _source(f"o{number}", layout, value)
        stage = _cells(stages, layout, value, known[value.ref], target)
        stored.append(_Output(stage, target, _rows(layout, value)))
    return _kernel(stages, inputs, stored, vector)


def copy_kernel(value: Value, source: Layout, target: Layout, vector: int) -> GenericKernel:
    """A kernel (input, output) that stores `value` in another layout."""
    stages = Stages()
    given, made = _source("i0", source, value), _source("o0", target, value)
    stage = _cells(stages, target, value, through(stages, source, value, given), made)
    return _kernel(stages, {value.ref: given}, [_Output(stage, made)], vector)


def through(stages: Stages, layout: Layout, value: Value, source: Source) -> Tensor:
    """A tensor read from where it lies."""
    if not value.shape:
        return Operand((), value.dtype, lambda: stages.load(source, (0,)))
    return Operand(value.shape, value.dtype, lambda *at: stages.load(source, layout.index(at)))


def _rows(layout: Layout, value: Value) -> int | None:
    """The axis of the rows of one blocked image that has more of them than blocks of channels: convolutions of such
    images divide these among threads too, so that each mostly reads what it wrote itself."""
    if not isinstance(layout, Blocked) or value.rank != 4 or value.shape[0] > 1:
        return None
    _, blocks, rows, _, _ = layout.physical(value.shape)
    return 2 if rows > blocks else None


def _source(name: str, layout: Layout, value: Value) -> Source:
    return Source(name, layout.physical(value.shape) or (1,), value.dtype.value)


def _cells(stages: Stages, layout: Layout, value: Value, tensor: Tensor, target: Source) -> Stage:
    """The stage that writes `tensor` in its layout; cells that hold no element (halo, pad lanes) get zero."""

    def cell(*at: Any) -> Any:
        if not value.shape:
            return tensor()
        logical, inside = layout.logical(value.shape, at)
        element = tensor(*logical)
        return element if inside is None else stages.select(inside, element, literal(0, value.dtype))

    return Stage(target.name, target.extents, value.dtype, cell)


# ---------------------------------------------------------------------- what is computed once
def _decide_inline(stages: Stages, roots: Sequence[Stage]) -> list[Stage]:
    """Materialise what is costly and read often; returns the stages that several roots need."""
    for stage in stages.stages:
        stage.inline = False
    seen = {s: _direct(stages, s) for s in [*stages.stages, *roots]}
    needed = _needed(seen, roots)
    evaluations = {s: float(math.prod(s.shape)) for s in roots}
    weight: dict[Stage, float] = {}
    reads: dict[Stage, int] = {}
    for stage in (s for s in stages.stages if s in needed):  # operands come before their readers
        notes = seen[stage]
        own = 12.0 if notes.costly else 1.0
        weight[stage] = own + len(notes.accesses) + sum(weight[r] for r, _ in notes.reads)
    for stage in [*roots, *(s for s in reversed(stages.stages) if s in needed)]:
        times = evaluations[stage] * math.prod(stage.extents)
        if stage not in roots:
            size = max(math.prod(stage.shape), 1)
            heavy = weight[stage] >= HEAVY or _is_costly(stage, seen)
            stage.inline = stage.kind is None and not (heavy and (times > 1.5 * size or reads[stage] > 1))
            times = times if stage.inline else size * math.prod(stage.extents)
        for other, _ in seen[stage].reads:
            evaluations[other] = evaluations.get(other, 0.0) + times
            reads[other] = reads.get(other, 0) + 1
    return _shared(stages, roots, seen)


def _direct(stages: Stages, stage: Stage) -> Any:
    """What the body of a stage reads itself."""
    box = Box.whole(stage.shape)
    variables = box.variables()
    return look(stages, stage, box.at(variables), inner_variables(stage), variables)


def _is_costly(stage: Stage, seen: Mapping[Stage, Any]) -> bool:
    return seen[stage].costly or any(r.kind is None and _is_costly(r, seen) for r, _ in seen[stage].reads)


def _needed(seen: Mapping[Stage, Any], roots: Sequence[Stage]) -> set[Stage]:
    found: set[Stage] = set()
    open_ = list(roots)
    while open_:
        for stage, _ in seen[open_.pop()].reads:
            if stage not in found:
                found.add(stage)
                open_.append(stage)
    return found


def _shared(stages: Stages, roots: Sequence[Stage], seen: Mapping[Stage, Any]) -> list[Stage]:
    """Materialised stages that more than one root reads, directly or not, operands first."""
    per_root = [_needed(seen, [r]) for r in roots]
    return [s for s in stages.stages if not s.inline and sum(s in n for n in per_root) > 1]


# ---------------------------------------------------------------------- the function
def _kernel(
    stages: Stages, inputs: Mapping[ValueRef, Source], outputs: Sequence[_Output], vector: int
) -> GenericKernel:
    shared = _decide_inline(stages, [o.stage for o in outputs])
    parts = Parts(outputs[0].divided) if len(outputs) == 1 and not shared else None
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({"tirx.noalias": True})
        for source in [*inputs.values(), *stages.tables, *(o.target for o in outputs)]:
            source.buffer = T.arg(source.name, T.buffer((source.size,), source.dtype))
        if parts is not None:
            parts.begin, parts.end = (T.arg(n, T.int32()) for n in ("begin", "end"))
        maker = Maker(stages, vector)
        compute(maker, [Use(s, Box.whole(s.shape), [], [], Notes()) for s in shared], ())
        for output in outputs:
            RootNest(maker, output.stage, output.target, parts).emit()
    count = parts.count if parts is not None else 0
    unused = [t.buffer for t in stages.tables if not t.used]
    if parts is not None and not count:
        unused += [parts.begin, parts.end]
    tables = (np.transpose(t.array, t.order) for t in stages.tables if t.used and t.array is not None)
    func = _without(builder.get(), unused)
    return GenericKernel(func, tuple(inputs), tuple(np.ascontiguousarray(t) for t in tables), count)


def _without(func: Any, unused: Sequence[Any]) -> Any:
    """The function without parameters that its body does not mention."""
    kept = [p for p in func.params if not any(p.same_as(u) for u in unused)]
    return tirx.PrimFunc(kept, func.body, func.ret_type, attrs=func.attrs)
