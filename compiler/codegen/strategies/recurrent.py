"""LSTM, GRU and RNN: dense, or with sparse weights multiplied by the kernels of sparse matrix products."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from compiler.codegen.groups import Group
from compiler.codegen.kernels import Builder, Built, Slot, plain_slot
from compiler.codegen.strategies import block_sparse, regular_block
from compiler.codegen.strategies.base import Candidate, Choice, Situation, Strategy
from compiler.codegen.strategies.convolution import ConvFacts, weight_seconds
from compiler.codegen.strategies.matrix import tile_seconds
from compiler.codegen.strategies.sparse import SparseFacts, SparseLayer
from compiler.codegen.target import Target
from compiler.codegen.templates import recurrent
from compiler.codegen.templates.blocked import Epilogue
from compiler.codegen.templates.recurrent_products import (
    GateProduct,
    ProductShape,
    gate_passes,
    gate_rows,
    planes,
    rows_of,
)
from compiler.codegen.templates.recurrent_shape import RecurrentShape, folded_bias, recurrent_shape
from compiler.ir.encoding import BlockSparse, Encoding, RegularBlock, Sparse
from compiler.ir.graph import Site, Value
from compiler.ir.ops.recurrent import B, R, W
from compiler.ir.types import DType, ValueRef

DENSE = (0, 0, 0, 0)
"""Part of a tile: this weight is multiplied with its zeros."""

ROWS, INPUTS = 1, 2
"""Axes of W and R that count rows (gates by units) and inputs."""

TRIED = 3
"""Tiles of each product that are combined with those of the other."""

ACTIVATION_CYCLES = 24.0
"""Time of one activation of a vector, and its share of the rest of the cell."""

Operand = Literal["w", "r"]
Tile = tuple[int, ...]


class Recurrent(Strategy):
    """One kernel for all steps of a layer; its units of work are the directions."""

    name = "recurrent"
    version = 3
    families = ("recurrent",)

    def candidates(self, group: Group, situation: Situation) -> Iterable[Candidate]:
        if group.anchor.operands[0].dtype is not DType.FLOAT32:  # refused, with its reason, when it is built
            return [Candidate(Choice(self.name), 0.0)]
        shape = recurrent_shape(group.anchor, situation.target)
        parts = (dense_seconds(shape, operand, situation) for operand in ("w", "r"))
        return [Candidate(Choice(self.name), sum(parts) + cell_seconds(shape, situation.target))]

    def build(self, builder: Builder, group: Group, choice: Choice, stored: Sequence[Value]) -> Built:
        site = group.anchor
        lowered = recurrent.lower_site(site, builder.target)
        slots = _slots(builder, site, [lowered.inputs])
        return Built(("recurrent", lowered.shape), lowered.func, slots, self.name, lowered.shape.directions)


class SparseRecurrent(Strategy):
    """The same kernel with products that leave zeros out.

    Tile: four numbers for W, then four for R: those of a tile of `block-sparse` (the last is the height of its
    lists), or those of `regular-block` and 1, or zeros where that weight is multiplied densely.
    """

    name = "recurrent-sparse"
    version = 1
    families = ("recurrent",)
    levels = True
    skips_zeros = True

    def multiplies_zeros(self, choice: Choice, operand: int) -> bool:
        return choice.tile[:4] == DENSE if operand == W else choice.tile[4:] == DENSE

    def candidates(self, group: Group, situation: Situation) -> Iterable[Candidate]:
        site = group.anchor
        if not any(sparse_form(site, operand) for operand in ("w", "r")) or _levels_elsewhere(site):
            return []
        shape = recurrent_shape(site, situation.target)
        if not shape.packed:
            return []
        for_w, for_r = (_tiles(site, shape, operand, situation) for operand in ("w", "r"))
        cell = cell_seconds(shape, situation.target)
        found = [
            Candidate(Choice(self.name, (*w, *r)), seconds + more + cell)
            for w, seconds in for_w
            for r, more in for_r
            if w != DENSE or r != DENSE
        ]
        return sorted(found, key=lambda c: (c.seconds, c.choice.tile))

    def build(self, builder: Builder, group: Group, choice: Choice, stored: Sequence[Value]) -> Built:
        sites = [g.anchor for g in group.ladder()]
        shape = recurrent_shape(sites[0], builder.target)
        products: list[GateProduct] = []
        constants: list[dict[str, list[np.ndarray]]] = [{} for _ in range(group.levels)]
        tiles: tuple[tuple[Operand, Tile], ...] = (("w", choice.tile[:4]), ("r", choice.tile[4:]))
        for operand, tile in tiles:
            if tile == DENSE:
                continue
            for gates in _passes(shape, operand):
                product, levels = _product(sites, shape, operand, gates, tile, builder.target)
                products.append(product)
                for found, arrays in zip(constants, levels, strict=False):
                    found.setdefault(operand, []).extend(arrays)
        func = recurrent.recurrent_kernel(shape, products)
        inputs = [recurrent.kernel_inputs(s, shape, c) for s, c in zip(sites, constants, strict=False)]
        slots = _slots(builder, sites[0], inputs)
        return Built((self.name, shape, tuple(products)), func, slots, self.name, shape.directions)


def _slots(builder: Builder, site: Site, levels: Sequence[Sequence[ValueRef | np.ndarray]]) -> tuple[Slot, ...]:
    """Arguments: values row-major, packed constants (`levels`: of every sparsity level), results."""
    slots: list[Slot] = []
    for items in zip(*levels, strict=True):
        if isinstance(items[0], ValueRef):
            value = builder.graph.value(items[0])
            slots.append(plain_slot(value) if value.data is None else builder.constant(value, value.data, "plain"))
        else:
            slots.append(builder.levelled(str(site.node.ref), items, "recurrent"))
    return (*slots, *(plain_slot(v) for v in site.results))


# ---------------------------------------------------------------------- products with sparse weights
@dataclass(frozen=True, eq=False)
class _Matrix:
    """W or R of one direction, for some gates, as the matrix that the product kernels see."""

    weight: np.ndarray
    """[O, I, 1, 1], rows in the order of `gate_rows`."""
    encoding: Sparse
    sizes: np.ndarray
    """int64 [O]: run length of every row; ones where the weight has no runs."""
    bias: np.ndarray
    """[O]; zeros for R, whose biases belong to the sums of the inputs or to the cell."""


def _weight(site: Site, operand: Operand) -> Value:
    return site.operands[W if operand == "w" else R]


def sparse_form(site: Site, operand: Operand) -> Sparse | None:
    """How W (`w`) or R (`r`) is stored, where a sparse product can read it: rows are gates by units."""
    found: Encoding = _weight(site, operand).type.encoding
    along = isinstance(found, Sparse) and found.rows == ROWS
    if not along or (isinstance(found, RegularBlock) and found.inputs != INPUTS):
        return None
    assert isinstance(found, Sparse)
    return found


def _levels_elsewhere(site: Site) -> bool:
    """Whether something besides the two weights differs by level: it is read as it is."""
    return any(v.sparser and i not in (W, R) for i, v in site.operands.present())


def _passes(shape: RecurrentShape, operand: Operand) -> tuple[tuple[int, ...], ...]:
    return gate_passes(shape) if operand == "r" else (tuple(range(shape.gates)),)


def _matrices(site: Site, shape: RecurrentShape, operand: Operand, gates: Sequence[int]) -> list[_Matrix]:
    """Every direction of W or R. Rows that do not exist have runs like the others: they are stored as zeros."""
    weight = _weight(site, operand).constant
    encoding, rows = sparse_form(site, operand), gate_rows(shape, gates)
    assert encoding is not None
    sizes = np.ones(weight.shape[ROWS], np.int64)
    if isinstance(encoding, RegularBlock):
        sizes = encoding.row_sizes(weight.shape[ROWS])
    bias = np.zeros((shape.directions, weight.shape[ROWS]), np.float32)
    given = site.operands.optional(B)
    if operand == "w":
        bias = folded_bias(shape, None if given is None else given.constant)[:, : shape.gates].reshape(bias.shape)
    run = np.where(rows >= 0, sizes[np.maximum(rows, 0)], sizes.max())
    return [
        _Matrix(rows_of(w, rows)[:, :, None, None], encoding, run, rows_of(b, rows))
        for w, b in zip(weight, bias, strict=True)
    ]


def _tiles(site: Site, shape: RecurrentShape, operand: Operand, situation: Situation) -> list[tuple[Tile, float]]:
    """The best tiles of all products with one weight, and dense where it has one level, each with its predicted
    seconds per call.
    """
    found: list[tuple[Tile, float]] = []
    nested = _weight(site, operand).nested
    if not nested:
        found.append((DENSE, dense_seconds(shape, operand, situation)))
    form = sparse_form(site, operand)
    if form is None or (nested and not _within_gates(form, shape)):
        return found
    total: dict[Tile, float] | None = None
    for gates in _passes(shape, operand):
        for matrix in _matrices(site, shape, operand, gates):
            own = _matrix_tiles(matrix, _facts(shape, operand, gates), situation, shape.block, nested)
            kept = own if total is None else {t: s + own[t] for t, s in total.items() if t in own}
            total = kept
    turns = shape.steps if operand == "r" else 1
    best = sorted((total or {}).items(), key=lambda item: (item[1], item[0]))[:TRIED]
    return [*found, *((tile, turns * seconds) for tile, seconds in best)]


def _within_gates(form: Sparse, shape: RecurrentShape) -> bool:
    """Whether every block has rows of one gate."""
    return isinstance(form, BlockSparse) and shape.hidden % form.height == 0


def _matrix_tiles(
    matrix: _Matrix, known: SparseFacts, situation: Situation, block: int, nested: bool
) -> dict[Tile, float]:
    """Predicted seconds of one product by tile. Lists of `nested` weights hold rows of one block each: rows of
    several may be there at different levels.
    """
    heights = {block}
    if isinstance(matrix.encoding, BlockSparse):
        own = min(matrix.encoding.height, block)
        heights = {own} if nested else {block, own}
    listed = block_sparse.product_candidates(known, matrix.weight, sorted(heights), situation, nested=nested)
    found = {c.choice.tile: c.seconds for c in listed}
    if isinstance(matrix.encoding, RegularBlock):
        runs = regular_block.product_candidates(known, matrix.sizes, situation)
        found |= {(*c.choice.tile, 1): c.seconds for c in runs}
    return found


def _facts(shape: RecurrentShape, operand: Operand, gates: Sequence[int]) -> SparseFacts:
    """What predictions rest on: one product of all rows, or that of one step."""
    x, _, _ = planes(shape, operand, gates)
    layer = _layer(shape, operand, gates)
    return SparseFacts(layer, layer.extent, ((x.channels, x.block),), 0)


def _layer(shape: RecurrentShape, operand: Operand, gates: Sequence[int]) -> ConvFacts:
    x, y, batch = planes(shape, operand, gates)
    one = (1, 1)
    return ConvFacts(batch, x.channels, y.channels, (y.height, y.width), one, one, one, (0, 0))


def _product(
    sites: Sequence[Site],
    shape: RecurrentShape,
    operand: Operand,
    gates: tuple[int, ...],
    tile: Tile,
    target: Target,
) -> tuple[GateProduct, list[list[np.ndarray]]]:
    """One product, and by level the constants of all directions in the order of its parameters; `sites`: the node
    at every sparsity level.
    """
    kernels: list[ProductShape] = []
    constants: list[list[np.ndarray]] = [[] for _ in sites]
    for levels in zip(*(_matrices(s, shape, operand, gates) for s in sites), strict=True):
        layers = [_sparse_layer(sites[0], shape, operand, gates, matrix) for matrix in levels]
        if tile[3] == 1:
            sizes = levels[0].sizes
            runs = regular_block.product_shape(layers[0], sizes, tile[:3], target)
            packed_runs = [regular_block.packed_arrays(x, sizes, runs) for x in layers]
            kernels.append(runs)
            made = [[*(a for _, a in arrays), bias] for arrays, bias in packed_runs]
        else:
            packed, lists = block_sparse.product_kernel(layers, tile, target)
            kernels.append(lists)
            shared = [a for _, a in block_sparse.lists(packed)]
            made = [[*shared, last, m.bias] for last, m in zip(packed.last, levels, strict=True)]
        for found, arrays in zip(constants, made, strict=True):
            found += arrays
    return GateProduct(operand, gates, tuple(kernels)), constants


def _sparse_layer(
    site: Site, shape: RecurrentShape, operand: Operand, gates: tuple[int, ...], matrix: _Matrix
) -> SparseLayer:
    x, y, batch = planes(shape, operand, gates)
    weight = _weight(site, operand)
    return SparseLayer(
        (x,),
        y,
        batch,
        _layer(shape, operand, gates),
        Epilogue(),
        matrix.weight,
        matrix.bias,
        inputs=(),
        rest=(),
        named=(weight, weight),
    )


# ---------------------------------------------------------------------- predicted times
def dense_seconds(shape: RecurrentShape, operand: Operand, situation: Situation) -> float:
    """Predicted time of all products with W or R, zeros multiplied: register tiles, or reading the weights."""
    target, lanes = situation.target, shape.panels * shape.gates * shape.block
    inner, rows = (shape.inputs, shape.rows) if operand == "w" else (shape.hidden, shape.samples)
    most, chains = (shape.input_rows, 1) if operand == "w" else (shape.together, shape.chains)
    tile = (most, shape.gates, chains)
    compute = tile_seconds(rows, inner, lanes, shape.block, tile, target)
    turns = 1 if operand == "w" else shape.steps
    bytes_ = 4 * inner * lanes
    read = 0.0 if bytes_ <= target.machine.l1 else weight_seconds(bytes_, situation) * -(-rows // most)
    return turns * shape.directions * (max(compute, read) + 0.1 * min(compute, read))


def cell_seconds(shape: RecurrentShape, target: Target) -> float:
    """Predicted time of all activations and states."""
    activations = {"LSTM": 5, "GRU": 3, "RNN": 1}[shape.kind]
    vectors = shape.directions * shape.rows * shape.panels
    return vectors * activations * ACTIVATION_CYCLES / target.machine.clock
