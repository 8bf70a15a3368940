"""What merged nodes can read: values of the merged graph, with the channels that each of them holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from compiler.ir.graph import Value
from compiler.ir.types import Axis, ValueRef
from compiler.passes.merge.channels import ChannelMap
from compiler.passes.merge.labels import Slab, Unit, own, task_order
from compiler.passes.merge.streams import Source, Streams


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A value of the merged graph. `mask`: the tasks that may read it.

    `slabs` are the channels along axis `dim`; slab j's channel r has entries `columns[j][r]` there. A value that is
    read whole has no slabs, and `size` entries along whichever axis its reader contracts.
    """

    value: ValueRef
    mask: int
    slabs: tuple[Slab, ...] = ()
    columns: tuple[np.ndarray, ...] = ()
    original: bool = False
    """Whether it is the original value itself, read as it always was."""
    starts: Mapping[ValueRef, int] = field(default_factory=dict)
    """Where a value that is read whole stands in original values that hold channels beside it."""


def original_entry(streams: Streams, source: Source, value: Value) -> Entry:
    """An untouched value of one network."""
    dim = streams.channels.channel_dim(value)
    if dim is None:
        return Entry(value.ref, source.mask, original=True)
    groups = streams.channels.parts(value)
    slabs = tuple(private_slab(streams, g) for g in groups)
    columns = tuple(streams.group(g).entries(value.axis(dim)) for g in groups)
    return Entry(value.ref, source.mask, slabs, columns, original=True)


def counterparts(
    channels: ChannelMap, axis: Axis, entry: Entry, size: int
) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """What an entry of `size` positions holds in place of a network's own value with channels on `axis`:
    (positions, own positions on `axis`, factor).
    """
    positions, start = np.arange(size), entry.starts.get(axis.owner)  # type: ignore[arg-type]
    if entry.original and entry.value == axis.owner:
        return [(positions, positions, 1.0)]
    if start is not None:
        return [(positions, start + positions, 1.0)]
    found = []
    for slab, places in zip(entry.slabs, entry.columns, strict=True):
        for channel, at in zip(slab.channels, places, strict=True):
            for unit, slope in zip(channel.members, channel.slopes, strict=True):
                own = channels.groups[unit.group].atoms[unit.channel].entries.get(axis)
                if own is not None:
                    found.append((at, own, slope))
    return found


def private_slab(streams: Streams, group: int) -> Slab:
    """All channels of one group, for its own network."""
    channels = tuple(own(Unit(group, i)) for i in range(streams.group(group).width))
    return Slab(streams.of_group[group].index, (group,), channels)


def ordered(lists: Sequence[Sequence[Entry]]) -> list[Entry]:
    """The entries of several lists once each, larger task sets first."""
    unique = {id(e): e for entries in lists for e in entries}
    numbers = {key: i for i, key in enumerate(unique)}
    return sorted(unique.values(), key=lambda e: (*task_order(e.mask), numbers[id(e)]))
