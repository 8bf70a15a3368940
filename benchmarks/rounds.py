"""Interleaved timing of workers: rounds A, B, C, A, B, C, ...; medians of medians."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.peers.client import Samples, Worker

AGREE = 0.03
"""Warm-up ends when two successive rounds agree within this share."""
WARM_UP_ROUNDS = 12
SHORT = 50e-6
"""Calls below this many seconds are timed in batches."""
BATCH_SECONDS = 1e-3
SMALLEST_BATCH, LARGEST_BATCH = 20, 100
ALONE = 0.97
"""An engine computes in the calling thread if that thread has at least this share of the process' CPU time."""
SLOW, SLOW_ROUNDS = 0.5, 2
"""Calls of more seconds are not warmed up further, and timed in so many rounds only: noise is small beside them."""
PACING = 3
"""Calls from which the length of a round is estimated."""


@dataclass(frozen=True)
class Effort:
    """How long to measure: rounds, and seconds per round and contender."""

    rounds: int
    seconds: float


FULL, QUICK = Effort(5, 0.2), Effort(2, 0.05)


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one contender: CPU of its calling thread (median over rounds of the round's median), wall
    clock (least, and 20th percentile of all calls), and whether it computes in the calling thread only."""

    cpu: float
    wall: float
    wall_20: float
    alone: bool


@dataclass
class _Lane:
    """One worker with its pace and what was measured so far."""

    worker: Worker
    flush: int
    batch: int = 1
    calls: int = 1
    slow: bool = False
    samples: list[Samples] = field(default_factory=list)

    def round(self) -> Samples:
        return self.worker.run(self.calls, self.batch, self.flush)

    def pace(self, effort: Effort) -> None:
        """Calls and batch for a round of the wanted length, from a first call that also warms up."""
        (first,) = self.worker.run(1, 1, self.flush).wall
        self.slow = first * self.worker.inner > SLOW
        if self.slow:
            return
        start = time.perf_counter()
        one = statistics.median(self.worker.run(PACING, 1, self.flush).wall) * self.worker.inner
        if self.flush:  # rewriting the buffer takes most of the time
            one = (time.perf_counter() - start) / PACING
        elif one < SHORT:
            self.batch = min(LARGEST_BATCH, max(SMALLEST_BATCH, round(BATCH_SECONDS / one)))
        self.calls = math.ceil(effort.seconds / (one * self.batch))

    def warm_up(self) -> None:
        """Rounds until two agree, at most WARM_UP_ROUNDS."""
        if self.slow:
            return
        before = _typical(self.round())
        for _ in range(WARM_UP_ROUNDS):
            now = _typical(self.round())
            if abs(now - before) <= AGREE * max(before, 1e-9):
                return
            before = now


def _typical(samples: Samples) -> float:
    return statistics.median(samples.cpu if samples.share >= ALONE else samples.wall)


def race(workers: Sequence[Worker], effort: Effort, flush: int = 0) -> list[Timing]:
    """Time the workers in turns; `flush`: bytes rewritten before each call (0: weights stay in the caches).

    Raises PeerError where a worker fails.
    """
    lanes = [_Lane(worker, flush) for worker in workers]
    for lane in lanes:
        lane.pace(effort)
        lane.warm_up()
    for number in range(effort.rounds):
        for lane in lanes:
            if number < SLOW_ROUNDS or not lane.slow:
                lane.samples.append(lane.round())
    return [summary(lane.samples) for lane in lanes]


def summary(samples: Sequence[Samples]) -> Timing:
    """One contender's rounds in numbers."""
    wall = sorted(w for s in samples for w in s.wall)
    return Timing(
        cpu=statistics.median(statistics.median(s.cpu) for s in samples),
        wall=wall[0],
        wall_20=wall[len(wall) // 5],
        alone=statistics.median(s.share for s in samples) >= ALONE,
    )


@dataclass(frozen=True)
class Duel:
    """Two timings by one clock, in seconds."""

    ours: float
    peer: float
    clock: str
    """`cpu` (of the calling thread), or `wall` (least) where a contender uses other threads or it was asked."""

    @property
    def ratio(self) -> float:
        """How many times as long the peer takes."""
        return self.peer / self.ours


def duel(ours: Timing, peer: Timing, wall: bool = False) -> Duel:
    """Compare by the calling thread's CPU time where both compute there, by the least wall clock otherwise."""
    if wall or not (ours.alone and peer.alone):
        return Duel(ours.wall, peer.wall, "wall")
    return Duel(ours.cpu, peer.cpu, "cpu")
