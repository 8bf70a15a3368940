"""Products of two operands as loops over strides: one form for MatMul, Gemm and Einsum.

Operands are read where they lie, through transpositions that nobody else reads, and the result is written where a
transposition behind it wants it. Pure Python, no TVM.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from compiler.ir.graph import Site, Value
from compiler.ir.ops.linear import Einsum
from compiler.ir.types import DType, ValueRef, splat_value

LEAST_ROWS, LEAST_COLUMNS = 2, 4
"""Extents below which nothing is used twice, or vectors have lanes to spare."""


@dataclass(frozen=True, slots=True)
class Loop:
    """An axis: its extent, and by how many elements it moves in both operands and in the result; 0: not at all."""

    extent: int
    a: int
    b: int
    y: int

    @property
    def steps(self) -> tuple[int, int, int]:
        """Strides of the operands and of the result."""
        return self.a, self.b, self.y

    def around(self, inner: Loop) -> Loop | None:
        """This loop around `inner` as one, where every access crosses from turn to turn evenly."""
        even = all(o == i * inner.extent for o, i in zip(self.steps, inner.steps, strict=True))
        return Loop(self.extent * inner.extent, *inner.steps) if even else None


@dataclass(frozen=True, slots=True)
class Contraction:
    """y[n, i, j] = scale * sum over k of a[n, i, k] b[n, k, j], for every turn n of the loops `batch`.

    Columns j are neighbours in the result.
    """

    batch: tuple[Loop, ...]
    row: Loop
    inner: Loop
    column: Loop
    left: int = 0
    """Which operand of the node is `a`."""
    scale: float = 1.0

    @property
    def products(self) -> int:
        """Turns of all loops of the batch."""
        return math.prod(n.extent for n in self.batch)

    @property
    def spans(self) -> tuple[int, int, int]:
        """Elements from the first to the last one touched, of `a`, `b` and `y`."""
        loops = (*self.batch, self.row, self.inner, self.column)
        a, b, y = (1 + sum((n.extent - 1) * n.steps[i] for n in loops) for i in range(3))
        return a, b, y

    def __str__(self) -> str:
        """Name of the shape in a tuning database: extents, each with its strides."""
        batch = "x".join(map(_named, self.batch)) or "1"
        return f"{batch}@{_named(self.row)}x{_named(self.inner)}-{_named(self.column)}"


def _named(loop: Loop) -> str:
    return f"{loop.extent}({','.join(map(str, loop.steps))})"


def contraction(
    site: Site, moved: Mapping[ValueRef, Site] | None = None, behind: Site | None = None
) -> Contraction | None:
    """The loops of a product node; None where it is none of two float32 tensors, or has no such form.

    `moved`: transpositions before it, by result, that it reads through. `behind`: one that its result is stored by.
    """
    terms = _terms(site)
    if terms is None or not all(map(_operand, site.operands[:2])) or site.results[0].dtype is not DType.FLOAT32:
        return None
    if not site.results[0].size or all(v.data is not None for v in site.operands[:2]):
        return None
    read = [strides(v, moved or {}) for v in site.operands[:2]]
    found = _loops(site, terms, [*read, _stored(site.results[0], behind)])
    return None if found is None else _ordered(found, site.float("alpha") if site.node.op.name == "Gemm" else 1.0)


def strides(value: Value, moved: Mapping[ValueRef, Site]) -> list[int]:
    """By how many elements of the buffer that holds it each axis of a value moves."""
    found = row_major(value.shape)
    site = moved.get(value.ref)
    if site is None:
        return found
    source = strides(site.operands[0], moved)
    return [source[axis] for axis in site.ints("perm")]


def source(value: Value, moved: Mapping[ValueRef, Site]) -> Value:
    """The value whose buffer is read for `value`."""
    return source(moved[value.ref].operands[0], moved) if value.ref in moved else value


def row_major(shape: Sequence[int]) -> list[int]:
    """Strides of a buffer of this shape, in elements."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _stored(value: Value, behind: Site | None) -> list[int]:
    """Strides of the axes of a result in the buffer of its transposition."""
    if behind is None:
        return row_major(value.shape)
    made, perm = row_major(behind.results[0].shape), behind.ints("perm")
    return [made[perm.index(axis)] for axis in range(value.rank)]


