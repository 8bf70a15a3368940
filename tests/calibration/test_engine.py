from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compiler.calibration.engine import Engine
from compiler.errors import UnsupportedModelError
from compiler.ir.onnx_out import to_onnx
from compiler.ir.reference import difference, evaluate
from tests.graphs import Builder


def test_onnxruntime_reports_nothing_and_leaves_no_file_of_its_session(tmp_path):
    """Its builds for Linux hold telemetry, which writes `.ses` into the folder of temporary files."""
    code = "import compiler.calibration.engine, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    unset = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**unset, "TMPDIR": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.stdout == "1\n", done.stderr
    assert not list(tmp_path.iterdir())


def test_a_graph_in_onnxruntime_equals_the_reference():
    net = Builder()
    x = net.input("x", 1, 3, 6, 6)
    net.task("t", net.apply("Relu", net.conv(x, 4, 3)), net.apply("Sigmoid", x))
    graph = net.done()
    feeds = {"x": net.rng.normal(size=(1, 3, 6, 6)).astype(np.float32)}
    found, expected = Engine.of(graph).run(feeds), evaluate(graph, feeds)
    assert Engine.of(graph).inputs == ("x",)
    assert all(difference(found[n], expected[n]) < 1e-5 for n in expected)


def test_what_it_cannot_open_or_run_is_a_model_error():
    with pytest.raises(UnsupportedModelError, match="cannot open"):
        Engine(b"no model")
    net = Builder()
    net.task("t", net.apply("Relu", net.input("x", 2)))
    with pytest.raises(UnsupportedModelError, match="cannot run"):
        Engine.of(net.done()).run({"x": np.zeros((3, 3), np.float32)})


def test_an_engine_that_has_run_holds_nothing_of_it():
    """64 MB between two small values: what one run needed is given back although the engine lives on."""
    net = Builder()
    wide = net.apply("Expand", net.input("x", 1, 16), net.const(np.array([1 << 20, 16], np.int64)))
    both = net.const(np.array([0, 1], np.int64))
    net.task("t", net.apply("ReduceMax", net.apply("Sqrt", wide), both, keepdims=0))
    engine = Engine(to_onnx(net.done()), optimise=False)
    before = _resident()
    (found,) = engine.run({"x": np.full((1, 16), 4.0, np.float32)}).values()
    assert found == 2.0
    assert _resident() - before < 32 << 20
    assert engine.inputs == ("x",)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
