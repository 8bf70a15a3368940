"""How far long work is: stages as lines, and counts for those that can show them.

A `Say` receives one line per stage. One that also has a method `count(stage, done, total)`, as those that
`compiler.tables` makes, is told how many parts of a stage are done; `total` is None where that is not known. Loops
deep inside a pass count for whoever listens to the pass (`heard_by`): nothing between them has to hand a `Say` on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
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


_listener: ContextVar[Say] = ContextVar("listener", default=silent)


@contextlib.contextmanager
def heard_by(say: Say) -> Iterator[None]:
    """Within the block, what is `counted` is told to `say`; of blocks inside each other the innermost counts."""
    before = _listener.set(say)
    try:
        yield
    finally:
        _listener.reset(before)


def counted(stage: str, items: Iterable[T], total: int | None = None) -> Iterator[T]:
    """The items one by one, as `tracked` for the listener of the block that this is called in; see `heard_by`."""
    return tracked(_listener.get(), stage, items, total)


def noted(stage: str, done: int, total: int | None = None) -> None:
    """Tell a count to the same listener, where no loop over items does."""
    told(_listener.get(), stage, done, total)
