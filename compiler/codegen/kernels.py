"""What strategies build kernels with: slots, finished kernel calls, and the builder that knows layouts and pool."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import tvm_ffi

from compiler.codegen.generic.kernel import copy_kernel
from compiler.codegen.layout import Blocked, Layout, Plain
from compiler.codegen.memory import aligned
from compiler.codegen.pack import Pool
from compiler.codegen.target import Target
from compiler.codegen.templates.blocked import Plane
from compiler.codegen.templates.relayout import RelayoutShape, relayout_kernel, relayout_shape
from compiler.ir.graph import Graph, Value
from compiler.ir.types import DType, ValueRef


@dataclass(frozen=True, slots=True)
class Slot:
    """An argument before memory is planned.

    `value`: a value where and how it is stored; `plain`: the same row-major (another buffer where it is stored
    blocked); `pool`: byte offset `at`, plus `stride` for each sparsity level; `input` / `output`: the caller's
    pointer number `at`.
    """

    kind: Literal["value", "plain", "pool", "input", "output"]
    ref: ValueRef | None = None
    at: int = 0
    stride: int = 0


def two(numbers: tuple[int, ...], fill: int) -> tuple[int, int]:
    """Spatial attributes of one or two axes as two."""
    first, second = (fill, *numbers)[-2:]
    return first, second


def plane(value: Value, layout: Blocked) -> Plane:
    """The buffer of a blocked value."""
    rows, columns = two((1, *value.shape[2:]), 1)
    return Plane(value.shape[1], rows, columns, layout.width, two(layout.before, 0), two(layout.after, 0))


def value_slot(value: Value) -> Slot:
    """A value as it is stored."""
    return Slot("value", value.ref)


def plain_slot(value: Value) -> Slot:
    """A value row-major."""
    return Slot("plain", value.ref)


@dataclass(frozen=True)
class Built:
    """One kernel call: the function (`key` is equal for equal functions) and what it is called with."""

    key: Hashable
    func: Any
    slots: tuple[Slot, ...]
    template: str
    parts: int = 0
    """Independent units of work of a divided kernel; 0: the kernel takes no range."""
    note: Mapping[str, object] = field(default_factory=dict)
    users: tuple[int, ...] = ()
    """Of a kernel with members, by slot: bit i is set where member i needs it."""

    @property
    def members(self) -> int:
        """Results that a call may leave out; 0: the kernel has one, or computes all."""
        return max(self.users, default=0).bit_length()


@dataclass
class Builder:
    """Facts and services for the kernels of one graph on one target."""

    graph: Graph
    target: Target
    layouts: Mapping[ValueRef, Layout]
    pool: Pool
    _seen: list[tuple[int, Any, str]] = field(default_factory=list)

    def layout(self, ref: ValueRef) -> Layout:
        """The storage form of a value."""
        return self.layouts.get(ref, Plain())

    def constant(self, value: Value, packed: np.ndarray, form: str) -> Slot:
        """A packed parameter in the pool; `form` names the packing."""
        return self.table(value.ref.name, packed, form)

    def table(self, name: str, array: np.ndarray, form: str) -> Slot:
        """Any constant in the pool."""
        return Slot("pool", at=self.pool.add(name, array, form))

    def levelled(self, name: str, arrays: Sequence[np.ndarray], form: str) -> Slot:
        """A constant of which every level has its own, of one size; once where all are equal."""
        if all(a.tobytes() == arrays[0].tobytes() for a in arrays):
            return self.table(name, arrays[0], form)
        stride = aligned(arrays[0].nbytes)
        rows = [np.frombuffer(a.tobytes() + bytes(stride - a.nbytes), np.uint8) for a in arrays]
        return Slot("pool", at=self.pool.add(name, np.stack(rows), f"{form} by level"), stride=stride)

    def copy(self, value: Value, source: Layout, target: Layout, slots: tuple[Slot, Slot]) -> Built:
        """A kernel that stores a value again, in another layout or place."""
        note = {"value": value.ref.name, "shape": list(value.shape), "from": str(source), "to": str(target)}
        if shape := self._turning(value, source, target):
            return Built(("relayout", shape), relayout_kernel(shape), slots, "copy", shape.units.count, note)
        made = copy_kernel(value, source, target, self.target.lanes)
        tables = tuple(self.table(f"{value.ref}.table", t, "plain") for t in made.tables)
        return Built(self.key(made.func), made.func, (slots[0], *tables, slots[1]), "copy", made.parts, note)

    def _turning(self, value: Value, source: Layout, target: Layout) -> RelayoutShape | None:
        """The copy by squares, where one side is plain, the other blocked, and squares fit."""
        images = [layout for layout in (source, target) if isinstance(layout, Blocked)]
        if len(images) != 1 or value.dtype is not DType.FLOAT32 or value.rank > 4:
            return None
        (blocked,) = images
        return relayout_shape(value.shape[0], plane(value, blocked), blocked is target, self.target.lanes)

    def key(self, func: Any) -> Hashable:
        """A key shared by structurally equal functions."""
        digest = int(tvm_ffi.structural_hash(func))
        for known, other, key in self._seen:
            if known == digest and tvm_ffi.structural_equal(func, other):
                return key
        key = f"generic{len(self._seen)}"
        self._seen.append((digest, func, key))
        return key
