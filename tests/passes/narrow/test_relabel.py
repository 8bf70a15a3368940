"""Channels given to other tasks: what the new graph computes, and what it costs, against the masked original."""

from __future__ import annotations

import itertools
from functools import cache, partial

import numpy as np
import pytest

from compiler import cost_report, parse_pass
from compiler.errors import VerifyError
from compiler.ir.reference import evaluate
from compiler.passes.base import Resources
from compiler.passes.extract import ExtractTasks
from compiler.passes.narrow.bill import Bill
from compiler.passes.narrow.compact import compacted
from compiler.passes.narrow.copies import Copies
from compiler.passes.narrow.relabel import masked, relabelled
from tests.graphs import Builder
from tests.passes.merge import families

FAMILIES = [
    families.plain,
    families.residual,
    families.depthwise,
    families.concat,
    families.flat,
    families.mlp,
    families.stacked,
    families.decoder,
]


@cache
def shared(family, tasks="ab"):
    """The networks of a family side by side, all channels for all tasks; and inputs."""
    joined = families.joined(*(family(t, seed) for seed, t in enumerate(tasks)))
    rng = np.random.default_rng(0)
    feeds = [
        {v.ref.name: rng.standard_normal(v.shape).astype(np.float32) for v in joined.inputs} for _ in range(120)
    ]
    use = Resources(calibration=lambda: feeds)
    return parse_pass("merge{policy=lattice,start=shared}")(joined, use), feeds


def drawn(copies, bill, seed):
    """Random labels in which every task keeps two channels of every stream and nothing goes unread."""
    rng = np.random.default_rng(seed)
    labels = copies.full()
    for stream in copies.streams.streams:
        numbers = copies.numbers(stream)
        kept = rng.integers(0, 1 << len(copies.tasks), len(numbers))
        kept[:2] = (1 << len(copies.tasks)) - 1
        labels[numbers] &= kept
    return bill.read(labels)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("tasks", ["ab", "abc"])
def test_random_labels_compute_what_the_masked_network_does_and_cost_what_is_billed(family, tasks):
    graph, feeds = shared(family, tasks)
    copies = Copies(graph)
    bill = Bill(copies)
    labels = drawn(copies, bill, 1)
    made = relabelled(copies, labels, feeds[:3])
    expected = masked(graph, bill, labels)
    for feed in feeds[:3]:
        before, after = evaluate(expected, feed), evaluate(made, feed)
        for name in graph.tasks:
            (a,), (b,) = graph.tasks[name].outputs, made.tasks[name].outputs
            np.testing.assert_allclose(after[b.name], before[a.name], rtol=1e-3, atol=1e-4)
    billed = bill.subsets(labels)
    counted = {frozenset(r.tasks): r.cost.macs for r in cost_report(made).combinations}
    assert {q: round(n) for q, n in billed.items()} == counted


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("lost", [1, 3, 7])
def test_a_networks_part_of_a_layer_may_vanish_for_tasks(family, lost):
    """What one network brought to a layer is lost whole by the tasks of `lost`; others' parts are still read."""
    graph, feeds = shared(family, "abc")
    copies = Copies(graph)
    bill = Bill(copies)
    labels = copies.full()
    labels[copies.numbers(copies.streams.streams[0])] &= ~lost
    labels = bill.read(labels)
    made = relabelled(copies, labels, feeds[:2])
    assert {frozenset(r.tasks): r.cost.macs for r in cost_report(made).combinations} == {
        q: round(n) for q, n in bill.subsets(labels).items()
    }


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_full_labels_change_nothing(family):
    graph, feeds = shared(family)
    copies = Copies(graph)
    assert copies.count > 0
    made = relabelled(copies, copies.full(), feeds[:2])
    for name in graph.tasks:
        (a,), (b,) = graph.tasks[name].outputs, made.tasks[name].outputs
        np.testing.assert_allclose(
            evaluate(made, feeds[0])[b.name], evaluate(graph, feeds[0])[a.name], rtol=1e-4, atol=1e-5
        )
    assert [r.cost.macs for r in cost_report(made).combinations] == [
        r.cost.macs for r in cost_report(graph).combinations
    ]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_without_channels_that_nobody_has_everything_is_as_it_was(family):
    graph, feeds = shared(family, "abc")
    copies = Copies(graph)
    labels = drawn(copies, Bill(copies), 3)
    small, fewer, left = compacted(graph, copies, labels, lambda name: False)
    assert np.any(labels == 0) and fewer.count == np.count_nonzero(labels) == np.count_nonzero(left)
    assert np.allclose(Bill(fewer).by_label(left), Bill(copies).by_label(labels))
    expected, made = masked(graph, Bill(copies), labels), masked(small, Bill(fewer), left)
    for feed in feeds[:3]:
        before, after = evaluate(expected, feed), evaluate(made, feed)
        assert all(np.allclose(after[name], values, rtol=1e-4, atol=1e-5) for name, values in before.items())
    same = compacted(small, fewer, left, lambda name: False)
    assert same[0] is small and same[1] is fewer


