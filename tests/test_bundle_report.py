"""What is told about a bundle: owners of channels, boxes and arrows, pool bytes, files, several in one page."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import shutil

import numpy as np
import pytest

from compiler.bundle_report import COLUMNS, MOST_COMBINATIONS, BundleReport, comparison, read_measured, read_report
from compiler.cli import main
from compiler.codegen.bundle import read_bundle
from compiler.codegen.program import Library, PoolEntry, TaskIO
from compiler.codegen.target import find_target
from compiler.compile import compile_release
from compiler.config import load_config
from compiler.cost.combine import CostReport, Rows, cost_report
from compiler.errors import BundleError
from compiler.page import VENDOR, page
from compiler.report import layer_rows
from compiler.views import drawing, layer_name, ownership, pool_sections
from tests.graphs import Builder
from tests.shared import ROOT
from tests.small_models import write_release

DIGESTS = {
    "chart.umd.min.js": "87364cc2b2a76a6684929e7d6b80b18a897794db38400caff1fcf1791c6925d2",
    "dagre.min.js": "54a503e346f93ca0bb10abe7999587e037262935687aca45eb4e4b0f64bbb578",
    "panzoom.min.js": "3ce354ef7b493efb62a4d4acaaf86fa2d6027eb629857a4e144041de1a112c1e",
}
"""The files of the packages chart.js 4.6.1, @dagrejs/dagre 3.1.3, @panzoom/panzoom 4.6.2, as published."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    return compile_release(load_config(write_release(folder)), output=folder / "out")


@pytest.fixture(scope="module")
def record(compiled):
    return read_report(read_bundle(compiled.folder))


# ---------------------------------------------------------------------- views
@pytest.mark.parametrize(
    ("node", "mask", "wanted"),
    [
        ("a/conv", 1, "conv"),
        ("conv[a+b]", 3, "conv"),
        ("b/conv[b]", 2, "conv"),
        ("conv[a+b]", 1, "conv[a+b]"),  # no label of this node
        ("c/conv", 1, "c/conv"),  # no task
        ("a/", 1, "a/"),
    ],
)
def test_names_of_layers(node, mask, wanted):
    assert layer_name(node, mask, ["a", "b"]) == wanted


def trunk_and_heads():
    """A convolution for both tasks, and a product for each; `b` also reads the input."""
    build = Builder()
    x = build.input("x", 1, 3, 4, 4)
    y = build.apply("Conv", x, build.weight(8, 3, 1, 1))
    flat = build.apply("Flatten", build.apply("Relu", y))
    build.graph.set_task("a", [build.apply("MatMul", flat, build.weight(128, 5))])
    build.graph.set_task("b", [build.apply("MatMul", build.apply("Flatten", x), build.weight(48, 2)), flat])
    return build.graph.freeze()


def test_owners_of_channels():
    assert ownership(trunk_and_heads()) == [
        {"layer": "conv", "op": "Conv", "owners": [[3, 8]]},
        {"layer": "matmul.1", "op": "MatMul", "owners": [[2, 2]]},
        {"layer": "matmul", "op": "MatMul", "owners": [[1, 5]]},
    ]


def test_layers_of_one_name_are_one_row(compiled):
    assert ownership(compiled.graph) == [
        {"layer": "conv", "op": "Conv", "owners": [[2, 4], [1, 4]]},
        {"layer": "head", "op": "Gemm", "owners": [[2, 1], [1, 3]]},
    ]


def test_boxes_and_arrows():
    graph = trunk_and_heads()
    steps = [{"nodes": ["conv", "relu"]}, {"nodes": ["matmul"]}]
    found = drawing(graph, layer_rows(graph), steps)
    names = [n["node"] for n in found["nodes"]]
    arrows = {(names[a], names[b]) for a, b in found["edges"]}
    assert arrows == {
        ("x", "conv"),
        ("conv", "relu"),
        ("relu", "flatten"),
        ("flatten", "matmul"),
        ("x", "flatten.1"),
        ("flatten.1", "matmul.1"),
        ("matmul", "a"),
        ("matmul.1", "b/matmul.1:0"),
        ("flatten", "b/flatten:0"),
    }
    by_name = {n["node"]: n for n in found["nodes"]}
    assert [by_name[n]["mask"] for n in ("x", "relu", "matmul", "a", "b/flatten:0")] == [3, 3, 1, 1, 2]
    assert [by_name[n]["step"] for n in ("relu", "matmul", "flatten")] == [0, 1, None]
    assert by_name["conv"]["macs"] == 8 * 3 * 16


