from __future__ import annotations

import numpy as np

from compiler.ir.reference import evaluate, random_feeds
from compiler.passes.dead import RemoveDeadCode
from tests.graphs import Builder


def test_only_what_no_task_needs_goes():
    net = Builder()
    x, unused = net.input("x", 1, 3, 4, 4), net.input("unused", 2)
    net.conv(net.conv(x, 2, 1), 2, 1)
    net.const(np.ones(3, np.float32), "loose")
    net.task("t", net.conv(x, 5, 3))
    before = net.done()
    after = RemoveDeadCode()(before)
    assert [n.op.name for n in after.nodes()] == ["Conv"]
    assert len(after.parameters()) == 2
    assert [v.ref for v in after.inputs] == [x, unused]
    feeds = random_feeds(before, np.random.default_rng(0))
    for name, array in evaluate(before, feeds).items():
        assert evaluate(after, feeds)[name].tobytes() == array.tobytes()


def test_one_dead_result_does_not_kill_its_node():
    net = Builder()
    x = net.input("x", 4)
    first, _ = net.apply("Split", x, results=2, num_outputs=2)
    net.task("t", first)
    after = RemoveDeadCode()(net.done())
    assert len(after.results(after.nodes()[0])) == 2
