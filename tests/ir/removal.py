"""The removal oracle: deleting a closure of entries equals zeroing them, on one operator.

Written apart from `compiler.ir.ties` on purpose, entry by entry, so that both cannot be wrong the same way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from compiler.ir.graph import Site
from compiler.ir.op import Kept, Kind, Tie
from compiler.ir.types import Axis, ValueRef
from tests.ir.op_case import Constant, OpCase, make_site
from tests.ir.oracles import assert_close

Removed = dict[Axis, set[int]]


def parents(ties: Iterable[Tie]) -> dict[Axis, list[Tie]]:
    """Many-to-one ties into each axis."""
    found: dict[Axis, list[Tie]] = defaultdict(list)
    for tie in ties:
        known = tie.index[tie.index >= 0]
        if len(np.unique(known)) < len(known):
            found[tie.b].append(tie)
    return found


def products(ties: Iterable[Tie]) -> set[Axis]:
    """Axes that are the product of several parents (heads x width): entries go with a parent, never alone."""
    return {axis for axis, into in parents(ties).items() if len({t.a for t in into}) > 1}


def neighbours(ties: list[Tie]) -> dict[tuple[Axis, int], list[tuple[Axis, int]]]:
    """What goes at once when an entry goes, by (axis, entry)."""
    compound = products(ties)
    found: dict[tuple[Axis, int], list[tuple[Axis, int]]] = defaultdict(list)
    for tie in ties:
        for k, j in enumerate(tie.index.tolist()):
            if j >= 0:
                found[tie.a, j].append((tie.b, k))
                if tie.b not in compound:
                    found[tie.b, k].append((tie.a, j))
    return found


def closure(near: dict[tuple[Axis, int], list[tuple[Axis, int]]], seed: Axis, entry: int) -> Removed:
    """Everything that goes when one entry goes."""
    removed: Removed = defaultdict(set)
    todo = [(seed, entry)]
    while todo:
        axis, j = todo.pop()
        if j not in removed[axis]:
            removed[axis].add(j)
            todo += near.get((axis, j), [])
    return dict(removed)


def axis_sizes(site: Site, ties: list[Tie]) -> dict[Axis, int]:
    """Sizes of the real axes, and of the virtual ones by the entries their ties name."""
    values = {v.ref: v for v in [*(v for _, v in site.operands.present()), *site.results]}
    sizes = {}
    for tie in ties:
        for axis in (tie.a, tie.b):
            if isinstance(axis.owner, ValueRef):
                sizes[axis] = values[axis.owner].shape[int(axis.dim)]
        if tie.a not in sizes:
            sizes[tie.a] = int(tie.index.max()) + 1
    for tie in ties:
        sizes.setdefault(tie.b, len(tie.index))
    return sizes


def removable(site: Site) -> dict[Axis, list[Removed]]:
    """Per seed axis the distinct closures that leave at least one entry everywhere and touch no MIXED axis."""
    ties = list(site.node.op.ties(site))
    frozen = {axis for t in ties if t.kind is Kind.MIXED for axis in (t.a, t.b)}
    entrywise = [t for t in ties if t.kind is Kind.ENTRYWISE]
    sizes, compound = axis_sizes(site, ties), products(entrywise)
    near, found = neighbours(entrywise), defaultdict[Axis, list[Removed]](list)
    for axis in dict.fromkeys(a for t in entrywise for a in (t.a, t.b)):
        if axis in compound:
            continue
        for entry in range(sizes[axis]):
            removed = closure(near, axis, entry)
            if (
                not any(a in frozen or len(r) >= sizes[a] for a, r in removed.items())
                and removed not in found[axis]
            ):
                found[axis].append(removed)
    return {axis: closures for axis, closures in found.items() if closures}


def kept_of(site: Site, removed: Removed) -> Kept:
    """The entries that survive."""
    sizes = axis_sizes(site, list(site.node.op.ties(site)))
    return Kept({a: np.array(sorted(set(range(sizes[a])) - r), np.int64) for a, r in removed.items()})


def slice_array(array: np.ndarray, value_ref: ValueRef, kept: Kept) -> np.ndarray:
    """`array` with only the kept entries on every axis."""
    for dim in range(array.ndim):
        entries = kept.entries.get(Axis(value_ref, dim))
        if entries is not None:
            array = np.take(array, entries, axis=dim)
    return array


def zeroed(array: np.ndarray, value_ref: ValueRef, removed: Removed) -> np.ndarray:
    """`array` with the removed entries set to zero on every axis."""
    array = array.copy()
    for dim in range(array.ndim):
        gone = sorted(removed.get(Axis(value_ref, dim), ()))
        array[(slice(None),) * dim + (gone,)] = 0
    return array


def smaller_site(site: Site, arrays: list[np.ndarray | None], kept: Kept) -> tuple[Site, list[np.ndarray | None]]:
    """The site after surgery, with its operand values."""
    rebuilt = site.node.op.rebuild(site, kept)
    operands: list[np.ndarray | Constant | None] = []
    for i, array in enumerate(arrays):
        value = site.operands.optional(i)
        if value is None or array is None:
            operands.append(None)
            continue
        data = rebuilt.constants.get(i, slice_array(array, value.ref, kept))
        operands.append(Constant(data) if value.data is not None else data)
    small = make_site(site.node.op.name, operands, rebuilt.attrs, len(site.results))
    return small, [o.array if isinstance(o, Constant) else o for o in operands]


def axis_names(axes: Iterable[Axis]) -> set[str]:
    """Names of the real axes among `axes`, as cases write them."""
    return {f"{a.owner}.{a.dim}" for a in axes if isinstance(a.owner, ValueRef)}


def check_axes(case: OpCase, site: Site) -> None:
    """The axes that can shrink and those that mix are the ones the case lists."""
    if case.free is not None:
        assert axis_names(a for closures in removable(site).values() for r in closures for a in r) == set(
            case.free.split()
        )
    if case.mixed is not None:
        found = axis_names(a for t in site.node.op.ties(site) if t.kind is Kind.MIXED for a in (t.a, t.b))
        assert found == set(case.mixed.split())


def check_removal(site: Site, arrays: list[np.ndarray | None], every: bool = False) -> None:
    """From every axis that can shrink, one closure (or `every`) is deleted; the rest equals the masked original."""
    op, rng = site.node.op, np.random.default_rng(3)
    for axis, closures in removable(site).items():
        for removed in closures if every else [closures[rng.integers(len(closures))]]:
            kept = kept_of(site, removed)
            whole = op.evaluate(site, masked(site, arrays, removed))
            small, operands = smaller_site(site, arrays, kept)
            for got, want, value in zip(op.evaluate(small, operands), whole, site.results, strict=True):
                where = f"{op.name} without {axis}: {value.ref}"
                assert_close(got, slice_array(want, value.ref, kept), 1e-5, where)


def masked(site: Site, arrays: list[np.ndarray | None], removed: Removed) -> list[np.ndarray | None]:
    """The operands with zeros for the removed entries; integer constants (shapes, positions) stay."""
    found: list[np.ndarray | None] = []
    for i, array in enumerate(arrays):
        value = site.operands.optional(i)
        if value is None or array is None or (value.data is not None and value.dtype.is_integer):
            found.append(array)
        else:
            found.append(zeroed(array, value.ref, removed))
    return found
