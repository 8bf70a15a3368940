"""Streamed second moments of rows of data: Gram matrices, cross moments, means, variances; float64.

Statistics of a network depend on its contents and on the data only, so they can be kept in a folder under the
digest of both (`Cache`). Adding the same rows in the same order gives the same bits.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from compiler.calibration.data import archived
from compiler.errors import ConfigError
from compiler.workers.store import Store

RIDGE = 1e-4
"""Ridge as a share of the mean eigenvalue of the Gram matrix."""

TINY = 1e-12

UNSOUND = (
    "some calibration inputs make infinite or undefined numbers inside of the network, by which nothing can be "
    "measured; leave these inputs out, or give such as it was trained on"
)


def ridge(moments: np.ndarray) -> np.ndarray:
    """lambda * I for Gram matrices [groups, p, p]; never zero."""
    p = moments.shape[-1]
    scale = RIDGE * np.trace(moments, axis1=1, axis2=2) / p
    return np.asarray(np.maximum(scale, TINY)[:, None, None] * np.eye(p))


def _gram(rows: np.ndarray) -> np.ndarray:
    """x.T @ x per group; of one matrix numpy knows that the product is symmetric and does half of the work."""
    if len(rows) == 1:  # large matrices, which are not to be copied
        return np.asarray((rows[0].T @ rows[0])[None])
    return np.stack([x.T @ x for x in rows])


class Moments:
    """Sums over rows of inputs x [groups, rows, p] and targets y [groups, rows, outputs]: counts, means, second and
    cross moments per group. Before the first row everything is a scalar zero.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("rows", "x", "y", "xx", "xy", "yy")

    def __init__(self) -> None:
        self.rows = 0
        nothing: np.ndarray = np.zeros(())
        self.x = self.y = self.xx = self.xy = self.yy = nothing

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Add rows of inputs [groups, rows, p] and targets [groups, rows, outputs]."""
        found = x.sum(axis=1), y.sum(axis=1), _gram(x), np.swapaxes(x, 1, 2) @ y, _gram(y)
        for part, total in zip(found, (self.x, self.y, self.xx, self.xy, self.yy), strict=True):
            part += total  # no third array, as they may be large; the old one may be that of `mixed`, and stays
        self.x, self.y, self.xx, self.xy, self.yy = found
        self.rows += x.shape[1]

    def check_sound(self) -> None:
        """ConfigError where some inputs were no numbers."""
        if not np.isfinite(self.x).all():
            raise ConfigError(UNSOUND)

    def select(self, inputs: np.ndarray, outputs: np.ndarray) -> Moments:
        """The moments of some inputs and some outputs."""
        part = Moments()
        part.rows = self.rows
        part.x, part.y = self.x[:, inputs], self.y[:, outputs]
        part.yy = self.yy[:, outputs[:, None], outputs]
        part.xx = self.xx[:, inputs[:, None], inputs]
        part.xy = self.xy[:, inputs[:, None], outputs]
        return part

    def mixed(self, weights: np.ndarray) -> Moments:
        """The moments with the targets y @ weights, weights [outputs, new outputs]."""
        part = Moments()
        part.rows, part.x, part.xx = self.rows, self.x, self.xx
        part.y, part.xy, part.yy = self.y @ weights, self.xy @ weights, weights.T @ self.yy @ weights
        return part

    def central(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Covariances of inputs [groups, p, p], of inputs with targets [groups, p, outputs], variances of
        targets.
        """
        x, y = self.x / self.rows, self.y / self.rows
        g = self.xx / self.rows - x[:, :, None] * x[:, None, :]
        c = self.xy / self.rows - x[:, :, None] * y[:, None, :]
        power = np.diagonal(self.yy, axis1=1, axis2=2) / self.rows
        return g, c, np.maximum(power - y * y, 0)

    def solve(self, old: np.ndarray, central: bool) -> tuple[np.ndarray, np.ndarray]:
        """Least squares with a ridge towards the weights `old` [groups, p, outputs].

            W = old + (G + lambda I)^-1 (C - G old),   lambda = 1e-4 tr(G) / p

        Returns (weights, offsets [groups, outputs]). `central`: an unpenalised constant is fitted with them; else
        offsets are zero.
        """
        x, y = self.x / self.rows, self.y / self.rows
        if central:
            g, c, _ = self.central()
        else:
            g, c = self.xx / self.rows, self.xy / self.rows
        new = old + np.linalg.solve(g + ridge(g), c - g @ old)
        offset = y - np.einsum("gp,gpo->go", x, new) if central else np.zeros_like(y)
        return new, offset

    def error(self, weights: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """Mean squared error [groups, outputs] of x @ weights + offset, exact up to rounding of the sums."""
        x, y = self.x / self.rows, self.y / self.rows
        g, c, power = self.central()
        bias = y - np.einsum("gp,gpo->go", x, weights) - offset
        spread = power - 2 * np.sum(weights * c, axis=1) + np.sum(weights * (g @ weights), axis=1)
        return np.asarray(np.maximum(spread, 0) + bias**2)

    def best_offset(self, weights: np.ndarray) -> np.ndarray:
        """The constant [groups, outputs] that makes the means of x @ weights and of the targets equal."""
        return np.asarray(self.y / self.rows - np.einsum("gp,gpo->go", self.x / self.rows, weights))

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as arrays by name."""
        return {n: np.asarray(getattr(self, n)) for n in self.PARTS}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Moments:
        """The inverse of `arrays`."""
        made = cls()
        made.rows = int(arrays["rows"])
        for name in cls.PARTS[1:]:
            setattr(made, name, np.asarray(arrays[name]))
        return made


def correlation(covariance: np.ndarray) -> np.ndarray:
    """Correlations of a covariance matrix [n, n]; zero where a variance is."""
    scale = np.sqrt(np.maximum(np.diag(covariance), 0))
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    return np.asarray(np.clip(covariance * inverse[:, None] * inverse, -1, 1))


# ---------------------------------------------------------------------- kept on disk
def content_key(*parts: str | bytes | np.ndarray) -> str:
    """SHA-256 (hex) over texts, bytes and arrays (element type, shape, bytes), in order."""
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            state.update(f"{part.dtype.str}{part.shape};".encode())
            state.update(np.ascontiguousarray(part).data)
        else:
            state.update(part.encode() if isinstance(part, str) else part)
        state.update(b"|")
    return state.hexdigest()


def data_key(feeds: Iterable[Mapping[str, np.ndarray]]) -> str:
    """The digest of feeds: names, types, shapes and bytes, in order."""
    return content_key(*(p for feed in feeds for name in sorted(feed) for p in (name, feed[name])))


class Cache:
    """Arrays by key in a folder; see `Store`. Without a folder nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._store, self._keeps = Store(folder), folder is not None

    def load(self, key: str) -> dict[str, np.ndarray] | None:
        """The arrays under `key`, or None."""
        content = self._store.load(key)
        if content is None:
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    def store(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays under `key`."""
        if self._keeps:
            self._store.save(key, archived(arrays))


class Kept:
    """Arrays by name that are measured once per key: from the cache where it has them, else made and then stored.

    `complete`: everything is there, nothing will be made.
    """

    def __init__(self, cache: Cache, key: str) -> None:
        self._cache, self._key = cache, key
        found = cache.load(key)
        self.complete = found is not None
        self._arrays: dict[str, np.ndarray] = found or {}

    def __call__(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array called `name`."""
        if name not in self._arrays:
            self._arrays[name] = make()
        return self._arrays[name]

    def moments(self, name: str, make: Callable[[], Moments]) -> Moments:
        """The same for moments."""
        # not all that begins with the name: another one may go on behind a space
        parts = {p: self._arrays[k] for p in Moments.PARTS if (k := f"{name} {p}") in self._arrays}
        if parts:
            return Moments.of(parts)
        made = make()
        self._arrays |= {f"{name} {n}": a for n, a in made.arrays().items()}
        return made

    def store(self) -> None:
        """Put everything into the cache."""
        if not self.complete:
            self._cache.store(self._key, self._arrays)
