"""What a task is: its classes, and how the labels of a data set map onto them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """One classification task over labels of a data set.

    ``members[c]`` lists the source labels that make up class ``c``; together they partition them all.
    """

    name: str
    classes: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        flat = sorted(label for group in self.members for label in group)
        if len(self.classes) != len(self.members) or flat != list(range(len(flat))):
            raise ValueError(f"task {self.name!r}: the members must partition the source labels")

    def relabel(self, source: npt.NDArray[np.integer]) -> Labels:
        """Map source labels [n] to the classes of this task [n]."""
        table = np.zeros(sum(map(len, self.members)), np.int64)
        for index, group in enumerate(self.members):
            table[list(group)] = index
        relabelled: Labels = table[source]
        return relabelled


def identity_task(name: str, classes: Sequence[str]) -> Task:
    """Return the task whose classes are the source labels themselves."""
    return Task(name, tuple(classes), tuple((index,) for index in range(len(classes))))
