"""The cheapest network whose accuracy holds: bisection over the budget, every point measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from compiler.errors import PassError
from compiler.ir.graph import Graph
from compiler.passes.base import Note, Pass, Refusal, Resources
from compiler.passes.budget.limits import worst
from compiler.progress import counted

EVALUATIONS = 7
"""Networks that are made and measured: the share is then known to 1/128."""


@dataclass(frozen=True, slots=True)
class Point:
    """A share of the original cost, and the largest drop of any task; None where the share cannot be reached."""

    share: float
    drop: float | None

    @property
    def note(self) -> Note:
        """As it is told."""
        found = "cannot be reached" if self.drop is None else f"accuracy drop {self.drop:.4g}"
        return Note(f"share {self.share:.4f}", found)


class Spending(Protocol):
    """A pass that can be told what share of the original cost it may keep."""

    @property
    def accuracy_drop(self) -> float | None:
        """How much worse any task may become, in its metric."""

    def at_share(self, share: float) -> Pass:
        """The pass at a share of the original cost, without a limit on accuracy."""


def within_drop(options: Spending, graph: Graph, use: Resources) -> list[Refusal]:
    """Rewrite `graph` at the least share of its cost that keeps `options.accuracy_drop`; every point tried."""
    assert options.accuracy_drop is not None
    whole = graph.copy().freeze()
    share, points = cheapest(lambda s: options.at_share(s).run(whole, use).graph, use, options.accuracy_drop)
    told: list[Refusal] = [p.note for p in points]
    return told if share == 1 else [*told, *options.at_share(share).rewrite(graph, use)]


def cheapest(make: Callable[[float], Graph], use: Resources, allowed: float) -> tuple[float, list[Point]]:
    """The smallest share tried whose network loses at most `allowed` in every task, and all points tried.

    `make(share)` gives the network at a share of the original cost, the same one every time, or raises PassError.
    A share of 1 stands for the network as it is.
    """
    assert use.judge is not None
    low, high, points = 0.0, 1.0, []
    for _ in counted("accuracy: networks tried", range(EVALUATIONS)):
        middle = (low + high) / 2
        try:
            drops = use.judge(make(middle))
            drop: float | None = drops[worst(drops)]
        except PassError:
            drop = None
        points.append(Point(middle, drop))
        low, high = (low, middle) if drop is not None and drop <= allowed else (middle, high)
    return high, points
