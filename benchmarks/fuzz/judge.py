"""How close two results have to be: onnxruntime's own spread, and what rounding does to the network.

Generated networks may amplify rounding or decide by a hair. So every value of the network is disturbed by a few
units in its last place, and outputs may differ by a small multiple of what that changes. An output that moves too
far under this is not judged, and counted as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from compiler.check import SPREADS, relative
from compiler.codegen.golden import TOLERANCE
from compiler.ir.graph import Graph
from compiler.ir.reference import evaluate
from compiler.ir.types import ValueRef
from compiler.passes.base import ROUNDING

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

    def wrong(self, found: Arrays, expected: Arrays) -> str:
        """The worst output that differs by more than it may, with its error; empty where all is right."""
        worst = (0.0, "")
        for name, reference in expected.items():
            limit = self.limits[name]
            if name not in found or found[name].dtype != reference.dtype or found[name].shape != reference.shape:
                return f"output '{name}' is missing or of another type or shape"
            if limit is None:
                continue
            error = relative(found[name], reference)
            if reference.dtype.kind != "f":
                error, limit = float(np.mean(found[name] != reference)) if reference.size else 0.0, 0.0
            if not error <= limit:
                text = f"output '{name}' differs by {error:.2e} of scale (limit {limit:.1e})"
                worst = max(worst, (error, text))
        return worst[1]


class Judge:
    """Compares outputs with those of `graph` at `feeds`, whose outputs in the reference evaluator are `still`.

    Disturbed and undisturbed values come from the same evaluator: a wrong one gains nothing by being wrong.
    `others`: outputs of two other evaluations that may differ.
    """

    def __init__(
        self, graph: Graph, feeds: Arrays, seed: int, still: Arrays, others: tuple[Arrays, Arrays] | None = None
    ) -> None:
        self._graph, self._feeds, self._seed = graph, feeds, seed
        self._still, self._others = still, others

    @cached_property
    def allowed(self) -> Allowance:
        """What each output may differ by. It takes several evaluations."""
        moved = dict.fromkeys(self._still, 0.0)
        draws = (_Disturbance(self._seed, draw) for draw in range(DRAWS))
        pairs = [(evaluate(self._graph, self._feeds, edit=draw), self._still) for draw in draws]
        for found, reference in [*pairs, *([self._others] if self._others else [])]:
            for name in moved:
                moved[name] = max(moved[name], _distance(found[name], reference[name]))
        return Allowance({n: _limit(m, self._still[n]) for n, m in moved.items()})

    def wrong(self, found: Arrays, expected: Arrays) -> str:
        """`Allowance.wrong`; limits are only looked for where an output differs by more than the least of them."""
        least = Allowance(dict.fromkeys(expected, TOLERANCE))
        return least.wrong(found, expected) and self.allowed.wrong(found, expected)

    def changed(self, found: Arrays, expected: Arrays) -> str:
        """The same after an exact pass: only an output that rounding moves by more than the least limit may differ
        by more than exact passes may."""
        if not Allowance(dict.fromkeys(expected, ROUNDING)).wrong(found, expected):
            return ""
        limits = {n: v if v is None or v > TOLERANCE else ROUNDING for n, v in self.allowed.limits.items()}
        return Allowance(limits).wrong(found, expected)


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
