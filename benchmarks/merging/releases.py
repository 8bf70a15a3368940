"""Merge, then prune, then compile, as one release step: every method on the release files of this repository.

Each method's pipeline runs with ever smaller budgets, trained on the release's own calibration inputs, without
labels, for the same number of epochs. The smallest one that keeps every task within the release's
`max_accuracy_drop` counts; ours is then compiled, and its gates are checked on the library.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.merging.methods import OURS, SHARED
from benchmarks.peers.client import ROOT
from compiler import Graph, compile_release, cost_report, load_config, parse_pass
from compiler.passes.base import Resources
from compiler.release import Release, load_release, resources

RELEASES = ("fashion", "spoken")
"""Folders under models/ with a merged.toml: networks that were trained apart."""

EXACT = ("fold-constants", "fold-batch-norm", "remove-dead-code", "deduplicate")

BUDGETS = (1.0, 0.7, 0.5, 0.4, 0.3, 0.22, 0.16, 0.12, 0.09)
"""Expected multiply-adds of a request, of what the separate networks cost before pruning."""

DISTIL = "distil{epochs=40,rate=0.002,loss=kl}"

STARTS: dict[str, tuple[str, ...]] = {
    "separate": (),
    "separate, pruned": (),
    "mtz": ("merge{policy=mtz}", DISTIL),
    "pam": ("merge{policy=pam}", DISTIL),
    OURS: (*SHARED.split(";"), DISTIL),
}
"""Method -> what it does before it is narrowed; the first one is not narrowed at all."""


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """A method at its smallest budget within the gates. `pipeline`: the passes that lead there."""

    method: str
    pipeline: tuple[str, ...]
    budget: float
    macs: dict[str, int]
    drops: dict[str, float]


def run(name: str, say: Any) -> dict[str, Any]:
    """The record of one release."""
    started = time.monotonic()
    config = load_config(ROOT / "models" / name / "merged.toml")
    release = load_release(config)
    limits = config.gates.max_accuracy_drop
    found = []
    for method, start in STARTS.items():
        result = smallest(release, method, start, limits)
        say(f"{name}: {method}: {result.macs if result else 'keeps the gates at no budget'}")
        found.append(result or Result(method, start, float("nan"), {}, {}))
    gates = compiled(release, found[-1].pipeline)
    return {
        "name": name,
        "limits": dict(limits),
        "methods": [dataclasses.asdict(r) for r in found],
        "gates": gates,
        "minutes": round((time.monotonic() - started) / 60, 1),
    }


def smallest(release: Release, method: str, start: Sequence[str], limits: Any) -> Result | None:
    """The method at ever smaller budgets until a task loses more than its limit."""
    use = resources(release.config, release.graph)
    before = passed(release.graph, [*EXACT], use)
    whole = expected(before)
    begun = passed(before, starts(start, len(before.tasks)), use)
    best = None
    for budget in (1.0,) if method == "separate" else BUDGETS:
        share = budget * whole / expected(begun)
        narrowed = f"narrow{{flops={share:.4f},between=1.0,loss=kl,whole={str(method != OURS).lower()}}}"
        steps = [narrowed, DISTIL] if share < 1 else []
        graph = passed(begun, steps, use)
        assert use.judge is not None
        drops = dict(use.judge(graph))
        if any(drops[t] > limit for t, limit in limits.items()):
            break
        pipeline = (*EXACT, *starts(start, len(before.tasks)), *steps)
        best = Result(method, pipeline, budget, macs(graph), drops)
    return best


def starts(texts: Sequence[str], tasks: int) -> list[str]:
    """The passes with the share that one network's width is."""
    return [t.replace("FIRST", f"{tasks**-2:.4f}") for t in texts]


def passed(graph: Graph, passes: Sequence[str], use: Resources) -> Graph:
    """The graph behind some passes."""
    for text in passes:
        graph = parse_pass(text)(graph, use)
    return graph


def macs(graph: Graph) -> dict[str, int]:
    """Multiply-adds of every combination."""
    return {"+".join(r.tasks): int(r.cost.macs) for r in cost_report(graph).combinations}


def expected(graph: Graph) -> float:
    """Multiply-adds of a request, every combination equally likely."""
    costs = macs(graph)
    return sum(costs.values()) / len(costs)


def compiled(release: Release, pipeline: Sequence[str]) -> list[str]:
    """The verdicts of every gate of the release with this pipeline, host target, measured on the library."""
    config = dataclasses.replace(release.config, passes=tuple(pipeline), targets=("host",))
    with tempfile.TemporaryDirectory() as folder:
        outcome = compile_release(config, output=Path(folder) / "bundles")
    return [str(g) for g in outcome.gates]


def main(names: Sequence[str], save: Path | None, say: Any) -> None:
    """Run some releases (none: all) and print their tables."""
    found = [run(n, say) for n in names or RELEASES]
    record = {
        "command": "python -m benchmarks merging --releases",
        "seeds": [0],
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "minutes": sum(f["minutes"] for f in found),
        "releases": found,
    }
    for release in found:
        print(table(release), flush=True)
    if save:
        (save / "merging-releases.json").write_text(json.dumps(record, indent=1) + "\n")


def table(release: dict[str, Any]) -> str:
    """A release as Markdown."""
    methods = release["methods"]
    lines = [f"| {release['name']} | {' | '.join(m['method'] for m in methods)} |", "|---|" + "--:|" * len(methods)]
    for combination in methods[0]["macs"]:
        cells = (f"{m['macs'][combination]:,}" if m["macs"] else "–" for m in methods)
        lines.append(f"| {combination.replace('+', ' + ')} | {' | '.join(cells)} |")
    worst = (f"{100 * max(m['drops'].values()):.2f}" if m["drops"] else "–" for m in methods)
    lines.append(f"| worst drop, points | {' | '.join(worst)} |")
    return "\n".join(lines)
