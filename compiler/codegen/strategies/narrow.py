"""Convolutions with fewer output channels than a vector has lanes, stored one channel after another (planar)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from compiler.codegen.groups import Group
from compiler.codegen.kernels import Builder, Built
from compiler.codegen.layout import Border
from compiler.codegen.layouts import WIDTHS
from compiler.codegen.strategies.base import Candidate, Choice, Situation, Strategy
from compiler.codegen.strategies.convolution import (
    ConvFacts,
    conv_slots,
    facts,
    output_block,
    padding_borders,
    weight4,
)
from compiler.codegen.strategies.direct import TILE_CYCLES, image_planes, rows_and_columns
from compiler.codegen.target import Target
from compiler.codegen.templates import lane_sums, planar
from compiler.ir.graph import Value
from compiler.ir.types import ValueRef

CACHE_LINE = 16
"""Elements of a cache line."""
PAIR = 3
"""Instructions that make one vector of the lanes of two, added in pairs."""


class PlanarConv(Strategy):
    """Few channels to few: vectors along the columns. Tile: vectors along the columns, and rows."""

    name = "planar"
    families = ("conv",)

    def candidates(self, group: Group, situation: Situation) -> Iterable[Candidate]:
        known, target = facts(group.anchor), situation.target
        blocks = {situation.block(v.shape[1]) for v in (*group.segments, group.outputs[0])}
        if blocks != {1} or known.stride[1] != 1:
            return []
        extent = rows_and_columns(group, known, situation)
        times = {
            tile: _planar_seconds(known, extent, target, tile) for tile in _planar_tiles(known, extent, target)
        }
        return _ranked(self.name, times)

    def borders(self, group: Group, choice: Choice) -> Mapping[ValueRef, Border]:
        return padding_borders(group)

    def build(self, builder: Builder, group: Group, choice: Choice, stored: Sequence[Value]) -> Built:
        known, target, (vectors, rows) = facts(group.anchor), builder.target, choice.tile
        x, y, after = image_planes(builder, group, vectors * target.lanes, 0 if rows > 1 else 1)
        shape = planar.PlanarShape(
            batch=known.batch,
            x=x,
            y=y,
            kernel=known.kernel,
            row_stride=known.stride[0],
            dilation=known.dilation,
            pad=known.pad,
            lanes=_power_of_two(y.width, target.lanes),
            tile=(vectors, rows),
            epilogue=after,
            by_element=target.input_lanes > 1,
        )
        packed = planar.pack(weight4(group.anchor), shape)
        slots = conv_slots(builder, group, f"{self.name}{shape.weights}", packed, 1)
        return Built((self.name, shape), planar.planar_kernel(shape), slots, self.name, shape.units.count)


class LaneSums(Strategy):
    """Many channels to few: vectors along the input channels. Tile: columns whose sums form a vector, and such
    vectors."""

    name = "lane-sums"
    families = ("conv",)

    def candidates(self, group: Group, situation: Situation) -> Iterable[Candidate]:
        known, target = facts(group.anchor), situation.target
        blocks = {situation.block(v.shape[1]) for v in group.segments}
        if output_block(group.anchor, situation) != 1 or len(blocks) > 1 or not blocks <= set(WIDTHS):
            return []
        block, extent = blocks.pop(), rows_and_columns(group, known, situation)
        tiles = _sums_tiles(known, extent, block, target)
        return _ranked(self.name, {tile: _sums_seconds(known, extent, block, target, tile) for tile in tiles})

    def borders(self, group: Group, choice: Choice) -> Mapping[ValueRef, Border]:
        return padding_borders(group)

    def build(self, builder: Builder, group: Group, choice: Choice, stored: Sequence[Value]) -> Built:
        known = facts(group.anchor)
        x, y, after = image_planes(builder, group, math.prod(choice.tile))
        # rows are shorter than the tile was made for where another reader wants a border around the input
        columns = min(choice.tile[0], _power_of_two(y.width, x[0].block))
        shape = lane_sums.LaneSumsShape(
            batch=known.batch,
            x=x,
            y=y,
            kernel=known.kernel,
            stride=known.stride,
            dilation=known.dilation,
            pad=known.pad,
            tile=(columns, choice.tile[1]),
            epilogue=after,
        )
        packed = lane_sums.pack(weight4(group.anchor), shape.x)
        slots = conv_slots(builder, group, f"{self.name}{shape.block}", packed, 1)
        return Built((self.name, shape), lane_sums.lane_sums_kernel(shape), slots, self.name, shape.units.count)


def _ranked(name: str, times: Mapping[tuple[int, int], float]) -> list[Candidate]:
    return [Candidate(Choice(name, t), times[t]) for t in sorted(times, key=lambda t: (times[t], t))]


def _power_of_two(width: int, most: int) -> int:
    """The largest power of two that is at most `width` and at most `most`, which is one."""
    return min(most, 1 << (width.bit_length() - 1))


def _planar_tiles(known: ConvFacts, extent: tuple[int, int], target: Target) -> Iterator[tuple[int, int]]:
    """Sums, the weights of a tap, and a vector of inputs with the next one stay in registers."""
    height, width = extent
    weights = 1 if target.input_lanes > 1 else known.outputs
    for vectors in range(1, -(-width // _power_of_two(width, target.lanes)) + 1):
        for rows in (r for r in (1, 2, 3, 4) if height % r == 0):
            if known.outputs * vectors * rows + weights + 2 <= target.vector_registers:
                yield vectors, rows


def _planar_seconds(known: ConvFacts, extent: tuple[int, int], target: Target, tile: tuple[int, int]) -> float:
    """Predicted time: vectors that begin anywhere often lie in two cache lines, each of which is a load."""
    machine, (vectors, rows), (height, width) = target.machine, tile, extent
    lanes, tap = _power_of_two(width, target.lanes), known.taps
    weights = 1 if target.input_lanes > 1 else known.outputs * machine.fma_per_cycle / 2
    cycles = 0.0
    for _, offsets, repeats in planar.starts(width, lanes, vectors):
        inputs = len(offsets) * rows
        loads = inputs * (1 + (lanes - 1) / CACHE_LINE) + weights
        sums = inputs * known.outputs
        step = max(sums / machine.fma_per_cycle, loads / machine.loads_per_cycle, machine.fma_latency / 2)
        cycles += repeats * (tap * step / machine.rate(lanes) + TILE_CYCLES + 2 * sums)
    return known.batch * height / rows * cycles / machine.clock


def _sums_tiles(known: ConvFacts, extent: tuple[int, int], block: int, target: Target) -> Iterator[tuple[int, int]]:
    """Partial sums, the weights of a tap and a vector of inputs stay in registers."""
    columns = _power_of_two(extent[1], block)
    while columns:
        for vectors in range(1, -(-extent[1] // columns) + 1) if columns == block else (1,):
            if known.outputs * (columns * vectors + 1) + 1 <= target.vector_registers:
                yield columns, vectors
        columns //= 2


def _sums_seconds(
    known: ConvFacts, extent: tuple[int, int], block: int, target: Target, tile: tuple[int, int]
) -> float:
    """Predicted time: a product per column and output for every block of inputs, then the sums over lanes."""
    machine, (columns, vectors), (height, width) = target.machine, tile, extent
    steps = -(-known.inputs // block) * known.kernel[0] * known.kernel[1]
    halvings = block.bit_length() - columns.bit_length()
    tree = known.outputs * (2 * columns * halvings + PAIR * (columns - 1))
    cycles = 0.0
    for _, offsets, repeats in planar.starts(width, columns, vectors):
        inputs = len(offsets) * columns
        sums, loads = inputs * known.outputs, inputs + known.outputs
        step = max(
            sums / machine.fma_per_cycle / machine.rate(block),
            loads / machine.loads_per_cycle,
            machine.fma_latency / 2,
        )
        cycles += repeats * (steps * step + TILE_CYCLES + len(offsets) * (tree + 2 * known.outputs))
    return known.batch * height * cycles / machine.clock
