"""Products of two computed operands, among them those of attention."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from compiler.codegen.contractions import Contraction, source
from compiler.codegen.groups import Group, loops_of
from compiler.codegen.kernels import Builder, Built, Slot, plain_slot
from compiler.codegen.strategies.base import Candidate, Choice, Situation, Strategy
from compiler.codegen.strategies.convolution import activation_of
from compiler.codegen.strategies.direct import LARGE_OUTPUT
from compiler.codegen.strategies.matrix import column_block, register_tiles, tile_seconds
from compiler.codegen.target import Target
from compiler.codegen.templates import contraction
from compiler.ir.graph import Value

COPIED, TURNED, SCATTERED = 0.15, 0.3, 1.5
"""Cycles that an element of a panel takes: copied with its neighbours, turned in squares, or on its own."""

SCATTERED_ROW = 24
"""Cycles that a row of a panel takes to write where results are large and rows far apart (measured on x86): wide
panels have fewer."""
FAR_ROWS = 512
"""Bytes between rows from which on the lines of a panel are no neighbours."""


class ContractionProduct(Strategy):
    """Tile: rows, column vectors and independent sums per vector in registers."""

    name = "contraction"
    families = ("contraction",)

    def candidates(self, group: Group, situation: Situation) -> Iterable[Candidate]:
        loops, target = loops_of(group), situation.target
        block = column_block(loops.column.extent, target.lanes)
        found = []
        vectors = -(-loops.column.extent // block)
        for tile in register_tiles(loops.row.extent, vectors, target, loops.row.a):
            shape = contraction.ContractionShape(loops, block, tile=tile, input_lanes=target.input_lanes)
            found.append(Candidate(Choice(self.name, tile), seconds(shape, target)))
        return sorted(found, key=lambda c: (c.seconds, c.choice.tile))

    def build(self, builder: Builder, group: Group, choice: Choice, stored: Sequence[Value]) -> Built:
        loops = loops_of(group)
        rows, vectors, chains = choice.tile
        shape = contraction.ContractionShape(
            loops,
            column_block(loops.column.extent, builder.target.lanes),
            group.residual is not None,
            activation_of(group),
            (rows, vectors, chains),
            builder.target.input_lanes,
            prefetch=large_results(loops),
        )
        first, second = (_slot(builder, group, number) for number in (loops.left, 1 - loops.left))
        residual = [] if group.residual is None else [plain_slot(group.residual)]
        slots = (first, second, *residual, plain_slot(group.outputs[0]))
        func = contraction.contraction_kernel(shape)
        return Built((self.name, shape), func, slots, self.name, shape.parts)


def _slot(builder: Builder, group: Group, number: int) -> Slot:
    """An operand row-major, before transpositions."""
    value = source(group.anchor.operands[number], group.moved)
    return plain_slot(value) if value.data is None else builder.constant(value, value.data, "plain")


def seconds(shape: contraction.ContractionShape, target: Target) -> float:
    """Predicted time of all products, of packing the panels of `b`, and of writing large results panel by panel."""
    n = shape.loops
    tiles = tile_seconds(n.row.extent, n.inner.extent, n.column.extent, shape.block, shape.tile, target, n.row.a)
    elements = n.inner.extent * shape.panels * shape.lanes if shape.packed else 0
    scattered = large_results(n) and 4 * n.row.y >= FAR_ROWS and target.arch == "x86_64"
    written = n.row.extent * shape.panels * SCATTERED_ROW if scattered else 0
    return n.products * (tiles + (elements * packing_cycles(n) + written) / target.machine.clock)


def large_results(loops: Contraction) -> bool:
    """Whether results lie outside the near caches when they are written."""
    return 4 * loops.spans[2] >= LARGE_OUTPUT


def packing_cycles(loops: Contraction) -> float:
    """Cycles that an element of a panel takes."""
    if loops.column.b == 1:
        return COPIED
    return TURNED if loops.inner.b == 1 else SCATTERED
