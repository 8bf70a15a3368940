"""Pictures of graphs for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.commands import Tree
from compiler.errors import plural
from compiler.ir.graph import Graph
from compiler.outline import ROOT, Part, Stage, arranged, stages

MOST_STAGES = 255
"""Lines of a printed outline."""


def outline_records(graph: Graph) -> list[dict[str, object]]:
    """The stages, JSON-ready."""
    return [stage.record() for stage in stages(graph)]


def outline_tree(graph: Graph) -> Tree:
    """The outline as lines: a stage reads the one that it is drawn under, unless its line says `after` or `reads`.

    Owners have one colour each.
    """
    found = stages(graph)
    return _Drawing(graph, found).whole()


class _Drawing:
    """Lines of one graph."""

    def __init__(self, graph: Graph, found: Sequence[Stage]) -> None:
        self._graph, self._found = graph, found
        self._owners = {owners: n for n, owners in enumerate(dict.fromkeys(s.tasks for s in found), 1)}
        self._macs = sum(stage.macs for stage in found)
        self._left = MOST_STAGES

    def whole(self) -> Tree:
        """The root: name, inputs, totals."""
        inputs = ", ".join(f"{v.ref.name} {v.type}" for v in self._graph.inputs)
        nodes = sum(len(stage.nodes) for stage in self._found)
        size = f"{plural(nodes, 'node')} in {plural(len(self._found), 'stage')}"
        label = f"{self._graph.name}: {inputs}; {size}, {plural(self._macs, 'MAC')}"
        children = self._series_of(arranged(self._found), ROOT)
        missing = len(self._found) - MOST_STAGES
        if missing > 0:
            children += (Tree(f"and {missing} more stages; --json prints all"),)
        return Tree(label, children)

    def _series_of(self, branches: Sequence[Sequence[Part]], under: int) -> tuple[Tree, ...]:
        lines: list[Tree] = []
        for series in branches:
            for place, part in enumerate(series):
                if self._left <= 0:
                    return tuple(lines)
                self._left -= 1
                label = self._label(part.stage, under if place == 0 else None)
                children = self._series_of(part.branches, part.stage.number)
                lines.append(Tree(label, children, self._owners[part.stage.tasks]))
        return tuple(lines)

    def _label(self, stage: Stage, under: int | None) -> str:
        """`under`: the stage that the line is drawn below, if it is read from there."""
        operators = ", ".join(f"{n} x {name}" if n > 1 else name for name, n in stage.operators.items())
        said = [f"{stage.number}  {operators}", " ".join(stage.types)]
        if stage.macs:
            said.append(f"{stage.macs:,} MACs ({stage.macs / self._macs:.1%})")
        said.append(" + ".join(stage.tasks) or "no task")
        if stage.reads and len(self._graph.inputs) > 1:
            said.append(f"reads {', '.join(stage.reads)}")
        if stage.after and stage.after != (under,):
            said.append(f"after {', '.join(map(str, stage.after))}")
        if stage.gives:
            said.append(f"gives {', '.join(stage.gives)}")
        return "  ".join(said)
