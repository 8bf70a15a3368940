"""LSTM, GRU and RNN."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from compiler.codegen.groups import Group
from compiler.codegen.kernels import Builder, Built, Slot, plain_slot
from compiler.codegen.strategies.base import Candidate, Choice, Situation, Strategy
from compiler.codegen.templates import recurrent
from compiler.ir.graph import Value
from compiler.ir.types import ValueRef


class Recurrent(Strategy):
    """One kernel for all steps of a layer; its units of work are the directions."""

    name = "recurrent"
    version = 2
    families = ("recurrent",)

    def candidates(self, group: Group, situation: Situation) -> Iterable[Candidate]:
        return [Candidate(Choice(self.name), 0.0)]

    def build(self, builder: Builder, group: Group, choice: Choice, stored: Sequence[Value]) -> Built:
        site = group.anchor
        lowered = recurrent.lower_site(site, builder.target)
        slots: list[Slot] = []
        for item in lowered.inputs:
            if isinstance(item, ValueRef):
                value = builder.graph.value(item)
                slots.append(
                    plain_slot(value) if value.data is None else builder.constant(value, value.data, "plain")
                )
            else:
                slots.append(builder.table(str(site.node.ref), item, "recurrent"))
        slots += [plain_slot(v) for v in site.results]
        return Built(("recurrent", lowered.shape), lowered.func, tuple(slots), self.name, lowered.shape.directions)
