"""dead-channels: channels that are the same for every input go, and what they contributed stays. Exact.

A channel whose input weights are zero still emits f(bias); deleting it with its bias changes the network. Exact is

    b'_o = b_o + sum over taps that lie on the input of c_u * W[o, u, tap]

With zero padding the valid taps depend on the position, one class per kind of border. Three emissions, the cheapest
exact one per reader: nothing where the contribution is zero; a bias where it is the same everywhere; else one of
the dead channels stays and takes over the weights of the others, W[:, s] = sum_u (c_u / c_s) W[:, u] (padding then
acts on it as before), or a constant map is added behind the reader, whichever stores fewer numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from compiler.ir.dead import sweep
from compiler.ir.graph import Graph, Site
from compiler.ir.op import operator
from compiler.ir.ops.elementwise import Broadcast, Movement
from compiler.ir.ties import Atom, Closure, Group
from compiler.ir.types import Axis, NodeRef, ValueRef
from compiler.passes.base import NewNames, Pass, Refusal, Resources, check_outputs
from compiler.passes.constants import GATHERING, LINEAR, Facts, known_elements
from compiler.passes.linear import channel_dim
from compiler.passes.prune.budget import Meter
from compiler.passes.prune.surgery import complement, join_shared, remove, split_shared

SAME = 1e-6
"""Contributions closer than this share of the largest are equal: what summation order leaves."""


@dataclass(frozen=True)
class DeadChannels(Pass):
    """Remove channels that are constant for every input and carry their constants into what reads them."""

    name: ClassVar[str] = "dead-channels"
    exact: ClassVar[bool] = True
    new_names: ClassVar[NewNames] = NewNames.DERIVED

    def rewrite(self, graph: Graph, use: Resources) -> Iterable[Refusal]:
        origin = split_shared(graph)
        facts = known_elements(graph)
        replace_known(graph, facts)
        sweep(graph)
        closure = Closure(graph, exclude=use.excluded)
        plan = _Planner(graph, closure, facts).plan()
        _carry_out(graph, closure, plan)
        sweep(graph)
        join_shared(graph, {c: o for c, o in origin.items() if c in graph and o in graph})
        return plan.refusals

    def ensures(self, before: Graph, after: Graph) -> None:
        check_outputs(self.name, before, after)


# ---------------------------------------------------------------------- values that are constant as a whole
def replace_known(graph: Graph, facts: Facts) -> None:
    """Let readers of completely known values read a parameter instead, where their own results are not known."""
    for site in list(graph.sites()):
        if all(facts[v.ref].complete for v in site.results):
            continue
        for index, value in site.operands.present():
            if value.data is None and facts[value.ref].complete and graph.producer(value.ref) is not None:
                data = _compact(site, index, facts[value.ref].data)
                constant = graph.add_parameter(graph.fresh(f"{value.ref}/constant"), data)
                graph.set_operand(site.node.ref, index, constant.ref)
        _drop_zero_add(graph, graph.site(site.node))


def _compact(site: Site, index: int, data: np.ndarray) -> np.ndarray:
    """Shrink axes along which the data repeats, where the operator broadcasts them back."""
    # the other operand broadcasts to it, or says its type alone; it is never broadcast itself
    one_way = site.node.op.name in ("PRelu", "CastLike") and index == 0
    if not isinstance(site.node.op, Broadcast) or one_way:
        return np.ascontiguousarray(data)
    others = [v.shape for i, v in site.operands.present() if i != index]
    for dim in range(data.ndim):
        first = np.take(data, [0], axis=dim)
        repeats = np.array_equal(np.broadcast_to(first, data.shape), data)
        if repeats and np.broadcast_shapes(first.shape, *others) == site.results[0].shape:
            data = first
    return np.ascontiguousarray(data)


def _drop_zero_add(graph: Graph, site: Site) -> None:
    """x + 0 is x: a branch that contributes nothing is gone."""
    if site.node.op.name != "Add" or graph.is_output(site.results[0].ref):
        return
    y = site.results[0]
    for x, other in ((site.operands[0], site.operands[1]), (site.operands[1], site.operands[0])):
        if other.data is not None and not other.data.any() and x.data is None and x.type == y.type:
            graph.replace_uses(y.ref, x.ref)
            return


# ---------------------------------------------------------------------- what to remove
@dataclass(slots=True)
class Plan:
    """Atoms to remove, what their removal takes from each reader, and weights that other channels take over."""

    atoms: list[Atom] = field(default_factory=list)
    missing: dict[NodeRef, np.ndarray] = field(default_factory=dict)
    weights: dict[ValueRef, np.ndarray] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)


class _Planner:
    """Decides group by group."""

    def __init__(self, graph: Graph, closure: Closure, facts: Facts) -> None:
        self.graph, self.closure, self.facts = graph, closure, facts
        self._meter = Meter(graph, "parameters")
        axes = {axis: closure.size(axis) for group in closure.groups for axis in group.axes}
        self._widths = Meter(graph, "parameters", axes=axes)
        self._plan = Plan()

    def plan(self) -> Plan:
        """The whole plan."""
        for group in self.closure.groups:
            atoms = [a for a in group.atoms if self._dead(a)]
            safe = [a for a in atoms if self._understood(a)]
            while safe and not self._widths.leaves_some(safe):
                safe.pop()
            if safe:
                self._decide(Group(group.axes, tuple(safe)))
        return self._plan

    def _dead(self, atom: Atom) -> bool:
        """Whether every computed entry of the atom is known."""
        computed = [(a, e) for a, e in self._entries(atom) if self.graph.value(a.owner).data is None]  # type: ignore[arg-type]
        return bool(computed) and all(self._known(axis, entries) for axis, entries in computed)

    def _entries(self, atom: Atom) -> Iterator[tuple[Axis, np.ndarray]]:
        return ((a, e) for a, e in atom.entries.items() if isinstance(a.owner, ValueRef))

    def _known(self, axis: Axis, entries: np.ndarray) -> bool:
        assert isinstance(axis.owner, ValueRef) and isinstance(axis.dim, int)
        return bool(np.take(self.facts[axis.owner].known, entries, axis=axis.dim).all())

    def _understood(self, atom: Atom) -> bool:
        """Whether every reader that sums over the atom's entries is linear, or they are zero."""
        for axis, entries in self._entries(atom):
            assert isinstance(axis.owner, ValueRef) and isinstance(axis.dim, int)
            if self.graph.value(axis.owner).data is not None:
                continue
            if not np.take(self.facts[axis.owner].data, entries, axis=axis.dim).any():
                continue
            for node, index in self.graph.uses(axis.owner):
                site = self.graph.site(node)
                if not _passes_on(site, atom) and not _linear_in(site, index):
                    where = f"channel {int(entries[0])} of {axis}"
                    reason = (
                        f"is constant but not zero, and {node.op.name} '{node.ref}' cannot take up its constant"
                    )
                    self._plan.refusals.append(Refusal(where, reason))
                    return False
        return True

    def _decide(self, group: Group) -> None:
        missing = self._missing(group.atoms)
        borders = [node for node, part in missing.items() if not _uniform(self.graph, node, part)]
        if not borders:
            self._take(group.atoms, missing)
            return
        table = sum(_map_of(missing[node]).size for node in borders)
        stand_in = self._stand_in(group, borders)
        if stand_in is not None and self._meter.saving([stand_in]) <= table:
            rest = [a for a in group.atoms if a is not stand_in]
            by_weight = {self._weight(node): node for node in reversed(borders)}
            for node in by_weight.values():
                self._hand_over(node, stand_in, rest)
            left = self._missing(rest)
            self._take(rest, {n: p for n, p in left.items() if n not in borders})
        elif self._meter.saving(group.atoms) > table:
            self._take(group.atoms, missing)
        else:
            reason = f"its constant differs from place to place; storing that takes more ({table}) than it frees"
            self._plan.refusals.append(Refusal(f"{len(group.atoms)} dead channels of '{group.name}'", reason))

    def _take(self, atoms: Sequence[Atom], missing: dict[NodeRef, np.ndarray]) -> None:
        self._plan.atoms += atoms
        self._widths.remove(atoms)
        for node, part in missing.items():
            self._plan.missing[node] = self._plan.missing.get(node, 0) + part

    def _missing(self, atoms: Sequence[Atom]) -> dict[NodeRef, np.ndarray]:
        """What each linear reader's result loses with `atoms`, where that is not zero, at full width."""
        removal = self.closure.removal(atoms)
        found: dict[NodeRef, np.ndarray] = {}
        for site in self._readers(atoms):
            x = site.operands[0]
            gone = np.zeros(x.shape, bool)
            for dim in range(x.rank):
                if x.axis(dim) in removal:
                    gone[(slice(None),) * dim + (removal[x.axis(dim)],)] = True
            part = _contribution(self._with_weights(site), np.where(gone, self.facts[x.ref].data, 0))
            for dim in range(part.ndim):
                np.moveaxis(part, dim, 0)[_vanishing(site, dim, removal)] = 0
            if part.any():
                found[site.node.ref] = part
        return found

    def _with_weights(self, site: Site) -> tuple[Site, np.ndarray]:
        weight = site.operands[1]
        return site, self._plan.weights.get(weight.ref, weight.constant)

    def _readers(self, atoms: Sequence[Atom]) -> list[Site]:
        owners = dict.fromkeys(axis.owner for atom in atoms for axis in atom.entries)
        computed = [o for o in owners if isinstance(o, ValueRef) and self.graph.value(o).data is None]
        sites = (self.graph.site(node) for o in computed for node, index in self.graph.uses(o) if index == 0)
        return list({s.node.ref: s for s in sites if _linear_in(s, 0)}.values())

    def _stand_in(self, group: Group, borders: Sequence[NodeRef]) -> Atom | None:
        """The dead channel that can take over for the others: uniform, and far from zero at every border reader."""
        if len(group.atoms) < 2:
            return None
        levels = np.array([[self._level(node, atom) for node in borders] for atom in group.atoms])
        if np.isnan(levels).any():
            return None
        nearest = np.abs(levels).min(axis=1)
        best = int(np.argmax(nearest))
        if nearest[best] <= 1e-3 * np.abs(levels).max() or not self._agree(borders, levels / levels[best]):
            return None
        return group.atoms[best]

    def _agree(self, borders: Sequence[NodeRef], ratios: np.ndarray) -> bool:
        """Whether all that read a weight would have the same one handed over. `ratios`: [atoms, borders]."""
        for weight in {self._weight(node) for node in borders}:
            readers = {node.ref for node, _ in self.graph.uses(weight)}
            mine = ratios[:, [i for i, node in enumerate(borders) if node in readers]]
            if mine.shape[1] < len(readers) or not np.allclose(mine, mine[:, :1], rtol=SAME, atol=0):
                return False
        return True

    def _weight(self, node: NodeRef) -> ValueRef:
        return self.graph.operands(self.graph.node(node))[1].ref

    def _level(self, node: NodeRef, atom: Atom) -> float:
        """The constant of the atom's channel as `node` reads it; NaN where it is not one number of one channel, or
        no convolution reads it: other products have their inputs along another axis.
        """
        site = self.graph.site(self.graph.node(node))
        x = site.operands[0]
        entries = atom.entries.get(x.axis(1)) if "Conv" in site.node.op.name else None
        if site.attrs.get("group", 1) != 1 or entries is None or len(entries) != 1:
            return float("nan")
        data = self.facts[x.ref].data[:, entries[0]]
        return float(data.flat[0]) if np.all(data == data.flat[0]) else float("nan")

    def _hand_over(self, node: NodeRef, stand_in: Atom, rest: Sequence[Atom]) -> None:
        """Add the other channels' weights, scaled by their constants, to the stand-in's."""
        site = self.graph.site(self.graph.node(node))
        x, weight = site.operands[0], site.operands[1]
        columns = np.moveaxis(np.array(self._with_weights(site)[1]), 0 if _transposed(site) else 1, 0)
        total = columns[int(stand_in.entries[x.axis(1)][0])].astype(np.float64)
        for atom in rest:
            ratio = self._level(node, atom) / self._level(node, stand_in)
            total = total + ratio * columns[int(atom.entries[x.axis(1)][0])]
        columns[int(stand_in.entries[x.axis(1)][0])] = total
        self._plan.weights[weight.ref] = np.moveaxis(columns, 0, 0 if _transposed(site) else 1)


