"""A latency target held while a memory-bound load comes and goes: the same loop of calls with several ways to
choose the level of each.

`fixed` stays at level 0; `deadline` gives the library a budget per call; `feedback` chooses the level in Python
by the latencies of recent calls (benchmarks/controllers.py); `empty` computes nothing of use and needs no memory
for as long as level 0 takes: what the machine itself makes late. The phases follow each other in one process, the
load is a process that is started and stopped in between; within a phase the ways take turns of a few calls, so that
whatever else happens on the machine happens to all. The target is `--slack` times the densest level's time before
the first phase. Latencies are those that the loop sees, Python's part included.

How busy the machine was besides is part of the result. `core_share`: how much of its core this process had in a
phase; `load_share`: how much of a core the load had; `stolen_s`: seconds for which the host of a virtual machine
kept the core; `interrupted`: share of calls in which the core was given to another process. No level helps against
that, so calls that kept it are counted by themselves as well: `in_time_kept`. In the last phases the calls have
real-time priority, so that other processes do not get the core while there is a call.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from typing import Any

from benchmarks.cases import SEED
from benchmarks.controllers import WAYS
from benchmarks.deadlines import SLACK, held, table
from benchmarks.results import keep, record_of
from benchmarks.settings import Settings, chosen, parser, positive, say
from benchmarks.switching import FEW, LEVELS, QUICKER, SUBJECTS, accuracies
from compiler import open_bundle


def measured(name: str, settings: Settings, given: argparse.Namespace) -> dict[str, Any]:
    """All numbers of one network."""
    say(f"{name}: build")
    subject = SUBJECTS[name](FEW if given.quick else LEVELS, settings)
    net = open_bundle(subject.folder)
    say(f"{name}: accuracy of the levels")
    by_level = accuracies(net, subject) if subject.labels else [{} for _ in net.levels]
    calls = given.calls or max(1, subject.calls // (QUICKER if given.quick else 1))
    say(f"{name}: {calls} calls per phase and way")
    busy = os.getloadavg()
    found = held(
        net,
        subject.samples,
        subject.labels,
        by_level,
        given.slack,
        calls,
        settings.cores[0],
        settings.lock,
        WAYS,
    )
    facts = {"calls": calls, "load_average": busy, "density": list(net.levels), "accuracy_by_level": by_level}
    return {**facts, **found}


def main(arguments: list[str]) -> int:
    """0: a study without a verdict of its own."""
    options = parser("holding", __doc__, without=("hot", "venvs"))
    options.add_argument("--calls", type=positive, metavar="N", help="calls per phase and way to choose the level")
    options.add_argument("--slack", type=float, default=SLACK, metavar="X", help=f"target over usual ({SLACK})")
    given = options.parse_args(arguments)
    if given.slack <= 0:
        options.error("--slack is above 0")
    settings, results = Settings.of(given), {}
    names = chosen(given.only or ["fashion"], SUBJECTS)
    if given.prepare:
        for name in names:
            SUBJECTS[name](FEW if given.quick else LEVELS, settings)
        return 0
    for name in names:
        results[name] = record_of("holding", arguments, name, {"inputs": SEED}, measured(name, settings, given))
        if given.save:
            keep(given.save, f"holding-{name}", results[name])
        if not given.json:
            print(text(results[name]))
    if given.json:
        print(json.dumps(results, indent=1))
    return 0


def text(record: Mapping[str, Any]) -> str:
    """The record of a network as Markdown."""
    head = f"{record['network']}: target {record['target_us']:.0f} us, usual {record['usual_us'][0]:.0f} us"
    return f"{head}\n\n{table(record, list(record['accuracy_by_level'][0]))}"
