from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compiler.codegen.bundle import read_index
from compiler.codegen.emulate import run_selftest
from compiler.codegen.generate import generate
from compiler.codegen.runtime import open_bundle
from compiler.codegen.target import find_target
from compiler.compile import FailedGates, build, compile_release, golden_of, tolerances, write_library
from compiler.config import load_config
from compiler.errors import (
    CompilerError,
    ConfigError,
    TargetError,
    UnsafeInputError,
    UnsupportedModelError,
)
from compiler.gates import check_costs, check_tasks
from compiler.ir.onnx_in import load
from compiler.ir.onnx_out import save
from compiler.ir.reference import difference, evaluate
from compiler.ir.types import DType, TensorType
from compiler.ir.union import union
from compiler.measure import evaluate_release
from compiler.passes.extract import ExtractTasks
from compiler.release import bound_shapes, labels_of, load_release, transform
from compiler.report import combination_rows
from compiler.settings import TaskConfig
from tests.graphs import Builder, half_network
from tests.shared import ROOT
from tests.small_models import RELEASE, model, network, write_release


def compiled(folder, text=RELEASE, **options):
    return compile_release(load_config(write_release(folder, text)), **options)


def test_a_release_becomes_a_bundle_that_gives_the_originals_outputs(tmp_path):
    found = compiled(tmp_path)
    assert found.folder == tmp_path / "dist" / "pair"
    assert list(read_index(found.folder)["targets"]) == ["host"]
    opened = open_bundle(found.folder)
    x = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    a = evaluate(load(tmp_path / "a.onnx"), {"image": x})["scores"]
    b = evaluate(load(tmp_path / "b.onnx"), {"pixels": 2 * x})["scores"]
    outputs = opened.run({"image": x})
    assert difference(outputs["a"], a) < 1e-5
    assert difference(outputs["b"], b) < 1e-5
    assert {e.task: round(e.final.drift, 3) for e in found.evaluation} == {"a": 0.0, "b": 0.0}
    assert all(g.verdict == "passed" for g in found.gates)
    for name in ("combos.csv", "layers.csv", "summary.csv", "verify.json", "report.json", "report.html"):
        assert (found.folder / "host" / "reports" / name).stat().st_size > 100
    manifest = found.builds[0].bundle.manifest
    assert {"a/a.onnx", "b/b.onnx", "data/calibration"} <= set(manifest["inputs"])
    assert [p["spec"] for p in manifest["passes"]] == list(found.release.config.passes)
    assert manifest["subsets"][-1]["flops"] == found.costs.combinations[-1].cost.flops


def test_adapters_fold_into_the_first_layer(tmp_path):
    release = load_release(load_config(write_release(tmp_path)))
    graph, _ = transform(release)
    assert [n.op.name for n in release.graph.nodes()].count("Mul") == 1
    assert [n.op.name for n in graph.nodes()].count("Mul") == 0


def test_networks_that_were_extracted_are_evaluated_as_members_of_another_release(tmp_path):
    """Their outputs are called otherwise than the labels of their tasks; one file holds two tasks."""
    graph, _ = transform(load_release(load_config(write_release(tmp_path))))
    save(ExtractTasks(tasks=("a",))(graph), tmp_path / "one.onnx")
    save(graph, tmp_path / "both.onnx")
    text = RELEASE.partition("[tasks.a]")[0] + (
        '[tasks.alone]\nmodel = "one.onnx"\n[tasks.pair]\nmodel = "both.onnx"\n[calibration]\ndata = "data.npz"\n'
    )
    (tmp_path / "again.toml").write_text(text)
    release = load_release(load_config(tmp_path / "again.toml"))
    rows = evaluate_release(release, release.graph)
    assert [r.task for r in rows] == ["alone", "pair_a", "pair_b"]
    assert max(r.graph.drift for r in rows) < 1e-5


