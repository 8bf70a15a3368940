"""Which elements of which values are the same for every input?

One topological pass over element-wise facts: a known element has its value, an unknown one depends on the input. A
weight of exactly zero does not read its input; a zero factor makes a product known. Facts are per element, so what
zero padding does at the borders of a constant channel comes out by itself. Inputs are taken to be finite (zero
times infinity is no zero). Operators without a rule know nothing:
never wrong, at worst less removed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compiler.ir.graph import Graph, Site, Value
from compiler.ir.ops.elementwise import Broadcast, Movement
from compiler.ir.types import ValueRef

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Linear in operand 0, with constant weights in operand 1 (and a constant bias)."""

GATHERING = (
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "MaxPool",
    "ReduceMax",
    "ReduceMean",
    "ReduceSum",
)
"""A result is known iff everything in its window is."""


@dataclass(frozen=True, slots=True)
class Fact:
    """`known[i]`: element i is `data[i]` for every input. Where nothing is known `data` is zero."""

    known: np.ndarray
    data: np.ndarray

    @property
    def complete(self) -> bool:
        """Whether every element is known."""
        return bool(self.known.all())

    @classmethod
    def nothing(cls, value: Value) -> Fact:
        """No element is known."""
        return cls(np.broadcast_to(False, value.shape), np.broadcast_to(value.dtype.numpy.type(0), value.shape))

    @classmethod
    def constant(cls, data: np.ndarray) -> Fact:
        """Every element is known."""
        return cls(np.broadcast_to(True, data.shape), data)


Facts = dict[ValueRef, Fact]
Rule = Callable[[Site, Sequence[Fact | None]], Fact | None]


def known_elements(graph: Graph) -> Facts:
    """Facts about every value of `graph`, at the cost of about two evaluations."""
    facts: Facts = {v.ref: Fact.nothing(v) for v in graph.inputs}
    facts |= {v.ref: Fact.constant(v.constant) for v in graph.parameters()}
    for site in graph.sites():
        operands = [None if v is None else facts[v.ref] for v in map(site.operands.optional, _positions(site))]
        found = _apply(site, operands)
        for value in site.results:
            facts[value.ref] = found if found is not None else Fact.nothing(value)
    return facts


def _positions(site: Site) -> range:
    return range(len(site.operands))


def _apply(site: Site, operands: Sequence[Fact | None]) -> Fact | None:
    """The fact about the only result; None where there is no rule or nothing to know."""
    rule = _rule(site)
    if rule is None or len(site.results) != 1:
        return None
    changing = [o for o, v in zip(operands, map(site.operands.optional, _positions(site)), strict=True) if _live(v)]
    reads_zeros = site.node.op.name in (*LINEAR, "BatchNormalization", "Mul")
    if not reads_zeros and not any(o is not None and o.known.any() for o in changing):
        return None
    with np.errstate(all="ignore"):
        fact = rule(site, operands)
    if fact is None:
        return None
    known = fact.known & np.isfinite(fact.data)
    return Fact(known, np.where(known, fact.data, 0).astype(site.results[0].dtype.numpy))


def _live(value: Value | None) -> bool:
    return value is not None and value.data is None


def _rule(site: Site) -> Rule | None:
    op = site.node.op
    if op.name in LINEAR:
        return _linear
    if op.name in GATHERING:
        return _gathering
    if op.name == "BatchNormalization":
        return _batch_norm
    if op.name == "Mul":
        return _product
    if isinstance(op, Movement):
        return _movement
    return _elementwise if isinstance(op, Broadcast) else None


def _evaluate(site: Site, arrays: Sequence[np.ndarray | None]) -> np.ndarray:
    return site.node.op.evaluate(site, arrays)[0]


def _unknown(fact: Fact, dtype: np.dtype[np.generic]) -> np.ndarray:
    """1 where nothing is known, 0 elsewhere, as an operand."""
    return (~fact.known).astype(dtype)


