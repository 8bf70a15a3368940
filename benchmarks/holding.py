"""A latency target held while a memory-bound load comes and goes: the same loop of calls with three ways to choose
the level of each.

`fixed` stays at level 0; `deadline` gives the library a budget per call; `feedback` chooses the level in Python by
the latencies of recent calls (benchmarks/controllers.py). The phases follow each other in one process, the load is
a process that is started and stopped in between; within a phase the ways take turns of a few calls, so that
whatever else happens on the machine happens to all. The target is `--slack` times the densest level's time before
the first phase. Latencies are those that the loop sees, Python's part included.

How busy the machine was besides is part of the result. `core_share`: how much of its core this process had in a
phase; `load_share`: how much of a core the load had; `interrupted`: share of calls in which the core was taken from
this process. No level helps against that, so calls that kept it are counted by themselves as well: `in_time_kept`.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.cases import SEED
from benchmarks.controllers import PLANNED, Controller, Feeds, controllers, usual_seconds
from benchmarks.deadlines import ROUNDS, loaded
from benchmarks.host import machine_lock, pinned, processor_seconds
from benchmarks.results import keep, record_of
from benchmarks.settings import Settings, chosen, parser, say
from benchmarks.switching import FEW, LEVELS, QUICKER, SUBJECTS, Subject, accuracies
from compiler import open_bundle
from compiler.codegen.runtime import Network

SLACK = 2.0
"""Target over the time of the densest level."""
TURN = 100
"""Calls of one controller before the next has its turn."""
WARM = 50
"""Calls before times are taken."""
Accuracies = Sequence[Mapping[str, float]]


@dataclass
class Tally:
    """What the calls of one controller in one phase came to; an entry per call in every list."""

    seconds: list[float] = field(default_factory=list)
    kept: list[bool] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    right: Counter[str] = field(default_factory=Counter)

    def add(self, seconds: float, level: int, right: Mapping[str, bool], *, kept: bool) -> None:
        """One more call; `right` by task; `kept`: the core was not taken away meanwhile."""
        self.seconds.append(seconds)
        self.kept.append(kept)
        self.levels.append(level)
        self.right.update(task for task, value in right.items() if value)

    def summary(self, target: float, by_level: Accuracies) -> dict[str, Any]:
        """Shares, quantiles in microseconds, and accuracy: of the answers that were given, and of the levels by
        themselves (`by_level`: task -> accuracy per level), each weighted by its calls. `in_time_kept` is None
        where no call kept its core."""
        calls = len(self.seconds)
        kept = [s for s, kept in zip(self.seconds, self.kept, strict=True) if kept]
        counts = Counter(self.levels)
        median, worst = np.quantile(self.seconds, [0.5, 0.999], method="inverted_cdf")
        return {
            "in_time": sum(s <= target for s in self.seconds) / calls,
            "in_time_kept": sum(s <= target for s in kept) / len(kept) if kept else None,
            "interrupted": 1 - len(kept) / calls,
            "median_us": median * 1e6,
            "p999_us": worst * 1e6,
            "mean_level": sum(self.levels) / calls,
            "levels": [counts[k] for k in range(len(by_level))],
            "accuracy": {task: self.right[task] / calls for task in by_level[0]},
            "accuracy_of_levels": {
                task: sum(n * by_level[k][task] for k, n in counts.items()) / calls for task in by_level[0]
            },
        }


def phases(core: int) -> dict[str, int | None]:
    """Name of a phase -> where its load runs; None: no load. The load comes, moves to our core, and goes."""
    others = sorted({*range(os.cpu_count() or 1)} - {core})
    elsewhere: dict[str, int | None] = {"load on another core": others[0]} if others else {}
    return {"idle": None, **elsewhere, "load on this core": core, "idle again": None}


def turns(calls: int, names: Sequence[str]) -> Iterator[tuple[str, range]]:
    """Which controller makes which calls, in the order in which that happens; each makes `calls`."""
    for start in range(0, calls, TURN):
        for name in names:
            yield name, range(start, min(start + TURN, calls))


def play(
    chosen_by: Mapping[str, Controller],
    samples: Sequence[Feeds],
    labels: Mapping[str, np.ndarray],
    calls: int,
) -> dict[str, Tally]:
    """One phase: so many calls by every controller."""
    tallies = {name: Tally() for name in chosen_by}
    for name, part in turns(calls, list(chosen_by)):
        controller, tally = chosen_by[name], tallies[name]
        for i in part:
            k = i % len(samples)
            before, start = interruptions(), time.perf_counter()
            outputs, level = controller.call(samples[k])
            took = time.perf_counter() - start
            kept = interruptions() == before
            controller.took(took)
            tally.add(took, level, {t: bool(outputs[t].argmax() == labels[t][k]) for t in labels}, kept=kept)
    return tallies


def interruptions() -> int:
    """How often the core was taken from this thread so far, although it had work to do."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def phase(place: int | None, run: Callable[[], dict[str, Tally]]) -> tuple[dict[str, float], dict[str, Tally]]:
    """`run` beside a load on a core (None: no load): which share of a core this process had, and the load."""
    with loaded(place) as load:
        watched = {"core_share": os.getpid()} | ({} if load is None else {"load_share": load})
        start = time.perf_counter()
        before = {key: processor_seconds(process) for key, process in watched.items()}
        tallies = run()
        seconds = time.perf_counter() - start
        shares = {key: (processor_seconds(watched[key]) - spent) / seconds for key, spent in before.items()}
    return shares, tallies


