"""Cost of every combination of tasks in closed form (architecture.md, section 9).

A node is paid for by every combination that contains one of its owners. So the cost of combination Q is the total
minus what no task of Q needs. Filed under the complement of the owner set - the tasks that do *not* need it - the
subtracted part is a sum over all supersets of Q, which one in-place addition per task gives for all Q at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import overload

import numpy as np

from compiler.cost.count import Cost, items
from compiler.errors import ConfigError
from compiler.ir.graph import Graph
from compiler.ir.levels import at_level, is_portfolio, level_count

MOST_TASKS = 16
"""Up to this many tasks every combination gets a row (65,535)."""

_FIELDS = tuple(f.name for f in fields(Cost))


def superset_sums(table: np.ndarray) -> np.ndarray:
    """table[Q] -> sum of table[S] over all S containing Q, along axis 0 of length 2^T; works in place.

    The zeta transform over the subset lattice: T additions of 2^(T-1) rows.
    """
    bits = len(table).bit_length() - 1
    for bit in range(bits):
        view = table.reshape(-1, 2, 1 << bit, *table.shape[1:])
        view[:, 0] += view[:, 1]
    return table


def combination_costs(tasks: int, owned: Iterable[tuple[int, Cost]]) -> np.ndarray:
    """int64 array [2^tasks, quantities]: row Q costs what the union of Q's tasks needs; row 0 is zero.

    `owned`: (owner mask, cost) of every part. Columns follow the fields of `Cost`.
    """
    every = (1 << tasks) - 1
    table = np.zeros((1 << tasks, len(_FIELDS)), np.int64)
    for mask, cost in owned:
        table[every & ~mask] += [getattr(cost, f) for f in _FIELDS]
    total = table.sum(axis=0)
    return np.asarray(total - superset_sums(table))


@dataclass(frozen=True, slots=True)
class Row:
    """The cost of one combination of tasks at one level. `workspace_bytes` is None where it was not planned."""

    tasks: tuple[str, ...]
    level: int
    cost: Cost
    workspace_bytes: int | None

    def record(self) -> dict[str, object]:
        """JSON-ready."""
        values = [getattr(self.cost, f) for f in _FIELDS]
        return _record(self.tasks, self.level, values, self.workspace_bytes)


class Rows(Sequence[Row]):
    """A row per non-empty combination, made when it is asked for: fewer tasks first, then in task order.

    `table`: int64 [2^T, quantities] by mask, as `combination_costs` returns it, at sparsity `level`.
    """

    def __init__(
        self, names: Sequence[str], table: np.ndarray, workspace: Mapping[frozenset[str], int], level: int = 0
    ) -> None:
        self._names, self._table, self._workspace, self._level = tuple(names), table, workspace, level

    def __len__(self) -> int:
        return len(self._table) - 1

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, index: int | slice) -> Row | tuple[Row, ...]:
        return tuple(self)[index]

    def __iter__(self) -> Iterator[Row]:
        for tasks, values, planned in self._parts():
            yield Row(tasks, self._level, Cost(*values), planned)

    def records(self) -> list[dict[str, object]]:
        """JSON-ready rows, without an object per row on the way."""
        return [_record(tasks, self._level, values, planned) for tasks, values, planned in self._parts()]

    def _parts(self) -> Iterator[tuple[tuple[str, ...], list[int], int | None]]:
        """Tasks, quantities and planned workspace of every row."""
        sizes = range(1, len(self._names) + 1)
        bits = [1 << i for i in range(len(self._names))]
        masks = [sum(c) for n in sizes for c in itertools.combinations(bits, n)]
        subsets = (c for n in sizes for c in itertools.combinations(self._names, n))
        plan = self._workspace
        for tasks, values in zip(subsets, self._table[masks].tolist(), strict=True):
            yield tasks, values, plan.get(frozenset(tasks)) if plan else None


def _record(tasks: tuple[str, ...], level: int, values: Sequence[int], planned: int | None) -> dict[str, object]:
    quantities = zip(_FIELDS, values, strict=True)
    return {"tasks": list(tasks), "level": level, **dict(quantities), "workspace_bytes": planned}


@dataclass(frozen=True, slots=True)
class CostReport:
    """A row per combination at level 0, the same rows for the separate networks side by side (none where unknown),
    and rows of every further level, which are sparser ones or, of a `portfolio`, other networks."""

    combinations: Rows
    separate: Rows | None = None
    further: tuple[Rows, ...] = ()
    portfolio: bool = False

    @property
    def levels(self) -> tuple[Rows, ...]:
        """The rows of every level."""
        return (self.combinations, *self.further)

    def cheapest(self) -> Iterator[Row]:
        """What a call of each combination costs at least at the accuracy of level 0: of a portfolio the row of the
        level with the fewest FLOPs, else that of level 0."""
        for rows in zip(*(self.levels if self.portfolio else self.levels[:1]), strict=True):
            yield min(rows, key=lambda row: row.cost.flops)

    def record(self) -> dict[str, object]:
        """JSON-ready: `combinations` and `separate`."""
        return {
            "combinations": [r for rows in self.levels for r in rows.records()],
            "separate": self.separate.records() if self.separate else [],
        }

    def pairs(self) -> Iterator[tuple[Row, Row | None]]:
        """Each combination, level by level, with its separate row, where there is one."""
        for rows in self.levels:
            yield from zip(rows, self.separate or itertools.repeat(None), strict=False)


def cost_report(
    graph: Graph,
    separate: Mapping[str, Graph] | None = None,
    *,
    workspace: Mapping[frozenset[str], int] | None = None,
) -> CostReport:
    """Every non-empty combination of the tasks of `graph` at every level, in order of size, then of tasks.

    `separate` holds the network of each task before union, which run one after the other; `workspace` the planned
    peaks of the subsets that were built. Raises ConfigError beyond MOST_TASKS tasks.
    """
    names = tuple(graph.tasks)
    refuse_too_many(names)
    first, *further = (
        Rows(names, _table(at_level(graph, level, alone=True)), workspace or {}, level)
        for level in range(level_count(graph))
    )
    return CostReport(first, _separate_rows(names, separate or {}), tuple(further), is_portfolio(graph))


def cheapest_levels(graph: Graph) -> tuple[int, ...]:
    """Of a portfolio: by mask of tasks, the level at which they take the fewest FLOPs, the first of several.

    Entry 0, for no task, is 0. ConfigError beyond MOST_TASKS tasks.
    """
    refuse_too_many(graph.tasks)
    flops = [
        _table(at_level(graph, level, alone=True))[:, _FIELDS.index("flops")] for level in range(level_count(graph))
    ]
    return tuple(np.argmin(flops, axis=0).tolist())


def _table(graph: Graph) -> np.ndarray:
    masks = graph.needed_masks()
    return combination_costs(len(graph.tasks), ((masks[r], c) for r, c in items(graph) if r in masks))


def refuse_too_many(names: Collection[str]) -> None:
    """ConfigError where so many tasks have too many combinations for a table."""
    if len(names) > MOST_TASKS:
        raise ConfigError(
            f"{len(names)} tasks have 2^{len(names)} combinations; tables are made for at most {MOST_TASKS} tasks. "
            "Extract the tasks of interest first; `compiler.build` compiles more, without tables"
        )


def _separate_rows(names: Sequence[str], separate: Mapping[str, Graph]) -> Rows | None:
    """Networks side by side share nothing, so each task owns its whole cost; none unless all are given."""
    if set(names) - set(separate):
        return None
    owned = []
    for bit, name in enumerate(names):
        needed = separate[name].needed_masks()
        owned += [(1 << bit, c) for r, c in items(separate[name]) if r in needed]
    return Rows(names, combination_costs(len(names), owned), {})
