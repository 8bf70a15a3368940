"""The merging study on release files: which pipeline counts, and what the lattice is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

from benchmarks.merging import releases
from benchmarks.merging.record import OURS
from benchmarks.merging.releases import PIPELINES, PRUNED, Result, best
from compiler import parse_pass
from compiler.passes.narrow.narrowing import Narrow


def result(a: int, b: int, both: int) -> Result:
    return Result((), {"a": a, "b": b, "a+b": both}, {"a": 0.0, "b": 0.0})


def test_the_cheapest_pipeline_in_expectation_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = iter([None, result(9, 9, 9), result(5, 5, 16)])
    monkeypatch.setattr(releases, "smallest", lambda *_: next(costs))
    found = best(SimpleNamespace(), OURS, {"separate": result(90, 90, 180), PRUNED: result(10, 10, 20)})  # type: ignore[arg-type]
    assert found is not None and found.macs["a+b"] == 16


def test_the_lattice_may_stay_apart_and_knows_what_others_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(releases, "smallest", lambda release, pipeline, caps: told.append(caps))
    others = {"separate": result(90, 90, 180), PRUNED: result(10, 12, 22), "mtz": result(15, 15, 15), "pam": None}
    assert best(SimpleNamespace(), OURS, others) is others[PRUNED]  # type: ignore[arg-type]
    assert len(told) == len(PIPELINES[OURS])
    narrow = parse_pass(f"narrow{{flops=0.5{told[0]}}}")
    assert isinstance(narrow, Narrow) and set(narrow.caps) == {"a:10", "b:12", "a/b:15"}


def test_others_are_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(releases, "smallest", lambda release, pipeline, caps: told.append(caps))
    assert best(SimpleNamespace(), "mtz", {"separate": result(90, 90, 180)}) is None  # type: ignore[arg-type]
    assert told == [""] * len(PIPELINES["mtz"])
