"""Which channels of different networks stand for each other: assignment, greedy pairs, ZipIt's groups."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from compiler.passes.merge.labels import Unit
from compiler.passes.merge.relevance import Likeness
from compiler.passes.merge.streams import Streams

SWEEPS = 10
"""Times that every network is assigned anew."""


def classes_by_assignment(streams: Streams, groups: Sequence[int], likeness: Likeness) -> list[list[Unit]]:
    """Classes of like channels, one per channel of the widest group, at most one channel of each group in a class.

    Networks are assigned one by one to the classes so far (squared correlation, mean over a class's members), then
    each of them again against all others until nothing changes, at most SWEEPS times.
    """
    base = max(groups, key=lambda g: (streams.group(g).width, -g))
    classes = [{base: i} for i in range(streams.group(base).width)]
    rest = [g for g in groups if g != base]
    for group in rest:
        _assign(streams, group, classes, likeness)
    for _ in range(SWEEPS if len(rest) > 1 else 0):
        before = [dict(c) for c in classes]
        for group in rest:
            for one in classes:
                one.pop(group, None)
            _assign(streams, group, classes, likeness)
        if classes == before:
            break
    return [[Unit(g, one[g]) for g in sorted(one)] for one in classes]


def _assign(streams: Streams, group: int, classes: list[dict[int, int]], likeness: Likeness) -> None:
    gains = np.zeros((streams.group(group).width, len(classes)))
    for number, one in enumerate(classes):
        found = [both[0][:, i] ** 2 for g, i in one.items() if (both := likeness.between(group, g)) is not None]
        if found:
            gains[:, number] = np.mean(found, axis=0)
    for row, column in zip(*linear_sum_assignment(gains, maximize=True), strict=True):
        classes[column][group] = int(row)


def greedy_pairs(distance: np.ndarray, count: int) -> list[tuple[int, int]]:
    """One-to-one pairs of rows and columns in ascending distance, `count` of them."""
    pairs: list[tuple[int, int]] = []
    rows, columns = set[int](), set[int]()
    for flat in np.argsort(distance, axis=None, kind="stable"):
        if len(pairs) == count:
            break
        i, j = divmod(int(flat), distance.shape[1])
        if i not in rows and j not in columns:
            pairs.append((i, j))
            rows.add(i)
            columns.add(j)
    return pairs


def zip_groups(
    likeness: np.ndarray, nets: Sequence[Hashable], target: int, alpha: float, beta: float
) -> list[list[int]]:
    """ZipIt's greedy matching (Stoica et al., ICLR 2024, arXiv 2305.03053).

    `likeness` [n, n]: correlations of all networks' channels; `nets`: the network of each. While more than
    `target` groups are left, the likest pair is merged, across or within networks; the new group's likeness to
    every other is the smaller of the two, and a merge scales it by `alpha`. Merges within one network may take up
    at most the share `beta` of that network's channels, as long as any other merge is left. Returns the groups as
    channel numbers, in order of their first one.
    """
    c = np.array(likeness, np.float64)
    kinds = list(dict.fromkeys(nets))
    member = np.array([[net == kind for kind in kinds] for net in nets])
    budget = beta * member.sum(axis=0)
    alive = np.ones(len(c), bool)
    groups: dict[int, list[int]] = {i: [i] for i in range(len(c))}
    while len(groups) > target:
        spent = (member & (budget < 1)).astype(np.int64) @ member.T.astype(np.int64) > 0
        allowed = np.triu(alive[:, None] & alive, 1)
        free = allowed & ~spent if (allowed & ~spent).any() else allowed
        i, j = divmod(int(np.argmax(np.where(free, c, -np.inf))), len(c))
        budget = budget - (member[i] & member[j])
        groups[i] = sorted(groups[i] + groups.pop(j))
        c[i, :] = c[:, i] = np.minimum(c[i], c[j]) * alpha
        member[i] |= member[j]
        alive[j] = False
    return [groups[i] for i in sorted(groups)]
