"""What the original networks compute on the calibration inputs: the targets of every fit, measured once."""

from __future__ import annotations

from collections.abc import Sequence
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
from compiler.passes.merge.rows import held_out, made_rows, matrix, patch_rows, positions, value_rows
from compiler.passes.merge.solve import measure
from compiler.passes.merge.streams import Place, Source, Streams
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
        """Place -> group -> [rows, channels] of its result, at places where groups can be compared."""
        self.outputs: dict[ValueRef, np.ndarray] = {}
        """Task output -> its value on all samples."""
        self._kept = Kept(Cache(cache), self._key(graph) if cache is not None else "")
        self._walk(Tape(graph, feeds))
        self._kept.store()

    @property
    def samples(self) -> int:
        """How many inputs there are."""
        return len(self.feeds)

    def _key(self, graph: Graph) -> str:
        """The digest of everything that the measurements depend on."""
        places = [(p.role.value, [(str(s.ref), s.groups) for s in p.sources]) for p in self._streams.places]
        return content_key("merge originals 1", digest(graph), repr(places), data_key(self.feeds))

    def _walk(self, tape: Tape) -> None:
        left = {v.ref: len(tape.graph.uses(v.ref)) for v in tape.graph.values()}
        unmade = [v.ref for v in tape.graph.outputs if tape.graph.producer(v.ref) is None]
        self.outputs |= {ref: tape.read(ref) for ref in unmade}  # constants, which folding leaves of a network
        for place in counted("merge: layers measured", self._streams.places):
            if not self._kept.complete:
                tape.run([s.site.node for s in place.sources])
            for source in place.sources:
                self._measure(tape, place, source)
            if place.role is Role.LAYER:
                self._pool(tape, place)
            for source in place.sources:
                for value in source.site.results:
                    if tape.graph.is_output(value.ref):
                        self.outputs[value.ref] = self._kept(f"output {value.ref}", partial(tape.read, value.ref))
                for _, value in source.site.operands.present():
                    left[value.ref] -= 1
                    if not left[value.ref]:
                        tape.drop(value.ref)

    def _measure(self, tape: Tape, place: Place, source: Source) -> None:
        site = source.site
        if place.role is Role.LAYER or is_depthwise(site, place.role):
            self.targets[source.ref] = self._kept(f"target {source.ref}", partial(made_rows, tape, site))
        if place.role is Role.EACH and site.node.op.name == "BatchNormalization":
            mean, variance = self._kept(f"spread {source.ref}", partial(_spread, tape, site.operands[0].ref))
            self.spreads[source.ref] = mean, variance
        if place.role in (Role.EACH, *MAKERS) and len(place.sources) > 1:
            self._features(tape, place, source)

    def own(self, source: Source) -> Moments:
        """Moments of what one layer reads with what it makes."""
        return self.pooled[source.ref].own(source)

    def _pool(self, tape: Tape, place: Place) -> None:
        """Measure the layers of a place together, or one by one where that would be too wide."""
        sizes = {s.site.operands[0].ref: contracted(s.site) for s in place.sources}
        together = [place.sources] if sum(sizes.values()) <= WIDEST else [(s,) for s in place.sources]
        for sources in together:
            site = sources[0].site
            read = list(dict.fromkeys(s.site.operands[0].ref for s in sources))
            targets = np.concatenate([self.targets[s.ref] for s in sources], axis=1)

            def made(site: Site = site, read: list[ValueRef] = read, y: np.ndarray = targets) -> Moments:
                return measure(patch_rows(tape, site, read), y[None], held_out(self.samples, _count(site))).train

            moments = self._kept.moments(f"moments {sources[0].ref}", made)
            pooled = Pooled(
                moments, sources, [sizes[r] for r in read], [self.targets[s.ref].shape[1] for s in sources]
            )
            self.pooled |= {s.ref: pooled for s in sources}

    def _features(self, tape: Tape, place: Place, source: Source) -> None:
        """Rows of a result whose channels have one entry each."""
        result = source.site.results[0]
        dim = self._streams.channels.channel_dim(result)
        if dim is None:
            return
        for group in source.groups:
            entries = self._streams.group(group).entries(result.axis(dim))
            if entries.shape[1] == 1:
                rows = self._kept(f"features {source.ref}", partial(value_rows, tape, result.ref, dim))
                self.features.setdefault(place.index, {})[group] = rows[:, entries[:, 0]]


def _spread(tape: Tape, ref: ValueRef) -> np.ndarray:
    """[2, channels]: mean and variance of a value per channel."""
    x = np.moveaxis(tape.read(ref), 1, -1)
    x = x.reshape(-1, x.shape[-1]).astype(np.float64)
    return np.stack([x.mean(axis=0), x.var(axis=0)])


def _count(site: Site) -> int:
    """Output positions per sample of a layer."""
    result = site.results[0]
    return positions(result, channel_dim(site, result))


def is_depthwise(site: Site, role: Role) -> bool:
    """Whether a node that works on each channel alone is a convolution: its taps can be fitted per channel."""
    return role is Role.EACH and site.node.op.name == "Conv" and site.operands[1].shape[0] == site.int("group")
