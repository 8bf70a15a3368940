"""Verbs of a graph: what they change and what they leave alone."""

from __future__ import annotations

import pytest

from compiler.errors import VerifyError
from compiler.ir.types import NodeRef
from tests.graphs import Builder


def test_only_the_replaced_output_of_a_task_changes() -> None:
    b = Builder()
    x = b.input("x", 2, 3)
    outputs = [b.apply(op, x) for op in ("Abs", "Relu", "Tanh")]
    other = b.apply("Sigmoid", x)
    b.task("t", *outputs)
    b.graph.replace_uses(outputs[1], other)
    assert b.graph.tasks["t"].outputs == (outputs[0], other, outputs[2])


def test_operands_of_a_node_that_is_not_there() -> None:
    b = Builder()
    x = b.input("x", 2, 3)
    b.task("t", b.apply("Relu", x))
    with pytest.raises(VerifyError, match="'ghost' is not in graph"):
        b.graph.set_operand(NodeRef("ghost"), 0, x)
