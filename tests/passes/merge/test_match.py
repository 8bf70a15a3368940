"""Corresponding layers are found from structure; names, node order and the order of networks do not matter."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.ir.graph import Graph
from compiler.ir.op import MacOp
from compiler.ir.types import ValueRef
from compiler.passes.dedupe import Deduplicate
from compiler.passes.merge.match import (
    LAYER,
    OTHER,
    SAME_NODE,
    Alignment,
    _Aligner,
    align,
)
from tests.graphs import Builder
from tests.passes.merge.families import FAMILIES, concat, conv, head, inverted, joined, plain, renamed, residual
from tests.shared import shared_path


def weights_of(graph: Graph, alignment: Alignment) -> set[frozenset[bytes]]:
    """Positions as sets of what identifies a layer under any name: the bytes of its weight."""
    found = set()
    for position in alignment.positions:
        layers = [m.node for m in position.members if isinstance(m.node.op, MacOp)]
        found.add(frozenset(graph.operands(n)[1].constant.tobytes() for n in layers))
    return found


def partners(graph: Graph) -> list[list[str]]:
    """Task names of every position that holds a layer, in order."""
    found = align(graph)
    return [
        sorted(t for m in p.members for t in found.names(m.mask))
        for p in found.positions
        if isinstance(p.members[0].node.op, MacOp)
    ]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_node_of_equal_networks_has_partners(family):
    graph = joined(*(FAMILIES[family](t, i) for i, t in enumerate("abc")))
    found = align(graph)
    assert all(len(p.members) == 3 for p in found.positions) and not found.apart
    kept = [tuple(str(m.node.ref).partition("/")[2] for m in p.members) for p in found.positions]
    assert all(len(set(names)) == 1 for names in kept)  # the builder names equal steps alike


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(FAMILIES)), st.integers(0, 10**6), st.permutations("abc"))
def test_names_and_orders_do_not_matter(family, seed, order):
    nets = {t: FAMILIES[family](t, i) for i, t in enumerate("abc")}
    graph = joined(*nets.values())
    other = joined(*(renamed(nets[t], seed + i) for i, t in enumerate(order)))
    assert weights_of(graph, align(graph)) == weights_of(other, align(other))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.permutations("abcd"))
def test_order_does_not_matter_where_networks_differ(seed, order):
    nets = {
        "a": plain("a", 0, (8, 12, 12)),
        "b": plain("b", 1, (6, 12)),
        "c": plain("c", 2, (8, 10, 12, 12)),
        "d": concat("d", 3),
    }
    graph = joined(*nets.values())
    other = joined(*(renamed(nets[t], seed + i) for i, t in enumerate(order)))
    assert weights_of(graph, align(graph)) == weights_of(other, align(other))


def test_positions_come_after_what_they_read():
    graph = joined(residual("a", 0, blocks=3), residual("b", 1, blocks=1), concat("c", 2))
    found = align(graph)
    assert sorted(m.node.ref for p in found.positions for m in p.members) == sorted(n.ref for n in graph.nodes())
    for position in found.positions:
        for member in position.members:
            for value in graph.operands(member.node):
                producer = graph.producer(value.ref)
                assert producer is None or found.of[producer.ref].index < position.index


def test_widths_may_differ():
    assert partners(joined(plain("a", 0, (4, 8)), plain("b", 1, (6, 20), outputs=1))) == [["a", "b"]] * 3


def test_what_a_place_is_worth_to_a_node():
    """Its kind counts, and what is in front of it and behind it, each by itself."""
    graph = joined(plain("a", 0), plain("b", 1))
    aligner = _Aligner(graph)
    mine, theirs = (
        {op: next(n.ref for n in graph.nodes() if n.ref.name.startswith(t) and n.op.name == op) for op in OPS}
        for t in ("a/", "b/")
    )
    worth = partial(aligner._worth, (4.0, 0.5))
    for op, base in OPS.items():
        slot = aligner._slot(mine[op])
        assert worth(slot, theirs[op]) == base + 4.5
        slot.pasts.clear()
        assert worth(slot, theirs[op]) == base + 0.5
        slot.futures.clear()
        assert worth(slot, theirs[op]) == base
        slot.pasts |= aligner._slot(mine[op]).pasts
        assert worth(slot, theirs[op]) == base + 4
        assert worth(slot, mine[op]) == SAME_NODE
    assert worth(aligner._slot(mine["Conv"]), theirs["Relu"]) == 0
    another = [n.ref for n in graph.nodes() if n.ref.name.startswith("a/") and n.op.name == "Relu"][1]
    assert worth(aligner._slot(mine["Relu"]), another) == 0  # of the same network


OPS = {"Conv": LAYER, "Relu": OTHER}
"""Operator -> what a partner for it is worth whatever is around it."""


def test_an_extra_layer_has_no_partner_and_costs_no_other_partner():
    found = partners(joined(plain("a", 0, (8, 12, 16)), plain("b", 1, (8, 12))))
    assert found == [["a", "b"], ["a", "b"], ["a"], ["a", "b"]]


def test_a_network_of_any_depth_beside_one_that_lacks_it():
    def network(task, seed, extra):
        b = Builder(task, seed)
        x = b.input("x", 1, 4)
        for step in range(extra):
            x = b.apply(("Tanh", "Sigmoid")[step % 2], x)
        b.task(task, b.apply("Gemm", x, b.weight(4, 3), b.weight(3)))
        return b.done()

    found = align(joined(network("a", 0, 1200), network("b", 1, 0)))
    assert [len(p.members) for p in found.positions] == [*[1] * 1200, 2]


def test_an_extra_block_of_a_residual_stream():
    graph = joined(residual("a", 0, blocks=2), residual("b", 1, blocks=1))
    assert sorted(map(len, partners(graph))) == [1, 1, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("blocks", [(2, 3), (1, 3, 2), (3, 1)])
def test_a_block_more_in_front_of_one_that_begins_alike(blocks):
    """The 1 x 1 convolution of the extra block and that of the strided one behind it are of one kind."""
    graph = joined(*(inverted(t, i, blocks=n) for i, (t, n) in enumerate(zip("abc", blocks, strict=False))))
    found = partners(graph)
    assert len(found) == 1 + 3 * max(blocks) + 3 + 1
    assert sum(map(len, found)) == sum(5 + 3 * n for n in blocks)
    positions = align(graph).positions
    widths = [m.node.attrs.get("strides") for p in positions for m in p.members if m.node.op.name == "Conv"]
    assert widths.count((2, 2)) == len(blocks)
    (strided,) = (p for p in positions if p.members[0].node.attrs.get("strides") == (2, 2))
    assert len(strided.members) == len(blocks)


def adapted(task: str, seed: int) -> Graph:
    b = Builder(task, seed)
    x = b.apply("Div", b.input("x", 1, 3, 8, 8), b.const(np.float32(255)))
    x = b.apply("Sub", x, b.const(np.full((3, 1, 1), 0.5, np.float32)))
    b.task(task, head(b, conv(b, conv(b, x, 8), 12, strides=(2, 2)), 3))
    return b.done()


def test_another_adapter():
    assert partners(joined(plain("a", 0), adapted("b", 1))) == [["a", "b"]] * 3


def test_branches_in_another_order_of_operands():
    def net(task: str, swap: bool) -> Graph:
        b = Builder(task, int(swap))
        x = conv(b, b.input("x", 1, 3, 8, 8), 8)
        parts: list[ValueRef] = [conv(b, x, 8, 1), conv(b, conv(b, x, 8), 8)]
        b.task(task, head(b, b.apply("Add", *(parts[::-1] if swap else parts)), 3))
        return b.done()

    assert partners(joined(net("a", False), net("b", True))) == [["a", "b"]] * 5


def test_branches_that_differ_in_what_they_read_are_no_partners():
    """Both networks have the same two layers behind each other, but in the second one reads the input."""

    def net(task: str, parallel: bool) -> Graph:
        b = Builder(task, int(parallel))
        x = b.input("x", 1, 8, 8, 8)
        first = conv(b, x, 8)
        b.task(task, head(b, b.apply("Concat", first, conv(b, x if parallel else first, 8), axis=1), 3))
        return b.done()

    found = align(joined(net("a", False), net("b", True)))
    reasons = {a.reason for a in found.apart}
    assert any("reads from another place" in r for r in reasons)


@pytest.mark.parametrize(
    "other,reason",
    [
        (lambda b, x: conv(b, x, 8, 5), "kernel_shape is (3, 3) and (5, 5)"),
        (lambda b, x: conv(b, x, 8, strides=(2, 2)), "strides is (1, 1) and (2, 2)"),
        (lambda b, x: conv(b, x, 8, group=8), "group is 1 and one per channel"),
        (lambda b, x: conv(b, b.apply("AveragePool", x, kernel_shape=(2, 2)), 8), "maps are 1x*x8x8 and 1x*x7x7"),
        (lambda b, x: b.apply("Tanh", x), "'b' has no layer at this place"),
    ],
)
def test_why_a_layer_has_no_partner(other, reason):
    def net(task: str, seed: int, step) -> Graph:
        b = Builder(task, seed)
        x = step(b, conv(b, b.input("x", 1, 3, 8, 8), 8, 1))
        b.task(task, head(b, x, 3))
        return b.done()

    found = align(joined(net("a", 0, lambda b, x: conv(b, x, 8)), net("b", 1, other)))
    assert any(reason in a.reason for a in found.apart if a.mask == 1 and a.other == 1), found.apart


def test_layers_shared_already_stay_at_one_position():
    def net(task: str, seed: int) -> Graph:
        b = Builder(task, 0)
        x = conv(b, b.input("x", 1, 3, 8, 8), 8)
        b.rng = np.random.default_rng(seed)
        b.task(task, head(b, conv(b, x, 8), 3))
        return b.done()

    graph = Deduplicate()(joined(*(net(t, i + 1) for i, t in enumerate("abc"))))
    found = align(graph)
    assert [len(p.members) for p in found.positions] == [1, 1, 3, 3, 3, 3, 3]


def test_activations_with_other_parameters_are_no_partners():
    def net(task: str, alpha: float) -> Graph:
        b = Builder(task, 0 if alpha == 0.1 else 1)
        x = b.apply("LeakyRelu", b.conv(b.input("x", 1, 3, 8, 8), 8, 1), alpha=alpha)
        b.task(task, head(b, x, 2))
        return b.done()

    found = align(joined(net("a", 0.1), net("b", 0.2)))
    assert [len(p.members) for p in found.positions if p.members[0].node.op.name == "LeakyRelu"] == [1, 1]


@pytest.mark.parametrize(
    "first,second,alone",
    [
        ("ssrnet_age_imdb", "ssrnet_gender_imdb", {"Mul"}),
        ("minixc_emotion_fer", "minixc_gender", set()),
    ],
)
def test_real_families(first, second, alone):
    from compiler.ir.onnx_in import load
    from compiler.pipeline import Pipeline
    from compiler.settings import DEFAULT_PASSES

    files = {"a": shared_path("models", f"{first}.onnx"), "b": shared_path("models", f"{second}.onnx")}
    graph = joined(*(load(path, task=t) for t, path in files.items()))
    graph, _ = Pipeline.parse(DEFAULT_PASSES).run(graph)
    found = align(graph)
    lonely = {p.members[0].node.op.name for p in found.positions if p.mask != 3}
    assert lonely == alone