def test_what_stands_beside_channels_is_none_of_them_when_some_go():
    """An input has no label, that of the last channel neither, which nobody has."""
    b = Builder("a")
    x = b.input("x", 1, 3, 8, 8)
    y = families.conv(b, x, 6)
    b.task("a", b.conv(b.apply("Concat", y, x, axis=1), 2, 1))
    graph = b.done()
    copies = Copies(graph)
    labels = np.array([1, 1, 1, 1, 0, 0])
    small, fewer, left = compacted(graph, copies, labels, lambda name: False)
    assert small.value(y).shape[1] == fewer.count == np.count_nonzero(left) == 4
    feed = {"x": b.rng.standard_normal((1, 3, 8, 8)).astype(np.float32)}
    (before,), (after,) = (evaluate(g, feed).values() for g in (masked(graph, Bill(copies), labels), small))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


def test_channels_that_must_stay_are_not_compacted():
    graph, _ = shared(families.plain, "ab")
    copies = Copies(graph)
    labels = drawn(copies, Bill(copies), 3)
    made = compacted(graph, copies, labels, lambda name: True)
    assert made[0] is graph and made[2] is labels


@pytest.mark.parametrize(
    "family", [families.plain, families.residual, families.depthwise, families.mlp, families.stacked]
)
def test_a_saving_is_what_the_bill_falls_by(family):
    graph, _ = shared(family, "abc")
    copies = Copies(graph)
    bill = Bill(copies)
    labels = drawn(copies, bill, 4)
    workload = {frozenset("a"): 0.5, frozenset("bc"): 0.3, frozenset("abc"): 0.2}
    runs = bill.runs(workload)
    taken = np.arange(1, 8)
    savings = bill.savings(labels, runs, taken)
    before = bill.by_label(labels) @ runs
    for channel, column in itertools.product(range(0, copies.count, 3), range(7)):
        gone = labels[channel] & taken[column]
        if not gone:
            assert savings[channel, column] == -np.inf
            continue
        after = labels.copy()
        after[channel] &= ~gone
        assert savings[channel, column] == pytest.approx(before - bill.by_label(after) @ runs, abs=1e-6 * before)


def test_subsets_of_a_narrowed_graph_are_restrictions():
    graph, feeds = shared(families.residual, "abc")
    copies = Copies(graph)
    made = relabelled(copies, drawn(copies, Bill(copies), 2), feeds[:2])
    whole = evaluate(made, feeds[0])
    for tasks in (("a",), ("b", "c")):
        part = evaluate(ExtractTasks(tasks)(made), feeds[0])
        assert all(np.array_equal(values, whole[name]) for name, values in part.items())