def _transposed(site: Site) -> bool:
    return site.node.op.name == "ConvTranspose"


def _passes_on(site: Site, atom: Atom) -> bool:
    """Whether entries of the operand only make entries of the result, none of which stays."""
    if isinstance(site.node.op, (Broadcast, Movement)):
        return True
    entrywise = site.node.op.name in (*GATHERING, "BatchNormalization", "Resize")
    return entrywise and any(axis.owner in {v.ref for v in site.results} for axis in atom.entries)


def _linear_in(site: Site, index: int) -> bool:
    """Whether the node is linear in this operand, all others are constants, and the result has channels."""
    linear = index == 0 and site.node.op.name in LINEAR and site.results[0].rank > 0
    return linear and all(v.data is not None for v in site.operands[1:])


def _contribution(reader: tuple[Site, np.ndarray], x: np.ndarray) -> np.ndarray:
    """What `x` alone adds to the reader's result."""
    site, weight = reader
    return np.array(site.node.op.evaluate(site, [x, weight])[0], np.float64)


def _channel(site: Site) -> int:
    """The axis of the result that the bias runs along."""
    return channel_dim(site, site.results[0])


def _vanishing(site: Site, dim: int, removal: dict[Axis, np.ndarray]) -> np.ndarray:
    """Entries of an axis of the result that go as well."""
    return removal.get(site.results[0].axis(dim), np.zeros(0, np.int64))


