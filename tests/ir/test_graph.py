"""Verbs of a graph: what they change and what they leave alone."""

from __future__ import annotations

import pytest

from compiler.errors import VerifyError
from compiler.ir.types import DType, NodeRef, TensorType, ValueRef
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


def test_sites_and_needs_follow_every_change_and_a_copy_has_its_own() -> None:
    b = Builder()
    made = b.apply("Relu", b.input("x", 2))
    b.task("t", made)
    graph = b.graph
    (before,) = graph.sites()
    twin = graph.copy()
    assert graph.needed_masks() == twin.needed_masks()
    twin.update(ValueRef("x"), type=TensorType(DType.FLOAT32, (3,)))
    other = twin.add_value("y", before.results[0].type)
    twin.add_node("after", before.node.op, {}, [made], [other.ref])
    twin.set_task("u", [other.ref])
    first, last = twin.sites()
    assert first.operands[0].shape == (3,) and last.operands[0].ref == made
    assert twin.needed_masks()[made] == 3 and twin.needed_masks()[last.node.ref] == 2
    (after,) = graph.sites()
    assert after.operands[0].shape == (2,) and graph.needed_masks()[made] == 1
    twin.drop_task("u")
    assert twin.needed_masks()[made] == 1 and last.node.ref not in twin.needed_masks()


def test_what_a_reader_does_to_its_masks_stays_with_it() -> None:
    b = Builder()
    made = b.apply("Relu", b.input("x", 2))
    b.task("t", made)
    graph = b.done()
    graph.needed_masks().clear()
    assert graph.needed_masks()[made] == 1