def test_bytes_of_the_pool_by_section_and_owner():
    graph = trunk_and_heads()
    (weight,) = (v.ref.name for v in graph.parameters() if v.shape == (8, 3, 1, 1))
    (head,) = (v.ref.name for v in graph.parameters() if v.shape == (128, 5))
    (other,) = (v.ref.name for v in graph.parameters() if v.shape == (48, 2))
    table = (
        PoolEntry(weight, 0, 96, "conv8"),
        PoolEntry(head, 128, 100, "panel"),
        PoolEntry(other, 128, 100, "panel"),
        PoolEntry("table", 256, 10, "panel"),
    )
    assert pool_sections(graph, table, 320) == [
        {"section": "padding", "owners": [[0, 114]]},
        {"section": "panel", "owners": [[3, 100], [0, 10]]},
        {"section": "conv8", "owners": [[3, 96]]},
    ]


def test_sections_of_a_bundle_fill_its_pool(record):
    sizes = [size for section in record["pool"]["sections"] for _, size in section["owners"]]
    assert sum(sizes) == record["pool"]["bytes"]
    assert {s["section"] for s in record["pool"]["sections"]} >= {"bias", "padding"}


# ---------------------------------------------------------------------- one object, several files
def test_the_files_tell_the_same(compiled, record):
    folder = compiled.folder / "host" / "reports"
    combos = list(csv.DictReader(io.StringIO((folder / "combos.csv").read_text())))
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in record["combinations"]["rows"]]
    assert [r["tasks"] for r in combos] == ["a", "b", "a+b"]
    assert [r["mask"] for r in rows] == [1, 2, 3]
    for name in ("flops", "separate_flops", "workspace_bytes"):
        assert [int(r[name]) for r in combos] == [r[name] for r in rows]
    layers = list(csv.DictReader(io.StringIO((folder / "layers.csv").read_text())))
    drawn = [n for n in record["graph"]["nodes"] if n["op"] not in ("input", "output")]
    assert [r["node"] for r in layers] == [n["node"] for n in drawn] == [str(n.ref) for n in compiled.graph.nodes()]
    told = sum(float(r["predicted_seconds"] or 0) for r in layers)
    assert told == pytest.approx(sum(s["predicted"] or 0 for s in record["steps"]))
    assert told > 0
    text = (folder / "report.html").read_text()
    inside = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert inside is not None
    assert json.loads(inside[1]) == {"reports": [record]}


def test_a_page_loads_nothing(compiled):
    text = (compiled.folder / "host" / "reports" / "report.html").read_text()
    outside = text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"<(?:link|img|iframe)|\bsrc=|sourceMappingURL", outside)
    assert "default-src 'none'" in text


def test_names_from_models_are_never_markup(record):
    name = "</script><script>alert(1)</script><!--"
    text = page([{**record, "name": name, "tasks": [name, "b"]}])
    assert name not in text
    assert text.count("<script") == len(re.findall(r"</script>", text)) == 1 + len(VENDOR) + 5
    assert "&lt;/script&gt;" in text.partition("</title>")[0]


