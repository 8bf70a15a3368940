"""What input channels are worth to the nodes that read them, from second moments of calibration data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compiler.calibration.moments import ridge
from compiler.ir.graph import Graph
from compiler.ir.types import Axis
from compiler.passes.prune.fit import Batches, Reader, Stream, gram, reader_of


class Readers:
    """Second moments of every reader's inputs in the original graph, measured once, for scores."""

    def __init__(self, graph: Graph, batches: Batches) -> None:
        self._measured: list[tuple[Reader, Worth]] = []
        self._known: dict[tuple[int, bytes, bytes], np.ndarray] = {}
        stream = Stream(graph, batches)
        for site in graph.sites():
            reader = reader_of(graph, site)
            if reader is not None and not reader.depthwise:
                self._measured.append((reader, Worth(reader, gram(reader, stream.read(reader.x.ref)))))
            stream.step(site.node)
            stream.release(site.node)

    def contributions(self, refit: bool, gone: Mapping[Axis, np.ndarray]) -> dict[Axis, np.ndarray]:
        """Per reader input axis: what each channel is worth to its readers, as a share of their output power.

        `refit`: the rise of the error when the channel goes and the others are fitted anew, W_u^T (B_u)^-1 W_u
        with B_u the block of (G + lambda I)^-1 that belongs to channel u, among the channels that are not `gone`.
        Else the power of the channel's own contribution.
        """
        found: dict[Axis, np.ndarray] = {}
        for number, (reader, worth) in enumerate(self._measured):
            away = gone.get(reader.channel, np.zeros(0, np.int64)), gone.get(reader.output, np.zeros(0, np.int64))
            key = number, away[0].tobytes(), away[1].tobytes()
            if key not in self._known:
                self._known[key] = worth.after_refit(*away) if refit else worth.alone()
            found[reader.channel] = found.get(reader.channel, 0) + self._known[key]
        return found


class Worth:
    """What each channel is worth to one reader, as a share of its output power. `moments`: second moments of its
    patches, [groups, p, p].
    """

    def __init__(self, reader: Reader, moments: np.ndarray) -> None:
        self._taps, self._moments = reader.taps, moments
        self._matrix = reader.matrix(reader.weight.constant)
        self._power = max(float(np.sum(self._matrix * (moments @ self._matrix))), 1e-30)
        self._fits: list[Fitted] = []

    def alone(self) -> np.ndarray:
        """The power of each channel's own contribution."""
        energy = np.diagonal(self._moments, axis1=1, axis2=2)[..., None] * self._matrix**2
        return np.asarray(energy.sum(axis=2).reshape(-1, self._taps).sum(axis=1) / self._power)

    def after_refit(self, columns: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """The rise of the error when a channel goes and the others that stay are fitted anew; zero for those in
        `columns`, which are gone already. `outputs`: results that are gone.
        """
        groups, width = self._matrix.shape[:2]
        k = self._taps
        if groups > 1:  # groups keep equal slots: their static worth is used
            columns = outputs = np.zeros(0, np.int64)
        worth = np.zeros((groups, width // k))
        for g, fit in enumerate(self._fitted(columns)):
            stays, fitted = fit.stays, np.delete(fit.weights, outputs, axis=1)
            blocks = fit.inverse.reshape(len(stays), k, len(stays), k)
            own = blocks[np.arange(len(stays)), :, np.arange(len(stays)), :]
            parts = fitted.reshape(len(stays), k, -1)
            worth[g, stays] = np.sum(parts * np.linalg.solve(own, parts), axis=(1, 2))
        return np.asarray(np.maximum(worth, 0).reshape(-1) / self._power)

    def _fitted(self, columns: np.ndarray) -> list[Fitted]:
        """Of every group the weights without the channels `columns`; mostly a few more than the last time."""
        if not self._fits or not all(fit.has_lost_only(columns) for fit in self._fits):
            regular = self._moments + ridge(self._moments)
            self._fits = [Fitted(m, w, self._taps) for m, w in zip(regular, self._matrix, strict=True)]
        for fit in self._fits:
            fit.lose(columns)
        return self._fits


class Fitted:
    """Weights of a reader fitted to the original outputs without some of its input channels.

    `stays`: the channels that are there; `inverse` [p, p] of their second moments; `weights` [p, outputs]. Channels
    leave by the update of Hassibi and Stork (1993, "Second order derivatives for network pruning"), for several
    weights at a time, instead of a new inverse.
    """

    def __init__(self, moments: np.ndarray, weights: np.ndarray, taps: int) -> None:
        self._taps, self.weights = taps, weights
        self.inverse: np.ndarray = np.linalg.inv(moments)
        self._all = np.arange(len(weights) // taps)
        self.stays: np.ndarray = self._all

    def has_lost_only(self, channels: np.ndarray) -> bool:
        """Whether all that is gone is in `channels`."""
        return bool(np.isin(np.setdiff1d(self._all, self.stays), channels).all())

    def lose(self, channels: np.ndarray) -> None:
        """Fit the others to do without these channels, of which some may be gone already."""
        goes = np.isin(self.stays, channels)
        if not goes.any():
            return
        rows = np.repeat(goes, self._taps)
        kept, gone = np.flatnonzero(~rows), np.flatnonzero(rows)
        mixed = self.inverse[np.ix_(kept, gone)]
        factor = np.linalg.solve(self.inverse[np.ix_(gone, gone)], mixed.T)
        self.inverse = self.inverse[np.ix_(kept, kept)] - mixed @ factor
        self.weights = self.weights[kept] - factor.T @ self.weights[gone]
        self.stays = self.stays[~goes]
