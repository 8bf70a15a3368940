"""All samples through a graph, some nodes at a time: values of every sample side by side, until they are dropped.

Where these would take too much memory, values are made anew from others when they are read, sample by sample.

onnxruntime evaluates the nodes, one sample after the other on one thread, so a value does not depend on how nodes
were grouped or on how many samples there are.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """A part with what it read when it was run: it can be run again for any sample, whatever was changed since."""

    part: Part
    reads: Mapping[ValueRef, _Kept]


class _Kept:
    """A value on all samples: its arrays, or the run that makes them. `bytes` of all samples together."""

    __slots__ = ("arrays", "bytes", "ref", "run")

    def __init__(self, ref: ValueRef, size: int, run: _Run | None, arrays: list[np.ndarray | None]) -> None:
        self.ref, self.bytes, self.run, self.arrays = ref, size, run, arrays

    def of(self, sample: int) -> np.ndarray:
        """Its array of one sample, where it has them."""
        array = self.arrays[sample]
        assert array is not None, f"{self.ref} of sample {sample} was given up"
        return array


class Tape:
    """The values of `graph` on `feeds` (input name -> array of exactly the input's shape).

    `limit`: bytes of values that are kept (None: all), those of the feeds aside. A value beyond is made anew, one
    sample after the other, whenever it is read, from the nearest that are kept. `first`: the first sample's number.
    """

    def __init__(self, graph: Graph, feeds: Sequence[Feed], limit: int | None = None, first: int = 0) -> None:
        self.graph, self.first = graph, first
        self.samples = len(feeds)
        self._limit = limit
        self._values = {
            v.ref: _Kept(v.ref, 0, None, [np.ascontiguousarray(f[v.ref.name]) for f in feeds]) for v in graph.inputs
        }

    def __contains__(self, ref: ValueRef) -> bool:
        return ref in self._values

    @property
    def values(self) -> tuple[ValueRef, ...]:
        """All values that can be read, those of the feeds among them."""
        return tuple(self._values)

    @property
    def kept(self) -> int:
        """Bytes of the values that are in memory."""
        return _bytes(self._values.values())

    def run(self, nodes: Iterable[Node]) -> None:
        """Evaluate nodes, as the graph has them now; what they read must be there or among their results."""
        sites = [self.graph.site(n) for n in nodes]
        if sites and self._fits(sum(v.type.bytes for s in sites for v in s.results)):
            self._add(sites)
            return
        while sites:  # one by one, so that nothing is made for the sake of another one's value
            ahead = {v.ref for s in sites for v in s.results}
            later = [s for s in sites if not ahead.isdisjoint(v.ref for _, v in s.operands.present())]
            waiting = {s.node.ref for s in later}
            for site in sites:
                if site.node.ref not in waiting:
                    self._add([site])
            sites = later

    def _add(self, sites: Sequence[Site]) -> None:
        part = part_of(sites)
        run = _Run(part, {r: self._values[r] for r in part.reads})
        sizes = {v.ref: v.type.bytes * self.samples for s in sites for v in s.results}
        made = [_Kept(r, sizes[r], run, []) for r in part.makes]
        if self._fits(sum(v.type.bytes for s in sites for v in s.results)):
            self._fill(made)
        self._values |= {v.ref: v for v in made}

    def read(self, ref: ValueRef, first: int = 0, last: int | None = None) -> np.ndarray:
        """The value of samples first..last-1, one after the other along its first axis."""
        return self.together([ref], first, last)[0]

    def together(self, refs: Sequence[ValueRef], first: int = 0, last: int | None = None) -> list[np.ndarray]:
        """The same of several values: what they need that is not kept is made once."""
        values = {r: self.graph.value(r) for r in refs}
        wanted = [r for r, v in values.items() if v.data is None]
        which = range(self.samples)[first:last]
        columns: dict[ValueRef, list[np.ndarray]] = {
            r: [v.constant] * len(which) for r, v in values.items() if v.data is not None
        }
        columns |= {r: [] for r in wanted}
        for arrays in _made([self._values[r] for r in wanted], which):
            for ref, array in zip(wanted, arrays, strict=True):
                columns[ref].append(array)
        return [(np.concatenate if values[r].rank else np.stack)(columns[r]) for r in refs]

    def drop(self, *refs: ValueRef) -> None:
        """Forget values. Others that were not kept take their room, where that suffices."""
        for ref in refs:
            self._values.pop(ref, None)
        for value in [v for v in self._values.values() if v.run is not None]:
            others = [v for v in self._values.values() if v is not value]
            if self._limit is not None and _bytes(others) + value.bytes <= self._limit:
                needed = {id(v) for v in _reached(others)}
                self._fill([value], [v for v in _reached([value]) if v is not value and id(v) not in needed])

    def _fits(self, size: int) -> bool:
        """Whether values of so many bytes per sample can be kept."""
        return self._limit is None or self.kept + size * self.samples <= self._limit

    def _fill(self, values: Sequence[_Kept], last: Sequence[_Kept] = ()) -> None:
        """Make the values of all samples. `last`: values that nobody reads any more then."""
        made: list[list[np.ndarray | None]] = [[] for _ in values]
        for sample, arrays in enumerate(_made(values, range(self.samples))):
            for column, array in zip(made, arrays, strict=True):
                column.append(array)
            for value in last:
                if value.run is None:
                    value.arrays[sample] = None
        for value, column in zip(values, made, strict=True):
            value.arrays, value.run = column, None


def _reached(values: Iterable[_Kept]) -> list[_Kept]:
    """The values with all that are needed to make those that are not in memory."""
    found: dict[int, _Kept] = {}
    waiting = [*values]
    while waiting:
        value = waiting.pop()
        if id(value) not in found:
            found[id(value)] = value
            waiting += () if value.run is None else value.run.reads.values()
    return [*found.values()]


def _bytes(values: Iterable[_Kept]) -> int:
    """What is in memory for the sake of some values."""
    return sum(v.bytes for v in _reached(values) if v.run is None)


def _made(wanted: Sequence[_Kept], samples: Iterable[int]) -> Iterator[list[np.ndarray]]:
    """Sample by sample the arrays of some values; what is made on the way goes as soon as nobody reads it."""
    order = _order(wanted)
    if not order:
        yield from ([v.of(sample) for v in wanted] for sample in samples)
        return
    readers = Counter(id(v) for run, _ in order for v in run.reads.values()) + Counter(id(v) for v in wanted)
    for sample in samples:
        made: dict[int, np.ndarray] = {}
        left = dict(readers)
        for run, values in order:
            read = run.reads.items()
            outputs = run.part.run({r: v.of(sample) if v.run is None else made[id(v)] for r, v in read})
            made |= {id(v): outputs[v.ref] for v in values}
            del outputs
            for value in run.reads.values():
                left[id(value)] -= 1
                if not left[id(value)]:
                    made.pop(id(value), None)
        yield [v.of(sample) if v.run is None else made[id(v)] for v in wanted]


def _order(wanted: Sequence[_Kept]) -> list[tuple[_Run, list[_Kept]]]:
    """The runs that make some values, each behind those that it reads, and what is needed of each."""
    found: dict[int, tuple[_Run, list[_Kept]]] = {}
    seen: set[int] = set()
    waiting = [(v, False) for v in reversed(wanted)]
    while waiting:
        value, done = waiting.pop()
        if value.run is None:
            continue
        if done:
            found.setdefault(id(value.run), (value.run, []))[1].append(value)
        elif id(value) not in seen:
            seen.add(id(value))
            waiting.append((value, True))
            waiting += [(v, False) for v in value.run.reads.values()]
    return [*found.values()]


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