def _per_channel(part: np.ndarray, dim: int) -> np.ndarray:
    return np.moveaxis(part, dim, 0).reshape(part.shape[dim], -1)


def _uniform(graph: Graph, node: NodeRef, part: np.ndarray) -> bool:
    """Whether a contribution is the same at every position."""
    columns = _per_channel(part, _channel(graph.site(graph.node(node))))
    return bool(np.ptp(columns, axis=1).max() <= SAME * np.abs(columns).max())


def _map_of(part: np.ndarray) -> np.ndarray:
    """A contribution as a constant map; one sample of it, or one row, where all of them get the same."""
    repeats = np.ptp(part, axis=0).max() <= SAME * np.abs(part).max()
    return part[:1] if repeats else part


# ---------------------------------------------------------------------- doing it
def _carry_out(graph: Graph, closure: Closure, plan: Plan) -> None:
    """Hand weights over, cut, then add what is missing."""
    for ref, data in plan.weights.items():
        graph.update(ref, data=np.ascontiguousarray(data, graph.value(ref).dtype.numpy))
    if not plan.atoms:
        return
    removal = closure.removal(plan.atoms)
    kept = complement(graph, removal)
    cut = {}
    for node, part in plan.missing.items():
        result = graph.site(graph.node(node)).results[0]
        for dim in range(result.rank):
            part = np.take(part, kept.of(result, dim), axis=dim)
        cut[node] = part
    remove(graph, removal)
    for node, part in cut.items():
        _add(graph, graph.site(graph.node(node)), part)


