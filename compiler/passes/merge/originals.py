"""What the original networks compute on the calibration inputs: the targets of every fit, measured once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from compiler.calibration.moments import Cache, Kept, Moments, content_key, data_key
from compiler.calibration.tape import Feed, Tape
from compiler.ir.graph import Graph, NodeRef, Site
from compiler.ir.text import digest
from compiler.ir.types import ValueRef
from compiler.passes.linear import channel_dim
from compiler.passes.merge.channels import MAKERS, Role
from compiler.passes.merge.room import samples_at_once, widest
from compiler.passes.merge.rows import (
    CHUNK,
    Spread,
    held_out,
    made_rows,
    matrix,
    patch_rows,
    positions,
    rows_bytes,
    value_rows,
)
from compiler.passes.merge.solve import Measured, Measuring
from compiler.passes.merge.streams import Place, Source, Streams
from compiler.passes.prune.fit import reader, spread
from compiler.progress import counted

WIDEST = 4096
"""Columns beyond which partners' layers are measured one by one: a Gram matrix of so many takes 130 MB."""


class Pooled:
    """Moments of the values that several partners' layers read, side by side, with what each of them makes."""

    def __init__(
        self, moments: Moments, sources: Sequence[Source], sizes: Sequence[int], outputs: Sequence[int]
    ) -> None:
        self._moments = moments
        read = list(dict.fromkeys(s.site.operands[0].ref for s in sources))
        starts = np.cumsum([0, *sizes[:-1]])
        spans = {r: (int(at), n) for r, at, n in zip(read, starts, sizes, strict=True)}
        self._spans = {s.ref: spans[s.site.operands[0].ref] for s in sources}
        wanted = np.cumsum([0, *outputs[:-1]])
        self._targets = {s.ref: (int(at), n) for s, at, n in zip(sources, wanted, outputs, strict=True)}

    def start(self, source: Source) -> int | None:
        """First column of what a layer reads; None where it was not measured here."""
        return self._spans[source.ref][0] if source.ref in self._spans else None

    def columns(self, source: Source) -> np.ndarray:
        """The columns of what a layer reads."""
        start, size = self._spans[source.ref]
        return np.arange(start, start + size)

    def own(self, source: Source) -> Moments:
        """Moments of one layer alone."""
        start, size = self._targets[source.ref]
        return self._moments.select(self.columns(source), np.arange(start, start + size))

    def covariances(self, source: Source) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Covariance of all columns, their covariance with one layer's results, and these results' variances."""
        start, size = self._targets[source.ref]
        g, c, power = self._moments.central()
        return g[0], c[0][:, start : start + size], power[0][start : start + size]


def contracted(site: Site) -> int:
    """Columns of a layer's patches."""
    return int(matrix(site).shape[0])


class Originals:
    """Sampled results of layers, statistics of normalised inputs, features for matching, outputs of every task."""

    def __init__(self, graph: Graph, streams: Streams, feeds: Sequence[Feed], cache: Path | None = None) -> None:
        self._streams = streams
        self.feeds = feeds
        self.targets: dict[NodeRef, np.ndarray] = {}
        """Layer or convolution per channel -> sampled results [rows, outputs]."""
        self.spreads: dict[NodeRef, tuple[np.ndarray, np.ndarray]] = {}
        """BatchNormalization -> mean and variance of its input per channel."""
        self.pooled: dict[NodeRef, Pooled] = {}
        """Layer -> moments of what it and its partners read with what they make, over the samples that are
        fitted."""
        self.features: dict[int, dict[int, np.ndarray]] = {}
        """Place -> group -> [rows, channels] of its result, at the last places where groups can be compared."""
        self.outputs: dict[ValueRef, np.ndarray] = {}
        """Task output -> its value on all samples."""
        kept = Kept(Cache(cache), self._key(graph) if cache is not None else "")
        made = _Walk(graph, streams, feeds, compared(streams))
        if not kept.complete:
            made.run()
        self._gather(kept, made)
        kept.store()

    @property
    def samples(self) -> int:
        """How many inputs there are."""
        return len(self.feeds)

    def _key(self, graph: Graph) -> str:
        """The digest of everything that the measurements depend on."""
        places = [(p.role.value, [(str(s.ref), s.groups) for s in p.sources]) for p in self._streams.places]
        return content_key("merge originals 2", digest(graph), repr(places), data_key(self.feeds))

    def _gather(self, kept: Kept, made: _Walk) -> None:
        for value in self._streams.graph.outputs:
            name = f"output {value.ref}"
            self.outputs[value.ref] = kept(name, partial(made.rows, name))
        meeting = compared(self._streams)
        for place in self._streams.places:
            for source in place.sources:
                ref = source.ref
                if measured(place.role, source.site):
                    self.targets[ref] = kept(f"target {ref}", partial(made.rows, f"target {ref}"))
                if normalises(place.role, source.site):
                    mean, variance = kept(f"spread {ref}", partial(made.spread, ref))
                    self.spreads[ref] = mean, variance
                for group in (g for g in source.groups if g in meeting.get(place.index, ())):
                    rows = kept(f"features {ref}", partial(made.rows, f"features {ref}"))
                    self.features.setdefault(place.index, {})[group] = _columns(
                        rows, single(self._streams, source, group)
                    )
            for pool in pools(place):
                moments = kept.moments(f"moments {pool.name}", partial(made.moments, pool.name))
                outputs = [self.targets[s.ref].shape[1] for s in pool.sources]
                pooled = Pooled(moments, pool.sources, [*pool.read.values()], outputs)
                self.pooled |= {s.ref: pooled for s in pool.sources}

    def own(self, source: Source) -> Moments:
        """Moments of what one layer reads with what it makes."""
        return self.pooled[source.ref].own(source)


