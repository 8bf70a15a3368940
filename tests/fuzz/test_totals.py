"""Runs of the fuzzers add up in one file, and the page about fuzzing shows what is in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fuzz import study
from benchmarks.fuzz.case import Case
from benchmarks.fuzz.readers import main as attack_one
from benchmarks.fuzz.totals import add, graphs, ranges, read, readers, tables
from benchmarks.fuzz.worker import Result
from tests.shared import ROOT


def campaign(first: int, last: int, **verdicts: int) -> dict[str, Any]:
    return {
        "kind": "families",
        "seeds": [[first, last]],
        "cases": last - first + 1,
        "verdicts": verdicts,
        "refusals": {},
        "nodes": 10,
        "findings": [],
        "outputs_not_judged": 0,
        "seconds": 1800,
        "slowest": 2.0,
    }


def test_seeds_are_written_as_ranges() -> None:
    assert ranges([7, 1, 2, 3, 9, 8, 2]) == [[1, 3], [7, 9]]
    assert ranges([]) == []


def test_campaigns_add_up_and_a_seed_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "fuzz.json"
    add(path, "graphs", campaign(0, 9, right=8, refused=1, unrunnable=1))
    add(path, "graphs", campaign(5, 14, right=9, wrong=1) | {"findings": [{"count": 1}], "slowest": 9.0})
    add(path, "graphs", campaign(0, 0, right=1) | {"kind": "NNSmith"})
    smith, ours = graphs(read(path)["graphs"])
    assert (smith["kind"], smith["cases"], ours["kind"]) == ("NNSmith", 1, "families")
    assert (ours["campaigns"], ours["cases"], ours["distinct"], ours["nodes"]) == (2, 20, 15, 20)
    assert ours["verdicts"] == {"right": 17, "refused": 1, "unrunnable": 1, "wrong": 1}
    assert ours["accepted"] == 18 / 19  # what onnxruntime does not run is neither accepted nor refused
    assert (ours["findings"], ours["hours"], ours["slowest"]) == (1, 1.0, 9.0)


class Calm:
    """A worker for which every case is right."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __enter__(self) -> Calm:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""

    def run(self, case: Case) -> Result:
        return Result(case.name, "right", "run", nodes=3)


RIGHT = Result("family", "right", "run", nodes=3)


def test_an_interrupt_keeps_what_was_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "Worker", Calm)

    def cases() -> Iterator[Case]:
        yield from (Case(f"case {seed}", seed, {}) for seed in (4, 5))
        raise KeyboardInterrupt

    record = study.run_cases(cases(), tmp_path, 60, float("inf")).record()
    assert (record["seeds"], record["verdicts"], record["nodes"]) == ([[4, 5]], {"right": 2}, 6)


def test_a_run_of_the_study_adds_its_entry(tmp_path: Path) -> None:
    path = tmp_path / "fuzz.json"
    arguments = ["--count", "1", "--seed", "5", "--seconds", "0.000001", "--save", str(path)]
    assert study.main(arguments) == study.main(arguments) == 0  # no case is started
    first, second = read(path)["graphs"]
    assert first == second
    assert first["command"] == " ".join(["python -m benchmarks fuzz", *arguments])
    assert (first["cases"], first["seeds"], len(first["sources"])) == (0, [], 64)


def test_every_case_is_compiled_for_each_target_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[int, str]] = []
    monkeypatch.setattr(study, "Worker", Calm)
    monkeypatch.setattr(Calm, "run", lambda self, case: ran.append((case.seed, case.target)) or RIGHT)
    targets = ["x86-64-v3", "armv7-neon"]
    assert study.main(["--count", "2", "--seed", "5", *(f"--target={t}" for t in targets)]) == 0
    assert ran == [(seed, target) for seed in (5, 6) for target in targets]


def test_an_attack_on_a_reader_adds_its_entry(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.setrlimit", lambda *limits: None)  # this process could not take it back
    path = tmp_path / "fuzz.json"
    for seed in ("1", "2"):
        assert attack_one(["spec", "--seconds", "0.3", "--seed", seed, "--save", str(path)]) == 0
    held = read(path)["readers"]
    assert [e["seed"] for e in held] == [1, 2]
    (found,) = readers(held)
    assert found["reader"] == "spec" and found["guided"] == 0 and found["found"] == 0
    assert found["inputs"] == found["accepted"] + found["refused"] > 20
    assert f"{held[0]['outcomes']['accepted']} accepted" in capsys.readouterr().out


def test_guided_seconds_are_told_apart() -> None:
    entry = {"reader": "onnx", "outcomes": {"accepted": 1, "found": 2}, "peak_mb": 5, "seconds": 7}
    (found,) = readers([entry | {"guided": True}, entry | {"guided": False, "seconds": 3, "peak_mb": 9}])
    assert (found["guided"], found["seeded"], found["peak_mb"]) == (7, 3, 9)
    assert (found["inputs"], found["accepted"], found["refused"], found["found"]) == (6, 2, 0, 4)


def test_the_page_shows_the_totals_of_the_file() -> None:
    path = ROOT / "benchmarks" / "results" / "fuzz.json"
    assert json.loads(path.read_text()).keys() == {"graphs", "readers"}
    assert tables(read(path)) in (ROOT / "docs" / "fuzzing.md").read_text()
