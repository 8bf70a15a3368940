"""Methods of merging, each swept over the same budgets with the same pruner and the same training."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.merging.families import Data, Effort
from benchmarks.merging.record import passes_of
from benchmarks.merging.rule import Point, Subset, all_subsets
from benchmarks.merging.training import accuracy, distilled
from compiler import Graph, cost_report, parse_pass
from compiler.errors import BudgetError
from compiler.passes.base import Resources
from compiler.passes.narrow.narrowing import Narrow, Narrowing

SAMPLES = 1024
"""Calibration inputs of merging."""

BETWEEN = 0.1
"""Epochs of training between two steps of pruning."""

SHARED = "merge{policy=lattice,start=shared};prune-channels{flops=FIRST,floor=0.2,score=obs,samples=1024}"
"""Everything for all, then the channels that all layers together need most, about as many as one network has; each
network keeps a fifth of every layer, as an axis of one entry counts no channels any more.
"""

WHOLE = "narrow{whole=true}"

PAM_PRUNED = (
    f"merge{{policy=pam}};prune-channels{{flops=FIRST,floor=0.2,score=obs,samples=1024,multiple=2}};{WHOLE}"
)
"""What PAM is for large networks. It gives all tasks every channel of all networks, so that five of them take 25
times one's multiply-adds, which nobody trains here: as the shared start does, it begins with the channels that are
needed most. Channels stay in pairs, as one alone could not be narrowed.
"""

METHODS: dict[str, tuple[str, ...]] = {
    "separate": (WHOLE,),
    "mtz": (f"merge{{policy=mtz}};{WHOLE}",),
    "pam": (f"merge{{policy=pam}};{WHOLE}",),
    "zipit": (f"merge{{policy=zipit}};{WHOLE}",),
    "lattice": ("merge{policy=mtz};narrow", f"{SHARED};narrow", f"{SHARED};{WHOLE}"),
}
"""Method -> the pipelines it may take: a merge, or none, and the pruner. Where there are several, the selection
data choose; every one is trained alike.
"""


def pipelines(method: str, large: bool) -> tuple[str, ...]:
    """The pipelines that a method may take for a family; `large`: of networks too large for PAM as published."""
    return (PAM_PRUNED,) if large and method == "pam" else METHODS[method]


@dataclass(frozen=True, slots=True)
class Setting:
    """What all methods of one family and seed have in common. `originals`: the single networks, joined.

    `shares`: budgets of the expected call, of what the separate networks cost before pruning.
    """

    originals: Graph
    data: Data
    effort: Effort
    shares: tuple[float, ...]
    seed: int
    say: Callable[[str], None]

    def use(self, graph: Graph) -> Resources:
        """Unlabelled inputs, every combination equally likely, and the single networks to learn from."""
        inputs = {self.originals.inputs[0].ref.name: self.data.unlabelled[:, None]}
        weights = {frozenset(q): 1.0 for q in all_subsets(tuple(graph.tasks))}
        return Resources(calibration=inputs, seed=self.seed, workload=weights, teacher=self.originals)


def macs(graph: Graph) -> dict[Subset, int]:
    """Multiply-adds of every subset."""
    found = {frozenset(r.tasks): r.cost.macs for r in cost_report(graph).combinations}
    return {q: int(found[frozenset(q)]) for q in all_subsets(tuple(graph.tasks))}


def expected_macs(graph: Graph) -> float:
    """Multiply-adds of a request, every subset equally likely."""
    return statistics.fmean(macs(graph).values())


def merging_of(setting: Setting, pipeline: str) -> tuple[str, ...]:
    """The passes of a pipeline in front of the pruner; none where networks stay apart."""
    return tuple(passes_of(pipeline, len(setting.originals.tasks))[:-1])


def merged(setting: Setting, passes: Sequence[str]) -> Graph:
    """The single networks merged by some passes, and trained; what is not merged has nothing to learn from."""
    graph = setting.originals
    for text in passes:
        graph = parse_pass(text)(graph, _few(setting.use(graph), SAMPLES))
    return distilled(graph, setting.use(graph), setting.effort.merged) if passes else graph


def sweep(
    setting: Setting, pipeline: str, graph: Graph, caps: Mapping[Subset, float] | None = None
) -> Iterator[tuple[Point, Graph]]:
    """What was `merged`, and that narrowed from budget to budget; each budget's network is trained to its end.

    It ends early where a budget is below what has to stay.
    """
    whole = expected_macs(setting.originals)
    last = passes_of(pipeline, len(graph.tasks))[-1]
    yield _point(setting, graph, 1.0, whole), graph
    use = setting.use(graph)
    pruner = parse_pass(last)
    assert isinstance(pruner, Narrow)
    narrowing = Narrowing(replace(pruner, loss="kl", between=BETWEEN), graph, use)
    limits = {frozenset(q): n for q, n in (caps or {}).items()}
    for share in setting.shares:
        if share * whole >= narrowing.first:
            continue
        try:
            narrowing.down_to(share * whole / narrowing.first, limits)
        except BudgetError as error:
            setting.say(f"  {pipeline} ends above {share}: {error}")
            return
        trained = distilled(narrowing.graph(), use, setting.effort.pruned)
        point = _point(setting, trained, share, whole)
        setting.say(f"  {pipeline} at {point.share:.2f}: {_shown(point.selection)}")
        yield point, trained


def _few(use: Resources, count: int) -> Resources:
    """The same resources with the first calibration inputs only."""
    assert isinstance(use.calibration, dict)
    return replace(use, calibration={n: np.asarray(a[:count]) for n, a in use.calibration.items()})


def _point(setting: Setting, graph: Graph, budget: float, whole: float) -> Point:
    data, share = setting.data, expected_macs(graph) / whole
    return Point(budget, share, accuracy(graph, data.selection), accuracy(graph, data.report), macs(graph))


def _shown(found: Mapping[str, float]) -> str:
    return ", ".join(f"{t} {a:.2f}" for t, a in found.items())
