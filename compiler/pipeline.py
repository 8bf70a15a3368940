"""A sequence of passes, what each of them did, and spec strings of passes.

There is no dependency solver and no fix-point: fewer than twenty passes run in the order given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from compiler.cost.count import totals
from compiler.errors import CompilerError, ConfigError, VerifyError
from compiler.ir.decisions import outputs_and_ties, settled
from compiler.ir.graph import Graph
from compiler.ir.levels import level_count
from compiler.ir.reference import comparable, difference, evaluate, random_feeds
from compiler.ir.text import digest
from compiler.json_form import finite
from compiler.passes import find
from compiler.passes.base import (
    PATTERNS,
    NewNames,
    Note,
    Pass,
    Refusal,
    Resources,
    lost_patterns,
    rounding,
)
from compiler.passes.extract import ExtractTasks
from compiler.passes.spec import changed, convert, split
from compiler.progress import tracked


@dataclass(frozen=True, slots=True)
class Facts:
    """A graph in four numbers and a digest."""

    digest: str
    nodes: int
    parameters: int
    flops: int

    @classmethod
    def of(cls, graph: Graph) -> Facts:
        """The facts of `graph`, all tasks together."""
        cost = totals(graph)
        return cls(digest(graph), len(graph.nodes()), cost.parameters, cost.flops)


@dataclass(frozen=True, slots=True)
class PassRecord:
    """What one pass did. `drift`: task -> largest relative change of an output, where it was measured; NaN where
    outputs give nothing to measure.
    """

    name: str
    spec: str
    exact: bool
    before: Facts
    after: Facts
    refusals: tuple[Refusal, ...]
    drift: Mapping[str, float] | None = None
    notes: tuple[Note, ...] = ()
    variant: str = ""
    """The pipeline that it is of, where it is not the first of a release."""

    def record(self) -> dict[str, object]:
        """JSON-ready, for the manifest."""
        return {
            "spec": self.spec,
            **({"variant": self.variant} if self.variant else {}),
            "exact": self.exact,
            "before": _fact_record(self.before),
            "after": _fact_record(self.after),
            "refusals": [{"where": r.where, "reason": r.reason} for r in self.refusals],
            "notes": [{"where": n.where, "reason": n.reason} for n in self.notes],
            "drift": None if self.drift is None else finite(self.drift),
        }


def _fact_record(facts: Facts) -> dict[str, object]:
    return {
        "digest": facts.digest,
        "nodes": facts.nodes,
        "parameters": facts.parameters,
        "flops": facts.flops,
    }


class Ahead(NamedTuple):
    """What can be said of a pipeline's result before it runs."""

    levels: int
    tasks: tuple[str, ...]


Observer = Callable[[Graph, Pass, Graph, PassRecord], None]
"""Called after every pass with (before, pass, after, record); an exception stops the pipeline."""


