from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compiler.arguments import parser
from compiler.cli import main
from compiler.ir.onnx_in import load
from compiler.tables import progress
from tests.small_models import RELEASE, model, network, write_release

COMMANDS = [
    *"init compile cost inspect diff extract prune".split(),
    *"explain frontier evaluate verify run bench report targets passes ops".split(),
]


def run(capsys, *arguments):
    """(status, stdout, stderr)"""
    status = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("name,shown", [("a\nb", r"a\x0ab"), ("\x1b[31mred", r"\x1b[31mred")])
def test_names_from_models_move_no_cursor(tmp_path, capsys, name, shown):
    relu = helper.make_node("Relu", [name], ["y"])
    onnx.save(model([relu], {name: (1, 4)}, {"y": (1, 4)}), tmp_path / "m.onnx")
    _, out, _ = run(capsys, "inspect", tmp_path / "m.onnx")
    assert name not in out
    assert out.count(shown) >= 2  # among the ports and in the outline


@pytest.mark.parametrize("name", ["head:key:0", "ends in \\", "[bold]b[/bold]", ":x:[red]\\"])
def test_names_from_models_are_shown_letter_by_letter(tmp_path, capsys, name):
    relu = helper.make_node("Relu", [name], ["y"])
    onnx.save(model([relu], {name: (1, 4)}, {"y": (1, 4)}), tmp_path / "m.onnx")
    _, out, _ = run(capsys, "inspect", tmp_path / "m.onnx")
    assert f"input   {name}  " in out


@pytest.mark.parametrize("kind", ["plain", "bar"])
def test_stages_are_shown_letter_by_letter(capsys, kind):
    shown = progress(kind)
    try:
        shown("import head:key:0 [bold] \\")
        shown.count("layers of :x: \\", 1, 2)
    finally:
        shown.close()
    err = capsys.readouterr().err
    assert "import head:key:0 [bold] \\\n" in err


def test_names_that_the_encoding_of_stdout_lacks_are_escaped(tmp_path):
    relu = helper.make_node("Relu", ["é名"], ["y"])
    onnx.save(model([relu], {"é名": (1, 4)}, {"y": (1, 4)}), tmp_path / "m.onnx")
    command = [sys.executable, "-m", "compiler", "inspect", "-q", str(tmp_path / "m.onnx")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert r"input   \u00e9\u540d" in text
    text = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, check=True).stdout
    assert json.loads(text)["inputs"][0]["name"] == "é名"


def test_compile_prints_what_was_left_alone_and_before_and_after(tmp_path, capsys):
    status, out, _ = run(capsys, "compile", write_release(tmp_path), "-o", tmp_path / "out", "-q")
    assert status == 0
    for part in ("first differ at", "every combination", "separate", "evaluation", "PASSED"):
        assert part in out


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    assert main(["compile", str(write_release(folder)), "-o", str(folder / "out"), "-q"]) == 0
    return folder / "out"


def test_the_commands_are_these():
    (commands,) = (a for a in parser()._actions if hasattr(a, "choices") and a.choices)
    assert list(commands.choices) == COMMANDS


@pytest.mark.parametrize("command", ["targets", "passes", "ops"])
def test_lists(capsys, command):
    status, out, err = run(capsys, command)
    assert (status, err) == (0, "")
    status, text, _ = run(capsys, command, "--json")
    found = json.loads(text)
    rows = found["operators"] if command == "ops" else found
    assert len(rows) >= 6
    name = {"targets": "target", "passes": "pass", "ops": "operator"}[command]
    assert all(row[name] in out for row in rows)


def test_stdout_carries_results_only(tmp_path, capsys):
    path = write_release(tmp_path)
    status, out, err = run(capsys, "cost", path, "--json")
    assert status == 0
    record = json.loads(out)
    assert [r["tasks"] for r in record["combinations"]] == [["a"], ["b"], ["a", "b"]]
    assert [r["tasks"] for r in record["separate"]] == [["a"], ["b"], ["a", "b"]]
    wanted = {"tasks", "level", "macs", "flops", "parameters", "weight_bytes", "workspace_bytes"}
    assert wanted <= set(record["combinations"][0])
    assert record["combinations"][0]["macs"] == 64 * 4 * 27 + 12
    assert "import a" in err
    assert run(capsys, "cost", path, "--json", "-q")[2] == ""


def test_cost_of_a_model_and_of_a_bundle(tmp_path, bundle, capsys):
    onnx.save(network("x", 3), tmp_path / "m.onnx")
    status, out, _ = run(capsys, "cost", tmp_path / "m.onnx", "--json")
    assert status == 0
    assert json.loads(out)["combinations"][0]["workspace_bytes"] is None
    status, out, _ = run(capsys, "cost", bundle, "--json")
    assert status == 0
    assert all(r["workspace_bytes"] > 0 for r in json.loads(out)["combinations"])


