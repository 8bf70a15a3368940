"""Physical layouts of activations: how a logical tensor lies in memory.

A layout is a pair of index maps. `Plain` is row-major, the form of network inputs and outputs. `Blocked` is
NCHW{v}c with a zero halo around the image: vectors run over channels, and a padded convolution reads its border
without conditions. Index expressions may be Python integers, numpy arrays or TVM expressions alike.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Border:
    """Zero cells that a reader wants around an activation: before and after the image, per spatial axis."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def join(self, other: Border) -> Border:
        """What satisfies both readers."""
        return Border(
            tuple(map(max, self.before, other.before)),
            tuple(map(max, self.after, other.after)),
        )


class Layout(abc.ABC):
    """A storage form of activations."""

    @abc.abstractmethod
    def physical(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Extents of the buffer that holds a tensor of logical `shape`."""

    @abc.abstractmethod
    def index(self, at: Sequence[Any]) -> tuple[Any, ...]:
        """Physical position of the element at logical position `at`."""

    @abc.abstractmethod
    def logical(self, shape: Sequence[int], at: Sequence[Any]) -> tuple[tuple[Any, ...], Any | None]:
        """Logical position of physical cell `at`, and the condition under which it holds an element (or None)."""

    def elements(self, shape: Sequence[int]) -> int:
        """Number of cells of the buffer."""
        return math.prod(self.physical(shape))


@dataclass(frozen=True, slots=True)
class Plain(Layout):
    """Row-major in the logical shape."""

    def physical(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(shape)

    def index(self, at: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(at)

    def logical(self, shape: Sequence[int], at: Sequence[Any]) -> tuple[tuple[Any, ...], Any | None]:
        return tuple(at), None

    def __str__(self) -> str:
        return "plain"


@dataclass(frozen=True, slots=True)
class Blocked(Layout):
    """[N][C / width][before + spatial + after ...][width] for a logical [N, C, spatial...].

    `before` and `after` are the zero cells on both sides of each spatial axis (`after` empty: as `before`); lanes
    beyond C are zero.
    """

    width: int
    before: tuple[int, ...]
    after: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.after:
            object.__setattr__(self, "after", self.before)

    def physical(self, shape: Sequence[int]) -> tuple[int, ...]:
        n, c, *spatial = shape
        padded = [s + b + a for s, b, a in zip(spatial, self.before, self.after, strict=True)]
        return (n, -(-c // self.width), *padded, self.width)

    def index(self, at: Sequence[Any]) -> tuple[Any, ...]:
        n, c, *spatial = at
        moved = [s + h if h else s for s, h in zip(spatial, self.before, strict=True)]
        return (n, c // self.width, *moved, c % self.width)

    def logical(self, shape: Sequence[int], at: Sequence[Any]) -> tuple[tuple[Any, ...], Any | None]:
        n, block, *spatial, lane = at
        channel = block * self.width + lane
        conditions = []
        inner = []
        for position, extent, before, after in zip(spatial, shape[2:], self.before, self.after, strict=True):
            inner.append(position - before if before else position)
            conditions += [position >= before] if before else []
            conditions += [position < extent + before] if after else []
        if shape[1] % self.width:
            conditions.append(channel < shape[1])
        return (n, channel, *inner), _all(conditions)

    def __str__(self) -> str:
        border = "x".join(map(str, self.before)) if any(self.before) else ""
        if self.after != self.before:
            border += "," + "x".join(map(str, self.after))
        return f"blocked{self.width}" + (f"+{border}" if border else "")


def _all(conditions: Sequence[Any]) -> Any | None:
    """Conjunction by `&`, which integers, numpy arrays and TVM expressions share."""
    result = None
    for condition in conditions:
        result = condition if result is None else result & condition
    return result


def to_physical(array: np.ndarray, layout: Layout) -> np.ndarray:
    """`array` laid out physically (for tests and packing); cells without an element are zero."""
    cells = np.indices(layout.physical(array.shape))
    logical, inside = layout.logical(array.shape, tuple(cells))
    here = logical
    if inside is not None:
        here = tuple(np.clip(i, 0, n - 1) for i, n in zip(logical, array.shape, strict=True))
    found: np.ndarray = array[here]
    return found if inside is None else np.where(inside, found, np.zeros((), array.dtype))
