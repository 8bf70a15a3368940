"""How close two results have to be: onnxruntime's own spread, and what rounding does to the network.

Generated networks may amplify rounding or decide by a hair. So every value of the network is disturbed by a few
units in its last place, and outputs may differ by a small multiple of what that changes. An output that moves too
far under this is not judged, and counted as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from compiler.check import SPREADS, TOLERANCE, relative
from compiler.ir.graph import Graph
from compiler.ir.reference import evaluate
from compiler.ir.types import ValueRef

DISTURBED = {2: 1e-3, 4: 4e-7, 8: 4e-7}
"""Relative size of the disturbance by bytes of an element: a few units in the last place."""
UNJUDGED = 1e-2
"""An output that moves further than this when disturbed proves nothing."""
DRAWS = 2

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Allowance:
    """What each output of a graph may differ by; None where it is not judged."""

    limits: Mapping[str, float | None]

    @property
    def unjudged(self) -> int:
        """Outputs about which nothing can be said."""
        return sum(limit is None for limit in self.limits.values())

    def wrong(self, found: Arrays, expected: Arrays, least: float = 0.0) -> str:
        """The worst output that differs by more than it may, with its error; empty where all is right."""
        worst = (0.0, "")
        for name, reference in expected.items():
            limit = self.limits[name]
            if name not in found or found[name].dtype != reference.dtype or found[name].shape != reference.shape:
                return f"output '{name}' is missing or of another type or shape"
            if limit is None:
                continue
            allowed = max(limit, least)
            error = relative(found[name], reference)
            if reference.dtype.kind != "f":
                error, allowed = float(np.mean(found[name] != reference)) if reference.size else 0.0, 0.0
            if not error <= allowed:
                text = f"output '{name}' differs by {error:.2e} of scale (limit {allowed:.1e})"
                worst = max(worst, (error, text))
        return worst[1]


def allowance(graph: Graph, feeds: Arrays, seed: int, others: tuple[Arrays, Arrays] | None = None) -> Allowance:
    """The limits of the outputs of `graph` at `feeds`. `others`: outputs of two other evaluations that may differ.

    Disturbed and undisturbed values come from the same evaluator: a wrong one gains nothing by being wrong.
    """
    still = evaluate(graph, feeds)
    moved = dict.fromkeys(still, 0.0)
    pairs = [(evaluate(graph, feeds, edit=_Disturbance(seed, draw)), still) for draw in range(DRAWS)]
    for found, reference in [*pairs, *([others] if others else [])]:
        for name in moved:
            moved[name] = max(moved[name], _distance(found[name], reference[name]))
    return Allowance({n: _limit(m, still[n]) for n, m in moved.items()})


class _Disturbance:
    """An edit of `evaluate` that moves every float a little."""

    def __init__(self, *seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def __call__(self, ref: ValueRef, array: np.ndarray) -> np.ndarray:
        if array.dtype.kind != "f":
            return array
        factor = 1 + DISTURBED[array.itemsize] * self._rng.uniform(-1, 1, array.shape)
        with np.errstate(all="ignore"):
            return np.asarray(array * factor).astype(array.dtype)


def _distance(found: np.ndarray, reference: np.ndarray) -> float:
    if reference.dtype.kind == "f":
        return relative(found, reference)
    return 0.0 if np.array_equal(found, reference) else float("inf")


def _limit(moved: float, reference: np.ndarray) -> float | None:
    if reference.dtype.kind == "f" and reference.size and not np.isfinite(reference).any():
        return None
    limit = max(TOLERANCE, SPREADS * moved)
    return limit if limit <= UNJUDGED else None
