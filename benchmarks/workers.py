"""A matrix of targets x subsets x levels compiled by one process, by pools and by Dask clusters that lose a worker.

Every way must give the bytes of one process, in every file outside reports/; a lost worker is one line, no error.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.families import trunk_and_head
from benchmarks.host import facts
from benchmarks.ours import PASSES, through
from benchmarks.results import keep
from benchmarks.settings import positive, say
from compiler import Graph, Nest, build, load, union
from compiler.workers.jobs import Executor, Here, Job, Workers
from compiler.workers.pool import Pool
from compiler.workers.store import Store

TARGETS = ("x86-64-v3", "aarch64-cortex-a53", "armv7-neon")
LEVELS = (0.0, 0.5, 0.75)
COUNTS = (1, 2, 8)


@dataclass
class Killing:
    """Passes jobs on to `executor` and calls `kill` once, behind result number `after`."""

    executor: Executor
    kill: Callable[[], None]
    after: int = 1
    seen: int = 0

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, bytes]]:
        """See `Executor`."""
        for result in self.executor.run(jobs):
            self.seen += 1
            if self.seen == self.after:
                self.kill()
            yield result


def kill_a_process() -> None:
    """SIGKILL to a worker process of a pool."""
    multiprocessing.active_children()[0].kill()


def kill_a_busy_worker(client: Any) -> None:
    """SIGKILL to the process of a Dask worker that has jobs."""
    busy = next(address for address, keys in client.processing().items() if keys)
    os.kill(client.run(os.getpid, workers=[busy])[busy], signal.SIGKILL)


@dataclass(frozen=True)
class Row:
    """One way to compile the matrix. `lost`: what was said of lost workers."""

    way: str
    workers: int
    jobs: int
    seconds: float
    files: int
    same_bytes: bool
    lost: tuple[str, ...]


def family() -> Graph:
    """Four tasks on a common trunk, at three levels."""
    models = {f"task{seed}": trunk_and_head(f"task{seed}", seed) for seed in range(1, 5)}
    joined = union({t: load(m, task=t) for t, m in models.items()}, input="image", name="matrix")
    return Nest(levels=LEVELS)(through(joined, PASSES))


def digests(graph: Graph, workers: Workers | None) -> dict[str, str]:
    """SHA-256 of every file outside reports/ of a bundle per target."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="taskgraft-workers-") as work:
        for target in TARGETS:
            build(graph, target, work, selftest=False, allow_unlinked=True, workers=workers)
        for path in sorted(Path(work).rglob("*")):
            if path.is_file() and "reports" not in path.parts:
                found[path.relative_to(work).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@contextlib.contextmanager
def _pool(count: int, told: list[str], after: int) -> Iterator[Killing]:
    with Pool(count, told.append) as made:
        yield Killing(made, kill_a_process, after)


@contextlib.contextmanager
def _dask(count: int, told: list[str], after: int) -> Iterator[Killing]:
    import distributed

    from compiler.workers.cluster import Cluster

    options = {"n_workers": count, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with (
        distributed.LocalCluster(**options) as local,
        distributed.Client(local, set_as_default=False) as client,
        Cluster(local.scheduler_address, told.append) as made,
    ):
        yield Killing(made, lambda: kill_a_busy_worker(client), after)


WAYS = {"pool": _pool, "dask": _dask}


def rows(graph: Graph, counts: Sequence[int]) -> Iterator[Row]:
    """One process, then every way with every number of workers, one of which is killed half-way."""
    here = Killing(Here(), lambda: None)
    start = time.perf_counter()
    alone = digests(graph, Workers(here, Store(None)))
    yield Row("this process", 1, here.seen, time.perf_counter() - start, len(alone), True, ())
    for (way, opened), count in itertools.product(WAYS.items(), counts):
        told: list[str] = []
        start = time.perf_counter()
        with opened(count, told, here.seen // 2) as executor:
            found = digests(graph, Workers(executor, Store(None)))
        took = time.perf_counter() - start
        yield Row(way, count, executor.seen, took, len(found), found == alone, tuple(told))


def main(arguments: list[str]) -> int:
    """Print a line per way; `--save` writes workers.json. 1 where bytes differ or a loss is not told once."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks workers", description=__doc__)
    parser.add_argument("--counts", type=positive, nargs="+", default=COUNTS, help="numbers of workers")
    parser.add_argument("--json", action="store_true", help="print the record as JSON")
    parser.add_argument("--save", type=Path, help="folder for workers.json")
    options = parser.parse_args(arguments)
    graph, found = family(), []
    for row in rows(graph, options.counts):
        found.append(row)
        if not options.json:
            verdict = "same bytes" if row.same_bytes else "OTHER BYTES"
            print(f"{row.way:13}{row.workers:3}{row.jobs:6} jobs {row.seconds:7.1f} s  {verdict}", flush=True)
            for line in row.lost:
                say(line)
    counts = "" if options.counts == COUNTS else f" --counts {' '.join(map(str, options.counts))}"
    record = {
        "command": "python -m benchmarks workers" + counts,
        "targets": TARGETS,
        "subsets": 2 ** len(graph.tasks) - 1,
        "levels": LEVELS,
        "machine": {"cores": len(os.sched_getaffinity(0)), **facts()},
        "rows": [asdict(r) for r in found],
    }
    if options.json:
        print(json.dumps(record, indent=1))
    if options.save:
        keep(options.save, "workers", record)
    return int(not all(r.same_bytes and len(r.lost) == (r.way in WAYS) for r in found))
