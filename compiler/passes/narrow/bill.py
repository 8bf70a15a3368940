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
from compiler.ir.op import MacOp
from compiler.ir.types import TaskSet, ValueRef
from compiler.passes.merge.channels import MAKERS, Matrix, Role, matrices
from compiler.passes.narrow.copies import Copies, joint_channels


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A weight that combines channels; a recurrent layer has two.

    `inward`, `outward`: channel of every entry of the two axes, -1 where it is none; `dims`: the axes of the weight
    they belong to, `rank`: of how many. `owners`: tasks that need the node. `macs`: multiply-adds of one pair of
    entries.
    """

    weight: ValueRef
    inward: np.ndarray
    outward: np.ndarray
    dims: tuple[int, int]
    rank: int
    owners: int
    macs: float

    def labels(self, labels: np.ndarray, every: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels of the entries of both axes; inputs that are no channels may be read by all."""
        inward = np.where(self.inward < 0, every, labels[self.inward])
        outward = np.where(self.outward < 0, self.owners, labels[self.outward])
        return inward, outward

    def allowed(self, labels: np.ndarray, every: int) -> np.ndarray:
        """Which weights may be there, in the weight's own layout, with axes of one entry besides the two."""
        inward, outward = self.labels(labels, every)
        pairs = (inward[None] & outward[:, None]) == outward[:, None]
        pairs &= outward[:, None] != 0
        ordered = pairs if self.dims[0] > self.dims[1] else pairs.T
        return np.expand_dims(ordered, [d for d in range(self.rank) if d not in self.dims])


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
        self.joint = joint_channels(copies)
        """Per channel whether it goes from all of its tasks or from none."""
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
            found -= (layer.macs * self._own_pairs(layer, len(labels)) * running[labels])[:, None]
        for each in self.each:
            found += self._made(each.entries, labels, after, each.macs * running)
        found[after == labels[:, None]] = -np.inf
        return found

    def _made(self, entries: np.ndarray, labels: np.ndarray, after: np.ndarray, cost: np.ndarray) -> np.ndarray:
        """[channels, taken]: what channels cost to make by label, before less after."""
        return np.asarray(self._times(entries, len(labels))[:, None] * (cost[labels][:, None] - cost[after]))

    def _own_pairs(self, layer: Layer, channels: int) -> np.ndarray:
        """Per channel its weights on itself: they are saved as something read and as a reader, but only once."""
        return np.asarray(self._times(layer.inward, channels) * self._times(layer.outward, channels))

    def read(self, labels: np.ndarray) -> np.ndarray:
        """The same labels without tasks for which nothing reads a channel any more; nothing is lost by that."""
        while not np.array_equal(left := self._live(labels), labels):
            labels = left
        return labels

    def _live(self, labels: np.ndarray) -> np.ndarray:
        """The tasks for which each channel is read by something that does not only read itself, as in a circle."""
        live = np.zeros_like(labels)
        while True:
            used = live.copy()
            for layer in self.layers:
                _, outward = layer.labels(live, self.every)
                present = np.bincount(outward, minlength=1 << self.tasks) > 0
                below = self._united(present)
                read = layer.inward[layer.inward >= 0]
                np.bitwise_or.at(used, read, below[labels[read]])
            used &= labels
            if np.array_equal(used, live):
                return live
            live = used

    def _united(self, present: np.ndarray) -> np.ndarray:
        """Per label the union of all labels that are present and that it contains."""
        found = np.where(present, np.arange(1 << self.tasks), 0)
        for task in range(self.tasks):
            pairs = found.reshape(-1, 2, 1 << task)  # without the task, with it
            pairs[:, 1] |= pairs[:, 0]
        return found

    # ------------------------------------------------------------------ pieces
    def _enter(self, site: Site) -> None:
        mask = self.copies.owners(site.node.ref)
        macs = site.node.op.macs(site)
        if not macs:
            return
        role = self.copies.streams.place(self.copies.copy(site).node.ref).role
        result = self.copies.on(site.results[0], mask)
        if role in MAKERS:
            self.layers += [self._layer(site, matrix, mask) for matrix in matrices(site)]
        elif result is not None and role is Role.EACH:
            self.each.append(Each(result, macs / len(result)))
        else:
            self._fixed[mask] += macs

    def _layer(self, site: Site, matrix: Matrix, mask: int) -> Layer:
        weight, op = site.operands[matrix.index], site.node.op
        assert isinstance(op, MacOp)
        size_in, size_out = (weight.shape[d] for d in matrix.dims)
        inward, outward = self.copies.on(matrix.read, mask), self.copies.on(site.results[0], mask)
        return Layer(
            weight.ref,
            np.full(size_in, -1) if inward is None else inward,
            np.full(size_out, -1) if outward is None else np.tile(outward, matrix.blocks),
            matrix.dims,
            weight.rank,
            mask,
            op.products(site, matrix.index) * weight.size / size_in / size_out,
        )

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