def _operand(value: Value) -> bool:
    """Whether an operand is a float32 matrix at least, and no constant that other kernels handle better."""
    if value.dtype is not DType.FLOAT32 or value.rank < 2 or value.nested:
        return False
    return value.data is None or splat_value(value.data) is None


Terms = tuple[Sequence[str], Sequence[str], Sequence[str]]
"""Labels of the axes of both operands and of the result."""


def _terms(site: Site) -> Terms | None:
    """The labels of a product of two operands; None for any other node."""
    operator = site.node.op
    if len(site.operands) != 2:  # operands that are left out between others count
        return None
    a, b, y = site.operands[0], site.operands[1], site.results[0]
    if operator.name == "Gemm":
        left, right = "ki" if site.int("transA") else "ik", "jk" if site.int("transB") else "kj"
        return left, right, "ij"
    if operator.name == "MatMul" and min(a.rank, b.rank) >= 2:
        lead = [f"n{axis}" for axis in range(y.rank - 2)]
        first, second = (lead[len(lead) - (v.rank - 2) :] for v in (a, b))
        return [*first, "i", "k"], [*second, "k", "j"], [*lead, "i", "j"]
    if isinstance(operator, Einsum):
        (one, other), made = operator.labels(site)
        return (one, other, made) if all(len(set(t)) == len(t) for t in (one, other, made)) else None
    return None


def _loops(site: Site, terms: Terms, steps: Sequence[Sequence[int]]) -> dict[str, list[Loop]] | None:
    """Loops by what moves: `ab`, `aby`, `ay`, `by`, one per label; None where a label is summed in one operand."""
    extents: dict[str, int] = {}
    moves: dict[str, list[int]] = {}
    for number, (labels, value) in enumerate(zip(terms, (*site.operands[:2], site.results[0]), strict=True)):
        for axis, label in enumerate(labels):
            if value.shape[axis] > 1:
                extents[label] = value.shape[axis]
                moves.setdefault(label, [0, 0, 0])[number] = steps[number][axis]
    found: dict[str, list[Loop]] = {"ab": [], "aby": [], "ay": [], "by": []}
    for label, extent in extents.items():
        kind = "".join(name for name, step in zip("aby", moves[label], strict=True) if step)
        if kind not in found:
            return None
        found[kind].append(Loop(extent, *moves[label]))
    return found


def _ordered(found: Mapping[str, list[Loop]], scale: float) -> Contraction | None:
    """Rows, columns and the sum as one loop each; further loops over rows or columns belong to the batch."""
    inner = _joined(found["ab"], lambda n: n.a)
    rows, columns = (_joined(found[kind], lambda n: n.y) for kind in ("ay", "by"))
    if len(inner) != 1 or not rows or not columns:
        return None
    left = 0
    if rows[-1].y == 1:
        left, rows, columns = 1, columns, rows
    column, row = columns[-1], max(rows, key=lambda n: n.extent)
    if column.y != 1 or row.extent < LEAST_ROWS or column.extent < LEAST_COLUMNS:
        return None
    rest = [n for n in (*rows, *columns) if n is not row and n is not column]
    loops = [*_joined([*found["aby"], *rest], lambda n: n.y), row, *inner, column]
    batch, (row, reduced, column) = loops[:-3], (_turned(n, left) for n in loops[-3:])
    return Contraction(tuple(_turned(n, left) for n in batch), row, reduced, column, left, scale)


def _turned(loop: Loop, left: int) -> Loop:
    """The loop with operand `left` as `a`."""
    return Loop(loop.extent, loop.b, loop.a, loop.y) if left else loop


def _joined(loops: Iterable[Loop], step: Callable[[Loop], int]) -> list[Loop]:
    """Loops from the longest step to the shortest, neighbours as one where they can be."""
    found: list[Loop] = []
    for loop in sorted(loops, key=step, reverse=True):
        both = found[-1].around(loop) if found else None
        if both is None:
            found.append(loop)
        else:
            found[-1] = both
    return found
