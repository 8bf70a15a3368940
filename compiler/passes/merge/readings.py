"""How well a network's layer can still be computed when some of the channels it reads give way to others.

Everything is measured on the original networks, over the values of all networks that a layer of the family reads,
so that a channel of another network counts with what it really says, on top of everything else that is read. With
S the covariance of all that could be read, V what is read now, H = (S_VV + lambda I)^-1, W = H S_Vy the best
weights:

    removing v costs        tr(W_v^T H_vv^-1 W_v)
    adding u then returns   tr(R^T D^-1 R),   R = S_uy - S_uV W + E^T H_vv^-1 W_v,
                                              D = S_uu - S_uV H S_Vu + E^T H_vv^-1 E + noise,   E = (H S_Vu)_v

with v and u blocks of as many columns as a channel has taps. One inverse serves all pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.calibration.moments import RIDGE, TINY
from compiler.passes.merge.channels import Role, layer_axes
from compiler.passes.merge.labels import Unit
from compiler.passes.merge.originals import Originals, Pooled
from compiler.passes.merge.rows import taps
from compiler.passes.merge.streams import Place, Source, Streams

PAIRS = 1 << 22
"""Numbers in a table of pairs that are worked on at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What one layer says about changes; all as shares of its results' variance.

    `loss`: what it has lost already. `removal` [read], `swap` [read, others]: what would be lost more if a channel
    went, or gave way to another one. `power` [read]: its contribution.
    """

    loss: float
    removal: np.ndarray
    swap: np.ndarray
    power: np.ndarray


class Reading:
    """One network's layer that reads channels of a stream."""

    def __init__(self, streams: Streams, pooled: Pooled, place: Place, source: Source, stream: int) -> None:
        self._taps = taps(source.site)
        covariance, cross, power = pooled.covariances(source)
        self._s, self._c = covariance, cross
        self._power = max(float(power.sum()), 1e-30)
        self._blocks = _blocks(streams, pooled, place, stream, self._taps)
        own = pooled.columns(source)
        scale = RIDGE * float(np.trace(covariance[np.ix_(own, own)])) / max(len(own), 1)
        self._ridge = max(scale, TINY)  # a layer may read nothing that varies
        streamed = {c for block in self._blocks.values() for c in block}
        self._always = np.array([c for c in own if c not in streamed], np.int64)
        self._start = self._residual(own)

    def knows(self, unit: Unit) -> bool:
        """Whether a channel's values at this layer were measured."""
        return unit in self._blocks

    def look(self, read: Sequence[Unit], others: Sequence[Unit], noise: Mapping[Unit, float]) -> Look:
        """The layer reading `read` now, and what it would make of `others`. `noise`: share of a channel's variance
        that is lost when it is computed for its label.
        """
        k = self._blocks[read[0]].size
        columns = np.concatenate([self._always, *(self._blocks[u] for u in read)])
        offset = len(self._always)
        inverse, weights = self._solve(columns, read, noise, offset)
        mine = _diagonal(inverse[offset:, offset:], len(read), k)
        w = weights[offset:].reshape(len(read), k, -1)
        slack = np.linalg.inv(mine)
        removal = np.einsum("vko,vkl,vlo->v", w, slack, w)
        own = np.stack([self._s[np.ix_(self._blocks[u], self._blocks[u])] for u in read])
        power = np.einsum("vko,vkl,vlo->v", w, own, w)
        loss = max(self._lost(columns, weights), 0.0)
        swap = self._swaps(columns, offset, inverse, weights, slack, removal, others, noise, k)
        return Look(loss, removal / self._power, swap / self._power, power / self._power)

    # ------------------------------------------------------------------ algebra
    def _solve(
        self, columns: np.ndarray, read: Sequence[Unit], noise: Mapping[Unit, float], offset: int
    ) -> tuple[np.ndarray, np.ndarray]:
        s = self._s[np.ix_(columns, columns)].copy()
        s[np.diag_indices(len(s))] += self._ridge
        at = offset
        for unit in read:
            block = self._blocks[unit]
            if noise.get(unit, 0.0):
                span = slice(at, at + block.size)
                s[span, span] += noise[unit] * self._s[np.ix_(block, block)]
            at += block.size
        inverse = np.linalg.inv(s)
        return inverse, inverse @ self._c[columns]

    def _residual(self, columns: np.ndarray) -> float:
        """Unexplained variance with the ridge, when everything of the own network is read."""
        s = self._s[np.ix_(columns, columns)].copy()
        s[np.diag_indices(len(s))] += self._ridge
        return 1 - float(np.sum(self._c[columns] * np.linalg.solve(s, self._c[columns]))) / self._power

    def _lost(self, columns: np.ndarray, weights: np.ndarray) -> float:
        return 1 - float(np.sum(self._c[columns] * weights)) / self._power - self._start

    def _swaps(
        self,
        columns: np.ndarray,
        offset: int,
        inverse: np.ndarray,
        weights: np.ndarray,
        slack: np.ndarray,
        removal: np.ndarray,
        others: Sequence[Unit],
        noise: Mapping[Unit, float],
        k: int,
    ) -> np.ndarray:
        if not others:
            return np.zeros((len(removal), 0))
        blocks = np.stack([self._blocks[u] for u in others])
        flat = blocks.reshape(-1)
        between = self._s[np.ix_(columns, flat)]
        regress = inverse @ between
        left = self._c[flat] - between.T @ weights
        count = len(others)
        d = _diagonal(self._s[np.ix_(flat, flat)] - between.T @ regress, count, k)
        own = np.stack([self._s[np.ix_(b, b)] for b in blocks])
        d = d + np.array([noise.get(u, 0.0) for u in others])[:, None, None] * own + self._ridge * np.eye(k)
        rr = np.einsum("uko,ulo->ukl", *[left.reshape(count, k, -1)] * 2)
        w = weights[offset:].reshape(len(removal), k, -1)
        ww = np.einsum("vko,vlo->vkl", w, w)
        wr = (weights[offset:] @ left.T).reshape(len(removal), k, count, k).transpose(0, 2, 1, 3)
        e = regress[offset:].reshape(len(removal), k, count, k).transpose(0, 2, 1, 3)
        step = max(1, PAIRS // (count * k * k))
        parts = [
            _returned(e[i : i + step], slack[i : i + step], ww[i : i + step], wr[i : i + step], d, rr)
            for i in range(0, len(removal), step)
        ]
        return np.asarray(np.maximum(removal[:, None] - np.concatenate(parts), 0.0))


def _returned(
    e: np.ndarray, slack: np.ndarray, ww: np.ndarray, wr: np.ndarray, d: np.ndarray, rr: np.ndarray
) -> np.ndarray:
    """[read, others]: what adding each other channel returns once a channel that is read is gone."""
    te = np.einsum("vkl,vulm->vukm", slack, e)
    spread = d + np.swapaxes(e, 2, 3) @ te
    cross = np.swapaxes(te, 2, 3) @ wr
    moment = rr + cross + np.swapaxes(cross, 2, 3) + np.swapaxes(te, 2, 3) @ ww[:, None] @ te
    return np.asarray(np.trace(np.linalg.solve(spread, moment), axis1=2, axis2=3))


def _diagonal(matrix: np.ndarray, count: int, k: int) -> np.ndarray:
    """The diagonal blocks [count, k, k] of a matrix of blocks."""
    at = np.arange(count)
    return np.asarray(matrix.reshape(count, k, count, k)[at, :, at, :])


def _blocks(streams: Streams, pooled: Pooled, place: Place, stream: int, k: int) -> dict[Unit, np.ndarray]:
    """Channel -> its columns among everything that is measured at a place."""
    found: dict[Unit, np.ndarray] = {}
    for source in place.sources:
        axes = layer_axes(source.site)
        start = pooled.start(source)
        if axes is None or start is None:
            continue
        for group in streams.channels.parts(source.site.operands[0]):
            if streams.of_group[group].index == stream:
                for channel, entries in enumerate(streams.group(group).entries(axes[0])):
                    tapped = (entries[:, None] * k + np.arange(k)).reshape(-1)
                    found[Unit(group, channel)] = start + tapped
    return found


def readings(streams: Streams, originals: Originals, stream: int) -> dict[int, list[Reading]]:
    """Group of a stream -> the layers that read it."""
    found: dict[int, list[Reading]] = {g: [] for g in streams.streams[stream].groups}
    for place in streams.places:
        for source in place.sources:
            if place.role is Role.LAYER:
                for group in streams.channels.parts(source.site.operands[0]):
                    if group in found:
                        pooled = originals.pooled[source.ref]
                        found[group].append(Reading(streams, pooled, place, source, stream))
    return found
