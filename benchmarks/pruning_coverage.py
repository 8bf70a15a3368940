"""How far can channels be pruned? `prune-channels{parameters=0.5}` on networks with every kind of dependence.

Per network: the share of parameters kept (at most the budget, and no group's last step fits back in), the share of
channel atoms that can be removed, and the largest error of the exported file, run by onnxruntime, against the
masked original. Beside it onnxsim's own structured pruning at sparsity 0.5, at its best of several settings.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from benchmarks.networks import NETWORKS
from compiler.ir.graph import Graph
from compiler.ir.onnx_in import load
from compiler.ir.onnx_out import to_onnx
from compiler.ir.reference import difference, evaluate, random_feeds
from compiler.ir.ties import Closure
from compiler.passes.base import Resources
from compiler.passes.prune.channels import PruneChannels
from compiler.passes.prune.surgery import Mask, Removal, split_shared

BUDGET = 0.5
LIMIT = 1e-5


@dataclass(frozen=True)
class Row:
    """One network. `step`: share of parameters of the smallest step that could be put back."""

    network: str
    parameters: int
    kept: float
    step: float
    within_one_step: bool
    atoms: int
    reachable: float
    error: float
    equal: bool
    seconds: float
    refused: list[str]
    onnxsim_kept: float | None
    onnxsim_setting: str


def count(model: onnx.ModelProto) -> int:
    """Elements of float initializers."""
    arrays = (numpy_helper.to_array(t) for t in model.graph.initializer)
    return sum(a.size for a in arrays if a.dtype.kind == "f")


def prune(model: onnx.ModelProto, pass_: PruneChannels) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The pruned model, and what the row says about it."""
    start = time.perf_counter()
    graph = load(model)
    outcome = pass_.run(graph)
    seconds = time.perf_counter() - start
    original = graph.copy()
    split_shared(original)
    original.freeze()
    closure = pass_.closure(original, Resources())
    selection = pass_.select(original, closure, Resources())
    pruned = to_onnx(outcome.graph)
    error = masked_error(original, pruned, closure.removal(selection.atoms))
    kept = count(pruned) / count(to_onnx(graph))
    return pruned, {
        "kept": kept,
        "step": selection.step,
        "within_one_step": BUDGET - selection.step <= kept <= BUDGET,
        "atoms": len(closure.atoms),
        "reachable": reachable(closure),
        "error": error,
        "equal": error <= LIMIT,
        "seconds": round(seconds, 2),
        "refused": [str(r) for r in outcome.refusals],
    }


def reachable(closure: Closure) -> float:
    """Share of the channel atoms, frozen ones included, that lie in a group which may become narrower."""
    free = sum(len(group.atoms) for group in closure.groups if len(group.atoms) > 1)
    return free / len(closure.atoms)


def masked_error(original: Graph, pruned: onnx.ModelProto, removal: Removal) -> float:
    """Largest relative difference between onnxruntime on the pruned file and the masked original."""
    session = onnxruntime.InferenceSession(pruned.SerializeToString(), providers=["CPUExecutionProvider"])
    worst = 0.0
    for seed in range(3):
        feeds = random_feeds(original, np.random.default_rng(seed))
        expected = evaluate(original, feeds, edit=Mask(original, removal))
        found = session.run(None, feeds)
        worst = max([worst, *(difference(f, e) for f, e in zip(found, expected.values(), strict=True))])
    return worst


# ---------------------------------------------------------------------- onnxsim
def onnxsim_settings(onnxsim: Any) -> Iterator[tuple[str, Callable[[onnx.ModelProto], onnx.ModelProto]]]:
    """Its structured pruning, plain and C++, on the file as it is and simplified (batch norms fused)."""

    def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
        return onnxsim.simplify(model)[0]  # type: ignore[no-any-return]

    for name in ("apply_structured_pruning", "apply_structured_pruning_cpp"):
        function = getattr(onnxsim, name)
        yield name, lambda m, f=function: f(m, sparsity=0.5)
        yield f"simplify + {name}", lambda m, f=function: f(simplified(m), sparsity=0.5)
        yield (
            f"simplify + {name}, global",
            lambda m, f=function: f(simplified(m), sparsity=0.5, global_sparsity=True),
        )


def best_onnxsim(model: onnx.ModelProto) -> tuple[float | None, str]:
    """The smallest share of parameters that onnxsim keeps with a file that onnxruntime runs, and how."""
    try:
        onnxsim = importlib.import_module("onnxsim")
    except ImportError:
        return None, "not installed"
    best: tuple[float, str] = (1.0, "none")
    failures = []
    for setting, apply in onnxsim_settings(onnxsim):
        try:
            smaller = apply(onnx.ModelProto.FromString(model.SerializeToString()))
            run(smaller)
        except Exception as error:  # a setting that fails is part of the result
            failures.append(f"{setting}: {type(error).__name__}")
            continue
        best = min(best, (count(smaller) / count(model), setting))
    return best[0], "; ".join([best[1], *failures])


def run(model: onnx.ModelProto) -> None:
    """Run a model once on random inputs; raises what onnxruntime raises."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    session.run(None, {i.name: rng.standard_normal(i.shape).astype(np.float32) for i in session.get_inputs()})


# ---------------------------------------------------------------------- table
def row(name: str) -> Row:
    """Measure one network."""
    model = NETWORKS[name]()
    _, facts = prune(model, PruneChannels(parameters=BUDGET))
    kept, setting = best_onnxsim(model)
    return Row(network=name, parameters=count(model), onnxsim_kept=kept, onnxsim_setting=setting, **facts)


def table(rows: Sequence[Row]) -> str:
    """The rows for a terminal."""
    lines = [
        f"{'network':16}{'kept':>8}{'step':>8}{'reach':>8}{'error':>10}{'onnxsim':>10}  onnxsim's best setting"
    ]
    for r in rows:
        other = "-" if r.onnxsim_kept is None else f"{r.onnxsim_kept:.3f}"
        numbers = f"{r.kept:8.4f}{r.step:8.4f}{r.reachable:8.3f}{r.error:10.1e}{other:>10}"
        lines.append(f"{r.network:16}{numbers}  {r.onnxsim_setting}")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """0 if every row is within one step below the budget and equal to the masked original."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks pruning-coverage", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--only", nargs="+", default=list(NETWORKS), choices=list(NETWORKS), metavar="NETWORK")
    options = parser.parse_args(arguments)
    rows = [row(name) for name in options.only]
    if options.json:
        versions = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
        print(json.dumps({"budget": BUDGET, "versions": versions, "rows": [asdict(r) for r in rows]}, indent=1))
    else:
        print(table(rows))
    good = all(r.within_one_step and r.equal for r in rows)
    if not good:
        print("some rows miss the budget or differ from the masked original", file=sys.stderr)
    return 0 if good else 1
