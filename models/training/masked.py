"""Gradual masked fine-tuning: weights leave a network in a sparse pattern, in rounds, while it is trained on.

Every round makes the masks anew from the weights as they are, a step sparser than before, then trains with them
fixed. A masked weight keeps receiving the gradient that it would have (straight-through, Bengio et al. 2013), so it
can come back in the next round. In the last round what is masked stays so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from compiler.ir.encoding import BlockSparse, Dense, RegularBlock, Unstructured
from compiler.passes.sparsify.patterns import (
    FLOOR,
    darb_sizes,
    keep_blocks,
    keep_elements,
    keep_largest,
    ranked,
)

Matrix = npt.NDArray[np.float32]
Lines = tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]
"""Which rows of a matrix remain, and which columns."""
TINY = 1e-30


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
"""Patterns of matrices by themselves; those of units need to know which rows and columns belong together."""


# ---------------------------------------------------------------------- channels
@dataclass(frozen=True)
class Units:
    """Channels or hidden units, each of which leaves a network as a whole.

    `spans`: (matrix, axis, first); unit j is entry first + j of that axis, in every span.
    """

    count: int
    spans: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Within:
    """A form of the rows and columns that remain (`lines`: bool [rows] and [columns]); the others have left."""

    lines: Lines
    form: Form

    def stored(self, shape: tuple[int, ...], data: Matrix | None) -> int:
        """Elements that the form stores of what remains."""
        return self.form.stored(self._shape, self._part(data))

    def index_bytes(self, shape: tuple[int, ...], data: Matrix | None) -> int:
        """Bytes of positions of what remains."""
        return self.form.index_bytes(self._shape, self._part(data))

    @property
    def _shape(self) -> tuple[int, ...]:
        return tuple(int(line.sum()) for line in self.lines)

    def _part(self, data: Matrix | None) -> Matrix | None:
        return None if data is None else data[np.ix_(*self.lines)]


def channels(groups: Sequence[Units]) -> Pattern:
    """The pattern that removes whole units, over all groups first those with the least weights for their group.

    A weight belongs to a unit if it leaves with it. As many units go as it takes for no more than the density of
    the weights to stay; at least FLOOR of every group, and one unit, remains.
    """

    def pattern(weights: Sequence[Matrix], density: float) -> Sequence[tuple[Form, Matrix]]:
        there = _remaining(weights, groups, density)
        return [(Within(lines, Dense()), w * np.outer(*lines)) for w, lines in zip(weights, there, strict=True)]

    return pattern


def narrow(groups: Sequence[Units], inner: Pattern) -> Pattern:
    """The pattern of units that leave and `inner` in what remains: each takes the root of the density."""

    def pattern(weights: Sequence[Matrix], density: float) -> Sequence[tuple[Form, Matrix]]:
        there = _remaining(weights, groups, density**0.5)
        parts = [w[np.ix_(*lines)] for w, lines in zip(weights, there, strict=True)]
        share = density * sum(w.size for w in weights) / sum(p.size for p in parts)
        found: list[tuple[Form, Matrix]] = []
        for whole, lines, (form, part) in zip(weights, there, inner(parts, share), strict=True):
            data = np.zeros_like(whole)
            data[np.ix_(*lines)] = part
            found.append((Within(lines, form), data))
        return found

    return pattern


def _remaining(weights: Sequence[Matrix], groups: Sequence[Units], density: float) -> list[Lines]:
    """Per matrix, which rows and columns remain when units leave down to a density."""
    scores = [_scores(weights, units) for units in groups]
    most = density * sum(w.size for w in weights)
    low, high = 0, sum(units.count for units in groups)
    while low < high:  # the largest number of units whose weights are no more than `most`
        middle = (low + high + 1) // 2
        there = _lines(weights, groups, _alive(scores, middle))
        fits = sum(int(rows.sum()) * int(columns.sum()) for rows, columns in there) <= most
        low, high = (middle, high) if fits else (low, middle - 1)
    return _lines(weights, groups, _alive(scores, low))


def _scores(weights: Sequence[Matrix], units: Units) -> npt.NDArray[np.float64]:
    """[units]: the squares of the weights that leave with each, over their mean in the group, because weights have
    another scale where inputs have. Where spans cross a weight counts twice."""
    total = np.zeros(units.count)
    for matrix, axis, first in units.spans:
        lines = np.moveaxis(weights[matrix], axis, 0)[first : first + units.count]
        total += np.square(lines, dtype=np.float64).sum(axis=1)
    return np.asarray(total / max(float(total.mean()), TINY))


def _alive(scores: Sequence[npt.NDArray[np.float64]], number: int) -> list[npt.NDArray[np.bool_]]:
    """Per group, which units remain when `number` of all do."""
    return ranked(scores, number / sum(s.size for s in scores), FLOOR)


def _lines(
    weights: Sequence[Matrix], groups: Sequence[Units], alive: Sequence[npt.NDArray[np.bool_]]
) -> list[Lines]:
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


def matrix_of(weight: Tensor) -> Tensor:
    """A weight as [outputs, inputs]: of a convolution with all inputs of a point of its kernel side by side."""
    return weight.movedim(1, -1).flatten(1)


def weight_of(matrix: Tensor, like: Tensor) -> Tensor:
    """The weight, of the shape of `like`, that is this matrix."""
    return matrix.reshape(like.movedim(1, -1).shape).movedim(-1, 1)


def _standing(form: Form, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """bool [rows, columns]: what has not left a matrix with a unit."""
    return np.outer(*form.lines) if isinstance(form, Within) else np.ones(shape, bool)


class Masks:
    """Masks over weights [outputs, inputs, *kernel] of a network that is being trained; patterns see matrices.

    `returning`: a masked weight that has grown may come back. Units never do: one that has left computes nothing
    and its readers follow noise, which optimizers that scale gradients make as large as any weight.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], pattern: Pattern, returning: bool = True) -> None:
        self._parameters = list(parameters)
        self._returning = returning
        self._pattern = pattern
        self._masks = [torch.ones_like(p) for p in self._parameters]
        self._there = self._masks
        """What has not left with a unit."""
        self.stored = Stored(sum(p.numel() for p in self._parameters), sum(p.numel() for p in self._parameters), 0)

    def shrink(self, density: float) -> None:
        """Make the masks anew, so that `density` of all weights stay."""
        standing = self._there if self._returning else self._masks
        now = zip(self._parameters, standing, strict=True)
        data = [matrix_of(p * mask).detach().numpy().copy() for p, mask in now]
        made = self._pattern(data, density)
        self._masks = self._weights(d != 0 for _, d in made)
        self._there = self._weights(_standing(form, d.shape) for form, d in made)
        shapes = [tuple(d.shape) for d in data]
        self.stored = Stored(
            sum(d.size for d in data),
            sum(f.stored(s, d) for (f, d), s in zip(made, shapes, strict=True)),
            sum(f.index_bytes(s, d) for (f, d), s in zip(made, shapes, strict=True)),
        )

    def _weights(self, matrices: Iterable[npt.NDArray[np.bool_]]) -> list[Tensor]:
        """Matrices of what is there, as factors of the parameters."""
        pairs = zip(matrices, self._parameters, strict=True)
        return [weight_of(torch.from_numpy(m.astype(np.float32)), p) for m, p in pairs]

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
