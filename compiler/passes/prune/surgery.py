"""Removing entries along ties, the same for every structural pass, and the check that nothing else changed.

No operator has a prune function: its ties say which entries go, its encoding slices the data, and `Op.rebuild`
rewrites derived attributes and shape constants.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from compiler.errors import VerifyError
from compiler.ir.decisions import outputs_and_ties, settled
from compiler.ir.graph import Graph, Operands, Site, Value
from compiler.ir.op import Kept, Tie
from compiler.ir.reference import difference, evaluate, random_feeds
from compiler.ir.types import Axis, DType, NodeRef, TensorType, ValueRef, splat_value

STATE = "hidden"
"""The virtual axis of an operator's inner state."""

Removal = Mapping[Axis, np.ndarray]
"""Entries to remove per axis, ascending."""


# ---------------------------------------------------------------------- shared constants
def split_shared(graph: Graph, *, matrices: bool = False) -> dict[ValueRef, ValueRef]:
    """Give every reader of a shared vector or scalar parameter a copy (of no memory): new name -> old name.

    Readers may keep different entries of it. Matrices and kernels stay shared, because sharing them is meant,
    unless `matrices` says otherwise."""
    origin: dict[ValueRef, ValueRef] = {}
    for value in graph.parameters():
        matrix = sum(n > 1 for n in value.shape) > 1
        if (matrix and not matrices) or graph.is_output(value.ref):
            continue
        for node, index in graph.uses(value.ref)[1:]:
            copy = graph.add_value(graph.fresh(value.ref.name), value.type, value.data)
            graph.set_operand(node.ref, index, copy.ref)
            origin[copy.ref] = value.ref
    return origin


def join_shared(graph: Graph, origin: Mapping[ValueRef, ValueRef]) -> None:
    """Undo `split_shared` where copies still hold the same data."""
    for copy, first in origin.items():
        a, b = graph.value(copy), graph.value(first)
        if a.type == b.type and np.array_equal(a.constant, b.constant, equal_nan=True):
            graph.replace_uses(copy, first)
            graph.remove(copy)


# ---------------------------------------------------------------------- removal
def complement(graph: Graph, removal: Removal) -> Kept:
    """The entries that stay. VerifyError where an axis would lose all of them."""
    kept: dict[Axis, np.ndarray] = {}
    for axis, gone in removal.items():
        size = _size(graph, axis)
        left = np.setdiff1d(np.arange(size), gone)
        if not left.size:
            raise VerifyError(f"{axis} would lose all of its {size} entries")
        kept[axis] = left
    return Kept(kept)


def _size(graph: Graph, axis: Axis) -> int:
    if isinstance(axis.owner, ValueRef) and isinstance(axis.dim, int):
        return graph.value(axis.owner).shape[axis.dim]
    sizes = [0]
    for tie in _ties(graph, axis):
        sizes += [int(tie.index.max()) + 1] if tie.a == axis else [len(tie.index)]
    return max(sizes)


def _ties(graph: Graph, axis: Axis) -> list[Tie]:
    assert isinstance(axis.owner, NodeRef)
    site = graph.site(graph.node(axis.owner))
    return [t for t in site.node.op.ties(site) if axis in (t.a, t.b) and t.index.size]


def remove(graph: Graph, removal: Removal) -> None:
    """Remove entries along ties from `graph`, in place, and infer the types anew.

    `removal` is closed under ties (`Closure.removal`). VerifyError where an operator then has other result shapes
    than the ties say: a defect of its ties or of its `rebuild`.
    """
    kept = complement(graph, removal)
    owners = {axis.owner for axis in removal}
    touched = [s for s in graph.sites() if owners.intersection(_vertices(s))]
    for value in [graph.value(o) for o in owners if isinstance(o, ValueRef)]:
        if value.data is not None:
            type_, data = taken(value, kept)
            graph.update(value.ref, type=type_, data=data)
    for site in touched:
        _rebuild(graph, site, kept)


def _vertices(site: Site) -> Iterator[ValueRef | NodeRef]:
    yield site.node.ref
    yield from (v.ref for _, v in site.operands.present())
    yield from (v.ref for v in site.results)


def taken(value: Value, kept: Kept) -> tuple[TensorType, np.ndarray]:
    """Type and data of what remains of a parameter; a splat stays a splat, and dense."""
    shape, splat = kept.shape(value), splat_value(value.constant)
    if splat is not None:
        return TensorType(value.dtype, shape), np.broadcast_to(splat, shape)
    encoding, data = value.type.encoding, value.constant
    for dim in range(value.rank):
        if value.axis(dim) in kept.entries:
            encoding, data = encoding.take(data, dim, kept.of(value, dim))
    return TensorType(value.dtype, shape, encoding), np.ascontiguousarray(data)


