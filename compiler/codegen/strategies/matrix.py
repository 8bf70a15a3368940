"""Gemm and MatMul with constant weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from compiler.codegen.groups import Group
from compiler.codegen.kernels import Builder, Built, plain_slot
from compiler.codegen.layouts import fewest_vectors
from compiler.codegen.strategies.base import Candidate, Choice, Situation, Strategy
from compiler.codegen.strategies.convolution import activation_of, hidden_loads, weight_seconds
from compiler.codegen.target import Target, by_element_fits
from compiler.codegen.templates import gemm
from compiler.codegen.templates.blocked import pack_bias
from compiler.codegen.templates.product import balanced
from compiler.ir.graph import Site, Value

TILE_CYCLES = 16
"""Start and end of a register tile besides its sums: loop control and addresses."""


class Gemm(Strategy):
    """Tile: rows, column vectors and independent sums per vector in registers."""

    name = "gemm"
    version = 2
    arm_version = 3
    families = ("gemm",)

    def candidates(self, group: Group, situation: Situation) -> Iterable[Candidate]:
        site = group.anchor
        inner, columns = matrix_extent(site)
        rows, block = site.operands[0].size // inner, column_block(columns, situation.target.lanes)
        weights = weight_seconds(4 * inner * -(-columns // block) * block, situation)
        found = []
        for tile in register_tiles(rows, -(-columns // block), situation.target, inner):
            seconds = tile_seconds(rows, inner, columns, block, tile, situation.target)
            # the part that overlaps still tells tiles apart where the weights are slower
            found.append(Candidate(Choice(self.name, tile), max(seconds, weights) + 0.1 * min(seconds, weights)))
        return sorted(found, key=lambda c: (c.seconds, c.choice.tile))

    def build(self, builder: Builder, group: Group, choice: Choice, stored: Sequence[Value]) -> Built:
        site, y = group.anchor, group.outputs[0]
        a, weight = site.operands[0], site.operands[1]
        matrix, bias = gemm_constants(site)
        bias = bias if group.bias is None else group.bias.constant.reshape(-1)
        inner, columns = matrix.shape
        block = column_block(columns, builder.target.lanes)
        rows, vectors, chains = choice.tile
        shape = gemm.GemmShape(
            a.size // inner,
            inner,
            columns,
            block,
            group.residual is not None,
            activation_of(group),
            (rows, vectors, chains),
            builder.target.input_lanes,
        )
        slots = [
            plain_slot(a),
            builder.constant(weight, gemm.pack(matrix, shape.lanes), f"panel{shape.lanes}"),
            builder.constant(
                site.operands.optional(2) or group.bias or weight, pack_bias(bias, columns, shape.lanes), "bias"
            ),
        ]
        slots += [plain_slot(group.residual)] if group.residual is not None else []
        func = gemm.gemm_kernel(shape)
        return Built(("gemm", shape), func, (*slots, plain_slot(y)), self.name, shape.parts)


def register_tiles(rows: int, vectors: int, target: Target, stride: int) -> Iterable[tuple[int, int, int]]:
    """(rows, column vectors, chains) that stay in registers: spills in the inner loop cost more than they save.

    Rows begin `stride` elements apart.
    """
    room = target.vector_registers - 1
    for wide in (v for v in (1, 2, 3, 4, 6, 8) if v <= vectors):
        for high in range(1, min(rows, room) + 1):
            for chains in (1, 2, 4, 8):
                if target.input_lanes > 1:
                    fits = by_element_fits(high, wide, target.vector_registers, chains, 4 * stride)
                else:
                    fits = high * wide * chains + 1 + (wide if high > 1 else 1) <= room
                if fits:
                    yield high, wide, chains


def tile_seconds(
    rows: int,
    inner: int,
    columns: int,
    block: int,
    tile: tuple[int, int, int],
    target: Target,
    stride: int | None = None,
) -> float:
    """Time of all register tiles by the largest of multiply-adds, loads, and latency of the sums; rows begin
    `stride` elements apart, if they do not follow each other."""
    machine, (most, wide, chains) = target.machine, tile
    tiles, base, longer = balanced(rows, most)
    full, rest = divmod(-(-columns // block), wide)
    cycles = 0.0
    for high, repeat in ((base + 1, longer), (base, tiles - longer)):
        for vectors, panels in ((wide, full), (rest, 1 if rest else 0)):
            loads = high / target.input_lanes + vectors
            step = max(
                high * vectors / machine.fma_per_cycle,
                loads / machine.loads_per_cycle,
                machine.fma_latency / chains,
            )
            step += hidden_loads(target, high, vectors)
            step *= 1 + 0.03 * max(0, rows_in_a_set(high, stride or inner) - WAYS)
            ends = TILE_CYCLES + high * vectors * (chains + 2)
            cycles += repeat * panels * (inner * step + ends)
    return cycles / machine.clock


WAYS, PERIOD = 8, 4096
"""Cache lines at multiples of PERIOD bytes share a set of the first-level cache, which holds WAYS of them (x86)."""


def rows_in_a_set(rows: int, inner: int) -> int:
    """How many rows of `inner` floats begin in the same cache set: more than WAYS throw each other out."""
    return -(-rows // (PERIOD // math.gcd(4 * inner, PERIOD)))


def column_block(columns: int, lanes: int) -> int:
    """Lanes of one vector of columns."""
    return fewest_vectors(columns, lanes)


def matrix_extent(site: Site) -> tuple[int, int]:
    """Reduction length and columns of a Gemm or MatMul with a constant matrix."""
    rows, columns = site.operands[1].shape
    turned = site.node.op.name == "Gemm" and bool(site.int("transB"))
    return (columns, rows) if turned else (rows, columns)


def gemm_constants(site: Site) -> tuple[np.ndarray, np.ndarray | None]:
    """The [K, N] matrix and the [N] bias of a Gemm or MatMul, scale factors folded in."""
    matrix = site.operands[1].constant
    if site.node.op.name == "MatMul":
        return matrix, None
    matrix = np.float32(site.float("alpha")) * (matrix.T if site.int("transB") else matrix)
    bias = site.operands.optional(2)
    if bias is None:
        return matrix, None
    row = np.broadcast_to(bias.constant.reshape(-1), (matrix.shape[1],))
    return matrix, np.float32(site.float("beta")) * row
