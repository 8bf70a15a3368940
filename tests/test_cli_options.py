"""Options of the command line that contradict each other, say nothing, or belong to another kind of source."""

from __future__ import annotations

import errno
import json
import os
import re

import numpy as np
import onnx
import pytest

from tests.small_models import network, write_release
from tests.test_cli import run


def test_options_of_the_other_kind_of_source_are_refused(tmp_path, capsys):
    path = write_release(tmp_path)
    status, _, err = run(capsys, "cost", path, "--input", "image:1,3,8,8")
    assert status == 2 and "a release has its shapes in [input.NAME]" in err
    status, _, err = run(
        capsys, "explain", "merge", path, "--input", "image:1", "--set", 'passes.pipeline=["merge"]'
    )
    assert status == 2 and "a release has its shapes in [input.NAME]" in err
    status, _, err = run(capsys, "cost", tmp_path / "a.onnx", "--set", "seed=1")
    assert status == 2 and "only a release file has keys" in err
    for command in ("cost", "inspect", "verify"):
        status, _, err = run(capsys, command, tmp_path / "a.onnx", "--target", "host")
        assert status == 2 and "a.onnx is no bundle" in err
    status, _, err = run(capsys, "diff", path, tmp_path / "a.onnx", "--target", "host")
    assert status == 2 and "is a bundle; leave it out" in err
    assert run(capsys, "diff", path, tmp_path / "a.onnx", "--set", "seed=1", "--input", "image:1,3,8,8")[0] == 1


@pytest.mark.parametrize(
    "option", [["--option", "floor"], ["--samples", "-1"], ["--samples", "9"], ["--exclude", "layr*"]]
)
def test_prune_refuses_options_that_say_nothing(tmp_path, capsys, option):
    onnx.save(network("x", 3), tmp_path / "m.onnx")
    arguments = ["prune", tmp_path / "m.onnx", "--flops", "0.5", "-o", tmp_path / "p.onnx"]
    status, _, err = run(capsys, *arguments, *option)
    assert status == 2 and f"error: {' '.join(option)}: " in err


def test_prune_takes_every_budget(tmp_path, capsys):
    """Those that need predictions or labels too: a release has both, a model the first."""
    path = write_release(tmp_path)
    for source, option in (
        (path, "latency_us=1e6"),
        (tmp_path / "a.onnx", "latency_us=1e6"),
        (path, "accuracy_drop=0.99"),
    ):
        status, _, err = run(capsys, "prune", source, "--option", option, "-o", tmp_path / "p.onnx", "--force")
        assert status == 0, err
    path.write_text(path.read_text().replace(', b = "mae"', ""))
    for option, message in (("flops=1.5", "is neither a share"), ("accuracy_drop=1", "limits nothing")):
        status, _, err = run(capsys, "prune", path, "--option", option, "-o", tmp_path / "q.onnx")
        assert status == 2 and f"{option} {message}" in err and not (tmp_path / "q.onnx").exists()


@pytest.mark.parametrize("command", ["run --input x.npz", "bench", "cost", "inspect", "frontier"])
def test_several_targets_where_one_is_shown_are_refused(tmp_path, capsys, command):
    name, *rest = command.split()
    path = write_release(tmp_path) if name == "frontier" else tmp_path
    status, _, err = run(capsys, name, path, *rest, "--target", "host", "--target", "x86-64-v3")
    assert status == 2 and "--target names host, x86-64-v3; this command shows one target" in err


def test_a_pipeline_that_is_stopped_refuses_options_of_a_build(tmp_path, capsys):
    path = write_release(tmp_path)
    stopped = ["compile", path, "--stop-after", "deduplicate"]
    status, _, err = run(capsys, *stopped, "--target", "host", "--tune", "1", "--workers", "2")
    assert status == 2 and "builds nothing; leave --target, --tune, --workers out" in err
    assert run(capsys, *stopped)[0] == 0


