"""Calls with a target for their latency while another process competes for memory: how many are in time, at which
levels, and how many of an empty loop that takes as long.

The target is a multiple of the densest level's time on an idle machine, the aim 99.9 % of calls in time. Calls are
timed from outside, Python's part included. An empty loop of the same length says how often the machine itself is
late: no level helps against that. With real-time priority other processes do not get the core before the calls do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.controllers import PLANNED, REPEATED, REST, Bound, Controller, Feeds, controllers, usual_seconds
from benchmarks.host import machine_lock, pinned
from benchmarks.settings import say
from benchmarks.turns import Accuracies, phases, play, shares_during, swept
from compiler.codegen.budgets import LevelTimes
from compiler.codegen.runtime import Network

ROUNDS = 31
SLACK = 2.0
"""Target over the time of the densest level."""
WARM = 50
"""Calls before times are taken."""
COMPARED = ("fixed", "deadline", "empty")
"""Controllers that a study of budgets needs: what there is to compare with, the budget, and the machine itself."""


def held(
    net: Network,
    samples: Sequence[Feeds],
    labels: Mapping[str, np.ndarray],
    by_level: Accuracies,
    slack: float,
    calls: int,
    core: int,
    lock: Path | None,
    ways: Sequence[str] = COMPARED,
) -> dict[str, Any]:
    """All phases on `core`: the target, and a row per phase with one per controller of `ways` in it. The lock is
    held for a phase at a time; a priority that is not to be had leaves its phases out, and says so."""
    with swept():
        with machine_lock(lock), pinned(core):
            target, usual, chosen = _prepared(net, samples[0], slack, ways)
        rows = {}
        for phase in phases(core):
            say(f"  {phase.name}")
            try:
                with machine_lock(lock), pinned(core):
                    shares, found = shares_during(phase, core, lambda: play(chosen, samples, labels, calls))
            except PermissionError as error:
                say(f"  left out: {error}")
                continue
            rows[phase.name] = {
                **shares,
                "ways": {w: tally.summary(target, by_level) for w, tally in found.items()},
            }
    usual_us = [seconds * 1e6 for seconds in usual]
    return {"target_us": target * 1e6, "slack": slack, "planned": PLANNED, "usual_us": usual_us, "phases": rows}


def _prepared(
    net: Network, first: Feeds, slack: float, ways: Sequence[str]
) -> tuple[float, list[float], dict[str, Controller]]:
    """Target in seconds, usual seconds per level, and the controllers."""
    bound = Bound(net)
    for _ in range(WARM):
        bound.given(first)(0)
    usual = usual_seconds(bound, first, ROUNDS, len(net.levels))
    times = min((_measured(net, first) for _ in range(REPEATED)), key=lambda t: t.seconds[0])
    target = slack * usual[0]
    made: dict[str, Callable[[], Controller]] = controllers(bound, usual, times, target)
    return target, usual, {way: made[way]() for way in ways}


def _measured(net: Network, first: Feeds) -> LevelTimes:
    time.sleep(REST)
    return net.measure(first, rounds=ROUNDS)


def table(found: Mapping[str, Any], tasks: Sequence[str]) -> str:
    """Markdown: a line per phase and way."""
    heads = [
        "phase",
        "level",
        "in time %",
        "of calls not interrupted %",
        "median us",
        "99.9 % us",
        "mean level",
        *tasks,
    ]
    lines = [_line(heads), _line(["---", "---", *["--:"] * (len(heads) - 2)])]
    for name, row in found["phases"].items():
        for way, part in row["ways"].items():
            cells = [_percent(part["in_time"]), _percent(part["in_time_kept"])]
            cells += [f"{part['median_us']:.0f}", f"{part['p999_us']:.0f}"]
            gives = way != "empty"
            cells += [f"{part['mean_level']:.2f}" if gives else "–"]
            cells += [f"{part['accuracy'][t]:.3f}" if gives else "–" for t in tasks]
            lines.append(_line([name, way, *cells]))
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
