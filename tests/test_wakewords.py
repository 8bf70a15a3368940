"""Eight wake-word networks of other people: every combination listed, one bundle."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from compiler.codegen.runtime import open_bundle
from compiler.compile import compile_release
from compiler.config import parse_config
from tests.shared import shared_path


def test_all_255_combinations_in_one_bundle(tmp_path: Path) -> None:
    files = {
        f.stem.lower().replace("__", "_"): f for f in sorted(shared_path("models", "wakewords").glob("*.onnx"))
    }
    names = [n for size in range(1, 9) for n in itertools.combinations(files, size)]
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", embedding=(3 * rng.standard_normal((128, 16, 96))).astype(np.float32))
    merge = ["fold-constants", "fold-batch-norm", "remove-dead-code", "merge{max_loss=0.01}", "dead-channels"]
    release = {
        "schema": 1,
        "name": "wakewords",
        "input": {"embedding": {"shape": [1, 16, 96]}},
        "tasks": {name: {"model": str(path)} for name, path in files.items()},
        "calibration": {"data": "data.npz"},
        "passes": {"pipeline": merge},
        "subsets": {"include": ["+".join(n) for n in names]},
    }
    found = compile_release(parse_config(release, tmp_path), output=tmp_path / "out")
    assert [row.tasks for row in found.costs.combinations] == names and len(names) == 255
    assert all(row.cost.macs <= apart.cost.macs for row, apart in found.costs.pairs() if apart)
    (record,) = (r for r in found.records if r.name == "merge")
    assert any("ReduceMean" in r.reason and r.reason.startswith("not shared") for r in record.refusals)
    bundle = open_bundle(tmp_path / "out")
    feeds = {"embedding": (3 * rng.standard_normal((1, 16, 96))).astype(np.float32)}
    full = bundle.run(feeds)
    for tasks in names[::16]:
        part = bundle.run(feeds, tasks=tasks)
        assert all(np.array_equal(part[t], full[t]) for t in tasks)
