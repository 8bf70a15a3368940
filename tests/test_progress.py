"""Progress: counts reach those who take them, lines are paced, JSON lines are complete."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from compiler import tables
from compiler.cli import main
from compiler.passes.base import Resources
from compiler.pipeline import Pipeline, parse
from compiler.progress import counted, heard_by, noted, tracked
from tests.graphs import Builder
from tests.small_models import RELEASE, write_release


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


def test_an_error_is_one_of_the_json_lines(tmp_path, capsys):
    path = write_release(tmp_path, RELEASE.replace("deduplicate", "nest{levels=2}"))
    assert main(["cost", str(path), "--progress", "json"]) == 2
    *before, last = map(json.loads, capsys.readouterr().err.splitlines())
    assert {line["event"] for line in before} <= {"stage", "count", "alive"}
    assert (last["event"], last["status"]) == ("error", 2)
    assert last["message"].startswith("error: ") and last["notes"] == []


def test_an_interrupt_and_a_defect_are_json_lines(tmp_path, capsys, monkeypatch):
    for error, status, told in ((KeyboardInterrupt(), 130, "interrupted; "), (KeyError("x"), 70, "internal error")):
        error.add_note("a note")

        def fail(*given, error=error, **options):
            raise error

        monkeypatch.setattr("compiler.commands.common.load_release", fail)
        assert main(["cost", str(write_release(tmp_path)), "--progress", "json"]) == status
        record = json.loads(capsys.readouterr().err.splitlines()[-1])
        assert record["status"] == status and record["message"].startswith(told) and record["notes"] == ["a note"]


def test_no_progress_on_demand(tmp_path, capsys):
    assert main(["cost", str(write_release(tmp_path)), "--progress", "none"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "FLOPs" in captured.out


# ---------------------------------------------------------------------- work that tells nothing for a while
def test_signs_of_life_come_after_two_seconds_and_then_more_and_more_rarely(clock, capsys):
    say = tables.progress("plain")
    say("pass 2 of 3: merge")
    for _ in range(60):
        clock[0] += 1.0
        say.beat()
    assert capsys.readouterr().err.splitlines() == [
        "   0.0s pass 2 of 3: merge",
        "   2.0s pass 2 of 3: merge: 2 s so far",
        "   4.0s pass 2 of 3: merge: 4 s so far",
        "   8.0s pass 2 of 3: merge: 8 s so far",
        "  16.0s pass 2 of 3: merge: 16 s so far",
        "  32.0s pass 2 of 3: merge: 32 s so far",
    ]
    say("link")
    clock[0] += 1.9
    say.beat()
    assert capsys.readouterr().err == "  60.0s link\n"


def test_signs_of_life_tell_the_innermost_count_and_its_time_left(clock, capsys):
    say = tables.progress("plain")
    say.count("passes", 0, 3)
    say.count("passes", 1, 3)
    for done in range(3):
        say.count("layers", done, 8)
        clock[0] += 1.0
    clock[0] += 2.0
    say.beat()
    say.count("passes", 2, 3)  # what was counted inside is over, whether it came to its end or not
    clock[0] += 7.0
    say.beat()
    lines = capsys.readouterr().err.splitlines()
    assert lines[-3:] == [
        "   5.0s layers: 2 of 8, 15 s left; 3 s since the last part",
        "   5.0s passes: 2 of 3, 2 s left",
        "  12.0s passes: 2 of 3, 6 s left; 7 s since the last part",
    ]


def test_signs_of_life_are_events_for_machines(clock, capsys):
    say = tables.progress("json")
    say("link")
    clock[0] += 2.5
    say.beat()
    assert [json.loads(line) for line in capsys.readouterr().err.splitlines()][1:] == [
        {"event": "alive", "stage": "link", "done": None, "total": None, "seconds_left": None, "seconds": 2.5}
    ]


def test_a_thread_gives_them_until_the_end(monkeypatch, capsys):
    monkeypatch.setattr(tables, "EVERY", 0.02)
    say = tables.progress("plain")
    say("link")
    say.start()
    deadline = time.monotonic() + 20
    while "so far" not in (shown := capsys.readouterr().err) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "link: 0 s so far" in shown
    say.close()
    time.sleep(0.1)
    capsys.readouterr()
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------------- loops inside of passes
def test_counts_inside_reach_the_listener_of_the_block():
    outer, inner = Counts(), Counts()
    with heard_by(outer):
        with heard_by(inner):
            list(counted("parts", "ab"))
        noted("rounds", 3)
    list(counted("parts", "ab"))
    assert inner.counts == [("parts", 0, 2), ("parts", 1, 2), ("parts", 2, 2)]
    assert outer.counts == [("rounds", 3, None)]


def two_networks():
    b = Builder()
    x = b.input("x", 1, 16, 5, 5)
    for task in "ab":
        b.task(task, b.conv(b.apply("Relu", b.conv(b.apply("Relu", b.conv(x, 16, 1)), 16, 3)), 16, 1))
    return b.done()


LONG = {
    "prune-channels{flops=0.7,recover=least-squares}": {"recovery: nodes"},
    "sparsify{pattern=block16x1,density=0.5,update=obs}": {"weights from moments: nodes"},
    "nest{levels=0+0.5,biases=corrected,dense=()}": {"biases of levels: nodes"},
    "merge{max_loss=0.2}": {"merge: layers measured", "merge: layers", "merge: rounds"},
    "distil{epochs=1}": {"distil: batches of epoch 1"},
}


@pytest.mark.parametrize("spec", LONG)
def test_long_passes_count_their_parts(spec):
    if spec.startswith("distil"):
        pytest.importorskip("torch", reason="needs the extra train")
    graph, say = two_networks(), Counts()
    x = np.random.default_rng(0).normal(size=(32, 16, 5, 5)).astype(np.float32)
    parse(spec).run(graph, Resources(calibration={"x": x}, teacher=graph, say=say))
    assert LONG[spec] <= {stage for stage, _, _ in say.counts}
    for stage in LONG[spec] - {"merge: rounds"}:
        last = [c for c in say.counts if c[0] == stage][-1]
        assert last[1] == last[2] > 0


def test_every_pass_of_a_pipeline_is_named(tmp_path):
    say = Counts()
    Pipeline.parse(["fold-constants", "remove-dead-code"]).run(two_networks(), Resources(say=say))
    assert say.lines == ["pass 1 of 2: fold-constants", "pass 2 of 2: remove-dead-code"]
