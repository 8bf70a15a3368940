"""The published policies: which channels a stream shares, and by whom.

Every one of them labels streams as they come; what they emit, and what is refused, is the same as for the lattice.
`Prefix` shares whole stages from the input on. `Mtz` pairs channels by what sharing their incoming weights costs,
`Zipit` by their activations, also within a network. `Pam` shares nothing in pairs: it only says which networks may
read a channel.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compiler.passes.merge.assemble import Assembly
from compiler.passes.merge.entries import Entry
from compiler.passes.merge.labels import Channel, Labelling, Slab, Unit, average, own, separate
from compiler.passes.merge.layer import LayerFit
from compiler.passes.merge.mtz import distances, regular, shared_weights
from compiler.passes.merge.originals import Originals
from compiler.passes.merge.pairing import classes_by_assignment, greedy_pairs, zip_groups
from compiler.passes.merge.pam import SAMPLES, irrelevant, label_entropy, own_labels, regroup
from compiler.passes.merge.relevance import Likeness
from compiler.passes.merge.stages import Label, Stage, lacking, owners
from compiler.passes.merge.streams import Place, Source, Stream, Streams

Problem = tuple[np.ndarray, np.ndarray]
"""Second moments of what a layer reads, [d, d], and weights of its channels there, [entries each, d, channels]."""


@dataclass(frozen=True, eq=False)
class Policy(abc.ABC):
    """Labels streams of the first `depth` stages."""

    streams: Streams
    originals: Originals
    likeness: Likeness
    worth: Mapping[int, np.ndarray]
    stages: Sequence[Stage]
    depth: int

    complete: ClassVar[bool] = False
    """Whether what reads a shared channel of one network must read all of its channels."""

    def __call__(self, assembly: Assembly, place: Place, streams: Sequence[Stream]) -> Labelling:
        """Labels of streams that are about to be written."""
        shared = {index: labels for stage in self.stages[: self.depth] for index, labels in stage.items()}
        return {s.index: self._labelled(assembly, place, s, shared[s.index]) for s in streams if s.index in shared}

    def _labelled(
        self, assembly: Assembly, place: Place, stream: Stream, labels: Sequence[Label]
    ) -> tuple[Channel, ...]:
        """The channels of all labels, and those of the groups that have none."""
        taken = [c for groups in labels for c in self.channels(assembly, place, stream, groups)]
        labelled = {g for groups in labels for g in groups}
        return (*taken, *(c for c in separate(self.streams, stream) if c.owner.group not in labelled))

    @classmethod
    def allows(cls, streams: Streams, stream: Stream, groups: Label) -> bool:
        """Whether a stream can have the label: whichever channel stands for it has weights in every layer of every
        network that may read it, and a layer of its own wherever one writes it.
        """
        return lacking(streams, groups) is None and owners(stream, groups) == groups

    @abc.abstractmethod
    def channels(self, assembly: Assembly, place: Place, stream: Stream, groups: Label) -> tuple[Channel, ...]:
        """The channels that one label of a stream has; `place` is the first layer that writes it, or one of its
        bundle.
        """

    def prior(
        self, fit: LayerFit, sources: Sequence[Source], slab: Slab, entries: Sequence[Entry], prior: np.ndarray
    ) -> np.ndarray:
        """Weights that a fit starts from, given those that the originals suggest."""
        return prior

    def owned(self, stream: Stream, members: Sequence[Unit], groups: Sequence[int]) -> Channel:
        """A channel of the label `groups` that computes the member that is worth most to its readers."""
        may = set(owners(stream, groups))
        best = max((m for m in members if m.group in may), key=lambda m: (self.worth[m.group][m.channel], m))
        others = [m for m in members if m != best]
        slopes = (1.0, *(self._slope(best, m) for m in others))
        return Channel(tuple(sorted(groups)), (best, *others), slopes, (1.0, *(0.0 for _ in others)))

    def _slope(self, owner: Unit, member: Unit) -> float:
        both = self.likeness.between(owner.group, member.group)
        return 1.0 if both is None else float(both[1][owner.channel, member.channel])


class Prefix(Policy):
    """One label for everything in the first stages: like channels of all networks become the best of them."""

    @classmethod
    def allows(cls, streams: Streams, stream: Stream, groups: Label) -> bool:
        """One network's channels stand for all."""
        return lacking(streams, groups) is None and bool(owners(stream, groups))

    def channels(self, assembly: Assembly, place: Place, stream: Stream, groups: Label) -> tuple[Channel, ...]:
        """As many channels as the widest network that can stand for all has."""
        base = max(owners(stream, groups), key=lambda g: (self.streams.group(g).width, -g))
        narrower = [g for g in groups if self.streams.group(g).width <= self.streams.group(base).width]
        classes = classes_by_assignment(self.streams, [base, *(g for g in narrower if g != base)], self.likeness)
        return tuple(self.owned(stream, members, groups) for members in classes)


