"""Depthwise convolution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from compiler.codegen.groups import Group
from compiler.codegen.kernels import Builder, Built, value_slot
from compiler.codegen.layout import Border
from compiler.codegen.strategies.base import Candidate, Choice, Situation, Strategy
from compiler.codegen.strategies.convolution import (
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

MOST_CANDIDATES = 6


class Depthwise(Strategy):
    """Tile: output columns and rows in registers."""

    name = "depthwise"
    version = 2
    families = ("depthwise",)

    def candidates(self, group: Group, situation: Situation) -> Iterable[Candidate]:
        known, machine = facts(group.anchor), situation.target.machine
        height, width = known.extent
        budget = situation.target.vector_registers - 4
        blocks = -(-known.outputs // output_block(group.anchor, situation))
        found = []
        for rows in (r for r in (1, 2, 3, 4, 7) if height % r == 0):
            for columns in range(1, min(width, max(1, budget // rows)) + 1):
                taps = known.kernel[0] * known.kernel[1]
                tiles = blocks * (height // rows) * -(-width // columns)
                cycles = tiles * (taps * (columns * rows + 1) / machine.loads_per_cycle + 12 + 2 * columns * rows)
                found.append(Candidate(Choice(self.name, (columns, rows)), known.batch * cycles / machine.clock))
        return sorted(found, key=lambda c: (c.seconds, c.choice.tile))[:MOST_CANDIDATES]

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
        return Built(("depthwise", shape), func, (*slots, *epilogue_slots(group)), self.name, shape.parts)
