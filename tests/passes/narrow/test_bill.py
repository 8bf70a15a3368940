"""What labels cost and what keeps them, by hand: layers, prices, channels that stay, and what nobody reads."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from compiler import cost_report
from compiler.errors import VerifyError
from compiler.ir.reference import evaluate
from compiler.ir.types import ValueRef
from compiler.passes.merge.labels import check
from compiler.passes.narrow.bill import Bill, Layer
from compiler.passes.narrow.compact import FEWEST, compacted
from compiler.passes.narrow.copies import Copies, joint_channels
from compiler.passes.narrow.feeding import LEAST, Feeding
from compiler.passes.narrow.relabel import check_same, masked, masks, relabelled
from compiler.passes.narrow.steps import SETS, Taking, _sets
from tests.graphs import Builder

WIDTH, INPUTS = 6, 4


def chain(*tasks: str, outputs: int = 2):
    """Two layers of six channels for all tasks, and a layer for each task."""
    b = Builder(seed=1)
    h = b.input("x", 1, INPUTS)
    for name in ("first", "second"):
        width = b.graph.value(h).shape[1]
        h = b.apply(
            "Relu", b.apply("MatMul", h, b.const(b.rng.normal(size=(width, WIDTH)).astype(np.float32), name))
        )
    for task in tasks:
        head = b.const(b.rng.normal(size=(WIDTH, outputs)).astype(np.float32), f"head_{task}")
        b.task(task, b.apply("MatMul", h, head))
    return b.done()


def of(*tasks: str) -> tuple[Copies, Bill, np.ndarray, np.ndarray]:
    """Copies, bill, and the channels of both layers."""
    copies = Copies(chain(*tasks))
    bill = Bill(copies)
    by_weight = {layer.weight.name: layer for layer in bill.layers}
    return copies, bill, by_weight["first"].outward, by_weight["second"].outward


def test_unions_of_what_a_label_contains() -> None:
    bill = of(*"abcdefg")[1]
    present = np.random.default_rng(0).random(bill.every + 1) < 0.2
    expected = [int(np.bitwise_or.reduce(np.flatnonzero(row & present))) for row in bill.contains]
    assert bill._united(present).tolist() == expected


# ---------------------------------------------------------------------- totals
def test_layers_are_those_of_the_network() -> None:
    copies, bill, first, second = of("a", "b")
    assert copies.count == 2 * WIDTH and sorted([*first, *second]) == list(range(2 * WIDTH))
    held = {layer.weight.name: layer for layer in bill.layers}
    assert held["first"].inward.tolist() == [-1] * INPUTS and held["second"].inward.tolist() == first.tolist()
    for task, owner in (("a", 1), ("b", 2)):
        head = held[f"head_{task}"]
        assert (
            head.inward.tolist() == second.tolist() and head.outward.tolist() == [-1, -1] and head.owners == owner
        )
    assert all(layer.macs == 1 and layer.dims == (0, 1) and layer.rank == 2 for layer in bill.layers)
    assert held["first"].owners == 3 and copies.full().tolist() == [3] * 12


def test_the_bill_of_labels_by_hand() -> None:
    _, bill, first, second = of("a", "b")
    labels = np.zeros(2 * WIDTH, int)
    labels[first] = [3, 3, 1, 1, 2, 0]  # for both, a, b and nobody
    labels[second] = [3, 1, 1, 2, 0, 0]
    by_label = {1: 2 * INPUTS + 2 * 4 + 2 * 3, 2: 1 * INPUTS + 1 * 3 + 2 * 2, 3: 2 * INPUTS + 1 * 2}
    assert bill.by_label(labels).tolist() == [0, *(by_label[k] for k in (1, 2, 3))]
    a, b = frozenset("a"), frozenset("b")
    costs = {a: by_label[1] + by_label[3], b: by_label[2] + by_label[3], a | b: sum(by_label.values())}
    assert bill.subsets(labels) == costs
    counted = bill.counts(next(n for n in bill.layers if n.weight.name == "second"), labels)
    assert [c.tolist() for c in counted] == [[0, 2, 1, 2], [0, 2, 1, 1]]


def test_nodes_on_each_channel_cost_what_their_channels_do() -> None:
    """A depthwise convolution: nine products at each of 16 positions of a channel."""
    b = Builder()
    h = b.conv(b.input("x", 1, 2, 6, 6), 6, 3, bias=False)
    h = b.conv(h, 6, 3, group=6, pads=(1, 1, 1, 1), bias=False)
    flat = b.apply("Flatten", b.apply("GlobalAveragePool", h))
    for task in "ab":
        b.task(task, b.apply("MatMul", flat, b.weight(6, 2)))
    bill = Bill(Copies(b.done()))
    assert [len(each.entries) for each in bill.each] == [6] and bill.each[0].macs == 9 * 16
    found = bill.by_label(np.array([3, 3, 1, 2, 2, 0]))
    each = 9 * 16 + 18 * 16  # and what the first layer makes of two channels with 3 x 3 taps
    assert found.tolist() == [0, each + 2 * 3, 2 * each + 2 * 4, 2 * each]


def test_labels_run_for_the_combinations_that_have_one_of_their_tasks() -> None:
    _, bill, _, _ = of("a", "b", "c")
    assert bill.runs({}) == pytest.approx([0, 4 / 7, 4 / 7, 6 / 7, 4 / 7, 6 / 7, 6 / 7, 1])
    found = bill.runs({frozenset("a"): 3.0, frozenset("bc"): 1.0})
    assert found == pytest.approx([0, 0.75, 0.25, 1, 0.25, 1, 0.25, 1])
    for q, s in itertools.product(range(8), repeat=2):
        assert bill.contains[q, s] == (q & s == s) and bill.meets[q, s] == bool(q & s)


def layer_of(inward, outward, dims, rank=2, owners=3) -> Layer:
    return Layer(ValueRef("w"), np.array(inward), np.array(outward), dims, rank, owners, 1.0)


def test_weights_are_allowed_between_channels_whose_readers_may_read_them() -> None:
    labels = np.array([3, 1, 2, 0])
    layer = layer_of([0, 1, 2, 3, -1], [0, 1, 2, 3, -1], (1, 0))
    expected = [[1, 0, 0, 0, 1], [1, 1, 0, 0, 1], [1, 0, 1, 0, 1], [0] * 5, [1, 0, 0, 0, 1]]
    assert layer.allowed(labels, 3).astype(int).tolist() == expected
    for dims, rank, shape in (((0, 1), 2, (5, 5)), ((1, 0), 4, (5, 5, 1, 1)), ((2, 1), 3, (1, 5, 5))):
        found = layer_of([0, 1, 2, 3, -1], [0, 1, 2, 3, -1], dims, rank).allowed(labels, 3)
        assert found.shape == shape
        matrix = found.reshape(5, 5)
        assert (matrix if dims[0] > dims[1] else matrix.T).astype(int).tolist() == expected
    alone = layer_of([0, 1, 2, 3, -1], [-1], (0, 1), owners=2)  # what only the second task makes
    assert alone.allowed(labels, 3)[:, 0].tolist() == [True, False, True, False, True]


def test_masks_are_what_the_masked_network_keeps() -> None:
    copies, bill, first, second = of("a", "b")
    labels = copies.full()
    labels[first] = [3, 3, 1, 1, 2, 0]
    labels[second[:2]] = [1, 2]
    kept = masks(bill, labels)
    graph = copies.original
    made = masked(graph, bill, labels)
    for ref, mask in kept.items():
        weight = graph.value(ref).constant
        np.testing.assert_array_equal(made.value(ref).constant, weight * mask)
    assert not kept[ValueRef("first")][:, 5].any() and kept[ValueRef("first")][:, :5].all()
    assert kept[ValueRef("second")][:, 0].tolist() == [True] * 4 + [False] * 2
    assert kept[ValueRef("head_b")][:, 0].tolist() == [False] + [True] * 5


# ---------------------------------------------------------------------- what nobody reads
def test_a_channel_is_for_nobody_who_does_not_read_it() -> None:
    _, bill, first, second = of("a", "b")
    labels = np.full(2 * WIDTH, 3)
    labels[second] = [1, 1, 1, 0, 0, 0]
    assert bill.read(labels)[first].tolist() == [1] * 6  # b has nothing behind them any more
    labels[second] = [3, 1, 1, 0, 0, 0]
    labels[first] = [3, 2, 1, 3, 0, 2]
    expected = np.zeros(2 * WIDTH, int)
    expected[second], expected[first] = [3, 1, 1, 0, 0, 0], [3, 0, 1, 3, 0, 0]
    assert bill.read(labels).tolist() == expected.tolist()


# ---------------------------------------------------------------------- channels that stay
def same(graph, labels, feeds) -> None:
    """What is made for the labels computes what the masked network does, at the cost that is billed."""
    copies = Copies(graph)
    bill = Bill(copies)
    made, expected = relabelled(copies, labels, feeds), masked(graph, bill, labels)
    for feed in feeds:
        before, after = evaluate(expected, feed), evaluate(made, feed)
        for task in graph.tasks:
            for a, b in zip(graph.tasks[task].outputs, made.tasks[task].outputs, strict=True):
                np.testing.assert_allclose(after[b.name], before[a.name], rtol=1e-4, atol=1e-5)
    counted = {frozenset(r.tasks): r.cost.macs for r in cost_report(made).combinations}
    assert {q: round(n) for q, n in bill.subsets(labels).items()} == counted


def ends(b, *values):
    return [b.apply("Gemm", v, b.weight(2, b.graph.value(v).shape[1]), b.weight(2), transB=1) for v in values]


def cut(b, value, low, high):
    return b.apply("Slice", value, *(b.const(np.array([n])) for n in (low, high, 1)))


def shared_parts(kind: str):
    """Layers of six channels for all tasks; what some of them do with these is no matter of single channels, but
    for those of one layer that all read alike.
    """
    b = Builder()
    x = b.input("x", 1, INPUTS)
    layers = (b.apply("Gemm", x, b.weight(6, 4), b.weight(6), transB=1) for _ in range(4))
    one, two, three, alike = (b.apply("Relu", layer) for layer in layers)
    read = {"a": [alike], "b": [alike]}
    if kind == "turned":
        order = b.const(np.array([1, 0, 3, 2, 5, 4]))
        read["a"].append(b.apply("Add", one, b.apply("Gather", one, order, axis=1)))
        read["b"].append(one)
    elif kind == "added":
        read["a"].append(b.apply("Add", one, two))
        read["b"] += [one, two]
    elif kind == "part":
        both = b.apply("Concat", one, two, axis=1)
        read["a"].append(cut(b, both, 0, 5))
        read["b"].append(both)
    else:
        part = cut(b, b.apply("Concat", two, three, axis=1), 3, 9)
        read["a"].append(b.apply("Add", one, part))
        read["b"] += [one, two]
        read["c"] = [three, alike]
    for task, values in read.items():
        b.task(task, *ends(b, *values))
    return b.done()


@pytest.mark.parametrize("kind", ["turned", "added", "part", "added part"])
def test_channels_that_tasks_see_in_different_ways_are_everybodys_and_the_rest_has_labels(kind: str) -> None:
    graph = shared_parts(kind)
    copies = Copies(graph)
    assert copies.count == 6 and "see the channels of '" in copies.obstacle() and not joint_channels(copies).any()
    every = (1 << len(graph.tasks)) - 1
    labels = np.array([every, every, 1, 2, 0, every])
    feeds = np.random.default_rng(0).normal(size=(3, 1, INPUTS)).astype(np.float32)
    same(graph, labels, [{"x": x} for x in feeds])


def test_layers_of_one_task_read_channels_of_several_labels() -> None:
    rng = np.random.default_rng(0)
    copies, _, first, second = of("a", "b", "c")
    labels = copies.full()
    labels[first], labels[second] = [7, 7, 3, 1, 6, 0], [7, 3, 1, 5, 2, 4]
    same(copies.original, labels, [{"x": x} for x in rng.normal(size=(3, 1, INPUTS)).astype(np.float32)])


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("RNN", 1), ("GRU", 3)])
def test_a_recurrent_layer_of_one_task_reads_channels_of_several_labels(op: str, gates: int) -> None:
    b = Builder(seed=2)
    h = b.apply("Relu", b.apply("MatMul", b.input("x", 3, 1, 4), b.weight(4, 6)))
    weights = b.weight(1, 5 * gates, 6), b.weight(1, 5 * gates, 5)
    y = b.apply(op, h, *weights, hidden_size=5, results=3 if op == "LSTM" else 2)[0]
    b.task("a", b.apply("MatMul", b.apply("Squeeze", y, b.const([1])), b.weight(5, 2)))
    b.task("b", b.apply("MatMul", h, b.weight(6, 2)))
    graph = b.done()
    copies = Copies(graph)
    shared = next(layer.outward for layer in Bill(copies).layers if layer.rank == 2 and layer.owners == 3)
    labels = copies.full()
    labels[shared] = [3, 1, 3, 2, 1, 0]
    same(graph, labels, [{"x": x} for x in np.random.default_rng(0).normal(size=(3, 3, 1, 4)).astype(np.float32)])


def test_units_of_a_gru_go_for_all_at_once() -> None:
    b = Builder()
    x = b.input("x", 3, 2, 4)
    y, _ = b.apply("GRU", x, b.weight(1, 15, 4), b.weight(1, 15, 5), results=2, hidden_size=5)
    y = b.apply("Squeeze", y, b.const([1]))
    z = b.apply("MatMul", y, b.weight(5, 6))
    for task in "ab":
        b.task(task, b.apply("MatMul", b.apply("Relu", z), b.weight(6, 2)))
    copies = Copies(b.done())
    bill = Bill(copies)
    units = next(layer.outward for layer in bill.layers if layer.rank == 3)
    assert sorted(np.flatnonzero(bill.joint)) == sorted(set(units.tolist())) and len(set(units.tolist())) == 5
    start, runs = copies.full(), bill.runs({})
    loss = np.where(bill.joint, 0.0, 1.0)[:, None] * np.ones(4)
    found = Taking(bill, False).down_to(start, loss, runs, 0.6 * float(bill.by_label(start) @ runs))
    assert set(found[bill.joint]) == {0, 3}


# ---------------------------------------------------------------------- moves
def test_sets_of_tasks_that_a_channel_is_taken_from() -> None:
    assert _sets(1) == [1] and _sets(3) == [1, 2, 3, 4, 5, 6, 7] and len(_sets(SETS)) == 2**SETS - 1
    every = 2 ** (SETS + 1) - 1
    singles = [1 << n for n in range(SETS + 1)]
    assert _sets(SETS + 1) == [*singles, *(every - one for one in singles), every]


def test_what_is_read_and_made_is_kept_up_to_date() -> None:
    copies, bill, first, second = of("a", "b", "c")
    labels = copies.full()
    feeding = Feeding(bill, labels)
    for channel, after in ((first[0], 3), (second[1], 0), (first[0], 1), (second[5], 6), (first[4], 4)):
        feeding.take(int(channel), int(labels[channel]), after)
        labels[channel] = after
        anew = Feeding(bill, labels)
        for mine, wanted in zip((*feeding._made, *feeding._read), (*anew._made, *anew._read), strict=True):
            assert mine.tolist() == wanted.tolist()


def test_every_task_keeps_two_channels_to_read() -> None:
    copies, bill, first, second = of("a", "b")
    runs = bill.runs({})
    taking = Taking(bill, False)
    least = 2 * (INPUTS + 2 + 2)  # two channels in each layer, for both
    found = taking.down_to(copies.full(), np.ones((copies.count, 4)), runs, least + 0.5)
    assert found is None or min((found[c] >> t & 1).sum() for c in (first, second) for t in range(2)) >= LEAST
    assert taking.down_to(copies.full(), np.ones((copies.count, 4)), runs, 1.0) is None


# ---------------------------------------------------------------------- compact
def test_a_stream_keeps_two_channels_though_nobody_has_them() -> None:
    graph = chain("a", "b")
    copies = Copies(graph)
    bill = Bill(copies)
    held = {layer.weight.name: layer.outward for layer in bill.layers}
    labels = copies.full()
    labels[held["first"][3:]] = 0
    labels[held["second"][1:]] = 0
    small, fewer, left = compacted(graph, copies, labels, lambda name: False)
    assert small.value(ValueRef("first")).shape == (INPUTS, 3)
    assert small.value(ValueRef("second")).shape == (3, WIDTH)  # one is not enough to count channels
    assert (fewer.count, np.count_nonzero(left), FEWEST) == (9, 4, 2)
    labels[held["second"][1]] = 1
    small, fewer, left = compacted(graph, copies, labels, lambda name: False)
    assert small.value(ValueRef("second")).shape == (3, 2) and sorted(left) == [1, 3, 3, 3, 3]
    kept = graph.value(ValueRef("second")).constant
    np.testing.assert_array_equal(small.value(ValueRef("second")).constant, kept[:3, :2])


# ---------------------------------------------------------------------- checks
def test_networks_that_differ_are_told_by_task() -> None:
    graph = chain("a", "b")
    feeds = [{"x": np.ones((1, INPUTS), np.float32)}]
    check_same(graph, graph, feeds)
    for factor, wrong in ((1 + 1e-6, False), (1.001, True)):
        other = graph.copy()
        head = graph.value(ValueRef("head_b"))
        other.update(head.ref, data=head.constant * np.float32(factor))
        if wrong:
            with pytest.raises(VerifyError, match=r"task 'b' differs by 1\.0e-03 of scale .* \(limit 1e-04\)"):
                check_same(graph, other, feeds)
        else:
            check_same(graph, other, feeds)


def test_copies_have_the_name_of_their_task_where_there_are_several() -> None:
    """A parameter that two nodes read has a copy for each, one for several tasks keeps its name once."""
    b = Builder()
    h = b.apply("Relu", b.apply("MatMul", b.input("x", 1, 3), b.weight(3, 4)))
    head = b.weight(4, 2)
    for task in "ab":
        b.task(task, b.apply("Tanh", b.apply("MatMul", h, head)))
    copies = Copies(b.done()).graph
    own = ["matmul.1", "matmul.2", "tanh", "tanh.1"]
    assert sorted(n.ref.name for n in copies.nodes()) == ["a/matmul", "a/relu", "b/matmul", "b/relu", *own]
    assert sorted(v.ref.name for v in copies.parameters()) == ["a/w.1", "b/w", "b/w.1", "w"]
    again = Copies(copies).graph
    assert sorted(n.ref.name for n in again.nodes()) == sorted(n.ref.name for n in copies.nodes())


def test_labels_become_channels_of_just_these_tasks() -> None:
    copies, _, first, _ = of("a", "b")
    labels = copies.full()
    labels[first] = [3, 1, 2, 0, 3, 1]
    found = copies.labelling(labels)
    check(copies.streams, found)
    stream = next(s for s in copies.streams.streams if first[0] in copies.numbers(s))
    groups = {copies.streams.group_masks[g]: g for g in stream.groups}
    both = tuple(sorted(groups.values()))
    assert [c.groups for c in found[stream.index]] == [both, (groups[1],), (groups[2],), both, (groups[1],)]
    assert [c.members[0].channel for c in found[stream.index]] == [0, 1, 2, 4, 5]
    assert [c.weights for c in found[stream.index]] == [(0.5, 0.5), (1.0,), (1.0,), (0.5, 0.5), (1.0,)]
