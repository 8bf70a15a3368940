from __future__ import annotations

import itertools

import numpy as np
import pytest

from compiler.errors import ConfigError
from compiler.ir.reference import evaluate, random_feeds
from compiler.passes.extract import ExtractTasks
from tests.graphs import Builder


def three():
    net = Builder()
    x, extra = net.input("x", 1, 3, 6, 6), net.input("extra", 1, 4, 6, 6)
    trunk = net.apply("Relu", net.conv(x, 4, 3, pads=(1, 1, 1, 1)))
    pair = net.conv(trunk, 4, 1)
    net.task("a", net.conv(trunk, 2, 1))
    net.task("b", net.conv(pair, 3, 1))
    net.task("c", net.apply("Add", pair, extra), pair)
    return net.done()


SUBSETS = [s for n in (1, 2, 3) for s in itertools.combinations("abc", n)]


@pytest.mark.parametrize("subset", SUBSETS)
def test_every_subset_keeps_every_bit(subset):
    full = three()
    part = ExtractTasks(tasks=subset)(full)
    feeds = random_feeds(full, np.random.default_rng(1))
    want = evaluate(full, feeds, subset)
    found = evaluate(part, {v.ref.name: feeds[v.ref.name] for v in part.inputs})
    assert list(found) == list(want)
    assert all(found[n].tobytes() == want[n].tobytes() for n in want)
    assert [v.ref.name for v in part.inputs] == (["x", "extra"] if "c" in subset else ["x"])
    needed = {r.name for r, tasks in full.needed_by().items() if tasks & set(subset)}
    assert {n.ref.name for n in part.nodes()} <= needed


@pytest.mark.parametrize("tasks,message", [((), "no task was named"), (("a", "z"), "there is no task 'z'")])
def test_unknown_tasks_are_refused(tasks, message):
    with pytest.raises(ConfigError, match=message):
        ExtractTasks(tasks=tasks)(three())
