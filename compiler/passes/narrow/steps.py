"""Which channels are taken from which tasks next: least loss per saved multiply-add first.

At first every channel of a shared network is read by nodes that all tasks need, and such a channel is lost to all
tasks with the first task that gives it up. So the prices of one task at a time say little; every set of tasks that
a channel can be taken from has its own loss and saving, both counted by who reads the channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from compiler.ir.types import ValueRef
from compiler.passes.narrow.bill import Bill, Layer
from compiler.passes.narrow.feeding import Feeding

SETS = 6
"""Most tasks of which every set is a move of its own; of more tasks single ones, all but one, and all are."""


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """Root mean square gradients of gates on the weights by which nodes read a channel: [channels, labels] by the
    readers' label, [channels, tasks] by all readers that a task has.
    """

    by_label: np.ndarray
    by_task: np.ndarray


class Sensitivity:
    """Sums the gradients of gates over samples."""

    def __init__(self, bill: Bill, labels: np.ndarray) -> None:
        self._bill = bill
        self._has = np.arange(bill.every + 1)[:, None] >> np.arange(bill.tasks) & 1
        self._channels = len(labels)
        self._readers = [
            (layer, _made_by_label(bill, layer, labels)) for layer in bill.layers if layer.inward.max() >= 0
        ]

    def add(self, groups: Iterable[Mapping[ValueRef, np.ndarray]]) -> Gradients:
        """What some groups of samples say, each with gradients [the two axes of a layer] by weight."""
        by_label = np.zeros((self._channels, self._bill.every + 1))
        by_task = np.zeros((self._channels, self._bill.tasks))
        for gradients in groups:
            found = np.zeros_like(by_label)
            for layer, rows in self._readers:
                pairs = gradients[layer.weight]
                pairs = pairs if layer.dims[0] > layer.dims[1] else pairs.T
                read = layer.inward >= 0
                np.add.at(found, layer.inward[read], (pairs.T @ rows)[read])
            by_label += found**2
            by_task += (found @ self._has) ** 2
        return Gradients(np.sqrt(by_label), np.sqrt(by_task))


def _made_by_label(bill: Bill, layer: Layer, labels: np.ndarray) -> np.ndarray:
    """[outputs, labels]: 1 where a result has the label."""
    _, outward = layer.labels(labels, bill.every)
    return np.asarray(np.eye(bill.every + 1)[outward] * (outward != 0)[:, None])


def losses(found: Gradients, labels: np.ndarray, streams: Iterable[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """[channels, labels]: what is lost when nodes of a label do not read a channel any more.

    Every task of the label loses the readers' gradient over the length of the vector of its own gradients in the
    stream, so that layers and tasks are comparable, times its entry of `weights`.
    """
    made = np.zeros_like(found.by_label)
    tasks = len(weights)
    has = np.arange(made.shape[1])[:, None] >> np.arange(tasks) & 1
    for channels in streams:
        mine = labels[channels][:, None] >> np.arange(tasks) & 1
        size = np.sqrt(((found.by_task[channels] * mine) ** 2).sum(axis=0))
        made[channels] = found.by_label[channels] * (has @ (weights / np.maximum(size, 1e-30)))
    return made


class Taking:
    """Takes channels from sets of tasks, or from all, in order of loss per saving until enough is saved."""

    def __init__(self, bill: Bill, whole: bool) -> None:
        self._bill = bill
        self._taken = np.array([bill.every] if whole else _sets(bill.tasks))

    def down_to(self, labels: np.ndarray, loss: np.ndarray, runs: np.ndarray, cost: float) -> np.ndarray | None:
        """Labels whose expected cost is at most `cost`; None where what must stay costs more.

        `loss`: [channels, labels] by who reads them. Prices are taken anew after every tenth of what is saved.
        """
        labels = labels.copy()
        start = float(self._bill.by_label(labels) @ runs)
        while (now := float(self._bill.by_label(labels) @ runs)) > cost:
            aim = max(cost, now - (start - cost) / 10)
            if not self._take(labels, loss, runs, now - aim):
                return None
        return labels

    def _take(self, labels: np.ndarray, loss: np.ndarray, runs: np.ndarray, amount: float) -> bool:
        """Take what saves about `amount`, from every channel once; False where nothing can be taken."""
        savings = self._bill.savings(labels, runs, self._taken)
        lost = loss @ self._bill.meets[:, self._taken]
        ratio = np.where(savings > 0, lost / np.maximum(savings, 1e-30), np.inf)
        ratio[self._bill.joint[:, None] & ((labels[:, None] & ~self._taken) != 0)] = np.inf
        feeding, old = Feeding(self._bill, labels), labels.copy()
        saved = 0.0
        for at in np.argsort(ratio, axis=None, kind="stable"):
            channel, column = divmod(int(at), len(self._taken))
            if not np.isfinite(ratio[channel, column]) or saved >= amount:
                break
            before = int(labels[channel])
            after = before & ~int(self._taken[column])
            if before != old[channel] or feeding.starves(channel, before, after):
                continue
            feeding.take(channel, before, after)
            labels[channel] = after
            saved += float(savings[channel, column])
        return not np.array_equal(labels, old)


def _sets(tasks: int) -> list[int]:
    every = (1 << tasks) - 1
    if tasks <= SETS:
        return list(range(1, every + 1))
    singles = [1 << t for t in range(tasks)]
    return [*singles, *(every & ~one for one in singles), every]
