"""The study that holds a latency target: what its controllers choose, and how its calls are counted."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__, controllers, deadlines, holding, turns
from benchmarks.controllers import IGNORED, RECENT, REPEATED, WAYS, Bound, Deadline, Empty, Feedback, Fixed
from benchmarks.host import first_in_line, processor_seconds, stolen_seconds
from benchmarks.turns import Phase, Tally
from compiler.codegen.budgets import LevelTimes, Reached, times_type

USUAL = [400e-6, 200e-6, 100e-6]
BY_LEVEL = [{"a": 0.9}, {"a": 0.6}, {"a": 0.3}]


@dataclass
class FakeNetwork:
    """Three levels that answer with their number; a call with a budget reaches level 1."""

    levels: tuple[float, ...] = (1.0, 0.5, 0.25)
    asked: list[Any] = field(default_factory=list)

    tasks: tuple[str, ...] = ("a",)
    inputs: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=lambda: {"x": ("float32", (1,))})

    def bind(self, tasks: tuple[str, ...], x: np.ndarray) -> FakeNetwork:
        self.bound = x
        return self

    def __call__(self, level: int = 0) -> dict[str, np.ndarray]:
        self.asked.append(level)
        return {"a": np.arange(3) == level}

    def measure(self, x: dict[str, np.ndarray], rounds: int) -> LevelTimes:
        table = times_type(3, 0)()
        for rest, seconds in zip(table.rest_ns, USUAL, strict=True):
            rest[0] = round(seconds * 1e9)
        return LevelTimes(("a",), table)

    def within(self, budget_us: int, times: LevelTimes) -> Reached:
        self.asked.append(budget_us)
        return Reached({"a": np.arange(3) == 1}, 1, False)


X = {"x": np.zeros(1, np.float32)}


def levels_after(feedback: Feedback, slowness: float, calls: int) -> list[int]:
    """Levels of so many calls on a machine that is `slowness` times slower than usual."""
    found = []
    for _ in range(calls):
        _, level = feedback.call(X)
        found.append(level)
        feedback.took(USUAL[level] * slowness)
    return found


def test_feedback_follows_the_load_and_comes_back():
    feedback = Feedback(Bound(FakeNetwork()), USUAL, limit=500e-6)
    assert levels_after(feedback, 1.0, RECENT) == [0] * RECENT
    assert levels_after(feedback, 2.0, RECENT)[-1] == 1, "twice 200 us is within 500 us, twice 400 us is not"
    assert levels_after(feedback, 4.0, RECENT)[-1] == 2
    assert levels_after(feedback, 50.0, RECENT)[-1] == 2, "the sparsest where nothing is within the limit"
    assert levels_after(feedback, 1.0, RECENT + 1)[-1] == 0


def test_feedback_is_not_impressed_by_one_interrupt():
    feedback = Feedback(Bound(FakeNetwork()), USUAL, limit=500e-6)
    levels_after(feedback, 1.0, RECENT)
    assert levels_after(feedback, 100.0, IGNORED) + levels_after(feedback, 1.0, 3) == [0] * (IGNORED + 3)
    levels_after(feedback, 100.0, IGNORED + 1)
    assert feedback.level == 2


@pytest.fixture(autouse=True)
def _without_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (controllers, deadlines):
        monkeypatch.setattr(module, "REST", 0.0)


def test_budgets_leave_out_what_python_takes_and_what_is_kept_back():
    net = FakeNetwork()
    times = net.measure({}, 1)
    bound = Bound(net)
    made = controllers.controllers(bound, [430e-6, 230e-6, 130e-6], times, target=1000e-6)
    assert tuple(made) == WAYS
    ways = [made[name]() for name in ("fixed", "deadline", "feedback")]
    assert [type(way) for way in ways] == [Fixed, Deadline, Feedback]
    assert [way.call(X)[1] for way in ways] == [0, 1, 0]
    assert net.asked == [0, round((0.9 * 1000) - 30), 0]
    assert len(controllers.usual_seconds(bound, X, rounds=3, levels=3)) == 3
    assert net.asked[3:] == [0, 0, 0, 1, 1, 1, 2, 2, 2] * REPEATED


class Clock:
    """Time that passes where a test lets it, and before the second look at it by half a second: an interrupt."""

    def __init__(self) -> None:
        self.now, self.looks = 0.0, 0

    def perf_counter(self) -> float:
        self.looks += 1
        self.now += 0.5 * (self.looks == 2)
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def crc32(self, data: bytes) -> int:
        self.now += 1e-6
        return 0


def test_an_empty_loop_takes_as_long_as_it_is_told_and_answers_nothing(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(controllers, "time", clock)
    monkeypatch.setattr(controllers, "zlib", clock)
    empty = Empty.lasting(2e-3)  # by the fastest of some rounds
    start = clock.now
    assert clock.looks > 2 and empty.call({"x": np.zeros(1)}) == ({}, 0)
    assert clock.now - start == pytest.approx(2e-3)
    played = turns.play({"empty": empty}, [{}], {"a": np.array([0])}, calls=2)["empty"]
    assert played.levels == [0, 0] and not played.right


def test_a_bound_network_sees_the_inputs_of_the_call():
    net = FakeNetwork()
    Fixed(Bound(net)).call({"x": np.full(1, 7.0, np.float32)})
    assert net.bound.tolist() == [7.0]


def test_a_tally_counts_shares_quantiles_and_accuracy():
    tally = Tally()
    for i in range(1000):
        late = i < 4
        tally.add(900e-6 if late else 100e-6, 2 if i < 500 else 0, {"a": i % 4 == 0}, kept=i >= 3)
    found = tally.summary(500e-6, BY_LEVEL)
    assert (found["in_time"], found["in_time_kept"]) == (0.996, 996 / 997)
    assert found["interrupted"] == pytest.approx(0.003)
    assert (found["median_us"], found["p999_us"]) == pytest.approx((100, 900))
    assert (found["mean_level"], found["levels"], found["late_levels"]) == (1.0, [500, 0, 500], [0, 0, 4])
    assert (found["accuracy"], found["accuracy_of_levels"]) == ({"a": 0.25}, {"a": pytest.approx(0.6)})
    lost = Tally()
    lost.add(1.0, 0, {}, kept=False)
    assert lost.summary(2.0, BY_LEVEL)["in_time_kept"] is None


def test_controllers_take_turns_and_make_the_same_calls():
    calls = 2 * turns.TURN + 7
    order = list(turns.turns(calls, ["x", "y"]))
    assert [name for name, _ in order] == ["x", "y"] * 3
    for wanted in "xy":
        assert [i for name, part in order if name == wanted for i in part] == list(range(calls))


def test_a_target_is_an_upper_limit_and_quantiles_are_latencies_that_occurred():
    tally = Tally()
    for seconds in (1e-4, 2e-4, 4e-4):
        tally.add(seconds, 0, {"a": True}, kept=True)
    found = tally.summary(4e-4, BY_LEVEL)
    assert found["in_time"] == 1.0 and found["p999_us"] == pytest.approx(400)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A study of a network that is made up, with a load that does nothing; what is yielded fills with loads and
    priorities."""
    started: list[str] = []

    @contextlib.contextmanager
    def loaded(core: int | None) -> Iterator[None]:
        started.append("none" if core is None else "load")
        yield

    @contextlib.contextmanager
    def first(wanted: bool) -> Iterator[None]:
        started[-1] += ", first" * wanted
        yield

    samples = [{"x": np.zeros(1)}] * 2
    subject = SimpleNamespace(folder="", samples=samples, labels={"a": np.array([0, 1])}, calls=20)
    monkeypatch.setattr(holding, "SUBJECTS", {"fashion": lambda levels, settings: subject})
    monkeypatch.setattr(holding, "open_bundle", lambda folder: FakeNetwork())
    monkeypatch.setattr(turns, "loaded", loaded)
    monkeypatch.setattr(turns, "first_in_line", first)
    monkeypatch.setattr(deadlines, "pinned", lambda core: contextlib.nullcontext())
    ticks, spent = itertools.count(), itertools.count()  # a second by every look at the clock
    monkeypatch.setattr(
        turns, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks)), sleep=lambda s: None)
    )
    monkeypatch.setattr(turns, "processor_seconds", lambda process: float(next(spent)))
    monkeypatch.setattr(holding, "accuracies", lambda net, subject: BY_LEVEL)
    yield started


