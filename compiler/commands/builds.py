"""Commands that generate code or run it: compile, evaluate, verify, run, bench."""

from __future__ import annotations

import json
import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from compiler.bundle_report import measured_path
from compiler.calibration.data import archived, load_arrays
from compiler.calibration.evaluation import Measured, TaskEvaluation
from compiler.check import Verification, verify_bundle, verify_model
from compiler.codegen.emulate import run_bench
from compiler.codegen.foreign import Outputs
from compiler.codegen.interface import CHEAPEST, MOST_THREADS
from compiler.codegen.remote import bench_remote
from compiler.codegen.runtime import Network, open_bundle
from compiler.codegen.target import find_target
from compiler.commands import CHEAPEST_TITLE, Cell, Grid, Result
from compiler.commands.bundles import chosen, one_target, targets_in
from compiler.commands.common import (
    config_of,
    cost_grid,
    is_release,
    of_bundle,
    output_file,
    ranges_of,
    refusal_grid,
    shapes_of,
    tasks_of,
    without_target,
)
from compiler.compile import Compiled, FailedGates, build, compile_release
from compiler.cost.combine import MOST_TASKS
from compiler.errors import ConfigError, plural
from compiler.gates import GateResult, check_tasks
from compiler.ir.levels import is_portfolio
from compiler.ir.onnx_out import save
from compiler.measure import evaluate_release
from compiler.pipeline import PassRecord
from compiler.planning import Planning, planning_of
from compiler.release import Say, evaluation_of, load_release, transform
from compiler.report import summary, to_json
from compiler.staging import write_whole
from compiler.workers.choose import open_workers

BUILDING: Mapping[str, tuple[object, ...]] = {
    **dict.fromkeys(("target", "plan"), ([],)),
    **dict.fromkeys(("tuning", "tune", "cache"), (None,)),
    "cluster": ("",),
    "workers": (1,),
    "allow-unlinked": (False,),
}
"""Options of `compile` that a pipeline stopped in the middle has no use for, with what they are left out."""


def compile_(args: Namespace, say: Say) -> Result:
    """The release step; with --stop-after, the graph behind that pass as ONNX instead."""
    if args.stop_after:
        return _stopped(args, say)
    try:
        with open_workers(args.workers, cluster=args.cluster, cache=args.cache, say=say) as workers:
            compiled = compile_release(
                config_of(args),
                output=Path(args.output) if args.output else None,
                targets=args.target,
                force=args.force,
                allow_unlinked=args.allow_unlinked,
                allow_external_data=args.allow_external_data,
                plan=args.plan,
                tuning=args.tuning,
                tune=args.tune,
                workers=workers,
                say=say,
            )
    except KeyboardInterrupt as stop:
        if args.cache:
            stop.add_note(
                f"kernels that were compiled are in {args.cache}; with --cache they are not compiled again"
            )
        raise
    except FailedGates as failure:
        result = _compiled(failure.compiled)
        return Result(result.record, result.grids, (f"FAILED: {failure}",), failure.exit_code)
    return _compiled(compiled)


def _stopped(args: Namespace, say: Say) -> Result:
    """ConfigError for options of a build: none is made."""
    given = {f"--{o}": getattr(args, o.replace("-", "_")) for o in BUILDING}
    idle = [option for option, value in given.items() if value not in BUILDING[option[2:]]]
    if idle:
        raise ConfigError(f"--stop-after {args.stop_after} builds nothing; leave {', '.join(idle)} out")
    path = output_file(args) if args.output else None
    release = load_release(config_of(args), allow_external_data=args.allow_external_data, say=say)
    graph, records = transform(release, stop_after=args.stop_after, say=say)
    lines = []
    if path:
        save(graph, path)
        lines.append(f"wrote {args.output}")
    record = {"passes": [r.record() for r in records], "output": args.output}
    return Result(record, (_pass_grid(records),), tuple(lines))


def _compiled(compiled: Compiled) -> Result:
    names = ("stage", "macs", "flops", "parameters", "weight_bytes", "workspace_bytes")
    before_after = Grid("all tasks together", names, [_row(r, names) for r in summary(compiled.costs)])
    config = compiled.release.config
    grids = [
        _pass_grid(compiled.records),
        cost_grid(compiled.costs, f"{config.name}: every combination"),
        before_after,
    ]
    if any(r.refusals for r in compiled.records):
        grids.insert(1, refusal_grid(compiled.records))
    if compiled.evaluation:
        grids.append(evaluation_grid(compiled.evaluation))
    grids += [_target_grid(compiled), gate_grid(compiled.gates)]
    lines = [f"wrote {compiled.folder / b.target.name}" for b in compiled.builds]
    lines += [f"{t}: not linked; LINK.txt in its folder says how" for t in compiled.unlinked]
    lines.append(_passed(compiled.gates))
    return Result(compiled.record(), tuple(grids), tuple(lines + _next(compiled)))


