"""What each layer is to become: the form of its weight and how much of it survives. Plain numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from compiler.ir.encoding import BlockSparse, RegularBlock, Sparse, Unstructured
from compiler.passes.sparsify.layers import Candidate
from compiler.passes.sparsify.patterns import (
    darb_sizes,
    keep_blocks,
    keep_elements,
    keep_largest,
    matrix,
    ranked,
)

STEP = 0.7
"""Share of the units that survives one stage at least, but for one: what stays is fitted anew before more goes."""


@dataclass(frozen=True, slots=True)
class Goal:
    """The form of one weight; `kept`: how many of its units (blocks, or single elements) survive. In regular runs
    one element of every run does, and `kept` is None."""

    form: Sparse
    kept: int | None = None

    @property
    def height(self) -> int:
        """Rows that survive or go together."""
        return self.form.height if isinstance(self.form, BlockSparse) else 1

    def mask(self, importance: np.ndarray) -> np.ndarray:
        """bool, as the weight: what survives where these (signed) magnitudes say what matters."""
        if isinstance(self.form, RegularBlock):
            return np.asarray(keep_largest(importance, self.form) != 0)
        norms = unit_norms(importance, self.form)
        (alive,) = ranked([norms], _exactly(self.kept or 1, norms.size), 0.0)
        every = np.ones_like(importance, bool)
        if isinstance(self.form, BlockSparse):
            return keep_blocks(every, self.form, alive)
        return keep_elements(every, self.form.rows, alive)

    def density(self, shape: tuple[int, ...]) -> float:
        """Share of a weight of this shape that is stored, about: the last block can be lower."""
        size = math.prod(shape)
        if isinstance(self.form, RegularBlock):
            return self.form.stored(shape, None) / size
        rows = shape[self.form.rows]
        return (self.kept or 0) / (-(-rows // self.height) * (size // rows))

    def stages(self, shape: tuple[int, ...]) -> list[Goal]:
        """From almost everything to this goal, each a part of the one before."""
        if isinstance(self.form, RegularBlock):
            sizes, largest = self.form.row_sizes(shape[self.form.rows]), max(self.form.sizes)
            runs = [2**k for k in range(1, largest.bit_length()) if 2**k < largest]
            limited = [tuple(int(n) for n in np.minimum(sizes, run)) for run in runs]
            return [*(replace(self, form=replace(self.form, sizes=s)) for s in limited), self]
        goal, total = self.kept or 1, round((self.kept or 1) / self.density(shape))
        counts = []
        while (total := min(math.ceil(total * STEP), total - 1)) > goal:
            counts.append(total)
        return [*(replace(self, kept=c) for c in counts), self]


def largest(data: np.ndarray, goal: Goal) -> np.ndarray:
    """`data` with only what its own magnitudes let survive left."""
    return np.where(goal.mask(data), data, np.zeros((), data.dtype))


def _exactly(count: int, size: int) -> float:
    """The density of which `ranked` makes just so many of `size`."""
    return count / size


def unit_norms(data: np.ndarray, form: Sparse) -> np.ndarray:
    """Norm of every unit: of every block, or of every element: [row blocks, inputs]."""
    return form.norms(data) if isinstance(form, BlockSparse) else np.abs(matrix(data, form.rows))


def goals_of(
    pattern: str, layers: Sequence[Candidate], importance: Sequence[np.ndarray], share: float, floor: float
) -> list[Goal]:
    """The goals of layers that are ranked together: `share` of all their units survives, `floor` of each at least.

    `importance`: as the weights, what their magnitudes are ranked by.
    """
    if pattern == "darb":
        found = darb_sizes([matrix(i, c.rows) for i, c in zip(importance, layers, strict=True)], share)
        return [
            Goal(RegularBlock(c.rows, c.inputs, tuple(map(int, s)))) for c, s in zip(layers, found, strict=True)
        ]
    if pattern.startswith("regular"):
        return [Goal(RegularBlock(c.rows, c.inputs, (int(pattern[7:]),))) for c in layers]
    forms = [form_of(pattern, c) for c in layers]
    norms = [unit_norms(i, f) for i, f in zip(importance, forms, strict=True)]
    alive = ranked(norms, share, floor)
    return [Goal(f, int(np.count_nonzero(a))) for f, a in zip(forms, alive, strict=True)]


def form_of(pattern: str, layer: Candidate) -> BlockSparse | Unstructured:
    """The form of a ranked pattern, `block16x1` or `unstructured`, for one layer."""
    return (
        Unstructured(layer.rows) if pattern == "unstructured" else BlockSparse(layer.rows, (int(pattern[5:-2]), 1))
    )
