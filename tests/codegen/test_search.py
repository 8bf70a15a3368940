"""The measured search with an invented clock: nothing is built or timed here."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from compiler.codegen.groups import make_groups
from compiler.codegen.planner import candidates, situation
from compiler.codegen.search import EACH_ALGORITHM, MOST_TRIED, SLOWEST, to_try, tune
from compiler.codegen.strategies import STRATEGIES
from compiler.codegen.strategies.base import Candidate, Choice
from compiler.codegen.target import find_target
from compiler.codegen.tuning import TuningDatabase, layer_key
from compiler.errors import TargetError
from compiler.ir.graph import Graph
from tests.graphs import Builder

V4 = find_target("x86-64-v4")


def network(alike: int = 3) -> Graph:
    """Several layers of one shape, one of another, and one too small to matter."""
    b = Builder()
    y = b.input("x", 1, 32, 14, 14)
    for _ in range(alike):
        y = b.apply("Relu", b.conv(y, 32, 3, pads=(1, 1, 1, 1)))
    y = b.conv(y, 64, 1)
    b.task("t", b.conv(b.apply("GlobalAveragePool", y), 2, 1))
    return b.done()


class Clock:
    """Measures by a formula; remembers what it was asked."""

    def __init__(self, seconds=lambda choice: 1e-6 * sum(choice.tile)) -> None:
        self.builds: list[dict[str, Choice]] = []
        self.seconds = seconds

    def __call__(self, tried: Mapping[str, Choice]) -> dict[str, float]:
        self.builds.append(dict(tried))
        return {anchor: self.seconds(choice) for anchor, choice in tried.items()}


def key_of(graph: Graph, anchor: str) -> str:
    (group,) = (g for g in make_groups(graph) if g.anchor.node.ref.name == anchor)
    return layer_key(group, V4) or ""


def proposed(graph: Graph, anchor: str) -> set[Choice]:
    groups = make_groups(graph)
    known = situation(graph, groups, V4)
    (group,) = (g for g in groups if g.anchor.node.ref.name == anchor)
    return {c.choice for c in candidates(group, known)}


def test_the_fastest_of_what_was_tried_is_found():
    graph, clock = network(), Clock()
    made = tune(graph, V4, TuningDatabase(), measure=clock)
    tried = {
        c for build in clock.builds for a, c in build.items() if a.startswith("conv") and a in ("conv", "conv.1")
    }
    known = made.known(key_of(graph, "conv"))
    assert tried <= set(known) <= proposed(graph, "conv")
    assert min(known, key=known.__getitem__) == min(known, key=lambda c: sum(c.tile))
    assert {"conv", "winograd2x2", "winograd4x4"} <= {c.algorithm for c in known}


def test_layers_of_one_shape_share_the_work():
    builds = []
    for alike in (1, 3):
        clock = Clock()
        tune(network(alike), V4, TuningDatabase(), measure=clock)
        builds.append(sum("winograd" in b["conv"].algorithm or "conv" in b["conv"].algorithm for b in clock.builds))
    assert builds[0] > builds[1]


def test_small_layers_are_left_to_the_rule():
    graph, clock = network(), Clock()
    made = tune(graph, V4, TuningDatabase(), measure=clock)
    last = [g.anchor.node.ref.name for g in make_groups(graph) if g.family == "conv"][-1]
    assert all(last not in build for build in clock.builds)
    assert key_of(graph, last) not in made.entries


def test_what_is_known_is_not_measured_again():
    graph, clock = network(), Clock()
    first = tune(graph, V4, TuningDatabase(), measure=clock)
    again = Clock()
    assert tune(graph, V4, first, measure=again) == first
    assert again.builds == []


def test_the_least_of_several_times_counts():
    graph, calls = network(1), []

    def noisy(tried: Mapping[str, Choice]) -> dict[str, float]:
        calls.append(1)
        return {a: 1e-6 * len(calls) for a in tried}

    made = tune(graph, V4, TuningDatabase(), measure=noisy)
    assert min(made.known(key_of(graph, "conv")).values()) == 1000


def test_measuring_stops_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr("compiler.codegen.search.time.perf_counter", lambda: now[0])

    def slow(tried: Mapping[str, Choice]) -> dict[str, float]:
        now[0] += 40.0
        return dict.fromkeys(tried, 1e-6)

    lines: list[str] = []
    made = tune(network(1), V4, TuningDatabase(), seconds=100, measure=slow, say=lines.append)
    assert now[0] == 120.0
    assert made.entries
    assert lines[1].startswith("tune: build 1 of ") and lines[1].endswith("about 60 s left")
    assert lines[-1].endswith("about 0 s left")


def test_the_given_database_is_not_changed():
    database = TuningDatabase()
    database.add("other", Choice("conv", (1, 1, 1)), 1.0)
    made = tune(network(1), V4, database, measure=Clock())
    assert list(database.entries) == ["other"]
    assert made.entries["other"] == database.entries["other"] and len(made.entries) > 1


def test_a_layer_is_tried_only_with_what_its_weights_bear(monkeypatch: pytest.MonkeyPatch):
    graph, clock = network(), Clock()
    inaccurate = graph.site(graph.nodes()[0]).operands[1].constant

    def error(site):
        return 1.0 if site.operands[1].constant is inaccurate else 0.0

    monkeypatch.setattr(STRATEGIES["winograd4x4"], "error", error)
    made = tune(graph, V4, TuningDatabase(), measure=clock)
    assert "winograd4x4" in {c.algorithm for c in made.known(key_of(graph, "conv"))}
    assert all(b["conv"].algorithm != "winograd4x4" for b in clock.builds)
    assert any(b["conv.1"].algorithm == "winograd4x4" for b in clock.builds)


def test_what_is_tried_is_the_best_and_some_of_every_algorithm():
    ranked = [Candidate(Choice("a", (n,)), 1.0 + n / 100) for n in range(1, 30)]
    ranked += [Candidate(Choice("b", (n,)), 2.0 + n / 100) for n in range(1, 30)]
    ranked += [Candidate(Choice("c", (n,)), SLOWEST * 1.01 + 1 + n) for n in range(1, 30)]
    counts = {name: sum(c.algorithm == name for c in to_try(ranked)) for name in "abc"}
    least, most = EACH_ALGORITHM
    assert counts["a"] == most and least <= counts["b"] <= MOST_TRIED and counts["c"] == 0


def test_a_machine_that_cannot_run_the_target():
    with pytest.raises(TargetError, match="does not run here"):
        tune(network(1), find_target("aarch64-cortex-a72"), TuningDatabase(), seconds=1)


def test_every_build_is_kept_so_that_an_interrupt_loses_one():
    graph, kept = network(1), []
    done = tune(graph, V4, TuningDatabase(), measure=Clock(), keep=lambda found: kept.append(found.text()))
    assert len(kept) > 1
    assert kept[-1] == done.text()

    def interrupted(tried):
        if len(clock.builds) == len(kept) // 2:
            raise KeyboardInterrupt
        return clock(tried)

    clock, half = Clock(), []
    with pytest.raises(KeyboardInterrupt):
        tune(graph, V4, TuningDatabase(), measure=interrupted, keep=lambda found: half.append(found.text()))
    assert half == kept[: len(kept) // 2]
    rest = Clock()
    assert tune(graph, V4, TuningDatabase.parse(json.loads(half[-1])), measure=rest) == done
    assert len(rest.builds) == len(kept) - len(half)