def _columns(rows: np.ndarray, at: np.ndarray | None) -> np.ndarray:
    """Some columns; the rows themselves where these are all in their order."""
    every = at is None or np.array_equal(at, np.arange(rows.shape[1]))
    return rows if every else np.asarray(rows[:, at])


def measured(role: Role, site: Site) -> bool:
    """Whether the results of a node are fitted to."""
    return role is Role.LAYER or is_depthwise(site, role)


def normalises(role: Role, site: Site) -> bool:
    """Whether a node has statistics of its input."""
    return role is Role.EACH and site.node.op.name == "BatchNormalization"


@dataclass(frozen=True, slots=True)
class Pool:
    """Layers of a place that are measured together. `read`: what they read, with the columns of its patches."""

    sources: Sequence[Source]
    read: Mapping[ValueRef, int]

    @property
    def name(self) -> str:
        """That of the first layer."""
        return str(self.sources[0].ref)


def pools(place: Place) -> list[Pool]:
    """The layers of a place together, or one by one where that would be too wide."""
    if place.role is not Role.LAYER:
        return []
    sizes = {s.site.operands[0].ref: contracted(s.site) for s in place.sources}
    together = [place.sources] if sum(sizes.values()) <= WIDEST else [(s,) for s in place.sources]
    return [Pool(sources, {r: sizes[r] for r in (s.site.operands[0].ref for s in sources)}) for sources in together]


def compared(streams: Streams) -> dict[int, set[int]]:
    """Place -> groups that can be compared there, as their channels have one entry each. Only the last place counts
    where the same groups meet: those that a later one makes superfluous are left out.
    """
    found: dict[int, set[int]] = {}
    for place in streams.places:
        if place.role in (Role.EACH, *MAKERS) and len(place.sources) > 1:
            groups = {g for s in place.sources for g in s.groups if single(streams, s, g) is not None}
            found = {i: earlier for i, earlier in found.items() if not earlier <= groups}
            if groups:
                found[place.index] = groups
    return found


def single(streams: Streams, source: Source, group: int) -> np.ndarray | None:
    """The entries of a group's channels in a result, where each has one there: [channels]."""
    result = source.site.results[0]
    dim = streams.channels.channel_dim(result)
    if dim is None:
        return None
    entries = streams.group(group).entries(result.axis(dim))
    return entries[:, 0] if entries.shape[1] == 1 else None


def kept_bytes(streams: Streams) -> int:
    """Bytes per sample of what `Originals` keep, and of the outputs of a merged network beside."""
    meeting, rows = compared(streams), 0
    for place in streams.places:
        for source in place.sources:
            result = source.site.results[0]
            if measured(place.role, source.site):
                rows += rows_bytes(result, channel_dim(source.site, result))
            dim = streams.channels.channel_dim(result)
            if dim is not None and not meeting.get(place.index, set()).isdisjoint(source.groups):
                rows += rows_bytes(result, dim)
    return rows + 2 * sum(v.type.bytes for v in streams.graph.outputs)


