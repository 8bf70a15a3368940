"""Gradual masked fine-tuning: weights leave a network in a sparse pattern, in rounds, while it is trained on.

Every round makes the masks anew from the weights as they are, a step sparser than before, then trains with them
fixed. A masked weight keeps receiving the gradient that it would have (straight-through, Bengio et al. 2013), so it
can come back in the next round. In the last round what is masked stays so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from compiler.ir.encoding import BlockSparse, RegularBlock, Sparse, Unstructured
from compiler.passes.sparsify.patterns import (
    FLOOR,
    darb_sizes,
    keep_blocks,
    keep_elements,
    keep_largest,
    ranked,
)

Matrix = npt.NDArray[np.float32]
Pattern = Callable[[Sequence[Matrix], float], list[tuple[Sparse, Matrix]]]
"""Matrices [outputs, inputs] and the density of all of them -> form and data of each."""


def darb(weights: Sequence[Matrix], density: float) -> list[tuple[Sparse, Matrix]]:
    """One weight in each run of a row; every row has the length that fits its own density (DARB)."""
    forms = [
        RegularBlock(0, 1, tuple(map(int, s))) for s in darb_sizes([w.astype(float) for w in weights], density)
    ]
    return [(f, keep_largest(w, f)) for f, w in zip(forms, weights, strict=True)]


def blocks(weights: Sequence[Matrix], density: float) -> list[tuple[Sparse, Matrix]]:
    """Blocks of 16 outputs at one input, ranked over all matrices."""
    form = BlockSparse(0, (16, 1))
    alive = ranked([form.norms(w) for w in weights], density, FLOOR)
    return [(form, keep_blocks(w, form, a)) for w, a in zip(weights, alive, strict=True)]


def unstructured(weights: Sequence[Matrix], density: float) -> list[tuple[Sparse, Matrix]]:
    """Single weights, ranked over all matrices: the baseline."""
    alive = ranked([np.abs(w) for w in weights], density, FLOOR)
    return [(Unstructured(0), keep_elements(w, 0, a)) for w, a in zip(weights, alive, strict=True)]


PATTERNS: Mapping[str, Pattern] = {"darb": darb, "block16x1": blocks, "unstructured": unstructured}


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
