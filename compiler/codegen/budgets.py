"""Levels and budgets of time that calls may have, seen from Python: the table of times a library measures of
itself, and what a call that may fall to a sparser level came to. Needs numpy only."""

from __future__ import annotations

import ctypes
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.codegen.foreign import Outputs
from compiler.codegen.interface import CHEAPEST

MOST_BUDGET = (1 << 32) - 1
"""Microseconds."""


@dataclass(frozen=True, slots=True)
class Levels:
    """How many levels a bundle has, and whether they are networks of their own."""

    count: int
    portfolio: bool

    def number(self, level: int) -> int:
        """A level as C takes it; ValueError where the bundle has none of that number."""
        found = self.index(level)
        if found >= self.count and not (self.portfolio and found == CHEAPEST):
            raise ValueError(f"level {found} is not in this bundle")
        return found

    def index(self, level: int) -> int:
        """The number of a level, be it there or not; ValueError where it is none that C would take as it is."""
        try:
            found = operator.index(level)
        except TypeError:
            found = -1
        if not 0 <= found < 1 << 32:
            cheapest = " or compiler.CHEAPEST" if self.portfolio else ""
            raise ValueError(f"level {level!r}: levels are the numbers 0 to {self.count - 1}{cheapest}")
        return found


@dataclass(frozen=True, eq=False)
class LevelTimes:
    """How long each level of one subset of tasks takes on this machine; made by `Network.measure`."""

    tasks: tuple[str, ...]
    table: Any
    """`<name>_times` of the header."""
    build: str = ""
    """Digest of the bundle that they are of: tables of others have other sizes."""

    def table_for(self, build: str, name: str) -> Any:
        """The table; ValueError unless it is of this bundle."""
        if self.build != build:
            raise ValueError(
                f"these times were measured with another bundle than this one of '{name}'; measure again"
            )
        return self.table

    @property
    def seconds(self) -> tuple[float, ...]:
        """Median time of a whole call, level by level."""
        return tuple(float(rest[0]) * 1e-9 for rest in self.rest_ns)

    @property
    def rest_ns(self) -> np.ndarray:
        """uint32 [levels, switch points + 2]: time left from the start, each switch point, the end."""
        return np.array(self.table.rest_ns)

    @property
    def reserve_ns(self) -> np.ndarray:
        """uint32, as `rest_ns`: by how much longer it took one time in ten."""
        return np.array(self.table.reserve_ns)

    @property
    def threads(self) -> int:
        """Threads of the pool it was measured with; 1 without one."""
        return int(self.table.threads)


@dataclass(frozen=True, slots=True)
class Reached:
    """A call with a budget: its outputs, the level of its last layers, and whether it took longer than it had."""

    outputs: Outputs
    level: int
    late: bool


def times_type(levels: int, points: int) -> type[ctypes.Structure]:
    """`<name>_times` of a library with so many levels and switch points."""
    row = ctypes.c_uint32 * (points + 2)
    fields = (
        ("tasks", ctypes.c_uint64),
        ("threads", ctypes.c_uint32),
        ("rest_ns", row * levels),
        ("reserve_ns", row * levels),
    )
    return type("Times", (ctypes.Structure,), {"_fields_": fields})


def checked_times(times: LevelTimes) -> LevelTimes:
    """`times`; ValueError where they are none, without which no call with a budget knows when to fall."""
    if not isinstance(times, LevelTimes):
        raise ValueError(f"times are {times!r}; give what measure() made, with the same tasks and threads")
    return times


def checked_budget(budget_us: int, level: int, sparsest: int | None, levels: Levels) -> tuple[int, int]:
    """(level, sparsest) as C takes them; ValueError unless a call may have this budget and fall so far (None: to
    any).
    """
    if not 0 <= budget_us <= MOST_BUDGET:
        raise ValueError(f"a budget is 0 to {MOST_BUDGET} microseconds, not {budget_us}")
    level = levels.number(level)
    if sparsest is None:
        return level, 0
    sparsest, first, last = levels.index(sparsest), max(1, level), levels.count - 1
    if not first <= sparsest <= last:
        raise ValueError(f"from level {level} a call may fall to levels {first} to {last}, not {sparsest}")
    return level, sparsest
