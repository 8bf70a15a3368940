"""What is recorded of people, in three parts of which no two have a person in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

UNLABELLED = 255
"""Label of what nobody has labelled for a task."""

SPLIT = (0.25, 0.6)
"""Shares of the people at which fitting ends and choosing ends, where networks are only fitted."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Inputs float32 [n, ...] and class numbers [n] by task, some `UNLABELLED`."""

    inputs: np.ndarray
    labels: dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class People:
    """Inputs to fit on, of which no label is used, to choose by, and to report on: no person is in two of them."""

    unlabelled: np.ndarray
    selection: Seen
    report: Seen


def split(
    identity: np.ndarray, seed: int, ends_at: tuple[float, float] = SPLIT
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the three parts, in an order of their own; all rows of one person are in the same part."""
    rng = np.random.default_rng(seed)
    people = rng.permutation(np.unique(identity))
    ends = [round(share * len(people)) for share in ends_at]
    order = rng.permutation(len(identity))
    train, selection, report = (order[np.isin(identity[order], part)] for part in np.split(people, ends))
    return train, selection, report
