"""Tables and progress on a terminal. The only module that imports rich."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text
from rich.tree import Tree as Branches

from compiler.commands import Cell, Grid, Tree

_WIDE = 200
EVERY = 2.0
"""Seconds between two lines of one count."""


class Pace:
    """The clock of a run: seconds since its start, and how long a counted stage will still take."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._began: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    def left(self, stage: str, done: int, total: int | None) -> float | None:
        """Seconds left if the rest of a stage goes as its done part went; None before its first part is done."""
        now = time.monotonic()
        if not done:
            self._began[stage] = now
        if not done or total is None:
            return None
        return (now - self._began.get(stage, now)) / done * (total - done)

    def due(self) -> bool:
        """Whether EVERY seconds have passed since this last was true."""
        now = time.monotonic()
        if now - self._last < EVERY:
            return False
        self._last = now
        return True


def show(grids: Iterable[Grid | Tree], stream: TextIO) -> None:
    """Print tables and trees to `stream`; plain text where it is no terminal, trees then in ASCII."""
    console = Console(file=stream, width=None if stream.isatty() else _WIDE, highlight=False)
    for grid in grids:
        if isinstance(grid, Grid):
            console.print(_table(grid))
        else:
            _draw(grid, console)


_COLOURS = (
    "",
    "cyan",
    "magenta",
    "green",
    "yellow",
    "blue",
    "red",
    "bright_cyan",
    "bright_magenta",
    "bright_green",
)
"""By kind of a line; kinds beyond take turns."""


def _draw(tree: Tree, console: Console) -> None:
    """Box characters and colours where the terminal has them; labels fold at the width, the rest is escaped."""
    options = console.options
    if not console.is_terminal:
        options.encoding = "ascii"  # by which rich chooses the characters that connect lines
    drawn = _branch(tree, options.encoding, Branches("", guide_style="dim"))
    if console.is_terminal:
        console.print(drawn)
        return
    text = "".join(segment.text for segment in console.render(drawn, options))
    console.file.writelines(f"{line.rstrip()}\n" for line in text.splitlines())


def _branch(tree: Tree, encoding: str, drawn: Branches) -> Branches:
    """`drawn` with the label and the children of `tree`."""
    colour = _COLOURS[(tree.kind - 1) % (len(_COLOURS) - 1) + 1 if tree.kind else 0]
    drawn.label = Text(tree.label.encode(encoding, "backslashreplace").decode(encoding), style=colour)
    for child in tree.children:
        _branch(child, encoding, drawn.add(""))
    return drawn


def html(title: str, grids: Iterable[Grid]) -> str:
    """Tables as one page that needs nothing else."""
    console = Console(file=io.StringIO(), record=True, width=_WIDE, highlight=False)
    console.print(escape(title), style="bold")
    for grid in grids:
        console.print(_table(grid))
    return console.export_html()


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


class Plain:
    """Progress as lines on stderr: one per stage with the seconds since the start, and a count now and then."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._pace = Pace()

    def __call__(self, line: str) -> None:
        self._console.print(f"[dim]{self._pace.seconds:6.1f}s[/dim] {escape(line)}")

    def count(self, stage: str, done: int, total: int | None) -> None:
        """A line at most every EVERY seconds, and none for what is done sooner."""
        left = self._pace.left(stage, done, total)
        if self._pace.due():
            self(f"{stage}: {done} of {total or '?'}{'' if left is None else f', {left:.0f} s left'}")

    def close(self) -> None:
        """Nothing is left to do."""


class Lines(Plain):
    """Progress as JSON lines on stderr: `event` is `stage` or `count`, `seconds` since the start."""

    def __call__(self, line: str) -> None:
        self._print({"event": "stage", "stage": line})

    def count(self, stage: str, done: int, total: int | None) -> None:
        """Every count; `seconds_left` is null where it cannot be told."""
        left = self._pace.left(stage, done, total)
        rounded = None if left is None else round(left, 3)
        self._print({"event": "count", "stage": stage, "done": done, "total": total, "seconds_left": rounded})

    def _print(self, record: dict[str, object]) -> None:
        print(json.dumps({**record, "seconds": round(self._pace.seconds, 3)}), file=sys.stderr, flush=True)


class Bar(Plain):
    """Progress on a terminal: stages as lines, below them a bar per count with the time left, while it runs."""

    def __init__(self) -> None:
        super().__init__()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bars = Progress(*columns, TimeRemainingColumn(), console=self._console, transient=True)
        self._running: dict[str, TaskID] = {}
        self._bars.start()

    def count(self, stage: str, done: int, total: int | None) -> None:
        """The bar of a stage appears with its first part and goes with its last."""
        if stage not in self._running:
            self._running[stage] = self._bars.add_task(escape(stage), total=total)
        self._bars.update(self._running[stage], completed=done)
        if total is not None and done >= total:
            self._bars.remove_task(self._running.pop(stage))

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._bars.stop()


def progress(kind: str = "auto") -> Plain:
    """What shows progress on stderr: `bar`, `plain`, `json`; `auto` is a bar where stderr is a terminal."""
    if kind == "auto":
        kind = "bar" if sys.stderr.isatty() else "plain"
    return {"bar": Bar, "plain": Plain, "json": Lines}[kind]()
