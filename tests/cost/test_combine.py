from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.cost.combine import combination_costs, cost_report
from compiler.cost.count import Cost, totals
from compiler.errors import ConfigError
from compiler.passes.extract import ExtractTasks
from tests.graphs import Builder


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6).flatmap(lambda t: st.tuples(st.just(t), st.lists(st.tuples(
    st.integers(1, (1 << t) - 1), st.integers(0, 1 << 40)), max_size=30))))  # fmt: skip
def test_closed_form_equals_direct_sums(case):
    tasks, parts = case
    table = combination_costs(tasks, [(m, Cost(macs=c, flops=2 * c)) for m, c in parts])
    for mask in range(1 << tasks):
        direct = sum(c for m, c in parts if m & mask)
        assert tuple(table[mask][:2]) == (direct, 2 * direct)


def network(tasks=3):
    net = Builder()
    x = net.input("x", 1, 3, 8, 8)
    trunk = net.apply("Relu", net.conv(x, 4, 3))
    pair = net.conv(trunk, 4, 1)
    for i in range(tasks):
        net.task(f"t{i}", net.conv(pair if i else trunk, 2 + i, 1))
    return net.done()


def test_every_row_is_the_cost_of_the_extracted_graph():
    graph = network()
    rows = cost_report(graph).combinations
    subsets = [s for n in (1, 2, 3) for s in itertools.combinations(graph.tasks, n)]
    assert [r.tasks for r in rows] == subsets
    for row in rows:
        assert row.cost == totals(ExtractTasks(tasks=row.tasks)(graph))


def test_cost_grows_with_the_subset():
    rows = {frozenset(r.tasks): r.cost for r in cost_report(network()).combinations}
    for a, b in itertools.product(rows, rows):
        if a <= b:
            assert rows[a].macs <= rows[b].macs
            assert rows[a].weight_bytes <= rows[b].weight_bytes


def test_separate_networks_share_nothing():
    graph = network(2)
    alone = {t: ExtractTasks(tasks=(t,))(graph) for t in graph.tasks}
    report = cost_report(graph, alone, workspace={frozenset({"t0"}): 640})
    both = report.separate[-1]
    assert both.cost == totals(alone["t0"]) + totals(alone["t1"])
    assert both.cost.macs > report.combinations[-1].cost.macs
    record = report.record()
    assert set(record) == {"combinations", "separate"}
    first, second, _ = record["combinations"]
    assert first["workspace_bytes"] == 640
    assert second["workspace_bytes"] is None
    wanted = {"tasks", "level", "macs", "flops", "parameters", "weight_bytes", "workspace_bytes"}
    assert wanted <= set(first)
    assert first["tasks"] == ["t0"]
    assert first["level"] == 0


def test_sixteen_tasks_in_under_a_second():
    rng = np.random.default_rng(0)
    parts = [(int(m), Cost(*map(int, rng.integers(0, 1 << 30, 5)))) for m in rng.integers(1, 1 << 16, 5000)]
    start = time.process_time()
    table = combination_costs(16, parts)
    assert time.process_time() - start < 1.0
    for mask in (1, 0b1010, 0xFFFF):
        assert table[mask][0] == sum(c.macs for m, c in parts if m & mask)


def test_a_report_of_sixteen_tasks_has_every_combination():
    graph = network(16)
    start = time.process_time()
    rows = cost_report(graph).combinations
    assert time.process_time() - start < 1.0
    assert len(rows) == 65535
    assert rows[-1].cost == totals(graph)


def test_seventeen_tasks_are_refused_with_the_way_out():
    with pytest.raises(ConfigError, match="Extract the tasks"):
        cost_report(network(17))
