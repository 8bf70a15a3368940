"""What two graphs do differently: nodes, tensors, and what every combination of tasks costs.

Nodes and parameters correspond by name; a node is changed where its operator, an attribute, the type of an operand
or the type of a result is another. A renamed node is one that went and one that came.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from compiler.cost.combine import Row, cost_report
from compiler.ir.graph import Graph, Site, Value
from compiler.ir.levels import level_suffix
from compiler.ir.text import attributes_text, parameter_digest, type_text
from compiler.ir.types import TaskSet

Part = Literal["input", "tensor", "node", "output"]
Kind = Literal["removed", "added", "changed"]


@dataclass(frozen=True, slots=True)
class Change:
    """One node, parameter, input or task output that only one graph has, or that differs.

    `what` names the property of a changed one; `before` and `after` are empty where there is nothing.
    """

    part: Part
    name: str
    kind: Kind
    what: str
    before: str
    after: str

    def record(self) -> dict[str, str]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class CostChange:
    """A combination of tasks at one level; the quantities are None on the side that has no such combination."""

    tasks: tuple[str, ...]
    level: int
    macs: tuple[int | None, int | None]
    flops: tuple[int | None, int | None]
    parameters: tuple[int | None, int | None]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return all(a == b for a, b in (self.macs, self.flops, self.parameters))

    def record(self) -> dict[str, object]:
        """JSON-ready; pairs are [before, after]."""
        pairs = {q: list(getattr(self, q)) for q in ("macs", "flops", "parameters")}
        return {"tasks": list(self.tasks), "level": self.level, **pairs}


def changes(before: Graph, after: Graph) -> list[Change]:
    """Everything that differs, inputs first, then tensors, nodes and outputs; empty for equal graphs."""
    return [
        *_differing("input", _inputs(before), _inputs(after)),
        *_differing("tensor", _parameters(before), _parameters(after)),
        *_differing("node", _nodes(before), _nodes(after)),
        *_differing("output", _outputs(before), _outputs(after)),
    ]


def cost_changes(before: Graph, after: Graph) -> list[CostChange]:
    """Every combination that either graph has, in the order of the first, then of the second; in which order a
    graph has its tasks is no difference.

    ConfigError beyond `compiler.cost.combine.MOST_TASKS` tasks.
    """
    sides = [_costs(before), _costs(after)]
    found = []
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        rows = [side.get(key) for side in sides]
        macs, flops, parameters = (
            (_quantity(rows[0], q), _quantity(rows[1], q)) for q in ("macs", "flops", "parameters")
        )
        found.append(CostChange(next(r.tasks for r in rows if r), key[1], macs, flops, parameters))
    return found


def _costs(graph: Graph) -> dict[tuple[TaskSet, int], Row]:
    return {(frozenset(r.tasks), r.level): r for level in cost_report(graph).levels for r in level}


def _quantity(row: Row | None, name: str) -> int | None:
    return None if row is None else int(getattr(row.cost, name))


# ---------------------------------------------------------------------- properties by name
Properties = Mapping[str, Mapping[str, str]]


def _differing(
    part: Literal["node", "tensor", "input", "output"], a: Properties, b: Properties
) -> Iterator[Change]:
    for name, one in a.items():
        if name not in b:
            yield Change(part, name, "removed", "", ", ".join(one.values()), "")
    for name, two in b.items():
        if name not in a:
            yield Change(part, name, "added", "", "", ", ".join(two.values()))
            continue
        for what, value in two.items():
            if a[name][what] != value:
                yield Change(part, name, "changed", what, a[name][what], value)


def _inputs(graph: Graph) -> Properties:
    return {v.ref.name: {"type": str(v.type)} for v in graph.inputs}


def _parameters(graph: Graph) -> Properties:
    return {v.ref.name: {"type": _type(v), "data": parameter_digest(v)[:12]} for v in graph.parameters()}


def _nodes(graph: Graph) -> Properties:
    return {site.node.ref.name: _node(site) for site in graph.sites()}


def _node(site: Site) -> Mapping[str, str]:
    reads = [site.operands.optional(i) for i in range(len(site.operands))]
    return {
        "operator": site.node.op.name,
        "attributes": attributes_text(site.node.attrs),
        "reads": ", ".join("-" if v is None else f"{v.ref.name} {_type(v)}" for v in reads),
        "results": ", ".join(map(_type, site.results)),
    }


def _outputs(graph: Graph) -> Properties:
    return {
        f"{task.name}/{label}{level_suffix(level)}": {
            "value": str(ref),
            "type": str(graph.value(ref).type),
        }
        for task in graph.tasks.values()
        for level, outputs in enumerate(task.ladder)
        for ref, label in zip(outputs, task.labels, strict=True)
    }


def _type(value: Value) -> str:
    levels = f" in {len(value.sparser) + 1} levels" if value.sparser else ""
    return f"{type_text(value.type)}{levels}"
