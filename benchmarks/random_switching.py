"""Calls of one library at random subsets of tasks and levels from two threads, held to the bytes of fresh runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from compiler.codegen.runtime import Network

THREADS = 2
WARM = 200


def resident_bytes() -> int:
    """Resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise OSError("/proc/self/status has no VmRSS")


class _Worker:
    """One thread: bound calls for every sample and subset, so that nothing is allocated on the way."""

    def __init__(
        self,
        net: Network,
        samples: Sequence[Mapping[str, np.ndarray]],
        subsets: Sequence[tuple[str, ...]],
        expected: Mapping[tuple[int, tuple[str, ...], int], Mapping[str, bytes]],
        seed: int,
    ) -> None:
        self.wrong = 0
        self._rng = np.random.default_rng(seed)
        self._levels = len(net.levels)
        self._expected = expected
        self._bound = [(i, s, net.bind(s, **x)) for (i, x), s in itertools.product(enumerate(samples), subsets)]

    def run(self, count: int) -> None:
        """So many calls; counts those whose outputs have other bytes."""
        for _ in range(count):
            i, subset, call = self._bound[self._rng.integers(len(self._bound))]
            level = int(self._rng.integers(self._levels))
            outputs, wanted = call(level), self._expected[i, subset, level]
            self.wrong += any(outputs[t].tobytes() != wanted[t] for t in subset)


def switch(net: Network, samples: Sequence[Mapping[str, np.ndarray]], count: int, seed: int) -> dict[str, Any]:
    """`calls`, how many were `wrong`, and by how many bytes the process grew after the first ones."""
    subsets = [s for n in range(1, len(net.tasks) + 1) for s in itertools.combinations(net.tasks, n)]
    levels = range(len(net.levels))
    expected = {
        (i, s, k): {t: a.tobytes() for t, a in net.run(x, tasks=s, level=k).items()}
        for (i, x), s, k in itertools.product(enumerate(samples), subsets, levels)
    }
    workers = [_Worker(net, samples, subsets, expected, seed + i) for i in range(THREADS)]
    _run(workers, WARM)
    before = resident_bytes()
    _run(workers, count // THREADS)
    grown = resident_bytes() - before
    wrong = sum(w.wrong for w in workers)
    return {"calls": count // THREADS * THREADS, "threads": THREADS, "wrong": wrong, "growth_bytes": grown}


def _run(workers: Sequence[_Worker], count: int) -> None:
    with ThreadPoolExecutor(len(workers)) as pool:
        for finished in [pool.submit(w.run, count) for w in workers]:
            finished.result()  # raises what the thread raised
