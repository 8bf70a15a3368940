"""Loops around a stored result together with the stages it needs: each as little as possible at a time.

A softmax over rows keeps one row, a pooling window its accumulators: the loops that every stage can share go
outside, and what remains of a stage inside them is a small box in registers or in the first cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm.script.ir_builder import tirx as T

from compiler.codegen.generic.index import Index, LoopVar
from compiler.codegen.generic.lanes import best_option, options, width
from compiler.codegen.generic.language import Notes, Source, Stage
from compiler.codegen.generic.nest import MOST_BODIES, Maker, MapNest, Parts, counted
from compiler.codegen.generic.reduction import ACCUMULATORS, ReduceNest
from compiler.codegen.generic.scalar import as_expr
from compiler.codegen.generic.survey import Box, Survey, Use, cuts, look, pieces, survey

MOST_REPEATED = 1.1
"""A loop is shared while no stage is computed more than so many times over."""

LONG_REDUCTION = 8
"""Terms from which on elements are reduced together, so that what they read is loaded once."""

DIVIDED = 16384
"""Elements computed by a kernel worth dividing among threads."""


@dataclass
class Tile:
    """How a shared axis is walked: so many entries at a time."""

    axis: int
    size: int


@dataclass
class RootNest:
    """The loops that store `stage` in `target`."""

    maker: Maker
    stage: Stage
    target: Source
    parts: Parts | None = None
    tiles: list[Tile] = field(default_factory=list)

    def emit(self) -> None:
        """Write the loops."""
        whole = Box.whole(self.stage.shape)
        variables = whole.variables()
        seen = self._survey(whole.at(variables), variables, ())
        assert seen is not None
        if not seen.uses:
            MapNest(self.maker, self.stage, whole, self._store, self.target, parts=self._divided(seen)).emit()
            return
        self._plan(seen, variables)
        self._loops(self.tiles, {}, self._divided(seen))

    def _divided(self, seen: Survey) -> Parts | None:
        """The division, if there is enough to do."""
        work = math.prod(self.stage.shape) + sum(u.box.size * math.prod(u.stage.extents) for u in seen.uses)
        return self.parts if self.parts is not None and work >= DIVIDED else None

    def _store(self, at: Sequence[Index], value: Any) -> None:
        T.buffer_store(self.target.buffer, value, [as_expr(self.target.address(at))])

    def _survey(
        self, at: Sequence[Index], variables: Sequence[LoopVar], fixed: Sequence[LoopVar], leak: bool = True
    ) -> Survey | None:
        return survey(self.maker.stages, self.stage, at, variables, fixed, self.target, leak)

    def _look(self, at: Sequence[Index], variables: Sequence[LoopVar]) -> Notes:
        return look(self.maker.stages, self.stage, at, (), variables, self.target)

    # ------------------------------------------------------------------ which loops are shared
    def _plan(self, seen: Survey, variables: Sequence[LoopVar]) -> None:
        """Choose the shared axes: as many as possible, the one that becomes lanes as the innermost."""
        spans = self._typical(seen, variables)
        long = [d for d, n in enumerate(self.stage.shape) if n > 1]
        best = best_option(
            options(Box.whole(self.stage.shape), variables, seen.notes, self.maker.lanes, self._look, False)
        )
        lane, most = (None, 1) if best is None else (best.axis, best.n)
        for d in [*(d for d in long if d != lane), *([] if lane is None else [lane])]:
            size = width(spans[d][1] - spans[d][0] + 1, most) if d == lane else 1
            trial = [*self.tiles, Tile(d, size)]
            if self._repeated(trial, spans) <= MOST_REPEATED:
                self.tiles = trial
        self._widen(spans, lane)
        divided = None if self.parts is None else self.parts.axis
        if divided != lane:
            self.tiles.sort(key=lambda tile: tile.axis != divided)

    def _typical(self, seen: Survey, variables: Sequence[LoopVar]) -> list[tuple[int, int]]:
        """The longest run of every axis on which conditions are settled."""
        chosen = list(variables)
        for d in range(len(chosen)):
            if chosen[d].extent < 2:
                continue
            runs = pieces(chosen[d].low, chosen[d].high, cuts(_all_notes(seen), chosen[d]))
            first, last = max(runs, key=lambda r: r[1] - r[0])
            if (first, last) == (chosen[d].low, chosen[d].high):
                continue
            chosen[d] = LoopVar(f"t{d}", first, last)
            again = self._survey([Index.of(v) for v in chosen], chosen, (), False)
            assert again is not None
            seen = again
        return [(v.low, v.high) for v in chosen]

    def _trial(
        self, tiles: Sequence[Tile], spans: Sequence[tuple[int, int]], leak: bool = True
    ) -> tuple[Survey | None, dict[int, LoopVar], list[LoopVar]]:
        """(survey, loop variables, variables within a tile) with these tiles on the typical part."""
        size = {t.axis: t.size for t in tiles}
        starts, inside, at = {}, [], []
        for d, (low, high) in enumerate(spans):
            n = min(size.get(d, high - low + 1), high - low + 1)
            within = LoopVar(f"t{d}", 0, n - 1)
            begin = Index({}, low)
            if d in size:
                starts[d] = LoopVar(f"s{d}", 0, (high - low + 1) // n - 1)
                begin = Index.of(starts[d]) * n + low
            inside.append(within)
            at.append(begin + Index.of(within))
        fixed = list(starts.values())
        return self._survey(at, [*fixed, *inside], fixed, leak), starts, inside

    def _repeated(self, tiles: Sequence[Tile], spans: Sequence[tuple[int, int]]) -> float:
        """How often the most repeated element of a stage would be computed."""
        seen, _, _ = self._trial(tiles, spans)
        if seen is None:
            return math.inf
        calls = math.prod(-(-(spans[t.axis][1] - spans[t.axis][0] + 1) // t.size) for t in tiles)
        return max((calls * u.box.size / math.prod(u.stage.shape) for u in seen.uses), default=1.0)

    def _widen(self, spans: Sequence[tuple[int, int]], lane: int | None) -> None:
        """Take several elements of an axis at once where a long reduction reads the same for all of them."""
        seen, starts, inside = self._trial(self.tiles, spans, False)
        assert seen is not None
        heavy = [u for u in seen.uses if u.stage.kind and math.prod(u.stage.extents) >= LONG_REDUCTION]
        if len(heavy) != 1 or heavy[0].box.size > self.maker.lanes:
            return
        room = ACCUMULATORS.get(self.maker.lanes, 8)
        for tile in self.tiles:
            if tile.axis == lane and self._same(heavy[0], inside[tile.axis]) and tile.size == self.maker.lanes:
                length = spans[tile.axis][1] - spans[tile.axis][0] + 1
                if length >= 2 * tile.size:
                    tile.size, room = 2 * tile.size, room // 2
        others = [t for t in self.tiles if t.axis != lane and t.axis in starts]
        reuse = {t.axis: self._same(heavy[0], starts[t.axis]) for t in others}
        best = max(others, key=lambda t: (reuse[t.axis], t.axis), default=None)
        if best is not None and reuse[best.axis]:
            best.size = _share(spans[best.axis][1] - spans[best.axis][0] + 1, room)

    @staticmethod
    def _same(use: Use, variable: LoopVar) -> int:
        """How many accesses of a reduction do not move with the variable."""
        return sum(a.step(variable) == 0 for a in use.notes.accesses)

    # ------------------------------------------------------------------ loops
    def _loops(self, tiles: Sequence[Tile], chosen: dict[int, tuple[Index, int]], parts: Parts | None) -> None:
        if not tiles:
            self._leaf(chosen)
            return
        tile, unit = tiles[0], 0
        for first, last in self._pieces(tile.axis, chosen):
            extent = last - first + 1
            size = width(extent, tile.size) if tile is self.tiles[-1] else min(tile.size, extent)
            full, rest = divmod(extent, size)
            unit += self._walk(tiles, chosen, first, size, full, parts, unit)
            if rest:  # the last tile overlaps the one before it
                unit += self._walk(tiles, chosen, last - size + 1, size, 1, parts, unit)
        if parts is not None:
            parts.count = unit

    def _walk(
        self,
        tiles: Sequence[Tile],
        chosen: dict[int, tuple[Index, int]],
        first: int,
        size: int,
        number: int,
        parts: Parts | None,
        unit: int,
    ) -> int:
        """`number` tiles of `size` entries from `first` on, as units from `unit` on; returns the number."""
        axis = tiles[0].axis
        if number == 1 and parts is None:
            self._loops(tiles[1:], {**chosen, axis: (Index({}, first), size)}, None)
            return number
        bounds = (0, number) if parts is None else parts.bounds(unit, number)
        with counted(*bounds) as i:
            place = LoopVar(f"s{axis}", 0, number - 1, i if parts is None else i - unit)
            self._loops(tiles[1:], {**chosen, axis: (Index.of(place) * size + first, size)}, None)
        return number

    def _box(self, chosen: dict[int, tuple[Index, int]]) -> Box:
        base, extent = [], []
        for d, n in enumerate(self.stage.shape):
            start, size = chosen.get(d, (Index({}), n))
            base.append(start)
            extent.append(size)
        return Box(tuple(base), tuple(extent))

    def _pieces(self, axis: int, chosen: dict[int, tuple[Index, int]]) -> list[tuple[int, int]]:
        box = self._box(chosen)
        variables, fixed = box.variables(), _starts(chosen)
        seen = self._survey(box.at(variables), [*fixed, *variables], fixed, False)
        assert seen is not None
        found = pieces(0, self.stage.shape[axis] - 1, cuts(_all_notes(seen), variables[axis]))
        self.maker.bodies += len(found) - 1
        return found if self.maker.bodies <= MOST_BODIES else [(0, self.stage.shape[axis] - 1)]

    def _leaf(self, chosen: dict[int, tuple[Index, int]]) -> None:
        """The stages that a box of the result needs, then the box."""
        box, fixed = self._box(chosen), _starts(chosen)
        variables = box.variables()
        seen = self._survey(box.at(variables), [*fixed, *variables], fixed, False)
        assert seen is not None
        compute(self.maker, seen.uses, fixed)
        MapNest(self.maker, self.stage, box, self._store, self.target, outer=fixed).emit()
        for use in seen.uses:
            use.stage.region = None


def compute(maker: Maker, uses: Sequence[Use], outer: Sequence[LoopVar]) -> None:
    """Compute boxes of stages, in order; each is read from its region afterwards."""
    for use in uses:
        if use.stage.kind is not None:
            ReduceNest(maker, use.stage, use.box, outer).emit()
            continue
        nest = MapNest(maker, use.stage, use.box, lambda at, value: None, None, outer)
        region = maker.region(use.stage, use.box, None if nest.vector is None else nest.vector.axis)
        nest.store = region.store
        nest.emit()


def _starts(chosen: dict[int, tuple[Index, int]]) -> list[LoopVar]:
    found: dict[LoopVar, None] = {}
    for start, _ in chosen.values():
        found |= dict.fromkeys(a for a in start.terms if isinstance(a, LoopVar))
    return list(found)


def _all_notes(seen: Survey) -> list[Any]:
    return [seen.notes, *(u.notes for u in seen.uses)]


def _share(extent: int, room: int) -> int:
    """So many of `extent` at once: a divisor if there is a good one."""
    limit = min(extent, max(room, 1))
    best = next((d for d in range(limit, 0, -1) if extent % d == 0), 1)
    return best if 2 * best > limit else limit
