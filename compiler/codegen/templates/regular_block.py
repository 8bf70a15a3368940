"""Convolution and matrix product with one weight in each run of b consecutive inputs of a row (BMWM, DARB).

Ren et al., AAAI 2020 (arXiv 1911.08020) define the pattern. Lanes are output rows. A *step* takes, at one tap, the
inputs of one register, or of one run where that is longer; it loads them once, permutes them by the codes of the
rows, so that each lane has its survivor's input, and multiplies with the weights: once per run in a register. Where
the inputs of a step lie is read from a list that all rows share: one loop over all steps, and kernel size, dilation
and padding are data.

Rows of one b form a *class*. Where classes differ (DARB), rows are sorted by class, each class filled up to whole
panels with rows that do not exist, and lanes are stored one by one at the channels a table names.

Layouts, class after class: w float32 [panels][steps][runs][vectors][lanes]; codes uint8 of the same order, as the
permutation stores them; index int32 [steps], an offset into the segment, segment by segment, taps innermost; rows
int32 [panels][vectors][lanes] (only with several classes), -1 for none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.target import Arch
from compiler.codegen.templates.blocked import Epilogue, Plane
from compiler.codegen.templates.common import KernelBuilder, Registers, kernel, prefetch, splat, vector, view
from compiler.codegen.templates.conv import segment_names
from compiler.codegen.templates.permute import Permutation
from compiler.codegen.templates.sparse_tiles import Store, Tile, Tiling, group_lanes, tap_offsets, tiles

LINE = 64
"""Bytes of a cache line."""

MOST_CLASSES = 6
"""Classes a kernel has code for."""

DTYPES = {"codes": "uint8", "index": "int32", "rows": "int32"}
"""Element types of the parameters that are not float32."""


@dataclass(frozen=True, slots=True)
class RowClass:
    """Rows whose runs have `size` inputs, in so many whole panels."""

    size: int
    panels: int


@dataclass(frozen=True, slots=True)
class RegularShape:
    """Everything the generated code depends on: equal shapes share one kernel."""

    batch: int
    x: tuple[Plane, ...]
    """Segments of the input; their channels follow each other. Each but the last holds whole steps."""
    y: Plane
    taps: int
    """Cells of the kernel."""
    stride: tuple[int, int]
    classes: tuple[RowClass, ...]
    arch: Arch
    width: int
    """Lanes of a register: divides the blocks of `x` and `y`, unless `y` has one block only."""
    epilogue: Epilogue = field(default_factory=Epilogue)
    tile: tuple[int, int, int] = (1, 1, 1)
    """Output columns and rows in registers; vectors of a panel."""
    weights_outer: bool = True
    ahead: int = 0
    """Steps ahead of their use that weights and codes are asked for from memory; 0: not at all."""

    @property
    def parameters(self) -> tuple[str, ...]:
        rows = ("rows",) if self.scattered else ()
        return (*segment_names(self.x), "w", "codes", "index", *rows, "b", *self.epilogue.parameters, "y")

    @property
    def scattered(self) -> bool:
        """Whether rows are sorted by class, so that lanes are stored one by one."""
        return len(self.classes) > 1

    @property
    def vectors(self) -> int:
        """Vectors of a panel."""
        return self.tile[2]

    @property
    def groups(self) -> int:
        """Panels of all classes."""
        return sum(c.panels for c in self.classes)

    @property
    def fills_blocks(self) -> bool:
        """Whether panels store every lane of the result, those that are no channels included."""
        return not self.scattered and self.groups * self.vectors * self.width >= self.y.lanes

    @property
    def tiling(self) -> Tiling:
        """Loops over the output."""
        columns, rows, _ = self.tile
        return Tiling(self.batch, self.y, columns, rows, self.groups, self.weights_outer)

    def permutation(self, size: int) -> Permutation:
        """How inputs of one step are permuted."""
        return Permutation(self.arch, self.width, max(1, size // self.width))

    def runs(self, size: int) -> int:
        """Runs in one step."""
        return max(1, self.width // size)

    def steps(self, size: int) -> int:
        """Steps of all segments."""
        return self.taps * sum(-(-x.channels // max(size, self.width)) for x in self.x)

    def slots(self, size: int) -> int:
        """Weights of a row."""
        return self.steps(size) * self.runs(size)


# ---------------------------------------------------------------------- packing
def row_classes(sizes: np.ndarray, height: int) -> tuple[RowClass, ...]:
    """The classes of rows with these run lengths in panels of `height` rows, shortest runs first."""
    found, counts = np.unique(sizes, return_counts=True)
    return tuple(RowClass(int(s), -(-int(n) // height)) for s, n in zip(found, counts, strict=True))


@dataclass(frozen=True, eq=False)
class PackedRuns:
    """Weights, codes and list in the layouts above; `rows` int32 [panels * vectors * lanes] gives every lane's row,
    -1 for none."""

    values: np.ndarray
    codes: np.ndarray
    index: np.ndarray
    rows: np.ndarray


def pack(
    weight: np.ndarray, sizes: np.ndarray, shape: RegularShape, pad: tuple[int, int], dilation: tuple[int, int]
) -> PackedRuns:
    """Weights [O, I, K, L], row i with one survivor in each run of sizes[i] inputs, for a kernel of `shape`."""
    assert weight.shape[2] * weight.shape[3] == shape.taps
    values, codes, index, order = [], [], [], []
    for one in shape.classes:
        height = shape.vectors * shape.width
        members = np.flatnonzero(sizes == one.size)
        rows = np.full(one.panels * height, -1, np.int32)
        rows[: len(members)] = members
        part = np.zeros((len(rows), *weight.shape[1:]), np.float32)
        part[: len(members)] = weight[members]
        value, code = _survivors(part, one.size, shape)
        panels = (one.panels, shape.vectors, shape.width, -1)
        permutation = shape.permutation(one.size)
        stored = permutation.pack(permutation.form(shape.vectors), code.reshape(panels).transpose(0, 3, 1, 2))
        values.append(value.reshape(panels).transpose(0, 3, 1, 2).ravel())
        codes.append(stored.ravel())
        index += [_offsets(x, max(one.size, shape.width), weight.shape[2:], pad, dilation) for x in shape.x]
        order.append(rows)
    return PackedRuns(*(np.concatenate(parts) for parts in (values, codes, index, order)))


def _offsets(
    x: Plane, step: int, kernel: tuple[int, ...], pad: tuple[int, int], dilation: tuple[int, int]
) -> np.ndarray:
    """Offsets of the first inputs of every step in a segment, taps innermost: int32 [steps]."""
    channel, kh, kw = np.meshgrid(
        np.arange(0, x.channels, step), np.arange(kernel[0]), np.arange(kernel[1]), indexing="ij"
    )
    return tap_offsets(x, channel.ravel(), kh.ravel(), kw.ravel(), pad, dilation)


def _survivors(weight: np.ndarray, size: int, shape: RegularShape) -> tuple[np.ndarray, np.ndarray]:
    """Survivors [O, slots] and the lanes of their inputs among the sources of their step, uint8 [O, slots]."""
    step, first = max(size, shape.width), 0
    values, lanes = [], []
    for x in shape.x:
        part = weight[:, first : first + x.channels]
        first += x.channels
        part = np.pad(part, [(0, 0), (0, -x.channels % step), (0, 0), (0, 0)])
        steps, taps = part.shape[1] // step, part.shape[2] * part.shape[3]
        runs = part.reshape(len(part), steps, step // size, size, taps).transpose(0, 1, 4, 2, 3)
        place = np.abs(runs).argmax(axis=-1)
        starts = np.arange(step // size) * size
        exists = np.arange(steps)[:, None, None] * step + starts < x.channels
        values.append(np.take_along_axis(runs, place[..., None], axis=-1).reshape(len(part), -1))
        # a last step may lack runs: these name a lane that exists
        lanes.append(np.where(exists, place + starts, 0).reshape(len(part), -1))
    return np.concatenate(values, axis=1), np.concatenate(lanes, axis=1).astype(np.uint8)


# ---------------------------------------------------------------------- kernel
def regular_block_kernel(shape: RegularShape) -> Any:
    """The PrimFunc for `shape`; parameters as `shape.parameters`, then the range of units."""
    with kernel(shape.parameters, DTYPES, divided=True) as made:
        RegularBlockEmitter(shape, made).emit()
    return made.func


class RegularBlockEmitter:
    """Emission state of one kernel, or of this product as part of another kernel."""

    def __init__(self, shape: RegularShape, made: KernelBuilder) -> None:
        self.s, self.made = shape, made
        pointers, names = made.pointers, segment_names(shape.x)
        self.X = [
            view(pointers[name], (math.prod(x.physical(shape.batch)),))
            for name, x in zip(names, shape.x, strict=True)
        ]
        self.index = view(pointers["index"], (sum(shape.steps(c.size) for c in shape.classes),), "int32")
        height = shape.vectors * shape.width
        slots = [(c, c.panels * shape.slots(c.size)) for c in shape.classes]
        self.W = view(pointers["w"], (sum(n for _, n in slots) * height,))
        self.codes = view(pointers["codes"], (sum(n * self._code_bytes(c.size) for c, n in slots),), "uint8")
        self.B = view(pointers["b"], (shape.groups * height,))
        self.rows = view(pointers["rows"], (shape.groups * height,), "int32") if shape.scattered else None
        self.store = Store(made, shape.y, shape.batch, shape.epilogue)
        columns, rows, _ = shape.tile
        self.acc = Registers(columns * rows * shape.vectors, shape.width)

    def _code_bytes(self, size: int) -> int:
        """Bytes of the codes of one slot of a panel."""
        permutation = self.s.permutation(size)
        form = permutation.form(self.s.vectors)
        return permutation.stored_lanes(form) * self.s.vectors // (2 if form == "nibble" else 1)

    def emit(self) -> None:
        """Every tile by the code of its class."""
        for tile in tiles(self.made, self.s.tiling):
            first = weights = codes = steps = 0
            for one in self.s.classes:
                slots = self.s.slots(one.size)
                start = (tile.group - first, weights, codes, steps)
                if self.s.scattered:
                    with T.If(tirx.all(tile.group >= first, tile.group < first + one.panels)), T.Then():
                        self._tile(tile, one.size, start)
                else:
                    self._tile(tile, one.size, start)
                first += one.panels
                weights += one.panels * slots * self.s.vectors * self.s.width
                codes += one.panels * slots * self._code_bytes(one.size)
                steps += self.s.steps(one.size)
            if not self.s.fills_blocks:
                self.store.clear_empty_lanes(tile)

    def _tile(self, tile: Tile, size: int, start: tuple[Any, int, int, int]) -> None:
        """Bias, steps, epilogue; `start`: the panel within its class, where that's weights, codes, list begin."""
        v, vectors, slots = self.s.width, self.s.vectors, self.s.slots(size)
        for cell in range(len(tile.cells)):
            for o in range(vectors):
                self.acc.put(cell * vectors + o, self.B[vector((tile.group * vectors + o) * v, v)])
        panel, weights, codes, first = start
        base = (weights + panel * (slots * vectors * v), codes + panel * (slots * self._code_bytes(size)))
        step = max(size, v)
        for segment, x in enumerate(self.s.x):
            full, rest = divmod(x.channels, step)
            for steps, present in ((full, step // v), (bool(rest), -(-rest // v))):
                if steps:
                    with T.serial(steps * self.s.taps) as i:
                        self._step(tile, size, (segment, first + i), base, first - start[3] + i, present)
                first += steps * self.s.taps
        self._finish(tile)

    def _step(
        self, tile: Tile, size: int, place: tuple[int, Any], base: tuple[Any, Any], number: Any, present: int
    ) -> None:
        """The runs of one step, `number` within its class; `present` of its source vectors exist."""
        v, vectors, runs = self.s.width, self.s.vectors, self.s.runs(size)
        permutation = self.s.permutation(size)
        if self.s.ahead:
            self._ask(size, base, number + self.s.ahead)
        for run in range(runs):
            slot = number * runs + run
            for o in range(vectors):
                code = self._code(permutation, base[1] + slot * self._code_bytes(size), o)
                weight = self.W[vector(base[0] + (slot * vectors + o) * v, v)]
                for cell, (h, u) in enumerate(tile.cells):
                    sources = [self._source(tile, place, s, h, u) for s in range(present)]
                    sources += [splat(0.0, v)] * (permutation.sources - present)
                    k = cell * vectors + o
                    self.acc.put(k, self.acc.get(k) + permutation(sources, code) * weight)

    def _ask(self, size: int, base: tuple[Any, Any], number: Any) -> None:
        """Ask for the weights and codes of a step, which may lie beyond the last."""
        runs, bytes_ = self.s.runs(size), self._code_bytes(size)
        elements = runs * self.s.vectors * self.s.width
        for line in range(0, elements, LINE // 4):
            prefetch(self.W, [base[0] + number * elements + line])
        for line in range(0, runs * bytes_, LINE):
            prefetch(self.codes, [base[1] + number * (runs * bytes_) + line])

    def _code(self, permutation: Permutation, at: Any, o: int) -> Any:
        form = permutation.form(self.s.vectors)
        lanes = permutation.stored_lanes(form)
        stored = self.codes[vector(at + (o // 2 if form == "nibble" else o) * lanes, lanes)]
        return permutation.codes(form, stored, o)

    def _source(self, tile: Tile, place: tuple[int, Any], source: int, h: int, u: int) -> Any:
        """One vector of input channels of a step."""
        segment, entry = place
        x, channel = self.s.x[segment], source * self.s.width
        _, blocks, rows, columns, block = x.physical(1)
        down, across = self.s.stride[0] * columns * block, self.s.stride[1] * block
        corner = tile.n * (blocks * rows * columns * block) + tile.row * down + tile.column * across
        cell = channel // block * (rows * columns * block) + channel % block + h * down + u * across
        return self.X[segment][vector(self.index[entry] + corner + cell, self.s.width)]

    def _finish(self, tile: Tile) -> None:
        vectors, v = self.s.vectors, self.s.width
        cells = range(len(tile.cells))
        if self.rows is None:
            for o, lanes in enumerate(group_lanes(self.s.y, tile.group, vectors * v, v)):
                self.store.vectors(tile, lanes, self.acc, [cell * vectors + o for cell in cells])
            return
        for o in range(vectors):
            rows = [self.rows[(tile.group * vectors + o) * v + lane] for lane in range(v)]
            self.store.scattered(tile, rows, self.acc, [cell * vectors + o for cell in cells])