def test_inspect(tmp_path, bundle, capsys):
    onnx.save(network("x", 3), tmp_path / "m.onnx")
    status, out, _ = run(capsys, "inspect", tmp_path / "m.onnx", "--json")
    assert status == 0
    assert json.loads(out)["operators"]["Conv"] == 1
    status, out, _ = run(capsys, "inspect", tmp_path / "m.onnx", "--text")
    assert "= Conv(" in out
    status, out, _ = run(capsys, "inspect", bundle, "--text")
    assert "= Conv(" in out
    status, out, _ = run(capsys, "inspect", bundle)
    assert "pair_run_a__b" in out
    assert "\npair: image float32[1,3,8,8]; " in out
    assert "`-- 1  " in out or "+-- 1  " in out


def test_inspect_of_a_large_model_works_for_what_it_prints_alone(tmp_path, capsys, monkeypatch):
    nodes = [helper.make_node("Relu", [f"x{i}"], [f"x{i + 1}"]) for i in range(300)]
    onnx.save(model(nodes, {"x0": (1, 4)}, {"x300": (1, 4)}), tmp_path / "m.onnx")
    monkeypatch.setattr("compiler.commands.common.ExtractTasks", lambda **options: pytest.fail("for costs only"))
    status, out, _ = run(capsys, "inspect", tmp_path / "m.onnx", "-q")
    assert status == 0
    assert "layers (the first 255 of 300; --json prints all)" in out
    status, out, _ = run(capsys, "inspect", tmp_path / "m.onnx", "--json", "-q")
    assert len(json.loads(out)["layers"]) == 300


def test_explain_plan_of_a_bundle_a_release_and_a_model(tmp_path, bundle, capsys):
    status, out, err = run(capsys, "explain", "plan", bundle, "--seconds", "0.01")
    assert status == 0
    for part in (
        "pair for host: plan",
        "best predicted of",
        "time of one run",
        "all steps",
        "between layouts",
    ):
        assert part in out
    assert "time every call" in err
    path = write_release(tmp_path)
    status, out, _ = run(capsys, "explain", "plan", path, "--seconds", "0", "--tuning", "none", "--json", "-q")
    found = json.loads(out)
    assert (status, found["plan_of"], found["not_measured"]) == (0, "release.toml for host", "--seconds 0")
    assert {"nodes", "tasks", "choice", "chosen_by", "why", "predicted", "weight_bytes"} <= set(found["steps"][0])
    status, out, _ = run(capsys, "explain", "plan", tmp_path / "a.onnx", "--target", "aarch64-cortex-a72", "-q")
    assert status == 0
    assert "conv +1" in out, "the batch normalisation is folded and the activation fused"
    assert "not measured: target 'aarch64-cortex-a72' cannot be timed on this machine" in out
    assert "time of one run" not in out


def test_explain_plan_follows_a_recorded_plan(tmp_path, bundle, capsys):
    path = write_release(tmp_path)
    status, out, _ = run(capsys, "explain", "plan", path, "--plan", bundle, "--seconds", "0", "--json", "-q")
    steps = json.loads(out)["steps"]
    recorded = json.loads((bundle / "host" / "plan.json").read_text())["steps"]
    assert status == 0 and [s["nodes"] for s in steps] == [s["nodes"] for s in recorded]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--seconds", "-1"], "give the seconds to measure for"),
        (["--target", "host", "--target", "x86-64-v3"], "shows one target"),
        (["--tuning", "none"], "are for models and releases"),
        (["--plan", "p.json"], "are for models and releases"),
    ],
)
def test_explain_plan_refuses_what_it_would_ignore(bundle, capsys, arguments, reason):
    status, out, err = run(capsys, "explain", "plan", bundle, *arguments)
    assert (status, out) == (2, "")
    assert reason in err


def test_extract_writes_the_exact_subset(tmp_path, capsys):
    path = write_release(tmp_path)
    status, out, _ = run(capsys, "extract", path, "--tasks", "b", "-o", tmp_path / "b_only.onnx")
    assert status == 0
    assert "wrote" in out
    part = load(tmp_path / "b_only.onnx")
    assert list(part.tasks) == ["b"]
    assert [n.op.name for n in part.nodes()].count("Conv") == 1
    status, _, err = run(capsys, "extract", path, "--tasks", "b", "-o", tmp_path / "b_only.onnx")
    assert status == 2
    assert "--force" in err
    status, _, err = run(capsys, "extract", path, "--tasks", "c", "-o", tmp_path / "c.onnx")
    assert status == 2
    assert "there is no task 'c'; the tasks are a, b" in err
    assert not (tmp_path / "c.onnx").exists()