def _next(compiled: Compiled) -> list[str]:
    """Where to go from here, by the first bundle; nothing where a gate has failed and none was written."""
    if compiled.failed:
        return []
    folder = compiled.folder / compiled.builds[0].target.name
    return [
        f"see: {folder / 'reports' / 'report.html'}",
        f"use: {folder / 'example' / 'main.c'} says how it is built and run",
    ]


def _row(record: dict[str, Any], names: Sequence[str]) -> tuple[Cell, ...]:
    return tuple(record[n] for n in names)


def _pass_grid(records: Sequence[PassRecord]) -> Grid:
    rows = [
        (
            f"{r.variant}: {r.spec}" if r.variant else r.spec,
            "exact" if r.exact else "approximate",
            r.before.nodes,
            r.after.nodes,
            r.after.parameters,
            r.after.flops,
        )
        for r in records
    ]
    return Grid("passes", ("pass", "outputs", "nodes before", "after", "parameters", "FLOPs"), rows)


def _target_grid(compiled: Compiled) -> Grid:
    rows: list[tuple[Cell, ...]] = []
    for built in compiled.builds:
        test = built.selftest
        status = "" if test is None else f"{test.status}{': ' * bool(test.reason)}{test.reason}"
        sizes = built.library_bytes, len(built.library.pool), built.workspace_max
        rows.append((built.target.name, built.target.preset, *sizes, status))
    return Grid("targets", ("target", "preset", "library B", "pool B", "workspace B", "self-test"), rows)


def _passed(gates: Sequence[GateResult]) -> str:
    """Where no gate has failed: how many have passed, and how many could not be measured."""
    passed, skipped = (sum(g.verdict == verdict for g in gates) for verdict in ("passed", "skipped"))
    return f"PASSED: {passed} gate{'s' * (passed != 1)}{f', {skipped} skipped' if skipped else ''}"


def gate_grid(gates: Sequence[GateResult]) -> Grid:
    """Every gate with its limit, value and verdict."""
    rows = [(g.name, g.where, g.value, g.limit, g.verdict + (f": {g.reason}" if g.reason else "")) for g in gates]
    return Grid("gates", ("gate", "where", "value", "limit", "verdict"), rows)


def evaluation_grid(rows: Sequence[TaskEvaluation]) -> Grid:
    """Every task's metric and drift: originals, graph, compiled library."""
    columns = (
        "task",
        "level",
        "metric",
        "samples",
        "original",
        "graph",
        "bundle",
        "drift graph",
        "drift bundle",
        "flipped",
    )
    return Grid("evaluation", columns, [_evaluation_row(r) for r in rows])


def _evaluation_row(row: TaskEvaluation) -> tuple[Cell, ...]:
    bundle = row.bundle or Measured(None, float("nan"), None)
    drift = None if row.bundle is None else bundle.drift
    flipped = row.final.flipped
    return (
        row.task,
        row.level,
        row.metric_name or None,
        row.samples,
        row.original,
        row.graph.metric,
        bundle.metric,
        row.graph.drift,
        drift,
        None if flipped is None else f"{flipped:.2%}",
    )


def evaluate(args: Namespace, say: Say) -> Result:
    """Every task's metric: originals, graph after the passes, compiled host bundle; gates decide the exit code."""
    config = config_of(args)
    release = load_release(config, allow_external_data=args.allow_external_data, say=say)
    evaluation_of(config, release.graph)  # what cannot be measured is told before anything is built
    graph, _ = transform(release, say=say)
    with tempfile.TemporaryDirectory(prefix="taskgraft-") as work:
        network = None
        if not args.no_bundle:
            say("host: compile")
            full = [frozenset(graph.tasks)]
            planned = planning_of(config) if "host" in config.targets else Planning()
            bundle = build(
                graph,
                "host",
                Path(work) / "bundle",
                name=config.name,
                subsets=full,
                selftest=False,
                plan=planned.plans,
                tuning=planned.tuning,
            )
            network = open_bundle(bundle.path)
        rows = evaluate_release(release, graph, network, say=say)
    if not rows:
        raise ConfigError(
            f"{args.path}: names neither [evaluation] nor [calibration] data, so nothing can be measured"
        )
    gates = tuple(check_tasks(config.gates, rows, portfolio=is_portfolio(graph)))
    failed = sum(g.verdict == "failed" for g in gates)
    record = {"tasks": [r.record() for r in rows], "gates": [g.record() for g in gates]}
    line = f"FAILED: {failed} of {len(gates)} gates" if failed else _passed(gates)
    return Result(record, (evaluation_grid(rows), gate_grid(gates)), (line,), 1 if failed else 0)


