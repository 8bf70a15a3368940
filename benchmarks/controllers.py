"""Ways to choose the level of a call so that a loop of calls holds a latency target.

A controller is called with inputs and told afterwards how long that took, by the clock of the loop. All times are
in seconds.
"""

from __future__ import annotations

import statistics
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from compiler.codegen.budgets import LevelTimes
from compiler.codegen.foreign import Outputs
from compiler.codegen.runtime import BoundCall, Network

Feeds = Mapping[str, np.ndarray]
PLANNED = 0.9
"""Share of the target that calls are planned to take: what goes wrong in the last layers cannot be made up for."""
RECENT = 16
"""Calls that `Feedback` looks back to."""
REPEATED, REST = 20, 0.1
"""Times that usual times are measured, and seconds between them."""
WAYS = ("fixed", "deadline", "feedback", "empty")
"""Names of all of them."""
IGNORED = 1
"""Slowest of the recent calls that `Feedback` does not count: one interrupt is no load."""


_BLOCK = bytes(4096)
"""Stays in the first cache."""


class Controller(Protocol):
    """Runs calls, each at a level of its choice."""

    def call(self, inputs: Feeds) -> tuple[Outputs, int]:
        """Outputs of all tasks, and the level of the last layers."""

    def took(self, seconds: float) -> None:
        """Learn how long the last call took."""


class Bound:
    """All tasks with arrays that are pinned once: as little of Python in a call as there can be. Inputs are copied
    in, outputs are those of the last call."""

    def __init__(self, net: Network) -> None:
        self._inputs = {name: np.zeros(shape, dtype) for name, (dtype, shape) in net.inputs.items()}
        self.run = net.bind(net.tasks, **self._inputs)

    def given(self, inputs: Feeds) -> BoundCall:
        """The call, with these inputs in place."""
        for name, array in self._inputs.items():
            np.copyto(array, inputs[name])
        return self.run


@dataclass
class Fixed:
    """The densest level, whatever happens: what there is to compare with."""

    net: Bound

    def call(self, inputs: Feeds) -> tuple[Outputs, int]:
        """As in `Controller`."""
        return self.net.given(inputs)(0), 0

    def took(self, seconds: float) -> None:
        """Nothing is learnt."""


@dataclass
class Deadline:
    """Every call gets the target as its budget, and the library falls to a sparser level inside of it."""

    net: Bound
    times: LevelTimes
    budget_us: int

    def call(self, inputs: Feeds) -> tuple[Outputs, int]:
        """As in `Controller`."""
        reached = self.net.given(inputs).within(self.budget_us, self.times)
        return reached.outputs, reached.level

    def took(self, seconds: float) -> None:
        """Nothing is learnt: each call starts at the densest level again."""


@dataclass
class Feedback:
    """A level for the whole call, by how much slower than usual the calls before it were.

    `usual`: a call at each level on a quiet machine; `limit`: what a call may take. The densest level that stays
    within it is chosen, the sparsest where none does.
    """

    net: Bound
    usual: Sequence[float]
    limit: float
    level: int = 0
    _slowness: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def call(self, inputs: Feeds) -> tuple[Outputs, int]:
        """As in `Controller`."""
        return self.net.given(inputs)(self.level), self.level

    def took(self, seconds: float) -> None:
        """Choose the level of the next call."""
        self._slowness.append(seconds / self.usual[self.level])
        slowness = sorted(self._slowness)[: -IGNORED or None]
        expected = max(slowness, default=1.0)
        fitting = (k for k, usual in enumerate(self.usual) if usual * expected <= self.limit)
        self.level = next(fitting, len(self.usual) - 1)


@dataclass(frozen=True)
class Empty:
    """Checksums of a few bytes, again and again: how late are calls that need no memory, and that no level could
    have made faster?"""

    repeats: int

    @classmethod
    def lasting(cls, seconds: float, rounds: int = 31) -> Empty:
        """A loop that takes so long on a quiet machine: by the fastest of some rounds."""
        trial, least = cls(100), float("inf")
        for _ in range(REPEATED):
            time.sleep(REST)
            for _ in range(rounds):
                start = time.perf_counter()
                trial.call({})
                least = min(least, time.perf_counter() - start)
        return cls(max(1, round(trial.repeats * seconds / least)))

    def call(self, inputs: Feeds) -> tuple[Outputs, int]:
        """As in `Controller`; without outputs."""
        for _ in range(self.repeats):
            zlib.crc32(_BLOCK)
        return {}, 0

    def took(self, seconds: float) -> None:
        """Nothing is learnt."""


def usual_seconds(net: Bound, inputs: Feeds, rounds: int, levels: int) -> list[float]:
    """Median of a call at each of the levels, by the clock that a loop in Python sees: the least of some medians
    with rests between, so that moments in which the machine was slow do not make a target easy."""
    found = [float("inf")] * levels
    for _ in range(REPEATED):
        time.sleep(REST)
        found = [min(least, _median(net, inputs, rounds, level)) for level, least in enumerate(found)]
    return found


def _median(net: Bound, inputs: Feeds, rounds: int, level: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        net.given(inputs)(level)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def controllers(
    net: Bound, usual: Sequence[float], times: LevelTimes, target: float
) -> dict[str, Callable[[], Controller]]:
    """Name -> what makes the controller, for a target; `usual` and `times` as measured on a quiet machine.

    A budget is what the target leaves once Python's part of a call is taken off.
    """
    limit = PLANNED * target
    budget = limit - max(0.0, usual[0] - times.seconds[0])
    return {
        "fixed": lambda: Fixed(net),
        "deadline": lambda: Deadline(net, times, max(1, round(budget * 1e6))),
        "feedback": lambda: Feedback(net, usual, limit),
        "empty": lambda: Empty.lasting(usual[0]),
    }
