"""Measured choice of algorithms and tiles, in place: every candidate runs inside the whole network.

Layers of one shape try different candidates in the same build: a network with many alike layers needs few builds.
What is alone fastest need not be fastest in the network, where large weights compete for the caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from compiler.codegen.generate import generate
from compiler.codegen.groups import Group, make_groups
from compiler.codegen.planner import Sources, candidates, situation
from compiler.codegen.profile import profile_library
from compiler.codegen.strategies.base import Candidate, Choice
from compiler.codegen.target import Target
from compiler.codegen.tuning import TuningDatabase, layer_key
from compiler.ir.graph import Graph

SMALL_SHARE = 0.01
"""Layers below this share of the predicted time are left to the rule."""
MOST_TRIED = 12
"""Candidates of one layer shape that are measured."""
EACH_ALGORITHM = 3
"""Candidates of every algorithm that are among them, however slow the rule thinks it is."""
SLOWEST = 3.0
"""Candidates predicted this many times slower than the best are not measured."""


@dataclass
class _Layer:
    """The groups of one shape, what is still to be tried, and what is known."""

    key: str
    anchors: list[str]
    waiting: list[Choice]
    measured: dict[Choice, float] = field(default_factory=dict)

    def next_choice(self) -> Choice:
        """The next one to try, else the fastest known."""
        return self.waiting.pop(0) if self.waiting else self.best

    @property
    def best(self) -> Choice:
        return min(self.measured, key=lambda c: self.measured[c])

    def note(self, choice: Choice, seconds: float) -> None:
        """Keep the least time of a choice: what disturbs a measurement only adds to it."""
        self.measured[choice] = min(seconds, self.measured.get(choice, seconds))


def tune(
    graph: Graph,
    target: Target,
    database: TuningDatabase,
    *,
    seconds: float = 300.0,
    say: Callable[[str], None] = lambda text: None,
) -> TuningDatabase:
    """`database` with measurements of every layer of `graph` that matters, within about `seconds`.

    The machine must be able to run `target`, and be otherwise idle. TargetError where it is not able to.
    """
    layers = _layers(graph, target)
    start = time.perf_counter()
    rounds = 0
    while any(layer.waiting for layer in layers) and time.perf_counter() - start < seconds:
        rounds += 1
        tried = {a: layer.next_choice() for layer in layers for a in layer.anchors}
        times = _measure(graph, target, tried)
        for layer in layers:
            for anchor in layer.anchors:
                layer.note(tried[anchor], times[anchor])
        left = sum(len(layer.waiting) for layer in layers)
        say(f"tuning: build {rounds}, {left} candidates left, {time.perf_counter() - start:.0f} s")
    made = TuningDatabase(dict(database.entries))
    for layer in layers:
        for choice, best in layer.measured.items():
            made.add(layer.key, choice, best)
    return made


def _layers(graph: Graph, target: Target) -> list[_Layer]:
    groups = make_groups(graph)
    known = situation(graph, groups, target)
    found: dict[str, list[Group]] = {}
    ranked: dict[str, Sequence[Candidate]] = {}
    for group in groups:
        key = layer_key(group, target)
        if key is not None:
            found.setdefault(key, []).append(group)
            ranked.setdefault(key, candidates(group, known))
    total = sum(ranked[k][0].seconds * len(g) for k, g in found.items())
    return [
        _Layer(key, [g.anchor.node.ref.name for g in members], _to_try(ranked[key]))
        for key, members in found.items()
        if ranked[key][0].seconds * len(members) >= SMALL_SHARE * total
    ]


def _to_try(ranked: Sequence[Candidate]) -> list[Choice]:
    """The best predicted ones, and some of every algorithm."""
    counts: dict[str, int] = {}
    kept: list[Choice] = []
    for candidate in ranked:
        algorithm = candidate.choice.algorithm
        counts[algorithm] = counts.get(algorithm, 0) + 1
        close = candidate.seconds <= SLOWEST * ranked[0].seconds
        if close and (len(kept) < MOST_TRIED or counts[algorithm] <= EACH_ALGORITHM):
            kept.append(candidate.choice)
    return kept


def _measure(graph: Graph, target: Target, tried: Mapping[str, Choice]) -> dict[str, float]:
    """Seconds of each layer, by its first node, with the given choices."""
    library = generate(graph, target, name="tuned", subsets=[frozenset(graph.tasks)], sources=Sources(tried))
    return {step.nodes[0]: step.seconds for step in profile_library(library, target) if step.nodes[0] in tried}
