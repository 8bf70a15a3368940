"""Outputs that no layer makes: a merge leaves them as they are."""

from __future__ import annotations

import numpy as np

from compiler.ir.graph import Graph
from compiler.ir.reference import evaluate
from compiler.passes.base import Resources
from compiler.passes.merge.merging import Merge
from tests.graphs import Builder
from tests.passes.merge.families import joined, plain


def constant(task: str) -> Graph:
    """A network whose output folding has made a constant."""
    b = Builder(task)
    b.apply("Relu", b.input("x", 1, 3, 8, 8))
    b.task(task, b.weight(2))
    return b.done()


def test_a_constant_output_is_no_obstacle():
    graph = joined(plain("a", 1), plain("b", 2), constant("c"))
    inputs = np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)
    merged = Merge()(graph, Resources(calibration={"x": inputs}))
    (ref,) = merged.tasks["c"].outputs
    (before,) = graph.tasks["c"].outputs
    feeds = {"x": inputs[:1]}
    assert np.array_equal(evaluate(merged, feeds)[ref.name], evaluate(graph, feeds)[before.name])
