"""diff: what differs between models and between bundles."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compiler import build, cost_report, parse_pass, union
from compiler.cli import main
from compiler.difference import changes, cost_changes
from compiler.ir.encoding import Unstructured
from compiler.ir.graph import Graph
from compiler.ir.onnx_out import save
from tests.passes.merge.families import plain
from tests.small_models import write_release


def pruned(graph: Graph) -> Graph:
    return parse_pass("prune-channels{flops=0.5}")(graph)


@pytest.fixture
def pair() -> tuple[Graph, Graph]:
    graph = plain("a", 0, (8, 12))
    return graph, pruned(graph)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict]:
    status = main(["diff", "-q", "--json", *map(str, arguments)])
    return status, json.loads(capsys.readouterr().out)


def test_equal_graphs_do_not_differ(pair):
    graph, _ = pair
    assert changes(graph, graph.copy()) == []
    assert all(c.same for c in cost_changes(graph, graph.copy()))


def test_every_changed_tensor_and_cost_is_told(pair):
    before, after = pair
    found = changes(before, after)
    tensors = {c.name for c in found if c.part == "tensor"}
    one = {v.ref.name: v for v in before.parameters()}
    two = {v.ref.name: v for v in after.parameters()}
    other = {n for n in one.keys() & two.keys() if one[n].shape != two[n].shape}
    assert other and other <= tensors and tensors >= one.keys() ^ two.keys()
    (cost,) = cost_changes(before, after)
    assert cost.flops[1] < cost.flops[0] and not cost.same
    back = {(c.part, c.name, c.what): (c.after, c.before) for c in changes(after, before)}
    assert back == {(c.part, c.name, c.what): (c.before, c.after) for c in found}


def test_the_order_of_tasks_is_no_difference(tmp_path: Path, capsys):
    networks = {t: plain(t, seed, (8, 12)) for seed, t in enumerate("abc")}
    graphs = [union({t: networks[t] for t in order}) for order in ("abc", "cab")]
    found = cost_changes(*graphs)
    assert len(found) == 7 and all(c.same for c in found)
    assert [c.tasks for c in found] == [r.tasks for r in cost_report(graphs[0]).combinations]
    for graph in graphs:
        save(graph, tmp_path / f"{'-'.join(graph.tasks)}.onnx")
    status, record = run(capsys, tmp_path / "a-b-c.onnx", tmp_path / "c-a-b.onnx")
    assert status == 0 and len(record["costs"]) == 7 and not record["changes"]


def test_one_element_is_a_difference(pair):
    graph, _ = pair
    other = graph.copy()
    value = next(v for v in other.parameters() if v.type.shape)
    data = np.array(value.constant)
    data.flat[0] += 1
    other.update(value.ref, data=data)
    (one,) = changes(graph, other.freeze())
    assert (one.part, one.name, one.kind, one.what) == ("tensor", value.ref.name, "changed", "data")


def test_models_on_the_command_line(pair, tmp_path: Path, capsys):
    for name, graph in zip(("a", "b"), pair, strict=True):
        save(graph, tmp_path / f"{name}.onnx")
    assert run(capsys, tmp_path / "a.onnx", tmp_path / "a.onnx")[0] == 0
    page = tmp_path / "page.html"
    status, record = run(capsys, tmp_path / "a.onnx", tmp_path / "b.onnx", "-o", page)
    assert status == 1 and record["changes"] and record["costs"][0]["flops"][0] > record["costs"][0]["flops"][1]
    assert "cost of every combination" in page.read_text() and "<html" in page.read_text()
    assert main(["diff", "-q", str(tmp_path / "a.onnx"), str(tmp_path / "none.onnx")]) not in (0, 1)


def test_how_a_weight_is_stored_is_a_difference(pair):
    graph, _ = pair
    other = graph.copy()
    value = next(v for v in other.parameters() if v.rank == 4)
    other.update(value.ref, type=replace(value.type, encoding=Unstructured()))
    found = {c.what: (c.before, c.after) for c in changes(graph, other.freeze()) if c.part == "tensor"}
    assert found["type"] == (str(value.type), f"{value.type} unstructured/0")


def test_bundles(pair, tmp_path: Path, capsys):
    for name, graph in zip(("a", "b"), pair, strict=True):
        build(graph, "host", tmp_path / name, selftest=False)
    assert run(capsys, tmp_path / "a", tmp_path / "a")[0] == 0
    status, record = run(capsys, tmp_path / "a", tmp_path / "b")
    assert status == 1 and {c["kind"] for c in record["changes"]} >= {"changed"}


def test_the_graph_of_a_bundle_does_not_differ_from_it(tmp_path: Path, capsys):
    path = write_release(tmp_path)
    assert main(["compile", str(path), "-o", str(tmp_path / "out"), "-q"]) == 0
    capsys.readouterr()
    for other in (path, tmp_path / "out" / "host" / "merged.onnx"):
        status, record = run(capsys, other, tmp_path / "out")
        assert status == 0 and record["accuracy"] == []


def test_another_metric_is_a_difference_and_told(tmp_path: Path, capsys):
    path = write_release(tmp_path)
    for name, metric in (("one", "accuracy"), ("two", "f1")):
        where = ["-o", str(tmp_path / name), "-q", "--set", f"evaluation.metric.a={metric}"]
        assert main(["compile", str(path), *where]) == 0
    capsys.readouterr()
    status, record = run(capsys, tmp_path / "one", tmp_path / "two")
    told = {m["task"]: m["metric"] for m in record["accuracy"]}
    assert status == 1 and not record["changes"]
    assert told["a"] == "accuracy, then f1" and "then" not in told["b"]


def test_more_combinations_than_rows_are_counted(tmp_path: Path, capsys):
    tasks = "abcdefghi"
    for number in (0, 1):
        networks = {t: plain(t, seed + number, (2,)) for seed, t in enumerate(tasks)}
        save(union(networks), tmp_path / f"{number}.onnx")
    assert main(["diff", "-q", str(tmp_path / "0.onnx"), str(tmp_path / "1.onnx")]) == 1
    assert "cost of every combination (the first 255 of 511; --json prints all)" in capsys.readouterr().out
