"""What the strategies for sparse weights share: convolutions and matrix products in one form.

A matrix product is a convolution of an image one row high: the rows of its left operand are the columns of that
image, and row-major matrices are planes of one block that holds all channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compiler.codegen.groups import Group
from compiler.codegen.kernels import Builder, Slot, plain_slot, value_slot
from compiler.codegen.layout import Border
from compiler.codegen.strategies.base import Situation
from compiler.codegen.strategies.convolution import (
    ConvFacts,
    activation_of,
    epilogue_slots,
    facts,
    output_block,
    padding_borders,
    weight4,
)
from compiler.codegen.strategies.direct import image_planes, rows_and_columns
from compiler.codegen.strategies.matrix import gemm_constants, matrix_extent
from compiler.codegen.templates.blocked import Epilogue, Plane, pack_bias
from compiler.codegen.templates.common import chunks
from compiler.ir.graph import Value
from compiler.ir.types import ValueRef

ENOUGH = 8
"""Independent sums that hide the latency of a multiply-add."""


@dataclass(frozen=True, slots=True)
class SparseFacts:
    """Logical facts of a layer with sparse weights, for candidates."""

    layer: ConvFacts
    extent: tuple[int, int]
    """Rows and columns of the image as the kernel sees it."""
    segments: tuple[tuple[int, int], ...]
    """Channels and lanes per block of every input segment."""
    output_block: int
    """Lanes per block of the result; 0 for a row-major matrix."""

    @property
    def output_lanes(self) -> int:
        """Channels of the result with those that fill up the last block."""
        block = self.output_block or self.layer.outputs
        return -(-self.layer.outputs // block) * block

    @property
    def positions(self) -> int:
        """Cells of the result per channel."""
        return self.layer.batch * self.extent[0] * self.extent[1]


def sparse_facts(group: Group, situation: Situation) -> SparseFacts:
    """The facts of a convolution or matrix product."""
    site = group.anchor
    if group.family == "gemm":
        inner, outputs = matrix_extent(site)
        rows = site.operands[0].size // inner
        one = (1, 1)
        layer = ConvFacts(1, inner, outputs, (1, rows), one, one, one, (0, 0))
        return SparseFacts(layer, (1, rows), ((inner, inner),), 0)
    layer = facts(site)
    segments = tuple((v.shape[1], situation.block(v.shape[1])) for v in group.segments)
    extent = rows_and_columns(group, layer, situation)
    return SparseFacts(layer, extent, segments, output_block(site, situation))


def output_axis(group: Group) -> int:
    """Axis of the weight that counts outputs."""
    site = group.anchor
    turned = group.family == "gemm" and not (site.node.op.name == "Gemm" and site.int("transB"))
    return 1 if turned else 0


def sparse_borders(group: Group) -> dict[ValueRef, Border]:
    """Zero borders that a convolution reads; none for a matrix product."""
    return {} if group.family == "gemm" else padding_borders(group)


def image_tiles(extent: tuple[int, int], most: int) -> list[tuple[int, int]]:
    """(columns, rows) of register tiles of at most `most` positions: several rows only of whole width."""
    height, width = extent
    found = [(columns, 1) for columns in range(1, min(width, most) + 1)]
    found += [(width, rows) for rows in range(2, min(height, most // width) + 1)]
    return found


def tile_counts(extent: tuple[int, int], columns: int, rows: int) -> list[tuple[int, int]]:
    """(positions of a tile, tiles of that size) that cover an image."""
    return [(a * b, m * n) for _, a, m in chunks(extent[0], rows) for _, b, n in chunks(extent[1], columns)]


def overlapped(compute: float, read: float) -> float:
    """Seconds of arithmetic and of reading weights side by side: mostly, the longer of the two."""
    return max(compute, read) + 0.1 * min(compute, read)


# ---------------------------------------------------------------------- building
@dataclass(frozen=True, eq=False)
class SparseLayer:
    """A layer as its kernel is built: buffers, constants and arguments."""

    x: tuple[Plane, ...]
    y: Plane
    batch: int
    layer: ConvFacts
    epilogue: Epilogue
    weight: np.ndarray
    """[O, I, K, L]."""
    bias: np.ndarray | None
    inputs: tuple[Slot, ...]
    rest: tuple[Slot, ...]
    """Residual and result."""
    named: tuple[Value, Value]
    """The values that packed weights and bias are named after in the pool."""
    output_block: int = 0
    """Lanes per block of the result; 0 for a row-major matrix."""


def sparse_layer(builder: Builder, group: Group, columns: int) -> SparseLayer:
    """What the kernel of `group` is built from; `columns`: width of its register tile."""
    return _matrix_layer(group) if group.family == "gemm" else _conv_layer(builder, group, columns)


def _conv_layer(builder: Builder, group: Group, columns: int) -> SparseLayer:
    site = group.anchor
    x, y, after = image_planes(builder, group, columns)
    bias = site.operands.optional(2)
    return SparseLayer(
        x,
        y,
        site.operands[0].shape[0],
        facts(site),
        after,
        weight4(site),
        None if bias is None else bias.constant,
        tuple(value_slot(v) for v in group.segments),
        tuple(epilogue_slots(group)),
        (site.operands[1], bias or site.operands[1]),
        y.block,
    )


def _matrix_layer(group: Group) -> SparseLayer:
    site = group.anchor
    a, weight = site.operands[0], site.operands[1]
    matrix, bias = gemm_constants(site)
    bias = bias if group.bias is None else group.bias.constant.reshape(-1)
    inner, columns = matrix.shape
    rows = a.size // inner
    y = Plane(columns, 1, rows, columns)
    one = (1, 1)
    residual = [] if group.residual is None else [plain_slot(group.residual)]
    return SparseLayer(
        (Plane(inner, 1, rows, inner),),
        y,
        1,
        ConvFacts(1, inner, columns, (1, rows), one, one, one, (0, 0)),
        Epilogue(None if group.residual is None else y, activation_of(group)),
        matrix.T[:, :, None, None],
        bias,
        (plain_slot(a),),
        (*residual, plain_slot(group.outputs[0])),
        (weight, site.operands.optional(2) or group.bias or weight),
    )


def tables(builder: Builder, layer: SparseLayer, form: str, arrays: Sequence[tuple[str, np.ndarray]]) -> list[Slot]:
    """Packed arrays of a weight in the pool."""
    return [builder.constant(layer.named[0], array, f"{form}-{name}") for name, array in arrays]


def bias_slot(builder: Builder, levels: Sequence[SparseLayer], lanes: int) -> Slot:
    """The bias at every sparsity level of a layer, filled up to a multiple of `lanes`."""
    packed = [pack_bias(layer.bias, layer.layer.outputs, lanes) for layer in levels]
    return builder.levelled(levels[0].named[1].ref.name, packed, "bias")