def test_the_study_runs_every_phase_and_keeps_what_it_found(made_up, tmp_path, capsys):
    assert __main__.STUDIES["holding"] == "benchmarks.holding"
    asked = ["--calls", "10", "--json", "--slack", "3", "--kept", str(tmp_path), "--save", str(tmp_path / "out")]
    assert holding.main(asked) == 0
    printed = json.loads(capsys.readouterr().out)["fashion"]
    record = json.loads((tmp_path / "out" / "holding-fashion.json").read_text())
    assert record == printed
    assert record["command"].startswith("python -m benchmarks holding --calls 10") and record["versions"]["numpy"]
    assert list(record["phases"]) == [phase.name for phase in turns.phases(0)]
    first = {name: ", first" * name.endswith(", real-time priority") for name in record["phases"]}
    assert made_up == ["none" if n.startswith("idle") else f"load{first[n]}" for n in first]
    assert sum(map(bool, first.values())) == (2 if os.cpu_count() > 1 else 1)
    assert record["target_us"] == pytest.approx(3 * record["usual_us"][0])
    for row in record["phases"].values():
        assert row["core_share"] * row["seconds"] == pytest.approx(1.0) and row["seconds"] > 80
        fixed, deadline = row["ways"]["fixed"], row["ways"]["deadline"]
        assert (fixed["levels"], deadline["levels"]) == ([10, 0, 0], [0, 10, 0])
        assert (fixed["accuracy"], fixed["accuracy_of_levels"]) == ({"a": 0.5}, {"a": 0.9})
        assert sum(row["ways"]["feedback"]["levels"]) == 10
        assert row["ways"]["empty"]["accuracy"] == {"a": 0.0} and row["stolen_s"] >= 0
    text = holding.text(record).splitlines()
    assert len(text) == 4 + 4 * len(record["phases"]) and len({line.count("|") for line in text[2:]}) == 1


