"""Depthwise kernels on drawn shapes, each with several of its tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler.codegen.templates.depthwise import tile_products
from tests.codegen.test_generate import check
from tests.graphs import Builder


def drawn(rng: np.random.Generator) -> tuple[int, tuple[int, int], tuple[int, int], dict[str, tuple[int, ...]]]:
    """Channels, input extent, kernel and attributes of a depthwise convolution with at least one output cell."""
    kernel = tuple(int(k) for k in rng.integers(1, 6, 2))
    dilations = tuple(int(d) for d in rng.integers(1, 3, 2))
    pads = tuple(int(p) for p in rng.integers(0, 4, 4))
    covered = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    extent = tuple(int(c + n) for c, n in zip(covered, rng.integers(0, 14, 2), strict=True))
    strides = tuple(int(s) for s in rng.integers(1, 4, 2))
    attrs = {"dilations": dilations, "pads": pads, "strides": strides}
    return int(rng.choice([3, 5, 8, 16, 17, 24, 40, 72])), extent, kernel, attrs


@pytest.mark.parametrize("seed", range(12))
def test_drawn_shapes(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    channels, extent, kernel, attrs = drawn(rng)
    b = Builder(seed=seed)
    x = b.input("x", int(rng.integers(1, 3)), channels, *extent)
    y = b.apply("Conv", x, b.weight(channels, 1, *kernel), b.weight(channels), group=channels, **attrs)
    b.task("t", b.apply("Relu", y))
    b.task("u", y)
    assert "depthwise" in check(b.done(), tmp_path, algorithm="depthwise", rank=seed % 6)


def test_every_product_of_a_tile_is_there_once() -> None:
    """Two rows and three columns of a dilated 3x2 kernel at stride 2: 36 products, a cell per place they read."""
    tile = tile_products((3, 2), (2, 2), (2, 1), 2, 3)
    products = [(cell, p) for cell, found in tile.items() for p in found]
    assert len(products) == len({p for _, p in products}) == 2 * 3 * 3 * 2
    assert all(cell == (2 * h + 2 * kh, 2 * u + kw) for cell, (h, u, kh, kw) in products)
    assert list(tile) == sorted(tile)