def _elementwise(site: Site, operands: Sequence[Fact | None]) -> Fact:
    """A result is known where every operand is. Unknown operands are 1: inside every domain."""
    present = [o for o in operands if o is not None]
    known = np.logical_and.reduce([_spread(o.known, site) for o in present])
    filled = [None if o is None else np.where(o.known, o.data, np.ones((), o.data.dtype)) for o in operands]
    return Fact(known, _evaluate(site, filled))


def _product(site: Site, operands: Sequence[Fact | None]) -> Fact:
    """A known zero factor makes the product zero, whatever the other one is."""
    fact = _elementwise(site, operands)
    zero = [_spread(o.known & (o.data == 0), site) for o in operands if o is not None]
    vanishes = np.logical_or.reduce(zero)
    return Fact(fact.known | vanishes, np.where(vanishes, 0, fact.data))


def _spread(marks: np.ndarray, site: Site) -> np.ndarray:
    """Marks of an operand over the result; one of a single entry, such as a bound of Clip, may have more axes."""
    return np.broadcast_to(marks.reshape(()) if marks.size == 1 else marks, site.results[0].shape)


def _movement(site: Site, operands: Sequence[Fact | None]) -> Fact | None:
    """Facts move with their elements; positions and shapes must be constant."""
    moved = range(len(operands)) if site.node.op.name == "Concat" else range(1)
    for i, value in site.operands.present():
        if i not in moved and value.data is None:
            return None
    data = [None if o is None else o.data for o in operands]
    marks = [
        _unknown(o, o.data.dtype) if o is not None and i in moved else d
        for i, (o, d) in enumerate(zip(operands, data, strict=True))
    ]
    return Fact(_evaluate(site, marks) == 0, _evaluate(site, data))


def _gathering(site: Site, operands: Sequence[Fact | None]) -> Fact | None:
    x = operands[0]
    if x is None or x.data.dtype.kind != "f" or any(v.data is None for v in site.operands[1:]):
        return None
    rest = [None if o is None else o.data for o in operands[1:]]
    marks = _evaluate(site, [_unknown(x, x.data.dtype), *rest])
    return Fact(~(marks > 0), _evaluate(site, [x.data, *rest]))


def _batch_norm(site: Site, operands: Sequence[Fact | None]) -> Fact | None:
    """A channel with scale zero is its shift."""
    x, scale = operands[0], operands[1]
    if x is None or scale is None or any(v.data is None for v in site.operands[1:]):
        return None
    silent = (scale.data == 0).reshape(-1, *(1,) * (x.data.ndim - 2))
    return Fact(x.known | silent, _evaluate(site, [o.data if o is not None else None for o in operands]))


def _linear(site: Site, operands: Sequence[Fact | None]) -> Fact | None:
    """A sum is known where every element with a non-zero weight is."""
    x, weight = operands[0], operands[1]
    if x is None or weight is None or site.operands[1].data is None:
        return None
    if not x.known.any() and not _silent_slice(weight.data):
        return None
    rest = operands[2:]
    marks: list[np.ndarray | None] = [_unknown(x, x.data.dtype), (weight.data != 0).astype(x.data.dtype)]
    marks += [None if o is None else _unknown(o, x.data.dtype) for o in rest]
    data = [x.data, weight.data, *(None if o is None else o.data for o in rest)]
    return Fact(_evaluate(_counting(site), marks) == 0, _evaluate(site, data))


def _counting(site: Site) -> Site:
    """The site without factors: marks are counts, and one that a negative factor turned could cancel another."""
    attrs = {k: 1.0 if k in ("alpha", "beta") else v for k, v in site.attrs.items()}
    return replace(site, node=replace(site.node, attrs=attrs))


def _silent_slice(weight: np.ndarray) -> bool:
    """Whether some slice along some axis is zero; otherwise every result depends on the input."""
    if weight.all():
        return False
    used = weight != 0
    return any(
        not used.any(axis=tuple(d for d in range(used.ndim) if d != axis)).all() for axis in range(used.ndim)
    )
