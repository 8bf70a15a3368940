"""Merge, then prune, then compile, as one release step: every method on the release files of this repository.

Each method's pipelines run at ever smaller budgets, with the pruner of the release files (closed-form recovery) and
with `narrow`, trained on the release's own calibration inputs, without labels, for the same number of epochs. Of
what keeps every task within the release's `max_accuracy_drop` the cheapest in expectation counts; of ours that
which computes no combination dearer than the others, if there is one. It is then compiled, and its gates are
checked on the library. The lattice knows what the other methods cost per combination: these are its caps.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.merging.methods import METHODS, WHOLE, macs
from benchmarks.merging.record import OURS, passes_of
from benchmarks.merging.rule import Subset
from benchmarks.peers.client import ROOT
from benchmarks.results import keep
from compiler import Graph, compile_release, load_config, parse_pass
from compiler.calibration.moments import content_key
from compiler.errors import BudgetError
from compiler.files import replace_whole
from compiler.ir.text import digest
from compiler.release import Release, load_release, resources

RECORD = "merging-releases"

RELEASES = ("fashion", "spoken")
"""Folders under models/ with a merged.toml: networks that were trained apart."""

EXACT = ("fold-constants", "fold-batch-norm", "remove-dead-code", "deduplicate")

BUDGETS = (0.7, 0.6, 0.5, 0.4, 0.3, 0.22, 0.16, 0.12)
"""Expected multiply-adds of a request, of what the separate networks cost before pruning."""

DISTIL = "distil{epochs=12,rate=0.002,loss=kl}"
"""A few hundred inputs are learnt by heart in more."""

CLOSED = "prune-channels{recover=least-squares}"
"""The pruner of the release files, to a share of the cost."""

LOSSES = (0.4, 0.2, 0.1, 0.05)
"""What tasks and layers of networks pruned apart may lose when their channels are joined, before training."""

PRUNED = "separate, pruned"

METHODS_OF = {PRUNED: "separate", "mtz": "mtz", "pam": "pam", OURS: OURS}
"""Name here, in the order in which methods run -> name in the study of families."""


def pipelines_of(method: str) -> tuple[str, ...]:
    """The pipelines that a method may take: its own, and each of its merges with the pruner of the releases."""
    own = METHODS[METHODS_OF[method]]
    merges = dict.fromkeys(p.rpartition(";")[0] for p in own)
    return (*(f"{m};{CLOSED}" for m in merges), *own)


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """A network within the gates. `pipeline`: the passes that lead there."""

    pipeline: tuple[str, ...]
    macs: dict[str, int]
    drops: dict[str, float]


class Bench:
    """One release file: every pipeline runs and is measured once, whichever methods may take it. What was measured
    lies in the folder `kept`, from where a run that was interrupted goes on; the compiler does not count.
    """

    def __init__(self, release: Release, kept: Path) -> None:
        self.release, self._kept = release, kept
        self._use = resources(release.config, release.graph)
        self._made: dict[tuple[str, ...], Graph] = {}

    def measured(self, start: tuple[str, ...], steps: tuple[str, ...] = ()) -> Result | None:
        """What `steps` make of the graph behind `start`; None where a budget is below what has to stay."""
        name, what = self.release.config.name, repr((start, steps))
        file = self._kept / f"release-{name}-{content_key(digest(self.release.graph), what)[:16]}.json"
        if not file.exists():
            found = self._measure(start, steps)
            self._kept.mkdir(parents=True, exist_ok=True)
            replace_whole(file, json.dumps(_record(found)).encode())
        held = json.loads(file.read_text())
        return None if held is None else Result(tuple(held["pipeline"]), held["macs"], held["drops"])

    def within(self, start: tuple[str, ...], steps: tuple[str, ...]) -> Result | None:
        """The same; None also where a task loses more than its limit."""
        found, limits = self.measured(start, steps), self.release.config.gates.max_accuracy_drop
        return None if found is None or any(found.drops[t] > n for t, n in limits.items()) else found

    def _measure(self, start: tuple[str, ...], steps: tuple[str, ...]) -> Result | None:
        if start not in self._made:
            self._made[start] = self._passed(self.release.graph, start)
        try:
            graph = self._passed(self._made[start], steps)
        except BudgetError:
            return None
        assert self._use.judge is not None
        return Result((*start, *steps), _named(macs(graph)), dict(self._use.judge(graph)))

    def _passed(self, graph: Graph, passes: Sequence[str]) -> Graph:
        for text in passes:
            graph = parse_pass(text)(graph, self._use)
        return graph


def run(name: str, kept: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The record of one release."""
    started = time.monotonic()
    config = load_config(ROOT / "models" / name / "merged.toml")
    bench = Bench(load_release(config), kept)
    found = {"separate": bench.measured(EXACT)}
    each: dict[str, dict[str, Result | None]] = {}
    for method in METHODS_OF:
        each[method] = candidates(bench, method, found)
        others = [r.macs for r in found.values() if r is not None] if method == OURS else []
        found[method] = best(each[method].values(), others)
        say(f"{name}: {method}: {each[method]}")
    ours = found[OURS]
    return {
        "name": name,
        "limits": dict(config.gates.max_accuracy_drop),
        "methods": {m: _record(r) for m, r in found.items()},
        "misses": misses(found),
        "pipelines": {m: {p: _record(r) for p, r in tried.items()} for m, tried in each.items()},
        "gates": [] if ours is None else compiled(bench.release, ours.pipeline),
        "minutes": round((time.monotonic() - started) / 60, 1),
    }


