"""From a case to rows, and what happens when a step fails; our kernels alone."""

from __future__ import annotations

import numpy as np
import onnx

from benchmarks.cases import Case
from benchmarks.compare import Problem, compare, kernels
from benchmarks.networks import Net
from benchmarks.outputs import Expected
from benchmarks.rows import Row
from benchmarks.running import measure
from compiler.errors import UnsupportedModelError
from compiler.ir.onnx_in import load
from compiler.ir.reference import evaluate, random_feeds
from tests.benchmarks.fakes import settings


def tiny():
    net = Net("tiny", (1, 16, 6, 6))
    return net.model(net.relu(net.conv("x", 16)))


def case(make=tiny):
    return Case("tiny", make, "recipe")


def test_rows_are_those_of_the_timing(tmp_path):
    seen = []

    def build(ready, settings):
        seen.append(ready.graph.inputs[0].shape)
        return lambda expected: [Row("tiny", name) for name in expected.outputs]

    rows = measure(case(), ["p"], settings(tmp_path), build)
    assert seen == [(1, 16, 6, 6)] and len(rows) == 1
    assert measure(case(), ["p"], settings(tmp_path), build, time=False) == []


def test_a_network_we_refuse_gives_rows_with_the_reason_and_no_path(tmp_path):
    def refuse(ready, settings):
        raise UnsupportedModelError(f"{ready.file}: no such operator:\n  If at 'a'")

    rows = measure(case(), ["p", "q"], settings(tmp_path), refuse)
    reason = "not compiled by us: no such operator: If at 'a'"
    assert [(r.case, r.peer, r.error, r.our_fault) for r in rows] == [("tiny", p, reason, False) for p in "pq"]


def test_a_crash_of_ours_costs_the_rows_of_its_case_only(tmp_path, capsys):
    def crash(ready, settings):
        raise ZeroDivisionError("here")

    rows = measure(case(), ["p", "q"], settings(tmp_path), crash)
    assert [(r.peer, r.our_fault, r.error) for r in rows] == [
        (p, True, "ours: ZeroDivisionError: here") for p in "pq"
    ]
    assert "Traceback" in capsys.readouterr().err


def test_our_kernels_alone_against_the_peak(tmp_path):
    file = tmp_path / "tiny.onnx"
    onnx.save(tiny(), file)
    graph = load(file)
    feeds = random_feeds(graph, np.random.default_rng(0))
    (task,) = graph.tasks.values()
    outputs = dict(zip(task.labels, evaluate(graph, feeds).values(), strict=True))
    expected = Expected.of(outputs, outputs)
    problem = Problem("tiny", feeds, expected, 1_000_000, against_peak=True)
    (row,) = compare(problem, kernels("ours", file, settings(tmp_path), "conv"), [], settings(tmp_path))
    assert row.error is None and row.peer == "peak"
    assert row.note.startswith("ours: conv ")
    assert 0 < row.ratio == row.peak and row.difference <= 1e-4