class Wide(Policy):
    """Every channel of every network may be read by all: nothing is joined and nothing is lost."""

    complete: ClassVar[bool] = True

    def channels(self, assembly: Assembly, place: Place, stream: Stream, groups: Label) -> tuple[Channel, ...]:
        """The channels of all networks side by side under one label."""
        units = (Unit(g, i) for g in groups for i in range(self.streams.group(g).width))
        return tuple(average([u], groups) for u in units)


@dataclass(frozen=True, eq=False)
class Mtz(Policy):
    """Pairs of least distance share one channel; `share` of the narrower network's channels are paired."""

    share: float = 1.0

    @classmethod
    def allows(cls, streams: Streams, stream: Stream, groups: Label) -> bool:
        """Every class has a member of every network, so there are weights for it in every layer."""
        return owners(stream, groups) == groups

    def channels(self, assembly: Assembly, place: Place, stream: Stream, groups: Label) -> tuple[Channel, ...]:
        """Channels of the networks that read something in common, set by set; those of others stay their own, as do
        those that are written later than `place`: what their layers read is not known yet.
        """
        left, shared = [g for g in groups if place.holding([g])], list[Channel]()
        while left:
            found, problems = self._together(assembly, place, left)
            left = [g for g in left if g not in found]
            shared += [average(members, found) for members in self._zipped(found, problems)]
        used = {m for c in shared for m in c.members}
        alone = (c for c in separate(self.streams, stream) if c.owner.group in groups)
        return (*shared, *(c for c in alone if c.owner not in used))

    def _zipped(self, groups: Sequence[int], problems: Sequence[Problem]) -> list[list[Unit]]:
        """Networks are zipped one after the other; a class counts with the sum of its members' moments."""
        moment, weights = problems[0]
        classes = [[Unit(groups[0], i)] for i in range(weights.shape[2])]
        for group, (other, columns) in zip(groups[1:], problems[1:], strict=True):
            count = round(self.share * min(len(classes), columns.shape[2]))
            each = [distances(moment, other, w, c) for w, c in zip(weights, columns, strict=True)]
            pairs = sorted(greedy_pairs(np.sum(each, axis=0), count))
            classes = [[*classes[i], Unit(group, j)] for i, j in pairs]
            at, to = [i for i, _ in pairs], [j for _, j in pairs]
            both = [(w[:, at], c[:, to]) for w, c in zip(weights, columns, strict=True)]
            weights = np.stack([shared_weights([moment, other], pair) for pair in both])
            moment = moment + other
        return classes

    def _together(self, assembly: Assembly, place: Place, groups: Sequence[int]) -> tuple[list[int], list[Problem]]:
        """The first network and all that read something in common with those before them, with their problems."""
        found = [groups[0]]
        problems = self._problems(assembly, place, found)
        for group in groups[1:]:
            if wider := self._problems(assembly, place, [*found, group]):
                found, problems = [*found, group], wider
        return found, problems

    def _problems(self, assembly: Assembly, place: Place, groups: Sequence[int]) -> list[Problem]:
        """(H [d, d], incoming weights [entries each, d, channels]) per network over the d - 1 inputs that all of
        them share already, and a constant; of several networks none where no input is shared.
        """
        fit = assembly.fit(place)
        entries = assembly.readable(place, groups)
        sources = [place.holding([g])[0] for g in groups]
        own_columns = [fit.own_columns(s, entries) for s in sources]
        common = np.flatnonzero(np.all([c >= 0 for c in own_columns], axis=0))
        if len(groups) > 1 and not common.size:
            return []
        known = [fit.incoming(s, c[common]) for s, c in zip(sources, own_columns, strict=True)]
        return [
            (regular(moment), weights[:, fit.outputs(source, group)].transpose(2, 0, 1))
            for (moment, weights), source, group in zip(known, sources, groups, strict=True)
        ]

    def prior(
        self, fit: LayerFit, sources: Sequence[Source], slab: Slab, entries: Sequence[Entry], prior: np.ndarray
    ) -> np.ndarray:
        """The published shared weights over the columns that every network of the slab has."""
        if len(sources) < 2:
            return prior
        own_columns = [fit.own_columns(s, entries) for s in sources]
        common = np.flatnonzero(np.all([c >= 0 for c in own_columns], axis=0))
        if not common.size:
            return prior
        problems = [fit.incoming(s, c[common]) for s, c in zip(sources, own_columns, strict=True)]
        members = [fit.members(s, slab) for s in sources]
        if any(m is None for m in members):
            return prior
        moments = [regular(h) for h, _ in problems]
        weights = [w[:, m.reshape(-1)] for (_, w), m in zip(problems, members, strict=True) if m is not None]
        places = fit.places(sources[0], slab).reshape(-1)
        found = np.zeros_like(prior)
        found[np.ix_(common, places)] = shared_weights(moments, weights)[:-1]
        return found


