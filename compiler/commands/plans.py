"""explain plan: what was chosen for every layer, why, and its share of the time."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from compiler.codegen.bundle import Bundle, read_plan
from compiler.codegen.explain import Explanation, StepFacts, explain
from compiler.codegen.generate import generate
from compiler.codegen.interface import check_names
from compiler.codegen.profile import TimedBundle, TimedLibrary, TimedProgram, profile
from compiler.codegen.target import Target, find_target
from compiler.codegen.variants import level_of
from compiler.commands import Cell, Grid, Result
from compiler.commands.bundles import chosen, one_target
from compiler.commands.common import config_of, graph_of, is_release, of_bundle
from compiler.errors import ConfigError, TargetError
from compiler.ir.levels import is_portfolio
from compiler.pipeline import Pipeline
from compiler.planning import Planning, paths, planning_of
from compiler.release import Say
from compiler.settings import DEFAULT_PASSES, LEVEL_PASSES


def explain_plan(args: Namespace, say: Say) -> Result:
    """The plan of a bundle, or of a model or release as it would be built; measured times where it runs here."""
    if not 0 <= args.seconds < float("inf"):
        raise ConfigError(f"--seconds {args.seconds:g}: give the seconds to measure for, or 0 to leave that out")
    path = Path(args.path)
    if not path.is_dir():
        return _of_graph(args, say)
    of_bundle(args)
    return _of_bundle(chosen(path, args.target), args, say)


def _of_bundle(bundle: Bundle, args: Namespace, say: Say) -> Result:
    """What the bundle recorded; its own kernels are timed."""
    if args.plan or args.tuning:
        raise ConfigError(
            f"{args.path} is a bundle and has its plan; --plan and --tuning are for models and releases"
        )
    target = find_target(bundle.target)
    title = f"{bundle.name} for {bundle.target}"
    return _explained(title, read_plan(bundle), target, lambda: TimedBundle(bundle, target), args.seconds, say)


def _of_graph(args: Namespace, say: Say) -> Result:
    """The plan of a release behind its passes, or of a model behind the default ones; generated, not linked."""
    plans, tuning = paths(args.plan), None if args.tuning is None else Path(args.tuning)
    planning, name, targets = Planning(plans, tuning), "model", ["host"]
    if is_release(args.path):
        config = config_of(args)
        planning, name, targets = planning_of(config, plans, tuning), config.name, list(config.targets)
    target = find_target(one_target(args.target) or targets[0])
    sources = planning.sources([target])[target.name]
    graph = graph_of(args, say)
    check_names(name, tuple(graph.tasks))
    if not is_release(args.path):
        levels = is_portfolio(graph) or any(v.nested for v in graph.parameters())
        graph = Pipeline.parse(LEVEL_PASSES if levels else DEFAULT_PASSES).run(graph)[0]
    say(f"{target.name}: generate")
    full = [frozenset(graph.tasks)]
    library = generate(graph, target, name=name, subsets=full, sources=sources)
    title = f"{Path(args.path).name} for {target.name}"
    return _explained(title, library.plan, target, lambda: TimedLibrary(library, target), args.seconds, say)


def _explained(
    title: str,
    plan: Mapping[str, Any],
    target: Target,
    timed: Callable[[], TimedProgram],
    seconds: float,
    say: Say,
) -> Result:
    """Tables and closing lines; without times where the target does not run here or none were asked for."""
    times, reason = None, "--seconds 0" if not seconds else ""
    if seconds:
        say(f"{target.name}: time every call for {seconds:g} s")
        try:
            times = [s.seconds for s in profile(timed(), seconds)]
        except TargetError as error:
            reason = str(error)
    found = explain(plan, target.machine, times)
    lines = [*found.remarks, *(f"WARNING: {w}" for w in found.warnings)]
    if reason:
        lines.append(f"not measured: {reason}")
    grids = (_choices(title, found), *([_times(title, found)] if times else []))
    return Result({"plan_of": title, "not_measured": reason or None, **found.record()}, grids, tuple(lines))


def _choices(title: str, found: Explanation) -> Grid:
    """How every step runs, and why."""
    columns = ("step", "tasks", "runs as", "chosen by", "why", "reads", "writes", "weights B")
    rows = [
        (
            _nodes(s),
            " ".join(s.tasks),
            s.choice + (f" (zeros {s.zeros})" if s.zeros else ""),
            s.chosen_by,
            s.why,
            ", ".join(s.reads),
            ", ".join(s.writes),
            s.weight_bytes or None,
        )
        for s in found.steps
    ]
    return Grid(f"{title}: plan", columns, rows)


def _times(title: str, found: Explanation) -> Grid:
    """What every step costs inside the whole network, and what was predicted."""
    columns = ("step", "runs as", "us", "share", "predicted us", "MFLOP", "GFLOP/s", "of peak")
    rows = [_time_row(s) for s in found.steps]
    total = found.seconds or 0.0
    flops = sum(s.flops for s in found.steps)
    whole = replace(
        found.steps[0],
        nodes=("all steps",),
        choice="",
        predicted=None,
        seconds=total,
        share=1.0,
        flops=flops,
        rate=flops / total if total else None,
        peak=flops / total / found.peak if total else None,
    )
    run = "all tasks at every level" if any(level_of(t) for s in found.steps for t in s.tasks) else "all tasks"
    return Grid(f"{title}: time of one run of {run}, one thread", columns, [*rows, _time_row(whole)])


def _time_row(step: StepFacts) -> tuple[Cell, ...]:
    return (
        _nodes(step),
        step.choice,
        None if step.seconds is None else f"{step.seconds * 1e6:.1f}",
        None if step.share is None else f"{step.share:.1%}",
        None if step.predicted is None else f"{step.predicted * 1e6:.1f}",
        f"{step.flops / 1e6:.2f}" if step.flops else None,
        None if step.rate is None else f"{step.rate / 1e9:.1f}",
        None if step.peak is None else f"{step.peak:.0%}",
    )


def _nodes(step: StepFacts) -> str:
    """The first node, and how many more are in the kernel."""
    more = len(step.nodes) - 1
    return step.nodes[0] + (f" +{more}" if more else "")
