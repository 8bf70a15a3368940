"""Calls with a budget of time while another process competes for memory: how many are in time, at which levels.

The budget is twice the time of the densest level on an idle machine, the aim 99.9 % of calls in time. Beside it
calls that stay at level 0: their budget is endless. Both are timed from outside, by one clock.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.host import pinned
from compiler.codegen.budgets import MOST_BUDGET, LevelTimes
from compiler.codegen.runtime import Network

ROUNDS = 31
SLACK = 2.0
"""Budget over the time of the densest level."""
LOAD = """
import os, sys
import numpy as np
os.sched_setaffinity(0, {int(sys.argv[1])})
a, b = np.zeros(1 << 24), np.ones(1 << 24)  # 128 MiB each: far beyond the caches
print("ready", flush=True)
while True:
    np.copyto(a, b)
"""


def under_load(
    net: Network,
    samples: Sequence[Mapping[str, np.ndarray]],
    labels: Mapping[str, np.ndarray],
    calls: int,
    core: int,
) -> dict[str, Any]:
    """Rows for an idle machine, a load on another core and one on the same core, with budgets and without."""
    others = sorted({*range(os.cpu_count() or 1)} - {core})
    places = {"idle": None} | ({"load on another core": others[0]} if others else {}) | {"load on this core": core}
    with pinned(core):
        times = net.measure(samples[0], rounds=ROUNDS)
        budget = round(SLACK * times.seconds[0] * 1e6)
        found: dict[str, Any] = {}
        for where, place in places.items():
            with loaded(place):
                found[where] = _calls(net, samples, labels, times, budget, budget, calls)
                found[f"{where}, level 0 only"] = _calls(net, samples, labels, times, MOST_BUDGET, budget, calls)
    return found


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


def _calls(
    net: Network,
    samples: Sequence[Mapping[str, np.ndarray]],
    labels: Mapping[str, np.ndarray],
    times: LevelTimes,
    given: int,
    limit: int,
    calls: int,
) -> dict[str, Any]:
    """Calls with `given` microseconds, of which those within `limit` count as in time."""
    late, right = 0, Counter[str]()
    levels = Counter[int]()
    for i in range(calls):
        k = i % len(samples)
        start = time.perf_counter()
        reached = net.run_within(samples[k], given, times)
        late += time.perf_counter() - start > limit * 1e-6
        levels[reached.level] += 1
        right.update(t for t in labels if int(reached.outputs[t].argmax()) == labels[t][k])
    return {
        "budget_us": limit,
        "in_time": 1 - late / calls,
        "mean_level": sum(k * n for k, n in levels.items()) / calls,
        "levels": [levels[k] for k in range(len(net.levels))],
        "accuracy": {t: right[t] / calls for t in labels},
    }
