"""explain merge: what a release's networks share and why the rest is not; which tasks a model's layers serve."""

from __future__ import annotations

import json

import numpy as np
import pytest

from compiler.cli import main
from compiler.ir.onnx_out import save
from tests.passes.merge.families import plain
from tests.passes.merge.test_merge import data, joined, macs

RELEASE = """
schema = 1
name = "pair"
[input.x]
shape = [1, 3, 8, 8]
[tasks.a]
model = "a.onnx"
[tasks.b]
model = "b.onnx"
[calibration]
data = "data.npz"
[passes]
pipeline = ["fold-constants", "merge{max_drift=0.5,max_loss=0.9}", "dead-channels"]
"""


@pytest.fixture
def release(tmp_path):
    nets = {"a": plain("a", 0, (8, 12, 16)), "b": plain("b", 1, (8, 12))}
    for name, graph in nets.items():
        save(graph, tmp_path / f"{name}.onnx")
    (array,) = data(joined(*nets.values())).calibration.values()
    np.savez(tmp_path / "data.npz", x=array)
    path = tmp_path / "release.toml"
    path.write_text(RELEASE)
    return path


def run(capsys, *arguments):
    status = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_release(release, capsys):
    status, out, err = run(capsys, "explain", "merge", release, "-q")
    assert (status, err) == (0, "")
    assert "channels" in out and "for a and b" in out
    assert "'b' has no layer at this place" in out
    status, text, _ = run(capsys, "explain", "merge", release, "-q", "--json")
    found = json.loads(text)
    assert found["spec"] == "merge{max_drift=0.5,max_loss=0.9}"
    assert {"where", "what"} == set(found["shared"][0]) and {"where", "why"} == set(found["apart"][0])
    assert len(found["combinations"]) == len(found["separate"]) == 3
    assert found["combinations"][2]["macs"] < found["separate"][2]["macs"]


def test_the_passes_before_a_merge_are_seen(release, capsys):
    _, _, err = run(capsys, "explain", "merge", release, "--progress", "plain")
    assert "pass 1 of" in err and "merge{" in err.partition("pass 1 of")[2]


def test_a_release_without_a_merge(release, capsys):
    release.write_text(RELEASE.replace('"merge{max_drift=0.5,max_loss=0.9}", ', ""))
    status, _, err = run(capsys, "explain", "merge", release, "-q")
    assert status == 2 and "its pipeline has no merge; add one" in err


def test_a_model(tmp_path, capsys):
    graph = joined(plain("a", 0), plain("b", 1))
    save(graph, tmp_path / "both.onnx")
    status, text, _ = run(capsys, "explain", "merge", tmp_path / "both.onnx", "-q", "--json")
    found = json.loads(text)
    assert status == 0 and {tuple(row["tasks"]) for row in found["layers"]} == {("a",), ("b",)}
    assert sum(row["macs"] for row in found["layers"]) == macs(graph)[frozenset("ab")]


def test_a_folder_is_refused(tmp_path, capsys):
    status, _, err = run(capsys, "explain", "merge", tmp_path, "-q")
    assert status == 2 and "is a folder" in err
