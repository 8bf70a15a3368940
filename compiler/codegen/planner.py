"""The plan: which algorithm and tile every group runs with, once for the whole graph and all its subsets.

A choice comes, in this order, from a recorded plan, from the measurements of a tuning database, or from the
strategies' own prediction. None of the three measures anything, so the plan is a pure function of its inputs.
Whatever the source, only choices that the strategies themselves propose for a group are ever built.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from compiler.codegen.families import CONVOLUTIONS
from compiler.codegen.groups import Group, describe, joint
from compiler.codegen.layout import Border
from compiler.codegen.layouts import channel_widths
from compiler.codegen.siblings import layer_order, sibling_sets
from compiler.codegen.strategies import STRATEGIES, strategies_for
from compiler.codegen.strategies.base import Candidate, Choice, Situation
from compiler.codegen.target import Target
from compiler.cost.count import parameter_cost
from compiler.errors import ConfigError, LoweringError, listed
from compiler.ir.graph import Graph, Value
from compiler.ir.types import NodeRef, ValueRef

WORTH_JOINING = 0.92
"""Predicted share of the siblings' time from which on one kernel for them is built: above it, measured times went
either way, and a kernel of its own costs code."""


class Measured(Protocol):
    """Measurements a plan may rest on."""

    def times(self, group: Group, target: Target) -> Mapping[Choice, int]:
        """Nanoseconds of every choice that was measured for a group like this one."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What was chosen for a group, from which source, among which candidates (best predicted first)."""

    choice: Choice
    source: str
    """`database`: the fastest measured one; `rule`: the best predicted one; `plan`: recorded, neither of these."""
    candidates: tuple[Candidate, ...]
    measured: Mapping[Choice, int] = field(default_factory=dict)
    """Nanoseconds of those candidates that were measured."""

    @property
    def predicted(self) -> float | None:
        """Predicted seconds of the choice, where the rule knows it."""
        return next((c.seconds for c in self.candidates if c.choice == self.choice), None)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where choices may come from besides the rule."""

    recorded: Mapping[str, Choice] = field(default_factory=dict)
    """By name of the group's first node."""
    fused: Mapping[str, tuple[str, ...]] | None = None
    """Of a complete plan: the nodes of every group, by the first one. None: `recorded` names some groups only."""
    measured: Measured | None = None
    database: str = ""
    """SHA-256 (hex) of the database that `measured` was read from."""


Decisions = Mapping[NodeRef, Decision]
"""By the group's first node."""


def decide(graph: Graph, groups: Sequence[Group], target: Target, sources: Sources) -> Decisions:
    """A decision for every group. ConfigError where a recorded plan does not fit the graph."""
    known = situation(graph, groups, target)
    ranked = {g.anchor.node.ref.name: candidates(g, known) for g in groups}
    problems = [*_misfits(groups, ranked, sources), *_refusals(groups, ranked, sources)]
    if problems:
        raise ConfigError(
            f"the plan for {target.name} does not fit graph '{graph.name}': it was made from other models, by "
            f"other passes, or by another version of taskgraft{listed(problems)}\n"
            "Compile without it, or make a new plan from these models"
        )
    return {g.anchor.node.ref: _decide(g, ranked[g.anchor.node.ref.name], target, sources) for g in groups}


def form(graph: Graph, groups: Sequence[Group], target: Target, sources: Sources) -> tuple[Group, ...]:
    """The groups layer by layer, siblings as one group where a single kernel for them is recorded or, without a
    record of them, better: measured so where all of it was measured, else predicted."""
    ordered = layer_order(groups)
    known = situation(graph, ordered, target)
    joined: dict[int, Group | None] = {}
    for members in sibling_sets(ordered):
        made = joint([ordered[n] for n in members])
        recorded = _recorded_joint(made, sources)
        if _worth_joining(made, known, sources) if recorded is None else recorded:
            joined |= dict.fromkeys(members) | {members[0]: made}
    formed = (joined.get(n, group) for n, group in enumerate(ordered))
    return tuple(g for g in formed if g is not None)


def _recorded_joint(made: Group, sources: Sources) -> bool | None:
    """Whether a recorded plan has one kernel for siblings; None where it does not say."""
    names = [m.anchor.node.ref.name for m in made.members]
    if sources.fused is not None:
        return sources.fused.get(names[0]) == describe(made)
    if any(n in sources.recorded for n in names[1:]):
        return False
    first = sources.recorded.get(names[0])
    return None if first is None else first.algorithm in [s.name for s in strategies_for("siblings")]


