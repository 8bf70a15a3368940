"""The plan: which algorithm and tile every group runs with, once for the whole graph and all its subsets.

A choice comes, in this order, from a recorded plan, from the measurements of a tuning database, or from the
strategies' own prediction. None of the three measures anything, so the plan is a pure function of its inputs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from compiler.codegen.groups import CONVOLUTIONS, Group
from compiler.codegen.layout import Border
from compiler.codegen.layouts import channel_widths
from compiler.codegen.strategies import STRATEGIES, strategies_for
from compiler.codegen.strategies.base import Candidate, Choice, Situation
from compiler.codegen.target import Target
from compiler.cost.count import parameter_cost
from compiler.errors import ConfigError, LoweringError
from compiler.ir.graph import Graph
from compiler.ir.types import NodeRef, ValueRef


class Measured(Protocol):
    """Measurements a plan may rest on."""

    def best(self, group: Group, target: Target, algorithms: Collection[str]) -> Choice | None:
        """The fastest measured choice among `algorithms` for a group like this one, if any is known."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What was chosen for a group, from which source, among which candidates (best predicted first)."""

    choice: Choice
    source: str
    """`plan`, `database` or `rule`."""
    candidates: tuple[Candidate, ...]

    @property
    def predicted(self) -> float | None:
        """Predicted seconds of the choice, where the rule knows it."""
        return next((c.seconds for c in self.candidates if c.choice == self.choice), None)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where choices may come from besides the rule."""

    recorded: Mapping[str, Choice] = field(default_factory=dict)
    """By name of the group's first node."""
    measured: Measured | None = None


Decisions = Mapping[NodeRef, Decision]
"""By the group's first node."""


def decide(graph: Graph, groups: Sequence[Group], target: Target, sources: Sources) -> Decisions:
    """A decision for every group. ConfigError where a recorded plan does not fit the graph."""
    known = situation(graph, groups, target)
    anchors = {g.anchor.node.ref.name for g in groups}
    unknown = sorted(set(sources.recorded) - anchors)
    if unknown:
        raise ConfigError(
            f"the recorded plan names nodes that this graph does not have: {', '.join(unknown[:5])}; "
            "it was made for other models or passes: compile without it, or with the bundle's own merged.onnx"
        )
    return {g.anchor.node.ref: _decide(g, known, sources) for g in groups}


def situation(graph: Graph, groups: Iterable[Group], target: Target) -> Situation:
    """The facts of the whole network that candidates depend on."""
    padded = {v.ref for g in groups if g.family in CONVOLUTIONS and any(g.anchor.ints("pads")) for v in g.segments}
    weights = sum(parameter_cost(v).weight_bytes for v in graph.parameters() if v.dtype.is_float)
    return Situation(target, frozenset(padded), weights, channel_widths(tuple(groups), target.machine))


def candidates(group: Group, known: Situation) -> tuple[Candidate, ...]:
    """Every way to run a group, best predicted first."""
    found = [c for s in strategies_for(group.family) for c in s.candidates(group, known)]
    return tuple(sorted(found, key=lambda c: c.seconds))


def _decide(group: Group, known: Situation, sources: Sources) -> Decision:
    found = candidates(group, known)
    name = group.anchor.node.ref.name
    recorded = sources.recorded.get(name)
    if recorded is not None:
        return Decision(_checked(recorded, group), "plan", found)
    usable = {c.choice.algorithm for c in found}
    measured = sources.measured.best(group, known.target, usable) if sources.measured else None
    if measured is not None:
        return Decision(_checked(measured, group), "database", found)
    if not found:
        raise LoweringError(f"{group.anchor.node.op.name} '{name}': no strategy applies")
    return Decision(found[0].choice, "rule", found)


def _checked(choice: Choice, group: Group) -> Choice:
    """A choice from outside; ConfigError where its algorithm cannot run the group."""
    strategy = STRATEGIES.get(choice.algorithm)
    if strategy is None or group.family not in strategy.families:
        usable = ", ".join(s.name for s in strategies_for(group.family))
        raise ConfigError(
            f"node '{group.anchor.node.ref.name}': algorithm '{choice.algorithm}' of the plan cannot run "
            f"{group.anchor.node.op.name}; known are {usable}"
        )
    return choice


def wanted_borders(groups: Iterable[Group], decisions: Decisions) -> dict[ValueRef, Border]:
    """Zero borders around every value that some kernel reads blocked: the largest of its readers."""
    found: dict[ValueRef, Border] = {}
    for group in groups:
        choice = decisions[group.anchor.node.ref].choice
        for ref, border in STRATEGIES[choice.algorithm].borders(group, choice).items():
            found[ref] = border.join(found[ref]) if ref in found else border
    return found
