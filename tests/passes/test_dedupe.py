from __future__ import annotations

import numpy as np
import pytest

from compiler.ir.reference import evaluate, random_feeds
from compiler.passes.dedupe import Deduplicate
from compiler.passes.extract import ExtractTasks
from tests.graphs import Builder


def family(tasks, depth=3, change=None):
    """Networks over one input whose trunks have equal weights but for layer `change` of the last one."""
    net = Builder()
    x = net.input("x", 1, 3, 6, 6)
    for number, task in enumerate(tasks):
        net.rng = np.random.default_rng(0)
        y = x
        for layer in range(depth):
            y = net.apply("Relu", net.conv(y, 4, 3, pads=(1, 1, 1, 1)))
            if change == layer and number == len(tasks) - 1:
                net.rng = np.random.default_rng(99)
        net.rng = np.random.default_rng(number + 1)
        net.task(task, net.conv(y, number + 2, 1))
    return net.done()


def test_networks_over_one_trunk_keep_one_trunk_and_every_bit():
    before = family("abc")
    outcome = Deduplicate().run(before)
    after = outcome.graph
    assert len(after.nodes()) == 3 * 2 + 3
    feeds = random_feeds(before, np.random.default_rng(0))
    want = evaluate(before, feeds)
    for task in "abc":
        found = evaluate(after, feeds, [task])
        expected = [want[r.name] for r in before.tasks[task].outputs]
        assert [a.tobytes() for a in found.values()] == [e.tobytes() for e in expected]
    assert {r.where for r in outcome.refusals} == {"tasks 'a' and 'b'", "tasks 'a' and 'c'", "tasks 'b' and 'c'"}


def test_k_copies_become_one():
    net = Builder()
    x = net.input("x", 1, 3, 6, 6)
    for task in "abcd":
        net.rng = np.random.default_rng(0)
        net.task(task, net.apply("Relu", net.conv(x, 4, 3)))
    after = Deduplicate()(net.done())
    assert len(after.nodes()) == 2
    assert len({t.outputs for t in after.tasks.values()}) == 1


def test_the_report_names_the_first_layer_that_differs():
    outcome = Deduplicate().run(family("ab", change=0))
    (refusal,) = outcome.refusals
    assert "first differ at Conv" in refusal.reason
    assert "of 144 elements" in refusal.reason
    assert len(outcome.graph.nodes()) == 2 + 2 * (2 * 2 + 1)


@pytest.mark.parametrize("other", [{"alpha": 0.2}, {"alpha": float(np.float32(0.1))}])
def test_attributes_are_part_of_the_key(other):
    net = Builder()
    x = net.input("x", 4)
    net.task("a", net.apply("LeakyRelu", x, alpha=0.1))
    net.task("b", net.apply("LeakyRelu", x, **other))
    outcome = Deduplicate().run(net.done())
    assert len(outcome.graph.nodes()) == 2
    assert "attribute alpha" in outcome.refusals[0].reason


def test_equal_bytes_of_other_types_stay_apart():
    net = Builder()
    x = net.input("x", 4)
    zero = net.const(np.zeros(4, np.float32))
    minus = net.const(np.full(4, -0.0, np.float32))
    net.task("a", net.apply("Mul", x, zero))
    net.task("b", net.apply("Mul", x, minus))
    assert len(Deduplicate()(net.done()).nodes()) == 2


def test_splats_are_shared_without_being_written_out():
    net = Builder()
    x = net.input("x", 1)
    for task in "ab":
        huge = net.const(np.broadcast_to(np.float32(1), (1 << 20, 1 << 20)))
        net.task(task, net.apply("Add", x, huge))
    after = Deduplicate()(net.done())
    assert len(after.parameters()) == 1
    assert len(after.nodes()) == 1


def test_operand_order_matters_and_extraction_undoes_sharing():
    net = Builder()
    x, y = net.input("x", 4), net.input("y", 4)
    net.task("a", net.apply("Sub", x, y))
    net.task("b", net.apply("Sub", y, x))
    after = Deduplicate()(net.done())
    assert len(after.nodes()) == 2
    assert len(ExtractTasks(tasks=("b",))(after).nodes()) == 1
