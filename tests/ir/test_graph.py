"""Verbs of a graph: what they change and what they leave alone."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.errors import VerifyError
from compiler.ir.text import text
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


REFUSED = {
    "value 'x' exists already": lambda g, r: g.add_value("x", g.value(r).type),
    "node 'relu' exists already": lambda g, r: g.add_node("relu", g.nodes()[0].op, {}, [r], [r]),
    "Relu 'n': value 'gone' does not exist": lambda g, r: g.add_node(
        "n", g.nodes()[0].op, {}, [ValueRef("gone")], []
    ),
    "Relu 'n': value 'x' has a producer or data already": lambda g, r: g.add_node(
        "n", g.nodes()[0].op, {}, [r], [ValueRef("x")]
    ),
    "Relu 'n': value 'p' has a producer or data already": lambda g, r: g.add_node(
        "n", g.nodes()[0].op, {}, [r], [ValueRef("p")]
    ),
    "Relu 'n': value 'relu:0' has a producer or data already": lambda g, r: g.add_node(
        "n", g.nodes()[0].op, {}, [r], [r]
    ),
    "value 'relu:0' has a producer; remove the node instead": lambda g, r: g.remove(r),
    "value 'relu:0' is still used": lambda g, r: g.remove(NodeRef("relu")),
    "value 'x' is still used": lambda g, r: g.remove(ValueRef("x")),
    "value 'out:0' is still used": lambda g, r: g.remove(NodeRef("out")),
    "node 'relu' has no operand 2": lambda g, r: g.set_operand(NodeRef("relu"), 2, r),
    "node 'relu': only attributes can be updated": lambda g, r: g.update(
        NodeRef("relu"), attrs={}, type=g.value(r).type
    ),
    "value 'x': only the type, and a parameter's data, can be updated": lambda g, r: g.update(
        ValueRef("x"), data=np.ones(2, np.float32)
    ),
    "value 'p': only the type, and a parameter's data, can be updated": lambda g, r: g.update(
        ValueRef("p"), attrs={}
    ),
    "value 'p': data is int64, the type says float32": lambda g, r: g.update(ValueRef("p"), data=np.arange(2)),
    "task 't' has no outputs": lambda g, r: g.set_task("t", []),
    "graph 'net' is frozen": lambda g, r: g.freeze().drop_task("t"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_a_graph_refuses_leaves_it_as_it_is(message: str) -> None:
    b = Builder()
    relu = b.apply("Relu", b.input("x", 2))
    b.const(np.zeros(2, np.float32))
    b.graph.add_value("out:0", b.graph.value(relu).type)
    b.graph.add_node("out", b.graph.nodes()[0].op, {}, [relu], [ValueRef("out:0")])
    b.task("t", ValueRef("out:0"))
    before = text(b.graph)
    with pytest.raises(VerifyError, match=f"^{message}"):
        REFUSED[message](b.graph, relu)
    assert text(b.graph) == before


def test_an_operand_that_was_left_out_can_be_asked_for_and_set() -> None:
    b = Builder()
    x = b.input("x", 2)
    low, high = (b.const(np.array(v, np.float32)) for v in (-1, 1))
    b.task("t", b.apply("Clip", x, None, high))
    (node,) = b.graph.nodes()
    with pytest.raises(VerifyError, match="operand 1 is absent"):
        b.graph.operands(node)[1]
    assert b.graph.operands(node).optional(1) is None and node.absent == (1,)
    b.graph.set_operand(node.ref, 1, low)
    (site,) = b.graph.sites()
    assert [v.ref for v in site.operands[:]] == [x, low, high] and site.node.absent == ()
