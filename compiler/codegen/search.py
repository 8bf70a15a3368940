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
from compiler.codegen.planner import Sources, candidates, form, situation
from compiler.codegen.profile import StepTime, profile_library
from compiler.codegen.program import Library
from compiler.codegen.strategies.base import Candidate, Choice
from compiler.codegen.target import Target
from compiler.codegen.tuning import TuningDatabase, layer_key
from compiler.ir.graph import Graph
from compiler.progress import Say, silent
from compiler.workers.jobs import Workers

SMALL_SHARE = 0.01
"""Layers below this share of the predicted time are left to the rule."""
MOST_TRIED = 12
"""Candidates of one layer shape that are measured."""
EACH_ALGORITHM = (3, 8)
"""Candidates of one algorithm among them: so many at least, however slow the rule thinks it is, and at most."""
SLOWEST = 3.0
"""Candidates predicted this many times slower than the best are not measured."""

Measure = Callable[[Mapping[str, Choice]], Mapping[str, float]]
"""Seconds of every named layer when all run as given."""
Profiler = Callable[[Library, Target], Sequence[StepTime]]
"""The time of every call of a library."""


@dataclass
class _Layer:
    """The groups of one shape, what is still to be tried, and what is known."""

    key: str
    allowed: Mapping[str, frozenset[Choice]]
    """By first node: not every weight bears every algorithm."""
    ranked: Sequence[Candidate]
    waiting: list[Choice]
    measured: dict[Choice, float]

    def next_choice(self, anchor: str) -> Choice:
        """The next one to try that this group can run with, else the fastest known, else the best predicted."""
        allowed = self.allowed[anchor]
        untried = next((c for c in self.waiting if c in allowed), None)
        if untried is not None:
            self.waiting.remove(untried)
            return untried
        known = [c for c in self.measured if c in allowed]
        if known:
            return min(known, key=lambda c: self.measured[c])
        return next(c.choice for c in self.ranked if c.choice in allowed)

    def note(self, choice: Choice, seconds: float) -> None:
        """Keep the least time of a choice: what disturbs a measurement only adds to it."""
        self.measured[choice] = min(seconds, self.measured.get(choice, seconds))


@dataclass
class _Progress:
    """Says what was done, what is left and how long that takes."""

    say: Say
    limit: float
    start: float = field(default_factory=lambda: time.perf_counter())
    builds: int = 0

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    def report(self, layers: Sequence[_Layer]) -> None:
        """After a build."""
        self.builds += 1
        left = sum(len(layer.waiting) for layer in layers)
        more = max((-(-len(y.waiting) // len(y.allowed)) for y in layers), default=0)
        seconds = min(more * self.spent / self.builds, max(0.0, self.limit - self.spent))
        self.say(
            f"tune: build {self.builds} of {self.builds + more}, {left} candidates left, about {seconds:.0f} s left"
        )


def tune(
    graph: Graph,
    target: Target,
    database: TuningDatabase,
    *,
    seconds: float = 300.0,
    measure: Measure | None = None,
    workers: Workers | None = None,
    keep: Callable[[TuningDatabase], object] = lambda found: None,
    say: Say = silent,
) -> TuningDatabase:
    """`database` with measurements of every layer of `graph` that matters, within about `seconds`.

    What the database knows already is not measured again. `measure` replaces building and timing the network on
    this machine, which must be able to run `target` and be otherwise idle; TargetError where it is not able to.
    `workers` compile kernels; they are idle while times are taken. `keep` is given the database after every build,
    so that an interrupt loses no more than one.
    """
    layers = _layers(graph, target, database)
    time_in_place = measure or (lambda tried: in_place(graph, target, tried, workers=workers, say=say))
    progress = _Progress(say, seconds)
    made = TuningDatabase(dict(database.entries))
    say(f"tune: {len(layers)} layer shapes, {sum(len(y.waiting) for y in layers)} candidates to measure")
    while any(layer.waiting for layer in layers) and progress.spent < seconds:
        tried = {a: layer.next_choice(a) for layer in layers for a in layer.allowed}
        times = time_in_place(tried)
        for layer in layers:
            for anchor in layer.allowed:
                layer.note(tried[anchor], times[anchor])
        _enter(made, layers)
        keep(made)
        progress.report(layers)
    return made


def _enter(database: TuningDatabase, layers: Sequence[_Layer]) -> None:
    """Put everything that is known of the layers into the database."""
    for layer in layers:
        for choice, best in layer.measured.items():
            database.add(layer.key, choice, best)


def _layers(graph: Graph, target: Target, database: TuningDatabase) -> list[_Layer]:
    """The layers worth measuring, by shape."""
    groups = form(graph, make_groups(graph), target, Sources(measured=database))
    known = situation(graph, groups, target)
    members: dict[str, list[tuple[Group, tuple[Candidate, ...]]]] = {}
    for group in groups:
        key = layer_key(group, target)
        if key is not None:
            members.setdefault(key, []).append((group, candidates(group, known)))
    predicted = {key: sum(found[0].seconds for _, found in rows) for key, rows in members.items()}
    total = sum(predicted.values())
    return [_layer(key, rows, database) for key, rows in members.items() if predicted[key] >= SMALL_SHARE * total]


def _layer(key: str, members: Sequence[tuple[Group, tuple[Candidate, ...]]], database: TuningDatabase) -> _Layer:
    allowed = {g.anchor.node.ref.name: frozenset(c.choice for c in found) for g, found in members}
    union = {c.choice: c for _, found in members for c in found}
    ranked = sorted(union.values(), key=lambda c: (c.seconds, c.choice.algorithm, c.choice.tile))
    measured = {c: ns * 1e-9 for c, ns in database.known(key).items() if c in union}
    waiting = [c for c in to_try(ranked) if c not in measured]
    return _Layer(key, allowed, ranked, waiting, measured)


def to_try(ranked: Sequence[Candidate]) -> list[Choice]:
    """The best predicted ones, and some of every algorithm; `ranked` best first."""
    least, most = EACH_ALGORITHM
    counts: dict[str, int] = {}
    kept: list[Choice] = []
    for candidate in ranked:
        algorithm = candidate.choice.algorithm
        counts[algorithm] = counts.get(algorithm, 0) + 1
        wanted = counts[algorithm] <= (most if len(kept) < MOST_TRIED else least)
        if wanted and candidate.seconds <= SLOWEST * ranked[0].seconds:
            kept.append(candidate.choice)
    return kept


def in_place(
    graph: Graph,
    target: Target,
    tried: Mapping[str, Choice],
    profiler: Profiler = profile_library,
    workers: Workers | None = None,
    say: Say = silent,
) -> dict[str, float]:
    """Seconds of each layer, by its first node, with the given choices. TargetError where `target` does not run."""
    full, sources = [frozenset(graph.tasks)], Sources(tried)
    library = generate(graph, target, name="tuned", subsets=full, sources=sources, workers=workers, say=say)
    return {step.nodes[0]: step.seconds for step in profiler(library, target) if step.nodes[0] in tried}