@dataclass(frozen=True, eq=False)
class Zipit(Policy):
    """Channels of all networks are merged in greedy order of correlation down to the width of the widest
    network.
    """

    alpha: float = 0.3
    beta: float = 0.125

    def channels(self, assembly: Assembly, place: Place, stream: Stream, groups: Label) -> tuple[Channel, ...]:
        """Groups of any composition, averaged, readable by all."""
        units = [Unit(g, i) for g in groups for i in range(self.streams.group(g).width)]
        target = max(self.streams.group(g).width for g in groups)
        found = zip_groups(self.likeness.among(groups), [u.group for u in units], target, self.alpha, self.beta)
        return tuple(average([units[i] for i in members], groups) for members in found)


@dataclass(frozen=True, eq=False)
class Pam(Policy):
    """One shared group and one per network, by what channels tell about the networks' own decisions."""

    threshold: float = 0.5

    def channels(self, assembly: Assembly, place: Place, stream: Stream, groups: Label) -> tuple[Channel, ...]:
        """Channels irrelevant for all are gone, for all but one exclusive; nothing is averaged.

        A single exclusive channel is shared instead: an axis of one entry counts no channels for later passes.
        """
        units = [Unit(g, i) for g in groups for i in range(self.streams.group(g).width)]
        features = self._features(groups)
        names = self.streams.alignment.names(self.streams.mask_of(groups))
        told = {n: self._irrelevant(features, t) for n, t in enumerate(names)}
        exclusive, shared = regroup(told, len(units))
        found = [average([units[i]], groups) for i in shared]
        for number, task in enumerate(names):
            bit = 1 << self.streams.alignment.tasks.index(task)
            home = next(g for g in groups if self.streams.group_masks[g] & bit)
            found += [
                own(units[i]) if units[i].group == home else average([units[i]], [home]) for i in exclusive[number]
            ]
        return self._not_empty(
            stream, groups, [c if _is_wide(c, found) else average(c.members, groups) for c in found]
        )

    def _irrelevant(self, features: np.ndarray, task: str) -> list[int]:
        labels = self._labels(task)
        return irrelevant(features, labels, self.threshold * label_entropy(labels))

    def _not_empty(self, stream: Stream, groups: Sequence[int], found: list[Channel]) -> tuple[Channel, ...]:
        """Every network must see something: the most valuable channel is shared where a label would see nothing."""
        if any(set(groups) <= set(c.groups) for c in found):
            return tuple(found)
        may = owners(stream, groups)
        best = max(
            (Unit(g, i) for g in may for i in range(self.streams.group(g).width)),
            key=lambda u: (self.worth[u.group][u.channel], u),
        )
        return (average([best], groups), *(c for c in found if best not in c.members))

    def _features(self, groups: Sequence[int]) -> np.ndarray:
        """[samples, channels]: the largest activation over positions, standardised."""
        rows = np.concatenate(self.likeness.together(groups), axis=1).astype(np.float64)
        samples = self.originals.samples
        peaks = rows.reshape(samples, -1, rows.shape[1]).max(axis=1)[:SAMPLES]
        spread = peaks.std(axis=0)
        return np.asarray((peaks - peaks.mean(axis=0)) / np.where(spread > 0, spread, 1))

    def _labels(self, task: str) -> np.ndarray:
        output = self.streams.graph.tasks[task].outputs[0]
        values = self.originals.outputs[output].reshape(self.originals.samples, -1)
        return own_labels(values)[:SAMPLES]


def _is_wide(channel: Channel, channels: Sequence[Channel]) -> bool:
    """Whether there are other channels of a channel's label."""
    return sum(c.groups == channel.groups for c in channels) > 1
