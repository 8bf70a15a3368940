"""Tables and progress on a terminal. The only module that imports rich."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import threading
import time
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text
from rich.tree import Tree as Branches

from compiler.commands import Cell, Grid, Tree
from compiler.errors import printable

_WIDE = 200
EVERY = 2.0
"""Seconds between two lines of one count."""


LONGEST = 30.0
"""Most seconds between two signs of life of work that tells nothing; they come more and more rarely."""


class Pace:
    """The clock of a run: seconds since its start, how long a counted stage will still take, when to say so."""

    def __init__(self) -> None:
        self._start = self._last = self._heard = time.monotonic()
        self._began: dict[str, float] = {}
        self._patience = EVERY

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

    def heard(self) -> None:
        """Something was printed."""
        self._heard, self._patience = time.monotonic(), EVERY

    def overdue(self) -> float | None:
        """Seconds since something was heard, where it is time to say so; the next time is twice as far away."""
        quiet = time.monotonic() - self._heard
        if quiet < self._patience:
            return None
        self._patience = min(2 * self._patience, quiet + LONGEST)
        return quiet


class _Results(Console):
    """A console whose callers decide what it means that its reader has left; rich would exit with status 1."""

    def on_broken_pipe(self) -> None:
        raise  # what rich is handling: it calls this where a write ended in BrokenPipeError


class _Asides(Console):
    """A console that falls silent where its reader has left: nothing depends on what it prints."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


def show(grids: Iterable[Grid | Tree], stream: TextIO) -> None:
    """Print tables and trees to `stream`; plain text where it is no terminal, trees then in ASCII.

    BrokenPipeError where the reader has left.
    """
    console = _Results(file=stream, width=None if stream.isatty() else _WIDE, highlight=False)
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
    drawn.label = Text(printable(tree.label).encode(encoding, "backslashreplace").decode(encoding), style=colour)
    for child in tree.children:
        _branch(child, encoding, drawn.add(""))
    return drawn


def html(title: str, grids: Iterable[Grid]) -> str:
    """Tables as one page that needs nothing else."""
    console = Console(file=io.StringIO(), record=True, width=_WIDE, highlight=False)
    console.print(_text(title, "bold"))
    for grid in grids:
        console.print(_table(grid))
    return console.export_html()


def _table(grid: Grid) -> Table:
    table = Table(title=_text(grid.title, "bold"), title_justify="left", box=None, pad_edge=False)
    for index, name in enumerate(grid.columns):
        numeric = any(isinstance(row[index], (int, float)) for row in grid.rows)
        table.add_column(_text(name), justify="right" if numeric else "left", overflow="fold")
    for row in grid.rows:
        table.add_row(*(_text(cell_text(c)) for c in row))
    return table


