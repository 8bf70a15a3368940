"""Grouped convolution whose groups have several channels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from compiler.codegen.groups import Group
from compiler.codegen.kernels import Builder, Built
from compiler.codegen.layout import Border
from compiler.codegen.strategies.base import Candidate, Choice, Situation, Strategy
from compiler.codegen.strategies.convolution import (
    conv_slots,
    facts,
    output_block,
    padding_borders,
    weight4,
)
from compiler.codegen.strategies.direct import (
    conv_shape,
    register_tiles,
    rows_and_columns,
    seconds,
)
from compiler.codegen.templates import conv
from compiler.codegen.templates.grouped import Grouping
from compiler.ir.graph import Site, Value
from compiler.ir.types import ValueRef


class GroupedConv(Strategy):
    """Tile: columns, rows and vectors of output channels in registers."""

    name = "grouped"
    families = ("grouped",)

    def candidates(self, group: Group, situation: Situation) -> Iterable[Candidate]:
        site = group.anchor
        known, block = facts(site), output_block(site, situation)
        extent = rows_and_columns(group, known, situation)
        read = situation.block(known.inputs)
        found = []
        for tile in register_tiles(extent, -(-known.outputs // block), situation.target):
            grouping = grouping_of(site, read, block * tile[2])
            dense = replace(known, inputs=grouping.channels)
            found.append(Candidate(Choice(self.name, tile), seconds(dense, extent, block, situation, tile)))
        return sorted(found, key=lambda c: (c.seconds, c.choice.tile))

    def borders(self, group: Group, choice: Choice) -> Mapping[ValueRef, Border]:
        return padding_borders(group)

    def build(self, builder: Builder, group: Group, choice: Choice, stored: Sequence[Value]) -> Built:
        site = group.anchor
        plain = conv_shape(builder, group, choice.tile)
        block, vectors = plain.y.block, plain.tile[2]
        grouping = grouping_of(site, plain.x[0].block, block * vectors)
        shape = replace(plain, grouping=grouping)
        packed = conv.pack_grouped(weight4(site), plain.x[0], grouping, block, vectors)
        slots = conv_slots(builder, group, f"grouped{grouping.block}-{grouping.lanes}", packed, grouping.lanes)
        return Built(("grouped", shape), conv.conv_kernel(shape), slots, self.name, shape.parts)


def grouping_of(site: Site, block: int, lanes: int) -> Grouping:
    """The groups of a Conv whose input has blocks of `block` lanes, for panels of `lanes` outputs."""
    groups, weight = site.int("group"), site.operands[1]
    return Grouping(weight.shape[1], weight.shape[0] // groups, groups, block, lanes)
