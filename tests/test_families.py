"""The trained families in models/: what their manifests say, exact sharing, whole releases on several targets."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.codegen.runtime import open_bundle
from compiler.compile import Compiled, compile_release
from compiler.config import load_config
from compiler.cost.combine import cost_report
from compiler.ir.onnx_in import load
from compiler.ir.reference import evaluate
from compiler.release import load_release, transform
from tests.codegen.emulated import linkable
from tests.shared import ROOT

MODELS = ROOT / "models"
LEAST = {
    ("fashion", "garment"): 0.91,
    ("spoken", "digit"): 0.97,
    ("spoken", "speaker"): 0.97,
}
"""Accuracy on all held-out data that a task must have."""


def manifest(family: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MODELS / family / "manifest.json").read_text())
    return found


def compiled(family: str, folder: Path, release: str = "release.toml", targets: tuple[str, ...] = ()) -> Compiled:
    for target in targets:
        linkable(target)
    return compile_release(load_config(MODELS / family / release), output=folder / "out", targets=targets)


TARGETS = {
    "fashion": ("host", "aarch64-cortex-a72"),
    "spoken": ("host", "armv7-neon"),
    "shared-backbone": ("host", "x86-64-v3", "aarch64-cortex-a76", "armv7-neon"),
}


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Compiled]:
    """Name of a family -> its release for TARGETS, compiled once."""
    return cache(lambda family: compiled(family, tmp_path_factory.mktemp(family), targets=TARGETS[family]))


@pytest.mark.parametrize(("family", "task"), LEAST, ids="/".join)
def test_accuracy_of_the_manifest_is_that_of_the_held_out_samples(family: str, task: str) -> None:
    row = manifest(family)["tasks"][task]
    assert row["accuracy"] >= LEAST[family, task]
    data = np.load(MODELS / family / "evaluation.npz")
    inputs, labels = data[next(k for k in data.files if data[k].ndim == 4)], data[task]
    graph = load(MODELS / family / f"{task}.onnx")
    own = graph.inputs[0].ref.name
    some = np.random.default_rng(0).choice(len(labels), 60, replace=False)
    right = [evaluate(graph, {own: inputs[i : i + 1]})[task].argmax() == labels[i] for i in some]
    assert np.mean(right) >= row["accuracy"] - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("family", TARGETS)
def test_a_family_compiles_and_passes_its_gates(family: str, releases: Callable[[str], Compiled]) -> None:
    found = releases(family)
    assert {b.target.name for b in found.builds} == set(TARGETS[family])
    verdicts = {(g.name, g.where): g.verdict for g in found.gates}
    assert {where for (name, where), v in verdicts.items() if v != "passed"} <= {*TARGETS[family]} - {"host"}
    assert verdicts["selftest", "host"] == "passed"
    tasks = set(manifest(family)["tasks"])
    assert {where for name, where in verdicts if name == "max_accuracy_drop"} == tasks
    assert {row.task for row in found.evaluation} == tasks
    for row in found.evaluation:
        assert row.final.metric == pytest.approx(row.original, abs=1e-3)


@pytest.mark.cross
def test_fashion_for_a_64_bit_arm(releases: Callable[[str], Compiled]) -> None:
    (built,) = (b for b in releases("fashion").builds if b.target.name == "aarch64-cortex-a72")
    assert built.selftest is not None
    if built.selftest.status == "skipped":
        pytest.skip(built.selftest.reason)
    assert built.selftest.status == "passed"


@pytest.mark.slow
@pytest.mark.parametrize(("family", "share"), [("spoken", 0.37), ("fashion", 0.60)])
def test_merged_then_pruned_keeps_the_gates_and_the_bits_of_every_subset(
    family: str, share: float, tmp_path: Path
) -> None:
    found = compiled(family, tmp_path, "merged.toml", ("host",))
    assert all(g.verdict == "passed" for g in found.gates)
    for row, apart in found.costs.pairs():
        assert apart is not None and row.cost.macs <= apart.cost.macs
    assert row.cost.flops <= share * apart.cost.flops
    assert found.records[4].name == "merge" and found.records[4].notes
    bundle = open_bundle(found.folder)
    data = np.load(MODELS / family / "sample.npz")
    feeds = {name: data[name] for name in data.files}
    full = bundle.run(feeds)
    for row in found.costs.combinations:
        part = bundle.run(feeds, tasks=row.tasks)
        assert all(np.array_equal(part[t], full[t]) for t in row.tasks)


@pytest.mark.slow
def test_pruning_with_recovery_keeps_the_accuracy_without_training(tmp_path: Path) -> None:
    found = compiled("fashion", tmp_path, "pruned.toml", ("host",))
    full = found.costs.combinations[-1].cost.flops
    assert 0.55 * found.costs.separate[-1].cost.flops < full <= 0.6 * found.costs.separate[-1].cost.flops
    assert all(g.verdict == "passed" for g in found.gates)


def test_a_shared_backbone_costs_one_trunk_and_its_heads() -> None:
    release = load_release(load_config(MODELS / "shared-backbone" / "release.toml"))
    graph, _ = transform(release)
    rows = {frozenset(r.tasks): r.cost.macs for r in cost_report(graph).combinations}
    alone = {t: rows[frozenset({t})] for t in graph.tasks}
    masks = graph.needed_masks()
    every = (1 << len(graph.tasks)) - 1
    trunk = sum(s.node.op.macs(s) for s in graph.sites() if masks[s.node.ref] == every)
    assert trunk > 0.7 * max(alone.values())
    for tasks, macs in rows.items():
        assert macs == trunk + sum(alone[t] - trunk for t in tasks)


def test_a_shared_backbone_gives_the_bits_of_the_separate_networks(releases: Callable[[str], Compiled]) -> None:
    config = load_config(MODELS / "shared-backbone" / "release.toml")
    graph, _ = transform(load_release(config))
    images = np.load(MODELS / "shared-backbone" / "evaluation.npz")["image"][:8]
    network = open_bundle(releases("shared-backbone").folder, "host")
    for image in images[:, None]:
        joint = evaluate(graph, {"image": image})
        for name, task in config.tasks.items():
            alone = load(config.path(task.model))
            (expected,) = evaluate(alone, {alone.inputs[0].ref.name: image}).values()
            (got,) = (joint[r.name] for r in graph.tasks[name].outputs)
            np.testing.assert_array_equal(got, expected)
            together = network.run({"image": image})[name]
            np.testing.assert_array_equal(network.run({"image": image}, tasks=[name])[name], together)
