"""What several commands share: reading a graph from a model or a release, tables of costs."""

from __future__ import annotations

import math
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from compiler.commands import CHEAPEST_TITLE, Cell, Grid
from compiler.config import load_config
from compiler.cost.combine import CostReport, cost_report
from compiler.errors import ConfigError, plural
from compiler.files import takes_files
from compiler.ir.graph import Graph
from compiler.ir.levels import is_portfolio
from compiler.ir.onnx_in import load
from compiler.passes.extract import ExtractTasks
from compiler.pipeline import PassRecord
from compiler.release import Release, Say, load_release, transform
from compiler.report import level_rows
from compiler.settings import Config

MOST_ROWS = 255
"""Rows of a printed table of combinations."""


MOST_REFUSALS = 20
"""Rows of a printed table of refusals."""


def config_of(args: Namespace) -> Config:
    """The release file of the command line with its --set overrides."""
    return load_config(args.path, args.set)


def is_release(path: str) -> bool:
    """Whether the argument names a release file."""
    return path.endswith(".toml")


def joined_release(args: Namespace, say: Say) -> Release:
    """A release as its networks are joined; ConfigError where an option of models is given."""
    if args.input:
        raise ConfigError(
            f"--input {args.input[0]}: binds axes of a model; a release has its shapes in [input.NAME] and in "
            "`shapes` of its tasks, which --set replaces"
        )
    return load_release(config_of(args), allow_external_data=args.allow_external_data, say=say)


def release_of(args: Namespace, say: Say) -> tuple[Release, Graph]:
    """A release and its graph behind the passes; ConfigError as for `joined_release`."""
    release = joined_release(args, say)
    return release, transform(release, say=say)[0]


def graph_of(args: Namespace, say: Say) -> Graph:
    """A release after its passes, or a model as it is.

    ConfigError where an option is given that the other kind of source takes.
    """
    return release_of(args, say)[1] if is_release(args.path) else model_of(args, say)


def model_of(args: Namespace, say: Say) -> Graph:
    """A model as it is; ConfigError where an option of releases is given."""
    if Path(args.path).is_dir():
        raise ConfigError(
            f"{args.path} is a folder; give a release file or a model. A bundle has its graph as TARGET/merged.onnx"
        )
    if args.set:
        raise ConfigError(f"--set {args.set[0]}: {args.path} is a model; only a release file has keys")
    say(f"import {args.path}")
    return load(args.path, inputs=shapes_of(args.input), allow_external_data=args.allow_external_data)


def costs_of(args: Namespace, say: Say) -> tuple[Graph, CostReport]:
    """The graph of the command line and its cost report; workspace is null because nothing is built."""
    if is_release(args.path):
        release, graph = release_of(args, say)
        return graph, cost_report(graph, release.separate())
    graph = model_of(args, say)
    return graph, cost_report(graph, {t: ExtractTasks(tasks=(t,))(graph) for t in graph.tasks})


def without_target(args: Namespace) -> None:
    """ConfigError where --target is given beside a model or a release: it chooses among those of a bundle."""
    if args.target:
        raise ConfigError(f"--target {args.target[0]}: {args.path} is no bundle; leave it out")


def of_bundle(args: Namespace, *more: str) -> None:
    """ConfigError where --set, --input, --allow-external-data or an option in `more` is given beside a bundle: they
    say how a model or a release is read."""
    options = ("set", "input", "allow_external_data", *more)
    given = [f"--{o.replace('_', '-')}" for o in options if getattr(args, o, None) not in (None, False, [])]
    if given:
        raise ConfigError(
            f"{', '.join(given)}: {args.path} is a bundle, which nothing of this changes; leave out what is for "
            "models and releases"
        )


def shapes_of(bindings: list[str]) -> dict[str, tuple[int, ...]]:
    """`NAME:1,3,32,32` as name -> shape (the name may contain colons).

    ConfigError where it cannot be read or names an input twice.
    """
    found: dict[str, tuple[int, ...]] = {}
    for binding in bindings:
        name, colon, sizes = binding.rpartition(":")
        try:
            shape = tuple(map(int, sizes.split(",") if sizes.strip() else ())) if colon else None
        except ValueError:
            shape = None
        if not name or shape is None:
            raise ConfigError(f"--input {binding}: write NAME:SIZE,SIZE,... as in --input image:1,3,32,32")
        if name in found:
            raise ConfigError(f"--input {binding}: '{name}' has a shape already; give each input once")
        found[name] = shape
    return found