@dataclass(frozen=True)
class Pipeline:
    """Passes in order. `numerics` compares every step on seeded inputs and holds exact passes to rounding."""

    passes: tuple[Pass, ...]
    numerics: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "passes", tuple(self.passes))  # an iterator would be gone before they run

    @classmethod
    def parse(cls, specs: Iterable[str], numerics: bool = False) -> Pipeline:
        """From spec strings, or one; ConfigError where one cannot be read."""
        return cls(tuple(parse(s) for s in ([specs] if isinstance(specs, str) else specs)), numerics)

    def run(
        self,
        graph: Graph,
        use: Resources | None = None,
        *,
        observers: Sequence[Observer] = (),
        stop_after: str | None = None,
    ) -> tuple[Graph, tuple[PassRecord, ...]]:
        """The rewritten graph and a record per pass; `stop_after` names the last pass to run.

        ConfigError, before any of them runs, with what is wrong with passes, and as soon as it is known that a
        pattern of the option `exclude` will name nothing. Whatever a pass raises leaves with the
        pass named. VerifyError where an exact pass changed the outputs.
        """
        use = use or Resources()
        records = []
        if stop_after is not None and all(p.name != stop_after for p in self.passes):
            raise ConfigError(f"the pipeline has no pass '{stop_after}': {', '.join(map(str, self.passes))}")
        self.check(graph, use, stop_after)
        known = Facts.of(graph)
        for number, pass_ in enumerate(tracked(use.say, "passes", self.passes), 1):
            if lost := _lost_patterns(graph, self.passes[number - 1 :], stop_after):
                raise ConfigError("\n".join(lost))
            use.say(f"pass {number} of {len(self.passes)}: {pass_}")
            before = graph
            graph, record = self._step(pass_, before, known, use)
            known = record.after
            records.append(record)
            for observer in observers:
                observer(before, pass_, graph, record)
            if pass_.name == stop_after:
                break
        return graph, tuple(records)

    def check(self, graph: Graph, use: Resources, stop_after: str | None = None) -> Ahead:
        """What there will be behind the last pass.

        ConfigError with all that keeps passes from starting, before the first of them takes its time.
        """
        problems: dict[str, list[str]] = {}
        levels, lost = level_count(graph), _lost_patterns(graph, self.passes, stop_after)
        for pass_ in self.passes:
            if problem := pass_.levels_problem(levels):
                problems.setdefault(problem, []).append(str(pass_))
            elif found := pass_.wrong(graph, use):
                problems.setdefault("; ".join(found), []).append(str(pass_))
            elif isinstance(pass_, ExtractTasks):
                graph = pass_(graph)  # so that those behind it are asked about the tasks they will see
            levels = pass_.levels_after(levels)
            if pass_.name == stop_after:
                break
        if problems or lost:
            told = (f"{', '.join(passes)}: {what}" for what, passes in problems.items())
            raise ConfigError("\n".join((*told, *lost)))
        return Ahead(levels, tuple(graph.tasks))

    def _step(self, pass_: Pass, before: Graph, known: Facts, use: Resources) -> tuple[Graph, PassRecord]:
        try:
            outcome = pass_.run(before, use)
        except CompilerError as error:
            error.add_note(f"while running {pass_}")
            raise
        drift = measured_drift(before, outcome.graph, use.seed) if self.numerics else None
        limit = rounding(before)
        wrong = {t: d for t, d in (drift or {}).items() if d > limit}
        if wrong and pass_.exact:
            worst = max(wrong, key=lambda t: wrong[t])
            raise VerifyError(f"{pass_}: task '{worst}' differs by {wrong[worst]:.1e} of scale (limit {limit:.0e})")
        after = Facts.of(outcome.graph)
        return outcome.graph, PassRecord(
            pass_.name, str(pass_), pass_.exact, known, after, outcome.refusals, drift, outcome.notes
        )


def _lost_patterns(graph: Graph, passes: Sequence[Pass], stop_after: str | None) -> list[str]:
    """Patterns of `passes` that are known to name nothing once the passes in front of each have run on `graph`."""
    found, new = [], NewNames.NONE
    for pass_ in passes:
        found += [f"{pass_}: exclude {p}" for p in lost_patterns(graph, getattr(pass_, "exclude", ()), new)]
        new = max(new, pass_.new_names)
        if pass_.name == stop_after:
            break
    return [*found, PATTERNS] if found else []


def measured_drift(before: Graph, after: Graph, seed: int) -> dict[str, float]:
    """Largest relative change of each task's outputs on one seeded standard normal input.

    Tasks that `after` lacks are left out. Where `before` is not finite the input proves little, so up to ten more
    are drawn; NaN for a task that gives no finite number on any, whose equality says nothing. Decisions that are
    too close to call do not count.
    """
    tasks = [t for t in before.tasks if t in after.tasks]
    for attempt in range(11):
        feeds = random_feeds(before, np.random.default_rng([seed, attempt]))
        old, ties = outputs_and_ties(before, feeds, tasks=tasks)
        if all(np.isfinite(a).all() for a in old.values() if a.dtype.kind == "f"):
            break
    new = evaluate(after, {v.ref.name: feeds[v.ref.name] for v in after.inputs}, tasks)
    found = {
        a.name: settled(new[b.name], old[a.name], ties.get(a.name))
        for t in tasks
        for a, b in zip(before.tasks[t].outputs, after.tasks[t].outputs, strict=True)
    }
    return {t: _task_drift(t, before, old, found) for t in tasks}


def _task_drift(task: str, before: Graph, old: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    worst = max(difference(found[r.name], old[r.name]) for r in before.tasks[task].outputs)
    return worst if worst or any(comparable(old[r.name]) for r in before.tasks[task].outputs) else math.nan


def parse(spec: str) -> Pass:
    """`name{option=value,...}` as a pass; the inverse of `str(pass)`. ConfigError says what is wrong with it."""
    name, options = split(spec)
    return make(name, options)


def make(name: str, options: Mapping[str, object]) -> Pass:
    """The pass called `name` with options as texts or as TOML has them."""
    cls = find(name)
    return cls(**convert(cls, options))


def options_of(pass_: Pass) -> dict[str, object]:
    """The options that differ from their defaults, JSON-ready."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in changed(pass_)}
