"""Commands that work on graphs and build nothing: cost, inspect, extract, prune."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from compiler.calibration.samples import open_calibration
from compiler.commands import Grid, Result, Tree
from compiler.commands.bundles import bundle_costs, chosen, inspect_bundle
from compiler.commands.common import (
    capped,
    cost_grid,
    costs_of,
    graph_of,
    is_release,
    level_grids,
    of_bundle,
    output_file,
    refusal_grid,
    release_of,
    tasks_of,
    without_target,
)
from compiler.commands.pictures import outline_records, outline_tree
from compiler.cost.combine import cost_report
from compiler.cost.count import totals
from compiler.errors import ConfigError, plural
from compiler.ir.graph import Graph
from compiler.ir.onnx_in import load
from compiler.ir.onnx_out import save
from compiler.ir.text import digest, text
from compiler.passes.base import Resources, check_patterns
from compiler.passes.extract import ExtractTasks
from compiler.passes.extract_level import ExtractLevel
from compiler.pipeline import PassRecord, Pipeline, make
from compiler.release import Say, clock, resources
from compiler.report import layer_rows, level_rows

SAMPLES = 256
"""Calibration samples that `prune` uses where none are counted."""


def cost(args: Namespace, say: Say) -> Result:
    """Every combination of tasks of a release, a model or a bundle."""
    if Path(args.path).is_dir():
        of_bundle(args)
        return bundle_costs(Path(args.path), args.target)
    without_target(args)
    graph, report = costs_of(args, say)
    return Result(report.record(), (cost_grid(report, f"{graph.name}: {plural(len(graph.tasks), 'task')}"),))


def inspect(args: Namespace, say: Say) -> Result:
    """Tensors, operators, tasks and owners of a release, a model or a bundle."""
    if Path(args.path).is_dir():
        of_bundle(args)
        bundle = chosen(Path(args.path), args.target)
        graph = Graph(bundle.name)  # the file's is that of every bundle
        graph.assign(load(bundle.path / "merged.onnx"))
        pictures: list[Grid | Tree] = [*level_grids(graph), outline_tree(graph)]
        found = inspect_bundle(bundle, outline_records(graph), pictures)
        return Result(found.record, (), (text(graph).rstrip("\n"),)) if args.text else found
    without_target(args)
    graph = graph_of(args, say)
    layers, levels = layer_rows(graph), level_rows(graph)
    kinds = Counter(n.op.name for n in graph.nodes())
    ports = [("input", v.ref.name, str(v.type), "") for v in graph.inputs]
    ports += [
        ("output", label, str(graph.value(r).type), t.name)
        for t in graph.tasks.values()
        for r, label in zip(t.outputs, t.labels, strict=True)
    ]
    columns = ("node", "op", "tasks", "results", "macs", "flops")
    record = {
        "name": graph.name,
        "digest": digest(graph),
        "inputs": [{"name": p[1], "type": p[2]} for p in ports if p[0] == "input"],
        "outputs": [{"name": p[1], "type": p[2], "task": p[3]} for p in ports if p[0] == "output"],
        "operators": dict(sorted(kinds.items())),
        **{quantity: levels[0][quantity] for quantity in ("parameters", "macs", "flops")},
        "levels": levels,
        "layers": layers,
        "outline": outline_records(graph),
    }
    if args.text:
        return Result(record, (), (text(graph).rstrip("\n"),))
    grids: list[Grid | Tree] = [
        Grid(f"{graph.name}: {sum(kinds.values())} nodes", ("port", "name", "type", "task"), ports),
        *level_grids(graph),
        outline_tree(graph),
        capped("layers", columns, [tuple(row[c] for c in columns) for row in layers]),  # type: ignore[misc]
    ]
    return Result(record, tuple(grids))


def extract(args: Namespace, say: Say) -> Result:
    """The network of a subset of tasks, of a level, or of both as an ONNX file."""
    if not args.tasks and args.level is None:
        raise ConfigError("name what to extract: --tasks A,B or --level N, or both")
    if args.alone and args.level is None:
        raise ConfigError("--alone says which levels stay beside --level N; name that level")
    path = output_file(args)
    part = graph_of(args, say)
    if args.tasks:
        part = ExtractTasks(tasks=tasks_of(args.tasks))(part)
    if args.level is not None:
        part = ExtractLevel(level=args.level, alone=args.alone)(part)
    save(part, path)
    return _written(path, part)


def prune(args: Namespace, say: Say) -> Result:
    """Channel pruning of a model or a release, as an ONNX file; a report of what stayed and why.

    A release brings everything that its own passes use: names that it excludes, workload, seed, evaluation data
    and calibration data, unless --calibration names others.
    """
    options = _options(args.option)
    if args.samples is not None and (args.samples < 0 or not args.calibration):
        raise ConfigError(f"--samples {args.samples}: give a number of those in --calibration, or 0 for all")
    shares = {k: v for k, v in (("flops", args.flops), ("parameters", args.parameters)) if v is not None}
    if twice := shares.keys() & options.keys():
        raise ConfigError(f"--{min(twice)} and --option {min(twice)} are the same; give one of them")
    options |= shares
    make("prune-channels", options)  # what cannot be read is told before anything else is
    path = output_file(args)
    if is_release(args.path):
        release, graph = release_of(args, say)
        use = resources(release.config, release.graph, say)
    else:
        graph = graph_of(args, say)
        use = Resources(say=say, clock=clock)
    check_patterns(graph, args.exclude, "--exclude")
    if args.calibration:
        limit = SAMPLES if args.samples is None else args.samples
        feeds = open_calibration(args.calibration, Path(), graph.inputs, limit)
        options = {"samples": str(feeds.batches), **options}
        use = replace(use, calibration=feeds)
    seed = use.seed if args.seed is None else args.seed
    use = replace(use, seed=seed, exclude=(*use.exclude, *args.exclude))
    passes = [make(name, {}) for name in ("fold-constants", "fold-batch-norm", "remove-dead-code")]
    passes += [make("dead-channels", {}), make("prune-channels", options)]
    say(f"passes: {', '.join(map(str, passes))}")
    after, records = Pipeline(tuple(passes), numerics=True).run(graph, use)
    save(after, path)
    return _pruned(path, graph, after, records)


def _options(pairs: Sequence[str]) -> dict[str, object]:
    """`K=V` as option -> text; ConfigError where one cannot be read or names an option twice."""
    found: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        name = key.strip().replace("-", "_")
        if not equals:
            raise ConfigError(f"--option {pair}: write K=V; `taskgraft passes` lists the options of prune-channels")
        if name in found:
            raise ConfigError(f"--option {pair}: '{name}' has a value already; give each option once")
        found[name] = value
    return found


def _pruned(path: Path, before: Graph, after: Graph, records: tuple[PassRecord, ...]) -> Result:
    old, new = totals(before), totals(after)
    names = ("macs", "flops", "parameters", "weight_bytes")
    rows = [
        (n, getattr(old, n), getattr(new, n), f"{getattr(new, n) / max(1, getattr(old, n)):.3f}") for n in names
    ]
    record = {
        "output": str(path),
        "before": {n: a for n, a, _, _ in rows},
        "after": {n: b for n, _, b, _ in rows},
        "passes": [r.record() for r in records],
    }
    grids = [Grid("pruned", ("quantity", "before", "after", "share"), rows)]
    if any(r.refusals for r in records):
        grids.append(refusal_grid(records))
    return Result(record, tuple(grids), (f"wrote {path}",))


def _written(path: Path, graph: Graph) -> Result:
    report = cost_report(graph)
    record = {"output": str(path), "digest": digest(graph), **report.record()}
    return Result(record, (cost_grid(report, graph.name),), (f"wrote {path}",))
