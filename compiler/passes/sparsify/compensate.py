"""Second-order pruning of one matrix: what goes is chosen by what its loss costs, what stays makes up for it.

The squared error of a layer's outputs is a quadratic in each row w of its weights, (w - t) H (w - t)^T with the
Gram matrix H of its inputs. With the support J of a row fixed, the best weights are t H[:, J] (H[J, J])^-1, and
removing element j from them costs w_j^2 / [(H[J, J])^-1]_jj (optimal brain surgeon, Hassibi & Stork 1993; for
networks layer by layer Frantar & Alistarh, arXiv 2208.11580). Rows of a block share their support, so one inverse
serves them all. Instead of one element after another, a share goes at once, then everything is solved again.
Everything is float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

WORK = 2e11
"""Multiply-adds that one stage may take; stages that would take more are skipped, except for the last."""

_BYTES = 64 << 20
"""Of inverses that are made at a time; one at least."""


@dataclass(frozen=True, slots=True, eq=False)
class Quadratic:
    """The error of weights W [rows, p]: tr((W - T) hessian (W - T)^T) up to a constant; `product` is T hessian."""

    hessian: np.ndarray
    product: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """The best weights [rows, p] under a support, and the diagonal of the inverse that belongs to it, per row."""

    weights: np.ndarray
    spread: np.ndarray

    @property
    def importance(self) -> np.ndarray:
        """[rows, p]: its square is what removing the element costs."""
        free = self.spread > 0
        return np.asarray(
            np.divide(self.weights, np.sqrt(self.spread), out=np.zeros_like(self.weights), where=free)
        )


Choice = Callable[[np.ndarray], np.ndarray]
"""Importance [rows, p] -> bool [rows, p], equal for rows that share a support: what survives."""


def compensate(problem: Quadratic, stages: Sequence[Choice], height: int) -> np.ndarray:
    """Weights [rows, p] of which only what the last stage lets survive is not zero.

    `height`: consecutive rows that share their support. Each stage chooses among what the one before left.
    """
    alive = np.ones(problem.product.shape, bool)
    solved = solve(problem, alive, height)
    for number, stage in enumerate(stages):
        chosen = alive & stage(np.where(alive, solved.importance, 0.0))
        if number + 1 < len(stages) and work(chosen, height) > WORK:
            continue
        alive = chosen
        solved = solve(problem, alive, height)
    return solved.weights


def work(alive: np.ndarray, height: int) -> float:
    """Multiply-adds of solving under these supports."""
    supports = np.unique(alive[::height], axis=0)
    return float(np.sum(np.count_nonzero(supports, axis=1).astype(float) ** 3))


def solve(problem: Quadratic, alive: np.ndarray, height: int) -> Solved:
    """The best weights with the supports `alive` [rows, p], which `height` consecutive rows share."""
    weights, spread = np.zeros_like(problem.product), np.zeros_like(problem.product)
    supports, which = np.unique(alive[::height], axis=0, return_inverse=True)
    units = which.reshape(-1)
    counts = np.count_nonzero(supports, axis=1)
    for count in np.unique(counts[counts > 0]):
        alike = np.flatnonzero(counts == count)
        parts = -(-len(alike) * int(count) ** 2 * 8 // _BYTES)
        for part in np.array_split(alike, min(parts, len(alike))):
            columns = np.nonzero(supports[part])[1].reshape(len(part), -1)
            inverses = np.linalg.inv(problem.hessian[columns[:, :, None], columns[:, None, :]])
            for number, at, inverse in zip(part, columns, inverses, strict=True):
                rows = _rows(np.flatnonzero(units == number), height, len(alive))
                weights[rows[:, None], at] = problem.product[rows[:, None], at] @ inverse
                spread[rows[:, None], at] = np.diagonal(inverse)
    return Solved(weights, spread)


def _rows(units: np.ndarray, height: int, rows: int) -> np.ndarray:
    found = (units[:, None] * height + np.arange(height)).reshape(-1)
    return found[found < rows]
