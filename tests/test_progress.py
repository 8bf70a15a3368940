"""Progress: counts reach those who take them, lines are paced, JSON lines are complete."""

from __future__ import annotations

import json

import pytest

from compiler import tables
from compiler.cli import main
from compiler.progress import tracked
from tests.small_models import write_release


class Counts:
    def __init__(self):
        self.lines, self.counts = [], []

    def __call__(self, line):
        self.lines.append(line)

    def count(self, stage, done, total):
        self.counts.append((stage, done, total))


def test_every_part_is_counted():
    say = Counts()
    assert list(tracked(say, "parts", "ab")) == ["a", "b"]
    assert say.counts == [("parts", 0, 2), ("parts", 1, 2), ("parts", 2, 2)]
    assert list(tracked(say, "none", [])) == []
    assert say.counts[3:] == [("none", 0, 0)]


def test_parts_without_a_number_and_listeners_without_counts():
    say = Counts()
    assert list(tracked(say, "parts", iter("ab"))) == ["a", "b"]
    assert {total for _, _, total in say.counts} == {None}
    lines = []
    assert list(tracked(lines.append, "parts", "ab")) == ["a", "b"]
    assert lines == []


def test_work_that_fails_is_not_counted_as_done():
    say = Counts()
    with pytest.raises(RuntimeError):
        for _ in tracked(say, "parts", "ab"):
            raise RuntimeError
    assert say.counts == [("parts", 0, 2)]


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when told to."""
    now = [100.0]
    monkeypatch.setattr(tables.time, "monotonic", lambda: now[0])
    return now


def test_plain_counts_come_every_two_seconds_with_the_time_left(clock, capsys):
    say = tables.progress("plain")
    say("stage")
    for done in range(5):
        say.count("layers", done, 8)
        clock[0] += 1.5
    assert capsys.readouterr().err.splitlines() == [
        "   0.0s stage",
        "   3.0s layers: 2 of 8, 9 s left",
        "   6.0s layers: 4 of 8, 6 s left",
    ]


def test_nobody_is_told_of_what_is_done_at_once(clock, capsys):
    say = tables.progress("plain")
    for done in range(9):
        say.count("layers", done, 8)
    assert capsys.readouterr().err == ""


def test_bars_leave_the_lines(capsys):
    say = tables.progress("bar")
    say("stage [one]")
    for _ in tracked(say, "layers", range(3)):
        pass
    say("stage two")
    say.close()
    err = capsys.readouterr().err
    assert "stage [one]" in err
    assert "stage two" in err


def test_json_lines_of_a_release(tmp_path, capsys):
    assert main(["cost", str(write_release(tmp_path)), "--json", "--progress", "json"]) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["combinations"]) == 3
    events = [json.loads(line) for line in captured.err.splitlines()]
    stages = [e["stage"] for e in events if e["event"] == "stage"]
    assert stages[0] == "import a: a.onnx"
    passes = [(e["done"], e["total"]) for e in events if e["event"] == "count" and e["stage"] == "passes"]
    assert passes == [(n, 4) for n in range(5)]
    assert all(set(e) >= {"stage", "seconds"} for e in events)
    times = [e["seconds"] for e in events]
    assert times == sorted(times)
    assert {e["seconds_left"] for e in events if e["event"] == "count" and e["done"] == e["total"]} == {0.0}


def test_no_progress_on_demand(tmp_path, capsys):
    assert main(["cost", str(write_release(tmp_path)), "--progress", "none"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "FLOPs" in captured.out
