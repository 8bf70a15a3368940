"""Streams in the order in which sharing can reach them: a stage can be shared whole once everything it reads is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from compiler.ir.graph import Value
from compiler.passes.merge.channels import Role
from compiler.passes.merge.streams import Place, Stream, Streams

Label = tuple[int, ...]
"""Groups of one stream, at most one of each task."""

Stage = Mapping[int, tuple[Label, ...]]
"""Stream -> its labels, disjoint. The streams feed each other: a residual stream and inner layers of its blocks."""

Allowed = Callable[[Stream, Label], bool]
"""Whether a policy can label a stream so."""


def stages(streams: Streams, allowed: Allowed, *, complete: bool = False) -> tuple[Stage, ...]:
    """What can be shared whole, every stage behind what it reads.

    A stage is shared by as many networks as possible, then by as many as possible of the others: by sets of two or
    more tasks for which every stream that several of them have is `allowed` to have one label, and whose layers
    read something that is common to the set by then (`complete`: nothing else). Streams that only one of them has
    stay as they are. A stage that no such set shares is left out.
    """
    shared: dict[int, tuple[Label, ...]] = {}
    found = []
    for component in _components(streams):
        stage = _Sharing(streams, component, shared, allowed, complete).labels()
        if stage:
            shared |= stage
            found.append(stage)
    return tuple(found)


class _Sharing:
    """The labels of one component, `shared` being those in front of it."""

    def __init__(
        self,
        streams: Streams,
        component: Sequence[Stream],
        shared: Stage,
        allowed: Allowed,
        complete: bool,
    ) -> None:
        self._streams, self._component, self._shared = streams, component, shared
        self._allowed, self._complete = allowed, complete

    def labels(self) -> dict[int, tuple[Label, ...]]:
        """Stream -> labels of the largest sets of tasks, one set after the other."""
        found: dict[int, tuple[Label, ...]] = {}
        left = self._streams.mask_of([g for s in self._component for g in s.groups])
        while left and (chosen := self._largest(left)):
            mask, labels = chosen
            left &= ~mask
            for index, groups in labels.items():
                found[index] = (*found.get(index, ()), groups)
        return found

    def _largest(self, left: int) -> tuple[int, dict[int, Label]] | None:
        """The largest set of the tasks `left` that shares the component, and its labels."""
        bits = [1 << i for i in range(left.bit_length()) if left >> i & 1]
        for count in range(len(bits), 1, -1):
            for chosen in combinations(bits, count):
                labels = self._of(sum(chosen))
                if labels is not None:
                    return sum(chosen), labels
        return None

    def _of(self, mask: int) -> dict[int, Label] | None:
        """The labels by which the tasks `mask` share the component; None where they do not."""
        groups = {s.index: label(self._streams, s, mask) for s in self._component}
        labels = {index: found for index, found in groups.items() if len(found) > 1}
        if self._streams.mask_of([g for found in labels.values() for g in found]) != mask:
            return None
        streams = [s for s in self._component if s.index in labels]
        trial = {**self._shared, **{index: (found,) for index, found in labels.items()}}
        if not all(self._writable(s, labels[s.index], trial) for s in streams):
            return None
        return labels if all(self._allowed(s, labels[s.index]) for s in streams) else None

    def _writable(self, stream: Stream, groups: Label, trial: Stage) -> bool:
        return all(self._readable(place, groups, trial) for place in stream.makers if place.holding(groups))

    def _readable(self, place: Place, groups: Label, trial: Stage) -> bool:
        mask = place.mask_of(groups)
        read = [s.site.operands[int(place.role is Role.TABLE)] for s in place.holding(groups)]
        common = [_common(self._streams, v, mask, trial) for v in read]
        if place.role is Role.RECURRENT or self._complete:  # what it read stays, or nothing is fitted to the rest
            return all(common) and all(_complete(self._streams, v, mask, trial) for v in read)
        return any(common)


def label(streams: Streams, stream: Stream, mask: int) -> Label:
    """The groups of a stream that one label of the tasks `mask` can hold: of each task the first."""
    chosen: list[int] = []
    for group in stream.groups:
        own = streams.group_masks[group]
        if own & mask == own:
            chosen.append(group)
            mask &= ~own
    return tuple(chosen)


def owners(stream: Stream, groups: Sequence[int]) -> Label:
    """The groups that can stand for a whole label: their networks have every layer that writes it."""
    return tuple(g for g in groups if stream.may_own(g, groups))


def lacking(streams: Streams, groups: Sequence[int]) -> Place | None:
    """A layer on the channels of a label, such as a depthwise convolution, that some of its networks have and
    others lack: a channel of the latter alone has no weights there. None where there is no such layer.
    """
    some = (p for p in streams.places if p.role is Role.EACH and 0 < len(p.holding(groups)) < len(groups))
    return next((p for p in some if _has_weights(streams, p)), None)


def _has_weights(streams: Streams, place: Place) -> bool:
    """Whether the layer has a parameter with entries of every channel."""
    constants = (v for _, v in place.sources[0].site.operands.present() if v.data is not None)
    return any(streams.channels.counts(v.axis(d)) for v in constants for d in range(v.rank))


def _complete(streams: Streams, value: Value, mask: int, shared: Stage) -> bool:
    """Whether all channels of a value are shared, or common to the tasks of `mask` as they are."""
    return all(
        group in _held(streams, group, shared) and streams.mask_of(_held(streams, group, shared)) & mask == mask
        for group in streams.channels.parts(value)
    )


def _held(streams: Streams, group: int, shared: Stage) -> tuple[int, ...]:
    """The groups that have one label with `group`, itself where nothing of its stream is shared."""
    labels = shared.get(streams.of_group[group].index, ())
    return next((groups for groups in labels if group in groups), (group,))


def _common(streams: Streams, value: Value, mask: int, shared: Stage) -> bool:
    """Whether some channels of a value serve all tasks of `mask`."""
    parts = streams.channels.parts(value)
    if not parts:
        return streams.alignment.masks[value.ref] & mask == mask
    origin = streams.origin(value.ref)
    assert isinstance(origin, tuple)
    made = [(s.mask, streams.channels.parts(s.site.results[origin[1]])) for s in streams.places[origin[0]].sources]
    held = [_held(streams, group, shared) for group in parts]
    return any(sum(m for m, there in made if not set(there).isdisjoint(h)) & mask == mask for h in held)


def _components(streams: Streams) -> list[tuple[Stream, ...]]:
    """Strongly connected streams (one reads the other, and back), what is read before what reads it."""
    reads = _reads(streams)
    count = len(streams.streams)
    edges = np.array([(b, a) for a, below in enumerate(reads) for b in below]).reshape(-1, 2)
    matrix = coo_array((np.ones(len(edges), np.int8), (edges[:, 0], edges[:, 1])), shape=(count, count))
    number, component = connected_components(matrix, directed=True, connection="strong")
    members = [[s for s in streams.streams if component[s.index] == c] for c in range(number)]
    above = [{int(component[b]) for s in found for b in reads[s.index]} - {c} for c, found in enumerate(members)]
    order: list[int] = []
    while len(order) < number:
        ready = [c for c in range(number) if c not in order and above[c] <= set(order)]
        order += sorted(ready, key=lambda c: min(_first(s) for s in members[c]))
    return [tuple(members[c]) for c in order]


def _first(stream: Stream) -> int:
    return stream.makers[0].index if stream.makers else -1


def _reads(streams: Streams) -> list[set[int]]:
    """Per stream the streams that layers which write it read."""
    found: list[set[int]] = [set() for _ in streams.streams]
    for stream in streams.streams:
        for place in stream.makers:
            for source in place.holding(stream.groups):
                parts = streams.channels.parts(source.site.operands[0])
                found[stream.index] |= {streams.of_group[g].index for g in parts}
    return found