@pytest.mark.parametrize(
    "more",
    [
        "[gates]\nmax_output_drift = 0.1\n",
        '[gates]\nmax_flops = { "pair" = "1M" }\n',
        '[subsets]\ninclude = ["pair"]\n',
        '[evaluation]\ndata = "data.npz"\nmetric = { pair = "mae" }\n',
    ],
)
def test_what_names_a_task_cannot_name_a_file_of_several(tmp_path, more):
    save(load_release(load_config(write_release(tmp_path))).graph, tmp_path / "both.onnx")
    text = RELEASE.partition("[tasks.a]")[0] + f'[tasks.pair]\nmodel = "both.onnx"\n{more}'
    (tmp_path / "again.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"task 'pair': both.onnx holds the tasks a, b.*extract"):
        load_release(load_config(tmp_path / "again.toml"))


def test_names_that_no_library_can_have_are_refused_before_any_pass_runs(tmp_path):
    said = []
    with pytest.raises(ConfigError, match=r"name 'math': programs would read math\.h"):
        compiled(tmp_path, RELEASE.replace('"pair"', '"math"'), say=said.append)
    assert not any("pass 1" in line for line in said)


@pytest.mark.parametrize("task", ["all", "workspace_b", "cpu_load"])
def test_tasks_that_are_called_like_macros_of_the_header_are_refused_before_any_pass_runs(tmp_path, task):
    text, said = RELEASE.replace("[tasks.a]", f"[tasks.{task}]").replace('a = "accuracy", ', ""), list[str]()
    with pytest.raises(ConfigError, match=f"macros for something else that are called like the tasks {task};"):
        compiled(tmp_path, text, say=said.append)
    assert not any("pass 1" in line for line in said)
    with pytest.raises(ConfigError, match=f"called like the tasks {task};"):
        build(union({t: load(tmp_path / "a.onnx") for t in (task, "b")}, name="net"), output=tmp_path / "built")


def test_more_tasks_than_tables_have_are_refused_before_any_pass_runs(tmp_path):
    text = RELEASE.partition("[tasks.a]")[0] + "".join(f'[tasks.t{i}]\nmodel = "a.onnx"\n' for i in range(17))
    said = []
    with pytest.raises(ConfigError, match=r"17 tasks have 2\^17 combinations.*`compiler.build` compiles more"):
        compiled(tmp_path, text, say=said.append)
    assert not any("pass 1" in line for line in said)


def test_labels_of_other_data_are_refused(tmp_path):
    path = write_release(tmp_path)
    data = dict(np.load(tmp_path / "data.npz"))
    np.savez(tmp_path / "data.npz", **{**data, "b": np.repeat(data["b"], 3, axis=0)[:30]})
    release = load_release(load_config(path))
    with pytest.raises(ConfigError, match="evaluation data hold 12 samples and other numbers of labels: 'b' 30"):
        evaluate_release(release, release.graph)
    with pytest.raises(ConfigError, match="calibration data hold 12 samples and other numbers of labels: 'b' 30"):
        labels_of(release.config, release.graph)


def test_a_single_number_is_no_label(tmp_path):
    path = write_release(tmp_path)
    np.savez(tmp_path / "data.npz", **{**np.load(tmp_path / "data.npz"), "a": np.array(1)})
    release = load_release(load_config(path))
    for asked in (
        lambda: evaluate_release(release, release.graph),
        lambda: labels_of(release.config, release.graph),
    ):
        with pytest.raises(ConfigError, match="hold a single number as 'a'"):
            asked()


def test_an_input_is_no_label_of_a_task_that_has_its_name(tmp_path):
    text = RELEASE.replace("[tasks.a]", "[tasks.image]").replace('a = "accuracy"', 'image = "mae"')
    release = load_release(load_config(write_release(tmp_path, text)))
    with pytest.raises(ConfigError, match="cannot hold labels of task 'image': the array of this name is an input"):
        evaluate_release(release, release.graph)
    assert list(labels_of(release.config, release.graph)) == ["b"]


def test_an_adapter_feeds_the_inputs_that_are_bound_and_no_others(tmp_path):
    add = [helper.make_node("Mul", ["pixels", "factor"], ["y"])]
    shape = (1, 3, 8, 8)
    onnx.save(model(add, {"pixels": shape, "factor": shape}, {"y": shape}), tmp_path / "two.onnx")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", **{n: rng.normal(size=(4, *shape[1:])) for n in ("image", "factor")})
    (tmp_path / "two.toml").write_text(
        """schema = 1
        name = "two"
        [input.image]
        shape = [1, 3, 8, 8]
        [input.factor]
        shape = [1, 3, 8, 8]
        [tasks.t]
        model = "two.onnx"
        inputs = { pixels = "image" }
        adapter = [{ scale = 2.0, offset = 1.0 }]
        [calibration]
        data = "d.npz"
        """
    )
    release = load_release(load_config(tmp_path / "two.toml"))
    assert max(r.graph.drift for r in evaluate_release(release, release.graph)) < 1e-6


def test_every_level_is_evaluated_and_gates_hold_the_densest(tmp_path):
    nested = '"deduplicate", "nest{levels=0+0.9,dense=(),min_inputs=3,pattern=block4x1}"'
    release = load_release(load_config(write_release(tmp_path, RELEASE.replace('"deduplicate"', nested))))
    graph, _ = transform(release)
    rows = evaluate_release(release, graph)
    assert [(r.task, r.level) for r in rows] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert all((r.graph.drift > 0.01) == (r.level == 1) for r in rows)
    assert all(g.verdict == "passed" for g in check_tasks(release.config.gates, rows))
    table = combination_rows(release.costs(graph), rows)
    assert [r["level"] for r in table] == [0, 0, 0, 1, 1, 1]
    assert all((r["drift_a"] > 0.01) == (r["level"] == 1) for r in table if r["drift_a"] is not None)
    assert table[5]["macs"] < table[2]["macs"]


def test_two_targets_share_a_folder_and_force_replaces_one(tmp_path):
    config = load_config(write_release(tmp_path))
    compile_release(config, selftest=False)
    with pytest.raises(ConfigError, match="already holds host"):
        compile_release(config, targets=["x86-64-v3", "host"])
    compile_release(config, targets="x86-64-v3", selftest=False)
    compile_release(config, targets=["host"], force=True, selftest=False)
    folder = tmp_path / "dist" / "pair"
    assert sorted(read_index(folder)["targets"]) == ["host", "x86-64-v3"]
    assert sorted(p.name for p in folder.iterdir()) == ["host", "index.json", "x86-64-v3"]
    assert sorted(p.name for p in folder.parent.iterdir()) == ["pair"]


def test_failed_gates_come_all_at_once_and_write_nothing(tmp_path):
    text = RELEASE + 'max_library = 10\nmax_workspace = 1\nmax_flops = { "a" = 5, "a+b" = "1G" }\n'
    with pytest.raises(FailedGates) as caught:
        compiled(tmp_path, text)
    verdicts = {(g.name, g.where): g.verdict for g in caught.value.compiled.gates}
    assert verdicts[("max_library", "host")] == "failed"
    assert verdicts[("max_workspace", "host")] == "failed"
    assert verdicts[("max_flops", "a")] == "failed"
    assert verdicts[("max_flops", "a+b")] == "passed"
    assert verdicts[("max_output_drift", "a")] == "passed"
    assert not (tmp_path / "dist").exists()
    record = caught.value.compiled.record()
    assert record["gates"] and record["folder"] is None


def test_workspace_is_that_of_the_dearest_call_listed_or_not(tmp_path):
    text = RELEASE + 'max_workspace = "1G"\n[subsets]\ninclude = ["b"]\n'
    found = compiled(tmp_path, text, selftest=False)
    network, (built,) = open_bundle(found.folder), found.builds
    assert built.workspace == {frozenset("b"): network.workspace_bytes(["b"])}
    (gate,) = (g for g in found.gates if g.name == "max_workspace")
    assert gate.value == built.workspace_max == max(network.workspace_bytes(t) for t in (["a"], ["b"], None))
    assert gate.value > built.workspace[frozenset("b")]


def test_gates_without_data_are_skipped_never_passed(tmp_path):
    text = RELEASE.split("[calibration]")[0] + "[gates]\nmax_output_drift = 1e-4\n"
    found = compiled(tmp_path, text, selftest=False)
    assert {g.verdict for g in found.gates} == {"skipped"}


def test_gates_of_tasks_that_the_pipeline_leaves_out_say_so(tmp_path):
    path = write_release(tmp_path, RELEASE + "max_accuracy_drop = 0.1\nmax_flops = 1\n")
    release = load_release(load_config(path, ['passes.pipeline=["extract-tasks{tasks=a}"]']))
    graph, _ = transform(release)
    found = [*check_tasks(release.config.gates, evaluate_release(release, graph))]
    found += check_costs(release.config.gates, release.costs(graph))
    skipped = [g for g in found if g.verdict == "skipped"]
    assert [(g.name, g.where) for g in skipped] == [
        ("max_accuracy_drop", "b"),
        ("max_output_drift", "b"),
        ("max_flops", "a+b"),
    ]
    assert all("the pipeline" in g.reason for g in skipped)


@pytest.mark.parametrize("include", ['["a", "a+b"]', '"every"'])
def test_subsets_of_tasks_that_the_pipeline_leaves_out_are_refused_before_it_runs(tmp_path, include):
    path = write_release(tmp_path)
    overrides = ['passes.pipeline=["extract-tasks{tasks=a}"]', f"subsets.include={include}"]
    release = load_release(load_config(path, overrides))
    said: list[str] = []
    message = "subsets.include: the pipeline leaves the tasks a, and combinations with b are listed"
    with pytest.raises(ConfigError, match=message):
        transform(release, say=said.append)
    assert not any("pass" in line for line in said)
    transform(release, stop_after="extract-tasks")  # of which nothing is built
    transform(load_release(load_config(path, [overrides[0], 'subsets.include=["a"]'])))


def test_without_a_linker_the_sources_are_there_and_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("compiler.codegen.link.find_toolchain", lambda target: None)
    with pytest.raises(TargetError, match=r"LINK\.txt.*--allow-unlinked"):
        compiled(tmp_path, targets=["aarch64-cortex-a72"])
    folder = tmp_path / "dist" / "pair" / "aarch64-cortex-a72"
    for name in ("LINK.txt", "libpair.a", "pair.h", "src/pair_driver.c"):
        assert (folder / name).exists()
    again = compiled(tmp_path, targets=["aarch64-cortex-a72"], force=True, allow_unlinked=True)
    assert again.unlinked == ("aarch64-cortex-a72",)


def test_every_model_is_tried_before_the_error(tmp_path):
    config = load_config(write_release(tmp_path))
    (tmp_path / "a.onnx").write_bytes(b"no")
    (tmp_path / "b.onnx").unlink()
    with pytest.raises(CompilerError, match=r"(?s)a\.onnx: not a readable.*b\.onnx: cannot be opened"):
        load_release(config)


def test_free_axes_are_bound_by_the_shared_input(tmp_path):
    nodes = [onnx.helper.make_node("Relu", ["pixels"], ["y"])]
    onnx.save(model(nodes, {"pixels": ("N", 3, "H", 8)}, {"y": ("N", 3, "H", 8)}), tmp_path / "c.onnx")
    config = load_config(write_release(tmp_path, RELEASE.replace('"b.onnx"', '"c.onnx"')))
    task = config.tasks["b"]
    assert bound_shapes(tmp_path / "c.onnx", task, config.inputs, False) == {}
    direct = load_config(
        write_release(
            tmp_path, RELEASE.replace('"b.onnx"', '"c.onnx"').replace("adapter = [{ scale = 2.0 }]\n", "")
        )
    )
    shapes = bound_shapes(tmp_path / "c.onnx", direct.tasks["b"], direct.inputs, False)
    assert shapes == {"pixels": (1, 3, 8, 8)}
    assert load_release(direct).members["b"].inputs[0].shape == (1, 3, 8, 8)


def test_free_axes_beside_an_adapter_are_bound_by_the_shared_input(tmp_path):
    shape = ("n", 3, 8, 8)
    nodes = [helper.make_node("Mul", ["pixels", "factor"], ["y"])]
    onnx.save(model(nodes, {"pixels": shape, "factor": shape}, {"y": shape}), tmp_path / "two.onnx")
    shared = {n: TensorType(DType.FLOAT32, (1, 3, 8, 8)) for n in ("image", "factor")}
    task = TaskConfig("two.onnx", {"pixels": "image"}, adapter=({"scale": 2.0},))
    assert bound_shapes(tmp_path / "two.onnx", task, shared, False) == {"factor": (1, 3, 8, 8)}


def test_build_from_python(tmp_path):
    onnx.save(network("x", 3), tmp_path / "m.onnx")
    graph = load(tmp_path / "m.onnx")
    bundle = build(graph, "host", tmp_path / "out")
    assert bundle.path == tmp_path / "out" / "host"
    assert open_bundle(bundle.path).tasks == ("m",)


def test_golden_inputs_need_finite_outputs():
    net = Builder()
    x = net.input("x", 4)
    net.task("t", net.apply("Log", net.apply("Sub", x, x)))
    net.task("u", net.apply("Relu", x))
    with pytest.raises(UnsupportedModelError, match="what t gives is infinite or no number"):
        golden_of(net.done(), None, 0)
    feeds = [{"x": np.ones(4, np.float32)}] * 2
    with pytest.raises(UnsupportedModelError, match="on each of the first 2 calibration inputs"):
        golden_of(net.done(), feeds, 0)


def with_number(folder: Path, name: str, value: float) -> None:
    """Replace one number of a weight of the release's second network."""
    made = onnx.load(folder / "b.onnx")
    weight = next(w for w in made.graph.initializer if w.name == name)
    array = numpy_helper.to_array(weight).copy()
    array.flat[1] = value
    weight.CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(made, folder / "b.onnx")


def test_weights_that_are_no_numbers_are_named(tmp_path):
    config = load_config(write_release(tmp_path))
    with_number(tmp_path, "w", np.nan)
    with pytest.raises(UnsafeInputError, match=r"task 'b': b.onnx gives NaN.*\n  'w' holds 1 NaN of 108"):
        load_release(config)
    with_number(tmp_path, "w", np.inf)  # as a mask has them; what it makes of the outputs is measured
    load_release(config)


def digests(folder: Path) -> dict[str, str]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_two_builds_in_other_folders_and_hash_seeds_give_the_same_bytes(tmp_path):
    found = []
    for seed in ("1", "2"):
        folder = tmp_path / f"somewhere{seed * 3}"
        folder.mkdir()
        write_release(folder)
        command = [sys.executable, "-m", "compiler", "compile", "release.toml", "-o", "out", "-q"]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        found.append(digests(folder / "out"))
    assert found[0] == found[1]
    assert {"host/libpair.so", "host/reports/report.html", "host/reports/report.json"} <= set(found[0])


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ([], "no golden inputs in feeds"),
        (iter([]), "no golden inputs in feeds"),
        ({"image": np.ones((1, 3, 8, 8))}, r"one after another, each by name; write \[{name: array}\]"),
        ([{"picture": np.ones((1, 3, 8, 8))}], "a golden input lacks 'image'; it has picture"),
        ([{"image": np.ones((1, 3, 8, 9))}], r"'image' has shape \(1, 3, 8, 9\), expected \(1, 3, 8, 8\)"),
        ([{"image": np.full((1, 3, 8, 8), "x")}], "data for input 'image' are <U1"),
    ],
)
def test_golden_inputs_that_do_not_fit_are_refused(tmp_path, feeds, message):
    write_release(tmp_path)
    with pytest.raises(ConfigError, match=message):
        build(load(tmp_path / "a.onnx"), output=tmp_path / "out", feeds=feeds)
    assert not (tmp_path / "out").exists()


