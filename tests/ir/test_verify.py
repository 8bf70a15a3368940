"""Every verifier level notices what it is for, with the message of the design."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from compiler.errors import VerifyError
from compiler.ir.graph import Graph, NodeRef, Value
from compiler.ir.text import text
from compiler.ir.types import Axis, TensorType, ValueRef
from compiler.ir.verify import verify
from tests.graphs import Builder


def small() -> Graph:
    b = Builder("net")
    x = b.input("x", 1, 3, 8, 8)
    h = b.apply("Relu", b.conv(x, 16, 3, pads=(1, 1, 1, 1)))
    b.task("t", b.apply("Add", h, b.conv(h, 16, 3, pads=(1, 1, 1, 1))))
    return b.graph


def put(graph: Graph, value: Value) -> None:
    """Write a payload past the verbs, which would refuse it."""
    graph._g.nodes[value.ref]["payload"] = value


def test_a_sound_graph_passes_and_stays_as_it_is() -> None:
    graph = small()
    before = text(graph)
    verify(graph)
    assert text(graph) == before
    assert graph.nodes() and graph.parameters(), "there is something to verify"


def test_operand_indices() -> None:
    graph = small()
    edge = next((u, k) for u, _, k in graph._g.in_edges(NodeRef("add"), keys=True) if k == 1)
    graph._g.remove_edge(edge[0], NodeRef("add"), key=1)
    graph._g.add_edge(edge[0], NodeRef("add"), key=2)
    with pytest.raises(VerifyError, match="Add 'add': operand indices are 0, 2; expected 0, 1"):
        verify(graph)


def test_two_producers() -> None:
    graph = small()
    graph._g.add_edge(NodeRef("conv"), ValueRef("relu:0"), key=1)
    with pytest.raises(VerifyError, match=r"value 'relu:0': has 2 producers; expected exactly one source"):
        verify(graph)


def test_an_output_that_is_gone() -> None:
    graph = small()
    graph._g.remove_node(ValueRef("add:0"))
    with pytest.raises(VerifyError, match="task 't': output 'add:0' does not exist"):
        verify(graph)


def test_cycle() -> None:
    graph = small()
    graph.set_operand(NodeRef("relu"), 0, ValueRef("add:0"))
    with pytest.raises(VerifyError, match="has a cycle"):
        verify(graph)


def test_recorded_type() -> None:
    graph = small()
    old = graph.value(ValueRef("relu:0"))
    put(graph, replace(old, type=TensorType(old.dtype, (1, 15, 8, 8))))
    with pytest.raises(
        VerifyError, match=re.escape("Relu 'relu': recorded float32[1,15,8,8], inferred float32[1,16,8,8]")
    ):
        verify(graph)


def test_encoding_fits_data() -> None:
    graph = small()
    weight = graph.value(ValueRef("w"))
    put(graph, replace(weight, type=TensorType(weight.dtype, (16, 3, 3, 4))))
    with pytest.raises(VerifyError, match=r"value 'w': data has shape \(16, 3, 3, 3\), the type says"):
        verify(graph)


def test_weight_that_misses_an_input_channel() -> None:
    """ONNX inference accepts it, so this is what level 3 is for."""
    graph = small()
    weight = graph.value(ValueRef("w.2"))
    data = np.ascontiguousarray(weight.constant[:, :15])
    put(graph, Value(weight.ref, TensorType(weight.dtype, data.shape), data))
    expected = "Conv 'conv.1': operand 0 'relu:0' axis 1 has 16 entries, operand 1 'w.2' axis 1 has 15"
    with pytest.raises(VerifyError, match=re.escape(expected)):
        verify(graph)


def test_bias_that_is_too_long() -> None:
    graph = small()
    bias = graph.value(ValueRef("w.1"))
    put(graph, Value(bias.ref, TensorType(bias.dtype, (17,)), np.zeros(17, np.float32)))
    with pytest.raises(VerifyError, match=r"Conv 'conv': operand 2 'w\.1' axis 0 has 17 entries"):
        verify(graph)


def test_nothing_unused_after_dead_code() -> None:
    graph = small()
    graph.add_parameter("loose", np.zeros(3, np.float32))
    verify(graph)
    with pytest.raises(VerifyError, match="after remove-dead-code: value 'loose' is needed by no task"):
        verify(graph, stage="remove-dead-code")


def test_ties_of_values_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = small()
    site = next(s for s in graph.sites() if s.node.op.name == "Relu")
    tie = next(iter(site.node.op.ties(site)))
    monkeypatch.setattr(type(site.node.op), "ties", lambda *_: [replace(tie, a=Axis(ValueRef("x"), 1))])
    with pytest.raises(
        VerifyError, match="Relu 'relu': ties 'x' axis 1, which is neither its operand nor its result"
    ):
        verify(graph)
