"""The command that writes the shipped tuning database, with an invented clock."""

from __future__ import annotations

import pytest

from benchmarks import tune
from compiler.codegen.target import find_target
from compiler.codegen.tuning import DATA, TuningDatabase, shipped_file


@pytest.fixture
def clock(monkeypatch):
    """Replaces building and timing; every choice takes as many microseconds as its tile is large."""
    asked = []

    def in_place(graph, target, tried, profiler):
        asked.append(dict(tried))
        return {anchor: 1e-6 * (1 + sum(choice.tile)) for anchor, choice in tried.items()}

    monkeypatch.setattr(tune, "in_place", in_place)
    return asked


def run(folder, *more):
    arguments = ["--only", "mlp", "--into", str(folder / "db.json"), "--kept", str(folder / "kept"), *more]
    assert tune.main(arguments) == 0
    return TuningDatabase.load(folder / "db.json")


def test_layers_are_measured_into_one_file(tmp_path, clock):
    database = run(tmp_path)
    assert database.entries and all(len(rows) <= tune.KEPT_CHOICES for rows in database.entries.values())
    assert all(key.startswith(f"{find_target('host').preset}|gemm|") for key in database.entries)
    first = len(clock)
    assert first > 1
    assert run(tmp_path, "--fresh").entries == database.entries
    assert len(clock) == 2 * first


def test_without_time_nothing_is_measured_and_older_code_is_dropped(tmp_path, clock, monkeypatch):
    run(tmp_path)
    del clock[:]
    monkeypatch.setattr("compiler.codegen.strategies.matrix.Gemm.version", 99)
    assert run(tmp_path, "--seconds", "0").entries == {}
    assert clock == []


def test_the_file_of_the_package_is_the_default(tmp_path):
    assert shipped_file(find_target("host")).parent == DATA
