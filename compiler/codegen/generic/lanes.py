"""Which axis becomes lanes: what every access costs along it, and how constant tables are stored for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compiler.codegen.generic.index import Index, LoopVar
from compiler.codegen.generic.language import Access, Notes, Source
from compiler.codegen.generic.survey import Box

STRIDED_READ, STRIDED_WRITE = 1.5, 0.75
"""Cost of an access lane by lane, per element, beside 1 / lanes for a whole vector: writes do not wait."""

COSTLY_WORK = 12.0

NARROWEST = 4
"""Vectors shorter than the target's are tried down to so many lanes."""


def power_of_two(limit: int) -> int:
    """The largest power of two that is at most `limit`."""
    return 1 << (limit.bit_length() - 1)


def width(extent: int, lanes: int) -> int:
    """Lanes of a vector along an axis."""
    return power_of_two(min(extent, lanes))


@dataclass(frozen=True)
class Option:
    """An axis of a box with so many lanes, and its relative time per element."""

    cost: float
    axis: int
    n: int


Look = Callable[[Sequence[Index], Sequence[LoopVar]], Notes]
"""What a body shows at an index that hangs on some variables."""


def options(
    box: Box, variables: Sequence[LoopVar], notes: Notes, lanes: int, look: Look, free: bool
) -> list[Option]:
    """The axes of a box as lanes; `free` where the result's order follows the choice.

    Where an index along an axis is divided (channels of blocked values), the body is looked at for whole vectors.
    """
    found = []
    for axis, variable in enumerate(variables):
        if variable.extent < 2:
            continue
        n = width(variable.extent, lanes)
        if not _divided(notes, variable):
            found.append(Option(vector_cost(notes, variable, n, variable.extent, free), axis, n))
            continue
        while n >= min(NARROWEST, width(variable.extent, lanes)):
            block, lane = LoopVar("q", 0, variable.extent // n - 1), LoopVar("l", 0, n - 1)
            at = box.at(variables)
            at[axis] = box.base[axis] + Index.of(block) * n + Index.of(lane)
            seen = look(at, [*(v for v in variables if v is not variable), block, lane])
            found.append(Option(vector_cost(seen, lane, n, variable.extent, free), axis, n))
            n //= 2
    return found


def best_option(found: Sequence[Option]) -> Option | None:
    """The cheapest; the last axis and the longest vectors where several are."""
    return min(found, key=lambda o: (o.cost, -o.axis, -o.n), default=None)


def _divided(notes: Notes, variable: LoopVar) -> bool:
    return any(
        a.address is not None and any(variable in p.of.variables() for p in a.address.parts())
        for a in notes.accesses
    )


def scalar_cost(notes: Notes) -> float:
    """Relative time per element without vectors."""
    return _work(notes) + len(notes.accesses)


def _work(notes: Notes) -> float:
    return (COSTLY_WORK if notes.costly else 1.0) + 0.5 * len(notes.reads)


def vector_cost(notes: Notes, variable: LoopVar, n: int, extent: int, free_write: bool = False) -> float:
    """Relative time per element with the variable as `n` lanes along an axis of `extent` entries."""
    if n == 1:
        return math.inf
    total = _work(notes) / n
    for access in notes.accesses:
        step = access.step(variable)
        if step == 0:
            total += 0.25 / n
        elif step == 1 or table_axis(access, variable) is not None or (access.write and free_write):
            total += 1.0 / n
        else:
            total += STRIDED_WRITE if access.write else STRIDED_READ
    return total * (1 + (n / extent if extent % n else 0))


def table_axis(access: Access, variable: LoopVar) -> int | None:
    """The axis of a constant table that the variable, and it alone by steps of one, runs along."""
    if access.source is None or access.source.array is None or access.address is None:
        return None
    moving = [d for d, i in enumerate(access.at) if isinstance(i, Index) and variable in i.variables()]
    if len(moving) != 1 or access.at[moving[0]].step(variable) != 1:
        return None
    return moving[0]


def arrange_tables(notes: Notes, along: Sequence[LoopVar], arranged: set[Source]) -> None:
    """Store tables so that the variables run along them, the last one fastest; the first stage to read one decides.

    Several variables are one loop that goes on past the end of the last one: their axes stay side by side.
    """
    for access in notes.accesses:
        if access.source is None or access.source.array is None or access.source in arranged:
            continue
        arranged.add(access.source)
        axes = [axis for v in along if (axis := table_axis(access, v)) is not None]
        if len(axes) == len(along):
            access.source.order = (*(d for d in access.source.order if d not in axes), *axes)
