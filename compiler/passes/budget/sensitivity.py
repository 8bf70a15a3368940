"""How much an error of a layer matters: what the network's outputs lose when one layer alone is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from compiler.calibration.moments import UNSOUND
from compiler.errors import ConfigError
from compiler.ir.graph import Graph
from compiler.ir.reference import evaluate

PROBES = 16
"""Calibration inputs that a changed network is evaluated on; spread over all of them."""

TYPICAL = 0.1
"""Error of a layer, as a share of its outputs' variance, at which the change is measured."""

TINY = 1e-12


class Sensitivity:
    """Losses of layers in one unit: the error of the outputs, as a share of their power, the mean over all outputs.

    Errors of one layer under several changes keep their ratios; the change whose error is nearest to TYPICAL is
    made in the network, and what the outputs then lose gives the factor. ConfigError where outputs are no numbers.
    """

    def __init__(self, graph: Graph, feeds: Sequence[Mapping[str, np.ndarray]]) -> None:
        self._graph = graph
        self._probes = [feeds[i] for i in np.unique(np.linspace(0, len(feeds) - 1, PROBES).astype(int))]
        self._clean = [evaluate(graph, f) for f in self._probes]
        self._power = {n: sum(_energy(c[n]) for c in self._clean) for n in self._clean[0]}
        if not np.isfinite(list(self._power.values())).all():
            raise ConfigError(UNSOUND)

    def scaled(self, errors: Sequence[float], change: Callable[[Graph, int], None]) -> list[float]:
        """`errors` of one layer times its factor; `change(graph, n)` makes change number n in a graph."""
        logs = [abs(np.log(max(e, TINY) / TYPICAL)) for e in errors]
        number = int(np.argmin(logs))
        if errors[number] <= TINY:
            return list(errors)
        changed = self._graph.copy()
        change(changed, number)
        factor = self._loss(changed) / errors[number]
        return [factor * e for e in errors]

    def _loss(self, changed: Graph) -> float:
        lost = dict.fromkeys(self._power, 0.0)
        for feed, clean in zip(self._probes, self._clean, strict=True):
            for name, found in evaluate(changed, feed).items():
                lost[name] += _energy(found.astype(np.float64) - clean[name])
        return float(np.mean([lost[n] / max(power, TINY) for n, power in self._power.items()]))


def _energy(array: np.ndarray) -> float:
    return float(np.sum(array.astype(np.float64) ** 2))
