"""What every label and every task reads in every layer, kept up to date while channels are taken."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from compiler.passes.narrow.bill import Bill

LEAST = 2
"""Channels that every task reads in every layer, where it has as many."""


class Feeding:
    """Channels that are read, by label and by task.

    A label that reads nothing would compute a constant; a task that reads next to nothing knows nothing.
    """

    def __init__(self, bill: Bill, labels: np.ndarray) -> None:
        self._contains = bill.contains
        self._singles = 1 << np.arange(bill.tasks)
        self._made: list[np.ndarray] = []
        """Per layer how many results there are of each label."""
        self._read: list[np.ndarray] = []
        self._readers: dict[int, list[int]] = defaultdict(list)
        self._makers: dict[int, list[int]] = defaultdict(list)
        for number, layer in enumerate(bill.layers):
            made = np.unique(layer.outward[layer.outward >= 0])
            counts = np.bincount(labels[made], minlength=bill.every + 1)
            counts[layer.owners] += int((layer.outward < 0).sum())
            read = np.unique(layer.inward[layer.inward >= 0])
            others = int((layer.inward < 0).sum())  # inputs that are no channels: all may read them
            self._made.append(counts)
            self._read.append(np.bincount(labels[read], minlength=bill.every + 1) @ self._contains + others)
            for channel in read:
                self._readers[int(channel)].append(number)
            for channel in made:
                self._makers[int(channel)].append(number)

    def starves(self, channel: int, before: int, after: int) -> bool:
        """Whether in some layer a label would read nothing, or a task less than `LEAST`, once the channel has
        `after` instead of `before`.
        """
        lost = self._lost(before, after)
        for number in self._readers[channel]:
            made, read = self._made[number] > 0, self._read[number]
            if number in self._makers[channel]:  # a layer that reads what it makes, as a recurrent one does
                made[before] = self._made[number][before] > 1
            if np.any(lost & made & (read <= 1)):
                return True
            concerned = lost[self._singles] & (self._contains.T[self._singles] @ made)
            if np.any(concerned & (read[self._singles] <= LEAST)):
                return True
        return False

    def take(self, channel: int, before: int, after: int) -> None:
        """The channel's label is `after` from now on."""
        lost = self._lost(before, after)
        for number in self._readers[channel]:
            self._read[number] = self._read[number] - lost
        for number in self._makers[channel]:
            self._made[number][before] -= 1
            self._made[number][after] += 1

    def _lost(self, before: int, after: int) -> np.ndarray:
        """[labels]: who cannot read a channel any more."""
        return np.asarray(self._contains[before] & ~self._contains[after])
