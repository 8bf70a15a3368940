"""Winograd convolution on blocked activations: tiles of m x n outputs (Lavin and Gray, CVPR 2016, part 4),
stride 1 or 2.

Instead of 9 m n multiplications per channel pair, m x n outputs of a 3x3 convolution cost (m + 2) (n + 2): 4
per output for 2 x 2, 3 for 4 x 2, 2.25 for 4 x 4. A group of tiles is transformed, multiplied as one small
matrix product per point, and transformed back; both intermediates live in scratch. Shapes and packed
weights are in `winograd_shape`. The last tiles read past the image, where the input's buffer must hold zeros.

A kernel may compute several convolutions of equal geometry (members) that read some of the same segments: these are
transformed once. What a member computes does not depend on which others a call asks for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.templates.blocked import Output
from compiler.codegen.templates.common import KernelBuilder, Registers, kernel, splat, vector, view
from compiler.codegen.templates.conv import segment_names
from compiler.codegen.templates.product import ProductTile, ReadRow, ReadVector
from compiler.codegen.templates.product import cells as sums_of
from compiler.codegen.templates.winograd_axis import Phase
from compiler.codegen.templates.winograd_shape import (
    PointRun,
    WinogradShape,
    panel_vectors,
    phase_pairs,
    point_runs,
    products_per_tile,
)

LINE = 16
"""Floats in a cache line."""


def winograd_kernel(shape: WinogradShape) -> Any:
    """The PrimFunc for `shape`; parameters as `shape.parameters`, then, where there are several members, which of
    them the call computes, then the range of units."""
    with kernel(shape.parameters, divided=True, members=len(shape.members) > 1) as made:
        _Winograd(shape, made).emit()
    return made.func


def _pitch(lanes: int) -> int:
    """Floats from one tile to the next: an odd number of cache lines, so that tiles do not share a few sets."""
    lines = -(-lanes // LINE)
    return (lines + (lines % 2 == 0)) * LINE


class _Inputs:
    """The transformed inputs of a group of tiles: [point][tile][channel].

    Where channels are read as vectors (ARM): [set of tiles][point][vector of channels][tile of the set][channel].
    What is multiplied together lies side by side, so that one instruction loads two vectors of it; and most points
    of a tile are near enough to be stored at offsets from one address.
    """

    def __init__(self, shape: WinogradShape, channels: int) -> None:
        self._rows, self._lanes, self._points = shape.rows, shape.conv.lane_unroll, shape.points
        together = 1 if self._lanes == 1 else shape.rows
        self._sets, self._pitch = shape.group // together, _pitch(together * channels)
        self._buffer = T.alloc_buffer((shape.points * self._sets * self._pitch,), "float32")

    def store(self, point: int, tile: Any, channel: Any, value: Any, width: int) -> None:
        """Store `width` channels of a tile from `channel` on."""
        row: Any = 0
        if self._lanes > 1:
            assert width == self._lanes, "blocks of channels are what is read as a vector"
            row = tirx.truncmod(tile, self._rows)
        T.buffer_store(self._buffer, value, [vector(self._at(point, tile - row, row, channel, width), width)])

    def load(self, point: Any, first: Any, row: int, channel: Any, width: int) -> Any:
        """`width` channels from `channel` on of the tile `row` of the set whose first tile is `first`."""
        return self._buffer[vector(self._at(point, first, row, channel, width), width)]

    def _at(self, point: Any, first: Any, row: Any, channel: Any, width: int) -> Any:
        if self._lanes == 1:
            return (point * self._sets + (first + row)) * self._pitch + channel
        lane: Any = 0 if width == self._lanes else tirx.truncmod(channel, self._lanes)
        at = tirx.truncdiv(first, self._rows) * self._points + point
        return at * self._pitch + (channel - lane) * self._rows + (row * self._lanes + lane)


class _Part:
    """Emission state of one member: its buffers, and where its panels and products are among those of all."""

    def __init__(self, shape: WinogradShape, number: int, made: KernelBuilder, before: tuple[int, int]) -> None:
        member, pointers = shape.members[number], made.pointers
        self.number, self.y, self.reads = number, member.y, member.reads
        self.vectors = panel_vectors(member.y.blocks, shape.vectors)
        self.lanes, self.panels = shape.lanes(member), shape.panels(member)
        self.first_panel, self.first_lane = before
        self.channels = sum(shape.conv.x[i].channels for i in member.reads)
        size = products_per_tile(shape.axes) * self.channels * self.lanes * self.panels
        own = made.renamed(**{name: pointers[full] for name, full in shape.names(number).items()})
        self.W = view(own.pointers["w"], (size,))
        self.out = Output(own, member.y, shape.conv.batch, member.epilogue)

    def size(self, run: PointRun) -> int:
        """Weights of one panel at one point."""
        return len(run.phases) * self.channels * self.lanes


class _Winograd:
    """Emission state of one kernel."""

    def __init__(self, shape: WinogradShape, made: KernelBuilder) -> None:
        self.s, self.c, self.made, self.axes = shape, shape.conv, made, shape.axes
        x = self.c.x
        self.across = self.axes[1].points
        self.X = [
            view(made.pointers[n], p.physical(self.c.batch)) for n, p in zip(segment_names(x), x, strict=True)
        ]
        self.parts, panels, lanes = [], 0, 0
        for number, member in enumerate(shape.members):
            self.parts.append(_Part(shape, number, made, (panels, lanes)))
            panels, lanes = panels + shape.panels(member), lanes + member.y.lanes
        self.depth = sum(p.lanes for p in x)
        phases = len(phase_pairs(self.axes))
        self.inputs = _Inputs(shape, phases * self.depth)
        self.products = T.alloc_buffer((shape.points, shape.group, _pitch(lanes)), "float32")
        blocks = sorted({m.y.block for m in shape.members})
        self.input_tile = {b: Registers(shape.points, b) for b in sorted({p.block for p in x})}
        self.output_tile = {b: Registers(shape.outputs[0] * self.across, b) for b in blocks}
        self.acc = {b: ProductTile(shape.rows, shape.vectors, b, lanes=self.c.lane_unroll) for b in blocks}

    def emit(self) -> None:
        """Groups of tiles of this call's units: transform, multiply, transform back.

        Inputs of a set of tiles of which the call has some panels only are transformed all the same.
        """
        s = self.s
        for part in self.parts:
            with self.made.wanted([part.number]):
                part.out.clear_halo(self.made, s.units)
        first, behind = s.units.tile_range(self.made)
        limit = T.min(behind * s.rows, s.count)
        steps = s.group // s.rows
        with T.serial(tirx.truncdiv(behind - first + (steps - 1), steps)) as g:
            base = (first + g * steps) * s.rows
            with self._each_tile(base, limit) as at:
                self._transform_inputs(*at)
            points = 0
            for run in point_runs(self.axes):
                self._multiply_run(run, points, first + g * steps, limit)
                points += len(run.rows) * len(run.columns) * len(run.phases)
            with self._each_tile(base, limit) as at:
                for part in self.parts:
                    with self.made.wanted([part.number]):
                        self._transform_output(part, base, *at)

    @contextmanager
    def _each_tile(self, base: Any, limit: Any) -> Iterator[tuple[Any, Any, Any, Any]]:
        """(index in the group, sample, first output row, first output column) of each tile that exists."""
        down, across = self.s.tiles
        m = self.s.outputs
        with T.serial(self.s.group) as t, T.If(base + t < limit), T.Then():
            # Nothing here is negative. To floor what might be, TVM adds multiples that leave int32 on large planes.
            n, tile = tirx.truncdiv(base + t, down * across), tirx.truncmod(base + t, down * across)
            yield t, n, tirx.truncdiv(tile, across) * m[0], tirx.truncmod(tile, across) * m[1]

    # ------------------------------------------------------------------ inputs
    def _transform_inputs(self, t: Any, n: Any, row: Any, column: Any) -> None:
        readers = [[p.number for p in self.parts if i in p.reads] for i in range(len(self.c.x))]
        for index, (a, b) in enumerate(phase_pairs(self.axes)):
            phases = (self.axes[0].phases[a], self.axes[1].phases[b])
            first = index * self.depth
            for segment, x in enumerate(self.c.x):
                with self.made.wanted(readers[segment]), T.serial(x.blocks) as block:
                    self._transform_block(segment, phases, (t, n, row, column), block, first)
                first += x.lanes

    def _transform_block(self, segment: int, phases: tuple[Phase, Phase], at: Any, block: Any, first: int) -> None:
        """Columns, then rows of one phase of one block of channels."""
        t, n, row, column = at
        x, (down, across) = self.c.x[segment], phases
        lanes, tile = vector(0, x.block), self.input_tile[x.block]
        top = self.c.at(segment, 0, row, down.offset)
        left = self.c.at(segment, 1, column, across.offset)
        step = self.c.stride

        def const(value: float) -> Any:
            return splat(value, x.block)

        for j in range(across.reads):
            cells = [
                self.X[segment][n, block, top + q * step[0], left + j * step[1], lanes] for q in range(down.reads)
            ]
            for i, value in enumerate(self.axes[0].transform(down, cells, const)):
                tile.put(i * self.across + j, value)
        for i in range(down.points):
            cells = [tile.get(i * self.across + q) for q in range(across.reads)]
            for j, value in enumerate(self.axes[1].transform(across, cells, const)):
                self.inputs.store(i * self.across + j, t, first + block * x.block, value, x.block)

    # ------------------------------------------------------------------ products
    def _multiply_run(self, run: PointRun, points: int, first: Any, limit: Any) -> None:
        """The products at some points, `points` (times phases) behind the first, of the group with set `first` of
        tiles. Members take turns at every point, so that what they read stays in the nearest cache."""
        with T.serial(len(run.rows)) as i, T.serial(len(run.columns)) as j:
            point = (i + run.rows.start) * self.across + (j + run.columns.start)
            if self.s.prefetch:
                self._ask_for_results(i + run.rows.start, j + run.columns.start, first * self.s.rows, limit)
            for part in self.parts:
                start = points * part.channels * part.lanes * part.panels
                with self.made.wanted([part.number]), T.serial(part.panels) as panel:
                    weights = ((i * len(run.columns) + j) * part.panels + panel) * part.size(run) + start
                    self._multiply_panel(part, run, point, (panel, weights), first)

    def _ask_for_results(self, i: Any, j: Any, base: Any, limit: Any) -> None:
        """Prefetch output (i, j) of every tile of the group, where tiles have as many outputs."""
        m = self.s.outputs
        with T.If(tirx.And(i < m[0], j < m[1])), T.Then(), self._each_tile(base, limit) as (_, n, row, column):
            for part in self.parts:
                with self.made.wanted([part.number]), T.serial(part.y.blocks) as block:
                    part.out.prefetch((n, block, row + i, column + j))

    def _multiply_panel(self, part: _Part, run: PointRun, point: Any, at: tuple[Any, Any], first: Any) -> None:
        """A panel (`at`: its number, where its weights begin) by the call's tiles of the group."""
        rows, units = self.s.rows, self.s.units
        panel, weights = at
        with T.serial(self.s.group // rows) as u, units.where(self.made, first + u, panel + part.first_panel):
            self._multiply(part, run, point, panel, weights, u * rows)

    def _multiply(self, part: _Part, run: PointRun, point: Any, panel: Any, weights: Any, first: Any) -> None:
        """`rows` tiles by one panel of weights; lanes that fill up a block have no weights and are skipped."""
        v, extent = part.y.block, (self.s.rows, part.vectors)
        tile = self.acc[v]
        tile.start(extent, lambda u, o: splat(0.0, v))
        for lane, channels in self._channel_runs(part, run):
            x, w = self._operands(part, point, first, lane, weights)
            tile.accumulate(extent, channels, x, w)
            weights = weights + channels * part.lanes
        for u, o in sums_of(extent):
            lanes = vector(panel * part.lanes + (part.first_lane + o * v), v)
            T.buffer_store(self.products, tile.sums.get(tile.place(u, o)), [point, first + u, lanes])

    def _operands(self, part: _Part, point: Any, first: Any, lane: int, weights: Any) -> tuple[ReadRow, ReadVector]:
        """Channels of a tile's transformed inputs, of which the first is in `lane`, and the weights that begin at
        `weights`."""

        def x(u: int, channel: Any, count: int) -> Any:
            return self.inputs.load(point, first, u, channel + lane, count)

        def w(channel: Any, o: int) -> Any:
            v = part.y.block
            return part.W[vector(weights + channel * part.lanes + o * v, v)]

        return x, w

    def _channel_runs(self, part: _Part, run: PointRun) -> list[tuple[int, int]]:
        """(first lane, channels) of stretches of the transformed inputs that a member reads, without filled-up
        lanes."""
        pairs = phase_pairs(self.axes)
        offsets = [0, *itertools.accumulate(x.lanes for x in self.c.x)]
        found: list[tuple[int, int]] = []
        for phase in run.phases:
            for segment in part.reads:
                lane, channels = pairs.index(phase) * self.depth + offsets[segment], self.c.x[segment].channels
                if found and sum(found[-1]) == lane:
                    found[-1] = (found[-1][0], found[-1][1] + channels)
                else:
                    found.append((lane, channels))
        return found

    # ------------------------------------------------------------------ outputs
    def _transform_output(self, part: _Part, base: Any, t: Any, n: Any, row: Any, column: Any) -> None:
        """The blocks of the call's panels of tile t of the group that begins with tile `base`."""
        units, tiles = self.s.units, tirx.truncdiv(base + t, self.s.rows)
        with (
            T.serial(part.panels) as panel,
            units.where(self.made, tiles, panel + part.first_panel),
            T.serial(part.vectors) as o,
        ):
            self._transform_output_block(part, t, (n, panel * part.vectors + o, row, column))

    def _transform_output_block(self, part: _Part, t: Any, place: tuple[Any, Any, Any, Any]) -> None:
        """Columns, then rows of one block of channels; `place` is the tile's first output."""
        n, block, row, column = place
        y, tile = part.y, self.output_tile[part.y.block]
        at = vector(block * y.block + part.first_lane, y.block)

        def const(value: float) -> Any:
            return splat(value, y.block)

        for j in range(self.across):
            cells = [self.products[q * self.across + j, t, at] for q in range(self.axes[0].points)]
            for i, value in enumerate(self.axes[0].interpolate(cells, const)):
                tile.put(i * self.across + j, value)
        for i in range(self.s.outputs[0]):
            cells = [tile.get(i * self.across + q) for q in range(self.across)]
            for j, value in enumerate(self.axes[1].interpolate(cells, const)):
                self._guarded(part, (n, block, row + i, column + j), (i, j), value + part.out.bias(block))

    def _guarded(self, part: _Part, place: Any, at: tuple[int, int], value: Any) -> None:
        """Store one output; only those of the last tiles can lie outside the image."""
        outside = [
            position < extent
            for position, extent, i, m in zip(place[2:], part.y.extent, at, self.s.outputs, strict=True)
            if extent % m and i >= extent % m
        ]
        if not outside:
            part.out.store(place, value)
            return
        condition = outside[0] if len(outside) == 1 else tirx.And(*outside)
        with T.If(condition), T.Then():
            part.out.store(place, value)
