"""Grouped convolutions on drawn shapes, each with several tiles; the blocks that a panel reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler.codegen.templates.grouped import Grouping
from tests.codegen.test_generate import check
from tests.graphs import Builder


@pytest.mark.parametrize("seed", range(16))
def test_drawn_shapes(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    groups = int(rng.integers(2, 6))
    inputs, outputs = int(rng.integers(4, 30)), int(rng.integers(1, 30))
    kernel = tuple(int(k) for k in rng.choice([1, 3], 2))
    pads = tuple(int(rng.integers(0, 2)) for _ in range(4))
    strides = tuple(int(s) for s in rng.integers(1, 3, 2))
    b = Builder(seed=seed)
    x = b.input("x", int(rng.integers(1, 3)), inputs * groups, int(rng.integers(3, 11)), int(rng.integers(3, 11)))
    weight = b.weight(outputs * groups, inputs, *kernel)
    attrs = {"group": groups, "pads": pads, "strides": strides}
    y = b.apply("Conv", x, weight, b.weight(outputs * groups), **attrs)
    b.task("t", b.apply("Relu", y))
    b.task("u", b.conv(y, 8, 3, pads=(1, 1, 1, 1)), y)
    assert "grouped" in check(b.done(), tmp_path, algorithm="grouped", rank=seed % 6)


def test_panels_read_the_blocks_of_their_groups() -> None:
    """Three groups of 12 inputs in blocks of 8 (12 begins inside one); panels of 16 outputs, 20 to a group."""
    grouping = Grouping(12, 20, 3, 8, 16)
    assert grouping.blocks == 5
    assert (
        grouping.span == 4
    )  # outputs 16 to 31 need groups 0 and 1: inputs 0 to 23 are three blocks; 32 to 47 four
    assert [grouping.first_block(p) for p in range(4)] == [0, 0, 1, 1]


def test_aligned_groups_waste_nothing() -> None:
    grouping = Grouping(32, 16, 4, 16, 16)
    assert grouping.channels == 32
    assert [grouping.first_block(p) for p in range(4)] == [0, 2, 4, 6]
