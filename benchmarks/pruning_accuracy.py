"""What pruning without training costs: accuracy per score, before and after least-squares recovery.

Networks of `models/`, pruned with unlabelled calibration inputs to a share of their multiply-adds, on the family's
evaluation set, run by onnxruntime.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass

import numpy as np
import onnxruntime

from benchmarks.families import MODELS
from compiler.ir.graph import Graph
from compiler.ir.onnx_in import load
from compiler.ir.onnx_out import to_onnx
from compiler.passes.base import Resources
from compiler.passes.fold_batch_norm import FoldBatchNorm
from compiler.passes.prune.channels import PruneChannels

CASES = (("fashion", "garment", "image", 0.6), ("spoken", "digit", "logmel", 0.5))
"""Family, task, name of its inputs in the data files, share of multiply-adds that may stay."""

SCORES = ("random", "l2", "rms", "obs")
SAMPLES, EVALUATED = 96, 1000


@dataclass(frozen=True)
class Row:
    """Accuracies of one network under one score. `pruned` is without recovery, `recovered` with it."""

    network: str
    flops: float
    scope: str
    score: str
    original: float
    pruned: float
    recovered: float


def accuracy(graph: Graph, inputs: np.ndarray, labels: np.ndarray) -> float:
    """Share of samples whose largest output is the label."""
    session = onnxruntime.InferenceSession(to_onnx(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    found = [int(session.run(None, {name: x[None]})[0].argmax()) for x in inputs]
    return float(np.mean(np.array(found) == labels))


def rows(family: str, task: str, data: str, share: float) -> list[Row]:
    """All scores and scopes on one network."""
    graph = FoldBatchNorm()(load(MODELS / family / f"{task}.onnx"))
    held_out = np.load(MODELS / family / "evaluation.npz")
    inputs, labels = held_out[data][:EVALUATED], held_out[task][:EVALUATED]
    calibration = {graph.inputs[0].ref.name: np.load(MODELS / family / "calibration.npz")[data]}
    use, original = Resources(calibration=calibration), accuracy(graph, inputs, labels)
    found = []
    for scope in ("global", "local"):
        for score in SCORES:
            pair = [
                PruneChannels(flops=share, score=score, scope=scope, recover=recover, samples=SAMPLES)(graph, use)
                for recover in ("none", "least-squares")
            ]
            measured = [accuracy(g, inputs, labels) for g in pair]
            found.append(Row(f"{family}/{task}", share, scope, score, original, *measured))
    return found


def main(arguments: list[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks pruning-accuracy", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args(arguments)
    found = [row for case in CASES for row in rows(*case)]
    if options.json:
        print(json.dumps([asdict(r) for r in found], indent=1))
        return 0
    print(f"{'network':18}{'flops':>6}  {'scope':8}{'score':8}{'original':>9}{'pruned':>8}{'recovered':>10}")
    for r in found:
        line = f"{r.network:18}{r.flops:6.2f}  {r.scope:8}{r.score:8}"
        print(f"{line}{r.original:9.3f}{r.pruned:8.3f}{r.recovered:10.3f}")
    return 0
