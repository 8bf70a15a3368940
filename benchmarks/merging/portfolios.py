"""The best portfolio of a family: two of all networks that keep the rule, each combination at the cheaper one.

Networks are those of every method and pipeline, at the cost where the rule just holds. The pair counts whose
expected call is cheapest, all combinations equally likely: how many networks a library holds is paid for in bytes,
so there are no more than two.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

PORTFOLIO = "portfolio"
"""Its column beside the methods."""

Costs = dict[str, float]
"""Multiply-adds by combination, `a+b`."""


def candidates(family: Mapping[str, Any]) -> dict[tuple[str, str], Costs]:
    """(method, pipeline) -> its costs at the rule, of the record of a family; those that keep it nowhere are left
    out, and so are twins.
    """
    found: dict[tuple[str, str], Costs] = {}
    for method, record in family["methods"].items():
        cells = {"+".join(row["tasks"]): row["macs"][method] for row in family["subsets"]}
        pipelines = record.get("pipelines") or {record.get("pipeline", ""): cells}
        for pipeline, costs in pipelines.items():
            if costs and None not in costs.values() and costs not in found.values():
                found[method, pipeline] = dict(costs)
    return found


def best(found: Mapping[tuple[str, str], Costs]) -> tuple[tuple[str, str], ...]:
    """The networks of the cheapest portfolio, those that some combination uses; of equals the first."""

    def expected(names: Sequence[tuple[str, str]]) -> float:
        return statistics.fmean(_least(found, names).values())

    pairs = [*((n,) for n in found), *itertools.combinations(found, 2)]
    return min(pairs, key=lambda names: (expected(names), len(names)), default=())


def _least(found: Mapping[tuple[str, str], Costs], names: Sequence[tuple[str, str]]) -> Costs:
    return {q: min(found[n][q] for n in names) for q in found[names[0]]}


def with_portfolio(family: dict[str, Any]) -> dict[str, Any]:
    """The record of a family with its portfolio: which networks, and what every combination costs.

    `misses` of the portfolio are those combinations for which another method is cheaper.
    """
    found = candidates(family)
    names = best(found)
    if not names:
        return family
    costs = _least(found, names)
    rows = []
    for row in family["subsets"]:
        macs = {m: n for m, n in row["macs"].items() if m != PORTFOLIO}
        rows.append({**row, "macs": {**macs, PORTFOLIO: round(costs["+".join(row["tasks"])])}})
    cheaper = [
        {"tasks": row["tasks"], "ratio": round(row["macs"][PORTFOLIO] / least, 3)}
        for row in rows
        if (least := min(n for m, n in row["macs"].items() if m != PORTFOLIO and n is not None))
        < row["macs"][PORTFOLIO]
    ]
    networks = [_network(family, name, found[name], costs) for name in names]
    drops = {key: _largest([n[key] for n in networks]) for key in ("drop_mean", "drop_worst")}
    return {**family, "subsets": rows, PORTFOLIO: {"networks": networks, "misses": cheaper, **drops}}


def _network(family: Mapping[str, Any], name: tuple[str, str], own: Costs, least: Costs) -> dict[str, Any]:
    """One network of a portfolio; what it loses on the report data, where that of its pipeline is told."""
    method, pipeline = name
    record = family["methods"][method]
    told = all(round(own["+".join(row["tasks"])]) == row["macs"][method] for row in family["subsets"])
    return {
        "method": method,
        "pipeline": pipeline,
        "combinations": sum(own[q] <= least[q] for q in least),
        "drop_mean": record.get("drop_mean") if told else None,
        "drop_worst": record.get("drop_worst") if told else None,
    }


def _largest(drops: Sequence[float | None]) -> float | None:
    known = [d for d in drops if d is not None]
    return max(known) if len(known) == len(drops) else None
