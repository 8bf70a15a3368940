"""The commands: each a short function from parsed arguments to a `Result`. Only `compiler.cli` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Cell = str | int | float | None

CHEAPEST_TITLE = " (*: at its cheapest level)"
"""Behind the title of a table of a portfolio's combinations."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table as data; None is an empty cell."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, slots=True)
class Tree:
    """Lines below lines, drawn with their connections. `kind`: lines of one number have one colour; 0: none."""

    label: str
    children: tuple[Tree, ...] = ()
    kind: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """What a command found: `record` for --json; tables, trees and closing lines for people; the exit status."""

    record: object
    grids: tuple[Grid | Tree, ...] = ()
    lines: tuple[str, ...] = ()
    code: int = 0