# ---------------------------------------------------------------------- verify
def verify(args: Namespace, say: Say) -> Result:
    """A model against onnxruntime at every stage, or a bundle's digests and self-test."""
    path = Path(args.path)
    if path.is_dir():
        of_bundle(args, "range", "seed")
        return _verify_bundle(path, args.target, say)
    without_target(args)
    if is_release(args.path):
        raise ConfigError(
            f"{args.path} is a release file; verify reads a model or a bundle. `taskgraft compile` checks a "
            "release, and `taskgraft evaluate` measures it"
        )
    found = verify_model(
        path,
        inputs=shapes_of(args.input),
        ranges=ranges_of(args.range),
        seed=args.seed or 0,
        allow_external_data=args.allow_external_data,
        say=say,
    )
    return _verified(path, found)


def _verified(path: Path, found: Verification) -> Result:
    rows = [
        (c.output, c.stage, c.error, c.limit, found.spread[c.output], "right" if c.right else "WRONG", c.note)
        for c in found.comparisons
    ]
    columns = ("output", "stage", "error", "limit", "spread of onnxruntime", "verdict", "note")
    wrong = sum(not c.right for c in found.comparisons)
    line = "PASSED" if found.right else f"FAILED: {wrong} of {len(rows)} comparisons"
    return Result(found.record(), (Grid(path.name, columns, rows),), (line,), 0 if found.right else 1)


def _verify_bundle(path: Path, targets: Sequence[str], say: Say) -> Result:
    checks = verify_bundle(path, targets or targets_in(path), say=say)
    rows = [
        (c.target, "intact", c.selftest.status if c.selftest else "", c.selftest.reason if c.selftest else "")
        for c in checks
    ]
    right = all(c.right for c in checks)
    grid = Grid(str(path), ("target", "files", "self-test", "reason"), rows)
    record = {"right": right, "targets": [c.record() for c in checks]}
    return Result(record, (grid,), ("PASSED" if right else "FAILED",), 0 if right else 1)


# ---------------------------------------------------------------------- run and bench
def run(args: Namespace, say: Say) -> Result:
    """Outputs of a bundle on the arrays of an .npz file, for one subset or for every combination."""
    path = output_file(args) if args.output else None
    network = open_bundle(args.path, one_target(args.target))
    given = load_arrays(args.input, Path())
    inputs = {name: _sample(given, name, shape) for name, (_, shape) in network.inputs.items()}
    level = _level(args.level, network)
    if args.all_combinations:
        if args.tasks or path:
            raise ConfigError("--all-combinations runs every subset and writes nothing; leave --tasks and -o out")
        if level == CHEAPEST:
            raise ConfigError("--all-combinations compares what one level gives; name it by its number")
        return _every_combination(network, inputs, level)
    tasks = tasks_of(args.tasks) if args.tasks else network.tasks
    unknown = [t for t in tasks if t not in network.tasks]
    if unknown or not tasks:
        there = f"there is no {', '.join(unknown)}" if unknown else f"'{args.tasks}' names none"
        raise ConfigError(f"--tasks: {there}; the tasks are {', '.join(network.tasks)}")
    outputs = flat(_called(network, inputs, tasks, level))
    if path:
        write_whole(path, archived(outputs))
    rows = [
        (name, str(a.dtype), "x".join(map(str, a.shape)), _decision(a), _values(a)) for name, a in outputs.items()
    ]
    record = {name: a.tolist() for name, a in outputs.items()}
    lines = (f"wrote {args.output}",) if args.output else ()
    return Result(record, (Grid("outputs", ("task", "type", "shape", "largest at", "values"), rows),), lines)


def _level(level: int | str, network: Network) -> int:
    """The level as calls have it; ConfigError where the bundle has no such level."""
    if isinstance(level, str):
        if not network.portfolio:
            raise ConfigError(f"--level {level}: the bundle is no portfolio; its levels have numbers")
        return CHEAPEST
    if not 0 <= level < len(network.levels):
        raise ConfigError(f"--level {level}: the bundle has levels 0 to {len(network.levels) - 1}")
    return level


