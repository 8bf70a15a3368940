"""Samples as torch tensors: what a network is trained on and judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

Answered = tuple[str, int]
"""A task and the number of its output. Several tasks may give one value, and each wants something of it."""


@dataclass(frozen=True, slots=True)
class Data:
    """Inputs by name, teacher outputs by task and number, class labels by task; all [samples, ...]."""

    inputs: Mapping[str, Tensor]
    teacher: Mapping[Answered, Tensor]
    labels: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def at(self, rows: Tensor | slice) -> Data:
        """Some of the samples."""
        return self._each(lambda x: x[rows])

    def copy(self) -> Data:
        """The same samples in tensors of their own."""
        return self._each(lambda x: x.clone())

    def take(self, other: Data) -> None:
        """Overwrite all samples with as many others."""
        for mine, others in (
            (self.inputs, other.inputs),
            (self.teacher, other.teacher),
            (self.labels, other.labels),
        ):
            for key, data in others.items():
                mine[key].copy_(data)  # type: ignore[index]

    def _each(self, change: Callable[[Tensor], Tensor]) -> Data:
        return Data(
            {n: change(x) for n, x in self.inputs.items()},
            {a: change(y) for a, y in self.teacher.items()},
            {t: change(y) for t, y in self.labels.items()},
        )
