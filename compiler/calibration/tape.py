"""All samples through a graph, some nodes at a time: values of every sample side by side, until they are dropped.

onnxruntime evaluates the nodes, one sample after the other on one thread, so a value does not depend on how nodes
were grouped or on how many samples there are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.calibration.engine import Engine
from compiler.ir.graph import Graph, Node, Site, Value
from compiler.ir.onnx_out import to_onnx
from compiler.ir.types import ValueRef

Feed = Mapping[str, np.ndarray]

KEPT_BYTES = 64 << 20
"""Bytes of the values of parts that stay ready to run: passes walk through the same nodes again and again."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some nodes ready to run: what they read that is not constant, what they make, bytes of all their values."""

    engine: Engine
    reads: tuple[ValueRef, ...]
    makes: tuple[ValueRef, ...]
    bytes: int

    def run(self, arrays: Mapping[ValueRef, np.ndarray]) -> dict[ValueRef, np.ndarray]:
        """What the nodes make of one sample. `arrays`: all that they read, and whatever else."""
        outputs = self.engine.run({r.name: arrays[r] for r in self.reads})
        return {r: outputs[r.name] for r in self.makes}


class Parts:
    """Parts by their nodes and values, as long as the latest ones take no more than `limit` bytes together.

    Payloads are replaced and never mutated, so the same objects are the same part, in whatever graph they are.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._kept: OrderedDict[tuple[object, ...], Part] = OrderedDict()

    def of(self, sites: Sequence[Site]) -> Part:
        """The nodes of these sites as a part. UnsupportedModelError where onnxruntime cannot open it."""
        key = tuple((s.node, _positions(s), s.results) for s in sites)
        part = self._kept.get(key)
        if part is not None:
            self._kept.move_to_end(key)
            return part
        part = self._kept[key] = _part(sites)
        self._bytes += part.bytes
        while self._bytes > self._limit:
            self._bytes -= self._kept.popitem(last=False)[1].bytes
        return part


_parts = Parts(KEPT_BYTES)


def part_of(sites: Sequence[Site]) -> Part:
    """The nodes of these sites ready to run. UnsupportedModelError where onnxruntime cannot open them."""
    return _parts.of(sites)


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
        sites = [self.graph.site(n) for n in nodes]
        if not sites:
            return
        part = part_of(sites)
        made: dict[ValueRef, list[np.ndarray]] = {r: [] for r in part.makes}
        for sample in range(self.samples):
            outputs = part.run({r: self._arrays[r][sample] for r in part.reads})
            for ref in part.makes:
                made[ref].append(outputs[ref])
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


def _positions(site: Site) -> tuple[Value | None, ...]:
    """The operands by formal position."""
    return tuple(site.operands.optional(i) for i in range(len(site.operands)))


def _part(sites: Sequence[Site]) -> Part:
    """The nodes as a graph of their own, opened."""
    graph = Graph("part")
    made = {v.ref: v for s in sites for v in s.results}
    read = {v.ref: v for s in sites for _, v in s.operands.present() if v.ref not in made}
    for value in read.values():
        if value.data is not None:
            graph.add_value(value.ref.name, value.type, value.data)
        else:
            graph.add_input(value.ref.name, value.type)
    for value in made.values():
        graph.add_value(value.ref.name, value.type)
    for site in sites:
        refs = [None if v is None else v.ref for v in _positions(site)]
        graph.add_node(site.node.ref.name, site.node.op, site.attrs, refs, [v.ref for v in site.results])
    makes = sorted(made)
    graph.set_task("part", makes)
    size = sum(v.type.bytes for v in (*read.values(), *made.values()))
    return Part(Engine(to_onnx(graph), optimise=False), tuple(v.ref for v in graph.inputs), tuple(makes), size)
