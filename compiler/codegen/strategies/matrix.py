"""Gemm and MatMul with constant weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from compiler.codegen.groups import Group
from compiler.codegen.kernels import Builder, Built, plain_slot
from compiler.codegen.layouts import fewest_vectors
from compiler.codegen.strategies.base import Candidate, Choice, Situation, Strategy
from compiler.codegen.strategies.convolution import activation_of
from compiler.codegen.templates import gemm
from compiler.codegen.templates.blocked import pack_bias
from compiler.ir.graph import Site, Value


class Gemm(Strategy):
    """Tile: rows, column vectors and reduction steps in registers."""

    name = "gemm"
    families = ("gemm",)

    def candidates(self, group: Group, situation: Situation) -> Iterable[Candidate]:
        site = group.anchor
        inner, columns = matrix_extent(site)
        rows, block = site.operands[0].size // inner, column_block(columns, situation.target.lanes)
        budget = situation.target.vector_registers - (4 if situation.target.lanes > 4 else 8)
        tile = gemm.choose_tile(rows, inner, columns, block, budget)
        seconds = 2.0 * rows * inner * columns / situation.target.machine.peak_flops
        return [Candidate(Choice(self.name, tile), seconds)]

    def build(self, builder: Builder, group: Group, choice: Choice, stored: Sequence[Value]) -> Built:
        site, y = group.anchor, group.outputs[0]
        a, weight = site.operands[0], site.operands[1]
        matrix, bias = gemm_constants(site)
        bias = bias if group.bias is None else group.bias.constant.reshape(-1)
        inner, columns = matrix.shape
        block = column_block(columns, builder.target.lanes)
        rows, vectors, steps = choice.tile
        shape = gemm.GemmShape(
            a.size // inner,
            inner,
            columns,
            block,
            group.residual is not None,
            activation_of(group),
            (rows, vectors, steps),
        )
        slots = [
            plain_slot(a),
            builder.constant(weight, gemm.pack(matrix, shape.lanes), f"panel{shape.lanes}"),
            builder.constant(
                site.operands.optional(2) or group.bias or weight, pack_bias(bias, columns, shape.lanes), "bias"
            ),
        ]
        slots += [plain_slot(group.residual)] if group.residual is not None else []
        return Built(("gemm", shape), gemm.gemm_kernel(shape), (*slots, plain_slot(y)), self.name)


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
