"""The grouping rule of PAM (He, Gao, Zhou, Tong, Thiele, KDD 2021, arXiv 1905.09676).

Channels of all networks form one pool. For each task the channels that together tell least about its labels are
found greedily; those irrelevant for all tasks are dead, those irrelevant for all but one are exclusive to that
one, the rest is shared by all. The estimate of mutual information is the upper bound of Kolchinsky and Tracey
(2017) for Gaussian kernels. Only the grouping is copied: units keep their scale to themselves (features are
standardised, since the estimate depends on scale), no test data enters, and every group can be pruned afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

VARIANCE = 0.1
"""Variance of the noise that makes activations random variables."""

SAMPLES = 128
"""Inputs that enter the estimate, as published."""


def kernel(distances: np.ndarray) -> np.ndarray:
    """How near samples are to each other, 1 for equal ones, from their squared distances [n, n]. Features that add
    up in the distances multiply here."""
    return np.asarray(np.exp(-distances / (2 * VARIANCE)))


class Information:
    """Mutual information in nats of samples with binary labels [n, labels], summed over the labels.

    An entropy is bounded by that of a mixture of Gaussians at the samples. What it has in common for all samples
    and for those of either side of a label cancels, with the number of features.
    """

    def __init__(self, labels: np.ndarray) -> None:
        self._labels = labels.shape[1]
        self._side = np.concatenate([labels > 0, labels <= 0], axis=1)
        self._sums = self._side.astype(np.float64)
        self._counts = np.broadcast_to(self._sums.sum(axis=0), self._side.shape)[self._side]

    def __call__(self, near: np.ndarray) -> float:
        """Of samples with the `kernel` [n, n]."""
        own = (near @ self._sums)[self._side] / self._counts
        whole = np.log(near.mean(axis=1)).sum()
        return float((np.log(own).sum() - self._labels * whole) / len(near))


def label_entropy(labels: np.ndarray) -> float:
    """Entropy in nats of binary labels [n, labels], summed over the labels: what could be told about them."""
    p = np.clip((labels > 0).mean(axis=0), 1e-12, 1 - 1e-12)
    return float(-np.sum(p * np.log(p) + (1 - p) * np.log(1 - p)))


def irrelevant(features: np.ndarray, labels: np.ndarray, threshold: float) -> list[int]:
    """Channels, in the order they were found, that together tell at most `threshold` nats about the labels.

    `features` [n, channels]. Greedy: the next one is the one that adds least. Adding a channel multiplies the
    kernel by its own, so a step costs one look at every channel.
    """
    information = Information(labels)
    each = [kernel((features[:, i, None] - features[:, i]) ** 2) for i in range(features.shape[1])]
    chosen: list[int] = []
    near = np.ones((len(features),) * 2)
    left = list(range(features.shape[1]))
    while left:
        told = [information(near * each[i]) for i in left]
        best = int(np.argmin(told))
        if told[best] > threshold:
            break
        near = near * each[left[best]]
        chosen.append(left.pop(best))
    return chosen


def regroup(irrelevant_for: Mapping[int, Sequence[int]], count: int) -> tuple[dict[int, list[int]], list[int]]:
    """(task -> exclusive channels, shared channels) of a pool of `count`; channels in neither are dead.

    `irrelevant_for`: task -> channels that do not matter to it.
    """
    sets = {t: set(found) for t, found in irrelevant_for.items()}
    dead = set.intersection(*sets.values())
    exclusive = {t: set.intersection(*(s for o, s in sets.items() if o != t)) - dead for t in sets}
    taken = dead.union(*exclusive.values())
    return {t: sorted(found) for t, found in exclusive.items()}, [i for i in range(count) if i not in taken]


def own_labels(outputs: np.ndarray) -> np.ndarray:
    """Labels [samples, classes] of +1 and -1 from a task's own outputs [samples, ...]: its class decisions, one
    against the rest; a single score is split at its median.
    """
    flat = outputs.reshape(len(outputs), -1)
    if flat.shape[1] == 1:
        return np.where(flat > np.median(flat), 1.0, -1.0)
    decisions = flat.argmax(axis=1)
    return np.where(decisions[:, None] == np.arange(flat.shape[1]), 1.0, -1.0)
