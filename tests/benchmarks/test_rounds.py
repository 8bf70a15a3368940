"""Interleaving, pacing and the arithmetic of timings, on workers whose clock is a script."""

from __future__ import annotations

from itertools import cycle

import pytest

from benchmarks.peers.client import Samples
from benchmarks.rounds import LARGEST_BATCH, Duel, Effort, Timing, duel, race, summary

EFFORT = Effort(5, 0.2)


class Scripted:
    """Answers with given seconds per call, and writes down what it was asked."""

    def __init__(self, name, seconds, log, share=1.0, inner=1):
        self.name, self.share, self.log, self.inner = name, share, log, inner
        self.seconds = cycle(seconds if isinstance(seconds, list) else [seconds])

    def run(self, calls, batch=1, flush=0):
        self.log.append((self.name, calls, batch, flush))
        each = next(self.seconds)
        return Samples((each,) * calls, (each,) * calls, self.share)


def test_rounds_alternate():
    log = []
    race([Scripted("a", 0.01, log), Scripted("b", 0.02, log)], EFFORT)
    assert [name for name, *_ in log[-10:]] == ["a", "b"] * 5


@pytest.mark.parametrize(
    ("seconds", "calls", "batch"),
    [(0.3, 1, 1), (0.5, 1, 1), (0.01, 20, 1), (60e-6, 3334, 1), (40e-6, 200, 25), (2.5e-6, 800, LARGEST_BATCH)],
)
def test_short_calls_are_batched_and_rounds_are_long_enough(seconds, calls, batch):
    log = []
    race([Scripted("a", seconds, log)], EFFORT)
    assert log[-1] == ("a", calls, batch, 0)
    assert calls * batch * seconds >= EFFORT.seconds * (1 - 1e-9)


def test_a_call_that_computes_often_is_long():
    log = []
    race([Scripted("a", 1e-8, log, inner=1_000_000)], EFFORT)
    assert log[-1] == ("a", 20, 1, 0)


def test_slow_contenders_do_not_hold_up_the_others():
    log = []
    race([Scripted("a", 0.01, log), Scripted("slow", 2.0, log)], EFFORT)
    assert [n for n, *_ in log].count("slow") == 1 + 2
    assert [n for n, *_ in log][-7:] == ["a", "slow", "a", "slow", "a", "a", "a"]


def test_cold_calls_are_never_batched():
    log = []
    race([Scripted("a", 2e-6, log)], Effort(1, 1e-4), flush=123)
    assert {(batch, flush) for _, _, batch, flush in log} == {(1, 123)}


def test_warm_up_goes_on_until_two_rounds_agree():
    log = []
    slow_start = [0.01, 0.01, 0.08, 0.04, 0.02, 0.0101, 0.01] + [0.01] * 20
    (timing,) = race([Scripted("a", slow_start, log)], EFFORT)
    assert len(log) == 2 + 5 + EFFORT.rounds
    assert timing.cpu == pytest.approx(0.01)


def test_warm_up_ends_on_a_machine_that_never_settles():
    log = []
    race([Scripted("a", [0.01, 0.02], log)], EFFORT)
    assert len(log) == 2 + 1 + 12 + EFFORT.rounds


def test_a_timing_is_a_median_of_medians_and_a_least_wall_clock():
    samples = [
        Samples((1.0, 2.0, 9.0), (3.0, 2.0, 9.0), 1.0),
        Samples((4.0, 4.0, 4.0), (5.0, 4.0, 6.0), 0.99),
        Samples((3.0, 1.0, 3.0), (7.0, 8.0, 3.0), 0.5),
    ]
    timing = summary(samples)
    assert (timing.cpu, timing.wall, timing.wall_20, timing.alone) == (3.0, 2.0, 3.0, True)


def test_the_clock_is_the_threads_unless_somebody_uses_others():
    ours, alone, spread = Timing(2, 4, 4, True), Timing(6, 7, 7, True), Timing(1, 8, 8, False)
    assert duel(ours, alone) == Duel(2, 6, "cpu")
    assert duel(ours, spread) == Duel(4, 8, "wall")
    assert duel(ours, alone, wall=True) == Duel(4, 7, "wall")
    assert duel(ours, alone).ratio == 3.0