def test_a_network_of_its_own_can_lose_channels_too():
    graph = families.joined(families.plain("a", 0), families.plain("b", 1))
    copies = Copies(graph)
    bill = Bill(copies)
    assert set(copies.full()) == {1, 2}
    feeds = [{v.ref.name: np.ones(v.shape, np.float32) for v in graph.inputs}]
    labels = drawn(copies, bill, 5)
    made = relabelled(copies, labels, feeds)
    assert {frozenset(r.tasks): r.cost.macs for r in cost_report(made).combinations} == {
        q: round(n) for q, n in bill.subsets(labels).items()
    }


def test_a_layer_of_one_channel_is_everybodys():
    """An axis of one entry counts no channels: what is computed there is read whole, by all tasks alike."""
    graph, feeds = shared(partial(families.plain, widths=(1, 6)), "abc")
    copies = Copies(graph)
    bill = Bill(copies)
    labels = drawn(copies, bill, 3)
    made = relabelled(copies, labels, feeds[:2])
    assert {frozenset(r.tasks): r.cost.macs for r in cost_report(made).combinations} == {
        q: round(n) for q, n in bill.subsets(labels).items()
    }


def test_what_several_tasks_read_whole_is_made_once_of_everybodys_channels():
    """A GRU with lengths: layers in front of it are for both tasks, those behind it and beside it have labels."""
    b = Builder("trunk", 1)
    x = b.input("x", 3, 2, 4)
    for _ in range(2):
        x = b.apply("Relu", b.apply("MatMul", x, b.weight(b.graph.value(x).shape[2], 6)))
    weights = b.weight(1, 15, 6), b.weight(1, 15, 5), None, b.const(np.array([3, 2], np.int32))
    y, _ = b.apply("GRU", x, *weights, results=2, hidden_size=5)
    z = b.apply("Relu", b.apply("MatMul", b.apply("Squeeze", y, b.const([1])), b.weight(5, 7)))
    for task in "ab":
        b.task(task, b.apply("MatMul", z, b.weight(7, 2)))
    graph = b.done()
    feeds = [{"x": np.random.default_rng(i).standard_normal((3, 2, 4)).astype(np.float32)} for i in range(2)]
    copies = Copies(graph)
    bill = Bill(copies)
    assert copies.count == 7
    labels = np.array([3, 3, 1, 2, 2, 0, 3])
    made = relabelled(copies, labels, feeds)
    assert [n.op.name for n in made.nodes()].count("GRU") == 1
    assert {frozenset(r.tasks): r.cost.macs for r in cost_report(made).combinations} == {
        q: round(n) for q, n in bill.subsets(labels).items()
    }


def beside(tasks):
    """A layer that reads the input between the results of two layers, and heads on it."""
    b = Builder("trunk", 2)
    x = b.input("x", 1, 3, 6, 6)
    y = b.apply("Concat", families.conv(b, x, 6), x, families.conv(b, x, 4), axis=1)
    z = families.conv(b, y, 8)
    for task in tasks:
        b.task(task, families.head(b, z, 2))
    return b.done()


def test_channels_may_be_read_beside_a_value_that_is_read_whole():
    """The input and a layer's results side by side: every label reads the input, and the channels it may read."""
    graph = beside("abc")
    feeds = [{"x": np.random.default_rng(i).standard_normal((1, 3, 6, 6)).astype(np.float32)} for i in range(3)]
    copies = Copies(graph)
    bill = Bill(copies)
    assert copies.count == 6 + 4 + 8
    made = relabelled(copies, labels := drawn(copies, bill, 2), feeds[:2])  # compares with the masked graph
    assert len(set(labels)) > 3
    assert {frozenset(r.tasks): r.cost.macs for r in cost_report(made).combinations} == {
        q: round(n) for q, n in bill.subsets(labels).items()
    }


def test_a_label_that_would_read_nothing_is_an_error():
    graph, feeds = shared(families.plain, "abc")
    copies = Copies(graph)
    layer = next(found for found in Bill(copies).layers if found.inward.max() >= 0)
    labels = copies.full()
    labels[layer.inward] = 1 << np.arange(len(layer.inward)) % 3
    labels[layer.outward[0]] = 3
    with pytest.raises(VerifyError, match="nothing to read"):
        relabelled(copies, labels, feeds[:2])
