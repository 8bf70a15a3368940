"""extract-level: the network of one level, exactly as the full graph has it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from compiler.errors import VerifyError
from compiler.ir.graph import Graph
from compiler.ir.levels import at_level, level_count
from compiler.passes.base import NewNames, Pass, Refusal, Resources


@dataclass(frozen=True)
class ExtractLevel(Pass):
    """Make `level` the first one: those before it go, with what only they need.

    The levels behind it, which are nested in a level of sparsity, stay; `alone` drops them too, and the result is a
    network of one level. Either way a library of the result repeats the bits of this level. A network of one level
    may give that up: without `order` its layers run by whatever kernels are best, which sum in another order.
    """

    name: ClassVar[str] = "extract-level"
    exact: ClassVar[bool] = False
    new_names: ClassVar[NewNames] = NewNames.NONE
    keeps_levels: ClassVar[bool] = True

    level: int = 0
    alone: bool = False
    order: bool = True

    def wrong(self, graph: Graph, use: Resources) -> list[str]:
        kept = "order=false is for a network of one level; give alone=true too"
        return [] if self.alone or self.order else [kept]

    def levels_problem(self, count: int) -> str:
        return (
            "" if 0 <= self.level < count else f"there is no level {self.level}; there are levels 0 to {count - 1}"
        )

    def levels_after(self, count: int) -> int:
        return 1 if self.alone else count - self.level

    def rewrite(self, graph: Graph, use: Resources) -> Iterable[Refusal]:
        graph.assign(at_level(graph, self.level, alone=self.alone, order=self.order))
        return ()

    def ensures(self, before: Graph, after: Graph) -> None:
        wanted = self.levels_after(level_count(before))
        if level_count(after) != wanted:
            raise VerifyError(f"after extract-level: {level_count(after)} levels instead of {wanted}")
