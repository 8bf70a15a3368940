"""report: what builds recorded about their bundles, in one page."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compiler.bundle_report import comparison, read_measured, read_report
from compiler.codegen.bundle import read_bundle
from compiler.commands import Grid, Result
from compiler.commands.bundles import targets_in
from compiler.commands.common import output_file
from compiler.page import page
from compiler.release import Say
from compiler.staging import write_whole


def report(args: Namespace, say: Say) -> Result:
    """One page for one bundle or several, with the times that `bench --save` has left in them."""
    path = output_file(args)
    records = []
    for folder in map(Path, args.paths):
        for target in args.target or targets_in(folder) or (None,):
            say(f"read {folder}{f' for {target}' if target else ''}")
            bundle = read_bundle(folder, target)
            records.append({**read_report(bundle), "measured": read_measured(bundle)})
    write_whole(path, page(records).encode())
    rows = comparison(records)
    return Result({"output": str(path), "bundles": rows}, (_grid(rows),), (f"wrote {path}",))


def _grid(rows: Sequence[dict[str, Any]]) -> Grid:
    columns = tuple(c for c in rows[0] if any(r[c] is not None for r in rows))
    return Grid("bundles, all tasks together", columns, [tuple(r[c] for c in columns) for r in rows])