def test_libraries_are_the_published_files():
    folder = ROOT / "compiler" / "page" / "vendor"
    assert {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.js")} == DIGESTS
    licences = (folder / "LICENSES.txt").read_text()
    for name in ("Chart.js 4.6.1", "dagre 3.1.3", "Panzoom 4.6.2"):
        assert name in licences
    assert licences.count("Permission is hereby granted, free of charge") == 3


def test_more_combinations_than_a_page_holds():
    count = 13
    names = [f"t{i}" for i in range(count)]
    table = np.arange(6 << count, dtype=np.int64).reshape(1 << count, 6)
    library = Library("many", (), tuple(TaskIO(n, ()) for n in names), (), None, (), b"", (), b"")
    costs = CostReport(Rows(names, table, {}))
    found = BundleReport(None, library, find_target("host"), "", costs)._combinations()
    assert found["total"] == 2**count - 1
    masks = [row[0] for row in found["rows"]]
    assert len(masks) == MOST_COMBINATIONS == len(set(masks))
    assert masks[:count] == [1 << i for i in range(count)]
    assert masks[-1] == 2**count - 1


def test_every_level_has_its_rows():
    names = ["a", "b"]
    library = Library("two", (), tuple(TaskIO(n, ()) for n in names), (), None, (), b"", (), b"")
    dense, sparse = (Rows(names, np.full((4, 6), n, np.int64), {}, level) for level, n in enumerate((8, 4)))
    found = BundleReport(
        None, library, find_target("host"), "", CostReport(dense, dense, (sparse,))
    )._combinations()
    assert found["total"] == 6
    keys = [COLUMNS.index(c) for c in ("mask", "level", "macs", "separate_flops")]
    rows = [tuple(row[k] for k in keys) for row in found["rows"]]
    assert rows == [(m, level, n, 8) for level, n in enumerate((8, 4)) for m in (1, 2, 3)]


def test_a_graph_without_release_has_a_report_too(tmp_path):
    from compiler.compile import build

    graph = trunk_and_heads()
    found = read_report(build(graph, output=tmp_path / "out", selftest=False, name="trunk"))
    assert found["tasks"] == ["a", "b"]
    assert found["gates"] == found["evaluation"] == found["passes"] == []
    assert [r[COLUMNS.index("flops")] for r in found["combinations"]["rows"]] == [
        r.cost.flops for r in cost_report(graph).combinations
    ]


# ---------------------------------------------------------------------- reading back
def test_times_of_bench_are_shown(compiled, tmp_path, capsys):
    assert main(["bench", str(compiled.folder), "--seconds", "0.01", "--save", "-q"]) == 0
    assert "this-machine-1-thread.json" in capsys.readouterr().out
    (times,) = read_measured(read_bundle(compiled.folder))
    assert [s["tasks"] for s in times["subsets"]] == ["a", "b", "a+b"]
    out = tmp_path / "both.html"
    assert main(["report", str(compiled.folder), str(compiled.folder), "-o", str(out), "--json", "-q"]) == 0
    rows = json.loads(capsys.readouterr().out)["bundles"]
    assert [r["target"] for r in rows] == ["host", "host"]
    assert rows[0]["metric_a"] == compiled.evaluation[0].final.metric
    assert '"where":"this machine, 1 thread"' in out.read_text()
    assert main(["report", str(compiled.folder), "-o", str(out), "-q"]) == 2
    assert "exists" in capsys.readouterr().err
    broken = shutil.copytree(compiled.folder, tmp_path / "broken")
    (file,) = (broken / "host" / "reports" / "measured").iterdir()
    file.write_text('{"subsets": [1]}')
    with pytest.raises(BundleError, match="does not hold times"):
        read_measured(read_bundle(broken))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r | {"schema": 99}, "schema 99"),
        (lambda r: r | {"build_id": "another"}, "another build"),
        (lambda r: {k: v for k, v in r.items() if k != "steps"}, "lacks steps"),
        (lambda r: [r], "schema None"),
    ],
)
def test_reports_of_another_kind_are_refused(compiled, record, change, message):
    path = compiled.folder / "host" / "reports" / "report.json"
    before = path.read_text()
    path.write_text(json.dumps(change(record)))
    try:
        with pytest.raises(BundleError, match=message):
            read_report(read_bundle(compiled.folder))
    finally:
        path.write_text(before)


@pytest.mark.parametrize(("level", "metric"), [({}, 0.9), ({"level": 0}, 0.9), ({"level": 1}, 0.8)])
def test_bundles_are_compared_at_the_level_of_their_costs(level, metric) -> None:
    """Reports of earlier versions name none."""
    rows = [{"task": "a", "level": k, "bundle": None, "graph": {"metric": 0.9 - k / 10}} for k in range(3)]
    record = {"name": "n", "target": "t", "tasks": ["a"], "evaluation": rows, "pool": {"bytes": 1}}
    (found,) = comparison([{**record, "summary": [{"stage": "compiled", **level, "flops": 5}]}])
    assert found["metric_a"] == pytest.approx(metric)
    assert (found["level"], found["flops"]) == (level.get("level", 0), 5)


def test_a_layer_is_explained_from_the_records(compiled, capsys):
    path = str(compiled.folder)
    assert main(["explain", "layer", path, "conv", "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {n["node"]: n["kernel"]["choice"].partition(" ")[0] for n in found["nodes"]} == {
        "a/conv": "planar",
        "b/conv": "planar",
    }
    assert main(["explain", "layer", path, "a/head", "-q"]) == 0
    assert "a/head" in capsys.readouterr().out
    assert main(["explain", "layer", path, "b/cnov", "-q"]) == 2
    assert "did you mean b/conv" in capsys.readouterr().err


def test_codes_are_explained(capsys):
    assert main(["explain", "code", "4", "--json", "-q"]) == 0
    means = [m["means"] for m in json.loads(capsys.readouterr().out)["meanings"]]
    assert means[0] == "level not in this bundle"
    assert any("outside its folder" in m for m in means[1:])
    assert main(["explain", "code", "1", "-q"]) == 0
    shown = capsys.readouterr().out
    assert "gate is not met" in shown and "What was compared differs" in shown
    assert main(["explain", "code", "70", "-q"]) == 0
    assert "--debug" in capsys.readouterr().out  # not only a broken rule of the graph
    assert main(["explain", "code", "99", "-q"]) == 2
    assert "neither a return code" in capsys.readouterr().err
