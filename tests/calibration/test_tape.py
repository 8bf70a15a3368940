"""Values of all samples, some nodes at a time, equal those of the reference on each sample."""

from __future__ import annotations

import numpy as np

from compiler.calibration.tape import Parts, Tape
from compiler.ir.reference import difference, evaluate, random_feeds
from tests.graphs import Builder


def net():
    b = Builder()
    x = b.input("x", 1, 3, 6, 6)
    h = b.apply("Relu", b.conv(x, 4, 3))
    b.task("t", b.apply("Gemm", b.apply("Flatten", h), b.weight(64, 2), b.weight(2)))
    return b.done()


def test_values_equal_the_references():
    graph = net()
    feeds = [random_feeds(graph, np.random.default_rng(i)) for i in range(5)]
    tape = Tape(graph, feeds)
    nodes = graph.nodes()
    tape.run(nodes[:2])
    tape.run(nodes[2:])
    (output,) = graph.tasks["t"].outputs
    found = tape.read(output)
    assert found.shape == (5, 2)
    for row, feed in zip(found, feeds, strict=True):
        assert difference(row[None], evaluate(graph, feed)[output.name]) < 1e-5
    assert np.array_equal(tape.read(output, 1, 3), found[1:3])


def test_nodes_that_were_changed_are_evaluated_as_they_are_now():
    graph = net().copy()
    feeds = [random_feeds(graph, np.random.default_rng(i)) for i in range(2)]
    tape, (conv, *_) = Tape(graph, feeds), graph.nodes()
    tape.run([conv])
    (y,) = graph.results(conv)
    before = tape.read(y.ref)
    bias = graph.operands(conv)[2]
    graph.update(bias.ref, data=bias.constant + 1)
    tape.run([conv])
    assert np.allclose(tape.read(y.ref), before + 1, atol=1e-5)


def test_dropped_values_are_gone():
    graph = net()
    tape = Tape(graph, [random_feeds(graph, np.random.default_rng(0))])
    (x,) = graph.inputs
    assert x.ref in tape
    tape.drop(x.ref)
    assert x.ref not in tape


def test_the_same_nodes_are_opened_once_in_whatever_graph_they_are():
    graph, parts = net(), Parts(1 << 20)
    conv, relu, *_ = graph.sites()
    part, twin = parts.of([conv]), graph.copy()
    assert parts.of([twin.site(conv.node)]) is part is not parts.of([relu])
    assert parts.of([conv, relu]) is not part
    twin.update(conv.operands[2].ref, data=conv.operands[2].constant + 1)
    assert parts.of([twin.site(conv.node)]) is not part is parts.of([conv])


def test_the_latest_parts_within_the_limit_are_kept():
    _, relu, flatten, gemm = net().sites()
    size = 4 * (64 + 64)  # what Relu reads and makes; Flatten's values are as large
    for limit, kept in ((2 * size, True), (2 * size - 1, False), (size - 1, False)):
        parts = Parts(limit)
        first, second = parts.of([relu]), parts.of([flatten])
        assert first.bytes == second.bytes == size
        assert (parts.of([relu]) is first) == kept
    parts = Parts(size + Parts(0).of([gemm]).bytes)
    first, second, again, third = (parts.of([s]) for s in (relu, flatten, relu, gemm))
    assert parts.of([relu]) is again is first and parts.of([gemm]) is third
    assert parts.of([flatten]) is not second


def chain(layers: int):
    b = Builder()
    h = b.input("x", 1, 4, 6, 6)
    made = [h := b.apply("Relu", b.conv(h, 4, 3, pads=(1, 1, 1, 1))) for _ in range(layers)]
    b.task("t", *made)
    return b.done()


def test_values_beyond_the_limit_are_made_anew_with_the_same_bits():
    """One value of all samples takes 4 * 4 * 36 * 3 bytes."""
    graph = chain(4)
    feeds = [random_feeds(graph, np.random.default_rng(i)) for i in range(3)]
    whole = Tape(graph, feeds)
    whole.run(graph.nodes())
    for values in range(9):
        tape = Tape(graph, feeds, limit=4 * 4 * 36 * 3 * values)
        for node in graph.nodes():
            tape.run([node])
            assert tape.kept == 4 * 4 * 36 * 3 * min(values, len(tape.values) - 1)
        for ref in whole.values:
            assert np.array_equal(tape.read(ref), whole.read(ref))
        first, *_, last = graph.tasks["t"].outputs
        for ref, array in zip((last, first, last), tape.together([last, first, last], 1, 3), strict=True):
            assert np.array_equal(array, whole.read(ref, 1, 3))


def test_dropped_values_make_room_for_those_that_were_not_kept():
    graph = chain(3)
    size = 4 * 4 * 36 * 2
    feeds = [random_feeds(graph, np.random.default_rng(i)) for i in range(2)]
    whole, tape = Tape(graph, feeds), Tape(graph, feeds, limit=size)
    whole.run(graph.nodes())
    before = None
    for node in graph.nodes():
        tape.run([node])
        (value,) = graph.results(node)
        if before is not None:
            assert not tape._values[value.ref].arrays
            tape.drop(before)
            assert tape._values[value.ref].arrays and tape.kept == size
        before = value.ref
    assert np.array_equal(tape.read(before), whole.read(before))


def test_values_that_were_not_kept_are_those_of_the_graph_as_it_was():
    graph = net().copy()
    feeds = [random_feeds(graph, np.random.default_rng(i)) for i in range(2)]
    tape, (conv, relu, *_) = Tape(graph, feeds, limit=0), graph.nodes()
    tape.run([relu, conv])
    (y,) = graph.results(relu)
    before = tape.read(y.ref)
    bias = graph.operands(conv)[2]
    graph.update(bias.ref, data=bias.constant + 1)
    tape.run([conv])
    assert np.array_equal(tape.read(y.ref), before)
    tape.run([relu])
    assert not np.array_equal(tape.read(y.ref), before)