def _sample(given: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array of one input; ConfigError unless it is what one call takes."""
    if name not in given:
        raise ConfigError(f"--input lacks an array '{name}'; it has {', '.join(sorted(given)) or 'nothing'}")
    array = given[name]
    if array.shape != shape:
        advice = ""
        if shape and array.shape[1:] == shape[1:] and len(array) > shape[0]:
            advice = f"; one call takes {plural(shape[0], 'sample')}: leave so many of the {len(array)} in the file"
        raise ConfigError(
            f"--input: '{name}' has shape {list(array.shape)}, the network wants {list(shape)}{advice}"
        )
    return array


def _called(network: Network, inputs: dict[str, np.ndarray], tasks: Sequence[str], level: int) -> Outputs:
    """Outputs of a call; ConfigError where the numbers of an array are none of its input."""
    try:
        return network.run(inputs, tasks=tasks, level=level)
    except ValueError as error:
        raise ConfigError(f"--input: {error}") from None


def _every_combination(network: Network, inputs: dict[str, np.ndarray], level: int) -> Result:
    """Run each combination at a level and compare its outputs with those of all tasks, bit by bit."""
    if len(network.tasks) > MOST_TASKS:
        raise ConfigError(
            f"--all-combinations: {len(network.tasks)} tasks have more than {2**MOST_TASKS:,} combinations; name "
            "some with --tasks"
        )
    full = flat(_called(network, inputs, network.tasks, level))
    rows: list[tuple[Cell, ...]] = []
    records = []
    subsets = [s for n in range(1, len(network.tasks) + 1) for s in combinations(network.tasks, n)]
    for subset in subsets:
        outputs = flat(network.run(inputs, tasks=subset, level=level))
        same = all(a.tobytes() == full[name].tobytes() for name, a in outputs.items())
        decisions = ", ".join(f"{name}={_decision(a)}" for name, a in outputs.items())
        rows.append((" ".join(subset), decisions, network.workspace_bytes(subset), "yes" if same else "NO"))
        records.append(
            {"tasks": list(subset), "equal": same, "outputs": {n: a.tolist() for n, a in outputs.items()}}
        )
    right = all(r["equal"] for r in records)
    columns = ("tasks", "largest output at", "workspace B", "bits equal to all tasks")
    line = "PASSED: every combination gives the bits of the full set" if right else "FAILED: outputs differ"
    return Result(
        {"right": right, "combinations": records}, (Grid("combinations", columns, rows),), (line,), int(not right)
    )


def flat(outputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """`task` -> array, or `task/label` where a task has several outputs."""
    found: dict[str, np.ndarray] = {}
    for task, value in outputs.items():
        if isinstance(value, dict):
            found |= {f"{task}/{label}": array for label, array in value.items()}
        else:
            found[task] = value
    return found


def _decision(array: np.ndarray) -> str:
    return str(int(array.argmax())) if array.size else ""


def _values(array: np.ndarray) -> str:
    shown = ", ".join(f"{v:.5g}" for v in array.reshape(-1)[:6].tolist())
    return f"{shown}, ..." if array.size > 6 else shown


def bench(args: Namespace, say: Say) -> Result:
    """Measured time per combination and level, of a portfolio with which level is the cheapest."""
    if not 0 < args.seconds < float("inf"):
        raise ConfigError(f"--seconds {args.seconds:g}: give the time per combination, more than nothing")
    if not 1 <= args.threads <= MOST_THREADS:
        raise ConfigError(f"--threads {args.threads}: give 1 to {MOST_THREADS} threads")
    path = Path(args.path)
    here = not (args.ssh or args.target) and targets_in(path)
    bundle = open_bundle(path).bundle if here else chosen(path, args.target)
    pools = bundle.manifest.get("threads")
    if args.threads > 1 and isinstance(pools, dict) and pools.get("pool") is False:
        raise ConfigError(f"--threads {args.threads}: '{bundle.name}' was built without pools (threads = false)")
    say(f"time {bundle.target}{f' on {args.ssh}' if args.ssh else ''}")
    target = find_target(bundle.target)
    if args.ssh:
        text = bench_remote(bundle, target, args.ssh, seconds=args.seconds, threads=args.threads)
    else:
        text = run_bench(bundle, target, seconds=args.seconds, threads=args.threads)
    found = json.loads(text)
    known = {("+".join(r["tasks"]), r["level"]): r for r in bundle.manifest["subsets"]}
    rows: list[tuple[Cell, ...]] = []
    portfolio = False
    for row in found["subsets"]:
        told = known.get((row["tasks"], row["level"]), {})
        median, count = row["seconds_median"], told.get("flops")
        if "cheapest" in told:
            portfolio, row["cheapest"] = True, told["cheapest"]
        rows.append(
            (
                row["tasks"],
                f"{row['level']}*" if told.get("cheapest") else row["level"],
                f"{median * 1e6:.1f}",
                f"{row['seconds_min'] * 1e6:.1f}",
                count,
                None if not count else f"{count / median / 1e9:.2f}",
            )
        )
    columns = ("tasks", "level", "median us", "fastest us", "FLOPs", "GFLOP/s")
    where = f"{args.ssh or 'this machine'}, {args.threads} thread{'s' * (args.threads > 1)}"
    title = f"{bundle.name}, {where}{CHEAPEST_TITLE * portfolio}"
    record = {"target": bundle.target, "where": where, **found}
    lines = []
    if args.save:
        path = measured_path(bundle, where)
        write_whole(path, to_json(record).encode())
        lines.append(f"wrote {path}; taskgraft report shows it")
    return Result(record, (Grid(title, columns, rows),), tuple(lines))
