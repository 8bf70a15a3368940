"""Verbs of a graph: what they change and what they leave alone."""

from __future__ import annotations

from tests.graphs import Builder


def test_only_the_replaced_output_of_a_task_changes() -> None:
    b = Builder()
    x = b.input("x", 2, 3)
    outputs = [b.apply(op, x) for op in ("Abs", "Relu", "Tanh")]
    other = b.apply("Sigmoid", x)
    b.task("t", *outputs)
    b.graph.replace_uses(outputs[1], other)
    assert b.graph.tasks["t"].outputs == (outputs[0], other, outputs[2])
