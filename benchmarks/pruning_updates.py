"""What second-order updates are worth without training: accuracy of `sparsify` with update=none and update=obs.

Networks of `models/`, sparsified with unlabelled calibration inputs, on the family's evaluation set in onnxruntime.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.families import MODELS
from benchmarks.host import facts
from benchmarks.pruning_accuracy import accuracy
from benchmarks.results import keep
from compiler.ir.onnx_in import load
from compiler.passes.base import Resources
from compiler.passes.fold_batch_norm import FoldBatchNorm
from compiler.pipeline import parse

CASES = (
    ("fashion", "garment", "image"),
    ("fashion", "kind", "image"),
    ("fashion", "season", "image"),
    ("spoken", "digit", "logmel"),
    ("spoken", "speaker", "logmel"),
)
"""Family, task, name of its inputs in the data files."""

PATTERNS = (
    "pattern=block16x1,density=0.5",
    "pattern=block16x1,density=0.25",
    "pattern=regular4",
    "pattern=regular8",
    "pattern=darb,density=0.125",
    "pattern=unstructured,density=0.1",
)


@dataclass(frozen=True)
class Row:
    """Accuracies of one network under one pattern: dense, by magnitude alone, with the update."""

    network: str
    pattern: str
    samples: int
    original: float
    magnitude: float
    obs: float


def rows(family: str, task: str, data: str, patterns: tuple[str, ...]) -> Iterator[Row]:
    """All patterns on one network."""
    graph = FoldBatchNorm()(load(MODELS / family / f"{task}.onnx"))
    with np.load(MODELS / family / "evaluation.npz") as held:
        inputs, labels = held[data], held[task]
    with np.load(MODELS / family / "calibration.npz") as held:
        use = Resources(calibration={graph.inputs[0].ref.name: held[data]})
    original = accuracy(graph, inputs, labels)
    for pattern in patterns:
        found = [
            accuracy(parse(f"sparsify{{{pattern},update={update}}}")(graph, use), inputs, labels)
            for update in ("none", "obs")
        ]
        yield Row(f"{family}/{task}", pattern, len(labels), original, *found)


def main(arguments: list[str]) -> int:
    """Print the table; `--save` writes pruning-updates.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks pruning-updates", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one network, two patterns")
    parser.add_argument("--json", action="store_true", help="print the record as JSON")
    parser.add_argument("--save", type=Path, help="folder for pruning-updates.json")
    options = parser.parse_args(arguments)
    cases, patterns = (CASES[3:4], PATTERNS[:2]) if options.quick else (CASES, PATTERNS)
    found = []
    for case in cases:
        for row in rows(*case, patterns):
            found.append(row)
            if not options.json:
                scores = f"{row.original:.3f}  {row.magnitude:.3f}  {row.obs:.3f}"
                print(f"{row.network:16}{row.pattern:34}{scores}", flush=True)
    record = {
        "command": "python -m benchmarks pruning-updates" + " --quick" * options.quick,
        "seeds": [0],
        "versions": facts()["versions"],
        "rows": [asdict(r) for r in found],
    }
    if options.json:
        print(json.dumps(record, indent=1))
    if options.save:
        keep(options.save, "pruning-updates", record)
    return 0
