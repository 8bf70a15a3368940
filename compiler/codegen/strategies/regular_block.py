"""Weights with one survivor per run of inputs, by permutes in registers: at most five bytes per survivor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from compiler.codegen.groups import Group
from compiler.codegen.kernels import Builder, Built
from compiler.codegen.layout import Border
from compiler.codegen.strategies.base import Candidate, Choice, Situation, Strategy
from compiler.codegen.strategies.convolution import activation_of, weight_seconds
from compiler.codegen.strategies.direct import SMALL_WEIGHTS, TILE_CYCLES
from compiler.codegen.strategies.sparse import (
    SparseFacts,
    SparseLayer,
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
from compiler.codegen.templates import regular_block
from compiler.codegen.templates.permute import Permutation
from compiler.codegen.templates.regular_block import RowClass
from compiler.ir.encoding import RegularBlock as Runs
from compiler.ir.graph import Value
from compiler.ir.types import ValueRef

PERMUTE_COST = {
    "x86_64": {1: 0.36, 2: 1.0, 4: 3.0},
    "aarch64": {1: 1.5, 2: 2.5, 4: 4.5},
    "armv7": {1: 1.0, 2: 2.0, 4: 4.5},
}
"""Time of a permutation from so many sources, in multiply-adds: measured on Zen 4; llvm-mca on neoverse-n1, and on
cortex-a57 for 32-bit ARM."""

STEP_CYCLES, VECTOR_CYCLES = 4.0, 2.0
"""Start of a step, and weight and code of every vector and run."""

LOAD_COST = 0.25
"""What an input vector costs that is loaded for several vectors or runs: most of it hides behind permutations."""

AHEAD_BYTES = 4096
"""How far ahead weights from memory are asked for: a page, because the processor's own guess ends there."""

SCATTER_CYCLES = 2.0
"""Time to store one lane on its own."""

MOST_STEPS = 2
"""Steps of an activation that lanes stored one by one may have: their code is repeated for every lane."""


class RegularBlock(Strategy):
    """Tile: columns and rows of positions in registers, vectors of output rows that share a load."""

    name = "regular-block"
    version = 3
    families = ("conv", "gemm")
    skips_zeros = True

    def candidates(self, group: Group, situation: Situation) -> Iterable[Candidate]:
        encoding = group.anchor.operands[1].type.encoding
        axis = output_axis(group)
        if not isinstance(encoding, Runs) or (encoding.rows, encoding.inputs) != (axis, 1 - axis):
            return []
        if len(set(encoding.sizes)) > 1 and len(activation_of(group).steps) > MOST_STEPS:
            return []
        known = sparse_facts(group, situation)
        return product_candidates(known, encoding.row_sizes(known.layer.outputs), situation)

    def borders(self, group: Group, choice: Choice) -> Mapping[ValueRef, Border]:
        return sparse_borders(group)

    def build(self, builder: Builder, group: Group, choice: Choice, stored: Sequence[Value]) -> Built:
        encoding = group.anchor.operands[1].type.encoding
        assert isinstance(encoding, Runs)
        layer = sparse_layer(builder, group, choice.tile[0])
        shape = product_shape(layer, encoding.row_sizes(layer.layer.outputs), choice.tile, builder.target)
        arrays, bias = packed_arrays(layer, encoding.row_sizes(layer.layer.outputs), shape)
        slots = [*layer.inputs, *tables(builder, layer, str(encoding), arrays)]
        slots += [builder.constant(layer.named[1], bias, "bias"), *layer.rest]
        return Built(
            (self.name, shape),
            regular_block.regular_block_kernel(shape),
            tuple(slots),
            self.name,
            shape.tiling.parts,
        )


def product_candidates(known: SparseFacts, sizes: np.ndarray, situation: Situation) -> list[Candidate]:
    """Every tile for rows with runs of these `sizes`, best predicted first; none where registers cannot permute."""
    target = situation.target
    width = register_width(known, target)
    if width is None or not _applies(known, sizes, width, target):
        return []
    found = [_candidate(known, sizes, width, tile, situation) for tile in _tiles(known, sizes, width, target)]
    return sorted(found, key=lambda c: (c.seconds, c.choice.tile))


def register_width(known: SparseFacts, target: Target) -> int | None:
    """Lanes of the widest register that makes up every block of input and result; None where nothing permutes."""
    if target.arch == "x86_64" and target.lanes < 8:
        return None
    width = math.gcd(known.output_block, target.lanes, *(block for _, block in known.segments))
    return width if width >= 4 else None


def _applies(known: SparseFacts, row_sizes: np.ndarray, width: int, target: Target) -> bool:
    """Whether every run can be permuted, steps do not cross segments, and every class of rows has code."""
    sizes = set(map(int, row_sizes))
    if any(s & (s - 1) or s < 4 or not _permutation(target, width, s).supported for s in sizes):
        return False
    step = max(width, *sizes)
    if any(channels % step for channels, _ in known.segments[:-1]):
        return False
    return len(sizes) <= regular_block.MOST_CLASSES