def test_prune_to_a_budget(tmp_path, capsys):
    onnx.save(network("x", 3, channels=16), tmp_path / "m.onnx")
    arguments = ["prune", tmp_path / "m.onnx", "--flops", "0.5", "-o", tmp_path / "p.onnx", "--json"]
    status, out, _ = run(capsys, *arguments)
    assert status == 0
    record = json.loads(out)
    assert record["after"]["flops"] <= 0.5 * record["before"]["flops"]
    assert load(tmp_path / "p.onnx").value(load(tmp_path / "p.onnx").outputs[0].ref).shape == (1, 3)


def test_evaluate_prints_the_three_versions(tmp_path, capsys):
    path = write_release(tmp_path)
    status, out, _ = run(capsys, "evaluate", path, "--json")
    assert status == 0
    rows = {r["task"]: r for r in json.loads(out)["tasks"]}
    assert rows["a"]["metric"] == "accuracy"
    assert rows["b"]["original"] == pytest.approx(rows["b"]["bundle"]["metric"], rel=1e-4)
    assert rows["a"]["bundle"]["drift"] < 1e-4
    status, out, _ = run(capsys, "evaluate", path, "--no-bundle", "--set", "gates.max_output_drift=1e-12")
    assert status == 1
    assert "FAILED" in out


def test_verify_a_right_model_and_a_bundle(tmp_path, bundle, capsys):
    onnx.save(network("x", 3), tmp_path / "m.onnx")
    status, out, _ = run(capsys, "verify", tmp_path / "m.onnx", "--json")
    assert status == 0
    record = json.loads(out)
    assert record["right"]
    assert [c["stage"] for c in record["comparisons"]] == ["imported", "exported", "compiled"]
    assert "scores" in record["spread"]
    status, out, _ = run(capsys, "verify", bundle)
    assert status == 0
    assert "PASSED" in out


def test_verify_fails_where_a_stage_is_wrong(tmp_path, capsys, monkeypatch):
    onnx.save(network("x", 3), tmp_path / "m.onnx")
    import compiler.check

    monkeypatch.setattr(
        compiler.check, "_compiled", lambda g, f, expected, say: {k: v + 1 for k, v in expected.items()}
    )
    status, out, _ = run(capsys, "verify", tmp_path / "m.onnx")
    assert status == 1
    assert "WRONG" in out
    assert "FAILED: 1 of 3 comparisons" in out


@pytest.mark.parametrize("spoilt", [np.nan, np.inf])
def test_verify_refuses_a_model_whose_outputs_are_never_finite(tmp_path, capsys, spoilt):
    """All that it gives is equal to what many wrong networks give."""
    model = network("x", 3)
    for weight in model.graph.initializer:
        if numpy_helper.to_array(weight).dtype == np.float32:
            weight.CopyFrom(numpy_helper.from_array(np.full(weight.dims, spoilt, np.float32), weight.name))
    onnx.save(model, tmp_path / "m.onnx")
    status, out, err = run(capsys, "verify", tmp_path / "m.onnx")
    assert status == 3 and not out
    assert "what scores gives is infinite or no number on each of ten inputs" in err and "--range NAME:LO:HI" in err


def test_run_a_subset_and_every_combination(tmp_path, bundle, capsys):
    np.savez(tmp_path / "x.npz", image=np.ones((1, 3, 8, 8), np.float32))
    status, out, _ = run(capsys, "run", bundle, "--input", tmp_path / "x.npz", "--tasks", "a", "--json")
    assert status == 0
    assert list(json.loads(out)) == ["a"]
    status, out, _ = run(capsys, "run", bundle, "--input", tmp_path / "x.npz", "--all-combinations", "--json")
    record = json.loads(out)
    assert (status, record["right"]) == (0, True)
    assert [c["tasks"] for c in record["combinations"]] == [["a"], ["b"], ["a", "b"]]
    output = tmp_path / "y.npz"
    assert run(capsys, "run", bundle, "--input", tmp_path / "x.npz", "-o", output)[0] == 0
    assert sorted(np.load(output).files) == ["a", "b"]


