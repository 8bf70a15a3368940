"""Predicted times of graphs that are not compiled yet: what the planner would choose, and what that takes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from compiler.codegen.groups import Group, make_groups
from compiler.codegen.planner import Decision, Sources, decide
from compiler.codegen.target import Target, find_target
from compiler.codegen.tuning import TuningDatabase, database_of
from compiler.cost.count import node_cost
from compiler.ir.graph import Graph, Site, Value
from compiler.ir.types import NodeRef, ValueRef

SCALAR = 0.1
"""Share of the nominal peak that kernels without a cost model are taken to reach."""


@dataclass
class PlannedTimer:
    """The planner's choices as a clock: measured seconds where the database has them, else predicted ones.

    Kernels without a cost model (the generic route) count by their operations and bytes.
    """

    target: Target
    sources: Sources = field(default_factory=Sources)
    _known: dict[object, float] = field(default_factory=dict)

    @property
    def lanes(self) -> int:
        """See `passes.base.Timer`."""
        return self.target.machine.lanes

    def graph(self, graph: Graph) -> Mapping[NodeRef, float]:
        """See `passes.base.Timer`."""
        groups = make_groups(graph)
        decisions = decide(graph, groups, self.target, self.sources)
        return {g.anchor.node.ref: self._seconds(g, decisions[g.anchor.node.ref]) for g in groups}

    def site(self, site: Site, constants: frozenset[int]) -> float:
        """See `passes.base.Timer`."""
        operands = tuple((i, v.type, _stored(v)) for i, v in site.operands.present())
        key = site.node.op.name, repr(sorted(dict(site.attrs).items(), key=str)), operands, constants
        if key not in self._known:
            self._known[key] = sum(self.graph(_alone(site, constants)).values())
        return self._known[key]

    def _seconds(self, group: Group, decision: Decision) -> float:
        nanoseconds = decision.measured.get(decision.choice)
        if nanoseconds is not None:
            return nanoseconds * 1e-9
        return decision.predicted or self._rough(group)

    def _rough(self, group: Group) -> float:
        """Operations at a share of the peak, or bytes through the cache, whichever takes longer."""
        machine = self.target.machine
        cost = sum((node_cost(s) for s in group.sites[1:]), node_cost(group.sites[0]))
        weights = sum(v.type.bytes for v in group.inputs() if v.data is not None)
        moved = (cost.activation_bytes + weights) / machine.cache_bandwidth
        return 0.0 if group.family == "view" else max(cost.flops / (SCALAR * machine.peak_flops), moved)


def _stored(value: Value) -> int | None:
    """Elements that are stored of a parameter; None for anything else, and for one whose data are not known yet."""
    return None if value.data is None else value.type.encoding.stored(value.shape, value.data)


def _alone(site: Site, constants: frozenset[int]) -> Graph:
    """A graph of one node; weights get data of no meaning, not all equal."""
    graph = Graph("alone")
    refs: list[ValueRef | None] = [None] * len(site.operands)
    for i, value in site.operands.present():
        refs[i] = value.ref
        if value.ref in graph:
            continue
        if i in constants:
            graph.add_value(value.ref.name, value.type, _filled(value))
        else:
            graph.add_input(value.ref.name, value.type)
    for value in site.results:
        graph.add_value(value.ref.name, value.type)
    graph.add_node(site.node.ref.name, site.node.op, site.attrs, refs, [v.ref for v in site.results])
    graph.set_task("alone", [v.ref for v in site.results])
    return graph.freeze()


def _filled(value: Value) -> np.ndarray:
    if value.data is not None:
        return value.data
    return np.arange(value.size, dtype=value.dtype.numpy).reshape(value.shape)


@functools.cache
def planner_clock(target: str) -> PlannedTimer:
    """Predicted times on a target by name, with the measurements that come with taskgraft; ConfigError for unknown
    ones."""
    return timer_by(None, target)


def timer_by(named: Path | None, target: str) -> PlannedTimer:
    """Predicted times on a target by the measurements that `tuning.database_of` finds; errors as there."""
    goal = find_target(target)
    return PlannedTimer(goal, choosing_by(database_of(named, goal)))


def choosing_by(database: TuningDatabase) -> Sources:
    """Measured choices for the layers that the database knows, the rule for the others."""
    return Sources(measured=database, database=database.digest) if database.entries else Sources()
