"""Writes ONNX files that NNSmith 0.1.0 generates: `python nnsmith_corpus.py FOLDER --count N --seed S`.

Runs in an environment of its own with `nnsmith` and `torch`; taskgraft is not imported. One file per seed; a graph
that NNSmith or the exporter gives up on is counted by the type of its error. The export call is the legacy one
(`dynamo=False`), which NNSmith was written for.
"""

from __future__ import annotations

import argparse
import collections
import functools
import sys
import warnings
from pathlib import Path

import torch
from nnsmith.graph_gen import model_gen
from nnsmith.materialize import Model
from nnsmith.narrow_spec import auto_opset

DTYPES = ("f32", "bool", "i64")
SOLVER_MS = 3000


def write_one(path: Path, seed: int, operators: list[type], nodes: int) -> None:
    """Generate the graph of a seed and save it; raises whatever NNSmith and the exporter raise."""
    made = model_gen(
        opset=operators,
        method="symbolic-cinit",
        seed=seed,
        max_elem_per_tensor=2**13,
        max_nodes=nodes,
        timeout_ms=SOLVER_MS,
        dtype_choices=list(DTYPES),
    )
    model = Model.init("onnx", backend_target="cpu").from_gir(made.make_concrete())
    model.refine_weights()
    model.dump(str(path))


def main() -> int:
    """Write the corpus; prints how many graphs there are and what stopped the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=8, help="operators per graph, at most")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.onnx.export = functools.partial(torch.onnx.export, dynamo=False)
    kind = Model.init("onnx", backend_target="cpu")
    kind.add_seed_setter()
    operators = auto_opset(kind, None)
    options.folder.mkdir(parents=True, exist_ok=True)
    failed: collections.Counter[str] = collections.Counter()
    for seed in range(options.seed, options.seed + options.count):
        path = options.folder / f"nnsmith-{seed:06d}.onnx"
        if path.exists():
            continue
        try:
            write_one(path, seed, operators, options.nodes)
        except Exception as error:  # NNSmith and the exporter share no base class
            failed[type(error).__name__] += 1
            path.unlink(missing_ok=True)
    made = len(list(options.folder.glob("nnsmith-*.onnx")))
    print(f"{made} graphs in {options.folder}; not generated: {dict(failed) or 'none'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
