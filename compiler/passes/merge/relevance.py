"""How much each channel matters to the layers that read it, how alike channels of different networks are, and what
one more channel of a label costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from compiler.calibration.moments import correlation
from compiler.ir.types import TaskSet
from compiler.passes.merge.channels import Role, layer_axes
from compiler.passes.merge.originals import Originals
from compiler.passes.merge.streams import Streams
from compiler.passes.prune.fit import reader
from compiler.passes.prune.worth import Worth

STILL = 1e-14
"""Variance, as a share of the largest in its layer, of a channel that is the same for every input."""

NOTHING = np.zeros(0, np.int64)


def worth(streams: Streams, originals: Originals) -> dict[int, np.ndarray]:
    """Group -> [channels]: the rise of its readers' error when the channel goes and the others are fitted anew.

    Error is a share of each reader's output variance; the mean over the readers of the group. With G the
    covariance of a reader's patches and W its weights, the rise for channel u is W_u^T B_u^-1 W_u with B_u the
    block of (G + lambda I)^-1 that belongs to u (optimal brain surgeon on blocks, Hassibi & Stork 1993).
    """
    found = {g.index: np.zeros(g.width) for g in streams.channels.groups if g.split}
    readers = dict.fromkeys(found, 0)
    for place in streams.places:
        for source in place.sources if place.role is Role.LAYER else ():
            axes, groups = layer_axes(source.site), streams.channels.parts(source.site.operands[0])
            if axes is None or not groups:
                continue
            covariance = originals.own(source).central()[0]
            each = Worth(reader(source.site), covariance).after_refit(NOTHING, NOTHING)
            for group in groups:
                found[group] += each[streams.group(group).entries(axes[0])].sum(axis=1)
                readers[group] += 1
    return {g: values / max(readers[g], 1) for g, values in found.items()}


class Likeness:
    """Correlations and slopes between channels of groups that meet at a place, at the last such place."""

    def __init__(self, streams: Streams, originals: Originals) -> None:
        self._features = originals.features
        self._known: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        self._last: dict[tuple[int, int], int] = {}
        for index, groups in sorted(originals.features.items()):
            for a in groups:
                self._last |= {(a, b): index for b in groups if a != b}

    def between(self, a: int, b: int) -> tuple[np.ndarray, np.ndarray] | None:
        """(correlation, slope), both [channels of a, channels of b]: channel j of b is about slope[i, j] times
        channel i of a; None where the groups do not meet.
        """
        if (a, b) not in self._last:
            return None
        if (a, b) not in self._known:
            low, high = sorted((a, b))
            features = self._features[self._last[a, b]]
            x, y = (features[g].astype(np.float64) for g in (low, high))
            both = np.cov(np.concatenate([x, y], axis=1), rowvar=False, bias=True).reshape(
                (x.shape[1] + y.shape[1],) * 2
            )
            r, n = self._correlation(both), x.shape[1]
            variance = np.maximum(np.diag(both), 1e-30)
            self._known[low, high] = r[:n, n:], both[:n, n:] / variance[:n, None]
            self._known[high, low] = r[n:, :n], both[n:, :n] / variance[n:, None]
        return self._known[a, b]

    def _correlation(self, covariance: np.ndarray) -> np.ndarray:
        """Correlations, 1 between two constants: either can stand for the other."""
        still = np.diag(covariance) <= STILL * np.diag(covariance).max(initial=0)
        return np.where(still[:, None] & still, 1.0, correlation(covariance))

    def together(self, groups: Sequence[int]) -> list[np.ndarray]:
        """[rows, channels] per group at the last place where all of them meet; empty where there is none."""
        places = [i for i, found in self._features.items() if set(groups) <= set(found)]
        return [self._features[max(places)][g] for g in groups] if places else []

    def among(self, groups: Sequence[int]) -> np.ndarray:
        """Correlations of all channels of some groups that meet, one behind the other."""
        rows = np.concatenate(self.together(groups), axis=1).astype(np.float64)
        return correlation(np.atleast_2d(np.cov(rows, rowvar=False, bias=True)))


class Runs:
    """The probability that a call needs something.

    `workload`: probability of each combination of tasks; empty means that all combinations are equally likely.
    `tasks`: sorted names, bit i of a mask is task i.
    """

    def __init__(self, tasks: Sequence[str], workload: Mapping[TaskSet, float]) -> None:
        self._tasks, self._workload = tuple(tasks), workload
        self._known: dict[int, float] = {}

    def __call__(self, mask: int) -> float:
        """Probability that a call needs something of these tasks."""
        if mask not in self._known:
            self._known[mask] = self._probability(mask)
        return self._known[mask]

    def _probability(self, mask: int) -> float:
        count = len(self._tasks)
        if not self._workload:
            rest = count - mask.bit_count()
            return 1 - float(2**rest - 1) / float(2**count - 1)
        tasks = {t for i, t in enumerate(self._tasks) if mask >> i & 1}
        total = math.fsum(self._workload.values())
        return math.fsum(p for q, p in self._workload.items() if tasks & q) / total


class Prices:
    """Expected multiply-adds of a channel: what it takes to make it, times the probability that it runs."""

    def __init__(self, streams: Streams, runs: Runs) -> None:
        self.runs = runs
        """Probability that a call needs something of some tasks."""
        self._making = {g.index: 0.0 for g in streams.channels.groups if g.split}
        for place in streams.places:
            for source in place.sources:
                macs, result = source.site.node.op.macs(source.site), source.site.results[0]
                dim = streams.channels.channel_dim(result)
                if not macs or dim is None:
                    continue
                for group in source.groups:
                    entries = streams.group(group).entries(result.axis(dim))
                    self._making[group] += macs / result.shape[dim] * entries.shape[1]

    def making(self, group: int) -> float:
        """Multiply-adds for one channel of an original group."""
        return self._making[group]
