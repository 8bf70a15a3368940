"""Gradual masked fine-tuning: weights leave a network in a sparse pattern, in rounds, while it is trained on.

Every round makes the masks anew from the weights as they are, a step sparser than before, then trains with them
fixed. A masked weight keeps receiving the gradient that it would have (straight-through, Bengio et al. 2013), so it
can come back in the next round. In the last round what is masked stays so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from compiler.ir.encoding import BlockSparse, RegularBlock, Unstructured
from compiler.passes.sparsify.patterns import (
    FLOOR,
    darb_sizes,
    keep_blocks,
    keep_elements,
    keep_largest,
    ranked,
)

Matrix = npt.NDArray[np.float32]


class Form(Protocol):
    """How a matrix is stored: all encodings of the compiler are forms."""

    def stored(self, shape: tuple[int, ...], data: Matrix | None) -> int:
        """Number of stored elements."""

    def index_bytes(self, shape: tuple[int, ...], data: Matrix | None) -> int:
        """Bytes of the positions stored beside them."""


Pattern = Callable[[Sequence[Matrix], float], Sequence[tuple[Form, Matrix]]]
"""Matrices [outputs, inputs] and the density of all of them -> form and data of each."""


def darb(weights: Sequence[Matrix], density: float) -> Sequence[tuple[Form, Matrix]]:
    """One weight in each run of a row; every row has the length that fits its own density (DARB)."""
    forms = [
        RegularBlock(0, 1, tuple(map(int, s))) for s in darb_sizes([w.astype(float) for w in weights], density)
    ]
    return [(f, keep_largest(w, f)) for f, w in zip(forms, weights, strict=True)]


def blocks(weights: Sequence[Matrix], density: float) -> Sequence[tuple[Form, Matrix]]:
    """Blocks of 16 outputs at one input, ranked over all matrices."""
    form = BlockSparse(0, (16, 1))
    alive = ranked([form.norms(w) for w in weights], density, FLOOR)
    return [(form, keep_blocks(w, form, a)) for w, a in zip(weights, alive, strict=True)]


def unstructured(weights: Sequence[Matrix], density: float) -> Sequence[tuple[Form, Matrix]]:
    """Single weights, ranked over all matrices: the baseline."""
    alive = ranked([np.abs(w) for w in weights], density, FLOOR)
    return [(Unstructured(0), keep_elements(w, 0, a)) for w, a in zip(weights, alive, strict=True)]


PATTERNS: Mapping[str, Pattern] = {"darb": darb, "block16x1": blocks, "unstructured": unstructured}
"""Patterns of matrices by themselves; `channels` needs to know which of their rows and columns belong together."""


# ---------------------------------------------------------------------- channels
@dataclass(frozen=True)
class Units:
    """Channels or hidden units, each of which leaves a network as a whole.

    `spans`: (matrix, axis, first); unit j is entry first + j of that axis, in every span.
    """

    count: int
    spans: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Narrowed:
    """Rows and columns that are all zero have left the matrix; what remains is dense and needs no positions."""

    def stored(self, shape: tuple[int, ...], data: Matrix | None) -> int:
        """Rows times columns that remain; all of them without data."""
        if data is None:
            return int(np.prod(shape))
        there = data != 0
        return int(there.any(axis=1).sum()) * int(there.any(axis=0).sum())

    def index_bytes(self, shape: tuple[int, ...], data: Matrix | None) -> int:
        """None."""
        return 0


def channels(groups: Sequence[Units]) -> Pattern:
    """The pattern that removes whole units: first those whose weights have the least mean square, over all groups.

    A weight belongs to a unit if it leaves with it. As many units go as it takes for no more than the density of
    the weights to stay; at least FLOOR of every group, and one unit, remains.
    """

    def pattern(weights: Sequence[Matrix], density: float) -> Sequence[tuple[Form, Matrix]]:
        scores = [_mean_squares(weights, units) for units in groups]
        most = density * sum(w.size for w in weights)
        low, high = 0, sum(units.count for units in groups)
        while low < high:  # the largest number of units whose weights are no more than `most`
            middle = (low + high + 1) // 2
            there = _lines(weights, groups, _alive(scores, middle))
            fits = sum(int(rows.sum()) * int(columns.sum()) for rows, columns in there) <= most
            low, high = (middle, high) if fits else (low, middle - 1)
        there = _lines(weights, groups, _alive(scores, low))
        return [(Narrowed(), w * np.outer(*lines)) for w, lines in zip(weights, there, strict=True)]

    return pattern


def _mean_squares(weights: Sequence[Matrix], units: Units) -> npt.NDArray[np.float64]:
    """[units]: the mean square of the weights that leave with each; where spans cross a weight counts twice."""
    total, count = np.zeros(units.count), 0
    for matrix, axis, first in units.spans:
        lines = np.moveaxis(weights[matrix], axis, 0)[first : first + units.count]
        total += np.square(lines, dtype=np.float64).sum(axis=1)
        count += lines.shape[1]
    return total / count


def _alive(scores: Sequence[npt.NDArray[np.float64]], number: int) -> list[npt.NDArray[np.bool_]]:
    """Per group, which units remain when `number` of all do."""
    return ranked(scores, number / sum(s.size for s in scores), FLOOR)


def _lines(
    weights: Sequence[Matrix], groups: Sequence[Units], alive: Sequence[npt.NDArray[np.bool_]]
) -> list[tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]]:
    """Per matrix, which rows and which columns remain."""
    found = [(np.ones(w.shape[0], bool), np.ones(w.shape[1], bool)) for w in weights]
    for units, mask in zip(groups, alive, strict=True):
        for matrix, axis, first in units.spans:
            found[matrix][axis][first : first + units.count] &= mask
    return found


@dataclass(frozen=True)
class Stored:
    """What sparse matrices take: elements of all of them, those stored, bytes beside the elements."""

    elements: int
    stored: int
    index_bytes: int

    @property
    def ratio(self) -> float:
        """Elements per stored one: the pruning ratio."""
        return self.elements / self.stored

    @property
    def bytes_ratio(self) -> float:
        """Dense float32 bytes over bytes stored, positions included."""
        return 4 * self.elements / (4 * self.stored + self.index_bytes)


class Masks:
    """Masks over parameters [outputs, inputs] of a network that is being trained."""

    def __init__(self, parameters: Sequence[nn.Parameter], pattern: Pattern) -> None:
        self._parameters = list(parameters)
        self._pattern = pattern
        self._masks = [torch.ones_like(p) for p in self._parameters]
        self.stored = Stored(sum(p.numel() for p in self._parameters), sum(p.numel() for p in self._parameters), 0)

    def shrink(self, density: float) -> None:
        """Make the masks anew, so that `density` of all weights stay."""
        data = [p.detach().numpy().copy() for p in self._parameters]
        made = self._pattern(data, density)
        self._masks = [torch.from_numpy((d != 0).astype(np.float32)) for _, d in made]
        shapes = [tuple(d.shape) for d in data]
        self.stored = Stored(
            sum(d.size for d in data),
            sum(f.stored(s, d) for (f, d), s in zip(made, shapes, strict=True)),
            sum(f.index_bytes(s, d) for (f, d), s in zip(made, shapes, strict=True)),
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it masked weights are zero; afterwards they have their values again, and gradients."""
        kept = [p.detach().clone() for p in self._parameters]
        with torch.no_grad():
            for p, mask in zip(self._parameters, self._masks, strict=True):
                p.mul_(mask)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, whole in zip(self._parameters, kept, strict=True):
                    p.copy_(whole)


def steps_to(density: float) -> list[float]:
    """Densities of the rounds: 1/4, 1/8 ... down to `density`."""
    found, step = [], 0.25
    while step > density:
        found.append(step)
        step /= 2
    return [*found, density]
