"""What the vertices of a graph carry: values and nodes, and the view of a node that operators get.

Payloads are frozen and replaced, never mutated, so that copies of a graph share them and their arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from compiler.errors import VerifyError
from compiler.ir.types import Axis, DType, NodeRef, TensorType, ValueRef

if TYPE_CHECKING:
    from compiler.ir.op import Op

Attrs = Mapping[str, Any]
"""Attribute values are int, float, str or tuples of these."""


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A tensor: graph input, parameter (`data` is a read-only dense array) or result of a node.

    `sparser`: the data of a parameter at sparsity levels 1, 2 ... where they differ from `data`, those of level 0.
    `order`: of a parameter that was taken from levels, its data at those that were nested in it (itself where there
    were none). They are no levels here, but kernels add up in the order that they give (`levels.at_level`).
    """

    ref: ValueRef
    type: TensorType
    data: np.ndarray | None = None
    sparser: tuple[np.ndarray, ...] = ()
    order: tuple[np.ndarray, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def size(self) -> int:
        return self.type.size

    @property
    def rank(self) -> int:
        return self.type.rank

    def axis(self, dim: int) -> Axis:
        """Axis `dim` (negative counts from the end)."""
        return Axis(self.ref, dim % self.rank)

    @property
    def constant(self) -> np.ndarray:
        """The data of a parameter; VerifyError for anything else."""
        if self.data is None:
            raise VerifyError(f"value '{self.ref}' was expected to be a constant")
        return self.data

    @property
    def nested(self) -> bool:
        """Whether it is one of several levels, here or in the network that it was taken from."""
        return bool(self.sparser or self.order)

    def at(self, level: int) -> Value:
        """The value with the data of a level, and of the levels nested in it; itself where levels do not differ."""
        if not self.sparser or level == 0:
            return self
        return replace(self, data=self.sparser[level - 1], sparser=self.sparser[level:])

    def behind(self, step: int) -> Value:
        """The value with the data of a step of `order`, or of the sparsest there is."""
        *_, sparsest = (self.data, *self.sparser, *self.order[: step + 1])
        return replace(self, data=sparsest, sparser=(), order=())


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One application of an operator.

    `attrs` is complete (defaults filled at import). `absent` lists the formal operand positions left out, such as
    the missing minimum in `Clip(x, , max)`. `origin` names source nodes, for reports and never for decisions.
    """

    ref: NodeRef
    op: Op
    attrs: Attrs
    absent: tuple[int, ...] = ()
    origin: tuple[str, ...] = ()


class Operands(Sequence[Value]):
    """The operands of a node by formal position; `[i]` must be present, `optional(i)` may be None."""

    def __init__(self, values: Sequence[Value | None]) -> None:
        self._values = tuple(values)

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, index: int) -> Value: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Value]: ...
    def __getitem__(self, index: int | slice) -> Value | Sequence[Value]:
        if isinstance(index, slice):
            return tuple(v for v in self._values[index] if v is not None)
        value = self._values[index]
        if value is None:
            raise VerifyError(f"operand {index} is absent")
        return value

    def optional(self, index: int) -> Value | None:
        """The operand at `index`, or None where it is absent or beyond the last one given."""
        return self._values[index] if index < len(self._values) else None

    def present(self) -> tuple[tuple[int, Value], ...]:
        """(formal position, value) of every operand that is there."""
        return tuple((i, v) for i, v in enumerate(self._values) if v is not None)


@dataclass(frozen=True, slots=True)
class Site:
    """A node with the values it reads and makes: all an operator may look at."""

    node: Node
    operands: Operands
    results: tuple[Value, ...]

    @property
    def attrs(self) -> Attrs:
        return self.node.attrs

    def ints(self, name: str) -> tuple[int, ...]:
        """Integer-list attribute `name`."""
        return tuple(self.node.attrs[name])

    def int(self, name: str) -> int:
        """Integer attribute `name`."""
        return self.node.attrs[name]  # type: ignore[no-any-return]

    def float(self, name: str) -> float:
        """Float attribute `name`."""
        return self.node.attrs[name]  # type: ignore[no-any-return]

    def str(self, name: str) -> str:
        """String attribute `name`."""
        return self.node.attrs[name]  # type: ignore[no-any-return]


def checked_value(
    ref: ValueRef,
    type_: TensorType,
    data: np.ndarray | None,
    sparser: Sequence[np.ndarray],
    order: Sequence[np.ndarray],
) -> Value:
    """A value with read-only data; VerifyError where data or levels do not fit the type, or are not nested."""
    if sparser and order:
        raise VerifyError(f"value '{ref}': has levels of its own; an order is for what was taken from levels")
    levels = (_checked_levels(ref, type_, data, arrays) for arrays in (sparser, order))
    return Value(ref, type_, _checked(ref, type_, data), *levels)


def _checked(ref: ValueRef, type_: TensorType, data: np.ndarray | None) -> np.ndarray | None:
    """Data as a read-only array of the type; VerifyError where it does not fit."""
    if data is None:
        _check_encoding(ref, type_, None)
        return None
    array = np.asarray(data)
    if array.dtype != type_.dtype.numpy:
        raise VerifyError(f"value '{ref}': data is {array.dtype}, the type says {type_.dtype.value}")
    _check_encoding(ref, type_, array)
    array = array.view()
    array.flags.writeable = False
    return array


def _checked_levels(
    ref: ValueRef, type_: TensorType, data: np.ndarray | None, sparser: Sequence[np.ndarray]
) -> tuple[np.ndarray, ...]:
    """The data of every further level as read-only arrays; VerifyError where they are not nested in `data`."""
    found: list[np.ndarray] = []
    for array in sparser:
        if data is None:
            raise VerifyError(f"value '{ref}': only a parameter has levels")
        checked = _checked(ref, type_, array)
        assert checked is not None
        try:
            type_.encoding.check_level(found[-1] if found else data, checked)
        except ValueError as error:
            raise VerifyError(f"value '{ref}', level {len(found) + 1}: {error}") from None
        found.append(checked)
    return tuple(found)


def _check_encoding(ref: ValueRef, type_: TensorType, data: np.ndarray | None) -> None:
    try:
        type_.encoding.check(type_.shape, data)
    except ValueError as error:
        raise VerifyError(f"value '{ref}': {error}") from None
