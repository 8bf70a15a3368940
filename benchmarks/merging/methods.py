"""Methods of merging, each swept over the same budgets with the same pruner and the same training."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.merging.families import Data, Effort
from benchmarks.merging.rule import Point, Subset, all_subsets
from benchmarks.merging.training import accuracy, distilled
from compiler import Graph, cost_report, parse_pass
from compiler.passes.base import Resources
from compiler.passes.prune.channels import PruneChannels

SHARES = (0.6, 0.4, 0.28, 0.2, 0.14)
"""Budgets: expected multiply-adds of a request, of what the separate networks cost before pruning."""

SAMPLES = 256
"""Calibration inputs of merging and of pruning."""

PUSH = 6
"""How strongly subsets that are dear for their cap weigh in what pruning saves."""

METHODS: dict[str, tuple[str, ...]] = {
    "separate": ("",),
    "mtz": ("merge{policy=mtz}",),
    "pam": ("merge{policy=pam}",),
    "zipit": ("merge{policy=zipit}",),
    "lattice": ("merge{policy=lattice,start=shared}",),
}
"""Method -> how it may start. Where there are several, the selection data choose; every one is trained alike."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all methods of one family and seed have in common. `originals`: the single networks, joined."""

    originals: Graph
    data: Data
    effort: Effort
    seed: int
    say: Callable[[str], None]

    def use(self, graph: Graph, caps: Mapping[Subset, float] | None) -> Resources:
        """Resources with the workload that pruning is priced by: uniform, or pushed towards the caps."""
        inputs = {self.originals.inputs[0].ref.name: self.data.unlabelled[:, None]}
        weights = {frozenset(q): 1.0 for q in all_subsets(tuple(graph.tasks))}
        if caps:
            now = macs(graph)
            weights = {frozenset(q): (now[q] / caps[q]) ** PUSH / caps[q] for q in now}
        return Resources(calibration=inputs, seed=self.seed, workload=weights, teacher=self.originals)


def macs(graph: Graph) -> dict[Subset, int]:
    """Multiply-adds of every subset."""
    found = {frozenset(r.tasks): r.cost.macs for r in cost_report(graph).combinations}
    return {q: int(found[frozenset(q)]) for q in all_subsets(tuple(graph.tasks))}


def expected_macs(graph: Graph) -> float:
    """Multiply-adds of a request, every subset equally likely."""
    return statistics.fmean(macs(graph).values())


def sweep(setting: Setting, start: str, caps: Mapping[Subset, float] | None = None) -> list[Point]:
    """A start, trained, and pruned from budget to budget; every budget is trained for the same number of epochs."""
    graph, whole = setting.originals, expected_macs(setting.originals)
    if start:
        graph = parse_pass(start)(graph, _few(setting.use(graph, None), SAMPLES))
    graph = distilled(graph, setting.use(graph, None), setting.effort.merged)
    points = [_point(setting, graph, whole)]
    for share in SHARES:
        graph = _pruned(setting, graph, share * whole / expected_macs(graph), caps)
        graph = distilled(graph, setting.use(graph, None), setting.effort.pruned)
        points.append(_point(setting, graph, whole))
        setting.say(f"  {start or 'separate'} at {points[-1].share:.2f}: {_shown(points[-1].selection)}")
    return points


def _pruned(setting: Setting, graph: Graph, ratio: float, caps: Mapping[Subset, float] | None) -> Graph:
    """The graph at a share of its cost; as it is where it costs no more already."""
    if ratio >= 1:
        return graph
    use = _few(setting.use(graph, caps), SAMPLES)
    return PruneChannels(flops=ratio, score="fisher", floor=0.02, samples=SAMPLES)(graph, use)


def _few(use: Resources, count: int) -> Resources:
    """The same resources with the first calibration inputs only."""
    assert isinstance(use.calibration, dict)
    return replace(use, calibration={n: np.asarray(a[:count]) for n, a in use.calibration.items()})


def _point(setting: Setting, graph: Graph, whole: float) -> Point:
    data, share = setting.data, expected_macs(graph) / whole
    return Point(share, accuracy(graph, data.selection), accuracy(graph, data.report), macs(graph))


def _shown(found: Mapping[str, float]) -> str:
    return ", ".join(f"{t} {a:.2f}" for t, a in found.items())
