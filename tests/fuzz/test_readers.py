"""Damaged files end in the readers' own errors, touch nothing outside their folder, and stay small in memory."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.fuzz import readers
from benchmarks.fuzz.readers import READERS, Watch, attacked, by_seed
from compiler.calibration.data import load_arrays
from compiler.codegen.bundle import read_bundle, read_index
from compiler.codegen.manifest import parse_manifest
from compiler.errors import BundleError, ConfigError, PassError, UnsafeInputError, UnsupportedModelError
from compiler.ir.onnx_in import load
from compiler.passes.base import Resources
from compiler.passes.prune.channels import PruneChannels
from tests.graphs import Builder
from tests.ir.onnx_models import parse

INPUTS = {"onnx": 150, "release": 60, "index": 60, "bundle": 60, "data": 60, "spec": 60, "tuning": 60}
"""Damaged files per reader here; the study feeds them for hours."""


@pytest.mark.parametrize("name", INPUTS)
def test_damaged_files_end_in_errors_of_ours(name: str) -> None:
    with attacked(name) as attack:
        by_seed(attack, seed=1, seconds=60, most=INPUTS[name])
        assert not attack.findings, list(attack.findings)
        assert attack.counts.total() > INPUTS[name]
        assert attack.counts["accepted"] > 0


def test_every_reader_is_attacked_here_or_needs_a_whole_build() -> None:
    assert set(READERS) - set(INPUTS) == {"plan"}


def test_coverage_without_what_guides_is_said_and_no_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(readers.importlib.util, "find_spec", lambda name: None)
    assert readers.attack(1.0, 0, coverage=True) == readers.main(["spec", "--coverage"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("pip install atheris") == 2 and "FOUND" not in captured.out


def test_what_makes_the_seeds_is_mapped_before_memory_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler beside what instruments it would take all that inputs may take."""
    order = []

    def seeds() -> list[bytes]:
        order.append("seeds")
        return [b"fold-constants"]

    monkeypatch.setitem(readers.READERS, "spec", replace(READERS["spec"], seeds=seeds))
    monkeypatch.setattr(readers, "_limit_memory", lambda: order.append("limit"))
    assert readers.main(["spec", "--seconds", "0"]) == 0
    assert order[:2] == ["seeds", "limit"]


def test_a_file_outside_the_folder_is_seen(tmp_path: Path) -> None:
    watch = Watch(tmp_path / "here", active=True)
    watch.hear("open", (str(tmp_path / "secret"), "r", 0))
    watch.hear("open", (str(tmp_path / "here" / "own"), "r", 0))
    assert watch.outside == [str(tmp_path / "secret")]


# ---------------------------------------------------------------------- what the fuzzing found
@pytest.mark.parametrize("version", [-3, 2**40], ids=str)
def test_an_opset_no_integer_of_onnx_holds(version: int) -> None:
    model = parse("net (float[2] x) => (float[2] z) { z = Relu(x) }", 17)
    if version > 0:
        function = onnx.FunctionProto(name="F", domain="own")
        function.opset_import.add(domain="", version=version)
        model.functions.append(function)
    else:
        model.opset_import[0].version = version
    with pytest.raises((UnsafeInputError, UnsupportedModelError), match=r"does not exist|newer than the installed"):
        load(model)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[" * 100_000, "is not JSON"),
        (b'{"schema": 1, "targets": {"host": {}}, "name": "n"}', r"targets\.host\.manifest_sha256 is missing"),
        (b'{"schema": 1, "targets": ["host"], "name": "n"}', "targets is not a table"),
    ],
    ids=["nested", "incomplete", "list"],
)
def test_an_index_of_another_form(text: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_bytes(text)
    with pytest.raises(BundleError, match=words):
        read_index(tmp_path)


@pytest.mark.parametrize("target", ["../secret", "/etc", "..", "a/b", "", "\0", ".hidden"])
def test_an_index_leads_nowhere_else(target: str, tmp_path: Path) -> None:
    """Found by coverage: another bundle, with the digest its manifest has, was opened wherever the index said."""
    record = {"schema": 1, "name": "n", "targets": {target: {"manifest_sha256": "0" * 64, "linked": True}}}
    (tmp_path / "index.json").write_text(json.dumps(record))
    with pytest.raises(BundleError, match="is not the name of a target"):
        read_index(tmp_path)


def test_a_target_that_is_a_link_is_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "manifest.json").write_text("{}")
    (root := tmp_path / "root").mkdir()
    (root / "host").symlink_to(outside)
    digest = hashlib.sha256(b"{}").hexdigest()
    record = {"schema": 1, "name": "n", "targets": {"host": {"manifest_sha256": digest, "linked": True}}}
    (root / "index.json").write_text(json.dumps(record))
    with pytest.raises(BundleError, match="is a link"):
        read_bundle(root)


def test_a_manifest_of_another_form_names_every_place() -> None:
    target = {"name": "host", "preset": "x86-64-v3", "arch": "x86_64", "lanes": True, "features": [1]}
    record = {"schema": 1, "name": "n", "abi": 1, "linked": False, "target": target, "tasks": {}, "subsets": []}
    record |= {"build_id": "b", "levels": [], "switch_points": []}
    record |= {"io": {"inputs": [], "outputs": [{"name": "y"}]}, "files": {"a": {"sha256": None}}}
    with pytest.raises(BundleError) as caught:
        parse_manifest(json.dumps(record).encode(), "m")
    text = str(caught.value)
    for words in (
        "target.lanes is true, not of type int",
        "target.features[0] is 1, not of type str",
        "tasks is not a list",
        "io.outputs[0].label is missing",
        "files.a.sha256 is null, not of type str",
    ):
        assert words in text


def test_data_whose_compressed_bytes_are_damaged(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, image=np.arange(4000, dtype=np.float32))
    data = bytearray(buffer.getvalue())
    data[200:260] = bytes(60)
    (tmp_path / "data.npz").write_bytes(data)
    with pytest.raises(ConfigError, match=r"data\.npz: not an \.npz file of plain arrays"):
        load_arrays("data.npz", tmp_path)


def test_pruning_what_has_no_weights_is_refused() -> None:
    b = Builder()
    b.task("t", b.apply("Relu", b.input("x", 1, 3, 4, 4)))
    with pytest.raises(PassError, match="there is nothing to save"):
        PruneChannels(parameters=0.5)(b.done())


def test_calibration_data_without_an_axis_of_samples_is_refused() -> None:
    b = Builder()
    b.task("t", b.apply("Relu", b.input("x")))
    with pytest.raises(PassError, match="'x' has no axis of samples"):
        list(Resources(calibration={"x": np.ones((), np.float32)}).batches(b.done()))