def test_subsets_and_golden_inputs_may_be_of_any_kind_that_holds_them(tmp_path):
    write_release(tmp_path)
    graph = union({t: load(tmp_path / f"{t}.onnx") for t in "ab"})
    feed = {v.ref.name: np.ones(v.shape, np.float32) for v in graph.inputs}
    for number, subsets in enumerate((iter([{"a"}, ("a", "b")]), ["a", ["b", "a"]])):
        bundle = build(
            graph, output=tmp_path / str(number), subsets=subsets, feeds=iter([feed]), selftest=False, name="pair"
        )
        assert "pair_run_a__b" in (bundle.path / "pair.h").read_text() and bundle.manifest["golden"]["samples"] == 1
    with pytest.raises(ConfigError, match=r"unknown tasks a\+b; the graph has a, b"):
        build(graph, output=tmp_path / "out", subsets=["a+b"])


def test_golden_inputs_take_the_type_of_the_input(tmp_path):
    write_release(tmp_path)
    (sample,) = golden_of(load(tmp_path / "a.onnx"), [{"image": np.ones((1, 3, 8, 8))}], 0).samples
    assert sample.inputs[0].dtype == np.float32


def test_float16_is_held_to_its_own_rounding(tmp_path):
    """By output: what is float32 all the way keeps the limit of float32, beside it in one library."""
    graph = half_network()
    bundle = build(graph, "host", tmp_path / "half")  # raises where the self-test fails
    found = run_selftest(bundle, find_target("host"), quick=True)
    assert float(re.search(r"largest error (\S+) of scale", found.output)[1]) > 1e-4
    assert tolerances(graph) == (16 * 2**-10, 16 * 2**-10, 1e-4)
    assert bundle.manifest["golden"]["tolerance"] == 16 * 2**-10


