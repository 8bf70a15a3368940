"""Looking at bodies before code is made: what they access, and which part of each stage a place needs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from compiler.codegen.generic.index import Atom, Index, LoopVar
from compiler.codegen.generic.language import Access, Notes, Source, Stage, Stages

MOST_BREAKS = 8
"""An axis is cut at no more places: each piece is code of its own."""

MOST_CROSSINGS = 3


@dataclass(frozen=True)
class Box:
    """Part of a stage's index space: per axis where it begins (may vary with outer loops) and its extent."""

    base: tuple[Index, ...]
    extent: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        """All of it."""
        return cls(tuple(Index({}) for _ in shape), tuple(shape))

    @property
    def size(self) -> int:
        return math.prod(self.extent)

    def variables(self) -> list[LoopVar]:
        """A variable per axis, from 0."""
        return [LoopVar(f"t{axis}", 0, n - 1) for axis, n in enumerate(self.extent)]

    def at(self, variables: Sequence[LoopVar]) -> list[Index]:
        """The index at these variables."""
        return [b + Index.of(v) for b, v in zip(self.base, variables, strict=True)]


@dataclass(frozen=True)
class Use:
    """A stage needed at a place: which box of it, and what its body shows there."""

    stage: Stage
    box: Box
    variables: list[LoopVar]
    inner: list[LoopVar]
    notes: Notes


@dataclass(frozen=True)
class Survey:
    """What a body and the stages it needs show: those in the order they must be computed in."""

    notes: Notes
    uses: list[Use]


def inner_variables(stage: Stage) -> list[LoopVar]:
    """A variable per axis of a stage's reduction."""
    return [LoopVar(f"k{axis}", 0, n - 1) for axis, n in enumerate(stage.extents)]


def look(
    stages: Stages,
    stage: Stage,
    at: Sequence[Index],
    inner: Sequence[LoopVar],
    variables: Iterable[LoopVar],
    target: Source | None = None,
) -> Notes:
    """What the stage's body shows at an index, the write to `target` included."""
    notes = stages.notes = Notes()
    stages.begin()
    stages.known([*variables, *inner])
    notes.keep_used(stages.element(stage, [*at, *(Index.of(k) for k in inner)]))
    if target is not None:
        notes.accesses.append(Access(target, tuple(at), target.address(at), frozenset(), True))
    stages.notes = None
    return notes


def survey(
    stages: Stages,
    root: Stage,
    at: Sequence[Index],
    variables: Sequence[LoopVar],
    fixed: Collection[LoopVar],
    target: Source | None = None,
    strict: bool = True,
) -> Survey | None:
    """The body of `root` at `at` and every stage it needs there, as a box that moves with the `fixed` variables.

    Where a box may leave its stage: None if `strict`, else the whole axis.
    """
    notes = look(stages, root, at, (), variables, target)
    reads: dict[Stage, list[tuple[object, ...]]] = {}
    _collect(reads, notes)
    uses: list[Use] = []
    for stage in reversed(stages.stages):
        if stage not in reads or stage.region is not None:
            continue
        box = _box(stage, reads[stage], fixed, strict)
        if box is None:
            return None
        own, inner = box.variables(), inner_variables(stage)
        seen = look(stages, stage, box.at(own), inner, [*variables, *own])
        uses.append(Use(stage, box, own, inner, seen))
        _collect(reads, seen)
    return Survey(notes, uses[::-1])


def _collect(reads: dict[Stage, list[tuple[object, ...]]], notes: Notes) -> None:
    for stage, at in notes.reads:
        reads.setdefault(stage, []).append(at)


def _box(stage: Stage, reads: Sequence[Sequence[object]], fixed: Collection[LoopVar], strict: bool) -> Box | None:
    base, extent = [], []
    for axis, size in enumerate(stage.shape):
        spans = [_span(at[axis], fixed) for at in reads]
        known = [s for s in spans if s is not None]
        if len(known) < len(spans) or len({s[0].key for s in known}) > 1:
            base.append(Index({}))
            extent.append(size)
            continue
        begin = known[0][0] + min(s[1] for s in known)
        length = max(s[2] for s in known) - min(s[1] for s in known) + 1
        low, high = begin.interval
        if low == high:  # reads outside are guarded
            first, last = min(max(low, 0), size - 1), min(low + length, size)
            begin, length = Index({}, first), max(last - first, 1)
        elif low < 0 or high + length > size:
            if strict:
                return None
            begin, length = Index({}), size
        base.append(begin)
        extent.append(length)
    return Box(tuple(base), tuple(extent))


def _span(index: object, fixed: Collection[LoopVar]) -> tuple[Index, int, int] | None:
    """(what the fixed variables decide, least and largest rest) of an index."""
    if not isinstance(index, Index):
        return None
    shared: dict[Atom, int] = {}
    rest: dict[Atom, int] = {}
    for atom, factor in index.terms.items():
        inside = {atom} if isinstance(atom, LoopVar) else atom.of.variables()
        (shared if inside <= set(fixed) else rest)[atom] = factor
    low, high = Index(rest, index.const).interval
    return Index(shared), low, high


# ---------------------------------------------------------------------- where loops are cut
def cuts(notes: Iterable[Notes], variable: LoopVar) -> list[int]:
    """Values of the variable at which a condition becomes settled, a table bends or a quotient steps; ascending.

    Empty where there are too many.
    """
    found: set[int] = set()
    for seen in notes:
        for condition in seen.conditions:
            found.update(_thresholds(condition.index, condition.equal, variable))
        found.update(place for v, place in seen.breaks if v is variable)
        for access in seen.accesses:
            if access.address is not None:
                found.update(_crossings(access.address, variable))
    inside = sorted(p for p in found if variable.low < p <= variable.high)
    return inside if len(inside) <= MOST_BREAKS else []


def _thresholds(index: Index, equal: bool, variable: LoopVar) -> list[int]:
    """Where `index <= 0` (`== 0`) begins or ceases to hold for every value of the other variables."""
    factor = index.step(variable)
    if not factor:
        return []
    low, high = index.without(variable).interval
    if equal:
        if factor < 0:
            factor, low, high = -factor, -high, -low
        return [-(high // factor), -low // factor + 1]
    if factor > 0:
        return [-high // factor + 1, -low // factor + 1]
    return [-(-high // -factor), -(-low // -factor)]


def _crossings(index: Index, variable: LoopVar) -> list[int]:
    """Where a quotient in the index steps, if it does so seldom."""
    found: list[int] = []
    for part in index.parts():
        factor = part.of.step(variable)
        if not factor:
            continue
        low, high = part.of.without(variable).interval
        if low != high:
            continue
        ends = sorted(low + factor * v for v in (variable.low, variable.high))
        steps = range(-(-(ends[0] + 1) // part.by) * part.by, ends[1] + 1, part.by)
        if len(steps) <= MOST_CROSSINGS:
            found += [-(-(s - low) // factor) if factor > 0 else (s - low) // factor + 1 for s in steps]
    return found


def pieces(low: int, high: int, places: Sequence[int]) -> list[tuple[int, int]]:
    """The runs (first, last) of low..high that begin at `places`."""
    begins = [low, *places]
    return list(zip(begins, [p - 1 for p in places] + [high], strict=True))
