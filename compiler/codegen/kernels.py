"""Groups to PrimFuncs and arguments: where the algorithm's template, tile and packing are chosen."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import tvm_ffi

from compiler.codegen import fallback
from compiler.codegen.groups import CONVOLUTIONS, Group, is_clamp
from compiler.codegen.layout import Blocked, Layout, Plain
from compiler.codegen.layouts import block_width
from compiler.codegen.pack import Pool
from compiler.codegen.target import Target
from compiler.codegen.templates import conv, gemm, recurrent, winograd
from compiler.codegen.templates.common import Activation
from compiler.ir.graph import Graph, Site, Value
from compiler.ir.types import ValueRef


@dataclass(frozen=True, slots=True)
class Slot:
    """An argument before memory is planned.

    `value`: a value where and how it is stored; `plain`: the same row-major (another buffer where it is stored
    blocked); `pool`: byte offset `at`; `input` / `output`: the caller's pointer number `at`.
    """

    kind: Literal["value", "plain", "pool", "input", "output"]
    ref: ValueRef | None = None
    at: int = 0


@dataclass(frozen=True)
class Built:
    """One kernel call: the function (`key` is equal for equal functions) and what it is called with."""

    key: Hashable
    func: Any
    slots: tuple[Slot, ...]
    template: str
    note: Mapping[str, object] = field(default_factory=dict)


@dataclass
class Builder:
    """Builds kernels for the groups of one graph on one target."""

    graph: Graph
    target: Target
    layouts: Mapping[ValueRef, Layout]
    pool: Pool
    _seen: list[tuple[int, Any, str]] = field(default_factory=list)

    def layout(self, ref: ValueRef) -> Layout:
        """The storage form of a value."""
        return self.layouts.get(ref, Plain())

    def build(self, group: Group, stored: tuple[Value, ...]) -> Built:
        """The kernel of a group that must store the values `stored`."""
        if group.algorithm in CONVOLUTIONS:
            return self._conv(group)
        if group.algorithm == "gemm":
            return self._gemm(group)
        if group.algorithm == "recurrent":
            return self._recurrent(group)
        return self._generic(group, stored)

    def copy(self, value: Value, source: Layout, target: Layout, slots: tuple[Slot, Slot]) -> Built:
        """A kernel that stores a value again, in another layout or place."""
        func = fallback.copy_kernel(value, source, target, self.target.lanes)
        note = {"from": str(source), "to": str(target)}
        return Built(self._key(func), func, slots, "copy", note)

    # ------------------------------------------------------------------ algorithms
    def _conv(self, group: Group) -> Built:
        site, shape = group.anchor, self._conv_shape(group)
        x, weight, bias = site.operands[0], site.operands[1], site.operands.optional(2)
        array, block = _four(weight.constant), shape.y.block
        note: dict[str, object] = {"tile": list(shape.tile)}
        key: Hashable = ("conv", shape)
        if group.algorithm == "winograd":
            tiled = winograd.choose(shape, _accumulators(self.target))
            key, func, lanes = ("winograd", tiled), winograd.winograd_kernel(tiled), block * tiled.vectors
            packed, note = winograd.pack(array, lanes), {"tile": [tiled.group, tiled.rows, tiled.vectors]}
        elif shape.depthwise:
            func, lanes, packed = conv.conv_kernel(shape), block, conv.pack_depthwise(array, block)
        else:
            func, lanes = conv.conv_kernel(shape), block * shape.tile[2]
            packed = conv.pack_dense(array, block, shape.tile[2])
        fixed = conv.pack_bias(None if bias is None else bias.constant, shape.y.channels, lanes)
        form = f"{group.algorithm}{lanes}"
        slots = [_value(x), self._pool(weight, packed, form), self._pool(bias or weight, fixed, "bias")]
        slots += [_value(group.residual)] if group.residual is not None else []
        return Built(key, func, (*slots, _value(group.outputs[0])), group.algorithm, note)

    def _conv_shape(self, group: Group) -> conv.ConvShape:
        site, y = group.anchor, group.outputs[0]
        x, plane = site.operands[0], _plane(y, self._blocked(y))
        vectors = 1 if group.algorithm == "depthwise" else plane.blocks
        residual = self._blocked(group.residual) if group.residual is not None else None
        return conv.ConvShape(
            batch=x.shape[0],
            x=_plane(x, self._blocked(x)),
            y=plane,
            kernel=_two(site.ints("kernel_shape"), 1),
            stride=_two(site.ints("strides"), 1),
            dilation=_two(site.ints("dilations"), 1),
            pad=_two(site.ints("pads")[: x.rank - 2], 0),
            depthwise=group.algorithm == "depthwise",
            residual=_two(residual.halo, 0) if residual else None,
            activation=_activation(group),
            tile=conv.choose_tile(plane.height, plane.width, vectors, _accumulators(self.target)),
        )

    def _gemm(self, group: Group) -> Built:
        site, y = group.anchor, group.outputs[0]
        a = site.operands[0]
        matrix, bias = _gemm_constants(site)
        inner, columns = matrix.shape
        block = max(block_width(columns, self.target.lanes), 4)
        rows = a.size // inner
        tile = gemm.choose_tile(rows, inner, columns, block, _accumulators(self.target))
        shape = gemm.GemmShape(rows, inner, columns, block, group.residual is not None, _activation(group), tile)
        fixed = conv.pack_bias(bias, columns, shape.lanes)
        weight = site.operands[1]
        slots = [_plain(a), self._pool(weight, gemm.pack(matrix, shape.lanes), f"panel{shape.lanes}")]
        slots += [self._pool(site.operands.optional(2) or weight, fixed, "bias")]
        slots += [_plain(group.residual)] if group.residual is not None else []
        return Built(("gemm", shape), gemm.gemm_kernel(shape), (*slots, _plain(y)), "gemm", {"tile": list(tile)})

    def _recurrent(self, group: Group) -> Built:
        site = group.anchor
        lowered = recurrent.lower_site(site, self.target.lanes)
        slots = []
        for item in lowered.inputs:
            if isinstance(item, ValueRef):
                value = self.graph.value(item)
                slots.append(_plain(value) if value.data is None else self._pool(value, value.data, "plain"))
            else:
                slots.append(Slot("pool", at=self.pool.add(f"{site.node.ref}", item, "recurrent")))
        slots += [_plain(v) for v in site.results]
        return Built(("recurrent", lowered.shape), lowered.func, tuple(slots), "recurrent")

    def _generic(self, group: Group, stored: tuple[Value, ...]) -> Built:
        made = fallback.lower_group(group.sites, stored, self.layouts, self.target.lanes)
        name = group.sites[-1].node.ref.name
        slots = [Slot("value", r) for r in made.inputs]
        slots += [Slot("pool", at=self.pool.add(f"{name}.table", t, "plain")) for t in made.tables]
        slots += [_value(v) for v in stored]
        return Built(self._key(made.func), made.func, tuple(slots), "generic")

    # ------------------------------------------------------------------ helpers
    def _blocked(self, value: Value) -> Blocked:
        layout = self.layout(value.ref)
        assert isinstance(layout, Blocked)
        return layout

    def _pool(self, value: Value, packed: np.ndarray, layout: str) -> Slot:
        return Slot("pool", at=self.pool.add(value.ref.name, packed, layout))

    def _key(self, func: Any) -> Hashable:
        """A key shared by structurally equal functions."""
        digest = int(tvm_ffi.structural_hash(func))
        for known, other, key in self._seen:
            if known == digest and tvm_ffi.structural_equal(func, other):
                return key
        key = f"generic{len(self._seen)}"
        self._seen.append((digest, func, key))
        return key


def _accumulators(target: Target) -> int:
    """Accumulator vectors that leave room for weights and broadcasts: spills in the inner loop cost more."""
    return target.vector_registers - (4 if target.vector_registers == 16 or target.lanes > 4 else 8)


def _plane(value: Value, layout: Blocked) -> conv.Plane:
    spatial = (1, *value.shape[2:])[-2:]
    return conv.Plane(value.shape[1], spatial[0], spatial[1], layout.width, _two(layout.halo, 0))


def _two(numbers: tuple[int, ...], fill: int) -> tuple[int, int]:
    """Spatial attributes of one or two axes as two."""
    first, second = (fill, *numbers)[-2:]
    return first, second


def _four(weight: np.ndarray) -> np.ndarray:
    return weight if weight.ndim == 4 else weight[:, :, None, :]


def _value(value: Value) -> Slot:
    return Slot("value", value.ref)


def _plain(value: Value) -> Slot:
    return Slot("plain", value.ref)


def _activation(group: Group) -> Activation:
    site = group.activation
    if site is None:
        return Activation()
    assert is_clamp(site)
    if site.node.op.name == "Relu":
        return Activation(low=0.0)
    low, high = site.operands.optional(1), site.operands.optional(2)
    return Activation(None if low is None else float(low.constant), None if high is None else float(high.constant))


def _gemm_constants(site: Site) -> tuple[np.ndarray, np.ndarray | None]:
    """The [K, N] matrix and the [N] bias of a Gemm or MatMul, scale factors folded in."""
    matrix = site.operands[1].constant
    if site.node.op.name == "MatMul":
        return matrix, None
    matrix = np.float32(site.float("alpha")) * (matrix.T if site.int("transB") else matrix)
    bias = site.operands.optional(2)
    if bias is None:
        return matrix, None
    row = np.broadcast_to(bias.constant.reshape(-1), (matrix.shape[1],))
    return matrix, np.float32(site.float("beta")) * row
