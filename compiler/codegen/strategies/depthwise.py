"""Depthwise convolution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from compiler.codegen.groups import Group
from compiler.codegen.kernels import Builder, Built
from compiler.codegen.layout import Border
from compiler.codegen.strategies.base import Candidate, Choice, Situation, Strategy
from compiler.codegen.strategies.convolution import (
    ConvFacts,
    blocked_plane,
    conv_slots,
    epilogue,
    facts,
    output_block,
    padding_borders,
    weight4,
)
from compiler.codegen.target import Target
from compiler.codegen.templates import depthwise
from compiler.codegen.templates.common import chunks
from compiler.ir.graph import Value
from compiler.ir.types import ValueRef

TILE_ROWS = (1, 2, 3, 4, 7)
TILE_CYCLES = 10
"""Start and end of a register tile besides its sums: loop control and addresses."""
MOST_PRODUCTS = 2048
"""Multiply-adds of one tile, all unrolled: what fits the instruction cache."""
UNROLLED_TAPS = 9
"""Taps of a kernel whose rows LLVM unrolls."""
ADDRESSES = 10
"""Inputs of a row that are read by addresses in registers of 32-bit ARM."""

READ_AHEAD = 4
"""One register of so many holds an input that is read before it is used (ARM)."""


class Depthwise(Strategy):
    """Tile: output columns and rows in registers."""

    name = "depthwise"
    version = 4
    families = ("depthwise",)

    def candidates(self, group: Group, situation: Situation) -> Iterable[Candidate]:
        known = facts(group.anchor)
        height, width = known.extent
        budget = situation.target.vector_registers - 2  # one input, one weight
        taps = known.kernel[0] * known.kernel[1]
        tiles = []
        for rows in (r for r in TILE_ROWS if height % r == 0):
            most = min(width, budget // rows, MOST_PRODUCTS // (rows * taps))
            tiles += [(columns, rows) for columns in range(1, max(1, most) + 1)]
        if row_by_row(situation.target):
            tiles = [t for t in tiles if _fits_registers(t, known, situation.target)] or tiles
        found = [Candidate(Choice(self.name, tile), _seconds(group, known, situation, tile)) for tile in tiles]
        return sorted(found, key=lambda c: (c.seconds, c.choice.tile))

    def borders(self, group: Group, choice: Choice) -> Mapping[ValueRef, Border]:
        return padding_borders(group)

    def build(self, builder: Builder, group: Group, choice: Choice, stored: Sequence[Value]) -> Built:
        site, known = group.anchor, facts(group.anchor)
        columns, rows = choice.tile
        shape = depthwise.DepthwiseShape(
            batch=known.batch,
            x=blocked_plane(builder, site.operands[0]),
            y=blocked_plane(builder, group.outputs[0]),
            kernel=known.kernel,
            stride=known.stride,
            dilation=known.dilation,
            pad=known.pad,
            epilogue=epilogue(builder, group),
            tile=(columns, rows),
            by_tiles=known.inputs < known.extent[0] * known.extent[1],
            row_by_row=row_by_row(builder.target),
        )
        packed = depthwise.pack(weight4(site), shape.y.block)
        slots = conv_slots(builder, group, f"{self.name}{shape.y.block}", packed, shape.y.block)
        return Built((self.name, shape), depthwise.depthwise_kernel(shape), slots, self.name, shape.units.count)


def row_by_row(target: Target) -> bool:
    """Whether rows of the kernel are a loop: where no operand can lie in memory LLVM reads the inputs of several
    rows ahead, and spills sums for them."""
    return target.arch != "x86_64"


def _fits_registers(tile: tuple[int, int], known: ConvFacts, target: Target) -> bool:
    """Whether sums, weights and inputs under way stay in registers, on 32-bit ARM also the inputs' addresses.
    Several rows of outputs share no inputs of a kernel's row, so one row is enough."""
    (columns, rows), room, weights = tile, target.vector_registers, known.kernel[1]
    if target.arch == "armv7":
        if _touched(known, 1, columns) > ADDRESSES:
            return False
    else:  # of a small kernel LLVM unrolls the rows after all, and holds all weights
        weights = min(known.kernel[0] * weights, max(weights, UNROLLED_TAPS))
    return (rows == 1 or columns == known.extent[1]) and columns * rows + weights + room // READ_AHEAD <= room


def _seconds(group: Group, known: ConvFacts, situation: Situation, tile: tuple[int, int]) -> float:
    """Cycles of all register tiles, each by the slowest of multiply-adds, loads and the chain through one sum."""
    machine, (columns, rows) = situation.target.machine, tile
    height, width = known.extent
    taps = known.kernel[0] * known.kernel[1]
    block = output_block(group.anchor, situation)
    rate, cycles = machine.rate(block), 0.0
    for _, count, repeat in chunks(width, columns):
        sums = count * rows
        loads = _loads(known, (rows, count), situation.target)
        # consecutive tiles overlap in an out-of-order core, so half of the latency shows
        chain = taps * machine.fma_latency / 2
        step = max(taps * sums / machine.fma_per_cycle / rate, loads / machine.loads_per_cycle / rate, chain)
        cycles += repeat * (step + TILE_CYCLES + 2 * sums)
    blocks = -(-known.outputs // block)
    return known.batch * blocks * (height // rows) * cycles / machine.clock


def _loads(known: ConvFacts, extent: tuple[int, int], target: Target) -> float:
    """Vectors that a tile of rows x columns reads."""
    (height, width), taps = known.kernel, known.kernel[0] * known.kernel[1]
    sums, across = extent[0] * extent[1], _touched(known, 1, extent[1])
    if row_by_row(target):  # each row of the kernel reads its weights and, for every row of the tile, its inputs
        return height * (width + extent[0] * across)
    cells = _touched(known, 0, extent[0]) * across
    if sums + taps + 1 <= target.vector_registers:  # weights stay in registers
        return cells
    return cells / 2 + taps * sums  # operands in memory, some of them twice


def _touched(known: ConvFacts, axis: int, outputs: int) -> int:
    """Input positions along an axis that this many consecutive outputs read."""
    stride, dilation = known.stride[axis], known.dilation[axis]
    return len({o * stride + k * dilation for o in range(outputs) for k in range(known.kernel[axis])})
