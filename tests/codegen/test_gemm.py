"""The matrix product template: every register tile, ranges of units, other instruction sets, against numpy."""

from __future__ import annotations

import ctypes
import itertools
from pathlib import Path

import numpy as np
import pytest

from compiler.codegen.lower import compile_kernels
from compiler.codegen.strategies.matrix import register_tiles, rows_in_a_set, tile_seconds
from compiler.codegen.target import Target, find_target
from compiler.codegen.templates import gemm
from compiler.codegen.templates.product import balanced, pieces
from tests.codegen.native import aligned, loaded

DRAWN = np.random.default_rng(3).integers(1, 70, (12, 3)).tolist()
SHAPES = [(r, k, n) for r, k, n in DRAWN] + [(1, 64, 130), (29, 13, 33)]


def floats(array: np.ndarray) -> np.ndarray:
    """The elements at a multiple of 64 bytes."""
    copy = aligned(array.nbytes).view(np.float32)
    copy[:] = array.ravel()
    return copy


def load(shapes: dict[str, gemm.GemmShape], target: Target, folder: Path) -> ctypes.CDLL:
    compiled = compile_kernels({k: gemm.gemm_kernel(s) for k, s in shapes.items()}, target)
    return loaded(compiled.objects.values(), folder)


def run(kernel, shape: gemm.GemmShape, x: np.ndarray, w: np.ndarray, b: np.ndarray, cuts: list[int]) -> np.ndarray:
    """The product, computed in the ranges between the cuts; the result lies at an odd address."""
    out = np.full(shape.rows * shape.columns + 2, 7, np.float32)
    bias = np.zeros(shape.panels * shape.lanes, np.float32)
    bias[: shape.columns] = b
    arrays = [floats(x), floats(gemm.pack(w, shape.lanes)), floats(bias)]
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*arrays, out[1:])]
    for begin, end in itertools.pairwise(cuts):
        assert kernel(*pointers, ctypes.c_int32(begin), ctypes.c_int32(end)) == 0
    assert out[0] == out[-1] == 7, "written beside the result"
    return out[1:-1].reshape(shape.rows, shape.columns)


def tiles(
    rows: int, inner: int, columns: int, block: int, target: Target, count: int, rng: np.random.Generator
) -> list[tuple[int, int, int]]:
    """A choice of register tiles of a shape."""
    found = sorted(register_tiles(rows, -(-columns // block), target, inner))
    picked = rng.choice(len(found), min(count, len(found)), replace=False)
    return [found[i] for i in picked]


@pytest.mark.parametrize("name", ["host", "x86-64-v3"])
@pytest.mark.parametrize("extent", SHAPES, ids=lambda e: "x".join(map(str, e)))
def test_every_tile_computes_the_same(name: str, extent: tuple[int, int, int], tmp_path: Path) -> None:
    rows, inner, columns = extent
    target, host = find_target(name), find_target("host")
    if target.arch != host.arch or target.lanes > host.lanes:
        pytest.skip(f"this processor is {host.preset}")
    rng = np.random.default_rng(extent)
    made = [
        gemm.GemmShape(rows, inner, columns, block, tile=tile, input_lanes=lanes)
        for block in (4, target.lanes)
        for lanes in (1, 4)
        for tile in tiles(rows, inner, columns, block, target, 2, rng)
    ]
    shapes = {f"k{i}": s for i, s in enumerate(made)}
    library = load(shapes, target, tmp_path)
    x, w, b = (rng.normal(size=s).astype(np.float32) for s in ((rows, inner), (inner, columns), (columns,)))
    want = x.astype(np.float64) @ w + b
    for symbol, shape in shapes.items():
        kernel = getattr(library, symbol)
        got = run(kernel, shape, x, w, b, [0, shape.parts])
        assert np.abs(got - want).max() <= 1e-6 * inner**0.5 * max(np.abs(want).max(), 1), shape
        cut = int(rng.integers(0, shape.parts + 1))
        np.testing.assert_array_equal(run(kernel, shape, x, w, b, [0, cut, shape.parts]), got)


@pytest.mark.parametrize("name", ["aarch64-cortex-a76", "armv7-neon"])
def test_compiles_for_arm(name: str) -> None:
    target = find_target(name)
    shapes = [gemm.GemmShape(9, 21, 14, 4, tile=t, input_lanes=target.input_lanes) for t in ((4, 2, 1), (1, 3, 2))]
    assert compile_kernels({f"k{i}": gemm.gemm_kernel(s) for i, s in enumerate(shapes)}, target).objects


def test_tiles_fit_the_registers() -> None:
    for name in ("x86-64-v3", "x86-64-v4", "aarch64-cortex-a72", "armv7-neon"):
        target = find_target(name)
        found = list(register_tiles(40, 8, target, 512))
        assert found
        assert all(r * v * c + 2 <= target.vector_registers for r, v, c in found)


def test_predicted_time_prefers_full_tiles() -> None:
    """The best tile of a large product comes near the peak of the machine."""
    for name in ("x86-64-v3", "x86-64-v4", "aarch64-cortex-a76"):
        target = find_target(name)
        best = min(tile_seconds(96, 512, 512, target.lanes, t, target) for t in register_tiles(96, 8, target, 512))
        assert best < 1.1 * 2 * 96 * 512 * 512 / target.machine.peak_flops


def test_rows_that_share_a_cache_set_make_low_tiles() -> None:
    """At a stride of 4096 bytes more than eight rows throw each other out of the first-level cache."""
    assert rows_in_a_set(14, 1024) == 14
    assert rows_in_a_set(14, 512) == 7
    assert rows_in_a_set(14, 1000) == 1
    target = find_target("x86-64-v4")

    def best(inner: int) -> tuple[int, int, int]:
        return min(
            register_tiles(128, 16, target, inner),
            key=lambda t: tile_seconds(128, inner, 256, target.lanes, t, target),
        )

    assert best(1024)[0] <= 8 < best(1000)[0]


@pytest.mark.parametrize(("extent", "most"), [(1, 4), (12, 4), (13, 4), (29, 14), (5, 8)])
def test_balanced_tiles_cover_all_rows(extent: int, most: int) -> None:
    count, base, longer = balanced(extent, most)
    assert count * base + longer == extent
    assert base + bool(longer) <= most
    assert 0 <= longer < count


@pytest.mark.parametrize("count", range(1, 17))
def test_pieces_cover_the_lanes(count: int) -> None:
    found = pieces(count, 16)
    assert [start for start, _ in found] == list(np.cumsum([0, *(w for _, w in found)])[:-1])
    assert sum(w for _, w in found) == count
    assert len(found) == count.bit_count()
