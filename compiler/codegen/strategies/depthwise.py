"""Depthwise convolution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from compiler.codegen.groups import Group
from compiler.codegen.kernels import Builder, Built, value_slot
from compiler.codegen.layout import Border
from compiler.codegen.strategies.base import Candidate, Choice, Situation, Strategy
from compiler.codegen.strategies.convolution import (
    ConvFacts,
    blocked_plane,
    epilogue,
    epilogue_slots,
    facts,
    output_block,
    padding_borders,
    weight4,
)
from compiler.codegen.templates import depthwise
from compiler.codegen.templates.blocked import pack_bias
from compiler.ir.graph import Value
from compiler.ir.types import ValueRef

TILE_ROWS = (1, 2, 3, 4, 7)
TILE_CYCLES = 10
"""Start and end of a register tile besides its sums: loop control and addresses."""
MOST_PRODUCTS = 2048
"""Multiply-adds of one tile, all unrolled: what fits the instruction cache."""

READ_AHEAD = 8
"""Registers of inputs that are read before they are used (ARM)."""


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
        if situation.target.arch != "x86_64":
            tiles = [t for t in tiles if _fits_registers(t, taps, situation)] or tiles
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
        )
        weight, bias = site.operands[1], site.operands.optional(2)
        packed = depthwise.pack(weight4(site), shape.y.block)
        fixed = pack_bias(None if bias is None else bias.constant, shape.y.channels, shape.y.block)
        slots = [
            value_slot(site.operands[0]),
            builder.constant(weight, packed, f"depthwise{shape.y.block}"),
            builder.constant(bias or weight, fixed, "bias"),
        ]
        func = depthwise.depthwise_kernel(shape)
        return Built(("depthwise", shape), func, (*slots, *epilogue_slots(group)), self.name, shape.units.count)


def _fits_registers(tile: tuple[int, int], taps: int, situation: Situation) -> bool:
    """Whether sums, weights and inputs under way stay in registers where no operand can lie in memory: LLVM reads
    the inputs of several rows ahead, and spills sums for them."""
    columns, rows = tile
    return rows <= 2 and columns * rows + taps + READ_AHEAD <= situation.target.vector_registers


def _seconds(group: Group, known: ConvFacts, situation: Situation, tile: tuple[int, int]) -> float:
    """Cycles of all register tiles, each by the slowest of multiply-adds, loads and the chain through one sum."""
    machine, (columns, rows) = situation.target.machine, tile
    height, width = known.extent
    taps = known.kernel[0] * known.kernel[1]
    block = output_block(group.anchor, situation)
    rate, cycles = machine.rate(block), 0.0
    for count, repeat in ((columns, width // columns), (width % columns, 1)):
        if not count:
            continue
        sums = count * rows
        kept = sums + taps + 1 <= situation.target.vector_registers  # weights stay in registers
        cells = _touched(known, 0, rows) * _touched(known, 1, count)
        loads = cells if kept else cells / 2 + taps * sums  # else operands in memory, some of them twice
        # consecutive tiles overlap in an out-of-order core, so half of the latency shows
        chain = taps * machine.fma_latency / 2
        step = max(taps * sums / machine.fma_per_cycle / rate, loads / machine.loads_per_cycle / rate, chain)
        cycles += repeat * (step + TILE_CYCLES + 2 * sums)
    blocks = -(-known.outputs // block)
    return known.batch * blocks * (height // rows) * cycles / machine.clock


def _touched(known: ConvFacts, axis: int, outputs: int) -> int:
    """Input positions along an axis that this many consecutive outputs read."""
    stride, dilation = known.stride[axis], known.dilation[axis]
    return len({o * stride + k * dilation for o in range(outputs) for k in range(known.kernel[axis])})
