"""The merged graph, place by place: one node per label where a stream is labelled, the original nodes elsewhere.

Walking the places in order, everything a node may read is there already, evaluated on the calibration inputs, so
every layer is fitted on the merged network's own values. A layer of label S reads the entries whose tasks contain
S's; that is the closure rule, and it makes every subset's network a restriction of the full one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from compiler.ir.graph import Graph, Node, NodeRef, Value
from compiler.ir.op import operator
from compiler.ir.types import ValueRef
from compiler.passes.linear import channel_dim
from compiler.passes.merge.channels import Role
from compiler.passes.merge.emit import Clone, concat, emit, parameter, set_parameter
from compiler.passes.merge.entries import Entry, ordered, original_entry
from compiler.passes.merge.labels import Channel, Labelling, Slab, base_name, separate, slabs, task_order
from compiler.passes.merge.layer import LayerFit, PriorOf, as_is
from compiler.passes.merge.originals import Originals, is_depthwise
from compiler.passes.merge.recurrent import Cell, Cells, placed_inputs
from compiler.passes.merge.refit import addend, store, takes_constant
from compiler.passes.merge.room import bounded_tape
from compiler.passes.merge.rows import restored
from compiler.passes.merge.solve import Freedom
from compiler.passes.merge.statistics import depthwise_taps, moved_statistics
from compiler.passes.merge.streams import Place, Source, Stream, Streams
from compiler.progress import counted

Decide = Callable[["Assembly", Place, Sequence[Stream]], Labelling]
"""Labels of streams that are about to be written for the first time; streams it leaves out stay as they are."""


@dataclass(slots=True)
class Findings:
    """What came out: per layer its held-out residual, and labels that found nothing to read.

    `residuals`: (place, tasks) -> error of the layer's results as a share of their variance. `unread`: (place,
    groups) of labels no entry of which the layer may read.
    """

    residuals: dict[tuple[int, int], float] = field(default_factory=dict)
    unread: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)


class Assembly:
    """One pass over all places that rewrites `graph`, a mutable copy of the originals' graph."""

    def __init__(
        self,
        graph: Graph,
        streams: Streams,
        originals: Originals,
        decide: Decide,
        *,
        freedom: Freedom = Freedom.WEIGHTS,
        prior_of: PriorOf = as_is,
    ) -> None:
        self.graph, self.streams, self.originals, self.freedom = graph, streams, originals, freedom
        self.tape = bounded_tape(graph, originals.feeds)
        self.labelling: dict[int, tuple[Channel, ...]] = {}
        self.findings = Findings()
        self._decide, self._prior_of = decide, prior_of
        self._decided: set[int] = set()
        self._slabs: dict[int, tuple[Slab, ...]] = {}
        self._changed: set[ValueRef] = set()
        self._offsets: dict[ValueRef, np.ndarray] = {}
        self._entries: dict[ValueRef, list[Entry]] = {}
        masks = streams.alignment.masks
        for value in graph.inputs:
            self._entries[value.ref] = [Entry(value.ref, masks.get(value.ref, 0), original=True)]
        self.made: dict[NodeRef, int] = {}
        """Node made here -> the tasks it is for."""
        self._left = {v.ref: len(streams.graph.uses(v.ref)) for v in streams.graph.values()}
        self._fit: tuple[Place, list[Entry], LayerFit] | None = None
        """The latest measurements: labels are chosen by them, and then the layer is fitted."""

    def run(self) -> Findings:
        """Rewrite all places; the old nodes that nobody reads any more stay behind for a sweep."""
        steps: Mapping[Role, Callable[[Place], None]] = {
            Role.LAYER: self._layer,
            Role.RECURRENT: self._recurrent,
            Role.TABLE: self._table,
            Role.EACH: self._each,
            Role.ROUTE: self._route,
            Role.WHOLE: self._whole,
        }
        for place in counted("merge: layers", self.streams.places):
            steps[place.role](place)
            self._release(place)
        return self.findings

    def outputs(self, ref: ValueRef) -> np.ndarray:
        """A task output of the merged graph on all samples."""
        return self.tape.read(ref)

    def fit(self, place: Place) -> LayerFit:
        """Measurements of a layer over everything that can be read there now."""
        entries = ordered([self._entries[s.site.operands[0].ref] for s in place.sources])
        if self._fit is None or self._fit[:2] != (place, entries):
            self._fit = place, entries, LayerFit(self.tape, self.streams.channels, place, entries, self.originals)
        return self._fit[2]

    def readable(self, place: Place, groups: Sequence[int]) -> list[Entry]:
        """What a layer of the label `groups` may read."""
        sources, mask = place.holding(groups), place.mask_of(groups)
        lists = [self._entries[s.site.operands[0].ref] for s in sources]
        return [e for e in ordered(lists) if e.mask & mask == mask]

    # ------------------------------------------------------------------ layers
    def _layer(self, place: Place) -> None:
        self._settle(place)
        slabs, kept = self._labelled(place)
        fit = self.fit(place) if slabs or self._moved(place) else None
        for source in kept:
            self._keep_layer(place, source, fit)
        for slab in slabs:
            assert fit is not None
            self._label_layer(place, slab, fit)

    def _labelled(self, place: Place) -> tuple[list[Slab], list[Source]]:
        """What is made by label at a place of layers, and the nodes that stay."""
        written = [self.streams.of_group[g] for s in place.sources for g in s.groups]
        labelled = {s.index for s in written if s.index in self.labelling}
        kept = []
        for source in place.sources:
            if labelled.isdisjoint(self.streams.of_group[g].index for g in source.groups):
                kept.append(source)
            else:
                self._entries |= {value.ref: [] for value in source.site.results}
        found = [s for index in sorted(labelled) for s in self._slabs[index] if place.holding(s.groups)]
        return found, kept

    def _settle(self, place: Place) -> None:
        """Have streams labelled that this place is the first to write, with all streams that share a value."""
        groups = [g for s in place.sources for g in s.groups]
        fresh = [s for s in self.streams.bundle(groups) if s.index not in self._decided]
        if not fresh:
            return
        self._decided.update(s.index for s in fresh)
        found = dict(self._decide(self, place, fresh))
        if found:
            found = {s.index: found.get(s.index, separate(self.streams, s)) for s in fresh}
        for stream in fresh:
            if stream.index in found:
                self.labelling[stream.index] = found[stream.index]
                self._slabs[stream.index] = slabs(self.streams, stream, found[stream.index])

    def _moved(self, place: Place) -> bool:
        """Whether anything that the place reads is not the original value any more."""
        entries = [e for s in place.sources for e in self._entries[s.site.operands[0].ref]]
        return any(not e.original or e.value in self._changed for e in entries)

    def _keep_layer(self, place: Place, source: Source, fit: LayerFit | None) -> None:
        """The node stays; it reads what its operand has become, with weights fitted to what it computed before."""
        site, result = source.site, source.site.results[0]
        entries = [e for e in self._entries[site.operands[0].ref] if e.mask & source.mask == source.mask]
        unchanged = len(entries) == 1 and entries[0].original and entries[0].value not in self._changed
        if fit is not None and not unchanged:
            solved = fit.solve_source(source, entries, takes_constant(self.streams.graph, site), self.freedom)
            axis = channel_dim(site, site.operands[0])
            read = concat(self.graph, site.node.ref.name, [e.value for e in entries], axis)
            self._run_new([read], source.mask)
            if read != site.operands[0].ref:
                self.graph.set_operand(site.node.ref, 0, read)
            store(self.graph, self.streams.graph, site, solved)
            self._changed.add(result.ref)
            self.findings.residuals[place.index, source.mask] = solved.residual
        self.tape.run([self.graph.node(site.node.ref)])
        self._entries[result.ref] = [original_entry(self.streams, source, result)]

    def _label_layer(self, place: Place, slab: Slab, fit: LayerFit) -> None:
        """One node for the channels of a slab."""
        sources, mask = place.holding(slab.groups), place.mask_of(slab.groups)
        entries = self._read(place, slab.groups)
        site, result = sources[0].site, sources[0].site.results[0]
        solved, columns = fit.solve_slab(sources, slab, entries, self.freedom, self._prior_of)
        self.findings.residuals[place.index, mask] = max(
            solved.residual, self.findings.residuals.get((place.index, mask), 0.0)
        )
        name = self._name(sources[0], mask)
        axis = channel_dim(site, site.operands[0])
        read = concat(self.graph, name, [e.value for e in entries], axis)
        reads = [read, parameter(self.graph, f"{name}/weight", restored(site, solved.weights[0]), result.dtype)]
        if site.node.op.name != "MatMul":
            reads.append(parameter(self.graph, f"{name}/bias", solved.offset[0], result.dtype))
        (made,) = emit(self.graph, name, site.node.op, site.attrs, reads)
        if site.node.op.name == "MatMul" and solved.refitted:
            made = self._with_constant(name, sources, made, solved.offset[0])
        self._run_new([read, made.ref], mask)
        entry = Entry(made.ref, mask, (slab,), (columns,))
        for source in sources:
            self._entries[source.site.results[0].ref].append(entry)

    def _read(self, place: Place, groups: tuple[int, ...]) -> list[Entry]:
        """What a layer of a label reads; where it may read nothing, that is noted, and all that its first network
        reads stands in.
        """
        entries = self.readable(place, groups)
        if not entries:
            self.findings.unread.append((place.index, groups))
            entries = [e for s in place.holding(groups)[:1] for e in self._entries[s.site.operands[0].ref]]
        return entries

    # ------------------------------------------------------------------ recurrent layers
    def _recurrent(self, place: Place) -> None:
        self._settle(place)
        slabs, kept = self._labelled(place)
        for source in kept:
            self._keep_recurrent(source)
        by_mask: dict[int, list[Slab]] = {}
        for slab in slabs:
            by_mask.setdefault(place.mask_of(slab.groups), []).append(slab)
        cells = Cells(self.graph, self.streams.channels, place)
        for mask in sorted(by_mask, key=task_order):
            self._label_recurrent(place, cells, mask, by_mask[mask])

    def _keep_recurrent(self, source: Source) -> None:
        """The node stays, with its weights where what it read is now."""
        x = source.site.operands[0]
        entries = [e for e in self._entries[x.ref] if e.mask & source.mask == source.mask]
        moved = len(entries) != 1 or not entries[0].original
        if moved:
            weights = placed_inputs(self.graph, self.streams.channels, source.site, entries)
            read = concat(self.graph, source.ref.name, [e.value for e in entries], 2)
            self._run_new([read], source.mask)
            self.graph.set_operand(source.ref, 0, read)
            set_parameter(self.graph, source.ref, 1, weights)
        self._keep(source)
        if moved:
            self._changed.update(v.ref for v in source.site.results)

    def _label_recurrent(self, place: Place, cells: Cells, mask: int, slabs: Sequence[Slab]) -> None:
        """Nodes for all hidden units of one set of tasks."""
        groups = tuple(sorted({g for slab in slabs for g in slab.groups}))
        sources = place.holding(groups)
        cell = Cell(self._name(sources[0], mask), mask, sources, tuple(slabs))
        above = cells.above(mask)
        cells.add(cell, self._read(place, groups))
        for larger in above:
            self._run_new([*larger.before.values()], larger.mask)
        for result in range(len(sources[0].site.results)):
            values = [s.site.results[result].ref for s in place.sources]
            if any(self.streams.graph.uses(v) for v in values):
                entries = cells.by_slab(cell, result)
                self._run_new([e.value for e in entries], mask)
                for source in sources:
                    self._entries[source.site.results[result].ref] += entries

    # ------------------------------------------------------------------ tables
    def _table(self, place: Place) -> None:
        """Tables by label, looked up by the same indices; nothing is fitted, as they read no channels."""
        self._settle(place)
        slabs, kept = self._labelled(place)
        for source in kept:
            self._keep(source)
        for slab in slabs:
            sources, mask = place.holding(slab.groups), place.mask_of(slab.groups)
            site = sources[0].site
            clone = Clone(self.graph, self.streams.channels, sources, (slab,), self._name(sources[0], mask))
            made = clone.add({1: site.operands[1].ref}, {})
            self._run_new([made.ref], mask)
            entry = Entry(made.ref, mask, (slab,), clone.columns(site.results[0]))
            for source in sources:
                self._entries[source.site.results[0].ref].append(entry)

    def _with_constant(self, name: str, sources: Sequence[Source], product: Value, offset: np.ndarray) -> Value:
        """A product without a place for a constant leaves it to the Add behind it, or gets one."""
        addends = [addend(self.streams.graph, s.site) for s in sources]
        roles = self.streams.channels.roles
        if all(a is not None and roles[a[0].ref] is Role.EACH for a in addends):
            self._offsets[product.ref] = offset
            return product
        constant = parameter(self.graph, f"{name}/constant", offset, product.dtype)
        return emit(self.graph, f"{name}/add", operator("Add"), {}, [product.ref, constant])[0]

    def _name(self, source: Source, mask: int) -> str:
        """`layer[a+b]`, for readers only; the task's prefix goes where several tasks share the node."""
        tasks = self.streams.alignment.names(mask)
        return f"{base_name(source.ref.name, self.streams.alignment.tasks)}[{'+'.join(tasks)}]"

    # ------------------------------------------------------------------ the other roles
    def _each(self, place: Place) -> None:
        for source in place.sources:
            if self._untouched(source):
                self._keep(source)
            else:
                self._entries[source.site.results[0].ref] = []
        rest = [s for s in place.sources if not self._untouched(s)]
        lists = {s.ref: self._entries[self._data(s)[0][1].ref] for s in rest}
        for entry in ordered(list(lists.values())):
            holding = [s for s in rest if any(e is entry for e in lists[s.ref])]
            self._clone(place, holding, entry)

    def _clone(self, place: Place, sources: Sequence[Source], entry: Entry) -> None:
        first = sources[0]
        operands = {i: self._counterpart(entry, v) for i, v in self._data(first)}
        mask = sum(s.mask for s in sources)
        name = self._name(first, mask)
        clone = Clone(self.graph, self.streams.channels, sources, entry.slabs, name)
        change: dict[int, np.ndarray] = {}
        if is_depthwise(first.site, place.role):
            fitted = depthwise_taps(self.tape, self.originals, sources, entry, clone, self.freedom)
            change = fitted.parameters
            key = (place.index, mask)
            self.findings.residuals[key] = max(fitted.residual, self.findings.residuals.get(key, 0.0))
        elif first.site.node.op.name == "BatchNormalization" and self.freedom > Freedom.NOTHING:
            change = moved_statistics(self.tape, self.originals, sources, entry, clone)
        elif entry.value in self._offsets:
            (index,) = (i for i, v in first.site.operands.present() if v.data is not None)
            base = clone.parameter(index)
            change = {index: base + self._offsets[entry.value].reshape(base.shape)}
        made = clone.add({i: e.value for i, e in operands.items()}, change)
        self._run_new([made.ref], mask)
        columns = clone.columns(first.site.results[0])
        found = Entry(made.ref, mask, entry.slabs, columns)
        for source in sources:
            self._entries[source.site.results[0].ref].append(found)

    def _counterpart(self, entry: Entry, value: Value) -> Entry:
        """The entry of another operand that holds the same channels."""
        return next(e for e in self._entries[value.ref] if e.slabs == entry.slabs)

    def _route(self, place: Place) -> None:
        for source in place.sources:
            if self._untouched(source):
                self._keep(source)
        moved = [s for s in place.sources if not self._untouched(s)]
        whole = self._beside(moved)
        for source in moved:
            operands = [v.ref for _, v in self._data(source)]
            read = [e for r in operands for e in ([whole[r]] if r in whole else self._entries[r])]
            for result in source.site.results:
                groups = set(self.streams.channels.parts(result))
                kept = [e for e in read if e.starts or any(groups.intersection(s.groups) for s in e.slabs)]
                self._entries[result.ref] = kept

    def _beside(self, sources: Sequence[Source]) -> dict[ValueRef, Entry]:
        """The values that a Concat has beside channels: one entry each, however many networks have it there."""
        channels = self.streams.channels
        starts: dict[ValueRef, dict[ValueRef, int]] = {}
        for source in sources:
            result, at = source.site.results[0], 0
            dim = channels.channel_dim(result)
            for _, value in self._data(source):
                if dim is not None and channels.channel_dim(value) is None:
                    starts.setdefault(value.ref, {})[result.ref] = at
                at += 0 if dim is None else value.shape[dim]
        return {r: replace(self._entries[r][0], original=False, starts=found) for r, found in starts.items()}

    def _whole(self, place: Place) -> None:
        for source in place.sources:
            self._keep(source)

    def _keep(self, source: Source) -> None:
        """The node stays as it is."""
        self.tape.run([self.graph.node(source.ref)])
        read = [v.ref for _, v in source.site.operands.present() if v.data is None]
        for result in source.site.results:
            self._entries[result.ref] = [original_entry(self.streams, source, result)]
            if self._changed.intersection(read):
                self._changed.add(result.ref)

    def _untouched(self, source: Source) -> bool:
        """Whether the node's operands are still the original values (which may have changed in content)."""
        lists = [self._entries[v.ref] for _, v in self._data(source)]
        return all(len(entries) == 1 and entries[0].original for entries in lists)

    def _data(self, source: Source) -> list[tuple[int, Value]]:
        return [(i, v) for i, v in source.site.operands.present() if v.data is None]

    # ------------------------------------------------------------------ values on the tape
    def _run_new(self, values: Sequence[ValueRef], mask: int) -> None:
        """Evaluate new nodes up to the given values; they are for the tasks of `mask`."""
        nodes: dict[NodeRef, Node] = {}
        waiting = [v for v in values if v not in self.tape]
        while waiting:
            node = self.graph.producer(waiting.pop())
            if node is not None and node.ref not in nodes:
                nodes[node.ref] = node
                read = (v for _, v in self.graph.operands(node).present() if v.data is None)
                waiting += [v.ref for v in read if v.ref not in self.tape]
        self.tape.run(nodes.values())
        self.made |= dict.fromkeys(nodes, mask)

    def _release(self, place: Place) -> None:
        """Forget values that no later place reads: those of nodes that were made on the way to others, too."""
        self._fit = None
        done = [v.ref for s in place.sources for _, v in s.site.operands.present()]
        for ref in done:
            self._left[ref] -= 1
        for ref in (*done, *(v.ref for s in place.sources for v in s.site.results)):
            if not self._left[ref] and not self.streams.graph.is_output(ref):
                self._entries.pop(ref, None)
        alive = {e.value for entries in self._entries.values() for e in entries}
        self.tape.drop(*(r for r in self.tape.values if r not in alive and not self.graph.is_output(r)))
