"""What a node does, with the widths left out: two nodes of equal kind could compute the same layer.

Axes that count channels may differ in size between networks of one family. Which axes these are is read from ties:
the outputs of a layer with weights, and whatever is tied to such an axis further on. Everything else that a kind
holds - operator, attributes, map sizes, constants that are no weights - must agree exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

from compiler.ir.graph import Graph, Site, Value
from compiler.ir.op import MacOp
from compiler.ir.text import parameter_digest
from compiler.ir.types import Axis, ValueRef
from compiler.passes.dedupe import attribute_key

COMMUTATIVE = frozenset(("Add", "Mul", "Max", "Min", "Sum", "Mean"))
"""Operators whose operands may stand in any order."""

RESIZED = frozenset(("Reshape", "Expand", "Split"))
"""Operators whose integer constants are widths, which the shapes of the results tell already."""

WIDTHS = frozenset(("hidden_size", "group"))
"""Attributes that count channels."""

FREE = "*"
"""Stands for the size of an axis that counts channels."""

Sizes = tuple[int | str, ...]
Free = Mapping[ValueRef, frozenset[int]]
"""Value -> the axes that count channels."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Operator, attributes, operands and results of a node, widths left out."""

    op: str
    attrs: tuple[tuple[str, Hashable], ...]
    operands: tuple[Hashable, ...]
    maps: tuple[Sizes, ...]

    def difference(self, other: Kind) -> str:
        """The first fact that differs, as a phrase; empty where none does."""
        if self.op != other.op:
            return f"one is {self.op}, the other {other.op}"
        mine, theirs = dict(self.attrs), dict(other.attrs)
        for name in sorted({*mine, *theirs}):
            if mine.get(name) != theirs.get(name):
                return f"{name} is {_shown(mine.get(name))} and {_shown(theirs.get(name))}"
        if self.maps != other.maps:
            return f"maps are {_sizes(self.maps)} and {_sizes(other.maps)}"
        return "" if self.operands == other.operands else "operands differ in shape or in constants"

    @property
    def key(self) -> str:
        """A short text that is equal for equal kinds only, in every process."""
        return hashlib.sha256(repr((self.op, self.attrs, self.operands, self.maps)).encode()).hexdigest()


def _shown(value: object) -> str:
    """An attribute as `attribute_key` tells it: pairs of type and text, one or several."""
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return "(" + ", ".join(str(part[1]) for part in value) + ")"
    return str(value[1]) if isinstance(value, tuple) and len(value) == 2 else str(value)


def _sizes(maps: tuple[Sizes, ...]) -> str:
    return " and ".join("x".join(map(str, m)) for m in maps)


# ---------------------------------------------------------------------- axes that count channels
def free_axes(graph: Graph) -> Free:
    """The axes of every computed value that count channels."""
    free: dict[ValueRef, frozenset[int]] = {v.ref: frozenset() for v in graph.inputs}
    for site in graph.sites():
        tied = components(site)
        for value in site.results:
            free[value.ref] = frozenset(
                d for d in range(value.rank) if _counts_channels(site, tied[value.axis(d)], free)
            )
    return free


def components(site: Site) -> dict[Axis, frozenset[Axis]]:
    """Every axis of a site with all axes that its ties join to it, itself included."""
    found: dict[Axis, set[Axis]] = {}
    for value in (*(v for _, v in site.operands.present()), *site.results):
        for dim in range(value.rank):
            found[value.axis(dim)] = {value.axis(dim)}
    for tie in site.node.op.ties(site):
        joined = found.get(tie.a, {tie.a}) | found.get(tie.b, {tie.b})
        for axis in joined:
            found[axis] = joined
    return {axis: frozenset(joined) for axis, joined in found.items()}


def _counts_channels(site: Site, tied: frozenset[Axis], free: Free) -> bool:
    """Whether an axis continues one that counts channels, or is made by weights alone."""
    data = [(v, d) for _, v in site.operands.present() for d in range(v.rank) if v.axis(d) in tied]
    read = [(v, d) for v, d in data if v.data is None]
    if read:
        return any(d in free.get(v.ref, ()) for v, d in read)
    return any(v.dtype.is_float for v, _ in data)


# ---------------------------------------------------------------------- kinds
def kind_of(site: Site, free: Free) -> Kind:
    """The kind of a node."""
    tied = components(site)
    channels = {axis for group in tied.values() if _is_free(site, group, free) for axis in group}
    attrs = tuple((str(k), v) for k, v in _attributes(site, channels))
    operands = tuple(_operand(site, i, channels) for i in range(len(site.operands)))
    return Kind(site.node.op.name, attrs, operands, tuple(_masked(v, channels) for v in site.results))


def _is_free(site: Site, tied: frozenset[Axis], free: Free) -> bool:
    values = (*(v for _, v in site.operands.present() if v.data is None), *site.results)
    return any(v.axis(d) in tied for v in values for d in free.get(v.ref, ()))


def _attributes(site: Site, channels: set[Axis]) -> Iterator[tuple[str, Hashable]]:
    yield from attribute_key({k: v for k, v in site.attrs.items() if k not in WIDTHS})  # type: ignore[misc]
    if "group" in site.attrs:
        group, x = site.int("group"), site.operands[0]
        each = group > 1 and x.axis(1) in channels and site.operands[1].shape[1] == 1
        yield "group", ("text", "one per channel") if each else ("int", group)


def _operand(site: Site, index: int, channels: set[Axis]) -> Hashable:
    value = site.operands.optional(index)
    if value is None:
        return None
    shape = _masked(value, channels)
    if value.data is None:
        return "data", value.dtype.value, shape
    if isinstance(site.node.op, MacOp):
        return "weights", shape if value.rank > 1 else None, None
    if not value.dtype.is_float:
        return "constant", None if site.node.op.name in RESIZED else parameter_digest(value)
    return "weights", shape, None if FREE in shape else parameter_digest(value)


def _masked(value: Value, channels: set[Axis]) -> Sizes:
    return tuple(FREE if value.axis(d) in channels else n for d, n in enumerate(value.shape))
