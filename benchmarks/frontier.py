"""Is predicted latency real? Frontiers of the networks in models/, every point built, checked and timed.

A point is compiled by `compress` to a share of the predicted time, self-tested, and timed in C on one processor;
its accuracy is that of the compiled library on the evaluation set. `within` says whether every measured time is
within 15 % of the predicted one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.host import facts, machine_lock, pinned, timed_cores
from benchmarks.results import keep
from benchmarks.settings import ROOT
from compiler.codegen.target import Target
from compiler.config import load_config
from compiler.frontier import Measure, Request, Timing, built_and_timed, frontier
from compiler.ir.graph import Graph
from compiler.ir.types import TaskSet
from compiler.progress import Say
from compiler.release import Release

RELEASES = ("spoken", "shared-backbone", "fashion")
SHARES = (0.8, 0.6, 0.45)
HONEST = 0.15


def shares_of(text: str) -> tuple[float, ...]:
    """Numbers with commas between them. ArgumentTypeError for anything else."""
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of shares such as 0.8,0.6") from None


def measured_on(core: int, lock: Path | None) -> Measure:
    """Build and time on one processor, holding a lock."""

    def measure(
        graph: Graph, target: Target, subsets: Sequence[TaskSet], seconds: float, release: Release, say: Say
    ) -> Timing:
        with machine_lock(lock), pinned(core):
            return built_and_timed(graph, target, subsets, seconds, release, say)

    return measure


def row_of(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a frontier; `largest_error` is None where no point was timed."""
    errors = [abs(p["error"]) for p in record["points"] if p["error"] is not None]
    largest = max(errors, default=None)
    return {
        "release": name,
        "quantity": record["quantity"],
        "pass": record["pass"],
        "largest_error": largest,
        "within": largest is not None and largest <= HONEST,
        "points": record["points"],
    }


def main(arguments: list[str]) -> int:
    """Print a line per point; 1 where a measured time is further from the predicted one than HONEST."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks frontier", description=__doc__)
    parser.add_argument("--only", nargs="+", default=list(RELEASES), choices=RELEASES, help="releases")
    parser.add_argument("--shares", type=shares_of, default=SHARES, help="budgets, as shares of the predicted time")
    parser.add_argument("--pass", dest="pass_", default="compress", metavar="SPEC", help="what meets the budgets")
    parser.add_argument("--seconds", type=float, default=1.0, help="time that a point is measured for")
    parser.add_argument("--core", type=int, help="processor to time on (default: the last usable one)")
    parser.add_argument("--lock", type=Path, metavar="FILE", help="hold this lock while timing: runs take turns")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep finished points here")
    parser.add_argument("--quick", action="store_true", help="one release, one budget")
    parser.add_argument("--json", action="store_true", help="print the record as JSON")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="folder for pruning-frontier.json")
    given = parser.parse_args(arguments)
    only, budgets = (given.only[:1], (0.6,)) if given.quick else (given.only, given.shares)
    (core,) = timed_cores(1, given.core)
    request = Request("latency_us", budgets, given.pass_, "host", given.seconds)
    found = []
    for name in only:
        config = load_config(ROOT / "models" / name / "release.toml")
        made = frontier(config, request, cache=given.cache, measure=measured_on(core, given.lock))
        found.append(row_of(name, made.record))
        if not given.json:
            _print(name, made.rows, made.record["tasks"])
    record = {
        "command": f"python -m benchmarks frontier --only {' '.join(only)} "
        f"--shares {','.join(map(str, budgets))} --pass {given.pass_} "
        f"--seconds {given.seconds:g} --core {core}",
        "seeds": [0],
        **facts(),
        "rows": found,
    }
    if given.json:
        print(json.dumps(record, indent=1))
    if given.save:
        keep(given.save, "pruning-frontier", record)
    return int(not all(row["within"] for row in found))


def _print(name: str, rows: Sequence[dict[str, Any]], tasks: Sequence[str]) -> None:
    for row in rows:
        if row["status"] == "refused":
            print(f"{name:16}{row['share']:<6} refused: {row['reason']}", flush=True)
            continue
        times = f"{row['predicted_us']:8.1f} us predicted {row['measured_us']:8.1f} measured {row['error']:+.1%}"
        scores = "  ".join(f"{t} {row[f'metric_{t}']:.4f}" for t in tasks)
        print(f"{name:16}{row['share']:<6}{times}  {scores}", flush=True)
