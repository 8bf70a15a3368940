"""The generic route: any operator's own lowering, fused and scheduled by default rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from compiler.codegen.generic.kernel import lower_group
from compiler.codegen.groups import Group
from compiler.codegen.kernels import Builder, Built, Slot, value_slot
from compiler.codegen.strategies.base import Candidate, Choice, Situation, Strategy
from compiler.ir.graph import Value


class Generic(Strategy):
    """Tensor expressions of the nodes as one kernel; for reinterpreted shapes, where they cannot be views."""

    name = "generic"
    families = ("generic", "view")

    def candidates(self, group: Group, situation: Situation) -> Iterable[Candidate]:
        return [Candidate(Choice(self.name), 0.0)]

    def build(self, builder: Builder, group: Group, choice: Choice, stored: Sequence[Value]) -> Built:
        made = lower_group(group.sites, stored, builder.layouts, builder.target.lanes)
        name = group.sites[-1].node.ref.name
        slots = [Slot("value", r) for r in made.inputs]
        slots += [builder.table(f"{name}.table", t, "plain") for t in made.tables]
        slots += [value_slot(v) for v in stored]
        return Built(builder.key(made.func), made.func, tuple(slots), "generic", made.parts)
