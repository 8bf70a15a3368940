"""Reductions over a box: accumulators in registers, conditions on windows turned into bounds of the inner loops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm_ffi import structural_equal

from compiler.codegen.generic.index import Compound, Condition, Index, LoopVar
from compiler.codegen.generic.lanes import (
    Option,
    arrange_tables,
    best_option,
    options,
    power_of_two,
    scalar_cost,
    vector_cost,
    width,
)
from compiler.codegen.generic.language import Notes, Stage
from compiler.codegen.generic.nest import Maker, Region, counted
from compiler.codegen.generic.scalar import as_expr, combine, identity
from compiler.codegen.generic.survey import Box, inner_variables, look

ACCUMULATORS = {16: 12}
"""Accumulator vectors by lanes of the target; 8 elsewhere: half the registers of the smallest machines."""

HIDDEN = 4
"""Independent sums that hide the latency of an addition."""

UNROLLED = 36
"""Terms of a reduction that are written out."""


@dataclass
class Step:
    """A loop of the reduction: `extent` values of the variable, which stands for every one of `axes`."""

    axes: tuple[int, ...]
    variable: LoopVar
    extent: int
    low: list[Index] = field(default_factory=list)
    high: list[Index] = field(default_factory=list)

    @property
    def bounded(self) -> bool:
        """Whether outer loops decide where it begins or ends."""
        return bool(self.low or self.high)

    def bounds(self) -> tuple[Any, Any]:
        """First value and end as TVM expressions."""
        first: Any = tirx.IntImm("int32", 0)
        for low in self.low:
            first = tirx.max(first, low.asobject())
        end: Any = tirx.IntImm("int32", self.extent)
        for high in self.high:
            end = tirx.min(end, (high + 1).asobject())
        return first, tirx.max(first, end) if self.bounded else end


@dataclass
class ReduceNest:
    """The elements of a reduction over a box, into its region."""

    maker: Maker
    stage: Stage
    box: Box
    outer: Sequence[LoopVar] = ()

    def emit(self) -> Region:
        """Write the loops; the region is made here."""
        self.variables = self.box.variables()
        inner = inner_variables(self.stage)
        at = self.box.at(self.variables)
        self.notes = look(self.maker.stages, self.stage, at, inner, [*self.outer, *self.variables])
        option, along = self._choose(inner)
        lane = None if option is None else option.axis
        runs = along if lane is None else self.variables[lane]
        arrange_tables(self.notes, [] if runs is None else [runs], self.maker.arranged)
        region = self.maker.region(self.stage, self.box, lane)
        self.most = self.maker.lanes if option is None else option.n
        self.steps = _joined(inner, self.notes, along)
        self.along = along is not None
        for loops, cells, n in self._outer_loops(lane):
            with _nested(loops):
                _Tile(self, region, cells, lane, n).emit()
        return region

    def _choose(self, inner: Sequence[LoopVar]) -> tuple[Option | None, LoopVar | None]:
        """An axis of the box, or an axis of the reduction, that becomes lanes; neither where both cost more."""
        lanes, notes = self.maker.lanes, self.notes

        def looked(at: Sequence[Index], variables: Sequence[LoopVar]) -> Notes:
            return look(self.maker.stages, self.stage, at, inner, [*self.outer, *variables])

        best = best_option(options(self.box, self.variables, notes, lanes, looked, True))
        along, least = None, scalar_cost(notes) + 1.0
        for k in inner:
            n = width(k.extent, lanes)
            if n > 1 and not any(k in c.index.variables() for c in notes.conditions):
                folding = 2.0 * math.log2(n) / math.prod(self.stage.extents)
                cost = vector_cost(notes, k, n, k.extent) + folding
                along, least = (k, cost) if cost < least else (along, least)
        if best is not None and best.cost <= least:
            return best, None
        return None, along

    # ------------------------------------------------------------------ elements of the box
    def _outer_loops(self, lane: int | None) -> Iterator[tuple[list[tuple[LoopVar, int]], list[list[Any]], int]]:
        """(loops, starts of the vectors held together, lanes) that together cover the box."""
        most = ACCUMULATORS.get(self.maker.lanes, 8)
        rest = [d for d, n in enumerate(self.box.extent) if n > 1 and d != lane]
        for starts, n, loop in self._chunks(lane, most):
            room = most // len(starts)
            held: list[int] = []
            for d in reversed(rest):
                if math.prod([self.box.extent[i] for i in held]) * self.box.extent[d] <= room:
                    held.insert(0, d)
            loops = [(LoopVar(f"i{d}", 0, self.box.extent[d] - 1), d) for d in rest if d not in held]
            fixed = {d: v for v, d in loops}
            cells = []
            for places in itertools.product(*(range(self.box.extent[d]) for d in held)):
                known = dict(zip(held, places, strict=True))
                for start in starts:
                    cells.append(
                        [start if d == lane else known.get(d, fixed.get(d, 0)) for d in range(len(self.box.extent))]
                    )
            yield [*loops, *([(loop, -1)] if loop is not None else [])], cells, n

    def _chunks(self, lane: int | None, most: int) -> Iterator[tuple[list[Any], int, LoopVar | None]]:
        """(starts, lanes, loop variable or None) along the vector axis; the last vector may overlap."""
        if lane is None:
            yield [0], 1, None
            return
        extent = self.box.extent[lane]
        n = width(extent, self.most)
        full, rest = divmod(extent, n)
        if full + bool(rest) <= most:
            yield [k * n for k in range(full)] + ([extent - n] if rest else []), n, None
            return
        together = HIDDEN if full >= HIDDEN else full
        loop = LoopVar("chunk", 0, full // together - 1)
        yield [Index.of(loop) * (n * together) + k * n for k in range(together)], n, loop
        left = [k * n for k in range(full - full % together, full)] + ([extent - n] if rest else [])
        if left:
            yield left, n, None


class _Tile:
    """Accumulators of some vectors of elements, or of some elements with lanes along the reduction."""

    def __init__(self, nest: ReduceNest, region: Region, cells: list[list[Any]], lane: int | None, n: int) -> None:
        self.nest, self.region, self.cells, self.lane = nest, region, cells, lane
        self.steps = [replace(s, low=[], high=[]) for s in nest.steps]
        last = self.steps[-1]
        self.n = width(last.extent, nest.maker.lanes) if nest.along else n
        self.assumed = self._bound_steps()
        rounds = last.extent // (self.n if nest.along else 1)
        self.splits = 1
        total = math.prod(nest.stage.extents)
        if not last.bounded and total * len(cells) > UNROLLED and len(cells) < HIDDEN:
            self.splits = max(1, min(HIDDEN // len(cells), rounds))
        dtype = nest.stage.dtype.value
        self.sums = [[T.alloc_buffer((self.n,), dtype) for _ in range(self.splits)] for _ in cells]

    def emit(self) -> None:
        """Start, accumulate, add up, store."""
        nest = self.nest
        neutral = identity(nest.stage.kind, nest.stage.dtype)  # type: ignore[arg-type]
        for buffer in itertools.chain(*self.sums):
            with nest.maker.vector(self.n) as lane:
                T.buffer_store(buffer, neutral, [lane])
        nest.maker.stages.assumed |= self.assumed
        self._loops(self.steps)
        nest.maker.stages.assumed -= self.assumed
        for cell, buffers in zip(self.cells, self.sums, strict=True):
            self._finish(cell, buffers)

    # ------------------------------------------------------------------ loops of the reduction
    def _loops(self, steps: Sequence[Step]) -> None:
        step = steps[0]
        if len(steps) > 1:
            with self._loop(*step.bounds(), step.extent) as i:
                step.variable.expr = i
                self._loops(steps[1:])
            return
        unit = self.n if self.nest.along else 1
        if step.bounded:
            with counted(*step.bounds()) as i:
                self._round(step, [i], 1)
            return
        block = unit * self.splits
        full, rest = divmod(step.extent, block)
        if full:
            with self._loop(0, full, full * self.splits) as i:
                self._round(step, [i * block + s * unit for s in range(self.splits)], self.n)
        done = full * block
        for number in range(rest // unit):
            self._round(step, [done + number * unit], self.n, number % self.splits)
        done += rest // unit * unit
        while done < step.extent:  # fewer elements than lanes: shorter vectors into the first lanes
            n = power_of_two(step.extent - done)
            self._round(step, [done], n)
            done += n

    @contextmanager
    def _loop(self, first: Any, end: Any, extent: int) -> Iterator[Any]:
        terms = len(self.cells) * math.prod(s.extent for s in self.steps)
        small = terms <= UNROLLED and extent > 1 and not any(s.bounded for s in self.steps)
        with T.unroll(first, end) if small else counted(first, end) as i:
            yield i

    def _round(self, step: Step, places: Sequence[Any], n: int, split: int = 0) -> None:
        """One term (or vector of terms) for every cell and place of the last loop."""
        nest, n = self.nest, n if self.nest.along else self.n
        for number, place in enumerate(places):
            for cell, buffers in zip(self.cells, self.sums, strict=True):
                buffer = buffers[number + split]
                with nest.maker.vector(n) as lane:
                    step.variable.expr = as_expr(place + lane if nest.along else place)
                    value = self._term(cell, lane)
                    kept = combine(nest.stage.kind, tirx.BufferLoad(buffer, [lane]), value)  # type: ignore[arg-type]
                    T.buffer_store(buffer, kept, [lane])

    def _index(self, cell: Sequence[Any], lane: Any) -> list[Index]:
        at = []
        for d, (base, place) in enumerate(zip(self.nest.box.base, cell, strict=True)):
            index = base + (Index.of(place) if isinstance(place, LoopVar) else place)
            if d == self.lane and self.n > 1:
                index = index + Index({LoopVar("l", 0, self.n - 1, lane): 1})
            at.append(index)
        return at

    def _term(self, cell: Sequence[Any], lane: Any) -> Any:
        nest = self.nest
        stages = nest.maker.stages
        stages.begin()
        return stages.element(nest.stage, [*self._index(cell, lane), *self._inner()])

    def _inner(self) -> list[Index]:
        """The index of the reduction: joined axes move with the last of them."""
        found = [Index({}) for _ in self.nest.stage.extents]
        for step in self.steps:
            found[step.axes[-1]] = Index.of(step.variable)
        return found

    # ------------------------------------------------------------------ bounds
    def _bound_steps(self) -> set[Any]:
        """Turn conditions outside of which a term changes nothing into loop bounds; their keys."""
        agreed: dict[Any, Condition] | None = None
        stages = self.nest.maker.stages
        for cell in self.cells:
            value = self._term(cell, tirx.Var("lane", "int32"))
            if not stages.guards:
                return set()
            neutral = identity(self.nest.stage.kind, self.nest.stage.dtype)  # type: ignore[arg-type]
            found = {a.key: a for c in _neutral_guards(value, stages.guards, neutral) for a in _all_hold(c)}
            agreed = found if agreed is None else {k: a for k, a in agreed.items() if k in found}
        return {key for key, atom in (agreed or {}).items() if self._bound(atom)}

    def _bound(self, atom: Condition) -> bool:
        """Restrict the loop over the one reduction variable of `atom`; False where it has no such form."""
        own = {s.variable: s for s in self.steps}
        moving = [v for v in atom.index.variables() if v in own]
        if atom.equal or len(moving) != 1 or len(own[moving[0]].axes) > 1:
            return False
        lanes = {v for v in atom.index.variables() if v.name == "l"}
        factor = atom.index.step(moving[0])
        if lanes or not factor or (self.nest.along and own[moving[0]] is self.steps[-1]):
            return False
        rest = atom.index.without(moving[0])
        if factor > 0:
            own[moving[0]].high.append(-rest // factor)
        else:
            own[moving[0]].low.append((rest + (-factor - 1)) // -factor)
        return True

    # ------------------------------------------------------------------ results
    def _finish(self, cell: Sequence[Any], buffers: Sequence[Any]) -> None:
        nest = self.nest
        kind = nest.stage.kind
        first = buffers[0]
        count = len(buffers)
        while count > 1:  # pairs, so that the sum does not hang on one chain
            half = (count + 1) // 2
            for k in range(count // 2):
                self._into(buffers[k], buffers[k], 0, buffers[half + k], 0, self.n)
            count = half
        n = self.n
        while nest.along and n > 1:
            n //= 2
            self._into(first, first, 0, first, n, n)
        lanes = 1 if nest.along else n
        with nest.maker.vector(lanes) as lane:
            self.region.store(self._index(cell, lane), tirx.BufferLoad(first, [lane]))
        assert kind is not None

    def _into(self, target: Any, a: Any, a_at: int, b: Any, b_at: int, n: int) -> None:
        kind = self.nest.stage.kind
        with self.nest.maker.vector(n) as lane:
            left, right = tirx.BufferLoad(a, [lane + a_at]), tirx.BufferLoad(b, [lane + b_at])
            T.buffer_store(target, combine(kind, left, right), [lane])  # type: ignore[arg-type]


@contextmanager
def _nested(loops: Sequence[tuple[LoopVar, int]]) -> Iterator[None]:
    """Serial loops, outermost first."""
    if not loops:
        yield
        return
    variable = loops[0][0]
    with T.serial(variable.extent) as i:
        variable.expr = i
        with _nested(loops[1:]):
            yield


def _joined(inner: Sequence[LoopVar], notes: Notes, along: LoopVar | None) -> list[Step]:
    """Loops of the reduction: the one that becomes lanes last, axes that every access crosses evenly as one."""
    steps: list[Step] = []
    for axis, variable in enumerate(inner):
        before = steps[-1] if steps else None
        if variable.extent == 1 and len(inner) > 1:
            continue
        if before is not None and _crosses(before.variable, variable, notes):
            steps[-1] = Step((*before.axes, axis), variable, before.extent * variable.extent)
        else:
            steps.append(Step((axis,), variable, variable.extent))
    if not steps:
        steps.append(Step((len(inner) - 1,), inner[-1], 1))
    if along is not None:
        steps.sort(key=lambda s: s.variable is along)
    return steps


def _crosses(outer: LoopVar, inner: LoopVar, notes: Notes) -> bool:
    involved = {outer, inner}
    if involved & notes.valued or any(v in involved for v, _ in notes.breaks):
        return False
    if any(involved & c.index.variables() for c in notes.conditions):
        return False
    if any(isinstance(i, Index) and involved & i.variables() for _, at in notes.reads for i in at):
        return False
    return all(access.crosses(outer, inner, inner.extent) for access in notes.accesses)


def _all_hold(condition: Any) -> Iterator[Condition]:
    """Comparisons that a condition implies."""
    if isinstance(condition, Condition):
        yield condition
    elif isinstance(condition, Compound) and condition.kind == "and":
        for part in condition.of:
            yield from _all_hold(part)


def _neutral_guards(value: Any, guards: Sequence[tuple[Any, Any]], neutral: Any) -> Iterator[Any]:
    """Conditions without which the term is neutral: those of `c ? v : neutral`, or of a factor of that form."""
    if isinstance(value, tirx.Mul) and structural_equal(neutral, tirx.const(0.0, "float32")):
        yield from _neutral_guards(value.a, guards, neutral)
        yield from _neutral_guards(value.b, guards, neutral)
        return
    parts = _branches(value)
    if parts is None or not structural_equal(parts[2], neutral):
        return
    yield from (c for e, c in guards if e.same_as(parts[0]))
    yield from _neutral_guards(parts[1], guards, neutral)


def _branches(value: Any) -> tuple[Any, Any, Any] | None:
    if isinstance(value, tirx.Select):
        return value.condition, value.true_value, value.false_value
    if str(getattr(getattr(value, "op", None), "name", "")).endswith("if_then_else"):
        return tuple(value.args)
    return None
