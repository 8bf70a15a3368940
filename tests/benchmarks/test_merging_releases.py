"""The merging study on release files: which pipeline counts, and what the lattice is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

from benchmarks.merging import releases
from benchmarks.merging.record import OURS
from benchmarks.merging.releases import (
    BUDGETS,
    CLOSED,
    DISTIL,
    EXACT,
    PRUNED,
    Bench,
    Result,
    best,
    candidates,
    joined,
    misses,
    narrowed,
    pipelines_of,
    recorded,
    smallest,
)
from compiler import Graph, parse_pass
from compiler.errors import BudgetError
from compiler.passes.base import Resources
from compiler.passes.narrow.narrowing import Narrow
from tests.passes.merge import families


def result(a: int, b: int, both: int) -> Result:
    return Result((), {"a": a, "b": b, "a+b": both}, {"a": 0.0, "b": 0.0})


class FakeBench:
    """Every network costs the same; `kept` says whether what some steps make keeps the limits."""

    release = SimpleNamespace(graph=SimpleNamespace(tasks={"a": None, "b": None}))

    def __init__(self, kept: Callable[[tuple[str, ...]], bool]) -> None:
        self.kept = kept
        self.asked: list[tuple[str, ...]] = []

    def measured(self, start: tuple[str, ...], steps: tuple[str, ...] = ()) -> Result:
        return Result((*start, *steps), {"a": 1}, {})

    def within(self, start: tuple[str, ...], steps: tuple[str, ...]) -> Result | None:
        self.asked.append(steps)
        return self.measured(start, steps) if self.kept(steps) else None


def test_every_merge_has_both_pruners() -> None:
    for method in releases.METHODS_OF:
        found = [p.rpartition(";") for p in pipelines_of(method)]
        merges = {m for m, _, pruner in found if pruner.startswith("narrow")}
        assert merges == {m for m, _, pruner in found if pruner == CLOSED}


def test_the_cheapest_in_expectation_counts() -> None:
    found = best([None, result(9, 9, 9), result(5, 5, 16)])
    assert found is not None and found.macs["a+b"] == 16


def test_of_ours_one_without_a_dearer_combination_counts_first() -> None:
    dearer, not_dearer = result(6, 6, 6), result(5, 9, 13)
    others = [result(5, 10, 15).macs, result(14, 14, 14).macs]
    assert best([dearer, not_dearer], others) is not_dearer
    assert best([dearer], others) is dearer
    assert best([dearer, not_dearer, result(5, 9, 12)], others) == result(5, 9, 12)


def test_misses_are_told_with_their_size() -> None:
    others = {"separate": result(90, 90, 180), PRUNED: result(10, 10, 20), "pam": None}
    assert misses({**others, OURS: result(10, 12, 15)}) == {"b": 1.2}
    assert misses({**others, OURS: None}) == {"a": None, "b": None, "a+b": None}


def test_the_lattice_may_stay_apart_and_knows_what_others_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(releases, "smallest", lambda bench, pipeline, caps: told.append(caps))
    monkeypatch.setattr(releases, "joined", lambda bench, apart: None)
    others = {"separate": result(90, 90, 180), PRUNED: result(10, 12, 22), "mtz": result(15, 15, 15), "pam": None}
    assert candidates(SimpleNamespace(), OURS, others)[PRUNED] is others[PRUNED]  # type: ignore[arg-type]
    assert len(told) == len(pipelines_of(OURS))
    narrow = parse_pass(narrowed("narrow", 0.5, told[0])[0])
    assert isinstance(narrow, Narrow) and set(narrow.caps) == {"a:10", "b:12", "a/b:15"}


def test_others_are_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(releases, "smallest", lambda bench, pipeline, caps: told.append(caps))
    candidates(SimpleNamespace(), "mtz", {"separate": result(90, 90, 180)})  # type: ignore[arg-type]
    assert told == [""] * len(pipelines_of("mtz"))


@pytest.mark.parametrize("kept", [0, 1, 4, len(BUDGETS)])
def test_the_smallest_budget_within_the_limits_is_found(kept: int) -> None:
    tries: list[tuple[str, ...]] = [(), *(narrowed(CLOSED, b, "") for b in BUDGETS)]
    bench = FakeBench(lambda steps: tries.index(steps) <= kept)
    found = smallest(bench, CLOSED, "")  # type: ignore[arg-type]
    assert found is not None and found.pipeline == (*EXACT, *tries[kept])
    assert len(bench.asked) == len(set(bench.asked)) <= 5


def test_a_pipeline_that_never_keeps_the_limits_has_no_network() -> None:
    bench = FakeBench(lambda steps: False)
    assert smallest(bench, CLOSED, "") is None  # type: ignore[arg-type]
    assert bench.asked == [()]


def test_channels_are_joined_as_far_as_the_limits_allow() -> None:
    bench = FakeBench(lambda steps: "0.4" not in steps[0])
    found = joined(bench, Result(("pruned",), {}, {}))  # type: ignore[arg-type]
    assert found is not None and found.pipeline == (
        "pruned",
        "merge{max_loss=0.2,max_drift=0.2}",
        "dead-channels",
        DISTIL,
    )


def test_what_was_measured_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = {task: families.plain(task, seed) for seed, task in enumerate("ab")}
    graph, drops = families.joined(*networks.values()), {"a": 0.01, "b": 0.0}
    gates = SimpleNamespace(max_accuracy_drop={"a": 0.02, "b": 0.02})
    release = SimpleNamespace(graph=graph, config=SimpleNamespace(name="r", gates=gates))
    judged: list[Graph] = []
    use = Resources(judge=lambda graph: judged.append(graph) or dict(drops))  # type: ignore[func-returns-value]
    monkeypatch.setattr(releases, "resources", lambda config, graph: use)
    steps = ("prune-channels{flops=0.5,score=l2}",)
    first = Bench(release, tmp_path).within(EXACT, steps)  # type: ignore[arg-type]
    assert first is not None and first.drops == drops and len(judged) == 1
    assert Bench(release, tmp_path).within(EXACT, steps) == first and len(judged) == 1  # type: ignore[arg-type]
    drops["b"] = 0.03
    assert Bench(release, tmp_path / "other").within(EXACT, steps) is None  # type: ignore[arg-type]


def test_a_budget_below_what_must_stay_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(text: str) -> Any:
        raise BudgetError(text)

    monkeypatch.setattr(releases, "resources", lambda config, graph: Resources())
    monkeypatch.setattr(releases, "parse_pass", refused)
    release = SimpleNamespace(graph=families.plain("a", 0), config=SimpleNamespace(name="r"))
    assert Bench(release, tmp_path).measured((), ("narrow{flops=0.1}",)) is None  # type: ignore[arg-type]


def test_a_record_keeps_the_other_releases(tmp_path: Path) -> None:
    first, second, again = ({"name": n, "minutes": m} for n, m in (("b", 1.0), ("a", 2.0), ("b", 3.0)))
    for found in (first, second, again):
        held = recorded(tmp_path, found)
        (tmp_path / "merging-releases.json").write_text(json.dumps(held))
    assert held["releases"] == [second, again] and held["minutes"] == 5.0
