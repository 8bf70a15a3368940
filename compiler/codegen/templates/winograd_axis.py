"""The arithmetic of Winograd convolution along one axis, for any tile, filter length, and a stride of 1 or 2.

m outputs of a filter with r taps are an evaluation at m + r - 1 points (one of them infinity), a product at
each point, and an interpolation (Toom-Cook; Lavin and Gray, CVPR 2016; Blahut, Fast Algorithms for Signal
Processing, chapter 5). At stride 2 the inputs split into two phases, the even and the odd ones, each with every
second tap: their products at the same points add up before the interpolation, since that is linear (Huang et
al., DWM, AAAI 2020). The even taps are one more than the odd ones or as many, and need the point at infinity;
fewer odd taps do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np

_POINTS = tuple(Fraction(*p) for p in ((0, 1), (1, 1), (-1, 1), (2, 1), (-2, 1), (1, 2), (-1, 2)))
"""Small numbers first: their powers cost the least accuracy. Opposite numbers follow each other."""

MOST_POINTS = len(_POINTS) + 1

_PAIRED = 6
"""Finite points that are three pairs without zero: zero, two pairs and a point alone would take more additions."""

Const = Callable[[float], Any]


@dataclass(frozen=True, slots=True)
class Phase:
    """The inputs offset, offset + stride, ... of a tile: how many are read, at how many of the first points
    they are evaluated (all, or all but infinity), and the taps that meet them."""

    offset: int
    reads: int
    points: int
    taps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """Tiles of `outputs` results of a filter with `taps` taps at `stride` 1 or 2."""

    outputs: int
    taps: int
    stride: int

    @property
    def points(self) -> int:
        """Products per tile and phase."""
        return self.outputs + -(-self.taps // self.stride) - 1

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One phase at stride 1, even and odd inputs at stride 2."""
        found = [Phase(0, self.points, self.points, tuple(range(0, self.taps, self.stride)))]
        if self.stride == 2 and self.taps > 1:
            odd = tuple(range(1, self.taps, 2))
            reads = self.outputs + len(odd) - 1
            found.append(Phase(1, reads, reads, odd))
        return tuple(found)

    def cells(self, extent: int) -> int:
        """Input cells that the tiles of `extent` outputs read."""
        return self.stride * (-(-extent // self.outputs) * self.outputs - 1) + self.taps

    @property
    def runs(self) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
        """(first point, points, indices of the phases evaluated there): all phases, then infinity with the
        first."""
        phases = tuple(range(len(self.phases)))
        least = min(p.points for p in self.phases)
        found = [(0, least, phases)] if least else []
        return (*found, (least, self.points - least, phases[:1])) if least < self.points else tuple(found)

    def transform(self, phase: Phase, inputs: Sequence[Any], const: Const) -> list[Any]:
        """B^T d: the inputs of a phase evaluated at its points."""
        rows = _evaluation(self.points - 1, phase.points == self.points)
        return _products(rows, _pairs(self.points - 1), inputs, const)

    def interpolate(self, products: Sequence[Any], const: Const) -> list[Any]:
        """A^T m: the outputs from the sums of products at all points."""
        finite, pairs = self.points - 1, _pairs(self.points - 1)
        points = _finite(finite)
        sums = {j: (products[j] + products[j + 1], products[j] - products[j + 1]) for j in pairs}
        made = []
        for i in range(self.outputs):
            terms: list[tuple[Fraction, Any]] = []
            for j in range(finite):
                if j in sums:
                    terms.append((points[j] ** i, sums[j][i % 2]))
                elif j - 1 not in sums:
                    terms.append((points[j] ** i, products[j]))
            if i == self.outputs - 1:
                terms.append((Fraction(1), products[finite]))
            made.append(_combination(terms, const))
        return made

    def weights(self, phase: Phase) -> np.ndarray:
        """G of a phase: [points of the phase, taps of the filter], float64."""
        made = np.zeros((phase.points, self.taps))
        finite = self.points - 1
        points = _finite(finite)
        for j in range(min(phase.points, finite)):
            scale = Fraction(1)
            for other in (p for i, p in enumerate(points) if i != j):
                scale *= points[j] - other
            for power, tap in enumerate(phase.taps):
                made[j, tap] = float(points[j] ** power / scale)
        if phase.points > finite:
            made[finite, phase.taps[-1]] = 1.0
        return made


def _finite(count: int) -> tuple[Fraction, ...]:
    """So many points besides infinity."""
    return _POINTS[1 : count + 1] if count == _PAIRED else _POINTS[:count]


@cache
def _evaluation(finite: int, infinity: bool) -> tuple[tuple[Fraction, ...], ...]:
    """Rows of B^T: coefficients of prod (x - p) over the other finite points, and over all of them for infinity."""
    points = _finite(finite)
    rows = [_polynomial(p for i, p in enumerate(points) if i != j) for j in range(finite)]
    if infinity:
        rows.append(_polynomial(points))
    return tuple(rows)


def _polynomial(roots: Iterator[Fraction] | Sequence[Fraction]) -> tuple[Fraction, ...]:
    """Coefficients of prod (x - root), lowest power first."""
    made = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *made]
        made = [s - root * c for s, c in zip(shifted, [*made, Fraction(0)], strict=True)]
    return tuple(made)


def _pairs(finite: int) -> tuple[int, ...]:
    """Indices j of points p with -p next."""
    points = _finite(finite)
    return tuple(j for j in range(int(0 in points), finite - 1, 2) if points[j] == -points[j + 1])


def _products(
    rows: Sequence[Sequence[Fraction]], pairs: Sequence[int], inputs: Sequence[Any], const: Const
) -> list[Any]:
    """Each row times the inputs; the rows of opposite points share their even and odd parts where that is less."""
    made: dict[int, Any] = {}
    for j in (j for j in pairs if j + 1 < len(rows)):
        half = [((a + b) / 2, (a - b) / 2) for a, b in zip(rows[j], rows[j + 1], strict=True)]
        even, odd = ([(part[k], x) for part, x in zip(half, inputs, strict=False)] for k in (0, 1))
        if sum(c != 0 for c, _ in (*even, *odd)) + 2 < sum(c != 0 for c in (*rows[j], *rows[j + 1])):
            e, o = _combination(even, const), _combination(odd, const)
            made[j], made[j + 1] = e + o, e - o
    for j, row in enumerate(rows):
        if j not in made:
            made[j] = _combination(list(zip(row, inputs, strict=False)), const)
    return [made[j] for j in range(len(rows))]


def _combination(terms: Sequence[tuple[Fraction, Any]], const: Const) -> Any:
    """Sum of coefficient * value without the zeros, a positive term first where there is one."""
    kept = sorted(((c, x) for c, x in terms if c != 0), key=lambda t: t[0] < 0)
    total = None
    for coefficient, value in kept:
        size = abs(coefficient)
        term = value if size == 1 else const(float(size)) * value
        if total is None:
            total = term if coefficient > 0 else const(-1.0) * term
        else:
            total = total + term if coefficient > 0 else total - term
    return total
