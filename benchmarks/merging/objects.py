"""CIFAR-10 images with five tasks that each tell some classes from the rest; see `benchmarks.cifar`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks import cifar
from benchmarks.merging.families import OBJECTS, Data, Part

CLASSES = dict(zip(OBJECTS, ((0, 1, 8, 9), (1, 9), (3, 5), (4, 7), (0, 2)), strict=True))
"""Task -> the classes it tells from the rest: 0 airplane, 1 automobile, 2 bird, 3 cat, 4 deer, 5 dog, 6 frog,
7 horse, 8 ship, 9 truck.
"""

SELECTING = 1500
"""Training images of every class that select: of 15,000, chance moves a difference by 0.3 point."""

PIXELS = "cifar10.npz"
"""Decoded pixels beside the archive, read where somebody has put them; the study writes none."""


def load_objects(folder: Path) -> Data:
    """Images [n, 3, 32, 32] and 1 where a task's classes are shown, else 0; needs the extra `images`."""
    beside = (folder / cifar.ARCHIVE).parent
    data = cifar.load_cifar(folder, beside if (beside / PIXELS).exists() else None, SELECTING)
    return Data(*(_tasks(p) for p in (data.train, data.selection, data.report)))


def _tasks(part: Part) -> Part:
    found = part.labels[cifar.TASK]
    return Part(part.inputs, {t: np.isin(found, c).astype(np.int64) for t, c in CLASSES.items()})
