"""What a Winograd kernel depends on, how its weights are packed, and one tile of it in numpy; nothing of TVM.

At stride 2 the phases of the input (`winograd_axis`) are further channels of the products at a point. Weights are
transformed in float64 when they are packed.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from compiler.codegen.templates.blocked import Epilogue, Plane
from compiler.codegen.templates.conv import ConvShape, segment_names
from compiler.codegen.templates.units import Units
from compiler.codegen.templates.winograd_axis import Axis

Axes = tuple[Axis, Axis]
"""The arithmetic along rows and columns."""


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


@functools.cache
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


@functools.cache
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


def reference(x: np.ndarray, weight: np.ndarray, axes: Axes) -> np.ndarray:
    """One tile of the algorithm in numpy float32: x [T, C, rows read, columns read] and weights [O, C, K, L] give
    [T, O, m, n]."""
    total = np.zeros((axes[0].points, axes[1].points, x.shape[0], weight.shape[0]), np.float32)
    for a, b in phase_pairs(axes):
        pair = (axes[0].phases[a], axes[1].phases[b])
        into, moved = [], weight.astype(np.float64)
        for axis, phase in zip(axes, pair, strict=True):
            into.append(np.stack(axis.transform(phase, list(np.eye(phase.reads, dtype=np.float32)), np.float32)))
        moved = np.einsum(
            "ai,ocij,bj->abco", axes[0].weights(pair[0]), moved, axes[1].weights(pair[1]), optimize=True
        )
        rows, columns = (
            slice(p.offset, p.offset + s.stride * (p.reads - 1) + 1, s.stride)
            for s, p in zip(axes, pair, strict=True)
        )
        inputs = np.einsum("ai,tcij,bj->abtc", into[0], x[:, :, rows, columns], into[1], optimize=True).astype(
            np.float32
        )
        total[: len(moved), : moved.shape[1]] += np.matmul(inputs, moved.astype(np.float32))
    back = [np.stack(axis.interpolate(list(np.eye(axis.points, dtype=np.float32)), np.float32)) for axis in axes]
    made: np.ndarray = np.einsum("ia,abto,jb->toij", back[0], total, back[1], optimize=True).astype(np.float32)
    return made
