"""Workspace planning: offsets of buffers whose lifetimes do not overlap may coincide.

Greedy by size with first fit (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference",
2020, section 4.2). Deterministic: ties go by first use, then by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Interval:
    """A buffer that must hold its contents from step `first` to step `last` (both included)."""

    name: str
    bytes: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Byte offsets by name, the workspace size, and the largest number of live bytes at any step."""

    offsets: Mapping[str, int]
    bytes: int
    lower_bound: int


def aligned(size: int) -> int:
    """`size` rounded up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def place(intervals: Sequence[Interval]) -> Placement:
    """Offsets for every interval such that buffers alive at the same step do not overlap."""
    placed: list[tuple[Interval, int]] = []
    for interval in sorted(intervals, key=lambda i: (-i.bytes, i.first, i.name)):
        busy = sorted((at, at + aligned(other.bytes)) for other, at in placed if _together(interval, other))
        offset = 0
        for start, end in busy:
            if offset + aligned(interval.bytes) <= start:
                break
            offset = max(offset, end)
        placed.append((interval, offset))
    top = max((at + aligned(i.bytes) for i, at in placed), default=0)
    return Placement({i.name: at for i, at in placed}, top, _live_bytes(intervals))


def _together(a: Interval, b: Interval) -> bool:
    return a.first <= b.last and b.first <= a.last


def _live_bytes(intervals: Sequence[Interval]) -> int:
    change: dict[int, int] = {}
    for i in intervals:
        change[i.first] = change.get(i.first, 0) + aligned(i.bytes)
        change[i.last + 1] = change.get(i.last + 1, 0) - aligned(i.bytes)
    live = peak = 0
    for step in sorted(change):
        live += change[step]
        peak = max(peak, live)
    return peak
