"""remove-dead-code: drop every node and parameter that no task needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from compiler.errors import VerifyError
from compiler.ir.dead import sweep
from compiler.ir.graph import Graph
from compiler.passes.base import NewNames, Pass, Refusal, Resources


@dataclass(frozen=True)
class RemoveDeadCode(Pass):
    """Remove nodes and parameters that no task needs. Network inputs stay: they are part of the interface."""

    name: ClassVar[str] = "remove-dead-code"
    exact: ClassVar[bool] = True
    new_names: ClassVar[NewNames] = NewNames.NONE
    keeps_levels: ClassVar[bool] = True

    def rewrite(self, graph: Graph, use: Resources) -> Iterable[Refusal]:
        sweep(graph)
        return ()

    def ensures(self, before: Graph, after: Graph) -> None:
        if sweep(after.copy()):
            raise VerifyError("after remove-dead-code: something that no task needs is still there")
