"""diff: what two models, releases or bundles do differently."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.bundle_report import read_report
from compiler.commands import Cell, Grid, Result
from compiler.commands.bundles import chosen
from compiler.commands.common import MOST_ROWS, capped, graph_of, is_release, output_file
from compiler.difference import Change, CostChange, changes, cost_changes
from compiler.errors import ConfigError, plural
from compiler.ir.graph import Graph
from compiler.ir.onnx_in import load
from compiler.release import Say
from compiler.staging import write_whole
from compiler.tables import html

DIFFERENT = 1
"""Exit status where something differs, as that of the program diff."""

Metric = tuple[str, float | None]
"""Name and value; None without labels."""

UNMEASURED: Metric = ("", None)

Accuracy = dict[tuple[str, int], Metric]
"""(task, level) -> what a bundle's evaluation found."""


@dataclass(frozen=True)
class _Side:
    graph: Graph
    accuracy: Accuracy | None
    """None where it is no bundle: `diff` evaluates nothing, so that there is nothing to compare with."""


def diff(args: Namespace, say: Say) -> Result:
    """Nodes, tensors, cost per combination and accuracy; exit status 1 where anything differs."""
    page = output_file(args) if args.output else None
    if args.target and not any(Path(p).is_dir() for p in (args.before, args.after)):
        raise ConfigError(
            f"--target {args.target[0]}: neither {args.before} nor {args.after} is a bundle; leave it out"
        )
    sides = [p for p in (args.before, args.after) if not Path(p).is_dir()]
    if args.set and not any(map(is_release, sides)):
        raise ConfigError(
            f"--set {args.set[0]}: only a release file has keys, and neither side is one; leave it out"
        )
    if args.input and all(map(is_release, sides)):
        raise ConfigError(f"--input {args.input[0]}: binds axes of a model, and neither side is one; leave it out")
    before, after = (_side(path, args, say) for path in (args.before, args.after))
    found, costs = changes(before.graph, after.graph), cost_changes(before.graph, after.graph)
    one, two = before.accuracy or {}, after.accuracy or {}
    keys = dict.fromkeys([*one, *two] if before.accuracy is not None and after.accuracy is not None else ())
    measured = [(key, one.get(key, UNMEASURED), two.get(key, UNMEASURED)) for key in keys]
    metrics = [_metric_record(*key, *pair) for key, *pair in measured]
    record = {
        "before": args.before,
        "after": args.after,
        "changes": [c.record() for c in found],
        "costs": [c.record() for c in costs],
        "accuracy": metrics,
    }
    grids = (_change_grid(found), _cost_grid(costs), *([_metric_grid(metrics)] if metrics else []))
    if page is not None:
        write_whole(page, html(f"{args.before} and {args.after}", grids).encode())
    same = not found and all(c.same for c in costs) and all(a == b for _, a, b in measured)
    lines = ("nothing differs",) if same else ()
    return Result(record, () if same else grids, lines, 0 if same else DIFFERENT)


def _side(path: str, args: Namespace, say: Say) -> _Side:
    if not Path(path).is_dir():
        foreign = "input" if is_release(path) else "set"  # each side takes the options of its kind
        return _Side(graph_of(Namespace(**{**vars(args), "path": path, foreign: []}), say), None)
    bundle = chosen(Path(path), args.target)
    say(f"read {path} for {bundle.target}")
    accuracy = {(e["task"], e["level"]): _metric(e) for e in read_report(bundle)["evaluation"]}
    return _Side(load(str(bundle.path / "merged.onnx")), accuracy)


def _metric(evaluation: dict[str, Any]) -> Metric:
    final = evaluation["bundle"] or evaluation["graph"]
    return evaluation["metric"] or "", final["metric"]


# ---------------------------------------------------------------------- tables
def _change_grid(found: Sequence[Change]) -> Grid:
    title = f"{plural(len(found), 'difference')} of the graphs"
    if len(found) > MOST_ROWS:
        title += f" (the first {MOST_ROWS}; --json prints all)"
    rows = [(c.part, c.name, c.kind, c.what, c.before, c.after) for c in found[:MOST_ROWS]]
    return Grid(title, ("part", "name", "kind", "what", "before", "after"), rows)


def _cost_grid(costs: Sequence[CostChange]) -> Grid:
    columns = ["tasks", "level"]
    for quantity in ("MACs", "FLOPs", "parameters"):
        columns += [f"{quantity} before", f"{quantity} after", "change"]
    rows = []
    for one in costs:
        row: list[Cell] = ["+".join(one.tasks), one.level]
        for pair in (one.macs, one.flops, one.parameters):
            row += [*pair, _change(*pair)]
        rows.append(row)
    return capped("cost of every combination", tuple(columns), rows)


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return ""
    return f"{after / before - 1:+.1%}" if before else ("+0.0%" if not after else "new")


def _metric_record(task: str, level: int, before: Metric, after: Metric) -> dict[str, Any]:
    names = dict.fromkeys(name for name, _ in (before, after) if name)
    return {
        "task": task,
        "level": level,
        "metric": ", then ".join(names),
        "before": before[1],
        "after": after[1],
    }


def _metric_grid(records: Sequence[dict[str, Any]]) -> Grid:
    return Grid("accuracy on the evaluation data", tuple(records[0]), [tuple(r.values()) for r in records])
