"""How far long work is: stages as lines, and counts for those that can show them.

A `Say` receives one line per stage. One that also has a method `count(stage, done, total)`, as those that
`compiler.tables` makes, is told how many parts of a stage are done; `total` is None where that is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

Say = Callable[[str], None]
"""Receives one line per stage."""

T = TypeVar("T")


def silent(line: str) -> None:
    """Says nothing."""


def told(say: Say, stage: str, done: int, total: int | None) -> None:
    """Tell `say` a count, where it takes counts."""
    count = getattr(say, "count", None)
    if count is not None:
        count(stage, done, total)


def tracked(say: Say, stage: str, items: Iterable[T], total: int | None = None) -> Iterator[T]:
    """The items one by one; `say` is told how many are done. `total` defaults to their number, if they have one."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    done = 0
    for item in items:
        told(say, stage, done, total)
        yield item
        done += 1
    told(say, stage, done, total)
