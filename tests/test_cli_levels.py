"""What the command line says of networks and bundles with sparsity levels."""

from __future__ import annotations

import json

import onnx
import pytest

from compiler.cli import main
from compiler.ir.levels import level_count
from compiler.ir.onnx_in import load
from tests.small_models import RELEASE, network, write_release
from tests.test_cli import run

NEST = "nest{levels=0.25+0.5+0.75,pattern=block4x1,dense=(),min_inputs=4}"


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
    """A folder with release.toml, its graph nested.onnx, and its bundle out/: tasks a, b, c at three levels."""
    folder = tmp_path_factory.mktemp("nested")
    text = RELEASE.replace('"deduplicate"]', f'"deduplicate", "{NEST}"]')
    text = text.replace("[calibration]", '[tasks.c]\nmodel = "c.onnx"\n[calibration]')
    path = write_release(folder, text.replace("max_output_drift = 1e-4", ""))
    onnx.save(network("image", 8, seed=2, channels=8), folder / "c.onnx")
    assert main(["compile", str(path), "-o", str(folder / "out"), "-q"]) == 0
    assert main(["compile", str(path), "--stop-after", "nest", "-o", str(folder / "nested.onnx"), "-q"]) == 0
    return folder


@pytest.mark.parametrize("source", ["nested.onnx", "release.toml", "out"])
def test_inspect_tells_levels_and_what_each_keeps(nested, capsys, source):
    status, out, _ = run(capsys, "inspect", nested / source, "-q")
    assert status == 0
    assert "3 sparsity levels" in out
    status, out, _ = run(capsys, "inspect", nested / source, "--json", "-q")
    manifest = json.loads((nested / "out" / "host" / "manifest.json").read_text())
    told = [level["density"] for level in json.loads(out)["levels"]]
    assert told == [level["density"] for level in manifest["levels"]]
    assert sorted(told, reverse=True) == told and len(set(told)) == level_count(load(nested / "nested.onnx"))


def test_a_frontier_behind_levels_is_refused_before_the_first_pass(nested, tmp_path, capsys):
    command = ["frontier", nested / "release.toml", "-o", tmp_path / "f", "--budget", "flops"]
    status, _, err = run(capsys, *command, "--pass", "prune-channels")
    assert status == 2 and "a frontier with prune-channels: there are 3 levels here" in err
    assert "pass 1" not in err and not (tmp_path / "f").exists()


def test_inspect_tells_no_levels_where_there_is_one(nested, capsys):
    status, out, _ = run(capsys, "inspect", nested / "a.onnx", "-q")
    assert status == 0
    assert "sparsity level" not in out


@pytest.mark.parametrize("source", ["release.toml", "out"])
def test_costs_come_level_by_level_with_fewer_tasks_first(nested, capsys, source):
    status, out, _ = run(capsys, "cost", nested / source, "--json", "-q")
    assert status == 0
    subsets = ["a", "b", "c", "ab", "ac", "bc", "abc"]
    rows = json.loads(out)["combinations"]
    assert [(r["level"], "".join(r["tasks"])) for r in rows] == [(n, s) for n in range(3) for s in subsets]
