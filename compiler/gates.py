"""Gates of a release: every limit with its value and verdict; all are checked even after one failed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from compiler.calibration.evaluation import TaskEvaluation
from compiler.cost.combine import CostReport
from compiler.settings import Gates

Verdict = Literal["passed", "failed", "skipped"]

NO_NUMBER = "what was measured is no number: outputs, labels or the metric give NaN"


@dataclass(frozen=True, slots=True)
class GateResult:
    """`value` and `limit` in the gate's own unit; a gate that could not be measured is skipped with the reason."""

    name: str
    where: str
    value: float | None
    limit: float | None
    verdict: Verdict
    reason: str = ""

    def record(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "gate": self.name,
            "where": self.where,
            "value": self.value,
            "limit": self.limit,
            "verdict": self.verdict,
            "reason": self.reason,
        }

    def __str__(self) -> str:
        if self.limit is None or self.reason:
            return f"{self.name} {self.where}: {self.verdict}{', ' * bool(self.reason)}{self.reason}"
        return f"{self.name} {self.where}: {self.value:g} (limit {self.limit:g}) {self.verdict}"


def at_most(name: str, where: str, value: float, limit: float) -> GateResult:
    """Passed where the value does not exceed the limit; not-a-number fails, with a reason."""
    if math.isnan(value):
        return GateResult(name, where, value, limit, "failed", NO_NUMBER)
    return GateResult(name, where, value, limit, "passed" if value <= limit else "failed")


def check_tasks(gates: Gates, rows: Sequence[TaskEvaluation], *, portfolio: bool = False) -> Iterator[GateResult]:
    """Accuracy and drift gates, on the compiled library where it ran, else on the graph.

    Of sparsity levels the densest is judged, of a portfolio every level: a call may ask for whichever is cheapest.
    """
    levels = sorted({r.level for r in rows}) if portfolio else [0]
    for level in levels or [0]:
        at = f" at level {level}" if portfolio else ""
        yield from _check_level(gates, [r for r in rows if r.level == level], at)


def _check_level(gates: Gates, rows: Sequence[TaskEvaluation], at: str) -> Iterator[GateResult]:
    """The gates of `check_tasks` on the rows of one level, which results name as `at`."""
    by_task = {r.task: r for r in rows}
    gone = "the pipeline leaves no such task" if rows else ""
    for task, limit in gates.max_accuracy_drop.items():
        row = by_task.get(task)
        drop = row.worse_by(row.final) if row else None
        if drop is None:
            reason = "there are no labels for this task"
            why = reason if row else gone or reason
            yield GateResult("max_accuracy_drop", task + at, None, limit, "skipped", why)
        else:
            yield at_most("max_accuracy_drop", task + at, drop, limit)
    for task, limit in gates.max_output_drift.items():
        row = by_task.get(task)
        if row is None:
            reason = gone or "there is neither calibration nor evaluation data"
            yield GateResult("max_output_drift", task + at, None, limit, "skipped", reason)
        else:
            yield at_most("max_output_drift", task + at, row.final.drift, limit)


def check_costs(gates: Gates, costs: CostReport) -> Iterator[GateResult]:
    """FLOPs gates, of a portfolio on the cheapest level; skipped for a combination of which the pipeline has left a
    part only."""
    flops = {frozenset(r.tasks): r.cost.flops for r in costs.cheapest()}
    for subset, limit in gates.max_flops.items():
        where = "+".join(sorted(subset))
        if subset in flops:
            yield at_most("max_flops", where, flops[subset], limit)
        else:
            reason = "the pipeline does not leave all of these tasks"
            yield GateResult("max_flops", where, None, limit, "skipped", reason)


def check_target(
    gates: Gates, target: str, library_bytes: int | None, workspace_bytes: int
) -> Iterator[GateResult]:
    """Size gates of one target. `workspace_bytes`: enough for every call, listed or through the table."""
    if gates.max_library is not None and library_bytes is None:
        yield GateResult("max_library", target, None, gates.max_library, "skipped", "it is not linked")
    elif gates.max_library is not None and library_bytes is not None:
        yield at_most("max_library", target, library_bytes, gates.max_library)
    if gates.max_workspace is not None:
        yield at_most("max_workspace", target, workspace_bytes, gates.max_workspace)
