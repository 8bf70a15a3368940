"""Which channels are taken from which tasks next: least loss per saved multiply-add first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from compiler.ir.types import ValueRef
from compiler.passes.narrow.bill import Bill, Layer
from compiler.passes.narrow.feeding import Feeding


class Sensitivity:
    """Root mean square gradients of gates between every channel and a task's readers of it.

    The gate of (channel, task) is on all weights by which nodes of that task read the channel, the one in the last
    column on all weights that read it.
    """

    def __init__(self, bill: Bill, labels: np.ndarray) -> None:
        self._bill = bill
        self._squares = np.zeros((len(labels), bill.tasks + 1))
        self._readers = [
            (layer, _task_rows(bill, layer, labels)) for layer in bill.layers if layer.inward.max() >= 0
        ]

    def add(self, groups: Iterable[Mapping[ValueRef, np.ndarray]]) -> np.ndarray:
        """[channels, tasks + 1] after some groups of samples, each with gradients [leading axes] by weight."""
        for gradients in groups:
            found = np.zeros_like(self._squares)
            for layer, rows in self._readers:
                pairs = gradients[layer.weight]
                pairs = pairs if layer.dims == (1, 0) else pairs.T
                read = layer.inward >= 0
                np.add.at(found, layer.inward[read], (pairs.T @ rows)[read])
            self._squares += found**2
        return np.sqrt(self._squares)


def _task_rows(bill: Bill, layer: Layer, labels: np.ndarray) -> np.ndarray:
    """[outputs, tasks + 1]: whether a result is for a task, and 1."""
    _, outward = layer.labels(labels, bill.every)
    mine = outward[:, None] >> np.arange(bill.tasks) & 1
    return np.concatenate([mine, np.ones((len(outward), 1), np.int64)], axis=1).astype(np.float64)


def shares(sensitivity: np.ndarray, labels: np.ndarray, streams: Iterable[np.ndarray]) -> np.ndarray:
    """Sensitivities over the length of their vector per stream and task: layers and tasks become comparable."""
    found = sensitivity.copy()
    tasks = found.shape[1] - 1
    for channels in streams:
        for task in range(tasks):
            mine = labels[channels] >> task & 1
            found[channels, task] *= mine
        size = np.sqrt((found[channels] ** 2).sum(axis=0))
        found[channels] /= np.maximum(size, 1e-30)
    return found


class Taking:
    """Removes (channel, task) pairs, or whole channels, in order of loss per saving until enough is saved."""

    def __init__(self, bill: Bill, whole: bool) -> None:
        self._bill, self._whole = bill, whole

    def down_to(self, labels: np.ndarray, loss: np.ndarray, runs: np.ndarray, cost: float) -> np.ndarray | None:
        """Labels whose expected cost is at most `cost`; None where what must stay costs more.

        `loss`: [channels, tasks + 1]. Prices are taken anew after every tenth of what is saved.
        """
        labels = labels.copy()
        start = float(self._bill.by_label(labels) @ runs)
        while (now := float(self._bill.by_label(labels) @ runs)) > cost:
            aim = max(cost, now - (start - cost) / 10)
            if not self._take(labels, loss, runs, now - aim):
                return None
        return labels

    def _take(self, labels: np.ndarray, loss: np.ndarray, runs: np.ndarray, amount: float) -> bool:
        """Take pairs worth about `amount`; False where nothing can be taken."""
        savings = self._bill.savings(labels, runs)
        tasks = self._bill.tasks
        columns = [tasks] if self._whole else list(range(tasks))
        feeding = Feeding(self._bill, labels)
        saved, some = 0.0, False
        ratio = np.where(savings > 0, loss / np.maximum(savings, 1e-30), np.inf)
        ratio[self._bill.frozen] = np.inf
        flat = ratio[:, columns]
        for at in np.argsort(flat, axis=None, kind="stable"):
            channel, column = int(at) // len(columns), columns[int(at) % len(columns)]
            if not np.isfinite(ratio[channel, column]) or saved >= amount:
                break
            before = int(labels[channel])
            after = 0 if column == tasks else before & ~(1 << column)
            if after == before or feeding.starves(channel, before, after):
                continue
            feeding.take(channel, before, after)
            labels[channel] = after
            saved += float(savings[channel, column])
            some = True
        return some