def test_phases_whose_priority_is_not_to_be_had_are_left_out(made_up, monkeypatch, tmp_path, capsys):
    def refused(policy: int) -> Any:
        raise PermissionError("not allowed here")

    monkeypatch.setattr(turns, "first_in_line", first_in_line)
    monkeypatch.setattr("os.sched_getscheduler", refused)
    assert holding.main(["--calls", "2", "--json", "--kept", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    wanted = [phase.name for phase in turns.phases(0) if not phase.first]
    assert list(json.loads(out)["fashion"]["phases"]) == wanted
    assert err.count("left out: not allowed here") == len(turns.phases(0)) - len(wanted) > 0


def test_a_priority_is_given_back(monkeypatch):
    asked = []
    monkeypatch.setattr("os.sched_setscheduler", lambda *given: asked.append(given[:2]))
    with first_in_line():
        (first,) = asked
        assert first == (0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK)
    assert asked[1:] == [(0, os.sched_getscheduler(0))]
    with first_in_line(wanted=False):
        assert len(asked) == 2


def test_stolen_time_is_that_of_the_core():
    assert stolen_seconds(0) >= 0 and stolen_seconds(10_000) == 0


def test_a_study_that_only_prepares_measures_nothing(made_up, tmp_path, capsys):
    assert holding.main(["--prepare", "--kept", str(tmp_path)]) == 0
    assert (made_up, capsys.readouterr().out) == ([], "")


@pytest.mark.parametrize("wrong", [["--slack", "0"], ["--calls", "0"], ["--calls", "-3"]])
def test_targets_and_counts_that_mean_nothing_are_refused(wrong, made_up, capsys):
    with pytest.raises(SystemExit):
        holding.main(wrong)
    assert re.search("--slack is above 0|--calls: .* is less than 1", capsys.readouterr().err) and not made_up


def test_a_load_has_a_process_whose_time_is_counted(monkeypatch):
    monkeypatch.setattr(turns, "LOAD", "print('ready', flush=True)\nwhile True: pass")
    seen = []

    def run() -> dict[str, Tally]:
        seen.append(True)
        before = processor_seconds(os.getpid())
        while processor_seconds(os.getpid()) < before + 0.1:  # however long others keep the core
            pass
        return {}

    shares, _ = turns.shares_during(Phase("loaded", 0), 0, run)
    assert seen and 0 < shares["core_share"] < 1.5 and 0 <= shares["load_share"] < 1.5
    assert "load_share" not in turns.shares_during(Phase("idle"), 0, dict)[0]
