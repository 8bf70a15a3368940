"""The frontier of a release: its network at several budgets, each evaluated, priced, built and timed.

A point is a pure function of its inputs but for the measured time, and is kept under a key that names all of them
(`workers.store`), so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import functools
import json
import math
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from compiler import __version__
from compiler.calibration.evaluation import TaskEvaluation
from compiler.calibration.metrics import source_of
from compiler.calibration.moments import data_key
from compiler.codegen.emulate import fastest_calls
from compiler.codegen.manifest import canonical, sha256
from compiler.codegen.runtime import open_bundle
from compiler.codegen.target import Target, find_target, runs_here
from compiler.codegen.tuning import database_of
from compiler.compile import build
from compiler.cost.count import totals
from compiler.errors import ConfigError, PassError
from compiler.ir.graph import Graph
from compiler.ir.levels import level_count
from compiler.ir.onnx_out import to_onnx
from compiler.ir.text import digest
from compiler.ir.types import TaskSet
from compiler.measure import evaluate_release
from compiler.passes.base import Pass, Resources
from compiler.passes.budget.limits import Limit, Quantity
from compiler.passes.spec import split
from compiler.pipeline import Pipeline, parse
from compiler.progress import tracked
from compiler.release import Release, Say, evaluation_of, load_release, resources, silent, transform, tuning_of
from compiler.report import to_csv
from compiler.settings import Config
from compiler.workers.jobs import code_version
from compiler.workers.store import Store

SCHEMA = 1
SHARES = (0.85, 0.7, 0.55, 0.4, 0.3)
"""Budgets where none are given, as shares of what the network costs before."""
LEAST_SHARE = 0.25
MOST_POINTS = 100
"""Budgets that are spread for a count; each is a network that is made, built and timed."""
MICRO = 1e6


@dataclass(frozen=True, slots=True)
class Request:
    """What to draw: budgets in one quantity, as shares of the original's cost, and the pass that meets them."""

    quantity: Quantity = "latency_us"
    shares: tuple[float, ...] = SHARES
    spec: str = "compress"
    target: str = ""
    """Whose time is predicted, and measured where it runs here; default: the first one of the release."""
    seconds: float = 0.5
    """Time that every combination of the workload is measured for."""

    def __post_init__(self) -> None:
        if self.quantity not in get_args(Quantity):
            raise ConfigError(f"a frontier is over {', '.join(get_args(Quantity))}, not '{self.quantity}'")
        if len(set(self.shares)) < len(self.shares):
            raise ConfigError(f"a budget is listed twice: {', '.join(f'{s:g}' for s in self.shares)}")
        wrong = [s for s in self.shares if not 0 < s < 1]
        if wrong or not self.shares:
            raise ConfigError(f"budgets are shares between 0 and 1 of the original's cost, not {wrong or 'none'}")
        if not 0 < self.seconds < math.inf:
            raise ConfigError(f"give the seconds to measure for, more than 0, not {self.seconds:g}")
        self.at(self.shares[0], self.target)  # before anything is read or written

    def at(self, value: float, target: str) -> Pass:
        """The pass with a budget; ConfigError where it takes none in this quantity."""
        pass_ = parse(self.spec)
        options: dict[str, Any] = {self.quantity: value, "target": target}
        missing = [o for o in options if not hasattr(pass_, o)]
        if missing:
            raise ConfigError(
                f"{pass_.name} has no option {missing[0]}; compress, prune-channels and sparsify have"
            )
        if given := [o for o in split(self.spec)[1] if o in (*get_args(Quantity), "target")]:
            raise ConfigError(
                f"{self.spec}: the frontier sets {', '.join(given)} at every point; leave that out of the pass"
            )
        return replace(pass_, **options)


def spread(count: int) -> tuple[float, ...]:
    """`count` shares from close to the whole down to LEAST_SHARE, each the same part of the one before."""
    if not 1 <= count <= MOST_POINTS:
        raise ConfigError(f"a frontier has at least one budget and at most {MOST_POINTS}, not {count}")
    return tuple(round(LEAST_SHARE ** (n / count), 4) for n in range(1, count + 1))


Measure = Callable[[Graph, Target, Sequence[TaskSet], float, "Release", Say], "Timing"]


