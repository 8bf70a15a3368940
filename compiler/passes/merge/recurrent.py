"""Recurrent layers by label: nodes for every set of tasks that has hidden units, larger sets first.

Hidden unit j may read unit i of one step before only if i is for all of j's tasks. So the units of a set S are an
LSTM (or RNN) of their own, to which the units of larger sets are inputs: their results shifted by one step, with
their initial state where there is no step before. For every gate

    X_S = Concat(x of the sets that contain S, h_S'(t - 1) for S' > S),   W_S = [W_S | R_S,S'],   R_S = R_S,S

which is the whole layer with the forbidden weights left out. The reverse direction is shifted the other way: where
something larger is read, each direction is a node of its own. Layers whose units have one label are one node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from compiler.errors import VerifyError
from compiler.ir.graph import Attrs, Graph, NodeRef, Site, Value
from compiler.ir.op import operator
from compiler.ir.ops.recurrent import C0, H0, B, P, R, W
from compiler.ir.types import DType, ValueRef
from compiler.passes.merge.channels import ChannelMap, one_label
from compiler.passes.merge.emit import concat, emit, member_mean, parameter
from compiler.passes.merge.entries import Entry, counterparts
from compiler.passes.merge.labels import Channel, Slab
from compiler.passes.merge.streams import Place, Source

UNIT_AXES = {W: 1, R: 1, B: 1, H0: 2, C0: 2, P: 1}
"""Constant operand -> its axis of hidden units: blocks of as many entries as there are units."""

NAMES = {W: "weight", R: "recurrence", B: "bias", H0: "state", C0: "memory", P: "peepholes"}
"""Constant operand -> its name, for readers."""

STEPS, DIRECTIONS, UNITS = 0, 1, 3
"""Axes of Y."""


@dataclass(slots=True, eq=False)
class Cell:
    """The hidden units that one set of tasks has in a layer.

    `sources`: the networks' nodes that have them; `slabs`: the units by label of their streams; `made`: results of
    the node that computes them, or of one node per direction.
    """

    name: str
    mask: int
    sources: tuple[Source, ...]
    slabs: tuple[Slab, ...]
    made: list[tuple[Value, ...]] = field(default_factory=list)
    states: np.ndarray | None = None
    """Initial states [directions, samples, units] where they are not zero."""
    before: dict[int, ValueRef] = field(default_factory=dict)
    """Direction -> [steps, samples, units] as they were one step before, once a smaller set reads them."""

    @property
    def channels(self) -> list[Channel]:
        """All units, one slab behind the other."""
        return [c for slab in self.slabs for c in slab.channels]

    def entry(self, value: ValueRef) -> Entry:
        """`value` with the units along an axis, as something to read."""
        widths = [len(s.channels) for s in self.slabs]
        columns = np.split(np.arange(sum(widths))[:, None], np.cumsum(widths)[:-1])
        return Entry(value, self.mask, self.slabs, tuple(columns))


class Cells:
    """The cells of one place; larger sets of tasks have to be added first."""

    def __init__(self, graph: Graph, channels: ChannelMap, place: Place) -> None:
        self._graph, self._channels = graph, channels
        self._site = place.sources[0].site
        both = self._site.str("direction") == "bidirectional"
        self._reverse = (False, True) if both else (self._site.str("direction") == "reverse",)
        self._cells: list[Cell] = []

    def above(self, mask: int) -> list[Cell]:
        """The cells whose units those of a set of tasks may read."""
        return [c for c in self._cells if c.mask & mask == mask]

    def add(self, cell: Cell, entries: Sequence[Entry]) -> None:
        """Emit what computes a cell from `entries` and the cells above it: none in a layer of one label."""
        above = self.above(cell.mask)
        if above and (reason := one_label(self._site)):
            raise VerifyError(f"{cell.name}: units have more labels than one, but {reason}")
        operands = self._operands(cell, entries, above)
        read = [e.value for e in entries]
        cell.states = operands.get(H0)
        if not above:
            cell.made = [self._node(cell, cell.name, read, operands, self._site.attrs)]
        for d in range(len(self._reverse) if above else 0):
            shifted = [self._before(c, d) for c in above]
            half = {index: data[d : d + 1] for index, data in operands.items()}
            name = f"{cell.name}/{'reverse' if self._reverse[d] else 'forward'}"
            cell.made.append(self._node(cell, name, [*read, *shifted], half, self._attrs(d)))
        self._cells.append(cell)

    def by_slab(self, cell: Cell, result: int) -> list[Entry]:
        """Result number `result` of the layer, an entry for every slab: what is behind works on one at a time."""
        halves = [made[result] for made in cell.made]
        value = halves[0]
        if len(halves) > 1:
            attrs: Attrs = {"axis": DIRECTIONS if result == 0 else 0}
            refs = [h.ref for h in halves]
            (value,) = emit(self._graph, f"{cell.name}/both", operator("Concat"), attrs, refs)
        widths = [len(s.channels) for s in cell.slabs]
        parts: Sequence[Value] = (value,)
        if len(widths) > 1:
            sizes = self._integers(cell, widths)
            attrs = {"axis": value.rank - 1}
            given = [value.ref, sizes]
            parts = emit(self._graph, f"{cell.name}/units", operator("Split"), attrs, given, len(widths))
        return [
            Entry(part.ref, cell.mask, (slab,), (np.arange(width)[:, None],))
            for part, slab, width in zip(parts, cell.slabs, widths, strict=True)
        ]

    # ------------------------------------------------------------------ nodes
    def _node(
        self, cell: Cell, name: str, read: Sequence[ValueRef], operands: Mapping[int, np.ndarray], attrs: Attrs
    ) -> tuple[Value, ...]:
        given: list[ValueRef | None] = [None] * len(self._site.operands)
        given[0] = concat(self._graph, name, read, 2)
        for index, data in operands.items():
            old = self._site.operands[index]
            given[index] = parameter(self._graph, f"{name}/{NAMES[index]}", data, old.dtype)
        own = {**attrs, "hidden_size": len(cell.channels)}
        return emit(self._graph, name, self._site.node.op, own, given, len(self._site.results))

    def _attrs(self, direction: int) -> Attrs:
        """Attributes of one direction alone."""
        activations = self._site.attrs["activations"]
        each = len(activations) // len(self._reverse)
        return {
            **self._site.attrs,
            "direction": "reverse" if self._reverse[direction] else "forward",
            "activations": activations[direction * each : (direction + 1) * each],
        }

    def _before(self, cell: Cell, direction: int) -> ValueRef:
        """[steps, samples, units] of a cell as they were one step before in a direction."""
        if direction not in cell.before:
            y = cell.made[direction if len(cell.made) > 1 else 0][0]
            at = direction if len(cell.made) == 1 else 0
            reverse = self._reverse[direction]
            shape = (1, *y.shape[2:])
            state = np.zeros(shape) if cell.states is None else cell.states[direction : direction + 1]
            first = [parameter(self._graph, f"{cell.name}/state", state, y.dtype)]
            rest = self._steps(cell, y, at, reverse)
            parts = [*rest, *first] if reverse else [*first, *rest]
            cell.before[direction] = concat(self._graph, f"{cell.name}/before", parts, STEPS)
        return cell.before[direction]

    def _steps(self, cell: Cell, y: Value, at: int, reverse: bool) -> list[ValueRef]:
        """[steps - 1, samples, units] of one direction: all but the step that comes last; none of a single step."""
        steps = y.shape[STEPS]
        if steps == 1:
            return []
        bounds = ([int(reverse), at], [int(reverse) + steps - 1, at + 1], [STEPS, DIRECTIONS])
        given = [y.ref, *(self._integers(cell, b) for b in bounds)]
        (cut,) = emit(self._graph, f"{cell.name}/slice", operator("Slice"), {}, given)
        axes = self._integers(cell, [DIRECTIONS])
        return [emit(self._graph, f"{cell.name}/steps", operator("Squeeze"), {}, [cut.ref, axes])[0].ref]

    def _integers(self, cell: Cell, numbers: Sequence[int]) -> ValueRef:
        return parameter(self._graph, f"{cell.name}/sizes", np.array(numbers), DType.INT64)

    # ------------------------------------------------------------------ weights
    def _operands(self, cell: Cell, entries: Sequence[Entry], above: Sequence[Cell]) -> dict[int, np.ndarray]:
        """Constant operands of all directions: W over what is read and the cells above, R over the cell itself."""
        inputs = {s.ref: placed_inputs(self._graph, self._channels, s.site, entries) for s in cell.sources}
        weights = [self._units(cell, W, inputs), *(self._recurrence(cell, c) for c in above)]
        found = {W: np.concatenate(weights, axis=2), R: self._recurrence(cell, cell)}
        for index in (B, H0, C0, P):
            if self._site.operands.optional(index) is not None:
                data = {s.ref: s.site.operands[index].constant.astype(np.float64) for s in cell.sources}
                found[index] = self._units(cell, index, data)
        return found

    def _recurrence(self, cell: Cell, read: Cell) -> np.ndarray:
        """[directions, gates * units, units read]: the recurrent weights of a cell over another, or over itself."""
        data = {}
        for source in cell.sources:
            y = source.site.results[0]
            own = spread(self._channels, y, UNITS, [(read.entry(y.ref), len(read.channels))])
            data[source.ref] = source.site.operands[R].constant.astype(np.float64) @ own
        return self._units(cell, R, data)

    def _units(self, cell: Cell, index: int, data: Mapping[NodeRef, np.ndarray]) -> np.ndarray:
        """An operand's entries of all units of a cell, from what stands for the operand at each source."""
        dim = UNIT_AXES[index]
        each = [member_mean(self._channels, cell.sources, c, index, dim, data) for c in cell.channels]
        stacked = np.stack(each, axis=dim + 1)
        return stacked.reshape(*stacked.shape[:dim], -1, *stacked.shape[dim + 2 :])


def placed_inputs(graph: Graph, channels: ChannelMap, site: Site, entries: Sequence[Entry]) -> np.ndarray:
    """[directions, gates * units, inputs]: input weights of a layer at the entries that stand for what it read."""
    read = [(e, graph.value(e.value).shape[2]) for e in entries]
    return np.asarray(site.operands[W].constant.astype(np.float64) @ spread(channels, site.operands[0], 2, read))


def spread(channels: ChannelMap, value: Value, dim: int, read: Sequence[tuple[Entry, int]]) -> np.ndarray:
    """[size of the value's axis, positions of all that is read]: what part of an own entry each position holds.

    `read`: entries with their numbers of positions.
    """
    parts = []
    for entry, size in read:
        part = np.zeros((value.shape[dim], size))
        for at, own, factor in counterparts(channels, value.axis(dim), entry, size):
            part[own, at] += factor
        parts.append(part)
    return np.concatenate(parts, axis=1)
