"""What a family's run says, as JSON and as a table: means over seeds, and where ours is not the cheapest."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.merging.rule import AtRule, Point, Subset, all_subsets, drops

OURS = "lattice"
NOT_COMPARED = (OURS, "zipit")
"""Methods that ours need not undercut: itself, and one that was made to run without training."""


@dataclass(frozen=True, slots=True)
class Seeded:
    """One family at one seed. `sweeps`: method -> start -> points; `chosen`: method -> the start that counts.
    `minutes`: of all sweeps, when they ran.
    """

    seed: int
    single_selection: Mapping[str, float]
    single_report: Mapping[str, float]
    sweeps: Mapping[str, Mapping[str, Sequence[Point]]]
    chosen: Mapping[str, str]
    found: Mapping[str, AtRule | None]
    minutes: float


def least(found: Mapping[str, AtRule | None]) -> dict[Subset, float] | None:
    """The cheapest of some methods per subset; None where none of them keeps the rule."""
    kept = [f.macs for f in found.values() if f is not None]
    return {q: min(m[q] for m in kept) for q in kept[0]} if kept else None


def expected(found: AtRule | None) -> float:
    """Multiply-adds of a subset on average, all equally likely; infinite where the rule is not kept."""
    return float("inf") if found is None else statistics.fmean(found.macs.values())


def family_record(name: str, what: str, seeds: Sequence[Seeded]) -> dict[str, Any]:
    """The family's part of the results file: means over the seeds."""
    tasks = list(seeds[0].single_report)
    single = {t: statistics.fmean(s.single_report[t] for s in seeds) for t in tasks}
    merged = accuracy_at_rule(seeds, OURS)
    record: dict[str, Any] = {
        "name": name,
        "what": what,
        "tasks": tasks,
        "accuracy_single": _rounded(single),
        "accuracy_merged": _rounded(merged),
        "accuracy_drop_mean": None if merged is None else round(drops(single, merged)[0], 2),
        "accuracy_drop_worst": None if merged is None else round(drops(single, merged)[1], 2),
        "methods": {m: method_record(seeds, m, single) for m in seeds[0].sweeps},
        "subsets": [subset_record(seeds, q) for q in all_subsets(tasks)],
        "points": [seed_record(s) for s in seeds],
    }
    record["misses"] = misses(record["subsets"])
    return record


def accuracy_at_rule(seeds: Sequence[Seeded], method: str) -> dict[str, float] | None:
    """Task -> percent on the report data, mean over seeds; None where some seed does not keep the rule."""
    found = [s.found[method] for s in seeds if method in s.found]
    if not found or any(f is None for f in found):
        return None
    return {t: statistics.fmean(f.report[t] for f in found if f is not None) for t in seeds[0].single_report}


def method_record(seeds: Sequence[Seeded], method: str, single: Mapping[str, float]) -> dict[str, Any]:
    """What the report data say about a method where the rule holds on the selection data."""
    found = accuracy_at_rule(seeds, method)
    mean, worst = (None, None) if found is None else drops(single, found)
    return {
        "accuracy": _rounded(found),
        "drop_mean": None if mean is None else round(mean, 2),
        "drop_worst": None if worst is None else round(worst, 2),
        "starts": [s.chosen[method] or "none" for s in seeds],
        "at_most": [bool(f and f.bound) for f in (s.found[method] for s in seeds)],
    }


def subset_record(seeds: Sequence[Seeded], tasks: Subset) -> dict[str, Any]:
    """Multiply-adds of every method at the rule, mean over seeds; null where a seed does not keep the rule."""
    cells: dict[str, int | None] = {}
    for method in seeds[0].found:
        found = [s.found[method] for s in seeds]
        known = [f.macs[tasks] for f in found if f is not None]
        cells[method] = round(statistics.fmean(known)) if len(known) == len(found) else None
    return {"tasks": list(tasks), "macs": cells, "latency_ms": {}}


def misses(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Subsets that ours computes dearer than the cheapest other method, and by how much."""
    found = []
    for row in rows:
        others = {m: n for m, n in row["macs"].items() if m not in NOT_COMPARED and n is not None}
        ours = row["macs"].get(OURS)
        if not others:
            continue
        method = min(others, key=lambda m: others[m])
        if ours is None:
            found.append(
                {"tasks": row["tasks"], "against": method, "reason": "keeps the rule at none of its budgets"}
            )
        elif ours > others[method]:
            found.append({"tasks": row["tasks"], "against": method, "ratio": round(ours / others[method], 3)})
    return found


def seed_record(found: Seeded) -> dict[str, Any]:
    """Every measured point of a seed."""
    return {
        "seed": found.seed,
        "accuracy_single_selection": _rounded(found.single_selection),
        "accuracy_single": _rounded(found.single_report),
        "sweeps": {
            m: {start or "none": [p.record() for p in points] for start, points in sweeps.items()}
            for m, sweeps in found.sweeps.items()
        },
    }


def _rounded(found: Mapping[str, float] | None) -> dict[str, float] | None:
    return None if found is None else {t: round(a, 2) for t, a in found.items()}


def table(record: Mapping[str, Any]) -> str:
    """A family as Markdown."""
    names = list(record["methods"])
    lines = [f"| {record['name']} | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"]
    for row in record["subsets"]:
        cells = (row["macs"][m] for m in names)
        lines.append(
            f"| {' + '.join(row['tasks'])} | {' | '.join('–' if n is None else f'{n:,}' for n in cells)} |"
        )
    for key, what in (("drop_mean", "mean drop, points"), ("drop_worst", "worst drop, points")):
        cells = (record["methods"][m][key] for m in names)
        lines.append(f"| {what} | {' | '.join('–' if n is None else f'{n:.2f}' for n in cells)} |")
    return "\n".join(lines)
