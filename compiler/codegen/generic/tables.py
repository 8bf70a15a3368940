"""Constant tables of positions as index arithmetic: a run of a table is usually a line, or repeats each entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from compiler.codegen.generic.index import Index, LoopVar, index_or_none

Break = tuple[LoopVar, int]
"""A variable and the value from which on a table follows another line."""

_LARGEST = 1 << 16
_LIMIT = 1 << 30
_MOST_REPEATS = 8
_MOST_BREAKS = 12


def holds_positions(table: np.ndarray) -> bool:
    """Whether a run of the table may be read as index arithmetic: signed integers at least as wide as an index."""
    return table.dtype.kind == "i" and table.dtype.itemsize >= 4


def piece(table: np.ndarray, at: Sequence[Any], breaks: list[Break]) -> Any:
    """table[at] as an `Index` where the entries within the intervals of `at` follow one line; else None.

    Where they follow several, the places where the line changes are added to `breaks`.
    """
    if not holds_positions(table):
        return None
    known = [index_or_none(i) for i in at]
    if any(i is None for i in known):
        return None
    indices = [i for i in known if i is not None]
    box = tuple(_within(i, size) for i, size in zip(indices, table.shape, strict=True))
    part = table[box].astype(np.int64)
    if part.size > _LARGEST or part.min() <= -_LIMIT or part.max() >= _LIMIT:
        return None
    found = _line(part, indices, box)
    if found is None:
        found = _repeated(part, indices, box)
    if found is None:
        _note_breaks(part, indices, box, breaks)
    return found


def _within(index: Index, size: int) -> slice:
    """The entries an index can reach; what lies outside an axis is guarded, so that any entry does."""
    low, high = (min(max(end, 0), size - 1) for end in index.interval)
    return slice(low, high + 1)


def _line(part: np.ndarray, indices: Sequence[Index], box: Sequence[slice]) -> Index | None:
    first = int(part.flat[0])
    slopes = [int(part.take(1, d).flat[0]) - first if n > 1 else 0 for d, n in enumerate(part.shape)]
    line = np.full(part.shape, first)
    for axis, slope in enumerate(slopes):
        line += slope * np.arange(part.shape[axis]).reshape(-1, *(1,) * (part.ndim - axis - 1))
    if not np.array_equal(line, part):
        return None
    total = Index({}, first)
    for slope, index, span in zip(slopes, indices, box, strict=True):
        total = total + (index - span.start) * slope
    return total


def _repeated(part: np.ndarray, indices: Sequence[Index], box: Sequence[slice]) -> Index | None:
    """Entries that grow by one every `by` positions, as an upsampling reads them."""
    long = [d for d, n in enumerate(part.shape) if n > 1]
    if len(long) != 1:
        return None
    line, d = part.reshape(-1), long[0]
    position = np.arange(len(line))
    for by in range(2, _MOST_REPEATS + 1):
        for shift in range(by):
            if np.array_equal(line, line[0] + (position + shift) // by):
                found: Index = (indices[d] - box[d].start + shift) // by + int(line[0])
                return found
    return None


def _note_breaks(part: np.ndarray, indices: Sequence[Index], box: Sequence[slice], breaks: list[Break]) -> None:
    for d, index in enumerate(indices):
        if len(index.terms) != 1:
            continue
        ((variable, factor),) = index.terms.items()
        if not isinstance(variable, LoopVar) or factor != 1 or part.shape[d] < 2:
            continue
        slope = np.diff(part, axis=d)
        bends = np.diff(slope, axis=d).any(axis=tuple(i for i in range(part.ndim) if i != d))
        places = _places(np.flatnonzero(bends))
        if len(places) <= _MOST_BREAKS:
            breaks.extend((variable, int(p) + box[d].start - index.const) for p in places)


def _places(bends: np.ndarray) -> list[int]:
    """Where a new line begins: bend k lies at entry k + 1; two bends in a row are one step between lines."""
    found: list[int] = []
    last = -2
    for bend in bends:
        found.append(int(bend) + (1 if bend == last + 1 else 2))
        if bend == last + 1 and len(found) > 1 and found[-2] == found[-1]:
            found.pop()
        last = int(bend)
    return found