def held(
    net: Network, subject: Subject, by_level: Accuracies, slack: float, calls: int, core: int
) -> dict[str, Any]:
    """All phases on `core`: the target, and a row per phase with one per controller in it."""
    with pinned(core), swept():
        first = subject.samples[0]
        for _ in range(WARM):
            net.run(first)
        usual, times = usual_seconds(net, first, ROUNDS), net.measure(first, rounds=ROUNDS)
        target = slack * usual[0]
        ways = controllers(net, usual, times, target)
        rows = {}
        for name, place in phases(core).items():
            say(f"  {name}")
            shares, found = phase(place, lambda: play(ways, subject.samples, subject.labels, calls))
            rows[name] = {**shares, "ways": {way: tally.summary(target, by_level) for way, tally in found.items()}}
    usual_us = [seconds * 1e6 for seconds in usual]
    return {"target_us": target * 1e6, "slack": slack, "planned": PLANNED, "usual_us": usual_us, "phases": rows}


@contextlib.contextmanager
def swept() -> Iterator[None]:
    """What the compiler left behind is not searched for garbage in the middle of a call."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def measured(name: str, settings: Settings, given: argparse.Namespace) -> dict[str, Any]:
    """All numbers of one network."""
    say(f"{name}: build")
    subject = SUBJECTS[name](FEW if given.quick else LEVELS, settings)
    net = open_bundle(subject.folder)
    say(f"{name}: accuracy of the levels")
    by_level = accuracies(net, subject) if subject.labels else [{} for _ in net.levels]
    calls = given.calls or max(1, subject.calls // (QUICKER if given.quick else 1))
    say(f"{name}: {calls} calls per phase and way")
    with machine_lock(settings.lock):
        found = held(net, subject, by_level, given.slack, calls, settings.cores[0])
    return {"calls": calls, "density": list(net.levels), "accuracy_by_level": by_level, **found}


def main(arguments: list[str]) -> int:
    """0: a study without a verdict of its own."""
    options = parser("holding", __doc__)
    options.add_argument("--calls", type=int, metavar="N", help="calls per phase and way to choose the level")
    options.add_argument("--slack", type=float, default=SLACK, metavar="X", help=f"target over usual ({SLACK})")
    given = options.parse_args(arguments)
    if given.slack <= 0 or (given.calls is not None and given.calls < 1):
        options.error("--slack is above 0, --calls at least 1")
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
            print(table(results[name]))
    if given.json:
        print(json.dumps(results, indent=1))
    return 0


def table(record: Mapping[str, Any]) -> str:
    """Markdown: a line per phase and way."""
    tasks = list(record["accuracy_by_level"][0])
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
    lines = [f"{record['network']}: target {record['target_us']:.0f} us, usual {record['usual_us'][0]:.0f} us", ""]
    lines += [_line(heads), _line(["---", "---", *["--:"] * (len(heads) - 2)])]
    for name, row in record["phases"].items():
        for way, found in row["ways"].items():
            cells = [_percent(found["in_time"]), _percent(found["in_time_kept"])]
            cells += [f"{found['median_us']:.0f}", f"{found['p999_us']:.0f}"]
            cells += [f"{found['mean_level']:.2f}", *(f"{found['accuracy'][t]:.3f}" for t in tasks)]
            lines.append(_line([name, way, *cells]))
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