def ranges_of(bindings: list[str]) -> dict[str, tuple[float, float]]:
    """`NAME:LO:HI` as name -> (low, high); ConfigError where it cannot be read or names an input twice."""
    found = {}
    for binding in bindings:
        parts = binding.rsplit(":", 2)
        try:
            name, low, high = parts[0], float(parts[1]), float(parts[2])
        except (ValueError, IndexError):
            raise ConfigError(f"--range {binding}: write NAME:LOW:HIGH") from None
        if not (low <= high and math.isfinite(high - low)):
            raise ConfigError(f"--range {binding}: values go from a lower to a higher finite number")
        if name in found:
            raise ConfigError(f"--range {binding}: '{name}' has a range already; give each input once")
        found[name] = (low, high)
    return found


def tasks_of(text: str) -> tuple[str, ...]:
    """`a,b` or `a+b` as task names."""
    return tuple(t for t in text.replace("+", ",").split(",") if t)


def output_file(args: Namespace) -> Path:
    """The file -o names; ConfigError where it exists and --force is not given, or its folder does not."""
    path = Path(args.output)
    try:
        there, below = path.exists(), path.parent.is_dir()
    except OSError as error:  # a name that is too long
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; -o names a file")
    if there and not args.force:
        raise ConfigError(f"{path} exists; --force replaces it")
    if not below:
        raise ConfigError(f"{path.parent} is not a folder")
    device = there and not path.is_file()
    if not (device or takes_files(Path(os.path.realpath(path)).parent)):
        raise ConfigError(f"{path}: cannot be written: no file can be made in {path.parent}")
    return path


def refusal_grid(records: Sequence[PassRecord]) -> Grid:
    """What the passes left alone and why: for `deduplicate`, where each pair of networks first differs."""
    rows = [(record.name, r.where, r.reason) for record in records for r in record.refusals]
    return capped("left alone", ("pass", "where", "why"), rows, MOST_REFUSALS)


def capped(title: str, columns: tuple[str, ...], rows: Sequence[Sequence[Cell]], most: int = MOST_ROWS) -> Grid:
    """A table of the first `most` rows, whose title says so where there are more."""
    if len(rows) > most:
        title += f" (the first {most} of {len(rows):,}; --json prints all)"
    return Grid(title, columns, rows[:most])


def level_grids(graph: Graph) -> tuple[Grid, ...]:
    """A table of the levels, where there are several."""
    rows = level_rows(graph)
    if len(rows) == 1:
        return ()
    title = f"a portfolio of {len(rows)} networks" if is_portfolio(graph) else plural(len(rows), "sparsity level")
    share = "of all weights" if is_portfolio(graph) else "weights kept"
    columns = ("level", share, "parameters", "weights B", "MACs", "FLOPs")
    counts = ("parameters", "weight_bytes", "macs", "flops")
    cells = [(r["level"], f"{r['density']:.1%}", *(r[c] for c in counts)) for r in rows]
    return (Grid(title, columns, cells),)  # type: ignore[arg-type]


def cost_grid(report: CostReport, title: str) -> Grid:
    """One row per combination, the separate networks' FLOPs beside it."""
    columns = (
        "tasks",
        "level",
        "MACs",
        "FLOPs",
        "separate",
        "saved",
        "parameters",
        "weights B",
        "traffic B",
        "workspace B",
    )
    rows: list[tuple[Cell, ...]] = []
    total = sum(len(rows) for rows in report.levels)
    if total > MOST_ROWS:
        title += f" ({MOST_ROWS - 1:,} of {total:,} rows and the last one; --json prints all)"
    cheapest = {(row.tasks, row.level) for row in report.cheapest()} if report.portfolio else set()
    if cheapest:
        title += CHEAPEST_TITLE
    for number, (row, other) in enumerate(report.pairs(), 1):
        if MOST_ROWS <= number < total:
            continue
        flops = other.cost.flops if other else None
        saved = None if not flops else f"{1 - row.cost.flops / flops:.1%}"
        cost = row.cost
        rows.append(
            (
                " ".join(row.tasks),
                f"{row.level}*" if (row.tasks, row.level) in cheapest else row.level,
                cost.macs,
                cost.flops,
                flops,
                saved,
                cost.parameters,
                cost.weight_bytes,
                cost.activation_bytes,
                row.workspace_bytes,
            )
        )
    return Grid(title, columns, rows)