@pytest.mark.parametrize(("task", "status"), [("half", "passed"), ("widened", "passed"), ("single", "failed")])
def test_the_selftest_has_a_limit_per_output(tmp_path, task, status):
    """References that are off by a thousandth of their scale."""
    graph = half_network()
    golden = golden_of(graph, None, 0)
    at = list(graph.tasks).index(task)

    def moved(sample):
        outputs = list(sample.outputs)
        outputs[at] = (outputs[at] + 1e-3 * np.abs(outputs[at]).max()).astype(outputs[at].dtype)
        return replace(sample, outputs=tuple(outputs))

    wrong = replace(golden, samples=tuple(map(moved, golden.samples)))
    target = find_target("host")
    bundle = write_library(generate(graph, target), target, tmp_path, wrong, graph)
    found = run_selftest(bundle, target)
    assert found.status == status
    assert ("limit 0.0001" in found.output) == (status == "failed")


@pytest.mark.parametrize("what", ["order", "comparison", "cut"])
def test_the_selftest_allows_near_ties_of_other_decisions(tmp_path, what):
    """Scores whose weights are apart by a bit or two of rounding."""
    rng, net = np.random.default_rng(0), Builder("near")
    x, one = net.input("x", 1, 256), rng.standard_normal((256, 64)).astype(np.float32)
    two = (one * (1 + 1e-7 * rng.standard_normal(one.shape))).astype(np.float32)
    if what == "order":
        scores = net.apply("MatMul", x, net.const(np.concatenate([one, two], 1)))
        result = net.apply("TopK", scores, net.const(np.array([20])), results=2, axis=1, largest=1, sorted=1)[1]
    elif what == "comparison":
        result = net.apply("Greater", *(net.apply("MatMul", x, net.const(w)) for w in (one, two)))
    else:
        scores = net.apply("Div", net.apply("MatMul", x, net.const(one)), net.const(np.array(1e-3, np.float32)))
        result = net.apply("Cast", scores, to=6)
    net.task("t", result)
    build(net.done(), "host", tmp_path / "out")


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.FLOAT32])
@pytest.mark.parametrize(("off", "status"), [(0, "passed"), (1, "passed"), (2, "failed")])
def test_the_selftest_lets_as_many_decisions_differ_as_are_close(tmp_path, dtype, off, status):
    """One of eight pixels has two equal scores."""
    net = Builder("segment")
    scores = net.apply("Relu", net.input("x", 1, 3, 8, dtype=dtype))
    net.task("t", net.apply("ArgMax", scores, axis=1, keepdims=0))
    graph, feed = net.done(), np.arange(24, dtype=dtype.numpy).reshape(1, 3, 8)
    feed[0, 1, 0] = feed[0, 2, 0]
    golden = golden_of(graph, [{"x": feed}], 0)
    assert golden.undecided == (1 / 8,)
    (sample,) = golden.samples
    moved = sample.outputs[0].copy()
    moved[0, :off] = 0
    wrong, target = replace(golden, samples=(replace(sample, outputs=(moved,)),)), find_target("host")
    found = run_selftest(write_library(generate(graph, target), target, tmp_path, wrong, graph), target)
    assert found.status == status
    assert ("error 0.25 of elements, limit 0.125" in found.output) == (status == "failed")
