"""Cost of every combination of tasks in closed form (architecture.md, section 9).

A node is paid for by every combination that contains one of its owners. So the cost of combination Q is the total
minus what no task of Q needs. Filed under the complement of the owner set - the tasks that do *not* need it - the
subtracted part is a sum over all supersets of Q, which one in-place addition per task gives for all Q at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from compiler.cost.count import Cost, items
from compiler.errors import ConfigError
from compiler.ir.graph import Graph

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
        return {
            "tasks": list(self.tasks),
            "level": self.level,
            "macs": self.cost.macs,
            "flops": self.cost.flops,
            "parameters": self.cost.parameters,
            "weight_bytes": self.cost.weight_bytes,
            "activation_bytes": self.cost.activation_bytes,
            "workspace_bytes": self.workspace_bytes,
        }


@dataclass(frozen=True, slots=True)
class CostReport:
    """A row per combination, and the same rows for the separate networks side by side."""

    combinations: tuple[Row, ...]
    separate: tuple[Row, ...]

    def record(self) -> dict[str, object]:
        """JSON-ready: `combinations` and `separate`."""
        return {
            "combinations": [r.record() for r in self.combinations],
            "separate": [r.record() for r in self.separate],
        }

    def pairs(self) -> Iterator[tuple[Row, Row | None]]:
        """Each combination with its separate row, where there is one."""
        other = {r.tasks: r for r in self.separate}
        return ((r, other.get(r.tasks)) for r in self.combinations)


Workspace = Callable[[tuple[str, ...]], int | None]
"""Tasks -> planned peak in bytes, or None."""


def cost_report(
    graph: Graph,
    separate: Mapping[str, Graph] | None = None,
    *,
    workspace: Mapping[frozenset[str], int] | None = None,
) -> CostReport:
    """Every non-empty combination of the tasks of `graph`, in order of size, then of tasks.

    `separate` holds the network of each task before union, which run one after the other; `workspace` the planned
    peaks of the subsets that were built. Raises ConfigError beyond MOST_TASKS tasks.
    """
    names = tuple(graph.tasks)
    _refuse_too_many(names)
    masks = graph.needed_masks()
    table = combination_costs(len(names), ((masks[r], c) for r, c in items(graph) if r in masks))
    planned = workspace or {}
    return CostReport(
        _rows(names, table, lambda tasks: planned.get(frozenset(tasks))),
        _separate_rows(names, separate or {}),
    )


def _refuse_too_many(names: Sequence[str]) -> None:
    if len(names) > MOST_TASKS:
        raise ConfigError(
            f"{len(names)} tasks have 2^{len(names)} combinations; tables are made for at most {MOST_TASKS} tasks. "
            f"Extract the tasks of interest first"
        )


def _separate_rows(names: Sequence[str], separate: Mapping[str, Graph]) -> tuple[Row, ...]:
    """Networks side by side share nothing, so each task owns its whole cost; a network without a task's name
    belongs to no row."""
    if set(names) - set(separate):
        return ()
    owned = []
    for bit, name in enumerate(names):
        needed = separate[name].needed_masks()
        owned += [(1 << bit, c) for r, c in items(separate[name]) if r in needed]
    return _rows(names, combination_costs(len(names), owned), lambda tasks: None)


def _rows(names: Sequence[str], table: np.ndarray, workspace: Workspace) -> tuple[Row, ...]:
    plain = table.tolist()
    rows = []
    for mask in _by_size(len(names)):
        tasks = tuple(n for i, n in enumerate(names) if mask >> i & 1)
        rows.append(Row(tasks, 0, Cost(*plain[mask]), workspace(tasks)))
    return tuple(rows)


def _by_size(tasks: int) -> list[int]:
    """All non-empty masks: fewer tasks first, then in task order."""
    return sorted(range(1, 1 << tasks), key=lambda m: (m.bit_count(), _reversed(m, tasks)))


def _reversed(mask: int, tasks: int) -> int:
    return -int(f"{mask:0{tasks}b}"[::-1], 2)
