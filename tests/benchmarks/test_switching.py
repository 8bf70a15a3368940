"""The study of switching: what it counts, with networks that are made up."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest

from benchmarks import __main__, controllers, deadlines, switching, turns
from benchmarks.random_switching import resident_bytes, switch
from compiler.codegen.budgets import LevelTimes, Reached, times_type

SAMPLES = [{"x": np.full((1, 2), i, np.float32)} for i in range(2)]


@dataclass
class FakeNetwork:
    """Two tasks at three levels; `broken` (task, level) answers differently after the first time."""

    broken: tuple[str, int] = ("", 0)
    tasks: tuple[str, ...] = ("a", "b")
    levels: tuple[float, ...] = (1.0, 0.5, 0.25)
    asked: list[tuple[tuple[str, ...], int]] = field(default_factory=list)
    slowly: float = 0.0
    """Seconds that a call without a budget takes."""

    def run(self, x: dict[str, np.ndarray], tasks: tuple[str, ...] | None = None, level: int = 0) -> dict[str, Any]:
        return dict.fromkeys(tasks or self.tasks, x["x"] * (level + 1))

    inputs: ClassVar[dict[str, tuple[str, tuple[int, ...]]]] = {"x": ("float32", (1, 2))}

    def bind(self, tasks: tuple[str, ...], **x: np.ndarray) -> Any:
        def call(level: int = 0) -> dict[str, Any]:
            time.sleep(self.slowly)
            self.asked.append((tuple(tasks), level))
            wrong = {t: np.float32(1) for t in tasks if (t, level) == self.broken}
            return {t: x["x"] * (level + 1) + wrong.get(t, np.float32(0)) for t in tasks}

        call.within = lambda budget_us, times: Reached(dict.fromkeys(tasks, x["x"]), 1, False)
        return call

    def measure(self, x: dict[str, np.ndarray], rounds: int) -> LevelTimes:
        table = times_type(3, 0)()
        for k, rest in enumerate(table.rest_ns):
            rest[0] = 300_000 // (k + 1)
        return LevelTimes(self.tasks, table)


def test_switching_is_a_study():
    assert __main__.STUDIES["switching"] == "benchmarks.switching"
    assert list(switching.SUBJECTS) == ["fashion", "vgg16-32"]


def test_random_switching_visits_everything_and_counts_other_bytes():
    net = FakeNetwork()
    found = switch(net, SAMPLES, 400, seed=3)
    assert (found["calls"], found["threads"], found["wrong"]) == (400, 2, 0)
    assert {(s, k) for s, k in net.asked} == {(s, k) for s in (("a",), ("b",), ("a", "b")) for k in range(3)}
    broken = FakeNetwork(("b", 2))
    asked_wrongly = switch(broken, SAMPLES, 400, seed=3)["wrong"]
    share = sum("b" in s and k == 2 for s, k in broken.asked) / len(broken.asked)
    assert 0.5 * share < asked_wrongly / 800 < 2 * share, "the warm-up counts as well"


def test_a_call_that_fails_in_a_thread_fails_the_study():
    net = FakeNetwork()
    net.bind = lambda tasks, **x: lambda level: 1 // 0
    with pytest.raises(ZeroDivisionError):
        switch(net, SAMPLES, 400, seed=3)


def test_the_cost_of_a_switch_is_what_mixed_levels_take_longer():
    net = FakeNetwork()
    added, levels = switching.switch_seconds(net, SAMPLES[0], rounds=2)
    assert added >= 0 and len(levels) == 3 and all(0 < s < 1e-3 for s in levels)


@pytest.mark.filterwarnings("ignore")
def test_budgets_are_counted_beside_calls_that_stay_at_the_densest_level(monkeypatch):
    monkeypatch.setattr(deadlines, "pinned", lambda core: contextlib.nullcontext())
    monkeypatch.setattr(turns, "LOAD", "print('ready', flush=True)\nimport time\ntime.sleep(60)")
    monkeypatch.setattr(turns, "first_in_line", lambda wanted: contextlib.nullcontext())
    for module in (controllers, deadlines):
        monkeypatch.setattr(module, "REPEATED", 1)
    labels, by_level = {"a": np.array([0, 1])}, [{"a": 0.5}] * 3
    found = deadlines.held(FakeNetwork(slowly=2e-3), SAMPLES, labels, by_level, 0.5, 10, 0, None)
    assert list(found["phases"]) == [phase.name for phase in turns.phases(0)]
    assert found["target_us"] == pytest.approx(0.5 * found["usual_us"][0])
    ways = found["phases"]["idle"]["ways"]
    assert tuple(ways) == deadlines.COMPARED
    stayed, held, empty = ways.values()
    assert (stayed["in_time"], stayed["mean_level"]) == (0.0, 0.0), "the target is half of the usual time"
    assert (held["mean_level"], held["levels"]) == (1.0, [0, 10, 0])
    assert held["in_time"] > 0 == empty["in_time"] and held["accuracy"] == {"a": 0.5}


def test_resident_memory_is_that_of_this_process():
    before = resident_bytes()
    held = np.ones(1 << 22)
    assert resident_bytes() - before > held.nbytes // 2
