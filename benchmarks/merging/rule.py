"""The accuracy rule, and what a method costs where it just holds."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MEAN_DROP, WORST_DROP = 0.5, 1.0
"""Points of accuracy below the single networks: of all tasks on average, and of any one."""

DIGITS = 4
"""Decimals of a percentage in files, of single networks too: or one that keeps the rule exactly breaks it."""

ROUNDING = 10.0**-DIGITS / MEAN_DROP
"""What the rule may seem to be broken by, as a share: a drop is of two accuracies, each half a last digit off."""

Subset = tuple[str, ...]


def all_subsets(tasks: Sequence[str]) -> list[Subset]:
    """Every non-empty set of tasks, small ones first."""
    return [q for n in range(1, len(tasks) + 1) for q in itertools.combinations(tasks, n)]


@dataclass(frozen=True, slots=True)
class Point:
    """A method at one budget. `budget`: what was asked for (1: the start), `share`: what came out, both of the
    separate networks' expected multiply-adds before pruning.
    Accuracies in percent, on the data that choose and on those that report. `macs`: of every subset.
    """

    budget: float
    share: float
    selection: Mapping[str, float]
    report: Mapping[str, float]
    macs: Mapping[Subset, int]

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "budget": self.budget,
            "share": round(self.share, 4),
            "accuracy_selection": rounded(self.selection),
            "accuracy": rounded(self.report),
            "macs": {"+".join(q): n for q, n in self.macs.items()},
        }

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Point:
        """The inverse of `record`, to its digits."""
        macs = {tuple(q.split("+")): n for q, n in record["macs"].items()}
        return cls(record["budget"], record["share"], record["accuracy_selection"], record["accuracy"], macs)


@dataclass(frozen=True, slots=True)
class AtRule:
    """Where the rule holds with equality on the selection data. `macs` and `report` are interpolated between two
    points; `bound`: the sparsest point still kept the rule, so that the cost is at most this. `budget`: of the
    sparsest point that keeps the rule.
    """

    macs: Mapping[Subset, float]
    report: Mapping[str, float]
    bound: bool
    budget: float


def rounded(found: Mapping[str, float]) -> dict[str, float]:
    """Accuracies to as many decimals as files have."""
    return {t: round(a, DIGITS) for t, a in found.items()}


def drops(single: Mapping[str, float], found: Mapping[str, float]) -> tuple[float, float]:
    """Mean and worst drop in points."""
    lost = [single[t] - found[t] for t in single]
    return sum(lost) / len(lost), max(lost)


def excess(single: Mapping[str, float], found: Mapping[str, float]) -> float:
    """At most 1 where the rule holds: the larger of both drops over what they may be."""
    mean, worst = drops(single, found)
    return max(mean / MEAN_DROP, worst / WORST_DROP)


def mean_points(sweeps: Sequence[Sequence[Point]]) -> list[Point]:
    """The same budgets of several seeds, averaged; what only some sweeps have is left out."""
    common = set.intersection(*({p.budget for p in points} for points in sweeps))
    of = [{p.budget: p for p in points} for points in sweeps]
    return [_mean([points[b] for points in of]) for b in sorted(common, reverse=True)]


def _mean(points: Sequence[Point]) -> Point:
    def tasks(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {t: statistics.fmean(f[t] for f in found) for t in found[0]}

    macs = {q: round(statistics.fmean(p.macs[q] for p in points)) for q in points[0].macs}
    share = statistics.fmean(p.share for p in points)
    return Point(
        points[0].budget, share, tasks([p.selection for p in points]), tasks([p.report for p in points]), macs
    )


def at_rule(points: Sequence[Point], single: Mapping[str, float]) -> AtRule | None:
    """Cost at the rule from points in order of falling cost; None where none of them keeps it.

    The sparsest point that keeps the rule counts, and a straight line from there to the next sparser one.
    """
    measured = [excess(single, p.selection) for p in points]
    kept = [i for i, e in enumerate(measured) if e <= 1 + ROUNDING]
    if not kept:
        return None
    last = kept[-1]
    here = points[last]
    if last + 1 == len(points):
        return AtRule(dict(here.macs), here.report, True, here.budget)
    there = points[last + 1]
    way = max(0.0, 1 - measured[last]) / (measured[last + 1] - measured[last])
    return AtRule(
        {q: n + way * (there.macs[q] - n) for q, n in here.macs.items()},
        {t: a + way * (there.report[t] - a) for t, a in here.report.items()},
        False,
        here.budget,
    )
