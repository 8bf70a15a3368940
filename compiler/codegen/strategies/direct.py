"""Direct convolution: every product is computed, near the multiply-add peak."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from compiler.codegen.groups import Group
from compiler.codegen.kernels import Builder, Built
from compiler.codegen.layout import Border
from compiler.codegen.layouts import tile_vectors
from compiler.codegen.strategies.base import Candidate, Choice, Situation, Strategy
from compiler.codegen.strategies.convolution import (
    ConvFacts,
    blocked_plane,
    conv_slots,
    divides_image,
    epilogue,
    facts,
    input_loads,
    output_block,
    padding_borders,
    weight4,
    weight_seconds,
)
from compiler.codegen.target import Target
from compiler.codegen.templates import conv
from compiler.codegen.templates.blocked import Epilogue, Plane
from compiler.codegen.templates.common import chunks
from compiler.ir.graph import Value
from compiler.ir.types import ValueRef

TILE_CYCLES = 24
"""Start and end of a register tile besides its sums: loop control, address computation, bias."""
MOST_TILES = 1.02
"""Tiles that an image divided into rows may take, relative to a single row."""
LARGE_OUTPUT = 256 * 1024
"""Results of at least this many bytes are written to lines that earlier layers pushed out of the near caches."""
SHARED = 2
"""Broadcast inputs beyond the registers that are read again in time."""
SMALL_WEIGHTS = 256 * 1024
"""Weights of at most this many bytes stay in the second-level cache while the image passes once."""


class DirectConv(Strategy):
    """Register tiles of columns x rows x vectors of output channels."""

    name = "conv"
    version = 5
    families = ("conv",)

    def candidates(self, group: Group, situation: Situation) -> Iterable[Candidate]:
        known, block = facts(group.anchor), output_block(group.anchor, situation)
        extent = rows_and_columns(group, known, situation)
        target, ahead = situation.target, neighbours(known, situation)
        found = [
            Candidate(Choice(self.name, tile), seconds(known, extent, block, situation, tile))
            for tile in register_tiles(extent, -(-known.outputs // block), target, ahead)
            if holds_broadcasts(known, tile, target)
        ]
        return sorted(found, key=lambda c: (c.seconds, c.choice.tile))

    def borders(self, group: Group, choice: Choice) -> Mapping[ValueRef, Border]:
        return padding_borders(group)

    def build(self, builder: Builder, group: Group, choice: Choice, stored: Sequence[Value]) -> Built:
        shape = conv_shape(builder, group, choice.tile)
        lanes = shape.y.block * shape.tile[2]
        packed = conv.pack(weight4(group.anchor), shape.x, shape.y.block, shape.tile[2])
        return Built(
            ("conv", shape),
            conv.conv_kernel(shape),
            conv_slots(builder, group, f"conv{lanes}", packed, lanes),
            self.name,
            shape.parts,
        )


def conv_shape(
    builder: Builder, group: Group, tile: tuple[int, ...] = (1, 1, 1), *, multiple: int = 1
) -> conv.ConvShape:
    """The physical shape of a convolution; a 1x1 over contiguous buffers becomes rows of a tile's length, their
    number a multiple of `multiple`; 0: it stays as it is."""
    site = group.anchor
    known = facts(site)
    columns, rows, vectors = tile
    x, y, after = image_planes(builder, group, columns, multiple)
    flat = flat_rows(builder.target, x, known)
    return conv.ConvShape(
        batch=known.batch,
        x=x,
        y=y,
        kernel=known.kernel,
        stride=known.stride,
        dilation=known.dilation,
        pad=known.pad,
        epilogue=after,
        tile=(columns, divisor(y.height, rows), divisor(y.blocks, vectors)),
        weights_outer=4 * site.operands[1].size > SMALL_WEIGHTS,
        by_tiles=divides_image(group),
        prefetch=4 * y.lanes * y.height * y.width >= LARGE_OUTPUT,
        lane_unroll=builder.target.input_lanes if flat else lane_unroll(builder.target, x),
        flat_rows=flat,
    )


def image_planes(
    builder: Builder, group: Group, columns: int, multiple: int = 1
) -> tuple[tuple[Plane, ...], Plane, Epilogue]:
    """Buffers of the input's segments and of the result, and what follows the sum; a 1x1 over contiguous buffers
    sees them as a multiple of `multiple` (0: their own) rows for tiles of `columns`."""
    x, y = tuple(blocked_plane(builder, v) for v in group.segments), blocked_plane(builder, group.outputs[0])
    after = epilogue(builder, group)
    planes = (*x, y, *((after.residual,) if after.residual else ()))
    if multiple and facts(group.anchor).pointwise and all(p.contiguous for p in planes):
        row = flat_row(y.height * y.width, columns, multiple)
        x, y = tuple(p.reshaped(row) for p in x), y.reshaped(row)
        if after.residual is not None:
            after = Epilogue(after.residual.reshaped(row), after.activation)
    return x, y, after


def flat_row(cells: int, columns: int, multiple: int = 1) -> int:
    """Length of equal rows that so many cells are seen as, a multiple of `multiple` in number: the shortest (rows
    are what threads share) that takes hardly more tiles of `columns` than the longest."""
    longest = cells // multiple
    most = MOST_TILES * multiple * -(-longest // columns)
    lengths = (n for n in range(min(columns, longest), longest) if cells % (n * multiple) == 0)
    return next((n for n in lengths if cells // n * -(-n // columns) <= most), longest)


def lane_unroll(target: Target, segments: Sequence[Plane]) -> int:
    """Input channels multiplied by element from one register (64-bit ARM has the instruction), else 1."""
    lanes = target.input_lanes
    return lanes if all(x.block % lanes == 0 for x in segments) else 1


def flat_rows(target: Target, segments: Sequence[Plane], known: ConvFacts) -> bool:
    """Whether vectors of inputs are read across the columns of the kernel (64-bit ARM): channels that are no
    multiple of them lie next to those of the next column where one block holds all."""
    lanes, plane = target.input_lanes, segments[0]
    alone = len(segments) == 1 and plane.channels == plane.block and known.dilation[1] == 1
    return alone and plane.block % lanes > 0 and plane.block * known.kernel[1] >= lanes


def fits_registers(target: Target, positions: int, vectors: int, spare: int = 1) -> bool:
    """Whether accumulators, weights in flight and inputs stay in registers: spills in the inner loop cost more.

    `spare`: registers left over where inputs are held as vectors (ARM); longer loop bodies need more of them.
    """
    room = target.vector_registers
    if target.arch != "x86_64":  # one input vector per position beside the accumulators
        return positions * vectors + positions + vectors <= room - spare
    # a vector of weights each and one broadcast input; the broadcast of a single vector is an operand in memory
    return positions * vectors + vectors + (vectors > 1) <= room - 1


def holds_broadcasts(known: ConvFacts, tile: tuple[int, int, int], target: Target) -> bool:
    """Whether the inputs of a row of the kernel stay in registers with the sums. Of a single channel LLVM unrolls
    the row and broadcasts each input once for all of its products; of 16 registers (AVX2) some are too many."""
    if target.arch != "x86_64" or target.vector_registers > 16 or known.inputs > 1 or tile[:2] == (1, 1):
        return True
    columns, rows, vectors = tile
    inputs = (columns - 1) * known.stride[1] + (known.kernel[1] - 1) * known.dilation[1] + 1
    return rows * (columns * vectors + inputs) <= target.vector_registers + SHARED


def neighbours(known: ConvFacts, situation: Situation) -> int:
    """Vectors of inputs beside that of a position which LLVM reads with it, because they lie next to it and belong
    to no other position (ARM)."""
    whole = situation.block(known.inputs) % situation.target.input_lanes == 0
    return min(known.kernel[1], known.stride[1]) - 1 if whole else 0


def register_tiles(
    extent: tuple[int, int], blocks: int, target: Target, ahead: int = 0
) -> Iterable[tuple[int, int, int]]:
    """(columns, rows, vectors) of the register tiles of an image with so many blocks of output channels; `ahead`:
    inputs read ahead for every position (ARM)."""
    height, width = extent
    for vectors in (1, *tile_vectors(blocks)):
        for columns in range(1, min(width, target.vector_registers) + 1):
            for rows in (r for r in (1, 2, 3, 4, 7, 8, 14) if height % r == 0 and (r == 1 or columns == width)):
                least = columns == rows == vectors == 1
                if least or fits_registers(target, columns * rows, vectors, 1 + ahead * columns * rows):
                    yield columns, rows, vectors


def rows_and_columns(group: Group, known: ConvFacts, situation: Situation) -> tuple[int, int]:
    """Extent of the image as the kernel will see it: a contiguous 1x1 is one long row."""
    values = [*group.segments, group.outputs[0], *((group.residual,) if group.residual else ())]
    if known.pointwise and not any(v.ref in situation.padded for v in values):
        return 1, known.extent[0] * known.extent[1]
    return known.extent


def seconds(
    known: ConvFacts, extent: tuple[int, int], block: int, situation: Situation, tile: tuple[int, ...]
) -> float:
    """Predicted time of an image of `extent` (as the kernel sees it), its channels in blocks of `block`.

    Every panel of weights meets the image once: the first tile waits for it, the others find it in a cache.
    """
    machine, (columns, rows, vectors), (height, width) = situation.target.machine, tile, extent
    panels, rate = -(-known.outputs // block) // vectors, machine.rate(block)
    steps, read = height // rows, input_loads(situation.target)
    cycles, tiles = 0.0, 0
    for _, count, repeat in chunks(width, columns):
        sums, loads = count * rows * vectors, count * rows * read + vectors / rate
        step = max(sums / machine.fma_per_cycle / rate, loads / machine.loads_per_cycle, machine.fma_latency / 2)
        cycles += steps * repeat * (known.taps * step + TILE_CYCLES + 2 * sums)
        tiles += steps * repeat
    panel = 4 * known.taps * block * vectors
    near = panel <= machine.l2 // 2
    tile_seconds = cycles / tiles / machine.clock
    first = max(tile_seconds, weight_seconds(panel, situation))
    again = tile_seconds if near else max(tile_seconds, panel / machine.cache_bandwidth)
    return known.batch * panels * (first + (tiles - 1) * again)


def divisor(extent: int, wanted: int) -> int:
    """The largest divisor of `extent` that is at most `wanted`."""
    return next(d for d in range(min(extent, wanted), 0, -1) if extent % d == 0)
