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


def entropy(distances: np.ndarray, dimensions: int) -> float:
    """Entropy bound in nats of a mixture of Gaussians at the samples, from their squared distances [n, n]."""
    kernel = np.exp(-distances / (2 * VARIANCE))
    constant = dimensions / 2 * (1 + np.log(2 * np.pi * VARIANCE))
    return float(constant - np.mean(np.log(kernel.mean(axis=1))))


def information(distances: np.ndarray, dimensions: int, labels: np.ndarray) -> float:
    """Mutual information in nats of the samples with binary labels [n, labels], summed over the labels."""
    whole = entropy(distances, dimensions)
    total = 0.0
    for column in labels.T > 0:
        total += whole
        for part in (column, ~column):
            if part.any():
                total -= part.mean() * entropy(distances[np.ix_(part, part)], dimensions)
    return total


def label_entropy(labels: np.ndarray) -> float:
    """Entropy in nats of binary labels [n, labels], summed over the labels: what could be told about them."""
    p = np.clip((labels > 0).mean(axis=0), 1e-12, 1 - 1e-12)
    return float(-np.sum(p * np.log(p) + (1 - p) * np.log(1 - p)))


def irrelevant(features: np.ndarray, labels: np.ndarray, threshold: float) -> list[int]:
    """Channels, in the order they were found, that together tell at most `threshold` nats about the labels.

    `features` [n, channels]. Greedy: the next one is the one that adds least. Adding a channel adds to the matrix
    of squared distances, so a step costs one look at every channel.
    """
    each = [(features[:, i, None] - features[:, i]) ** 2 for i in range(features.shape[1])]
    chosen: list[int] = []
    distances = np.zeros((len(features),) * 2)
    left = list(range(features.shape[1]))
    while left:
        told = [information(distances + each[i], len(chosen) + 1, labels) for i in left]
        best = int(np.argmin(told))
        if told[best] > threshold:
            break
        distances = distances + each[left[best]]
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
