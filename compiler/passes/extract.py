"""extract-tasks: the network of a subset of tasks, exactly as the full graph computes it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from compiler.errors import VerifyError
from compiler.ir.dead import sweep
from compiler.ir.graph import Graph
from compiler.passes.base import NewNames, Pass, Refusal, Resources


@dataclass(frozen=True)
class ExtractTasks(Pass):
    """Keep `tasks` (any order, at least one) and what they need; inputs that only others read go too.

    The nodes that stay are untouched, so every remaining output keeps its bits.
    """

    name: ClassVar[str] = "extract-tasks"
    exact: ClassVar[bool] = True
    new_names: ClassVar[NewNames] = NewNames.NONE
    keeps_levels: ClassVar[bool] = True

    tasks: tuple[str, ...] = ()

    def wrong(self, graph: Graph, use: Resources) -> list[str]:
        unknown = [t for t in self.tasks if t not in graph.tasks]
        if unknown or not self.tasks:
            what = f"there is no task {', '.join(map(repr, unknown))}" if unknown else "no task was named"
            return [f"{what}; the tasks are {', '.join(graph.tasks)}"]
        return []

    def rewrite(self, graph: Graph, use: Resources) -> Iterable[Refusal]:
        for task in tuple(graph.tasks):
            if task not in self.tasks:
                graph.drop_task(task)
        sweep(graph)
        for value in graph.inputs:
            if not graph.uses(value.ref) and not graph.is_output(value.ref):
                graph.remove(value.ref)
        return ()

    def ensures(self, before: Graph, after: Graph) -> None:
        if set(after.tasks) != set(self.tasks):
            raise VerifyError(f"after extract-tasks: the tasks are {', '.join(after.tasks)}")
        needed = after.needed_masks()
        for node in after.nodes():
            if node.ref not in needed:
                raise VerifyError(f"after extract-tasks: {node.op.name} '{node.ref}' is needed by no task")
