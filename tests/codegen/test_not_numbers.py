"""Inputs that are no numbers: they may reach more outputs of their own call, and none of another one."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from compiler.codegen import sharing
from compiler.codegen.generate import generate
from compiler.codegen.planner import Sources
from compiler.codegen.program import Library
from compiler.codegen.target import find_target
from compiler.ir.graph import Graph
from compiler.ir.reference import evaluate
from tests.codegen.native import Memory, NativeLibrary
from tests.codegen.test_generate import preferring
from tests.graphs import Builder


def network() -> Graph:
    """Layers that Winograd, Strassen and a recurrent kernel compute; two tasks."""
    b = Builder(seed=4)
    x = b.input("x", 1, 4, 16, 16)
    y = b.apply("Relu", b.conv(b.apply("Relu", b.conv(x, 128, 1)), 128, 1))
    b.task("wide", y)
    z = b.apply("Relu", b.conv(b.apply("Relu", b.conv(x, 32, 1)), 32, 3, pads=(1, 1, 1, 1)))
    b.task("near", z)
    steps = b.apply("Transpose", b.apply("Reshape", z, b.const([32, 1, 256])), perm=(0, 1, 2))
    _, h, _ = b.apply("LSTM", steps, b.weight(1, 32, 256), b.weight(1, 32, 8), results=3, hidden_size=8)
    b.task("last", h)
    return b.done()


@pytest.fixture(scope="module")
def library() -> Library:
    graph = network()
    recorded = {
        **preferring(graph, "host", "strassen").recorded,
        **preferring(graph, "host", "winograd4x4").recorded,
    }
    with mock.patch.object(sharing, "LEAST_SECONDS", 0):  # with working memory for threads too
        made = generate(graph, find_target("host"), sources=Sources(recorded))
    assert {"strassen", "winograd4x4", "recurrent"} <= {k.template for k in made.kernels}
    return made


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_stays_within_its_call(library: Library, bad: float, tmp_path: Path) -> None:
    graph, native = network(), NativeLibrary(library, tmp_path)
    clean = np.random.default_rng(2).normal(size=(1, 4, 16, 16))
    spoilt = clean.copy()
    spoilt[0, 1, 3, 5] = bad
    fresh = native.run(library.full, {"x": clean})
    memory = Memory(library, library.full, {"x": spoilt})
    found = {t: [a.copy() for a in arrays] for t, arrays in native.run_in(memory, library.full).items()}
    expected = evaluate(graph, {"x": spoilt.astype(np.float32)})
    for task, arrays in found.items():  # nothing that has to be NaN is taken for a number
        wanted = expected[graph.tasks[task].outputs[0].name]
        assert not np.any(np.isnan(wanted) & ~np.isnan(arrays[0])), task
    assert any(not np.isfinite(a).all() for (a,) in found.values())
    memory.inputs[0][:] = clean
    again = native.run_in(memory, library.full)
    for task, arrays in fresh.items():
        np.testing.assert_array_equal(again[task][0], arrays[0])


def test_max_pooling_passes_over_what_is_no_number(tmp_path: Path) -> None:
    """Where there is nothing else in a window or a plane it gives the largest number of none."""
    b = Builder(seed=1)
    x = b.input("x", 1, 18, 12, 12)
    one = np.ones((18, 1, 1, 1), np.float32)
    read = {
        "alone": x,
        "relu": b.apply("Relu", x),
        "depthwise": b.apply("Conv", x, b.const(one), group=18),
    }
    for name, value in read.items():
        b.task(f"{name}_window", b.apply("MaxPool", value, kernel_shape=(2, 2), strides=(2, 2)))
        b.task(f"{name}_plane", b.apply("GlobalMaxPool", value))
    graph = b.done()
    given = np.random.default_rng(0).normal(size=(1, 18, 12, 12)).astype(np.float32)
    given[0, :, 5, 5] = given[0, :, 0, 0] = given[0, 3:9, 2:4, 6:8] = given[0, 17] = np.nan
    library = generate(graph, find_target("host"))
    found = NativeLibrary(library, tmp_path).run(library.full, {"x": given})
    for name in read:
        values = np.where(np.isnan(given), -np.inf, np.maximum(given, 0) if name == "relu" else given)
        windows = values.reshape(1, 18, 6, 2, 6, 2).max(axis=(3, 5))
        np.testing.assert_array_equal(found[f"{name}_window"][0], windows)
        np.testing.assert_array_equal(found[f"{name}_plane"][0], values.max(axis=(2, 3), keepdims=True))