def _worth_joining(made: Group, known: Situation, sources: Sources) -> bool:
    """Whether the best single kernel clearly beats the sum of the members' best."""
    together = candidates(made, known)
    if not together:
        return False
    if sources.measured is not None:
        times = [list(sources.measured.times(g, known.target).values()) for g in (made, *made.members)]
        if all(times):
            return min(times[0]) < sum(map(min, times[1:]))
    return together[0].seconds < WORTH_JOINING * sum(candidates(m, known)[0].seconds for m in made.members)


def situation(graph: Graph, groups: Iterable[Group], target: Target) -> Situation:
    """The facts of the whole network that candidates depend on."""
    padded = {v.ref for g in groups if g.family in CONVOLUTIONS and any(g.anchor.ints("pads")) for v in g.segments}
    weights = sum(_weight_bytes(v) for v in graph.parameters() if v.dtype.is_float)
    return Situation(target, frozenset(padded), weights, channel_widths(tuple(groups), target.machine))


def _weight_bytes(value: Value) -> int:
    """Bytes of a weight; of one with levels as if all of it were stored, so that each level has the plan of the
    others where it is compiled by itself."""
    return value.type.bytes if value.nested else parameter_cost(value).weight_bytes


def candidates(group: Group, known: Situation) -> tuple[Candidate, ...]:
    """Every way to run a group at all its sparsity levels, best predicted first.

    What was taken from levels that no kernel can switch runs as if it had never had any.
    """
    strategies = strategies_for(group.family)
    found = [c for s in strategies if s.levels or not group.nested for c in s.candidates(group, known)]
    if not found and group.levels == 1:
        found = [c for s in strategies for c in s.candidates(group, known)]
    return tuple(sorted(found, key=lambda c: c.seconds))


def _decide(group: Group, found: tuple[Candidate, ...], target: Target, sources: Sources) -> Decision:
    if not found:
        levels = f" to weights with {group.levels} levels; nest it in other blocks, or exclude it"
        raise LoweringError(
            f"{group.anchor.node.op.name} '{group.anchor.node.ref.name}': no strategy applies"
            + levels * (group.levels > 1)
        )
    times = sources.measured.times(group, target) if sources.measured else {}
    measured = {c.choice: times[c.choice] for c in found if c.choice in times}
    fastest = min(measured, key=lambda c: (measured[c], c.algorithm, c.tile), default=None)
    recorded = sources.recorded.get(group.anchor.node.ref.name)
    choice = recorded or fastest or found[0].choice
    source = "database" if choice == fastest else "rule" if choice == found[0].choice else "plan"
    return Decision(choice, source, found, measured)


def _misfits(groups: Sequence[Group], ranked: Mapping[str, Sequence[Candidate]], sources: Sources) -> Iterator[str]:
    """Where the groups of a recorded plan are not those of the graph."""
    here = {g.anchor.node.ref.name: describe(g) for g in groups}
    for name in sorted(set(sources.recorded) - set(here)):
        yield f"'{name}': no kernel begins with a node of this name here"
    if sources.fused is None:
        return
    for name, nodes in here.items():
        planned = sources.fused.get(name)
        if planned is None and len(ranked[name]) > 1:
            yield f"'{name}': the plan does not say how it runs, and there are {len(ranked[name])} ways"
        elif planned is not None and planned != nodes:
            yield f"'{name}': one kernel for {', '.join(planned)} in the plan, for {', '.join(nodes)} here"


def _refusals(
    groups: Sequence[Group], ranked: Mapping[str, Sequence[Candidate]], sources: Sources
) -> Iterator[str]:
    """Recorded choices that no strategy proposes: unknown, not for this layer, too inaccurate, or out of range."""
    for group in groups:
        name = group.anchor.node.ref.name
        choice = sources.recorded.get(name)
        if choice is None or any(c.choice == choice for c in ranked[name]):
            continue
        algorithms = dict.fromkeys(c.choice.algorithm for c in ranked[name])
        what = f"'{name}' ({group.anchor.node.op.name}): '{choice}' of the plan"
        if choice.algorithm in algorithms:
            like = next(c.choice for c in ranked[name] if c.choice.algorithm == choice.algorithm)
            yield f"{what} has a tile that this layer cannot run with; '{like}' would do"
        elif choice.algorithm in STRATEGIES:
            yield f"{what} does not apply to it, or would lose accuracy; there are {', '.join(algorithms)}"
        else:
            yield f"{what} is unknown; there are {', '.join(algorithms)}"


def wanted_borders(groups: Iterable[Group], decisions: Decisions) -> dict[ValueRef, Border]:
    """Zero borders around every value that some kernel reads blocked: the largest of its readers."""
    found: dict[ValueRef, Border] = {}
    for group in groups:
        choice = decisions[group.anchor.node.ref].choice
        for ref, border in STRATEGIES[choice.algorithm].borders(group, choice).items():
            found[ref] = border.join(found[ref]) if ref in found else border
    return found