def test_verify_refuses_a_range_that_is_none(tmp_path, capsys):
    onnx.save(network("x", 3), tmp_path / "m.onnx")
    for bounds in ("5:1", "nan:1", "0:inf"):
        status, _, err = run(capsys, "verify", tmp_path / "m.onnx", "--range", f"x:{bounds}")
        assert status == 2 and "from a lower to a higher finite number" in err


@pytest.mark.parametrize("command", [["prune", "--flops", "0.5", "-o", "p.onnx"], ["verify"]], ids=lambda c: c[0])
@pytest.mark.parametrize("seed", ["-1", "4294967296"])
def test_a_seed_that_no_generator_takes_is_wrong_usage(tmp_path, capsys, command, seed):
    onnx.save(network("x", 3), tmp_path / "m.onnx")
    with pytest.raises(SystemExit, match="2"):
        run(capsys, command[0], tmp_path / "m.onnx", *command[1:], "--seed", seed)
    assert f"argument --seed: {seed}: give a whole number from 0 to 4294967295" in capsys.readouterr().err


def test_a_frontier_that_cannot_be_leaves_nothing_behind(tmp_path, capsys):
    path, folder = write_release(tmp_path), tmp_path / "frontier"
    for spec, reason in (("nope", "unknown pass 'nope'"), ("deduplicate", "has no option latency_us")):
        status, _, err = run(capsys, "frontier", path, "--pass", spec, "-o", folder)
        assert status == 2 and reason in err
    assert not folder.exists()


def test_a_bundle_is_verified_on_inputs_of_its_own(tmp_path, capsys):
    for options in (("--range", "x:0:1"), ("--input", "x:1"), ("--seed", "3"), ("--allow-external-data",)):
        status, _, err = run(capsys, "verify", tmp_path, *options)
        assert status == 2 and f"{options[0]}: {tmp_path} is a bundle" in err


@pytest.mark.parametrize("command", [["cost"], ["inspect"], ["explain", "plan"]], ids=lambda c: c[-1])
@pytest.mark.parametrize("option", [["--set", "seed=1"], ["--input", "x:1"]], ids=lambda o: o[0])
def test_a_bundle_refuses_what_says_how_others_are_read(tmp_path, capsys, command, option):
    status, _, err = run(capsys, *command, tmp_path, *option)
    assert status == 2 and f"{option[0]}: {tmp_path} is a bundle" in err


def test_diff_refuses_options_of_a_kind_that_neither_side_is(tmp_path, capsys):
    path = write_release(tmp_path)
    status, _, err = run(capsys, "diff", tmp_path / "a.onnx", tmp_path / "b.onnx", "--set", "seed=1")
    assert status == 2 and "--set seed=1: only a release file has keys" in err
    status, _, err = run(capsys, "diff", path, path, "--input", "image:1")
    assert status == 2 and "--input image:1: binds axes of a model" in err


def test_sources_of_another_kind_are_told_what_they_are(tmp_path, capsys):
    path = write_release(tmp_path)
    status, _, err = run(capsys, "verify", path)
    assert status == 2 and "is a release file; verify reads a model or a bundle" in err
    for command in (["extract", tmp_path, "--tasks", "a"], ["prune", tmp_path, "--flops", "0.5"]):
        status, _, err = run(capsys, *command, "-o", tmp_path / "new.onnx")
        assert status == 2 and "is a folder; give a release file or a model" in err


def test_one_share_cannot_be_given_twice(tmp_path, capsys):
    onnx.save(network("x", 3), tmp_path / "m.onnx")
    arguments = ["prune", tmp_path / "m.onnx", "--flops", "0.5", "--option", "flops=0.3", "-o", tmp_path / "p.onnx"]
    status, _, err = run(capsys, *arguments)
    assert status == 2 and "--flops and --option flops are the same" in err
    status, _, err = run(capsys, *arguments[:2], "--flops", "nan", *arguments[-2:])
    assert status == 2 and "'nan' is not none or a number" in err