# ---------------------------------------------------------------------- measuring
class _Walk:
    """The networks on some samples at a time, from the inputs to the outputs: sums, sampled rows and outputs stay.

    `compared`: place -> groups whose rows are kept there.
    """

    def __init__(
        self, graph: Graph, streams: Streams, feeds: Sequence[Feed], compared: Mapping[int, set[int]]
    ) -> None:
        self._graph, self._streams, self._feeds, self._compared = graph, streams, feeds, compared
        self._rows: dict[str, list[np.ndarray]] = {}
        self._spreads: dict[NodeRef, Spread] = {}
        self._sums: dict[str, _Sums] = {}

    def rows(self, name: str) -> np.ndarray:
        """What was kept under a name, of all samples; it is handed over."""
        return np.concatenate(self._rows.pop(name))

    def spread(self, ref: NodeRef) -> np.ndarray:
        """[2, channels]: mean and variance of what a node reads."""
        return self._spreads[ref].result()

    def moments(self, name: str) -> Moments:
        """Of the samples that are fitted, of a pool."""
        return self._sums.pop(name).measured().train

    def run(self) -> None:
        """All samples."""
        step = samples_at_once(widest(self._graph, [[s.ref for s in p.sources] for p in self._streams.places]))
        steps = [(i, p) for i in range(0, len(self._feeds), step) for p in self._streams.places]
        readers = {v.ref: len(self._graph.uses(v.ref)) for v in self._graph.values()}
        for ref in (v.ref for v in self._graph.outputs if self._graph.producer(v.ref) is None):
            every = Tape(self._graph, self._feeds)  # constants, which folding leaves of a network
            self._rows[f"output {ref}"] = [every.read(ref)]
        tape, left = Tape(self._graph, ()), readers
        for first, place in counted("merge: layers measured", steps):
            if place is self._streams.places[0]:
                tape, left = Tape(self._graph, self._feeds[first : first + step], first=first), dict(readers)
            self._measure(tape, place)
            _release(tape, place, left)

    def _measure(self, tape: Tape, place: Place) -> None:
        tape.run([s.site.node for s in place.sources])
        for source in place.sources:
            site, ref = source.site, source.ref
            rows: dict[object, np.ndarray] = {}
            if measured(place.role, site):
                kind = channel_dim(site, site.results[0]), reader(site).pick
                rows[kind] = made_rows(tape, site)
                self._keep(f"target {ref}", rows[kind])
            if not self._compared.get(place.index, set()).isdisjoint(source.groups):
                dim = self._streams.channels.channel_dim(site.results[0])
                assert dim is not None
                known = rows.get((dim, spread))
                self._keep(
                    f"features {ref}",
                    value_rows(tape, site.results[0].ref, dim) if known is None else known,
                )
            if normalises(place.role, site):
                self._spreads.setdefault(ref, Spread()).add_all(tape, site.operands[0].ref)
            for value in site.results:
                if self._graph.is_output(value.ref):
                    self._keep(f"output {value.ref}", tape.read(value.ref))
        for pool in pools(place):
            self._pool(tape, pool)

    def _keep(self, name: str, rows: np.ndarray) -> None:
        self._rows.setdefault(name, []).append(rows)

    def _pool(self, tape: Tape, pool: Pool) -> None:
        site = pool.sources[0].site
        if pool.name not in self._sums:
            self._sums[pool.name] = _Sums(held_out(len(self._feeds), _count(site)))
        y = np.concatenate([self._rows[f"target {s.ref}"][-1] for s in pool.sources], axis=1)
        end, at = tape.first + tape.samples, 0
        whole = tape.samples > CHUNK or not end % CHUNK or end == len(self._feeds)
        for x in patch_rows(tape, site, list(pool.read)):
            self._sums[pool.name].add(x, y[at : at + x.shape[1]], whole)
            at += x.shape[1]


class _Sums:
    """Moments of rows that come in chunks, or in parts of one. `held`: per row whether it is held out."""

    def __init__(self, held: np.ndarray) -> None:
        self._held, self._made, self._at = held, Measuring(), 0
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, x: np.ndarray, y: np.ndarray, whole: bool) -> None:
        """Inputs [1, rows, columns] and targets [rows, outputs]. `whole`: a chunk ends here."""
        self._waiting.append((x, y))
        if whole:
            parts = self._waiting
            x, y = (
                parts[0]
                if len(parts) == 1
                else (
                    np.concatenate([x for x, _ in parts], axis=1),
                    np.concatenate([y for _, y in parts]),
                )
            )
            self._waiting = []
            self._made.add(x, y[None], self._held[self._at : self._at + len(y)])
            self._at += len(y)

    def measured(self) -> Measured:
        """What came in."""
        return self._made.measured()


def _release(tape: Tape, place: Place, left: dict[ValueRef, int]) -> None:
    """Forget values that no later place reads. `left`: how many nodes have still to read each."""
    for source in place.sources:
        for _, value in source.site.operands.present():
            left[value.ref] -= 1
    values = [v for s in place.sources for v in (*s.site.results, *(o for _, o in s.site.operands.present()))]
    tape.drop(*(v.ref for v in values if not left[v.ref]))


def _count(site: Site) -> int:
    """Output positions per sample of a layer."""
    result = site.results[0]
    return positions(result, channel_dim(site, result))


def is_depthwise(site: Site, role: Role) -> bool:
    """Whether a node that works on each channel alone is a convolution: its taps can be fitted per channel."""
    return role is Role.EACH and site.node.op.name == "Conv" and site.operands[1].shape[0] == site.int("group")
