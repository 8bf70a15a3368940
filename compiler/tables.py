"""Tables and progress on a terminal. The only module that imports rich."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compiler.commands import Cell, Grid

_WIDE = 200


def show(grids: Iterable[Grid], stream: TextIO) -> None:
    """Print tables to `stream`; plain text where it is no terminal."""
    console = Console(file=stream, width=None if stream.isatty() else _WIDE, highlight=False)
    for grid in grids:
        console.print(_table(grid))


def _table(grid: Grid) -> Table:
    table = Table(title=escape(grid.title), title_justify="left", box=None, pad_edge=False, title_style="bold")
    for index, name in enumerate(grid.columns):
        numeric = any(isinstance(row[index], (int, float)) for row in grid.rows)
        table.add_column(escape(name), justify="right" if numeric else "left", overflow="fold")
    for row in grid.rows:
        table.add_row(*(escape(cell_text(c)) for c in row))
    return table


def cell_text(cell: Cell) -> str:
    """Digits in groups of three for whole numbers, four significant ones for others, nothing for None."""
    if cell is None:
        return "-"
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4g}" if isinstance(cell, float) else cell


def progress() -> Callable[[str], None]:
    """A function that prints one line per stage to stderr, with the seconds since the start."""
    console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    start = time.monotonic()

    def say(line: str) -> None:
        console.print(f"[dim]{time.monotonic() - start:6.1f}s[/dim] {escape(line)}")

    return say