def test_missing_labels_are_told_before_anything_is_built(tmp_path, capsys, monkeypatch):
    path = write_release(tmp_path)
    np.savez(tmp_path / "data.npz", **{n: a for n, a in np.load(tmp_path / "data.npz").items() if n != "b"})
    for name in ("compile.generate", "commands.builds.build"):
        monkeypatch.setattr(f"compiler.{name}", lambda *given, **options: pytest.fail("it was built"))
    for command in ("compile", "evaluate"):
        status, _, err = run(capsys, command, path)
        assert status == 2 and "the evaluation data lacks labels 'b'; it has a, image" in err


def test_a_metric_that_is_none_is_told_before_anything_is_built(tmp_path, capsys, monkeypatch):
    path = write_release(tmp_path)
    monkeypatch.setattr("compiler.compile.generate", lambda *given, **options: pytest.fail("it was built"))
    for command in ("compile", "frontier"):
        status, _, err = run(
            capsys, command, path, "--set", 'evaluation.metric.a="json:nothing"', "-o", tmp_path / "o"
        )
        assert status == 2 and "'json:nothing' cannot be imported" in err


def test_init_refuses_a_name_that_compile_would_refuse(tmp_path, capsys):
    onnx.save(network("x", 3), tmp_path / "m.onnx")
    release = tmp_path / "release.toml"
    status, _, err = run(capsys, "init", tmp_path / "m.onnx", "--name", "stdio", "-o", release)
    assert status == 2 and "programs would read stdio.h" in err
    assert not release.exists()


@pytest.mark.parametrize("name", ["a__b", "My-Net", "2nd"])
def test_init_says_at_once_that_a_name_is_none_of_c(tmp_path, capsys, name):
    status, _, err = run(capsys, "init", tmp_path / "missing.onnx", "--name", name, "-o", tmp_path / "r.toml")
    near = {"a__b": "a_b", "My-Net": "my_net", "2nd": "release_2nd"}[name]
    assert status == 2 and f"--name {name}: becomes part of C names" in err and f"--name {near} would do" in err


def test_a_file_is_named_in_c_by_itself(tmp_path, capsys):
    onnx.save(network("x", 3), tmp_path / "Model-ea45e9.onnx")
    status, out, _ = run(
        capsys, "explain", "plan", tmp_path / "Model-ea45e9.onnx", "--seconds", "0", "--json", "-q"
    )
    assert status == 0
    assert json.loads(out)["steps"][0]["tasks"] == ["model_ea45e9"]


@pytest.mark.parametrize(
    "options",
    [
        ["extract", "m.onnx", "--tasks", "a", "--tasks", "b", "-o", "p.onnx"],
        ["extract", "m.onnx", "--level", "0", "--level", "1", "-o", "p.onnx"],
        ["prune", "m.onnx", "-o", "p.onnx", "--output", "q.onnx"],
        ["compile", "r.toml", "--tune", "--tune", "3"],
    ],
    ids=lambda o: " ".join(o[2:4]),
)
def test_an_option_of_one_value_is_given_once(capsys, options):
    with pytest.raises(SystemExit, match="2"):
        run(capsys, *options)
    assert "is given twice, and takes one value" in capsys.readouterr().err


def test_what_would_undo_what_was_said_before_is_refused(tmp_path, capsys):
    path = write_release(tmp_path)
    for first, second in (
        ("seed=1", "seed=2"),
        ("gates.max_library=1MB", "gates={ max_workspace = 5 }"),
    ):
        status, _, err = run(capsys, "cost", path, "--set", first, "--set", second)
        assert status == 2 and f"--set {second}: would undo --set {first}" in err
    assert run(capsys, "cost", path, "--set", "gates={}", "--set", "gates.max_library=1MB", "-q")[0] == 0
    pruned = ["prune", tmp_path / "a.onnx", "--flops", "0.5", "-o", tmp_path / "p.onnx"]
    status, _, err = run(capsys, *pruned, "--option", "min_keep=0.1", "--option", "min-keep=0.2")
    assert status == 2 and "--option min-keep=0.2: 'min_keep' has a value already" in err


