"""Winograd convolution on blocked activations: tiles of m x n outputs (Lavin and Gray, CVPR 2016, part 4),
stride 1 or 2.

Instead of 9 m n multiplications per channel pair, m x n outputs of a 3x3 convolution cost (m + 2) (n + 2): 4
per output for 2 x 2, 3 for 4 x 2, 2.25 for 4 x 4. A group of tiles is transformed, multiplied as one small
matrix product per point, and transformed back; both intermediates live in scratch. At stride 2 the phases of
the input (`winograd_axis`) are further channels of these products. Weights are transformed in float64 when they
are packed. The last tiles read past the image, where the input's buffer must hold zeros.

A kernel may compute several convolutions of equal geometry (members) that read some of the same segments: these are
transformed once. What a member computes does not depend on which others a call asks for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.templates.blocked import Epilogue, Output, Plane
from compiler.codegen.templates.common import KernelBuilder, Registers, kernel, splat, vector, view
from compiler.codegen.templates.conv import ConvShape, segment_names
from compiler.codegen.templates.units import Units
from compiler.codegen.templates.winograd_axis import Axis, Phase

Axes = tuple[Axis, Axis]

LINE = 16
"""Floats in a cache line."""

UNROLLED = 4
"""Groups of channels a loop step multiplies by element."""

Cells = list[tuple[int, int, int]]
"""(tile, vector, accumulator) of every vector of a register tile."""


class PointRun(NamedTuple):
    """A rectangle of points at which the same phases meet: their products read the same channels."""

    rows: range
    columns: range
    phases: tuple[tuple[int, int], ...]


def point_runs(axes: Axes) -> tuple[PointRun, ...]:
    """All points, as rectangles; their weights follow each other in this order."""
    return tuple(
        PointRun(range(r, r + rn), range(c, c + cn), tuple(itertools.product(rp, cp)))
        for (r, rn, rp), (c, cn, cp) in itertools.product(axes[0].runs, axes[1].runs)
    )


def phase_pairs(axes: Axes) -> tuple[tuple[int, int], ...]:
    """Phases of rows and columns; the channels of each lie one after another in the transformed inputs."""
    return tuple(itertools.product(range(len(axes[0].phases)), range(len(axes[1].phases))))


@dataclass(frozen=True, slots=True)
class Member:
    """One of the convolutions that a kernel computes: its result, and the numbers of the segments it reads in the
    order of its weights."""

    y: Plane
    epilogue: Epilogue
    reads: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WinogradShape:
    """Everything the generated code depends on."""

    conv: ConvShape
    """Geometry, and all segments; tile, loop order, result and epilogue are not used."""
    members: tuple[Member, ...]
    outputs: tuple[int, int]
    """Rows and columns of outputs of a tile."""
    group: int
    """Tiles transformed together: a multiple of `rows`."""
    rows: int
    vectors: int
    """Tiles and, at most, output vectors held in registers during the products."""
    prefetch: bool = False
    """Whether the cells of a group's results are asked for during its products: worth it where they left the
    caches."""

    @property
    def axes(self) -> Axes:
        """The arithmetic along rows and columns."""
        return tile_axes(self.outputs, self.conv.kernel, self.conv.stride)

    @property
    def points(self) -> int:
        """Points a tile is evaluated at."""
        return self.axes[0].points * self.axes[1].points

    @property
    def tiles(self) -> tuple[int, int]:
        """Tiles along the rows and columns of the output."""
        return tile_counts(self.members[0].y.extent, self.outputs)

    @property
    def count(self) -> int:
        """Tiles of all samples."""
        return self.conv.batch * self.tiles[0] * self.tiles[1]

    @property
    def units(self) -> Units:
        """Independent units: `rows` tiles by one panel of output channels."""
        return Units(-(-self.count // self.rows), sum(self.panels(m) for m in self.members))

    def lanes(self, member: Member) -> int:
        """Output channels of a panel of weights."""
        return member.y.block * panel_vectors(member.y.blocks, self.vectors)

    def panels(self, member: Member) -> int:
        """Panels of output channels."""
        return member.y.blocks // panel_vectors(member.y.blocks, self.vectors)

    def names(self, member: int) -> dict[str, str]:
        """Pointer parameters of a member: weights, bias, what its epilogue reads, result."""
        number = "" if len(self.members) == 1 else str(member)
        return {n: n + number for n in ("w", "b", *self.members[member].epilogue.parameters, "y")}

    @property
    def parameters(self) -> tuple[str, ...]:
        """Pointers: the segments, then those of every member."""
        own = [n for m in range(len(self.members)) for n in self.names(m).values()]
        return (*segment_names(self.conv.x), *own)


def panel_vectors(blocks: int, most: int) -> int:
    """Output vectors of a panel: the largest number that divides the blocks of the result."""
    return next(v for v in range(min(blocks, most), 0, -1) if blocks % v == 0)


def tile_axes(outputs: Sequence[int], taps: Sequence[int], stride: Sequence[int]) -> Axes:
    """The axes of a convolution's tiles."""
    rows, columns = (Axis(m, k, s) for m, k, s in zip(outputs, taps, stride, strict=True))
    return rows, columns


