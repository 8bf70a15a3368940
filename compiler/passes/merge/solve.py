"""Weights of one label in closed form: least squares over the inputs that the label may read.

    W = W0 + (G + lambda I)^-1 (C - G W0),   G = Cov[x x^T],  C = Cov[x y^T],  lambda = 1e-4 tr(G) / p

x are the merged network's own values, y what the original networks compute, W0 the original weights placed at the
inputs that stand for the ones they read. One measurement over all inputs of a place serves every label: G of a
label is a block of it. A quarter of the samples is held out; the weights W0, with or without a new constant, are
kept where the fit does not do better there.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from compiler.calibration.moments import Moments

EXACT = 1e-9
"""Residual below which weights are as good as exact."""


class Freedom(enum.IntEnum):
    """What may be adapted to the merged network's own values."""

    NOTHING = 0
    CONSTANTS = 1
    WEIGHTS = 2


FLOOR = 1e-5
"""Targets count as at least this share of their mean square strong, however little they vary."""

BETTER = 1 - 1e-3
"""A fit must lower the held-out error at least to this share."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Moments of the samples that are fitted and of those held out."""

    train: Moments
    test: Moments

    def select(self, inputs: np.ndarray, weights: np.ndarray) -> Measured:
        """Some inputs, and targets y @ weights."""
        every = np.arange(int(self.train.yy.shape[1]))
        train, test = (m.select(inputs, every).mixed(weights) for m in (self.train, self.test))
        return Measured(train, test)


@dataclass(frozen=True, slots=True)
class Fit:
    """Weights [groups, columns, outputs], constants [groups, outputs], held-out squared error and power of
    targets.
    """

    weights: np.ndarray
    offset: np.ndarray
    error: np.ndarray
    power: np.ndarray
    refitted: bool

    @property
    def residual(self) -> float:
        """Error as a share of the targets' variance, over all outputs."""
        return float(self.error.sum() / max(self.power.sum(), 1e-30))

    @property
    def residuals(self) -> np.ndarray:
        """The same per output."""
        return np.asarray(self.error / np.maximum(self.power, 1e-30))


class Measuring:
    """Moments of rows that come chunk by chunk."""

    def __init__(self) -> None:
        self._train, self._test = Moments(), Moments()

    def add(self, x: np.ndarray, y: np.ndarray, held: np.ndarray) -> None:
        """Inputs [groups, rows, columns] and targets [groups, rows, outputs]. `held`: per row whether it is held
        out.
        """
        x, y = x.astype(np.float64), y.astype(np.float64)
        if not held.all():
            self._train.add(x[:, ~held], y[:, ~held])
        if held.any():
            self._test.add(x[:, held], y[:, held])

    def measured(self) -> Measured:
        """Where no row is held out, everything serves for both. ConfigError where inputs are no numbers."""
        train, test = self._train, self._test
        for moments in (train, test):
            moments.check_sound()
        if not test.rows or not train.rows:
            whole = train if train.rows else test
            return Measured(whole, whole)
        return Measured(train, test)


def measure(rows: Iterable[np.ndarray], targets: np.ndarray, held: np.ndarray) -> Measured:
    """Moments of chunks of inputs [groups, rows, columns] with targets [groups, all rows, outputs].

    `held`: per row whether it is held out. Where no row is, everything serves for both. ConfigError where inputs
    are no numbers.
    """
    made, at = Measuring(), 0
    for x in rows:
        count = x.shape[1]
        made.add(x, targets[:, at : at + count], held[at : at + count])
        at += count
    return made.measured()


def solve(
    measured: Measured, prior: np.ndarray, offset: np.ndarray | None, freedom: Freedom = Freedom.WEIGHTS
) -> Fit:
    """The best of: `prior` as it is, `prior` with a new constant, the least-squares fit; the last two if `freedom`
    allows them.

    `offset` None: the layer can take no constant, so none is fitted.
    """
    train, test = measured.train, measured.test
    power = test.central()[2] + FLOOR * np.diagonal(test.yy, axis1=1, axis2=2) / test.rows
    zero = np.zeros(power.shape)
    kept = zero if offset is None else offset
    best = Fit(prior, kept, test.error(prior, kept), power, False)
    if best.residual <= EXACT:
        return best
    if offset is not None and freedom >= Freedom.CONSTANTS:
        moved = train.best_offset(prior)
        best = _better(best, Fit(prior, moved, test.error(prior, moved), power, True))
    if freedom >= Freedom.WEIGHTS:
        weights, constant = train.solve(prior, offset is not None)
        best = _better(best, Fit(weights, constant, test.error(weights, constant), power, True))
    return best


def _better(old: Fit, new: Fit) -> Fit:
    return new if new.error.sum() < BETTER * old.error.sum() else old
