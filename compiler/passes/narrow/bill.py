"""What every combination of tasks costs under given labels, and what it saves to take a channel from a task.

A channel with label S runs for every combination that has a task of S, and reads channels whose labels contain S.
With n_in and n_out the numbers of channels by label, a layer's nodes of label S take

    kappa n_out(S) sum over S' >= S of n_in(S')

multiply-adds. Taking task t from one channel makes it run for fewer combinations, makes it read more, and makes the
channels that t has behind it read less; all three are in the price.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from compiler.ir.graph import Site
from compiler.ir.types import TaskSet, ValueRef
from compiler.passes.merge.channels import Role, layer_axes, weight_axes
from compiler.passes.narrow.copies import Copies, frozen_channels


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A layer of the graph.

    `inward`, `outward`: channel of every entry of the two axes, -1 where it is none; `dims`: the axes of the weight
    they belong to. `owners`: tasks that need the node. `macs`: multiply-adds of one pair of entries.
    """

    weight: ValueRef
    inward: np.ndarray
    outward: np.ndarray
    dims: tuple[int, int]
    owners: int
    macs: float

    def labels(self, labels: np.ndarray, every: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels of the entries of both axes; inputs that are no channels may be read by all."""
        inward = np.where(self.inward < 0, every, labels[self.inward])
        outward = np.where(self.outward < 0, self.owners, labels[self.outward])
        return inward, outward

    def allowed(self, labels: np.ndarray, every: int) -> np.ndarray:
        """Which weights may be there, in the weight's own layout without taps: [outputs, inputs] or transposed."""
        inward, outward = self.labels(labels, every)
        pairs = (inward[None] & outward[:, None]) == outward[:, None]
        pairs &= outward[:, None] != 0
        return np.asarray(pairs if self.dims == (1, 0) else pairs.T)


@dataclass(frozen=True, slots=True, eq=False)
class Each:
    """A node that works on each channel alone and multiplies: `macs` of one entry."""

    entries: np.ndarray
    macs: float


class Bill:
    """Multiply-adds of the narrowed graph, from the labels of its channels."""

    def __init__(self, copies: Copies) -> None:
        self.tasks = len(copies.tasks)
        self.every = (1 << self.tasks) - 1
        self.copies = copies
        self._names = copies.tasks
        self.frozen = frozen_channels(copies)
        """Per channel whether its label has to stay."""
        self.layers: list[Layer] = []
        self.each: list[Each] = []
        self._fixed = np.zeros(1 << self.tasks)
        for site in copies.original.sites():
            if copies.owners(site.node.ref):
                self._enter(site)
        masks = np.arange(1 << self.tasks)
        self.contains = (masks[:, None] & masks[None]) == masks[None]
        """[S', S]: whether S' contains S."""
        self.meets = (masks[:, None] & masks[None]) != 0
        """[Q, S]: whether two sets of tasks have one in common; a call for Q then runs nodes of label S."""

    # ------------------------------------------------------------------ totals
    def by_label(self, labels: np.ndarray) -> np.ndarray:
        """Multiply-adds of all nodes of each label."""
        cost = self._fixed.copy()
        for layer in self.layers:
            inward, outward = self.counts(layer, labels)
            cost += layer.macs * outward * (inward @ self.contains)
        for each in self.each:
            cost += each.macs * self._count(labels[each.entries])
        cost[0] = 0
        return cost

    def subsets(self, labels: np.ndarray) -> dict[TaskSet, float]:
        """Multiply-adds of every combination of tasks."""
        costs = self.meets @ self.by_label(labels)
        return {self._set(q): float(costs[q]) for q in range(1, 1 << self.tasks)}

    def runs(self, workload: Mapping[TaskSet, float]) -> np.ndarray:
        """Per label the weight of the combinations that run it. `workload`: of combinations (empty: all alike)."""
        weights = np.zeros(1 << self.tasks)
        for q in range(1, 1 << self.tasks):
            weights[q] = workload.get(self._set(q), 0.0) if workload else 1.0
        return np.asarray(weights / weights.sum() @ self.meets)

    def _set(self, mask: int) -> TaskSet:
        return frozenset(t for i, t in enumerate(self._names) if mask >> i & 1)

    # ------------------------------------------------------------------ prices
    def savings(self, labels: np.ndarray, runs: np.ndarray, taken: np.ndarray) -> np.ndarray:
        """[channels, taken]: what is saved by taking a channel from each of some sets of tasks.

        -inf where the channel is none of theirs.
        """
        found = np.zeros((len(labels), len(taken)))
        after = labels[:, None] & ~taken
        running = np.concatenate([[0.0], runs[1:]])
        for layer in self.layers:
            inward, outward = self.counts(layer, labels)
            reads = inward @ self.contains
            making = layer.macs * running * reads
            found += self._made(layer.outward, labels, after, making)
            readers = self.meets[:, taken] * (outward * running)[:, None]
            times = layer.macs * self._times(layer.inward, len(labels))
            found += times[:, None] * (self.contains @ readers)[labels]
        for each in self.each:
            found += self._made(each.entries, labels, after, each.macs * running)
        found[after == labels[:, None]] = -np.inf
        return found

    def _made(self, entries: np.ndarray, labels: np.ndarray, after: np.ndarray, cost: np.ndarray) -> np.ndarray:
        """[channels, taken]: what channels cost to make by label, before less after."""
        return np.asarray(self._times(entries, len(labels))[:, None] * (cost[labels][:, None] - cost[after]))

    def read(self, labels: np.ndarray) -> np.ndarray:
        """The same labels without tasks for which nothing reads a channel any more; nothing is lost by that."""
        while True:
            used = np.zeros_like(labels)
            for layer in self.layers:
                _, outward = layer.labels(labels, self.every)
                present = np.bincount(outward, minlength=1 << self.tasks) > 0
                below = [int(np.bitwise_or.reduce(np.flatnonzero(row & present))) for row in self.contains]
                read = layer.inward[layer.inward >= 0]
                np.bitwise_or.at(used, read, np.array(below)[labels[read]])
            left = np.where(self.frozen, labels, labels & used)
            if np.array_equal(left, labels):
                return labels
            labels = left

    # ------------------------------------------------------------------ pieces
    def _enter(self, site: Site) -> None:
        mask = self.copies.owners(site.node.ref)
        macs = site.node.op.macs(site)
        if not macs:
            return
        role = self.copies.streams.place(self.copies.copy(site).node.ref).role
        result = self.copies.on(site.results[0], mask)
        axes = layer_axes(site) if role is Role.LAYER else None
        if axes is not None:
            size_in, size_out = site.operands[0].shape[int(axes[0].dim)], site.results[0].shape[int(axes[1].dim)]
            inward = self.copies.on(site.operands[0], mask)
            dims = tuple(int(a.dim) for a in weight_axes(site))
            none_in, none_out = np.full(size_in, -1), np.full(size_out, -1)
            self.layers.append(
                Layer(
                    site.operands[1].ref,
                    none_in if inward is None else inward,
                    none_out if result is None else result,
                    (dims[0], dims[1]),
                    mask,
                    macs / size_in / size_out,
                )
            )
        elif result is not None and role is Role.EACH:
            self.each.append(Each(result, macs / len(result)))
        else:
            self._fixed[mask] += macs

    def counts(self, layer: Layer, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Entries of a layer's two axes by label: [labels] read and [labels] made; 0 for the empty label."""
        inward, outward = layer.labels(labels, self.every)
        return self._count(inward), self._count(outward)

    def _count(self, labels: np.ndarray) -> np.ndarray:
        found = np.bincount(labels, minlength=1 << self.tasks).astype(np.float64)
        found[0] = 0
        return found

    @staticmethod
    def _times(entries: np.ndarray, channels: int) -> np.ndarray:
        return np.bincount(entries[entries >= 0], minlength=channels).astype(np.float64)
