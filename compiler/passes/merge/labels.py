"""Channels of the merged network, who may read them, and slabs: channels of one label that one node computes.

A label is a set of groups of one stream, hence a set of tasks at every place. It is not stored in the graph;
there it is what `needed_by` says, and it shows in names. A channel stands for one or more original channels, its
members.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from compiler.errors import VerifyError
from compiler.ir.graph import Graph, NodeRef
from compiler.passes.merge.match import sorted_masks
from compiler.passes.merge.streams import Stream, Streams


class Unit(NamedTuple):
    """An original channel: number `channel` of group `group`."""

    group: int
    channel: int


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel of the merged network.

    `groups`: those whose networks may read it, ascending. `members`: the original channels it stands for; member k
    is `slopes[k]` times this channel, as far as its readers can tell, and weighs `weights[k]` in what the channel
    is fitted to (the weights sum to 1; the first member with weight is the owner).
    """

    groups: tuple[int, ...]
    members: tuple[Unit, ...]
    slopes: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def owner(self) -> Unit:
        """The original channel that it computes, or the first of those it averages."""
        return next(m for m, w in zip(self.members, self.weights, strict=True) if w)

    @property
    def private(self) -> bool:
        """Whether it is an original channel, for its own network only."""
        return self.groups == (self.members[0].group,) and len(self.members) == 1


def own(unit: Unit) -> Channel:
    """An original channel as it is."""
    return Channel((unit.group,), (unit,), (1.0,), (1.0,))


def average(members: Sequence[Unit], groups: Iterable[int] = ()) -> Channel:
    """A channel fitted to the mean of its members; readable by their groups and by `groups`."""
    count = len(members)
    readers = tuple(sorted({m.group for m in members} | set(groups)))
    return Channel(readers, tuple(members), (1.0,) * count, (1.0 / count,) * count)


def whole_multiples(channels: Sequence[Channel], multiple: int) -> tuple[Channel, ...]:
    """Undo joins so that every shared label's width is a multiple of `multiple`: the last channels of a label that
    do not fill one are their own networks' again.
    """
    by_label: dict[tuple[int, ...], list[Channel]] = {}
    for channel in channels:
        if len(channel.groups) > 1:
            by_label.setdefault(channel.groups, []).append(channel)
    undone = {id(c) for found in by_label.values() for c in found[len(found) // multiple * multiple :]}
    return tuple(part for c in channels for part in ([own(m) for m in c.members] if id(c) in undone else [c]))


Labelling = Mapping[int, tuple[Channel, ...]]
"""Stream -> its channels; streams that are left out keep their original ones."""


def separate(streams: Streams, stream: Stream) -> tuple[Channel, ...]:
    """Every original channel of a stream on its own."""
    return tuple(own(Unit(g, i)) for g in stream.groups for i in range(streams.group(g).width))


@dataclass(frozen=True, slots=True)
class Slab:
    """Channels of one label in the order in which one node computes them."""

    stream: int
    groups: tuple[int, ...]
    channels: tuple[Channel, ...]
    number: int = 0
    """Counts the slabs of one label; more than one where a group is narrower than the label is wide."""


def slabs(streams: Streams, stream: Stream, channels: Sequence[Channel]) -> tuple[Slab, ...]:
    """The channels of a stream by label, larger labels first, then in task order.

    A slab is at most as wide as its narrowest group, so that the shape of its nodes can be read off any of them.
    """
    found: dict[tuple[int, ...], list[Channel]] = {}
    for channel in channels:
        found.setdefault(channel.groups, []).append(channel)
    made = []
    for groups in sorted(found, key=lambda g: label_order(streams, g)):
        widest = min(streams.group(g).width for g in groups)
        for number, at in enumerate(range(0, len(found[groups]), widest)):
            made.append(Slab(stream.index, groups, tuple(found[groups][at : at + widest]), number))
    return tuple(made)


def base_name(name: str, tasks: Sequence[str]) -> str:
    """A name without the prefix of a task and without a label: `conv2` of `a/conv2` and of `conv2[a+b]`."""
    prefix, slash, rest = name.partition("/")
    base = rest if slash and prefix in tasks and rest else name
    stem, bracket, label = base.rpartition("[")
    labelled = bool(bracket) and label.endswith("]") and set(label[:-1].split("+")) <= set(tasks)
    return stem if labelled and stem else base


def task_order(mask: int) -> tuple[int, int]:
    """Sort key of task sets: larger ones first, then the order of task names."""
    bits = [i for i in range(mask.bit_length()) if mask >> i & 1]
    return -len(bits), -sum(1 << (64 - i) for i in bits)


def label_order(streams: Streams, groups: Sequence[int]) -> tuple[int, int, tuple[int, ...]]:
    """Sort key of labels: larger task sets first, then the order of task names."""
    return *task_order(streams.mask_of(groups)), tuple(groups)


def check(streams: Streams, labelling: Labelling) -> None:
    """VerifyError where channels are not what `Channel` says: units unknown or used twice by one label's readers,
    members outside the label, an owner whose network lacks a layer that writes the stream.
    """
    for index, channels in labelling.items():
        stream = streams.streams[index]
        seen: set[Unit] = set()
        for channel in channels:
            for problem in _problems(streams, stream, channel):
                raise VerifyError(f"merge: stream {index}: {problem}")
            twice = seen.intersection(channel.members)
            if twice:
                raise VerifyError(f"merge: stream {index}: {min(twice)} is a member of two channels")
            seen.update(channel.members)


def check_closure(streams: Streams, graph: Graph, made: Mapping[NodeRef, int]) -> None:
    """VerifyError where a node that was made for some tasks is needed by another one: a label reads a value that is
    not for all of its tasks.
    """
    _, needed = sorted_masks(graph)
    names = streams.alignment.names
    for ref, mask in made.items():
        extra = needed.get(ref, 0) & ~mask
        if extra:
            raise VerifyError(
                f"merge: node '{ref}' is for {'+'.join(names(mask))}, but {'+'.join(names(extra))} needs it too: "
                f"something of a larger label reads it"
            )


def _problems(streams: Streams, stream: Stream, channel: Channel) -> Iterable[str]:
    if abs(sum(channel.weights) - 1) > 1e-9 or len(channel.members) != len(channel.slopes):
        yield f"the weights of {channel.members} are {channel.weights}"
    outside = [g for g in channel.groups if g not in stream.groups]
    if outside or list(channel.groups) != sorted(set(channel.groups)):
        yield f"label {channel.groups} is no set of its groups {stream.groups}"
    for unit in channel.members:
        if unit.group not in channel.groups or not 0 <= unit.channel < streams.group(unit.group).width:
            yield f"{unit} is no member of label {channel.groups}"
    if not stream.may_own(channel.owner.group, channel.groups):
        yield f"group {channel.owner.group} lacks a layer that writes label {channel.groups}"
