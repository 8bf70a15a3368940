"""Merge, then prune, then compile, as one release step: every method on the release files of this repository.

Each method's pipelines run with ever smaller budgets, trained on the release's own calibration inputs, without
labels, for the same number of epochs. What is cheapest in expectation and keeps every task within the release's
`max_accuracy_drop` counts; ours is then compiled, and its gates are checked on the library. The lattice knows what
the other methods cost per combination: these are its caps.
"""

from __future__ import annotations

import dataclasses
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.merging.methods import METHODS, WHOLE, expected_macs, macs
from benchmarks.merging.record import OURS, passes_of
from benchmarks.merging.rule import Subset
from benchmarks.peers.client import ROOT
from benchmarks.results import keep
from compiler import Graph, compile_release, load_config, parse_pass
from compiler.errors import BudgetError
from compiler.passes.base import Resources
from compiler.release import Release, load_release, resources

RELEASES = ("fashion", "spoken")
"""Folders under models/ with a merged.toml: networks that were trained apart."""

EXACT = ("fold-constants", "fold-batch-norm", "remove-dead-code", "deduplicate")

BUDGETS = (0.7, 0.5, 0.4, 0.3, 0.22, 0.16, 0.12, 0.09)
"""Expected multiply-adds of a request, of what the separate networks cost before pruning."""

DISTIL = "distil{epochs=40,rate=0.002,loss=kl}"

PRUNED = "separate, pruned"

PIPELINES: Mapping[str, tuple[str, ...]] = {
    PRUNED: METHODS["separate"],
    "mtz": METHODS["mtz"],
    "pam": METHODS["pam"],
    OURS: METHODS[OURS],
}
"""Method -> the pipelines that it may take, in the order in which methods run. Separate networks are the lattice's
labels before anything is shared, so it may take what they found too.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """A method at its smallest budget within the gates. `pipeline`: the passes that lead there."""

    pipeline: tuple[str, ...]
    macs: dict[str, int]
    drops: dict[str, float]


def run(name: str, say: Callable[[str], None]) -> dict[str, Any]:
    """The record of one release."""
    started = time.monotonic()
    config = load_config(ROOT / "models" / name / "merged.toml")
    release = load_release(config)
    separate = passed(release.graph, EXACT, resources(release.config, release.graph))
    found: dict[str, Result | None] = {
        "separate": Result(EXACT, _named(macs(separate)), dict.fromkeys(separate.tasks, 0.0))
    }
    for method in PIPELINES:
        found[method] = best(release, method, found)
        say(f"{name}: {method}: {found[method]}")
    ours = found[OURS]
    return {
        "name": name,
        "limits": dict(config.gates.max_accuracy_drop),
        "methods": {m: None if r is None else dataclasses.asdict(r) for m, r in found.items()},
        "gates": [] if ours is None else compiled(release, ours.pipeline),
        "minutes": round((time.monotonic() - started) / 60, 1),
    }


def best(release: Release, method: str, others: Mapping[str, Result | None]) -> Result | None:
    """The cheapest of a method's pipelines in expectation; None where none keeps the limits at any budget."""
    caps = ""
    found = []
    if method == OURS:
        known = [r.macs for r in others.values() if r is not None]
        caps = ",caps=" + "+".join(f"{q.replace('+', '/')}:{min(m[q] for m in known)}" for q in known[0])
        found.append(others[PRUNED])
    found += [smallest(release, p, caps) for p in PIPELINES[method]]
    kept = [r for r in found if r is not None]
    return min(kept, key=lambda r: sum(r.macs.values()), default=None)


def smallest(release: Release, pipeline: str, caps: str) -> Result | None:
    """A pipeline at ever smaller budgets until a task loses more than its limit; None where it always does."""
    use = resources(release.config, release.graph)
    assert use.judge is not None
    limits = release.config.gates.max_accuracy_drop
    before = passed(release.graph, EXACT, use)
    *merging, pruner = passes_of(pipeline, len(before.tasks))
    first = [*merging, DISTIL] if merging else []
    begun = passed(before, first, use)
    within = None
    for share in (1.0, *(b * expected_macs(before) / expected_macs(begun) for b in BUDGETS)):
        if share >= 1 and within is not None:
            continue
        whole = ",whole=true" if pruner == WHOLE else caps
        steps = [f"narrow{{flops={share:.4f},between=1.0,loss=kl{whole}}}", DISTIL] if share < 1 else []
        try:
            graph = passed(begun, steps, use)
        except BudgetError:
            break
        drops = dict(use.judge(graph))
        if any(drops[t] > limit for t, limit in limits.items()):
            break
        within = Result((*EXACT, *first, *steps), _named(macs(graph)), drops)
    return within


def _named(costs: Mapping[Subset, int]) -> dict[str, int]:
    return {"+".join(q): n for q, n in costs.items()}


def passed(graph: Graph, passes: Sequence[str], use: Resources) -> Graph:
    """The graph behind some passes."""
    for text in passes:
        graph = parse_pass(text)(graph, use)
    return graph


def compiled(release: Release, pipeline: Sequence[str]) -> list[str]:
    """The verdicts of every gate of the release with this pipeline, host target, measured on the library."""
    config = dataclasses.replace(release.config, passes=tuple(pipeline), targets=("host",))
    with tempfile.TemporaryDirectory() as folder:
        outcome = compile_release(config, output=Path(folder) / "bundles")
    return [str(g) for g in outcome.gates]


def main(names: Sequence[str], save: Path | None, say: Callable[[str], None]) -> None:
    """Run some releases (none: all) and print their tables."""
    found = [run(n, say) for n in names or RELEASES]
    record = {
        "command": " ".join(["python -m benchmarks merging --releases", *names]),
        "seeds": [0],
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "minutes": sum(f["minutes"] for f in found),
        "releases": found,
    }
    for release in found:
        print(table(release), flush=True)
    if save:
        keep(save, "merging-releases", record)


def table(release: Mapping[str, Any]) -> str:
    """A release as Markdown."""
    methods = release["methods"]
    lines = [f"| {release['name']} | {' | '.join(methods)} |", "|---|" + "--:|" * len(methods)]
    for combination in methods["separate"]["macs"]:
        cells = ("–" if m is None else f"{m['macs'][combination]:,}" for m in methods.values())
        lines.append(f"| {combination.replace('+', ' + ')} | {' | '.join(cells)} |")
    worst = ("–" if m is None else f"{100 * max(m['drops'].values()):.2f}" for m in methods.values())
    lines.append(f"| worst drop, points | {' | '.join(worst)} |")
    return "\n".join(lines)