def _permutation(target: Target, width: int, size: int) -> Permutation:
    return Permutation(target.arch, width, max(1, size // width))


def product_shape(
    layer: SparseLayer, sizes: np.ndarray, tile: tuple[int, ...], target: Target
) -> regular_block.RegularShape:
    """The kernel of a layer whose rows have runs of these `sizes`, with a tile of `product_candidates`."""
    columns, rows, vectors = tile
    width = math.gcd(target.lanes, layer.output_block, *(x.block for x in layer.x))
    known = layer.layer
    classes = regular_block.row_classes(sizes, width * vectors)
    step_bytes = 5 * width * vectors * max(1, width // min(c.size for c in classes))
    bytes_ = sum(c.panels * known.taps // c.size for c in classes) * width * vectors * 5
    streams = layer.y.height * layer.y.width == 1 and bytes_ > target.machine.l2
    return regular_block.RegularShape(
        batch=layer.batch,
        x=layer.x,
        y=layer.y,
        taps=known.kernel[0] * known.kernel[1],
        stride=known.stride,
        classes=classes,
        arch=target.arch,
        width=width,
        epilogue=layer.epilogue,
        tile=(columns, min(rows, layer.y.height), vectors),
        weights_outer=bytes_ > SMALL_WEIGHTS,
        ahead=AHEAD_BYTES // step_bytes if streams else 0,
    )


def packed_arrays(
    layer: SparseLayer, sizes: np.ndarray, shape: regular_block.RegularShape
) -> tuple[list[tuple[str, np.ndarray]], np.ndarray]:
    """The constants of a kernel by name, in the order of its parameters, and the bias behind them."""
    packed = regular_block.pack(layer.weight, sizes, shape, layer.layer.pad, layer.layer.dilation)
    bias = np.zeros(len(packed.rows), np.float32)
    if layer.bias is not None:
        bias = np.where(packed.rows >= 0, layer.bias[packed.rows], bias)
    arrays = [("values", packed.values), ("codes", packed.codes), ("index", packed.index)]
    arrays += [("rows", packed.rows)] if shape.scattered else []
    return arrays, bias.astype(np.float32)


def _tiles(known: SparseFacts, sizes: np.ndarray, width: int, target: Target) -> Iterable[tuple[int, int, int]]:
    """Accumulators, inputs that several vectors or runs use, a code and a weight stay in registers."""
    sources = max(1, int(sizes.max()) // width)
    runs = max(1, width // int(sizes.min()))
    for vectors in (1, 2, 4):
        if vectors > 1 and vectors * width > known.output_lanes:
            break
        held = sources if runs * vectors > 1 else 0
        room = target.vector_registers - _in_flight(target, width, sources, runs * vectors)
        for columns, rows in image_tiles(known.extent, max(room // (vectors + held), 1)):
            yield columns, rows, vectors


def _in_flight(target: Target, width: int, sources: int, uses: int) -> int:
    """Registers besides sums and held inputs: codes, weights, and what a permutation passes through; `uses`: how
    often a step permutes an input."""
    if target.arch == "aarch64":  # inputs are loaded ahead of the look-up; on x86 they are its operand in memory
        return 4 * sources + 6
    if target.arch == "armv7":
        return 2 * sources + 5
    if sources > 1 and not Permutation(target.arch, width, sources).single:
        return 2 * sources + 4
    return sources + 2 + (0 if uses == 1 else 2 if target.vector_registers <= 16 else 1 + min(uses, 4))


def _candidate(
    known: SparseFacts, sizes: np.ndarray, width: int, tile: tuple[int, int, int], situation: Situation
) -> Candidate:
    """Cycles of all classes of rows, or the time to read the weights."""
    classes = regular_block.row_classes(sizes, width * tile[2])
    cycles = sum(_cycles(known, one, width, tile, situation, len(classes) > 1) for one in classes)
    bytes_ = sum(one.panels * tile[2] * width * known.layer.taps // one.size for one in classes) * 4.5
    machine = situation.target.machine
    seconds = overlapped(cycles * known.layer.batch / machine.clock, weight_seconds(int(bytes_), situation))
    return Candidate(Choice(RegularBlock.name, tile), seconds)


def _cycles(
    known: SparseFacts,
    one: RowClass,
    width: int,
    tile: tuple[int, int, int],
    situation: Situation,
    scattered: bool,
) -> float:
    """Cycles of one class of rows over an image."""
    machine, (columns, rows, vectors) = situation.target.machine, tile
    sources, runs = max(1, one.size // width), max(1, width // one.size)
    taps = known.layer.kernel[0] * known.layer.kernel[1]
    steps = taps * sum(-(-channels // max(one.size, width)) for channels, _ in known.segments)
    total = 0.0
    for positions, count in tile_counts(known.extent, columns, rows):
        sums = positions * vectors
        loads = positions * sources if runs * vectors > 1 else 0
        work = sums * (1 + PERMUTE_COST[situation.target.arch][sources]) / machine.fma_per_cycle
        step = runs * (max(work, machine.fma_latency) + VECTOR_CYCLES * vectors) + STEP_CYCLES
        step += LOAD_COST * loads / machine.loads_per_cycle
        store = sums * width * SCATTER_CYCLES if scattered else 2 * sums
        total += count * one.panels * (steps * step + TILE_CYCLES + store)
    return total