def tile_counts(extent: Sequence[int], outputs: Sequence[int]) -> tuple[int, int]:
    """Tiles along rows and columns."""
    return -(-extent[0] // outputs[0]), -(-extent[1] // outputs[1])


def products_per_tile(axes: Axes) -> int:
    """Multiplications per tile and channel pair."""
    return sum(len(r.rows) * len(r.columns) * len(r.phases) for r in point_runs(axes))


def pack(weight: np.ndarray, axes: Axes, lanes: int) -> np.ndarray:
    """[O, I, K, L], transformed, in the order the kernel reads it: runs of points, and for each of their points
    [O / lanes][phase][I][lanes]; zero rows fill the last panel. Flat float32."""
    padded = np.zeros((-(-weight.shape[0] // lanes) * lanes, *weight.shape[1:]))
    padded[: weight.shape[0]] = weight
    flat = padded.reshape(-1, weight.shape[2] * weight.shape[3]).T
    moved = {
        (a, b): (np.kron(axes[0].weights(axes[0].phases[a]), axes[1].weights(axes[1].phases[b])) @ flat).reshape(
            axes[0].phases[a].points, axes[1].phases[b].points, -1, lanes, weight.shape[1]
        )
        for a, b in phase_pairs(axes)
    }
    pieces = []
    for run in point_runs(axes):
        some = [moved[p][run.rows.start : run.rows.stop, run.columns.start : run.columns.stop] for p in run.phases]
        pieces.append(np.stack(some, axis=3).transpose(0, 1, 2, 3, 5, 4).astype(np.float32).ravel())
    return np.concatenate(pieces)


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
        self.inputs = T.alloc_buffer((shape.points, shape.group, _pitch(phases * self.depth)), "float32")
        self.products = T.alloc_buffer((shape.points, shape.group, _pitch(lanes)), "float32")
        blocks = sorted({m.y.block for m in shape.members})
        self.input_tile = {b: Registers(shape.points, b) for b in sorted({p.block for p in x})}
        self.output_tile = {b: Registers(shape.outputs[0] * self.across, b) for b in blocks}
        self.acc = {b: Registers(shape.rows * shape.vectors, b) for b in blocks}
        if self.c.lane_unroll > 1:
            self.elements = Registers(shape.rows, self.c.lane_unroll)

    def emit(self) -> None:
        """Groups of tiles of this call's units: transform, multiply, transform back.

        Inputs of a set of tiles of which the call has some panels only are transformed all the same.
        """
        s = self.s
        for part in self.parts:
            with self.made.wanted([part.number]):
                part.out.clear_halo(self.made.begin)
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
                place = [i * self.across + j, t, vector(first + block * x.block, x.block)]
                T.buffer_store(self.inputs, value, place)

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
        v = part.y.block
        acc = self.acc[v]
        cells = [(u, o, u * part.vectors + o) for u in range(self.s.rows) for o in range(part.vectors)]
        for _, _, k in cells:
            acc.put(k, splat(0.0, v))
        for lane, channels in self._channel_runs(part, run):
            unroll = self.c.lane_unroll
            whole = channels // unroll * unroll if unroll > 1 else 0
            if whole:
                step = UNROLLED if whole % (UNROLLED * unroll) == 0 else 1
                with T.serial(whole // (unroll * step)) as c:
                    for i in range(step):
                        self._by_element(part, cells, point, first, ((c * step + i) * unroll, lane), weights)
            if channels - whole:
                with T.serial(channels - whole) as c:
                    self._broadcast(part, cells, point, first, (c + whole, lane), weights)
            weights = weights + channels * part.lanes
        for u, o, k in cells:
            lanes = vector(panel * part.lanes + (part.first_lane + o * v), v)
            T.buffer_store(self.products, acc.get(k), [point, first + u, lanes])

    def _weight(self, part: _Part, weights: Any, channel: Any, o: int) -> Any:
        v = part.y.block
        return part.W[vector(weights + channel * part.lanes + o * v, v)]

    def _broadcast(
        self, part: _Part, cells: Cells, point: Any, first: Any, at: tuple[Any, int], weights: Any
    ) -> None:
        """One channel (`at`: its number, the lane of channel 0) of every tile by its weights."""
        acc = self.acc[part.y.block]
        for u, o, k in cells:
            value = splat(self.inputs[point, first + u, at[0] + at[1]], part.y.block)
            acc.put(k, acc.get(k) + value * self._weight(part, weights, at[0], o))

    def _by_element(
        self, part: _Part, cells: Cells, point: Any, first: Any, at: tuple[Any, int], weights: Any
    ) -> None:
        """Some channels from `at` on: one vector of them per tile, multiplied element by element."""
        acc = self.acc[part.y.block]
        for u in range(self.s.rows):
            lanes = vector(at[0] + at[1], self.c.lane_unroll)
            self.elements.put(u, self.inputs[point, first + u, lanes])
        for c in range(self.c.lane_unroll):
            for u, o, k in cells:
                value = splat(self.elements.lane(u, c), part.y.block)
                acc.put(k, acc.get(k) + value * self._weight(part, weights, at[0] + c, o))

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


def reference(x: np.ndarray, weight: np.ndarray, axes: Axes) -> np.ndarray:
    """One tile of the algorithm in numpy float32: x [T, C, rows read, columns read] and weights [O, C, K, L] give
    [T, O, m, n]."""
    total = np.zeros((axes[0].points, axes[1].points, x.shape[0], weight.shape[0]), np.float32)
    for a, b in phase_pairs(axes):
        pair = (axes[0].phases[a], axes[1].phases[b])
        into, moved = [], weight.astype(np.float64)
        for axis, phase in zip(axes, pair, strict=True):
            into.append(np.stack(axis.transform(phase, list(np.eye(phase.reads, dtype=np.float32)), np.float32)))
        moved = np.einsum("ai,ocij,bj->abco", axes[0].weights(pair[0]), moved, axes[1].weights(pair[1]))
        rows, columns = (
            slice(p.offset, p.offset + s.stride * (p.reads - 1) + 1, s.stride)
            for s, p in zip(axes, pair, strict=True)
        )
        inputs = np.einsum("ai,tcij,bj->abtc", into[0], x[:, :, rows, columns], into[1]).astype(np.float32)
        total[: len(moved), : moved.shape[1]] += np.matmul(inputs, moved.astype(np.float32))
    back = [np.stack(axis.interpolate(list(np.eye(axis.points, dtype=np.float32)), np.float32)) for axis in axes]
    made: np.ndarray = np.einsum("ia,abto,jb->toij", back[0], total, back[1]).astype(np.float32)
    return made
