"""The multiple-choice knapsack: one way per layer, least loss together within a capacity. Plain numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

CELLS = 2000
"""Steps that a capacity is divided into: costs are rounded up to them, so a choice never exceeds the capacity."""


def choose(
    losses: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], capacity: float
) -> list[int] | None:
    """The way of every layer, by number, with the least sum of losses among those whose costs fit; None where even
    the cheapest ways together do not.

    Each layer's cheapest way is paid for first; what the others cost more is rounded up to 1 / CELLS of what is
    left, and dynamic programming finds the best choice for these costs (Kellerer et al., Knapsack Problems, 11.5).
    """
    least = [min(c) for c in costs]
    left = capacity - math.fsum(least)
    if left < 0:
        return None
    scale = CELLS / left if left > 0 else math.inf
    extra = [[_cells(c - low, scale) for c in row] for row, low in zip(costs, least, strict=True)]
    best = np.zeros(CELLS + 1)
    taken: list[np.ndarray] = []
    for row, needs in zip(losses, extra, strict=True):
        after = np.full((len(row), CELLS + 1), np.inf)
        for way, (loss, need) in enumerate(zip(row, needs, strict=True)):
            if need <= CELLS:
                after[way, need:] = best[: CELLS + 1 - need] + loss
        taken.append(after.argmin(axis=0))
        best = after.min(axis=0)
    return _back(taken, extra)


def _cells(cost: float, scale: float) -> int:
    """Whole cells that a cost takes; more than there are where it does not fit."""
    if cost <= 0:
        return 0
    return min(math.ceil(cost * scale), CELLS + 1) if math.isfinite(scale) else CELLS + 1


def _back(taken: Sequence[np.ndarray], extra: Sequence[Sequence[int]]) -> list[int]:
    at, chosen = CELLS, []
    for ways, needs in zip(reversed(taken), reversed(extra), strict=True):
        way = int(ways[at])
        chosen.append(way)
        at -= needs[way]
    return chosen[::-1]
