"""Releases with variants: one portfolio of what several pipelines make of the same networks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from compiler.bundle_report import comparison, read_measured, read_report
from compiler.codegen.bundle import read_bundle
from compiler.codegen.runtime import open_bundle
from compiler.compile import FailedGates, compile_release
from compiler.config import load_config, parse_config
from compiler.errors import ConfigError, PassError
from compiler.ir.levels import at_level, level_count
from compiler.ir.onnx_in import load
from compiler.ir.text import digest
from compiler.passes.base import Pass
from compiler.pipeline import Pipeline
from compiler.release import load_release, transform
from tests.small_models import RELEASE, write_release
from tests.test_cli import run

SHORT = '["fold-constants", "fold-batch-norm", "remove-dead-code"]'
VARIANTS = RELEASE.replace("[gates]", f"[passes.variants]\nalone = {SHORT}\n[gates]")
"""A second network like the first one."""

PRUNED = VARIANTS.replace('"remove-dead-code"]', '"prune-channels{flops=0.6}"]').replace(
    "max_output_drift = 1e-4", "max_output_drift = 10"
)
"""A second network of fewer channels."""


def test_a_release_with_variants_is_a_portfolio_of_its_pipelines(tmp_path):
    release = load_release(load_config(write_release(tmp_path, PRUNED)))
    told: list[str] = []
    graph, records = transform(release, say=told.append)
    assert level_count(graph) == 2
    for level, specs in enumerate((release.config.passes, release.config.variants["alone"])):
        wanted, _ = Pipeline.parse(specs).run(release.graph)
        found = at_level(graph, level, alone=True)
        assert {s.node.op.name for s in found.sites()} == {s.node.op.name for s in wanted.sites()}
        assert sum(v.size for v in found.parameters()) <= sum(v.size for v in wanted.parameters())
    assert [(r.name, r.variant) for r in records][3:] == [
        ("deduplicate", ""),
        ("fold-constants", "alone"),
        ("fold-batch-norm", "alone"),
        ("prune-channels", "alone"),
        ("deduplicate", ""),
    ]
    assert "level 1, alone: the cheapest for 3 of 3 combinations of tasks" in told
    assert [r.record().get("variant") for r in records][4:6] == ["alone", "alone"]


def test_the_bundle_runs_and_reports_every_level(tmp_path, capsys):
    path = write_release(tmp_path, PRUNED)
    found = compile_release(load_config(path))
    assert {(e.task, e.level) for e in found.evaluation} == {(t, k) for t in "ab" for k in (0, 1)}
    assert [g.where for g in found.gates if g.name == "max_output_drift"] == [
        f"{t} at level {k}" for k in (0, 1) for t in "ab"
    ]
    net = open_bundle(found.folder)
    assert net.portfolio
    graph = load(found.folder / "host" / "merged.onnx")
    assert digest(graph) == digest(found.graph) and level_count(graph) == 2
    np.savez(tmp_path / "x.npz", image=np.ones((1, 3, 8, 8), np.float32))
    outputs = {}
    for level in ("0", "1", "cheapest"):
        status, out, _ = run(
            capsys, "run", found.folder, "--input", tmp_path / "x.npz", "--level", level, "--json", "-q"
        )
        assert status == 0
        outputs[level] = json.loads(out)
    assert outputs["cheapest"] == outputs["1"] != outputs["0"]
    for source in (found.folder, path):
        status, out, _ = run(capsys, "cost", source, "-q")
        assert status == 0 and "its cheapest level" in out and "1*" in out and "0*" not in out
    status, out, _ = run(capsys, "bench", found.folder, "--seconds", "0.01", "-q")
    assert status == 0 and "at its cheapest level" in " ".join(out.split())
    assert out.count("1*") == 3 and "0*" not in out
    status, out, _ = run(capsys, "bench", found.folder, "--seconds", "0.01", "--json", "--save", "-q")
    rows = json.loads(out)["subsets"]
    assert status == 0 and len(rows) == 6 and all(r["cheapest"] is (r["level"] == 1) for r in rows)
    assert len(read_measured(read_bundle(found.folder))[0]["subsets"]) == 6
    for source in (found.folder, path):
        status, out, _ = run(capsys, "explain", "plan", source, "--seconds", "0.01", "--json", "-q")
        steps = json.loads(out)["steps"]
        assert status == 0 and all(step["seconds"] is not None for step in steps)
        assert {task for step in steps for task in step["tasks"]} == {"a@0", "b@0", "a@1", "b@1"}
    status, out, _ = run(capsys, "explain", "plan", found.folder, "--seconds", "0.01", "-q")
    assert status == 0 and "time of one run of all tasks at every level" in out
    status, out, _ = run(capsys, "inspect", found.folder, "-q")
    assert (
        status == 0
        and "a portfolio of 2 networks" in out
        and "of all weights" in out
        and "gives b at level 1" in out
    )


def test_reports_tell_costs_and_metrics_of_the_cheapest_level(portfolio_bundle):
    report = read_report(read_bundle(portfolio_bundle[0]))
    (row,) = comparison([report])
    metrics = {(e["task"], e["level"]): (e["bundle"] or e["graph"])["metric"] for e in report["evaluation"]}
    assert metrics["b", 0] != metrics["b", 1] == row["metric_b"] and row["level"] == 1
    columns = report["combinations"]["columns"]
    last = dict(zip(columns, report["combinations"]["rows"][-1], strict=True))
    assert (last["level"], last["flops"]) == (1, row["flops"])
    nodes = report["graph"]["nodes"]
    assert [n["node"] for n in nodes if n["op"] == "output"] == ["a", "a at level 1", "b", "b at level 1"]
    assert {p.get("variant") for p in report["passes"]} == {None, "alone"}


def test_a_file_with_a_portfolio_has_a_plan(portfolio_bundle, capsys):
    status, out, _ = run(
        capsys, "explain", "plan", portfolio_bundle[0] / "host/merged.onnx", "--seconds", "0", "-q", "--json"
    )
    assert status == 0 and {"a@0", "b@1"} <= {t for step in json.loads(out)["steps"] for t in step["tasks"]}


def test_a_merge_of_a_variant_is_explained(tmp_path, capsys):
    text = VARIANTS.replace(SHORT, SHORT[:-1] + ', "merge{max_drift=0.5,max_loss=0.9}"]')
    status, out, _ = run(capsys, "explain", "merge", write_release(tmp_path, text), "-q", "--json")
    assert status == 0 and json.loads(out)["spec"].startswith("merge{")


def test_gates_hold_for_every_network_of_a_portfolio(tmp_path):
    text = PRUNED.replace("max_output_drift = 10", "max_output_drift = 1e-4")
    with pytest.raises(FailedGates) as caught:
        compile_release(load_config(write_release(tmp_path, text)))
    failed = {g.where for g in caught.value.compiled.gates if g.verdict == "failed"}
    assert failed and all(where.endswith("at level 1") for where in failed)
    assert not (tmp_path / "dist").exists()


def test_a_flops_gate_is_on_what_the_cheapest_call_costs(tmp_path):
    found = compile_release(load_config(write_release(tmp_path, PRUNED)), selftest=False)
    first, second = (rows[-1].cost.flops for rows in found.costs.levels)
    assert second < first
    text = PRUNED.replace("[gates]", f"[gates]\nmax_flops = {second}")
    assert compile_release(load_config(write_release(tmp_path, text)), force=True, selftest=False).gates
    text = PRUNED.replace("[gates]", f"[gates]\nmax_flops = {second - 1}")
    with pytest.raises(FailedGates):
        compile_release(load_config(write_release(tmp_path, text)), force=True, selftest=False)


def test_the_resolved_text_holds_the_variants(tmp_path):
    config = load_config(write_release(tmp_path, VARIANTS))
    (tmp_path / "resolved.toml").write_text(config.resolved())
    again = load_config(tmp_path / "resolved.toml")
    assert dict(again.variants) == dict(config.variants) == {"alone": tuple(json.loads(SHORT))}
    assert load_config(write_release(tmp_path, RELEASE)).variants == {}


def test_a_pipeline_that_cannot_be_read_is_told_before_networks_are(tmp_path):
    text = VARIANTS.replace('"remove-dead-code"]\n[gates]', '"remove-dead-cod"]\n[gates]')
    with pytest.raises(ConfigError, match="remove-dead-cod"):
        load_release(load_config(write_release(tmp_path, text)))
    with pytest.raises(ConfigError, match=r"passes\.variants\.alone"):
        parse_config({"schema": 1, "name": "x", "passes": {"variants": {"alone": 3}}}, tmp_path)


@pytest.mark.parametrize("where", ["pipeline", "alone"])
def test_levels_within_a_portfolio_are_refused_before_the_first_pass(tmp_path, where):
    nest = '"nest{levels=0+0.5,pattern=block4x1,dense=(),min_inputs=4}"]'
    text = VARIANTS.replace('"deduplicate"]' if where == "pipeline" else '"remove-dead-code"]', nest)
    release = load_release(load_config(write_release(tmp_path, text)))
    told: list[str] = []
    with pytest.raises(ConfigError, match=f"passes: {where} would make sparsity levels"):
        transform(release, say=told.append)
    assert not any("pass 1" in line for line in told)


def test_more_networks_than_a_library_holds_are_refused_before_the_first_pass(tmp_path, monkeypatch):
    monkeypatch.setattr("compiler.codegen.variants.MOST_TASKS", 3)
    told: list[str] = []
    with pytest.raises(ConfigError, match="a portfolio of 2 networks for 2 tasks; a library holds at most 3"):
        transform(load_release(load_config(write_release(tmp_path, VARIANTS))), say=told.append)
    assert not any("pass 1" in line for line in told)
    text = VARIANTS.replace('"deduplicate"]', '"extract-tasks{tasks=b}"]').replace(
        SHORT, '["extract-tasks{tasks=b}"]'
    )
    graph, _ = transform(load_release(load_config(write_release(tmp_path, text))))
    assert list(graph.tasks) == ["b"] and level_count(graph) == 2


def test_tasks_that_only_a_variant_would_answer_are_refused_before_the_first_pass(tmp_path):
    text = VARIANTS.replace('"deduplicate"]', '"deduplicate", "extract-tasks{tasks=a}"]')
    release = load_release(load_config(write_release(tmp_path, text)))
    told: list[str] = []
    with pytest.raises(ConfigError, match="the pipeline leaves the tasks a, and alone would answer b; extract"):
        transform(release, say=told.append)
    assert not any("pass 1" in line for line in told)
    fewer = VARIANTS.replace('"remove-dead-code"]\n[gates]', '"extract-tasks{tasks=b}"]\n[gates]')
    assert fewer != VARIANTS
    graph, _ = transform(load_release(load_config(write_release(tmp_path, fewer))))
    assert list(graph.tasks) == ["a", "b"] and graph.tasks["a"].variants == (graph.tasks["a"].outputs,)


@dataclass(frozen=True)
class Cut(Pass):
    """The task a gives what its last layer reads."""

    name: ClassVar[str] = "tests.test_portfolio_release:Cut"
    exact: ClassVar[bool] = False

    def rewrite(self, graph, use):
        last = graph.producer(graph.tasks["a"].outputs[0])
        graph.set_task("a", [graph.operands(last)[0].ref])
        return ()


def test_errors_name_the_variant(tmp_path):
    text = VARIANTS.replace('"remove-dead-code"]\n[gates]', f'"{Cut.name}"]\n[gates]')
    with pytest.raises(ConfigError, match=r"no portfolio:\n  variant alone gives float32\[.*\] for 'a'; the first"):
        transform(load_release(load_config(write_release(tmp_path, text))))
    text = VARIANTS.replace('"remove-dead-code"]\n[gates]', '"prune-channels{flops=1e-9}"]\n[gates]')
    with pytest.raises(PassError) as caught:
        transform(load_release(load_config(write_release(tmp_path, text))))
    assert caught.value.__notes__[-1] == "in variant alone"


def test_stopping_after_a_pass_leaves_variants_out(tmp_path):
    release = load_release(load_config(write_release(tmp_path, VARIANTS)))
    graph, records = transform(release, stop_after="fold-batch-norm")
    assert level_count(graph) == 1 and len(records) == 2


def test_a_frontier_of_variants_is_refused(tmp_path, capsys):
    path = write_release(tmp_path, VARIANTS)
    command = ["frontier", path, "-o", tmp_path / "f", "--budget", "flops", "--pass", "prune-channels"]
    status, _, err = run(capsys, *command)
    assert status == 2 and "passes.variants makes several" in err and not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--level", "cheapest", "--all-combinations"], "compares what one level gives"),
        (["--level", "2"], "the bundle has levels 0 to 1"),
    ],
)
def test_levels_that_cannot_be_run_are_told(portfolio_bundle, capsys, options, reason):
    folder, data = portfolio_bundle
    status, _, err = run(capsys, "run", folder, "--input", data, *options)
    assert status == 2 and reason in err
    with pytest.raises(SystemExit):
        run(capsys, "run", folder, "--input", data, "--level", "cheap")
    assert "cheap: give the number of a level, or cheapest" in capsys.readouterr().err


@pytest.fixture(scope="module")
def portfolio_bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    found = compile_release(load_config(write_release(folder, PRUNED)), selftest=False)
    np.savez(folder / "x.npz", image=np.ones((1, 3, 8, 8), np.float32))
    return found.folder, folder / "x.npz"
