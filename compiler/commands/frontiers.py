"""frontier: accuracy against cost and time of a release at several budgets."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compiler.commands import Cell, Grid, Result
from compiler.commands.bundles import one_target
from compiler.commands.common import config_of
from compiler.errors import ConfigError
from compiler.frontier import SHARES, Frontier, Request, frontier, spread
from compiler.json_form import finite
from compiler.page import frontier_page
from compiler.progress import Say
from compiler.report import to_json
from compiler.staging import check_folder, write_whole

_POINT = re.compile(r"point-\d+\.onnx")

HONEST = 0.15
"""Difference of measured and predicted time above which the result says so."""


def frontier_(args: Namespace, say: Say) -> Result:
    """Write frontier.csv, frontier.json, frontier.html and the network of every point into a folder."""
    if args.shares is not None and args.points is not None:
        raise ConfigError("give either --shares or --points")
    target = one_target(args.target) or ""
    folder = Path(args.output)
    check_folder(folder)
    if (folder / "frontier.json").exists() and not args.force:
        raise ConfigError(f"{folder} already holds a frontier; --force replaces it")
    shares = spread(args.points) if args.points is not None else _shares(args.shares)
    request = Request(args.budget, shares, args.pass_, target, args.seconds)
    cache = Path(args.cache) if args.cache else folder / ".cache"
    try:
        found = frontier(
            config_of(args), request, cache=cache, allow_external_data=args.allow_external_data, say=say
        )
        _write(found, folder)
    except KeyboardInterrupt as stop:
        stop.add_note(f"finished points are in {cache}; the same command goes on behind them")
        raise
    return Result(found.record, (_grid(found),), tuple(_lines(found, folder)))


def _shares(text: str | None) -> tuple[float, ...]:
    if text is None:
        return SHARES
    try:
        return tuple(float(s) for s in text.split(",") if s.strip())
    except ValueError:
        raise ConfigError(f"--shares {text}: write numbers between 0 and 1, as in --shares 0.8,0.6,0.4") from None


def _write(found: Frontier, folder: Path) -> None:
    """Every file whole or not at all; the record goes first and comes last, so that a folder with one is complete.
    Networks of an earlier frontier go.
    """
    (folder / "frontier.json").unlink(missing_ok=True)
    for number, network in found.networks.items():
        write_whole(folder / f"point-{number}.onnx", network)
    write_whole(folder / "frontier.csv", found.csv().encode())
    write_whole(folder / "frontier.html", frontier_page(finite(found.record)).encode())
    kept = {f"point-{number}.onnx" for number in found.networks}
    for file in folder.glob("point-*.onnx"):
        if _POINT.fullmatch(file.name) and file.name not in kept:
            file.unlink()
    write_whole(folder / "frontier.json", to_json(found.record).encode())


def _grid(found: Frontier) -> Grid:
    tasks = found.record["tasks"]
    columns = ("point", "share", "status", "MFLOP", "weights B", "predicted us", "measured us", "off", *tasks)
    return Grid(
        f"{found.record['name']} for {found.record['target']}", columns, [_row(r, tasks) for r in found.rows]
    )


def _row(row: dict[str, Any], tasks: Sequence[str]) -> tuple[Cell, ...]:
    def told(key: str, form: str, factor: float = 1.0) -> str | None:
        return None if row[key] is None else format(row[key] * factor, form)

    cells = told("flops", ".2f", 1e-6), row["weight_bytes"], told("predicted_us", ".1f"), told("measured_us", ".1f")
    metrics = (told(f"metric_{t}", ".4f") for t in tasks)
    return (row["point"], f"{row['share']:g}", row["status"], *cells, told("error", "+.1%"), *metrics)


def _lines(found: Frontier, folder: Path) -> list[str]:
    lines = [f"share {r['share']:g} refused: {r['reason']}" for r in found.rows if r["reason"]]
    largest = found.record["largest_error"]
    if largest is not None:
        verdict = "" if largest <= HONEST else f", more than {HONEST:.0%}: measure again on an idle machine"
        lines.append(f"measured times are within {largest:.1%} of the predicted ones{verdict}")
    return [*lines, f"wrote {folder}"]
