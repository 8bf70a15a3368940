"""What a family's run says, as JSON and as a table: means over seeds, and where ours is not the cheapest."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.merging.portfolios import PORTFOLIO, with_portfolio
from benchmarks.merging.rule import AtRule, Point, Subset, all_subsets, at_rule, drops, mean_points, rounded

OURS = "lattice"
NOT_COMPARED = (OURS, "zipit")
"""Methods that ours need not undercut: itself, and one that was made to run without training."""


@dataclass(frozen=True, slots=True)
class Swept:
    """One pipeline of a method, narrowed from budget to budget. `networks`: a file per point, where it was kept;
    none of a sweep that a record holds.
    `trained_on`: processor and version of torch. `finished`: nothing cut it short.
    """

    points: list[Point]
    networks: list[Path]
    minutes: float
    trained_on: str = ""
    finished: bool = True


@dataclass(frozen=True, slots=True)
class Seeded:
    """One family at one seed. `sweeps`: method -> pipeline -> its sweep. `minutes`: of all sweeps together."""

    seed: int
    single_selection: Mapping[str, float]
    single_report: Mapping[str, float]
    sweeps: Mapping[str, Mapping[str, Swept]]
    minutes: float


@dataclass(frozen=True, slots=True)
class Chosen:
    """A method's pipeline that is cheapest at the rule on the means over all seeds, and where the rule holds.

    `each`: where it holds for every pipeline.
    """

    pipeline: str
    found: AtRule | None
    each: Mapping[str, AtRule | None]


def passes_of(pipeline: str, tasks: int) -> list[str]:
    """The passes of a pipeline; FIRST is the share that one network's width is of all of them side by side, and
    more where more than three tasks have to share it.
    """
    return [text.replace("FIRST", f"{max(1, tasks / 3) / tasks**2:.4g}") for text in pipeline.split(";") if text]


def least(found: Mapping[str, AtRule | None]) -> dict[Subset, float] | None:
    """The cheapest of some methods per subset; None where none of them keeps the rule."""
    kept = [f.macs for f in found.values() if f is not None]
    return {q: min(m[q] for m in kept) for q in kept[0]} if kept else None


def expected(found: AtRule | None) -> float:
    """Multiply-adds of a subset on average, all equally likely; infinite where the rule is not kept."""
    return float("inf") if found is None else statistics.fmean(found.macs.values())


def chosen(seeds: Sequence[Seeded]) -> dict[str, Chosen]:
    """Method -> what counts. Points are averaged over the seeds first: the rule is not read from one draw."""
    single = mean_accuracy([s.single_selection for s in seeds])
    found = {}
    for method, sweeps in seeds[0].sweeps.items():
        pipelines = [p for p in sweeps if all(p in s.sweeps.get(method, {}) for s in seeds)]
        if not pipelines:
            continue
        means = {p: mean_points([s.sweeps[method][p].points for s in seeds]) for p in pipelines}
        each = {p: at_rule(points, single) for p, points in means.items()}
        best = min(each, key=lambda p: expected(each[p]))
        found[method] = Chosen(best, each[best], each)
    return found


def rule_networks(seeds: Sequence[Seeded]) -> dict[str, Path]:
    """Method -> `network_at` of ours and the separate ones, those of them that were kept."""
    found = {m: network_at(seeds, c, c.pipeline, m) for m, c in chosen(seeds).items() if m in (OURS, "separate")}
    return {method: file for method, file in found.items() if file is not None}


def network_at(seeds: Sequence[Seeded], chosen: Chosen, pipeline: str, method: str) -> Path | None:
    """The first seed's network of a method's pipeline at the smallest budget within the rule; None: not kept."""
    found, sweeps = chosen.each.get(pipeline), seeds[0].sweeps[method]
    if found is None or pipeline not in sweeps:
        return None
    number = [p.budget for p in sweeps[pipeline].points].index(found.budget)
    kept = sweeps[pipeline].networks[number : number + 1]
    return kept[0] if kept and kept[0].exists() else None


def portfolio_networks(seeds: Sequence[Seeded], family: Mapping[str, Any]) -> list[Path]:
    """`network_at` of the networks of a family's portfolio; none unless all were kept."""
    methods = chosen(seeds)
    found = [
        network_at(seeds, methods[n["method"]], n["pipeline"], n["method"])
        for n in family.get(PORTFOLIO, {}).get("networks", ())
    ]
    return [] if None in found else [file for file in found if file is not None]


