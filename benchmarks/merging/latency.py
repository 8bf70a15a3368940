"""What every subset takes as compiled code: the networks just within the rule, of two methods, side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.merging.portfolios import PORTFOLIO
from benchmarks.merging.rule import Subset, all_subsets
from compiler import Graph, build, cost_report, find_target, load, portfolio
from compiler.codegen.emulate import fastest_calls
from compiler.passes.dedupe import Deduplicate
from compiler.passes.join import JoinSiblings

SECONDS, TURNS = 0.03, 5
"""Time that a subset is measured for in a turn, and how often the methods take turns."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """`rows`: subset -> milliseconds of one call, and multiply-adds, by method. `pool_bytes`: weights by method."""

    rows: dict[Subset, dict[str, dict[str, Any]]]
    pool_bytes: dict[str, int]


def latency_record(networks: Mapping[str, Path], together: Sequence[Path] = ()) -> Compiled:
    """What networks of some methods take as compiled code; host target, one thread.

    `together`: networks of a portfolio, whose calls are those at the cheapest level, or the only one. Layers side
    by side are joined, as `narrow` leaves them, also in networks that an earlier one left. The fastest of several
    turns counts: what disturbs a run only adds to it.
    """
    graphs = {method: _joined(file) for method, file in networks.items()}
    if together:
        members = [_joined(file) for file in together]
        graphs[PORTFOLIO] = Deduplicate()(portfolio(members)) if len(members) > 1 else members[0]
    names = {m: [frozenset(q) for q in all_subsets(tuple(g.tasks))] for m, g in graphs.items()}
    target = find_target("host")
    with tempfile.TemporaryDirectory(prefix="taskgraft-merging-") as work:
        bundles = {
            m: build(g, target, Path(work) / m, name="family", subsets=names[m], threads=False)
            for m, g in graphs.items()
        }
        turns = [{m: fastest_calls(b, target, seconds=SECONDS) for m, b in bundles.items()} for _ in range(TURNS)]
    costs = {m: {r.tasks: r.cost.macs for r in cost_report(g).cheapest()} for m, g in graphs.items()}
    rows = {
        q: {
            "latency_ms": {m: round(1e3 * min(t[m][frozenset(q)] for t in turns), 6) for m in graphs},
            "latency_macs": {m: costs[m][q] for m in graphs},
        }
        for q in next(iter(costs.values()))
    }
    return Compiled(rows, {m: int(b.manifest["pool"]["bytes"]) for m, b in bundles.items()})


def _joined(file: Path) -> Graph:
    return JoinSiblings()(load(file))
