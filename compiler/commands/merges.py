"""explain merge: what networks share, layer by layer, and why the rest is not."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from compiler.commands import Grid, Result
from compiler.commands.common import capped, config_of, cost_grid, graph_of, is_release, joined_release
from compiler.cost.combine import cost_report
from compiler.errors import ConfigError
from compiler.ir.graph import Graph
from compiler.ir.op import MacOp
from compiler.pipeline import PassRecord, Pipeline
from compiler.release import Say, resources


def explain_merge(args: Namespace, say: Say) -> Result:
    """A release: what its merge shared and why the rest is not, of variants that of the first with one. A model:
    which tasks its layers serve.
    """
    if Path(args.path).is_dir():
        raise ConfigError(f"{args.path} is a folder; explain merge reads a release file or an ONNX model")
    if not is_release(args.path):
        graph = graph_of(args, say)
        return _owners(graph)
    config = config_of(args)
    pipelines = [Pipeline.parse(p, numerics=False) for p in (config.passes, *config.variants.values())]
    pipeline = next((p for p in pipelines if any(pass_.name == "merge" for pass_ in p.passes)), None)
    if pipeline is None:
        raise ConfigError(
            f"{args.path}: its pipeline has no merge; add one, or try it with "
            f'--set passes.pipeline=\'["fold-constants", "fold-batch-norm", "merge"]\''
        )
    release = joined_release(args, say)
    say(f"passes up to merge: {', '.join(map(str, pipeline.passes))}")
    graph, records = pipeline.run(release.graph, resources(config, release.graph, say), stop_after="merge")
    report = cost_report(graph, release.separate())
    facts = _facts(records[-1])
    record = {
        "spec": records[-1].spec,
        "shared": [{"where": n.where, "what": n.reason} for n in records[-1].notes],
        "apart": [{"where": r.where, "why": r.reason} for r in records[-1].refusals],
        **report.record(),
    }
    return Result(record, (facts, cost_grid(report, f"{graph.name}: cost with {records[-1].spec}")))


def _facts(record: PassRecord) -> Grid:
    """Layers with what they share, then what stayed apart."""
    rows = [(n.where, "shared", n.reason) for n in record.notes]
    rows += [(r.where, "apart", r.reason) for r in record.refusals]
    return Grid(record.spec, ("layer", "", "what and why"), rows)


def _owners(graph: Graph) -> Result:
    """Per layer with multiply-adds, the tasks that need it."""
    needed = graph.needed_by()
    order = list(graph.tasks)
    rows = []
    for site in graph.sites():
        if isinstance(site.node.op, MacOp) and site.node.ref in needed:
            tasks = " ".join(t for t in order if t in needed[site.node.ref])
            rows.append((str(site.node.ref), site.node.op.name, tasks, site.node.op.macs(site)))
    record = [{"layer": r[0], "op": r[1], "tasks": r[2].split(), "macs": r[3]} for r in rows]
    grid = capped(f"{graph.name}: layers and the tasks that need them", ("layer", "op", "tasks", "MACs"), rows)
    report = cost_report(graph)
    return Result({"layers": record, **report.record()}, (grid, cost_grid(report, graph.name)))