def test_run_with_arrays_that_do_not_fit(tmp_path, bundle, capsys):
    np.savez(tmp_path / "x.npz", picture=np.ones((1, 3, 8, 8), np.float32))
    status, _, err = run(capsys, "run", bundle, "--input", tmp_path / "x.npz")
    assert status == 2
    assert "lacks an array 'image'; it has picture" in err
    np.savez(tmp_path / "x.npz", image=np.ones((1, 3, 8, 9), np.float32))
    status, _, err = run(capsys, "run", bundle, "--input", tmp_path / "x.npz")
    assert status == 2
    assert "the network wants [1, 3, 8, 8]" in err
    np.savez(tmp_path / "x.npz", image=np.ones((2, 3, 8, 8), np.float32))
    status, _, err = run(capsys, "run", bundle, "--input", tmp_path / "x.npz")
    assert status == 2
    assert (
        "has shape [2, 3, 8, 8], the network wants [1, 3, 8, 8]; one call takes 1 sample: leave so many of the 2 in"
        in err
    )
    np.savez(tmp_path / "x.npz", image=np.full((1, 3, 8, 8), "white"))
    for options in ([], ["--all-combinations"]):
        status, _, err = run(capsys, "run", bundle, "--input", tmp_path / "x.npz", *options)
        assert status == 2
        assert "--input: input 'image' holds <U5 and no real numbers" in err


def test_run_writes_exactly_the_file_that_is_named(tmp_path, bundle, capsys):
    np.savez(tmp_path / "x.npz", image=np.ones((1, 3, 8, 8), np.float32))
    arguments = ["run", bundle, "--input", tmp_path / "x.npz", "-o", tmp_path / "outputs"]
    assert run(capsys, *arguments)[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["outputs", "x.npz"]
    status, _, err = run(capsys, *arguments)
    assert status == 2 and "--force" in err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--tasks", ","], "',' names none; the tasks are a, b"),
        (["--tasks", "a", "--all-combinations"], "leave --tasks and -o out"),
    ],
)
def test_run_with_tasks_that_cannot_be(tmp_path, bundle, capsys, more, words):
    np.savez(tmp_path / "x.npz", image=np.ones((1, 3, 8, 8), np.float32))
    status, _, err = run(capsys, "run", bundle, "--input", tmp_path / "x.npz", *more)
    assert status == 2 and words in err


def test_outputs_that_are_no_numbers_are_null(tmp_path, bundle, capsys):
    np.savez(tmp_path / "x.npz", image=np.full((1, 3, 8, 8), np.nan, np.float32))
    status, out, _ = run(capsys, "run", bundle, "--input", tmp_path / "x.npz", "--tasks", "b", "--json")
    assert status == 0
    assert json.loads(out) == {"b": [[None]]}


def test_bench(bundle, capsys, monkeypatch):
    monkeypatch.chdir(bundle.parent)
    status, out, _ = run(capsys, "bench", bundle.name, "--seconds", "0.02", "--json")
    assert status == 0
    rows = json.loads(out)["subsets"]
    assert [r["tasks"] for r in rows] == ["a", "b", "a+b"] and not any("cheapest" in r for r in rows)
    status, out, _ = run(capsys, "bench", bundle.name, "--seconds", "0.02")
    assert status == 0 and "*" not in out


def test_bench_takes_a_target_that_runs_here(tmp_path, capsys):
    path = write_release(tmp_path)
    targets = ["--target", "aarch64-cortex-a53", "--target", "host"]
    assert main(["compile", str(path), *targets, "-o", str(tmp_path / "out"), "-q"]) == 0
    capsys.readouterr()
    status, out, _ = run(capsys, "bench", tmp_path / "out", "--seconds", "0.01", "--json")
    assert status == 0 and json.loads(out)["target"] == "host"


@pytest.mark.parametrize("option", ["--seconds=0", "--seconds=nan", "--threads=0", "--threads=1000"])
def test_bench_refuses_what_measures_nothing(bundle, capsys, option):
    status, _, err = run(capsys, "bench", bundle, option)
    assert status == 2 and f"error: {option.partition('=')[0]} " in err


def test_bench_refuses_threads_that_a_library_has_not(tmp_path, capsys):
    path = write_release(tmp_path)
    arguments = ["--set", "targets.threads=false", "-o", str(tmp_path / "out"), "-q"]
    assert main(["compile", str(path), *arguments]) == 0
    capsys.readouterr()
    status, _, err = run(capsys, "bench", tmp_path / "out", "--threads", "2")
    assert status == 2 and "was built without pools" in err


def test_prune_keeps_what_a_release_excludes(tmp_path, capsys):
    text = RELEASE.replace("[gates]", '[gates]\nmax_library = "9MB"').replace(
        "[passes]", '[passes]\nexclude = ["*"]'
    )
    path = write_release(tmp_path, text)
    status, _, err = run(capsys, "prune", path, "--flops", "0.5", "-o", tmp_path / "p.onnx")
    assert status == 3 and "excluded" in err
