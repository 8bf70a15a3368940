"""Transposed convolution."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from compiler.codegen.groups import Group
from compiler.codegen.kernels import Builder, Built, two, value_slot
from compiler.codegen.layout import Border
from compiler.codegen.strategies.base import Candidate, Choice, Situation, Strategy
from compiler.codegen.strategies.convolution import (
    ConvFacts,
    bias_slot,
    blocked_plane,
    epilogue,
    epilogue_slots,
    facts,
    output_block,
    residual_border,
    weight4,
)
from compiler.codegen.strategies.direct import (
    SMALL_WEIGHTS,
    divisor,
    lane_unroll,
    register_tiles,
    seconds,
)
from compiler.codegen.templates import conv, transposed
from compiler.codegen.templates.blocked import Plane
from compiler.ir.graph import Site, Value
from compiler.ir.types import ValueRef


@dataclass(frozen=True, slots=True)
class _Phase:
    """The output cells that share their taps, and the plain convolution that makes them."""

    rows: transposed.Axis
    columns: transposed.Axis
    conv: ConvFacts

    @property
    def start(self) -> tuple[int, int]:
        return self.rows.start, self.columns.start


class Transposed(Strategy):
    """Tile: columns, rows and vectors of output channels in registers, for the cells of one phase."""

    name = "transposed"
    families = ("transposed",)

    def candidates(self, group: Group, situation: Situation) -> Iterable[Candidate]:
        block, phases = output_block(group.anchor, situation), _phases(group.anchor)
        largest = max((p.conv.extent for p in phases), default=(1, 1))
        blocks = -(-phases[0].conv.outputs // block)
        found = []
        for columns, rows, vectors in register_tiles(largest, blocks, situation.target):
            predicted = 0.0
            for phase in phases:
                tile = (columns, divisor(phase.conv.extent[0], rows), vectors)
                predicted += seconds(phase.conv, phase.conv.extent, block, situation, tile)
            found.append(Candidate(Choice(self.name, (columns, rows, vectors)), predicted))
        return sorted(found, key=lambda c: (c.seconds, c.choice.tile))

    def borders(self, group: Group, choice: Choice) -> Mapping[ValueRef, Border]:
        axes = group.anchor.operands[0].rank - 2
        found = residual_border(group)
        for value in group.segments:
            border = Border((0,) * axes, (0,) * axes)
            for phase in _phases(group.anchor):
                ends = [
                    axis.border(extent, dilation)
                    for axis, extent, dilation in zip(
                        (phase.rows, phase.columns), two((1, *value.shape[2:]), 1), phase.conv.dilation, strict=True
                    )
                ][-axes:]
                border = border.join(Border(tuple(b for b, _ in ends), tuple(a for _, a in ends)))
            found[value.ref] = border
        return found

    def build(self, builder: Builder, group: Group, choice: Choice, stored: Sequence[Value]) -> Built:
        site, vectors = group.anchor, choice.tile[2]
        x, y = tuple(blocked_plane(builder, v) for v in group.segments), blocked_plane(builder, group.outputs[0])
        phases = _phases(site)
        shapes = tuple((p.start, _conv_shape(builder, p, x, y, choice.tile)) for p in phases)
        stride = two(site.ints("strides"), 1)
        shape = transposed.TransposedShape(y, stride, epilogue(builder, group), shapes)
        weight = site.operands[1]
        slots = [value_slot(v) for v in group.segments]
        for phase in phases:
            taps = transposed.pack(weight4(site), phase.rows, phase.columns, stride)
            packed = conv.pack(taps, x, y.block, vectors)
            at = "x".join(map(str, phase.start))
            slots.append(builder.constant(weight, packed, f"transposed{y.block * vectors}@{at}"))
        slots += [bias_slot(builder, site, y.block * vectors), *epilogue_slots(group)]
        return Built((self.name, shape), transposed.transposed_kernel(shape), tuple(slots), self.name, shape.parts)


def _phases(site: Site) -> list[_Phase]:
    """Every combination of the phases of the two axes."""
    known = facts(site)
    axes = [
        transposed.axis_phases(*numbers)
        for numbers in zip(known.extent, known.kernel, known.stride, known.dilation, known.pad, strict=True)
    ]
    return [
        _Phase(
            rows,
            columns,
            ConvFacts(
                known.batch,
                known.inputs,
                known.outputs,
                (rows.count, columns.count),
                (rows.taps, columns.taps),
                (1, 1),
                known.dilation,
                (rows.pad, columns.pad),
            ),
        )
        for rows, columns in itertools.product(*axes)
    ]


def _conv_shape(
    builder: Builder, phase: _Phase, x: tuple[Plane, ...], y: Plane, tile: tuple[int, ...]
) -> conv.ConvShape:
    """The convolution of one phase; its result is an image of the phase's cells."""
    known, (columns, rows, vectors) = phase.conv, tile
    weights = known.taps * known.outputs
    return conv.ConvShape(
        batch=known.batch,
        x=x,
        y=Plane(y.channels, *known.extent, y.block),
        kernel=known.kernel,
        stride=known.stride,
        dilation=known.dilation,
        pad=known.pad,
        tile=(columns, divisor(known.extent[0], rows), divisor(y.blocks, vectors)),
        weights_outer=4 * weights > SMALL_WEIGHTS,
        by_tiles=weights < known.batch * sum(p.channels * p.height * p.width for p in x),
        lane_unroll=lane_unroll(builder.target, x),
    )