def _text(text: str, style: str = "") -> Text:
    """A text that neither rich nor a terminal takes for anything else: it may hold names from models. Of a string
    rich would make emoji (`:key:`) and markup, and escaped it has a backslash more at its end."""
    return Text(printable(text), style=style)


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
        self._console = _Asides(file=sys.stderr, highlight=False, soft_wrap=True)
        self._pace = Pace()
        self._line = ""
        self._counts: dict[str, tuple[int, int | None]] = {}
        """Stages that are not done yet, the outermost first."""
        self._lock = threading.RLock()
        self._closed = threading.Event()

    def start(self) -> None:
        """From now on a thread shows that work goes on where it tells nothing by itself; see `beat`."""
        threading.Thread(target=self._beats, daemon=True).start()

    def __call__(self, line: str) -> None:
        with self._lock:
            self._line = line
            self._print({"event": "stage", "stage": line}, line)

    def count(self, stage: str, done: int, total: int | None) -> None:
        """A line at most every EVERY seconds, and none for what is done sooner."""
        with self._lock:
            left = self._note(stage, done, total)
            if self._pace.due():
                self._print(_record("count", stage, done, total, left), _counted(stage, done, total, left))

    def beat(self) -> None:
        """Say what is still going on, where nothing was said for EVERY seconds; then ever more rarely."""
        with self._lock:
            quiet = self._pace.overdue() if self._line or self._counts else None
            if quiet is None:
                return
            if not self._counts:
                self._print(_record("alive", self._line), f"{self._line}: {quiet:.0f} s so far", alive=True)
                return
            stage, (done, total) = next(reversed(self._counts.items()))
            left = self._pace.left(stage, done, total) if done else None
            text = f"{_counted(stage, done, total, left)}; {quiet:.0f} s since the last part"
            self._print(_record("alive", stage, done, total, left), text, alive=True)

    def close(self) -> None:
        """No sign of life from now on."""
        self._closed.set()

    def _beats(self) -> None:
        while not self._closed.wait(EVERY / 4):
            self.beat()

    def _note(self, stage: str, done: int, total: int | None) -> float | None:
        """Keep a count, forget those inside of it, and tell the seconds that are left."""
        if stage in self._counts:
            while next(reversed(self._counts)) != stage:
                self._counts.popitem()
        self._counts[stage] = done, total
        if total is not None and done >= total:
            del self._counts[stage]
        return self._pace.left(stage, done, total)

    def _print(self, record: dict[str, object], text: str, *, alive: bool = False) -> None:
        """Write one line; `record` is the same for machines."""
        self._write(record, text)
        if not alive:
            self._pace.heard()

    def _write(self, record: dict[str, object], text: str) -> None:
        self._console.print(Text.assemble((f"{self._pace.seconds:6.1f}s", "dim"), " ", _text(text)))


def _record(
    event: str, stage: str, done: int | None = None, total: int | None = None, left: float | None = None
) -> dict[str, object]:
    rounded = None if left is None else round(left, 3)
    return {"event": event, "stage": stage, "done": done, "total": total, "seconds_left": rounded}


def _counted(stage: str, done: int, total: int | None, left: float | None) -> str:
    return f"{stage}: {done} of {total or '?'}{'' if left is None else f', {left:.0f} s left'}"


class Lines(Plain):
    """Progress as JSON lines on stderr: `event` is `stage`, `count` or `alive`, `seconds` since the start."""

    def count(self, stage: str, done: int, total: int | None) -> None:
        """Every count; `seconds_left` is null where it cannot be told."""
        with self._lock:
            self._print(_record("count", stage, done, total, self._note(stage, done, total)), "")

    def _write(self, record: dict[str, object], text: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({**record, "seconds": round(self._pace.seconds, 3)}), file=sys.stderr, flush=True)


class Bar(Plain):
    """Progress on a terminal: stages as lines, below them the last one with its time and a bar per count."""

    def __init__(self) -> None:
        super().__init__()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[parts]}"),
        )
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, *times, console=self._console, transient=True)
        self._stage: TaskID | None = None
        self._running: dict[str, TaskID] = {}
        self._bars.start()

    def start(self) -> None:
        """Nothing to do: the bars move by themselves."""

    def __call__(self, line: str) -> None:
        super().__call__(line)
        if self._stage is not None:
            self._bars.remove_task(self._stage)
        self._stage = self._bars.add_task(printable(line), total=None, parts="")

    def count(self, stage: str, done: int, total: int | None) -> None:
        """The bar of a stage appears with its first part and goes with its last, or when one around it moves."""
        self._note(stage, done, total)
        for other in [s for s in self._running if s not in self._counts]:
            self._bars.remove_task(self._running.pop(other))
        if stage not in self._counts:
            return
        if stage not in self._running:
            self._running[stage] = self._bars.add_task(printable(stage), total=total, parts="")
        self._bars.update(self._running[stage], completed=done, parts=f"{done} of {total or '?'}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._bars.stop()


def progress(kind: str = "auto") -> Plain:
    """What shows progress on stderr: `bar`, `plain`, `json`; `auto` is a bar where stderr is a terminal."""
    if kind == "auto":
        kind = "bar" if sys.stderr.isatty() else "plain"
    return {"bar": Bar, "plain": Plain, "json": Lines}[kind]()
