"""What the command line refuses, and how: one clear message, an exit code, nothing left behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compiler.cli import main
from compiler.codegen.tuning import TuningDatabase
from compiler.errors import TargetError
from tests.small_models import RELEASE, model, network, write_release
from tests.test_cli import run


def test_a_damaged_bundle_is_refused(tmp_path, capsys):
    path = write_release(tmp_path)
    assert main(["compile", str(path), "-o", str(tmp_path / "out"), "-q"]) == 0
    weights = tmp_path / "out" / "host" / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    capsys.readouterr()
    status, _, err = run(capsys, "verify", tmp_path / "out")
    assert status == 4
    assert "weights.bin" in err


def test_too_little_memory_is_no_defect(tmp_path, capsys, monkeypatch):
    def load(*given, **options):
        np.empty(2**62, np.uint8)

    monkeypatch.setattr("compiler.commands.common.load_release", load)
    status, out, err = run(capsys, "inspect", write_release(tmp_path))
    assert (status, out) == (5, "")
    assert err.startswith("error: Unable to allocate 4.00 EiB") and "memory of this machine" in err


def test_a_full_disk_is_no_defect(tmp_path, capsys, monkeypatch):
    def load(*given, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("compiler.commands.common.load_release", load)
    status, out, err = run(capsys, "inspect", write_release(tmp_path))
    assert (status, out) == (5, "")
    assert "No space left on device" in err and "make room" in err and "defect" not in err


def test_no_room_for_an_output_file_is_no_wrong_option(tmp_path, capsys, monkeypatch):
    """Wherever a file is written: an ONNX file, another output, tuning measurements."""
    path = write_release(tmp_path)

    def full(*given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for module in ("ir.onnx_out", "staging", "codegen.tuning"):
        monkeypatch.setattr(f"compiler.{module}.replace_whole", full)
    outputs = tmp_path / "x.onnx", tmp_path / "x.json"
    commands = [
        ["extract", path, "--tasks", "a", "-o", outputs[0]],
        ["compile", path, "--stop-after", "fold-constants", "-o", outputs[0]],
        ["diff", tmp_path / "a.onnx", tmp_path / "a.onnx", "-o", outputs[1]],
    ]
    for command in commands:
        status, _, err = run(capsys, *command)
        assert status == 5 and "cannot be written: No space left on device; make room there" in err, command
    with pytest.raises(TargetError, match="make room there, or name another file"):
        TuningDatabase().save(tmp_path / "tuning.json")
    assert not any(p.exists() for p in outputs)


def broken(folder):
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    files = {
        "truncated": network("x", 3).SerializeToString()[:200],
        "text": b"hello world",
        "free": model(relu, {"x": ("N", 4)}, {"y": ("N", 4)}).SerializeToString(),
    }
    files["negative"] = model(relu, {"x": (-1, 4)}, {"y": (-1, 4)}).SerializeToString()
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
        ("negative", [], 3, "as in --input x:1,4"),
        ("free", ["--input", "x:1,5"], 2, "axis 1 cannot have size 5"),
        ("free", ["--input", "x"], 2, "write NAME:SIZE"),
        ("free", ["--input", "x:1,,4"], 2, "write NAME:SIZE"),
        ("free", ["--input", "x:1,4", "--input", "x:2,4"], 2, "'x' has a shape already"),
        ("free", ["--input", "x:1,4", "--range", "x:0:1", "--range", "x:0:2"], 2, "'x' has a range already"),
        ("free", ["--input", "x:1,4", "--range", "x:0:1e39"], 2, "a float32 has no such values"),
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
        (
            ("[passes]", '[passes]\nexclude = ["*/cnv"]'),
            2,
            "passes.exclude */cnv: no value and no node of 'pair' has",
        ),
        (('"deduplicate"', '"dedupe"'), 2, "unknown pass 'dedupe'; the passes are"),
        (("1e-4", "1e-12"), 1, "max_output_drift"),
    ],
)
def test_broken_releases_leave_nothing_behind(tmp_path, capsys, change, status, message):
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
    assert "choose another output folder" in err
    (tmp_path / "out" / "host").mkdir(parents=True)
    status, _, err = run(capsys, "compile", path, "-o", tmp_path / "out", "-q")
    assert status == 2
    assert "already holds host; --force, in Python force=True, replaces" in err


@pytest.mark.parametrize("command", ["compile", "evaluate", "frontier"])
def test_what_is_no_release_is_refused_before_the_command_is_loaded(tmp_path, capsys, monkeypatch, command):
    onnx.save(network("x", 3), tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "compiler.commands.builds", None)
    monkeypatch.setitem(sys.modules, "compiler.commands.frontiers", None)
    for name, reason in (("m.onnx", "`taskgraft init m.onnx` writes a release file"), ("", "Is a directory")):
        status, _, err = run(capsys, command, tmp_path / name)
        assert status == 2 and reason in err


def test_an_unknown_target_costs_no_time(tmp_path, capsys):
    status, _, err = run(capsys, "compile", write_release(tmp_path), "--target", "cray", "-q")
    assert status == 2
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["modules are imported", "the interpreter is left"])
def test_an_interrupt_before_and_after_the_command_has_its_status_and_no_traceback(moment, number):
    kill = f"os.kill(os.getpid(), {int(number)})"
    early = (
        "class Finder:\n"
        "    def find_spec(self, name, *rest):\n"
        f"        if name == 'compiler.cli': {kill}\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    late = f"import atexit; atexit.register(lambda: {kill})\n"
    code = (
        "import os, sys\n"
        "sys.argv = ['taskgraft', '--version']\n"
        f"{early if moment.startswith('modules') else late}"
        "from compiler.start import run; run()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")


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