def candidates(bench: Bench, method: str, others: Mapping[str, Result | None]) -> dict[str, Result | None]:
    """Pipeline -> its smallest network within the limits. Ours has the caps of the others, and what was found for
    separate networks, which are the lattice's labels before anything is shared; their channels may then be joined.
    """
    if method != OURS:
        return {p: smallest(bench, p, "") for p in pipelines_of(method)}
    known = [r.macs for r in others.values() if r is not None]
    caps = ",caps=" + "+".join(f"{q.replace('+', '/')}:{n}" for q, n in least(known).items())
    apart = others[PRUNED]
    found = {PRUNED: apart, f"{PRUNED}, joined": None if apart is None else joined(bench, apart)}
    return found | {p: smallest(bench, p, caps) for p in pipelines_of(method)}


def best(found: Iterable[Result | None], others: Sequence[Mapping[str, int]] = ()) -> Result | None:
    """Of some results the cheapest in expectation, those first with which no combination costs more than with any
    of the `others`.
    """
    caps = least(others) if others else {}
    kept = [r for r in found if r is not None]
    return min(
        kept, key=lambda r: (any(r.macs[q] > n for q, n in caps.items()), sum(r.macs.values())), default=None
    )


def least(found: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Combination -> the fewest multiply-adds with which any of some networks computes it."""
    return {q: min(m[q] for m in found) for q in found[0]}


def misses(found: Mapping[str, Result | None]) -> dict[str, float | None]:
    """Combination that ours computes dearer than the cheapest other method -> by what factor (None: not at all)."""
    caps = least([r.macs for m, r in found.items() if r is not None and m != OURS])
    ours = found[OURS]
    if ours is None:
        return dict.fromkeys(caps)
    return {q: round(ours.macs[q] / n, 3) for q, n in caps.items() if ours.macs[q] > n}


def joined(bench: Bench, apart: Result) -> Result | None:
    """Networks pruned apart, with channels joined as far as the limits allow: no combination gets dearer."""
    for loss in LOSSES:
        found = bench.within(
            apart.pipeline, (f"merge{{max_loss={loss},max_drift={loss}}}", "dead-channels", DISTIL)
        )
        if found is not None:
            return found
    return None


def smallest(bench: Bench, pipeline: str, caps: str) -> Result | None:
    """A pipeline at the smallest of its budgets within the limits, found by halving; None where there is none."""
    tasks = bench.release.graph.tasks
    *merging, pruner = passes_of(pipeline, len(tasks))
    start = (*EXACT, *merging, DISTIL) if merging else EXACT
    shares = [b * expected(bench.measured(EXACT)) / expected(bench.measured(start)) for b in BUDGETS]
    tries = [narrowed(pruner, s, caps) for s in shares if s < 1]
    within, low, high = bench.within(start, ()), 0, len(tries)
    while within is not None and low < high:
        at = (low + high) // 2
        found = bench.within(start, tries[at])
        within, low, high = (within, low, at) if found is None else (found, at + 1, high)
    return within


def expected(found: Result | None) -> float:
    """Multiply-adds of a request, every combination equally likely."""
    assert found is not None
    return statistics.fmean(found.macs.values())


def narrowed(pruner: str, share: float, caps: str) -> tuple[str, ...]:
    """The passes that bring a graph down to a share of its cost, and train it."""
    if pruner == CLOSED:
        return f"prune-channels{{flops={share:.4f},recover=least-squares}}", DISTIL
    whole = ",whole=true" if pruner == WHOLE else caps
    return f"narrow{{flops={share:.4f},step=0.15,between=1.0,loss=kl,drawn=256{whole}}}", DISTIL


def _record(found: Result | None) -> dict[str, Any] | None:
    return None if found is None else dataclasses.asdict(found)


def _named(costs: Mapping[Subset, int]) -> dict[str, int]:
    return {"+".join(q): n for q, n in costs.items()}


def compiled(release: Release, pipeline: Sequence[str]) -> list[str]:
    """The verdicts of every gate of the release with this pipeline, host target, measured on the library."""
    config = dataclasses.replace(release.config, passes=tuple(pipeline), targets=("host",))
    with tempfile.TemporaryDirectory() as folder:
        outcome = compile_release(config, output=Path(folder) / "bundles")
    return [str(g) for g in outcome.gates]


def main(names: Sequence[str], kept: Path, save: Path | None, say: Callable[[str], None]) -> None:
    """Run some releases (none: all) and print their tables; a record keeps the other releases that it has."""
    for name in names or RELEASES:
        found = run(name, kept, say)
        print(table(found), flush=True)
        if save:
            keep(save, RECORD, recorded(save, found))


def recorded(folder: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """The record with one release in the place of what it said of it."""
    file = folder / f"{RECORD}.json"
    held = json.loads(file.read_text())["releases"] if file.exists() else []
    releases = [*(r for r in held if r["name"] != found["name"]), found]
    return {
        "command": "python -m benchmarks merging --releases",
        "seeds": [0],
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "minutes": round(sum(r["minutes"] for r in releases), 1),
        "releases": sorted(releases, key=lambda r: str(r["name"])),
    }


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
