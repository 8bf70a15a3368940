"""All samples through a graph, some nodes at a time: values of every sample side by side, until they are dropped.

onnxruntime evaluates the nodes, one sample after the other on one thread, so a value does not depend on how nodes
were grouped or on how many samples there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from compiler.calibration.engine import Engine
from compiler.ir.graph import Graph, Node
from compiler.ir.onnx_out import to_onnx
from compiler.ir.types import ValueRef

Feed = Mapping[str, np.ndarray]


class Tape:
    """The values of `graph` on `feeds` (input name -> array of exactly the input's shape)."""

    def __init__(self, graph: Graph, feeds: Sequence[Feed]) -> None:
        self.graph = graph
        self.samples = len(feeds)
        names = [v.ref for v in graph.inputs]
        self._arrays = {r: [np.ascontiguousarray(f[r.name]) for f in feeds] for r in names}

    def __contains__(self, ref: ValueRef) -> bool:
        return ref in self._arrays

    def run(self, nodes: Iterable[Node]) -> None:
        """Evaluate nodes, as the graph has them now; what they read must be there or among their results."""
        part, results = self._part(list(nodes))
        if not results:
            return
        engine = Engine(to_onnx(part), optimise=False)
        read = [v.ref for v in part.inputs]
        made: dict[ValueRef, list[np.ndarray]] = {r: [] for r in results}
        for sample in range(self.samples):
            outputs = engine.run({r.name: self._arrays[r][sample] for r in read})
            for ref in results:
                made[ref].append(outputs[ref.name])
        self._arrays |= made

    def read(self, ref: ValueRef, first: int = 0, last: int | None = None) -> np.ndarray:
        """The value of samples first..last-1, one after the other along its first axis."""
        value = self.graph.value(ref)
        arrays = (
            self._arrays[ref][first:last]
            if value.data is None
            else [value.data] * len(range(self.samples)[first:last])
        )
        return np.concatenate(arrays) if value.rank else np.stack(arrays)

    def drop(self, ref: ValueRef) -> None:
        """Forget a value."""
        self._arrays.pop(ref, None)

    def _part(self, nodes: Sequence[Node]) -> tuple[Graph, list[ValueRef]]:
        """The nodes as a graph of their own, and what they make."""
        part = Graph("part")
        made = {v.ref for n in nodes for v in self.graph.results(n)}
        for node in nodes:
            for _, value in self.graph.operands(node).present():
                if value.ref in made or value.ref in part:
                    continue
                if value.data is not None:
                    part.add_value(value.ref.name, value.type, value.data)
                else:
                    part.add_input(value.ref.name, value.type)
        for value in (v for n in nodes for v in self.graph.results(n)):
            part.add_value(value.ref.name, value.type)
        for node in nodes:
            site = self.graph.site(node)
            reads = [site.operands.optional(i) for i in range(len(site.operands))]
            refs = [None if v is None else v.ref for v in reads]
            part.add_node(node.ref.name, node.op, node.attrs, refs, [v.ref for v in site.results])
        results = sorted(made)
        if results:
            part.set_task("part", results)
        return part, results
