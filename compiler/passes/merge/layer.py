"""One layer of the family as a least-squares problem, for any label: what can be read there, and what is wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from compiler.calibration.tape import Tape
from compiler.passes.linear import channel_dim
from compiler.passes.merge.channels import ChannelMap, layer_axes
from compiler.passes.merge.emit import present_members
from compiler.passes.merge.entries import Entry, counterparts
from compiler.passes.merge.labels import Channel, Slab
from compiler.passes.merge.originals import Originals
from compiler.passes.merge.rows import bias, held_out, matrix, patch_rows, positions, taps
from compiler.passes.merge.solve import Fit, Freedom, Measured, measure, solve
from compiler.passes.merge.streams import Place, Source

PriorOf = Callable[["LayerFit", Sequence[Source], Slab, Sequence[Entry], np.ndarray], np.ndarray]
"""Replaces the weights that a fit of one slab starts from."""


def as_is(
    fit: LayerFit, sources: Sequence[Source], slab: Slab, entries: Sequence[Entry], prior: np.ndarray
) -> np.ndarray:
    """The original weights, placed where their inputs are."""
    return prior


class LayerFit:
    """The moments of everything that can be read at a place with everything its layers computed originally."""

    def __init__(
        self, tape: Tape, channels: ChannelMap, place: Place, entries: Sequence[Entry], originals: Originals
    ) -> None:
        self._channels, self._place, self._entries = channels, place, list(entries)
        site = place.sources[0].site
        self._taps = taps(site)
        self._starts = self._numbered(tape, channel_dim(site, site.operands[0]))
        self._offsets: dict[object, int] = {}
        wanted: list[np.ndarray] = []
        for source in place.sources:
            self._offsets[source.ref] = sum(a.shape[1] for a in wanted)
            wanted.append(originals.targets[source.ref])
        targets = np.concatenate(wanted, axis=1)
        result = site.results[0]
        count = positions(result, channel_dim(site, result))
        held = held_out(originals.samples, count)
        rows = patch_rows(tape, site, [e.value for e in self._entries])
        self._measured = measure(rows, targets[None], held)
        self._own = originals.own
        self._biases = np.concatenate([_bias_of(s, t.shape[1]) for s, t in zip(place.sources, wanted, strict=True)])

    @property
    def rows(self) -> int:
        """Rows that weights are fitted to."""
        return self._measured.train.rows

    def solve_source(self, source: Source, entries: Sequence[Entry], constant: bool, freedom: Freedom) -> Fit:
        """Weights for everything that one network's layer computed, from `entries`."""
        columns = self._columns(entries)
        start, width = self._span(source)
        mix = np.zeros((len(self._biases), width))
        mix[start : start + width] = np.eye(width)
        prior = self._prior(source, entries)
        offset = self._biases[start : start + width][None] if constant else None
        return solve(self._part(columns, mix), prior[None], offset, freedom)

    def solve_slab(
        self,
        sources: Sequence[Source],
        slab: Slab,
        entries: Sequence[Entry],
        freedom: Freedom,
        prior_of: PriorOf = as_is,
    ) -> tuple[Fit, np.ndarray]:
        """Weights for the channels of a slab, and where these lie among the results: [channels, entries each].

        `prior_of` may replace the weights that the fit starts from.
        """
        columns = self._columns(entries)
        mix, places = self._mix(sources, slab)
        prior = prior_of(self, sources, slab, entries, self._stacked_prior(entries) @ mix)
        return solve(self._part(columns, mix), prior[None], (self._biases @ mix)[None], freedom), places

    def reach(self, sources: Sequence[Source], channels: Sequence[Channel], entries: Sequence[Entry]) -> np.ndarray:
        """Held-out residual of each channel if it were fitted from `entries`: [channels]."""
        slab = Slab(-1, channels[0].groups, tuple(channels))
        fit, places = self.solve_slab(sources, slab, entries, Freedom.WEIGHTS)
        return np.asarray(fit.residuals[0][places].max(axis=1))

    # ------------------------------------------------------------------ what the original layers did
    def own_columns(self, source: Source, entries: Sequence[Entry]) -> np.ndarray:
        """For every column of `entries` the column of the source's own weight it stands for, -1 for none."""
        found = []
        for entry in entries:
            part = np.full(self._starts[id(entry)][1], -1)
            for column, own, _ in self._counterparts(source, entry):
                part[column] = own
            found.append(part)
        return np.concatenate(found)

    def incoming(self, source: Source, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(second moments of some own inputs with a constant 1 behind them, the weights and bias that belong)."""
        moments = self._own(source)
        mean = moments.x[0, columns] / moments.rows
        second = moments.xx[0][np.ix_(columns, columns)] / moments.rows
        whole = np.block([[second, mean[:, None]], [mean[None, :], np.ones((1, 1))]])
        start, width = self._span(source)
        bias_row = self._biases[start : start + width]
        return whole, np.concatenate([matrix(source.site)[columns], bias_row[None]])

    def outputs(self, source: Source, group: int) -> np.ndarray:
        """The results of a layer that are channels of a group: [channels, entries each]."""
        axes = layer_axes(source.site)
        assert axes is not None
        return self._channels.groups[group].entries(axes[1])

    def members(self, source: Source, slab: Slab) -> np.ndarray | None:
        """The results of the source's layer that are members of each channel of a slab, [channels, entries each];
        None where a channel has no member there.
        """
        found = [next((u for u in c.members if u.group in source.groups), None) for c in slab.channels]
        if None in found:
            return None
        return np.stack([self.outputs(source, u.group)[u.channel] for u in found if u is not None])

    def places(self, source: Source, slab: Slab) -> np.ndarray:
        """Where the entries of a slab's channels lie on the axis of a result, as the first ones of the source's
        group of that label would: [channels, entries each]."""
        group = next(g for g in source.groups if g in slab.groups)
        entries = self.outputs(source, group)[: len(slab.channels)]
        return np.searchsorted(np.sort(entries.reshape(-1)), entries)

    # ------------------------------------------------------------------ pieces
    def _part(self, columns: np.ndarray, mix: np.ndarray) -> Measured:
        return self._measured.select(columns, mix)

    def _span(self, source: Source) -> tuple[int, int]:
        """First target and number of targets of a source."""
        start = self._offsets[source.ref]
        later = [o for o in self._offsets.values() if o > start]
        return start, min(later, default=len(self._biases)) - start

    def _numbered(self, tape: Tape, channel: int) -> dict[int, tuple[int, int]]:
        """Entry -> (first column, number of columns)."""
        starts, at = {}, 0
        for entry in self._entries:
            size = tape.graph.value(entry.value).shape[channel] * self._taps
            starts[id(entry)] = (at, size)
            at += size
        return starts

    def _columns(self, entries: Sequence[Entry]) -> np.ndarray:
        spans = [self._starts[id(e)] for e in entries]
        return np.concatenate([np.arange(at, at + size) for at, size in spans])

    def _prior(self, source: Source, entries: Sequence[Entry]) -> np.ndarray:
        """A network's own weights at the columns that stand for what it read, zero at the others."""
        old = matrix(source.site)
        parts = [np.zeros((self._starts[id(e)][1], old.shape[1])) for e in entries]
        for entry, part in zip(entries, parts, strict=True):
            for column, own, slope in self._counterparts(source, entry):
                part[column] += slope * old[own]
        return np.concatenate(parts)

    def _stacked_prior(self, entries: Sequence[Entry]) -> np.ndarray:
        return np.concatenate([self._prior(s, entries) for s in self._place.sources], axis=1)

    def _counterparts(self, source: Source, entry: Entry) -> list[tuple[np.ndarray, np.ndarray, float]]:
        """(columns of the entry, columns of the source's weight, factor)."""
        axes = layer_axes(source.site)
        assert axes is not None
        found = counterparts(self._channels, axes[0], entry, self._starts[id(entry)][1] // self._taps)
        return [(self._tapped(at), self._tapped(own), slope) for at, own, slope in found]

    def _tapped(self, channels: np.ndarray) -> np.ndarray:
        return (channels[:, None] * self._taps + np.arange(self._taps)).reshape(-1)

    def _mix(self, sources: Sequence[Source], slab: Slab) -> tuple[np.ndarray, np.ndarray]:
        """Which targets each result of a slab is fitted to, [targets, results], and the results of each channel."""
        entries = [self._wanted(sources, c) for c in slab.channels]
        places = self.places(sources[0], slab)
        mix = np.zeros((len(self._biases), places.size))
        for found, at in zip(entries, places, strict=True):
            for start, own, weight in found:
                mix[start + own, at] += weight
        return mix, places

    def _wanted(self, sources: Sequence[Source], channel: Channel) -> list[tuple[int, np.ndarray, float]]:
        """(first target of the network, its results for the member, weight) of a channel's members."""
        found = []
        for source, unit, weight in present_members(sources, channel):
            axes = layer_axes(source.site)
            assert axes is not None
            own = self._channels.groups[unit.group].atoms[unit.channel].entries[axes[1]]
            found.append((self._offsets[source.ref], own, weight))
        return found


def _bias_of(source: Source, width: int) -> np.ndarray:
    found = bias(source.site)
    return np.zeros(width) if found is None else found
