"""Loops of calls that take turns in one process while a load comes and goes, and what is counted of each call.

`in_time_kept` is of the calls during which the core was not given to another process; `interrupted` is the share of
the others. The system counts the time for which the host of a virtual machine kept the core to itself: `stolen_s`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.controllers import Controller, Feeds
from benchmarks.host import first_in_line, processor_seconds, stolen_seconds

TURN = 100
"""Calls of one controller before the next has its turn."""
REST = 5e-3
"""Seconds without calls after every turn. A program that waits for the next frame leaves its core to others as
well; from a thread of real-time priority that never waits, Linux takes it for 50 ms in every second."""
LOAD = """
import os, sys
import numpy as np
os.sched_setaffinity(0, {int(sys.argv[1])})
a, b = np.zeros(1 << 24), np.ones(1 << 24)  # 128 MiB each: far beyond the caches
print("ready", flush=True)
while True:
    np.copyto(a, b)
"""
Accuracies = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Phase:
    """Where a load that copies memory runs (None: there is none), and whether the calls come before all others."""

    name: str
    load: int | None = None
    first: bool = False


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
        where no call kept its core. `late_levels`: levels of late calls; at the sparsest none was left to fall to.
        """
        calls = len(self.seconds)
        kept = [s for s, kept in zip(self.seconds, self.kept, strict=True) if kept]
        counts = Counter(self.levels)
        late = Counter(k for k, s in zip(self.levels, self.seconds, strict=True) if s > target)
        median, worst = np.quantile(self.seconds, [0.5, 0.999], method="inverted_cdf")
        return {
            "in_time": sum(s <= target for s in self.seconds) / calls,
            "in_time_kept": sum(s <= target for s in kept) / len(kept) if kept else None,
            "interrupted": 1 - len(kept) / calls,
            "median_us": median * 1e6,
            "p999_us": worst * 1e6,
            "mean_level": sum(self.levels) / calls,
            "levels": [counts[k] for k in range(len(by_level))],
            "late_levels": [late[k] for k in range(len(by_level))],
            "accuracy": {task: self.right[task] / calls for task in by_level[0]},
            "accuracy_of_levels": {
                task: sum(n * by_level[k][task] for k, n in counts.items()) / calls for task in by_level[0]
            },
        }


def phases(core: int) -> list[Phase]:
    """The load comes, moves to the core of the calls, and goes; then both again, with the calls before others."""
    others = sorted({*range(os.cpu_count() or 1)} - {core})
    loads = [Phase("load on another core", others[0])] * bool(others) + [Phase("load on this core", core)]
    again = [Phase(f"{phase.name}, real-time priority", phase.load, first=True) for phase in loads]
    return [Phase("idle"), *loads, Phase("idle again"), *again]


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
    """So many calls by every controller, in turns; after the rest behind each the caches are cold, so that a call
    more begins the next one, which is not counted. Without outputs nothing is right."""
    tallies = {name: Tally() for name in chosen_by}
    for name, part in turns(calls, list(chosen_by)):
        controller, tally = chosen_by[name], tallies[name]
        controller.call(samples[part.start % len(samples)])
        for i in part:
            k = i % len(samples)
            before, start = interruptions(), time.perf_counter()
            outputs, level = controller.call(samples[k])
            took = time.perf_counter() - start
            kept = interruptions() == before
            controller.took(took)
            right = {t: bool(outputs[t].argmax() == labels[t][k]) for t in labels if t in outputs}
            tally.add(took, level, right, kept=kept)
        time.sleep(REST)
    return tallies


def interruptions() -> int:
    """How often the core was taken from this thread so far, although it had work to do."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def shares_during(
    phase: Phase, core: int, run: Callable[[], dict[str, Tally]]
) -> tuple[dict[str, float], dict[str, Tally]]:
    """`run` in a phase: which share of a core this process had, and the load; seconds the host took from `core`.

    PermissionError where the phase needs a priority that this process may not have.
    """
    with loaded(phase.load) as load, first_in_line(phase.first):
        watched = {"core_share": os.getpid()} | ({} if load is None else {"load_share": load})
        start, stolen = time.perf_counter(), stolen_seconds(core)
        before = {key: processor_seconds(process) for key, process in watched.items()}
        tallies = run()
        seconds = time.perf_counter() - start
        shares = {key: (processor_seconds(watched[key]) - spent) / seconds for key, spent in before.items()}
        return {**shares, "stolen_s": stolen_seconds(core) - stolen, "seconds": seconds}, tallies


@contextlib.contextmanager
def loaded(core: int | None) -> Iterator[int | None]:
    """A process that copies memory on `core` all the while, by its number; None: no such process."""
    if core is None:
        yield None
        return
    command = [sys.executable, "-c", LOAD, str(core)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


@contextlib.contextmanager
def swept() -> Iterator[None]:
    """What the compiler left behind is not searched for garbage in the middle of a call."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
