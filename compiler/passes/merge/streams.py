"""Layers of a family as places, and the groups of channels that belong together across networks as streams.

A place is a position of the alignment whose nodes can stand for each other: same role, operands from the same
places, maps of the same size. Groups that meet at a place form a stream: the channels of one layer of the family,
or of one residual stream. Labels are given per stream, so that a sum always finds equal labels on both sides. A
stream has one group of each network at most: where one network adds what another one keeps apart, only the first
of the two layers meets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from compiler.ir.graph import Graph, NodeRef, Site, Value
from compiler.ir.text import parameter_digest
from compiler.ir.types import ValueRef
from compiler.passes.merge.channels import MAKERS, ChannelMap, Channels, Role
from compiler.passes.merge.kinds import COMMUTATIVE
from compiler.passes.merge.match import Alignment, Member, Position

MEETING = (Role.EACH, *MAKERS)
"""Roles of nodes at which channels of several networks become channels of one stream."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One network's node at a place. `groups`: on the channel axis of its (first) result; none if read whole."""

    site: Site
    mask: int
    groups: tuple[int, ...]

    @property
    def ref(self) -> NodeRef:
        """Name of the node."""
        return self.site.node.ref


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Nodes of different networks that one node per label can replace."""

    index: int
    role: Role
    sources: tuple[Source, ...]

    def holding(self, groups: Sequence[int]) -> tuple[Source, ...]:
        """The sources one of whose groups is among `groups`."""
        return tuple(s for s in self.sources if not set(s.groups).isdisjoint(groups))

    def mask_of(self, groups: Sequence[int]) -> int:
        """Tasks that need here what may be read by `groups`."""
        return sum(s.mask for s in self.holding(groups))


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """Groups of corresponding channels, one or more networks. `makers`: the places of layers that write them."""

    index: int
    groups: tuple[int, ...]
    makers: tuple[Place, ...]

    def may_own(self, owner: int, groups: Sequence[int]) -> bool:
        """Whether channels of group `owner` can stand for those of `groups`: its network has every layer that
        writes any of them.
        """
        return all(not p.holding(groups) or p.holding([owner]) for p in self.makers)


class Streams:
    """Places in an order in which every node comes after what it reads, and all streams."""

    def __init__(self, graph: Graph, alignment: Alignment, channels: ChannelMap) -> None:
        self.graph, self.alignment, self.channels = graph, alignment, channels
        self._made = {v.ref: (s.node.ref, i) for s in graph.sites() for i, v in enumerate(s.results)}
        self.group_masks = self._group_masks()
        self._met: dict[int, tuple[int, ...]] = {g: (g,) for g in self.group_masks}
        """Group -> all that it has met, ascending."""
        self._place_of: dict[NodeRef, Place] = {}
        self.places = tuple(self._places())
        self.streams = tuple(self._streams())
        self.of_group: Mapping[int, Stream] = {g: s for s in self.streams for g in s.groups}
        self._bundles = self._bundled()

    def group(self, index: int) -> Channels:
        """A group of channels."""
        return self.channels.groups[index]

    def place(self, ref: NodeRef) -> Place:
        """The place of a node."""
        return self._place_of[ref]

    def origin(self, value: ValueRef) -> tuple[int, int] | ValueRef:
        """Where a value comes from: (place, result number), or itself where no node makes it."""
        made = self._made.get(value)
        return value if made is None else (self._place_of[made[0]].index, made[1])

    def mask_of(self, groups: Sequence[int]) -> int:
        """Tasks whose networks have one of the groups."""
        mask = 0
        for group in groups:
            mask |= self.group_masks[group]
        return mask

    def bundle(self, groups: Sequence[int]) -> tuple[Stream, ...]:
        """The streams of some groups with all that share a value with them: labelled together or not at all."""
        wanted = {self._bundles[self.of_group[g].index] for g in groups}
        return tuple(s for s in self.streams if self._bundles[s.index] in wanted)

    # ------------------------------------------------------------------ places
    def _places(self) -> Iterator[Place]:
        count = 0
        for position in self.alignment.positions:
            for sources in self._split(position):
                place = Place(count, self.channels.roles[sources[0].ref], tuple(sources))
                self._place_of |= {s.ref: place for s in sources}
                yield place
                count += 1

    def _split(self, position: Position) -> list[list[Source]]:
        found: list[list[Source]] = []
        for member in position.members:
            source = self._source(member)
            homes = (g for g in found if all(self._interchangeable(source, s) for s in g))
            for home in homes:
                if (met := self._meeting(source, home[0])) is not None:
                    self._met = met
                    home.append(source)
                    break
            else:
                found.append([source])
        return found

    def _source(self, member: Member) -> Source:
        site = self.graph.site(member.node)
        return Source(site, member.mask, self.channels.parts(site.results[0]))

    def _interchangeable(self, a: Source, b: Source) -> bool:
        roles = self.channels.roles
        role = roles[a.ref]
        if role is not roles[b.ref] or role is Role.WHOLE:
            return False
        if len(a.groups) != len(b.groups) or not set(a.groups).isdisjoint(b.groups):
            return False
        if [self._map(v) for v in a.site.results] != [self._map(v) for v in b.site.results]:
            return False
        if role is Role.TABLE and a.site.operands[0].shape[0] != b.site.operands[0].shape[0]:
            return False
        if role is Role.EACH and self._fixed(a.site) != self._fixed(b.site):
            return False
        if role in (Role.LAYER, Role.RECURRENT):
            return self._reads_alike(a.site.operands[0], b.site.operands[0])
        return self._operands(a.site) == self._operands(b.site)

    def _reads_alike(self, a: Value, b: Value) -> bool:
        """Whether channels that have met have as many entries each in two values, or could not stand for each
        other there: one network may have put a channel into its value twice.
        """
        counts: dict[tuple[int, ...], set[int]] = {}
        for value in (a, b):
            for group in self.channels.parts(value):
                axis = value.axis(self.channels.channel_dim(value) or 0)
                counts.setdefault(self._met[group], set()).add(self.group(group).entries(axis).shape[1])
        return all(len(found) == 1 for found in counts.values())

    def _meeting(self, a: Source, b: Source) -> dict[int, tuple[int, ...]] | None:
        """What has met once two sources stand at one place; None where a network would have two groups in one
        stream.
        """
        met = dict(self._met)
        for one, other in zip(a.groups, b.groups, strict=True) if self.channels.roles[a.ref] in MEETING else ():
            if met[one] == met[other]:
                continue
            if self.mask_of(met[one]) & self.mask_of(met[other]):
                return None
            both = tuple(sorted((*met[one], *met[other])))
            met |= dict.fromkeys(both, both)
        return met

    def _map(self, value: Value) -> tuple[object, ...]:
        """The axis of channels, the sizes of the others, and how many entries a channel of each group has."""
        dim = self.channels.channel_dim(value)
        sizes = (None if d == dim else n for d, n in enumerate(value.shape))
        groups = map(self.group, self.channels.parts(value))
        return dim, *sizes, *(g.entries(value.axis(dim or 0)).shape[1] for g in groups)

    def _fixed(self, site: Site) -> list[str]:
        """Digests of float parameters without entries of channels: a merged node has one for all networks."""
        floats = (v for _, v in site.operands.present() if v.data is not None and v.dtype.is_float)
        return [
            parameter_digest(v) for v in floats if not any(self.channels.counts(v.axis(d)) for d in range(v.rank))
        ]

    def _operands(self, site: Site) -> list[str]:
        found = [str(self.origin(v.ref)) for _, v in site.operands.present() if v.data is None]
        return sorted(found) if site.node.op.name in COMMUTATIVE else found

    # ------------------------------------------------------------------ streams
    def _streams(self) -> Iterator[Stream]:
        makers = [p for p in self.places if p.role in MAKERS]
        for index, groups in enumerate(dict.fromkeys(self._met.values())):
            yield Stream(index, groups, tuple(p for p in makers if p.holding(groups)))

    def _bundled(self) -> dict[int, int]:
        """Stream -> number of its bundle: streams side by side in one value that a layer makes or a node cuts."""
        together = []
        for place in self.places:
            for source in place.sources:
                site = source.site
                values = [*site.results] if place.role in MAKERS else []
                if place.role is Role.ROUTE and site.node.op.name != "Concat":
                    values.append(site.operands[0])
                parts = [self.channels.parts(v) for v in values]
                together += [[self.of_group[g].index for g in groups] for groups in parts]
        classes = _classes([s.index for s in self.streams], together)
        return {stream: number for number, streams in enumerate(classes) for stream in streams}

    def _group_masks(self) -> dict[int, int]:
        masks = dict.fromkeys((g.index for g in self.channels.groups if g.split), 0)
        for source in (self._source(m) for p in self.alignment.positions for m in p.members):
            for group in source.groups:
                masks[group] |= source.mask
        return masks


def _classes(items: Sequence[int], together: Sequence[Sequence[int]]) -> list[list[int]]:
    """The finest partition of `items` in which whatever stands together is together, in order of first members."""
    leader = {item: item for item in items}

    def find(item: int) -> int:
        while leader[item] != item:
            item = leader[item]
        return item

    for first, *others in (group for group in together if group):
        for other in others:
            low, high = sorted((find(first), find(other)))
            leader[high] = low
    found: dict[int, list[int]] = {}
    for item in items:
        found.setdefault(find(item), []).append(item)
    return list(found.values())
