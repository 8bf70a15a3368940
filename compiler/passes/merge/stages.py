"""Streams in the order in which sharing can reach them: a stage can be shared whole once everything it reads is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from compiler.ir.graph import Value
from compiler.passes.merge.channels import Role
from compiler.passes.merge.streams import Place, Stream, Streams

Stage = tuple[Stream, ...]
"""Streams that feed each other, such as a residual stream and the inner layers of its blocks."""


def stages(streams: Streams) -> tuple[Stage, ...]:
    """The stages that can be shared whole by all networks that have them, each behind what it reads.

    A stage is left out, with everything behind it, where it has one network only, where no network has every layer
    that writes it, or where its layers read nothing that is common to all of its tasks.
    """
    components = _components(streams)
    shared: dict[int, Stream] = {}
    found = []
    for stage in components:
        trial = shared | {s.index: s for s in stage}
        if all(_shareable(streams, s, trial) for s in stage):
            shared = trial
            found.append(stage)
    return tuple(found)


def label(streams: Streams, stream: Stream) -> tuple[int, ...]:
    """The groups of a stream that one label can hold: of each task the first."""
    chosen: list[int] = []
    mask = 0
    for group in stream.groups:
        if not streams.group_masks[group] & mask:
            chosen.append(group)
            mask |= streams.group_masks[group]
    return tuple(chosen)


def owners(streams: Streams, stream: Stream) -> tuple[int, ...]:
    """The groups that can stand for the whole label: their networks have every layer that writes it."""
    groups = label(streams, stream)
    return tuple(g for g in groups if stream.may_own(g, groups))


def written(streams: Streams, stream: Stream) -> bool:
    """Whether all networks of a label have every layer that writes the stream."""
    return owners(streams, stream) == label(streams, stream)


def lacking(streams: Streams, stream: Stream) -> Place | None:
    """A layer on the stream's channels, such as a depthwise convolution, that some of its networks have and others
    lack: a channel of the latter alone has no weights there. None where there is no such layer.
    """
    groups = label(streams, stream)
    some = (p for p in streams.places if p.role is Role.EACH and 0 < len(p.holding(groups)) < len(groups))
    return next((p for p in some if _has_weights(streams, p)), None)


def _has_weights(streams: Streams, place: Place) -> bool:
    """Whether the layer has a parameter with entries of every channel."""
    constants = (v for _, v in place.sources[0].site.operands.present() if v.data is not None)
    return any(streams.channels.counts(v.axis(d)) for v in constants for d in range(v.rank))


def _shareable(streams: Streams, stream: Stream, shared: dict[int, Stream]) -> bool:
    groups = label(streams, stream)
    if len(groups) < 2 or not owners(streams, stream):
        return False
    return all(_readable(streams, place, groups, shared) for place in stream.makers if place.holding(groups))


def _readable(streams: Streams, place: Place, groups: Sequence[int], shared: dict[int, Stream]) -> bool:
    mask = place.mask_of(groups)
    read = [s.site.operands[int(place.role is Role.TABLE)] for s in place.holding(groups)]
    if place.role is Role.RECURRENT:  # its weights are not fitted to what is left of what it read
        return all(_common(streams, v, mask, shared) and _complete(streams, v, mask, shared) for v in read)
    return any(_common(streams, v, mask, shared) for v in read)


def _complete(streams: Streams, value: Value, mask: int, shared: dict[int, Stream]) -> bool:
    """Whether all channels of a value are shared, or common to the tasks of `mask` as they are."""
    return all(
        group in _held(streams, group, shared) and streams.mask_of(_held(streams, group, shared)) & mask == mask
        for group in streams.channels.parts(value)
    )


def _held(streams: Streams, group: int, shared: dict[int, Stream]) -> tuple[int, ...]:
    """The groups that have one label with `group`, itself where nothing of its stream is shared."""
    stream = shared.get(streams.of_group[group].index)
    return (group,) if stream is None else label(streams, stream)


def _common(streams: Streams, value: Value, mask: int, shared: dict[int, Stream]) -> bool:
    """Whether some channels of a value serve all tasks of `mask`."""
    parts = streams.channels.parts(value)
    if not parts:
        return streams.alignment.masks[value.ref] & mask == mask
    origin = streams.origin(value.ref)
    assert isinstance(origin, tuple)
    place = streams.places[origin[0]]
    return any(place.mask_of(_held(streams, group, shared)) & mask == mask for group in parts)


def _components(streams: Streams) -> list[Stage]:
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