def mean_accuracy(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Task -> percent, mean over seeds."""
    return {t: statistics.fmean(f[t] for f in found) for t in found[0]}


def family_record(name: str, what: str, seeds: Sequence[Seeded]) -> dict[str, Any]:
    """The family's part of the results file: means over the seeds."""
    single = mean_accuracy([s.single_report for s in seeds])
    methods = chosen(seeds)
    ours = methods[OURS].found if OURS in methods else None
    record: dict[str, Any] = {
        "name": name,
        "what": what,
        "tasks": list(single),
        "accuracy_single": _rounded(single),
        "accuracy_merged": None if ours is None else _rounded(ours.report),
        "accuracy_drop_mean": None if ours is None else round(drops(single, ours.report)[0], 2),
        "accuracy_drop_worst": None if ours is None else round(drops(single, ours.report)[1], 2),
        "methods": {m: method_record(c, single) for m, c in methods.items()},
        "subsets": [subset_record(methods, q) for q in all_subsets(list(single))],
        "points": [seed_record(s) for s in seeds],
    }
    record["misses"] = misses(record["subsets"])
    return with_portfolio(record)


def method_record(chosen: Chosen, single: Mapping[str, float]) -> dict[str, Any]:
    """What the report data say about a method where the rule holds on the selection data."""
    found = chosen.found
    mean, worst = (None, None) if found is None else drops(single, found.report)
    return {
        "accuracy": None if found is None else _rounded(found.report),
        "drop_mean": None if mean is None else round(mean, 2),
        "drop_worst": None if worst is None else round(worst, 2),
        "pipeline": ";".join(passes_of(chosen.pipeline, len(single))),
        "at_most": bool(found and found.bound),
        "pipelines": {
            p: None if at is None else {"+".join(q): round(n) for q, n in at.macs.items()}
            for p, at in chosen.each.items()
        },
    }


def subset_record(methods: Mapping[str, Chosen], tasks: Subset) -> dict[str, Any]:
    """Multiply-adds of every method at the rule; null where it does not keep the rule."""
    cells = {m: None if c.found is None else round(c.found.macs[tasks]) for m, c in methods.items()}
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


def kept_notes(seeds: Sequence[Seeded]) -> dict[str, Any]:
    """On what the sweeps were trained, and which of them were cut short: seed, method, pipeline."""
    swept = [(s.seed, m, p, found) for s in seeds for m, of in s.sweeps.items() for p, found in of.items()]
    cut = sorted({(seed, m, p) for seed, m, p, found in swept if not found.finished})
    return {
        "trained_on": sorted({found.trained_on for *_, found in swept}),
        "cut_short": [list(c) for c in cut],
    }


def seed_record(found: Seeded) -> dict[str, Any]:
    """Every measured point of a seed."""
    return {
        "seed": found.seed,
        "accuracy_single_selection": rounded(found.single_selection),
        "accuracy_single": rounded(found.single_report),
        "sweeps": {
            m: {pipeline: [p.record() for p in swept.points] for pipeline, swept in sweeps.items()}
            for m, sweeps in found.sweeps.items()
        },
    }


def _rounded(found: Mapping[str, float]) -> dict[str, float]:
    return {t: round(a, 2) for t, a in found.items()}


def table(record: Mapping[str, Any]) -> str:
    """A family as Markdown."""
    names = [*record["methods"], *([PORTFOLIO] if PORTFOLIO in record else [])]
    lines = [f"| {record['name']} | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"]
    for row in record["subsets"]:
        cells = (row["macs"][m] for m in names)
        lines.append(
            f"| {' + '.join(row['tasks'])} | {' | '.join('–' if n is None else f'{n:,}' for n in cells)} |"
        )
    for key, what in (("drop_mean", "mean drop, points"), ("drop_worst", "worst drop, points")):
        cells = ({**record["methods"], PORTFOLIO: record.get(PORTFOLIO, {})}[m].get(key) for m in names)
        lines.append(f"| {what} | {' | '.join('–' if n is None else f'{n:.2f}' for n in cells)} |")
    return "\n".join(lines)
