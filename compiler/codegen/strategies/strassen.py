"""1x1 convolution with seven products instead of eight, where what that adds is repaid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from compiler.codegen.groups import Group
from compiler.codegen.kernels import Builder, Built
from compiler.codegen.layout import Border
from compiler.codegen.layouts import tile_vectors
from compiler.codegen.strategies.base import Candidate, Choice, Situation, Strategy
from compiler.codegen.strategies.convolution import (
    MOST_ERROR,
    ConvFacts,
    conv_slots,
    divides_image,
    facts,
    input_loads,
    output_block,
    padding_borders,
    weight4,
    weight_seconds,
)
from compiler.codegen.strategies.direct import TILE_CYCLES, conv_shape, fits_registers
from compiler.codegen.templates import strassen
from compiler.codegen.templates.common import chunks
from compiler.ir.graph import Site, Value
from compiler.ir.types import ValueRef

LEAST_INPUTS, LEAST_OUTPUTS = 128, 64
"""Channels below which additions and shorter sums cost more than they save."""
MOST_CELLS = 128
"""Cells of an image with an odd number of rows: each is a place of its own in the code."""
OVERLAP = 0.1
"""Share of the time for operands that shows although they arrive while products take longer."""
SUM_CYCLES = 5
"""Loads, additions and stores that make the sums of inputs, per vector of each."""
_GROUPS = (1, 2, 4, 7, 14, 28)


class Strassen(Strategy):
    """Tile: pairs of rows whose sums are made together, columns and vectors of output channels in registers."""

    name = "strassen"
    version = 1
    arm_version = 3
    families = ("conv",)

    def candidates(self, group: Group, situation: Situation) -> Iterable[Candidate]:
        known = facts(group.anchor)
        if not _applies(group, known, situation):
            return []
        found = [
            Candidate(Choice(self.name, tile), seconds(known, group, situation, tile))
            for tile in _tiles(group, known, situation)
        ]
        if not found or error(group.anchor, [v.shape[1] for v in group.segments]) > MOST_ERROR:
            return []
        return sorted(found, key=lambda c: (c.seconds, c.choice.tile))

    def borders(self, group: Group, choice: Choice) -> Mapping[ValueRef, Border]:
        return padding_borders(group)

    def build(self, builder: Builder, group: Group, choice: Choice, stored: Sequence[Value]) -> Built:
        site = group.anchor
        pairs, columns, vectors = choice.tile
        plain = conv_shape(builder, group, (columns, 1, vectors), multiple=2 if _even(facts(site)) else 0)
        conv = replace(plain, weights_outer=True, by_tiles=divides_image(group))
        shape = strassen.StrassenShape(conv, 1)
        shape = replace(shape, group=min(pairs, shape.units.tiles))
        segments = [x.channels for x in conv.x]
        packed = strassen.pack(weight4(site)[:, :, 0, 0], segments, shape.lanes)
        slots = conv_slots(builder, group, f"{self.name}{shape.lanes}", packed, conv.y.block)
        return Built((self.name, shape), strassen.strassen_kernel(shape), slots, self.name, shape.units.count)


def error(site: Site, segments: list[int], columns: int = 8) -> float:
    """Error of the algorithm in float32 on random inputs, relative to the largest result."""
    weight = weight4(site)[:, :, 0, 0]
    x = np.random.default_rng(0).normal(size=(weight.shape[1], 2, columns)).astype(np.float32)
    got = strassen.reference(x, weight, segments)
    exact = np.tensordot(weight.astype(np.float64), x.astype(np.float64), 1)
    return float(np.abs(got - exact).max() / max(np.abs(exact).max(), 1e-30))


def _applies(group: Group, known: ConvFacts, situation: Situation) -> bool:
    """One tap without padding, rows in pairs or few cells, and channels whose blocks are full, of one width, and
    halve."""
    widths = {situation.block(v.shape[1]) for v in group.segments}
    channels = [*(v.shape[1] for v in group.segments), known.outputs]
    return (
        known.kernel == (1, 1)
        and known.pad == (0, 0)
        and (_even(known) or 2 <= known.extent[0] * known.extent[1] <= MOST_CELLS)
        and known.inputs >= LEAST_INPUTS
        and known.outputs >= LEAST_OUTPUTS
        and len(widths) == 1
        and all(n % (2 * situation.block(n)) == 0 for n in channels)
    )


def _even(known: ConvFacts) -> bool:
    """Whether all rows are in pairs."""
    return known.extent[0] % 2 == 0


def _pairs(known: ConvFacts) -> tuple[int, int]:
    """Pairs of all samples, and positions in half of one."""
    if _even(known):
        return known.batch * known.extent[0] // 2, known.extent[1]
    return known.batch, strassen.half_of_cells(known.extent)


def _tiles(group: Group, known: ConvFacts, situation: Situation) -> Iterable[tuple[int, int, int]]:
    pairs, width = _pairs(known)
    blocks = known.outputs // output_block(group.anchor, situation)
    for vectors in (1, *tile_vectors(blocks // 2)):
        for columns in range(1, min(width, situation.target.vector_registers) + 1):
            if fits_registers(situation.target, columns, vectors):
                for count in sorted({min(n, pairs) for n in _GROUPS}):
                    yield count, columns, vectors


def seconds(known: ConvFacts, group: Group, situation: Situation, tile: tuple[int, int, int]) -> float:
    """Predicted time of all pairs.

    Weights pass once for every group of pairs, the first time from memory; a panel of them shares the second-level
    cache with the inputs of a group and their sums.
    """
    machine, (pairs, columns, vectors) = situation.target.machine, tile
    block = output_block(group.anchor, situation)
    rate, (held, width) = machine.rate(block), _pairs(known)
    panels, inner = known.outputs // block // vectors // 2, known.inputs // 2
    cycles = 0.0
    for _, count, repeat in chunks(width, columns):
        sums, loads = count * vectors, count * input_loads(situation.target) + vectors / rate
        step = max(sums / machine.fma_per_cycle / rate, loads / machine.loads_per_cycle, machine.fma_latency / 2)
        cycles += repeat * strassen.PRODUCTS * (inner * step + TILE_CYCLES + 4 * sums)
    panel = 4 * strassen.PRODUCTS * inner * block * vectors
    read = 4 * strassen.PRODUCTS * inner * width
    near = panel + pairs * 4 * 2 * strassen.SUMS * inner * width <= machine.l2
    products, groups = cycles / machine.clock, -(-held // pairs)
    first = _overlapping(products, weight_seconds(panel, situation))
    next_ = _overlapping(products, panel / machine.cache_bandwidth)
    again = products if near else _overlapping(products, (panel + read) / machine.cache_bandwidth)
    cells, lanes = held * width * inner, situation.block(known.inputs)
    made = SUM_CYCLES * cells / lanes / machine.clock
    if 4 * 4 * cells > machine.l2:
        made = max(made, 4 * 4 * cells / machine.cache_bandwidth)
    return made + panels * (first + (groups - 1) * next_ + (held - groups) * again)


def _overlapping(products: float, arrival: float) -> float:
    """Products while their operands arrive."""
    return max(products, arrival) + OVERLAP * min(products, arrival)