def _rebuild(graph: Graph, site: Site, kept: Kept) -> None:
    """Write back attributes, constants and result types of one node; `site` is how it was before."""
    ref = site.node.ref
    rebuilt = site.node.op.rebuild(site, kept)
    if dict(rebuilt.attrs) != dict(site.attrs):
        graph.update(ref, attrs=rebuilt.attrs)
    for index, data in rebuilt.constants.items():
        _rewrite(graph, site, index, np.asarray(data))
    node = graph.node(ref)
    inferred = node.op.infer(node, graph.operands(node), len(site.results))
    for value, type_ in zip(site.results, inferred, strict=True):
        expected = kept.shape(value)
        if type_.shape != expected:
            raise VerifyError(
                f"{node.op.name} '{ref}': '{value.ref}' is now {type_.shape}, its ties say {expected}"
            )
        graph.update(value.ref, type=type_)


def _rewrite(graph: Graph, site: Site, index: int, data: np.ndarray) -> None:
    """Give a node another constant; one that a task returns stays what it is."""
    old, type_ = site.operands[index], TensorType(DType(data.dtype.name), tuple(data.shape))
    if not graph.is_output(old.ref):
        graph.update(old.ref, type=type_, data=data)
    elif type_ != old.type or not np.array_equal(data, old.constant):
        new = graph.add_value(graph.fresh(old.ref.name), type_, data)
        graph.set_operand(site.node.ref, index, new.ref)


# ---------------------------------------------------------------------- shapes without surgery
def shrunk(site: Site, kept: Kept) -> Site:
    """The site as it will be: shapes and attributes only, for pricing."""
    node = replace(site.node, attrs=site.node.op.rebuild(site, kept).attrs)
    operands = Operands([_smaller(site.operands.optional(i), kept) for i in range(len(site.operands))])
    results = tuple(_resized(v, kept) for v in site.results)
    return Site(node, operands, results)


def _smaller(value: Value | None, kept: Kept) -> Value | None:
    return None if value is None else _resized(value, kept)


def _resized(value: Value, kept: Kept) -> Value:
    shape = kept.shape(value)
    if shape == value.shape:
        return value
    return Value(value.ref, TensorType(value.dtype, shape))


# ---------------------------------------------------------------------- masked original
@dataclass(frozen=True, slots=True)
class Mask:
    """Zeroes removed entries of values: the graph at full size that a pruned one must agree with.

    Inputs and results are masked, and the parameters of recurrent nodes, whose state is no value. Other parameters
    keep their entries: that these do not matter is part of what is checked.
    """

    graph: Graph
    removal: Removal

    def __call__(self, ref: ValueRef, array: np.ndarray) -> np.ndarray:
        """`array` with the removed entries of value `ref` set to zero."""
        value = self.graph.value(ref)
        axes = [d for d in range(value.rank) if value.axis(d) in self.removal]
        if not axes or (value.data is not None and not self._inside(ref)):
            return array
        masked = array.copy()
        for dim in axes:
            masked[(slice(None),) * dim + (self.removal[value.axis(dim)],)] = 0
        return masked

    def _inside(self, ref: ValueRef) -> bool:
        nodes = {n.ref for n, _ in self.graph.uses(ref)}
        return any(axis.dim == STATE and axis.owner in nodes for axis in self.removal)


def masked_difference(before: Graph, after: Graph, removal: Removal, seeds: Iterable[int] = (0, 1)) -> float:
    """Largest relative error of `after` against `before` with the removed entries zeroed, over seeded inputs.

    Only outputs of equal shape exist: task outputs are pinned. A seed whose reference is not finite proves
    little and is replaced by another.
    """
    worst, mask = 0.0, Mask(before, removal)
    for seed in seeds:
        feeds, expected, ties = _finite_case(before, mask, seed)
        found = evaluate(after, feeds)
        worst = max([worst, *(difference(settled(found[n], r, ties.get(n)), r) for n, r in expected.items())])
    return worst


def _finite_case(
    graph: Graph, mask: Mask, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Feeds, masked outputs and their near ties of the first of 4 seeds whose outputs are all finite, else of the
    last."""
    for attempt in range(4):
        feeds = random_feeds(graph, np.random.default_rng([seed, attempt]))
        outputs, ties = outputs_and_ties(graph, feeds, edit=mask)
        if all(np.isfinite(a).all() for a in outputs.values()):
            break
    return feeds, outputs, ties
