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
    """[N][C / width][spatial + 2 * halo ...][width] for a logical [N, C, spatial...].

    `halo` is the zero border on both sides of each spatial axis; lanes beyond C are zero.
    """

    width: int
    halo: tuple[int, ...]

    def physical(self, shape: Sequence[int]) -> tuple[int, ...]:
        n, c, *spatial = shape
        padded = [s + 2 * h for s, h in zip(spatial, self.halo, strict=True)]
        return (n, -(-c // self.width), *padded, self.width)

    def index(self, at: Sequence[Any]) -> tuple[Any, ...]:
        n, c, *spatial = at
        moved = [s + h if h else s for s, h in zip(spatial, self.halo, strict=True)]
        return (n, c // self.width, *moved, c % self.width)

    def logical(self, shape: Sequence[int], at: Sequence[Any]) -> tuple[tuple[Any, ...], Any | None]:
        n, block, *spatial, lane = at
        channel = block * self.width + lane
        conditions = []
        inner = []
        for position, extent, h in zip(spatial, shape[2:], self.halo, strict=True):
            inner.append(position - h if h else position)
            if h:
                conditions += [position >= h, position < extent + h]
        if shape[1] % self.width:
            conditions.append(channel < shape[1])
        return (n, channel, *inner), _all(conditions)

    def __str__(self) -> str:
        return f"blocked{self.width}" + (f"+{'x'.join(map(str, self.halo))}" if any(self.halo) else "")


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
