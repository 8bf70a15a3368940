"""Winograd convolution: fewer multiplications at stride 1 and 2, where the transforms are repaid."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from compiler.codegen.families import Family
from compiler.codegen.groups import Group
from compiler.codegen.kernels import Builder, Built, Slot, value_slot
from compiler.codegen.layout import Border
from compiler.codegen.layouts import tile_vectors
from compiler.codegen.strategies.base import Candidate, Choice, Situation, Strategy
from compiler.codegen.strategies.convolution import (
    MOST_ERROR,
    ConvFacts,
    bias_slot,
    blocked_plane,
    epilogue_slots,
    facts,
    hidden_loads,
    input_loads,
    output_block,
    padding_borders,
    weight4,
    weight_seconds,
)
from compiler.codegen.strategies.direct import conv_shape, fits_registers
from compiler.codegen.target import Target
from compiler.codegen.templates import winograd_shape
from compiler.codegen.templates.blocked import Plane
from compiler.codegen.templates.winograd import winograd_kernel
from compiler.codegen.templates.winograd_axis import MOST_POINTS
from compiler.ir.graph import Site, Value
from compiler.ir.types import ValueRef
from compiler.machine import Machine

WIDE_PANEL, WIDE_VECTORS = 128, 2
"""Weights per step of the products from which on they arrive at full speed: bytes from memory on x86, measured with
AVX-512; vectors from a cache, and on 64-bit ARM (docs/decisions/0008)."""
LEAST_TAPS = 144
"""Products per output element below which transforms cost more than they save."""
SMALL_TILE, SPILLED = 4, 1.8
"""Outputs along an axis up to which a tile is transformed back in registers, nearly; how much longer a point takes
beyond."""
MOST_KNOWN = 4096
"""Layer shapes whose predicted times are remembered."""
_GROUPS = (4, 8, 12, 16, 24, 28, 36, 49, 56, 64, 98)


class Winograd(Strategy):
    """Tiles of `outputs`, m x n. Tile: tiles transformed together, tiles and output vectors in registers.

    Of a 3x3 filter at stride 1: 2x2 makes 2.25 times fewer multiplications of 1.8 times the weight bytes; 4x2 makes
    3 times fewer of 2.7 times the bytes, and wastes less than 4x4 at 7 x 7; 4x4 makes 4 times fewer of 4 times the
    bytes, with another digit of rounding error. 5x5 and 6x6 waste less where extents are no multiples of 4 (14 is
    nearly three times 5), and 6x6 makes a tenth fewer of large images. Tiles along one axis serve filters of one
    row or one column: for 5 taps 2 outputs make 1.7 times fewer multiplications, 4 outputs 2.5 times.

    The family `siblings` is computed by one kernel, which transforms what several of them read once. There is no
    direct form: direct kernels of single siblings run as near to the multiply-add peak as that of an undivided
    layer (docs/decisions/0013).
    """

    version = 6
    arm_version = 3

    def __init__(self, outputs: tuple[int, int], family: Family = "conv") -> None:
        self.outputs = outputs
        self.families = (family,)
        self.name = "winograd{}x{}".format(*outputs) + ("" if family == "conv" else f"-{family}")
        self._known: dict[Hashable, list[Candidate]] = {}

    def candidates(self, group: Group, situation: Situation) -> Iterable[Candidate]:
        known = _together(group)
        exact = all(axis.points <= MOST_POINTS for axis in self.axes(known))
        if not exact or not _applies(known, self.outputs, situation.target.lanes):
            return []
        ranked = self._all_tiles(group, situation)
        return ranked if all(self.error(part.anchor) <= MOST_ERROR for part in group.parts) else []

    def _all_tiles(self, group: Group, situation: Situation) -> list[Candidate]:
        """Every tile, best predicted first; remembered by shapes: searches price layers of one shape many times."""
        machine = situation.target.machine
        made = (
            (facts(p.anchor), p.anchor.results[0].shape[1], output_block(p.anchor, situation)) for p in group.parts
        )
        read = ((v.shape[1], situation.block(v.shape[1])) for v in group.segments)
        fits = situation.weight_bytes <= machine.last_level_cache // 2
        key = situation.target, fits, tuple(made), tuple(read)
        if key not in self._known:
            found = [self._candidate(group, situation, tile) for tile in self._tiles(group, situation)]
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[key] = sorted(found, key=lambda c: (c.seconds, c.choice.tile))
        return self._known[key]

    def borders(self, group: Group, choice: Choice) -> Mapping[ValueRef, Border]:
        found: dict[ValueRef, Border] = {}
        for part in group.parts:
            for ref, border in self._borders(part).items():
                found[ref] = border.join(found[ref]) if ref in found else border
        return found

    def _borders(self, group: Group) -> dict[ValueRef, Border]:
        """What one convolution reads."""
        found = padding_borders(group)
        known = facts(group.anchor)
        for value in group.segments:
            border = found[value.ref]
            axes = list(zip(self.axes(known), known.extent, strict=True))[4 - value.rank :]
            read = tuple(axis.cells(extent) for axis, extent in axes)
            held = (b + n for b, n in zip(border.before, value.shape[2:], strict=True))
            after = tuple(max(a, r - h) for a, r, h in zip(border.after, read, held, strict=True))
            found[value.ref] = Border(border.before, after)
        return found

    def build(self, builder: Builder, group: Group, choice: Choice, stored: Sequence[Value]) -> Built:
        shape = self._shape(builder, group, choice.tile)
        slots, users = [value_slot(v) for v in group.segments], []
        for segment in range(len(slots)):
            users.append(sum(1 << m for m, member in enumerate(shape.members) if segment in member.reads))
        for number, (part, member) in enumerate(zip(group.parts, shape.members, strict=True)):
            own = [*self._constants(builder, part, shape.lanes(member)), *epilogue_slots(part)]
            slots += own
            users += [1 << number] * len(own)
        return Built(
            (self.name, shape),
            winograd_kernel(shape),
            tuple(slots),
            self.name,
            shape.units.count,
            users=tuple(users) if group.members else (),
        )

    def _shape(self, builder: Builder, group: Group, tile: tuple[int, ...]) -> winograd_shape.WinogradShape:
        count, rows, vectors = tile
        convs = [conv_shape(builder, part) for part in group.parts]
        at = {value.ref: number for number, value in enumerate(group.segments)}
        members = tuple(
            winograd_shape.Member(conv.y, conv.epilogue, tuple(at[v.ref] for v in part.segments))
            for part, conv in zip(group.parts, convs, strict=True)
        )
        planes = tuple(blocked_plane(builder, v) for v in group.segments)
        unroll = _lane_unroll(builder.target, planes)
        # what the kernel does not depend on is the same for all, so that equal kernels have equal shapes
        geometry = replace(
            convs[0],
            x=planes,
            lane_unroll=unroll,
            weights_outer=True,
            by_tiles=True,
            prefetch=False,
            flat_rows=False,
        )
        large = any(4 * m.y.lanes * m.y.height * m.y.width >= builder.target.machine.l2 for m in members)
        return winograd_shape.WinogradShape(geometry, members, self.outputs, count, rows, vectors, prefetch=large)

    def _constants(self, builder: Builder, group: Group, lanes: int) -> list[Slot]:
        """Transformed weights and bias of one convolution."""
        site = group.anchor
        packed = winograd_shape.pack(weight4(site), self.axes(facts(site)), lanes)
        weights = builder.constant(site.operands[1], packed, f"{self.name}-{lanes}")
        return [weights, bias_slot(builder, site, lanes)]

    def error(self, site: Site, tiles: int = 4) -> float:
        """Error of one output of the algorithm in float32 on random inputs, relative to the largest result."""
        known, axes = facts(site), self.axes(facts(site))
        rng = np.random.default_rng(0)
        weight = weight4(site)
        some = weight[np.sort(rng.permutation(weight.shape[0])[:32])]
        cells = tuple(axis.cells(axis.outputs) for axis in axes)
        x = rng.normal(size=(tiles, weight.shape[1], *cells)).astype(np.float32)
        got = winograd_shape.reference(x, some, axes)
        exact = np.zeros_like(got, np.float64)
        for i, j in itertools.product(*map(range, self.outputs)):
            top, left = i * known.stride[0], j * known.stride[1]
            window = x[:, :, top : top + known.kernel[0], left : left + known.kernel[1]].astype(np.float64)
            exact[:, :, i, j] = np.tensordot(window, some, ([1, 2, 3],) * 2)
        return float(np.abs(got - exact).max() / max(np.abs(exact).max(), 1e-30))

    def axes(self, known: ConvFacts) -> winograd_shape.Axes:
        """The arithmetic of a convolution's tiles."""
        return winograd_shape.tile_axes(self.outputs, known.kernel, known.stride)

    def _tiles(self, group: Group, situation: Situation) -> Iterable[tuple[int, int, int]]:
        known, room = facts(group.anchor), situation.target.vector_registers
        count = known.batch * int(np.prod(winograd_shape.tile_counts(known.extent, self.outputs)))
        blocks = [-(-p.anchor.results[0].shape[1] // output_block(p.anchor, situation)) for p in group.parts]
        for vectors in sorted({1, *(v for b in blocks for v in tile_vectors(b))}):
            for rows in range(1, min(count, room) + 1):
                if not fits_registers(situation.target, rows, vectors, _spare(situation.target, rows)):
                    continue
                sizes = {rows * -(-min(size, count) // rows) for size in (*_GROUPS, count if count <= 200 else 1)}
                yield from ((size, rows, vectors) for size in sorted(sizes))

    def _candidate(self, group: Group, situation: Situation, tile: tuple[int, int, int]) -> Candidate:
        """Products by registers and caches, transforms by loads and stores."""
        machine, known, size = situation.target.machine, facts(group.anchor), tile[0]
        axes = self.axes(known)
        points, products = axes[0].points * axes[1].points, winograd_shape.products_per_tile(axes)
        phases = len(winograd_shape.phase_pairs(axes))
        count = known.batch * int(np.prod(winograd_shape.tile_counts(known.extent, self.outputs)))
        inputs = sum(v.shape[1] for v in group.segments)
        read = sum(-(-v.shape[1] // situation.block(v.shape[1])) for v in group.segments)
        blocks = [output_block(p.anchor, situation) for p in group.parts]
        outputs = [-(-p.anchor.results[0].shape[1] // b) for p, b in zip(group.parts, blocks, strict=True)]
        scratch = 4 * points * size * (phases * inputs + sum(n * b for n, b in zip(outputs, blocks, strict=True)))
        packed = [
            4 * products * facts(p.anchor).inputs * n * b
            for p, n, b in zip(group.parts, outputs, blocks, strict=True)
        ]
        near = sum(packed) + scratch <= machine.l2
        product_seconds = sum(
            self._product_seconds(part, situation, tile, (size_, scratch, near))
            for part, size_ in zip(group.parts, packed, strict=True)
        )
        moved = count * (products * read + points * sum(outputs))
        cycles = (3.0 if scratch <= machine.l2 else 5.0) * (SPILLED if max(self.outputs) > SMALL_TILE else 1.0)
        transforms = moved * cycles / machine.clock
        return Candidate(Choice(self.name, tile), product_seconds + transforms)

    def _product_seconds(
        self, group: Group, situation: Situation, tile: tuple[int, int, int], memory: tuple[int, int, bool]
    ) -> float:
        """Of one convolution. `memory`: bytes of its weights and of the kernel's intermediates, and whether these
        and all weights of the kernel fit in the second-level cache."""
        packed, scratch, near = memory
        machine, (size, rows, most) = situation.target.machine, tile
        known, block = facts(group.anchor), output_block(group.anchor, situation)
        blocks, rate = -(-known.outputs // block), machine.rate(block)
        vectors = winograd_shape.panel_vectors(blocks, most)
        axes = self.axes(known)
        points, products = axes[0].points * axes[1].points, winograd_shape.products_per_tile(axes)
        phases = len(winograd_shape.phase_pairs(axes))
        count = known.batch * int(np.prod(winograd_shape.tile_counts(known.extent, self.outputs)))
        groups = -(-count // size)
        units = -(-count // rows)
        step = max(
            rows * vectors / machine.fma_per_cycle / rate,
            (rows * input_loads(situation.target) + vectors / rate) / machine.loads_per_cycle,
            machine.fma_latency / 2,
        )
        step *= _cache_factor(machine, 4 * phases * known.inputs * size, scratch)
        sums = products * known.inputs * step + points * (12 + rows * vectors)
        unit = (blocks // vectors) * sums / machine.clock
        # the first tiles of a group wait for each panel of weights, the others find it in the nearest cache
        kept = packed <= machine.last_level_cache // 2
        wide = kept or situation.target.input_lanes > 1
        narrow = max(1.0, WIDE_VECTORS / vectors if wide else WIDE_PANEL / (4 * block * vectors))
        first = max(unit, weight_seconds(packed, situation) * narrow)
        again = unit if near else max(unit, packed / machine.cache_bandwidth) if kept else first
        hidden = products * known.inputs * hidden_loads(situation.target, rows, vectors) / machine.clock
        loaded = units * (blocks // vectors) * hidden
        return loaded + first + (groups - 1) * again + (units - groups) * unit


def _lane_unroll(target: Target, segments: Sequence[Plane]) -> int:
    """Transformed channels read as one vector; 32-bit ARM copies their elements, as offsets do not reach them."""
    return 4 if target.arch != "x86_64" and all(x.block == 4 for x in segments) else 1


def _spare(target: Target, rows: int) -> int:
    """Registers that the unrolled products leave free on ARM: for inputs of half of the rows, read ahead; of few
    registers, for elements copied into every lane."""
    return 5 if target.vector_registers <= 16 else 1 + rows // 2


def _together(group: Group) -> ConvFacts:
    """The facts of a convolution; of siblings with the channels that they read and make together."""
    inputs = sum(v.shape[1] for v in group.segments)
    return replace(facts(group.anchor), inputs=inputs, outputs=sum(v.shape[1] for v in group.outputs))


def _cache_factor(machine: Machine, slab: int, scratch: int) -> float:
    """Measured slow-down of the products by what they read: `slab` bytes of inputs for one point, which are more
    streams than the prefetcher follows where they leave the first-level cache; `scratch` bytes in the second."""
    return (1.6 if slab > machine.l1 else 1.0) * (1.0 + 0.15 * min(1.0, scratch / machine.l2))


def _applies(known: ConvFacts, outputs: tuple[int, int], lanes: int) -> bool:
    """Dilation 1, enough channels and outputs to repay the transforms; along an axis with tiles at least 3 taps at
    stride 1 or 2, along the other axis of a one-dimensional convolution a single one."""
    if known.dilation != (1, 1) or known.taps < LEAST_TAPS or known.outputs < min(2 * lanes, 16):
        return False
    axes = zip(outputs, known.kernel, known.stride, known.extent, strict=True)
    return all(
        (taps >= 3 and stride in (1, 2) and extent >= 3) if tile > 1 else taps == stride == 1
        for tile, taps, stride, extent in axes
    )
