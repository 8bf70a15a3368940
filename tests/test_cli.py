from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compiler.arguments import parser
from compiler.cli import main
from compiler.ir.onnx_in import load
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
    assert "`-- 1  " in out or "+-- 1  " in out


def test_explain_plan_of_a_bundle_a_release_and_a_model(tmp_path, bundle, capsys):
    status, out, err = run(capsys, "explain", "plan", bundle, "--seconds", "0.01")
    assert status == 0
    for part in (
        "pair for host: plan",
        "best predicted of",
        "time of one run",
        "all steps",
        "copies between layouts",
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
    assert [c["stage"] for c in record["comparisons"]] == ["lifted", "exported", "compiled"]
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
    assert [r["tasks"] for r in json.loads(out)["subsets"]] == ["a", "b", "a+b"]


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


def test_a_damaged_bundle_is_refused(tmp_path, capsys):
    path = write_release(tmp_path)
    assert main(["compile", str(path), "-o", str(tmp_path / "out"), "-q"]) == 0
    weights = tmp_path / "out" / "host" / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    capsys.readouterr()
    status, _, err = run(capsys, "verify", tmp_path / "out")
    assert status == 4
    assert "weights.bin" in err


# ---------------------------------------------------------------------- what is refused, and how
def broken(folder):
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    files = {
        "truncated": network("x", 3).SerializeToString()[:200],
        "text": b"hello world",
        "free": model(relu, {"x": ("N", 4)}, {"y": ("N", 4)}).SerializeToString(),
    }
    unknown = model(
        [helper.make_node("Frob", ["x"], ["y"]), helper.make_node("Relu", ["y"], ["z"])], {"x": (4,)}, {"z": (4,)}
    )
    files["unknown"] = unknown.SerializeToString()
    loop = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    files["cycle"] = model(loop, {"x": (4,)}, {"b": (4,)}).SerializeToString()
    claims = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[50000, 50000])
    huge = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (1, 50000)}, {"y": (1, 50000)})
    huge.graph.initializer.append(claims)
    files["huge"] = huge.SerializeToString()
    outside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    entry = outside.external_data.add()
    entry.key, entry.value = "location", "../../secret"
    external = model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": (4,)}, {"y": (4,)})
    external.graph.initializer.append(outside)
    files["external"] = external.SerializeToString()
    for name, data in files.items():
        (folder / f"{name}.onnx").write_bytes(data)


@pytest.mark.parametrize(
    "name,options,status,message",
    [
        ("truncated", [], 4, "not a readable ONNX file"),
        ("text", [], 4, "not a readable ONNX file"),
        ("cycle", [], 4, "not a valid ONNX model"),
        ("huge", [], 4, "10,000,000,000 bytes; the limit is"),
        ("external", [], 4, "keeps its data in another file"),
        ("external", ["--allow-external-data"], 4, "external data '../../secret'"),
        ("unknown", [], 3, "Frob x1"),
        ("free", [], 3, "bind its free axes, as in --input x:1,4"),
        ("free", ["--input", "x:1,5"], 2, "axis 1 cannot have size 5"),
        ("free", ["--input", "x"], 2, "write NAME:SIZE"),
        ("free", ["--input", "x:1,,4"], 2, "write NAME:SIZE"),
        ("free", ["--input", "x:1,4", "--input", "x:2,4"], 2, "'x' has a shape already"),
        ("free", ["--input", "x:1,4", "--range", "x:0:1", "--range", "x:0:2"], 2, "'x' has a range already"),
        ("free", ["--input", "x:1,4", "--range", "z:0:1"], 2, "there is no such input; the inputs are x"),
        ("absent", [], 2, "cannot be opened"),
    ],
)
def test_broken_models_get_one_clear_message(tmp_path, capsys, name, options, status, message):
    broken(tmp_path)
    found, out, err = run(capsys, "verify", tmp_path / f"{name}.onnx", "-q", *options)
    assert (found, out) == (status, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "change,status,message",
    [
        (("[gates]", "[gatess]"), 2, "gatess: unknown key; did you mean 'gates'?"),
        (("[1, 3, 8, 8]", "[1, 3, 9, 8]"), 2, "wants float32[1,3,8,8]; shared input 'image' is float32[1,3,9,8]"),
        (('model = "b.onnx"', 'model = "c.onnx"'), 2, "c.onnx: cannot be"),
        (('"deduplicate"', '"dedupe"'), 2, "unknown pass 'dedupe'; the passes are"),
        (("1e-4", "1e-12"), 1, "max_output_drift"),
    ],
)
def test_broken_releases_leave_nothing_behind(tmp_path, capsys, change, status, message):
    from tests.small_models import RELEASE

    path = write_release(tmp_path, RELEASE.replace(*change))
    before = sorted(p.name for p in tmp_path.iterdir())
    found, out, err = run(capsys, "compile", path, "-o", tmp_path / "deep" / "out", "-q")
    assert found == status
    assert message in err + out
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_foreign_code_makes_another_error_of_is_one(tmp_path, capsys, monkeypatch, number):
    def foreign(*args, **options):
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise RuntimeError from None

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr("compiler.commands.frontiers.frontier", foreign)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        status, _, err = run(capsys, "frontier", write_release(tmp_path), "-o", tmp_path / "out", "-q")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handlers[0])
    assert (status, signal.getsignal(signal.SIGTERM)) == (130, handlers[1])
    assert "interrupted" in err and "defect" not in err


def test_outputs_that_cannot_be_written(tmp_path, capsys):
    path = write_release(tmp_path)
    status, _, err = run(capsys, "compile", path, "-o", path / "out", "-q")
    assert status == 2
    assert "choose another with -o" in err
    (tmp_path / "out" / "host").mkdir(parents=True)
    status, _, err = run(capsys, "compile", path, "-o", tmp_path / "out", "-q")
    assert status == 2
    assert "already holds host; --force" in err


def test_an_unknown_target_costs_no_time(tmp_path, capsys):
    status, _, err = run(capsys, "compile", write_release(tmp_path), "--target", "cray", "-q")
    assert status == 5
    assert "unknown target 'cray'; known are host" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(tmp_path, number):
    path = write_release(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    command = [sys.executable, "-m", "compiler", "compile", str(path), "-o", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:  # interrupt in the middle: once code generation has begun
        if "generate" in line:
            break
    time.sleep(0.3)
    process.send_signal(number)
    assert "interrupted" in process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_an_unexpected_error_is_70_without_a_traceback(capsys, monkeypatch):
    import compiler.commands.lists

    def fail(args, say):
        raise KeyError("surprise")

    monkeypatch.setattr(compiler.commands.lists, "ops", fail)
    status, out, err = run(capsys, "ops")
    assert (status, out) == (70, "")
    assert "internal error (KeyError)" in err
    assert "Traceback" not in err
    status, _, err = run(capsys, "ops", "--debug")
    assert "Traceback" in err


@pytest.mark.parametrize("arguments", [[], ["comple"], ["compile"], ["cost", "x.onnx", "--jsn"]])
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error():
    command = f"{sys.executable} -m compiler ops --json | head -c 10"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False
    )
    assert "error" not in done.stderr
    assert done.stdout.startswith("{")


def test_a_reader_that_leaves_does_not_hide_a_failed_gate(tmp_path, monkeypatch):
    path = write_release(tmp_path)
    arguments = ["evaluate", str(path), "--no-bundle", "-q", "--set", "gates.max_output_drift=1e-12"]
    there, here = os.pipe()
    os.close(there)
    with os.fdopen(here, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(arguments) == 1
        monkeypatch.undo()