def _add(graph: Graph, site: Site, part: np.ndarray) -> None:
    """Add a contribution to the results of a linear node: to its bias, or with an Add behind it."""
    dim, dtype = _channel(site), site.results[0].dtype.numpy
    if not _uniform(graph, site.node.ref, part):
        _add_behind(graph, site, _map_of(part).astype(dtype))
        return
    vector = _per_channel(part, dim)[:, 0]
    if not _add_to_bias(graph, site, vector):
        shape = [-1 if d == dim else 1 for d in range(part.ndim)]
        _add_behind(graph, site, vector.reshape(shape).astype(dtype))


def _add_to_bias(graph: Graph, site: Site, vector: np.ndarray) -> bool:
    """Into an own bias, or a new one; False for operators without, or a bias of another form."""
    beta = site.attrs.get("beta", 1.0)
    if site.node.op.name == "MatMul" or beta == 0:
        return False
    bias = site.operands.optional(2)
    if bias is None:
        data = (vector / beta).astype(site.results[0].dtype.numpy)
        bias = graph.add_parameter(graph.fresh(f"{site.node.ref}/bias"), data)
        _reissue(graph, site, (site.operands[0].ref, site.operands[1].ref, bias.ref), None)
        return True
    if bias.data is None or len(graph.uses(bias.ref)) > 1:
        return False
    if not bias.rank or {bias.size, bias.shape[-1]} != {len(vector)}:
        return False
    total = bias.constant.astype(np.float64) + (vector / beta).reshape(bias.shape)
    graph.update(bias.ref, data=total.astype(bias.dtype.numpy))
    return True


def _add_behind(graph: Graph, site: Site, constant: np.ndarray) -> None:
    """An Add between the result and everything that reads it."""
    term = graph.add_parameter(graph.fresh(f"{site.node.ref}/constant"), constant)
    operands = [None if v is None else v.ref for v in map(site.operands.optional, range(len(site.operands)))]
    _reissue(graph, site, operands, term.ref)


def _reissue(graph: Graph, site: Site, operands: Sequence[ValueRef | None], term: ValueRef | None) -> None:
    """The same node over other operands, its result plus `term`; names stay what they were."""
    node, old = site.node, site.results[0]
    hold = graph.add_value(graph.fresh(f"{old.ref}/hold"), old.type)
    graph.replace_uses(old.ref, hold.ref)
    graph.remove(node.ref)
    result = graph.add_value(old.ref.name, old.type)
    made = result
    if term is not None:
        made = graph.add_value(graph.fresh(f"{old.ref}/partial"), old.type)
    graph.add_node(node.ref.name, node.op, node.attrs, operands, [made.ref], node.origin)
    if term is not None:
        name = graph.fresh(f"{node.ref}/add")
        graph.add_node(name, operator("Add"), {}, [made.ref, term], [result.ref], node.origin)
    graph.replace_uses(hold.ref, result.ref)
    graph.remove(hold.ref)
