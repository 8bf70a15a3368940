"""Weights in R x 1 blocks by lists of input taps: time is proportional to what is stored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from compiler.codegen.groups import Group
from compiler.codegen.kernels import Builder, Built
from compiler.codegen.layout import Border
from compiler.codegen.strategies.base import Candidate, Choice, Situation, Strategy
from compiler.codegen.strategies.convolution import weight_seconds
from compiler.codegen.strategies.direct import SMALL_WEIGHTS, TILE_CYCLES
from compiler.codegen.strategies.sparse import (
    ENOUGH,
    SparseFacts,
    SparseLayer,
    bias_slot,
    image_tiles,
    output_axis,
    overlapped,
    sparse_borders,
    sparse_facts,
    sparse_layer,
    tables,
    tile_counts,
)
from compiler.codegen.target import Target
from compiler.codegen.templates import block_sparse
from compiler.ir.encoding import BlockSparse as Blocks
from compiler.ir.encoding import Sparse
from compiler.ir.graph import Value
from compiler.ir.types import ValueRef

TURN = 4
"""Taps per turn of the loop on 64-bit ARM, where a load takes an instruction of its own, and so do addresses."""
HEIGHTS = (4, 8, 16)
"""Rows of a list for weights that have no blocks of their own: a tap is in it if one of them reads it."""


class BlockSparse(Strategy):
    """Tile: columns and rows of positions in registers, taps summed side by side, rows that share a list.

    Weights in other sparse forms run as well, with zeros where only some rows of a list read a tap.
    """

    name = "block-sparse"
    version = 2
    families = ("conv", "gemm")
    levels = True
    skips_zeros = True

    def candidates(self, group: Group, situation: Situation) -> Iterable[Candidate]:
        encoding = group.anchor.operands[1].type.encoding
        if not isinstance(encoding, Sparse) or encoding.rows != output_axis(group) or _levels_elsewhere(group):
            return []
        heights = (encoding.height,) if isinstance(encoding, Blocks) else HEIGHTS
        known, weight = sparse_facts(group, situation), group.anchor.operands[1].constant
        matrix = np.moveaxis(weight, encoding.rows, 0)
        return product_candidates(known, matrix, heights, situation, nested=group.nested)

    def borders(self, group: Group, choice: Choice) -> Mapping[ValueRef, Border]:
        return sparse_borders(group)

    def build(self, builder: Builder, group: Group, choice: Choice, stored: Sequence[Value]) -> Built:
        height = choice.tile[-1]
        ladder = [sparse_layer(builder, g, choice.tile[0]) for g in group.ladder()]
        layer, levels = ladder[0], ladder[: group.levels]
        packed, shape = product_kernel(ladder, choice.tile, builder.target)
        slots = [*layer.inputs, *tables(builder, layer, f"block{height}x1", lists(packed))]
        last = packed.last[: group.levels]
        slots.append(builder.levelled(layer.named[0].ref.name, last, f"block{height}x1-last"))
        slots += [bias_slot(builder, levels, height), *layer.rest]
        return Built(
            (self.name, shape),
            block_sparse.block_sparse_kernel(shape),
            tuple(slots),
            self.name,
            shape.tiling.parts,
        )


def product_candidates(
    known: SparseFacts, weight: np.ndarray, heights: Iterable[int], situation: Situation, *, nested: bool
) -> list[Candidate]:
    """Every tile for lists of these heights over a weight [O, ...], best predicted first.

    Of `nested` weights all tiles sum in the same order, so that a level has the same bits by whatever plan.
    """
    found = []
    for height in heights:
        width = register_width(known.output_block, height, situation.target.lanes)
        if width >= min(4, situation.target.lanes):
            taps = int(np.count_nonzero(Blocks(0, (height, 1)).alive(weight)))
            tiles = list(_tiles(known.extent, height // width, situation.target))
            if nested:
                fewest = min((unroll for _, _, unroll in tiles), default=1)
                tiles = [tile for tile in tiles if tile[2] == fewest]
            found += [_candidate(known, taps, width, (*tile, height), situation) for tile in tiles]
    return sorted(found, key=lambda c: (c.seconds, c.choice.tile))


def product_kernel(
    levels: Sequence[SparseLayer], tile: tuple[int, ...], target: Target
) -> tuple[block_sparse.PackedBlocks, block_sparse.BlockSparseShape]:
    """Lists and kernel of a layer with a tile of `product_candidates`; `levels` as of `Group.ladder`."""
    columns, rows, unroll, height = tile
    layer, known = levels[0], levels[0].layer
    packed = block_sparse.pack([x.weight for x in levels], height, layer.x, known.pad, known.dilation)
    shape = block_sparse.BlockSparseShape(
        batch=layer.batch,
        x=layer.x,
        y=layer.y,
        stride=known.stride,
        height=height,
        width=register_width(layer.output_block, height, target.lanes),
        epilogue=layer.epilogue,
        tile=(columns, min(rows, layer.y.height), unroll),
        weights_outer=packed.values.nbytes + packed.index.nbytes > SMALL_WEIGHTS,
        turn=TURN if target.arch == "aarch64" else 1,
    )
    return packed, shape


def lists(packed: block_sparse.PackedBlocks) -> list[tuple[str, np.ndarray]]:
    """The constants of a kernel that all levels share, by name, in the order of its parameters."""
    return [("values", packed.values), ("index", packed.index), ("first", packed.first)]


def _levels_elsewhere(group: Group) -> bool:
    """Whether constants besides weight and bias differ by level: others become part of the code."""
    site = group.anchor
    tables = {v.ref for v in (site.operands[1], site.operands.optional(2), group.bias) if v is not None}
    return any(v.sparser and v.ref not in tables for s in group.sites for _, v in s.operands.present())


def register_width(block: int, height: int, lanes: int) -> int:
    """Lanes of the widest register that makes up blocks of `height` rows and of the result (0: one block only)."""
    return math.gcd(height, block, lanes)


def _tiles(extent: tuple[int, int], vectors: int, target: Target) -> Iterable[tuple[int, int, int]]:
    room = target.vector_registers - vectors - (1 if target.vector_registers > 16 or target.lanes > 4 else 2)
    for columns, rows in image_tiles(extent, room // vectors):
        sums = columns * rows * vectors
        yield columns, rows, max(1, min(ENOUGH // sums, room // sums))


def _candidate(
    known: SparseFacts, stored: int, width: int, tile: tuple[int, int, int, int], situation: Situation
) -> Candidate:
    """Cycles of all register tiles by the larger of multiply-adds and loads, or the time to read the weights."""
    machine, (columns, rows, unroll, height) = situation.target.machine, tile
    vectors, groups = height // width, -(-known.output_lanes // height)
    cycles = 0.0
    for positions, count in tile_counts(known.extent, columns, rows):
        sums, loads = positions * vectors, positions * 0.5 + vectors + 0.5
        step = max(
            sums / machine.fma_per_cycle / machine.rate(width),
            loads / machine.loads_per_cycle,
            machine.fma_latency / unroll,
        )
        cycles += count * (stored * step + groups * (TILE_CYCLES + 2 * sums * unroll))
    cycles *= known.layer.batch
    bytes_ = stored * (4 * height + 4)
    return Candidate(
        Choice(BlockSparse.name, tile), overlapped(cycles / machine.clock, weight_seconds(bytes_, situation))
    )