@dataclass(frozen=True, slots=True)
class Timing:
    """What a compiled library showed: seconds of every combination (the fastest of several rounds), its size, every
    task on the evaluation data."""

    seconds: dict[TaskSet, float]
    library_bytes: int
    evaluation: tuple[TaskEvaluation, ...]


@dataclass(frozen=True)
class Frontier:
    """Rows, one per budget and first the original, and the networks of those that were reached, as ONNX."""

    record: dict[str, Any]
    networks: dict[int, bytes] = field(default_factory=dict)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One per point."""
        return list(self.record["points"])

    def csv(self) -> str:
        """The rows as CSV; empty cells where a budget was refused or nothing was measured."""
        return to_csv(self.rows)


def built_and_timed(
    graph: Graph, target: Target, subsets: Sequence[TaskSet], seconds: float, release: Release, say: Say
) -> Timing:
    """Compile `graph`, self-test it, time its combinations, and evaluate every task in it."""
    config, tuning = release.config, tuning_of(release.config)
    with tempfile.TemporaryDirectory(prefix="taskgraft-frontier-") as work:
        bundle = build(
            graph, target, Path(work) / "point", name=config.name, subsets=subsets, threads=False, tuning=tuning
        )
        times = fastest_calls(bundle, target, seconds=seconds)
        evaluation = evaluate_release(release, graph, open_bundle(bundle.path), say=say)
        return Timing(times, bundle.library.stat().st_size, evaluation)


def frontier(
    config: Config,
    request: Request,
    *,
    cache: Path | None = None,
    allow_external_data: bool = False,
    measure: Measure = built_and_timed,
    say: Say = silent,
) -> Frontier:
    """Run the pipeline of a release, then the pass of `request` at every budget.

    A budget that cannot be met is a point with the reason. `cache`: folder for finished points. Raises what
    loading, building and the pipeline raise.
    """
    target, store = find_target(request.target or config.targets[0]), Store(cache)
    release = load_release(config, allow_external_data=allow_external_data, say=say)
    _refuse_levels(release, request)
    evaluation_of(config, release.graph)  # what cannot be measured is told before hours of work
    graph, _ = transform(release, say=say)
    study = _Study(release, graph, target, request, resources(config, release.graph, say), measure, say)
    shares = (1.0, *sorted(request.shares, reverse=True))
    rows: list[dict[str, Any]] = []
    networks: dict[int, bytes] = {}
    for number, share in enumerate(tracked(say, "frontier", shares)):
        key = study.key(share)
        known, network = store.load(f"{key}.json"), store.load(f"{key}.onnx")
        if known is None or network is None:
            row, network = study.point(share)
            store.save(f"{key}.onnx", network)
            store.save(f"{key}.json", canonical(row))
        else:
            say(f"share {share:g}: from the cache")
            row = json.loads(known)
        rows.append({"point": number, **row})
        if network:
            networks[number] = network
    return Frontier(study.record(rows), networks)


def _refuse_levels(release: Release, request: Request) -> None:
    """ConfigError where the pass would lose the levels that the pipeline leaves, or the networks of a portfolio."""
    if release.config.variants:
        raise ConfigError(
            f"a frontier with {request.spec}: it changes one network, and passes.variants makes several; leave "
            "them out (--set passes.variants={})"
        )
    count = level_count(release.graph)
    for pass_ in Pipeline.parse(release.config.passes).passes:
        count = pass_.levels_after(count)
    if problem := request.at(request.shares[0], request.target).levels_problem(count):
        raise ConfigError(f"a frontier with {request.spec}: {problem}")


@dataclass(frozen=True)
class _Study:
    """What all points share."""

    release: Release
    graph: Graph
    target: Target
    request: Request
    use: Resources
    measure: Measure
    say: Say

    @functools.cached_property
    def data(self) -> dict[str, str]:
        """Digests of what points are made and judged from, wherever it comes from: a folder or a function has none
        in the record of sources."""
        labelled = evaluation_of(self.release.config, self.release.graph)
        made = () if self.use.calibration is None else self.use.batches(self.graph)
        metrics = self.release.config.evaluation.metric
        return {
            "calibration": data_key(made),
            "evaluation": data_key([labelled[1]] if labelled else []),
            **{f"metric of {task}": sha256(source_of(name)) for task, name in metrics.items()},
        }

    def _limit(self, quantity: Quantity) -> Limit:
        return Limit(quantity, 0.0, self.target.name)

    def key(self, share: float) -> str:
        """Of everything that a point depends on; of this machine too where it measures."""
        parts = {
            "schema": SCHEMA,
            "code": code_version(),
            "graph": digest(self.graph),
            "sources": dict(self.release.sources),
            "data": self.data,
            "config": self.release.config.resolved(),
            "request": [self.request.quantity, share, self.request.spec if share < 1 else "", self.request.seconds],
            "target": self.target.name,
            "tuning": database_of(tuning_of(self.release.config), self.target).digest,
            "machine": platform.node() if runs_here(self.target) else "",
        }
        return sha256(canonical(parts))

    def point(self, share: float) -> tuple[dict[str, Any], bytes]:
        """The row of a budget and its network; the original for a share of 1."""
        value = share * self._limit(self.request.quantity).cost(self.graph, self.use)
        graph, reason = self.graph, ""
        if share < 1:
            pass_ = self.request.at(value, self.target.name)
            self.say(f"share {share:g}: {pass_}")
            try:
                graph = pass_(self.graph, self.use)
            except PassError as error:
                reason = str(error).partition("\n")[0]
        row = {"share": share, "budget": value, "status": "refused" if reason else "reached", "reason": reason}
        return {**row, **self._facts(None if reason else graph)}, b"" if reason else _onnx(graph)

    def _facts(self, graph: Graph | None) -> dict[str, Any]:
        """Costs, times and accuracy of a point; nothing in any column where there is no network."""
        names = ("macs", "flops", "parameters", "weight_bytes")
        times = ("predicted_us", "measured_us", "error", "library_bytes")
        tasks = [f"{what}_{t}" for t in self.graph.tasks for what in ("metric", "drop", "drift")]
        row: dict[str, Any] = dict.fromkeys((*names, *times, *tasks))
        if graph is None:
            return row
        cost = totals(graph)
        row |= {n: getattr(cost, n) for n in names}
        row["predicted_us"] = self._limit("latency_us").cost(graph, self.use)
        evaluation: tuple[TaskEvaluation, ...]
        if runs_here(self.target):
            self.say(f"build and time for {self.target.name}")
            subsets = list(self._workload())
            found = self.measure(graph, self.target, subsets, self.request.seconds, self.release, self.say)
            measured = MICRO * math.fsum(p * found.seconds[q] for q, p in self._workload().items())
            evaluation, row["measured_us"] = found.evaluation, measured
            row["error"] = measured / row["predicted_us"] - 1
            row["library_bytes"] = found.library_bytes
        else:
            evaluation = evaluate_release(self.release, graph, say=self.say)
        for one in evaluation:
            row[f"metric_{one.task}"] = one.final.metric
            row[f"drop_{one.task}"] = one.worse_by(one.final)
            row[f"drift_{one.task}"] = one.final.drift
        return row

    def _workload(self) -> dict[TaskSet, float]:
        """Probability of every combination; all tasks together without a workload."""
        given = self.release.config.workload or {frozenset(self.graph.tasks): 1.0}
        total = math.fsum(given.values())
        return {tasks: p / total for tasks, p in given.items()}

    def record(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """JSON-ready."""
        config = self.release.config
        errors = [abs(r["error"]) for r in rows if r["error"] is not None]
        return {
            "schema": SCHEMA,
            "name": config.name,
            "target": self.target.name,
            "version": __version__,
            "quantity": self.request.quantity,
            "pass": self.request.spec,
            "tasks": list(self.graph.tasks),
            "metrics": {t: config.evaluation.metric.get(t) for t in self.graph.tasks},
            "workload": {"+".join(t for t in self.graph.tasks if t in q): p for q, p in self._workload().items()},
            "largest_error": max(errors, default=None),
            "points": list(rows),
        }


def _onnx(graph: Graph) -> bytes:
    return bytes(to_onnx(graph).SerializeToString(deterministic=True))