def test_an_output_that_can_be_no_file_is_told_before_any_work(tmp_path, capsys, monkeypatch):
    (tmp_path / "folder").mkdir()
    extract = ["extract", tmp_path / "no.onnx", "--tasks", "a", "-o"]
    for name, reason in (("a" * 300, "File name too long"), ("folder", "is a folder; -o names a file")):
        status, _, err = run(capsys, *extract, tmp_path / name)
        assert status == 2 and reason in err
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    status, _, err = run(capsys, *extract, tmp_path / "folder" / "new.onnx")
    assert status == 2 and "new.onnx: cannot be written: no file can be made in" in err


def test_output_folders_where_nothing_can_be_written_are_told_before_any_work(tmp_path, capsys, monkeypatch):
    path = write_release(tmp_path)
    path.write_text(path.read_text().replace("a.onnx", "missing.onnx"))
    tuning = ["--tune", "1", "--tuning", tmp_path / "readonly" / "t.json"]
    (tmp_path / "readonly").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: path == tmp_path)
    for options, reason in (
        (["compile", "-o", tmp_path / ("a" * 300)], "choose another output folder"),
        (["compile", "-o", tmp_path / "readonly" / "out"], "choose another output folder"),
        (["compile", "-o", tmp_path / "out", "--cache", tmp_path / "readonly" / "c"], "name another"),
        (["compile", "-o", tmp_path / "out", *tuning], "cannot be written there; name another"),
        (["frontier", "-o", tmp_path / "readonly" / "out"], "choose another output folder"),
    ):
        status, _, err = run(capsys, options[0], path, *options[1:])
        assert status == 2 and reason in err and "missing.onnx" not in err, options


def test_a_cache_of_statistics_that_is_none_is_told_before_the_first_pass(tmp_path, capsys):
    status, _, err = run(capsys, "cost", write_release(tmp_path), "--set", "calibration.cache=data.npz")
    assert status == 2 and "data.npz: not a folder that can be written to; name another" in err
    assert "pass 1" not in err


def test_data_that_may_not_be_read_are_no_defect(tmp_path, capsys, monkeypatch):
    path = write_release(tmp_path)

    def refused(file, kind):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), file.name)

    monkeypatch.setattr("hashlib.file_digest", refused)
    status, _, err = run(capsys, "cost", path)
    assert status == 2 and "a.onnx: cannot be read: Permission denied" in err


@pytest.mark.parametrize("option", ["--output", "--tuning", "--cluster", "--cache", "--stop-after"])
def test_an_option_without_a_value_is_not_taken_for_none_at_all(tmp_path, capsys, option):
    with pytest.raises(SystemExit, match="2"):
        run(capsys, "compile", tmp_path / "release.toml", option, "")
    assert "is empty; give a value, or leave the option out" in capsys.readouterr().err


def test_what_needs_no_network_is_told_before_networks_are_read(tmp_path, capsys):
    path = write_release(tmp_path)
    (tmp_path / "a.onnx").write_bytes(b"damaged")
    (tmp_path / "file").write_bytes(b"")
    passes = ["--set", 'passes.pipeline=["nope"]']
    for arguments, reason in (
        (["cost", path, *passes], "unknown pass 'nope'"),
        (["compile", path, "-o", tmp_path / "out", *passes], "unknown pass 'nope'"),
        (["compile", path, "-o", tmp_path / "out", "--cache", tmp_path / "file"], "file: not a folder that can"),
        (["frontier", path, "-o", tmp_path / "out", "--cache", tmp_path / "file"], "file: not a folder that can"),
        (["frontier", path, "-o", tmp_path / "out", "--target", "cray"], "unknown target 'cray'"),
        (["explain", "plan", path, "--plan", tmp_path / "no"], "plan.*no: cannot be read"),
        (["prune", path, "--option", "nope=1", "-o", tmp_path / "p.onnx"], "there is no option nope"),
    ):
        status, _, err = run(capsys, *arguments)
        assert status == 2 and re.search(reason, err), arguments
    assert not (tmp_path / "out").exists()
