"""Transposed convolutions on drawn shapes, each with several tiles; what is left to the generic route."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler.codegen.templates.transposed import axis_phases
from tests.codegen.test_generate import check
from tests.graphs import Builder


@pytest.mark.parametrize("seed", range(16))
def test_drawn_shapes(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    stride = tuple(int(s) for s in rng.integers(1, 4, 2))
    kernel = tuple(int(s + n) for s, n in zip(stride, rng.integers(0, 4, 2), strict=True))
    dilation = tuple(int(rng.integers(1, 3)) if s == 1 else 1 for s in stride)
    covered = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    pads = tuple(int(rng.integers(0, c + 1)) for c in (*covered, *covered))
    more = tuple(int(rng.integers(0, s)) for s in stride)
    extent = tuple(int(n) for n in rng.integers(3, 12, 2))
    channels, out = (int(c) for c in rng.choice([1, 3, 8, 20, 24, 40], 2))
    b = Builder(seed=seed)
    x = b.input("x", int(rng.integers(1, 3)), channels, *extent)
    attrs = {"strides": stride, "dilations": dilation, "pads": pads, "output_padding": more}
    y = b.apply("ConvTranspose", x, b.weight(channels, out, *kernel), b.weight(out), **attrs)
    b.task("t", b.apply("Relu", y))
    b.task("u", b.conv(y, 8, 3, pads=(1, 1, 1, 1)), y)
    assert "transposed" in check(b.done(), tmp_path, algorithm="transposed", rank=seed % 6)


def test_one_axis_with_residual_and_segments(tmp_path: Path) -> None:
    """Upsampling of a sequence from two joined inputs, added to another branch."""
    b = Builder()
    left, right = b.input("x", 1, 20, 9), b.input("z", 1, 4, 9)
    joined = b.apply("Concat", b.apply("Relu", left), b.apply("Relu", right), axis=1)
    y = b.apply("ConvTranspose", joined, b.weight(24, 12, 4), b.weight(12), strides=(2,), pads=(1, 1))
    other = b.apply("Conv", b.input("r", 1, 3, 18), b.weight(12, 3, 3), pads=(1, 1))
    b.task("t", b.apply("Sigmoid", b.apply("Add", y, other)))
    used = check(b.done(), tmp_path)
    assert "transposed" in used and used <= {"transposed", "conv", "copy", "generic"}


@pytest.mark.parametrize(
    "attrs",
    [{"strides": (3, 3)}, {"strides": (2, 2), "dilations": (2, 2)}, {"strides": (2, 2), "group": 2}],
    ids=["stride beyond the kernel", "stride and dilation", "groups"],
)
def test_the_rest_takes_the_generic_route(attrs: dict, tmp_path: Path) -> None:
    b = Builder()
    b.task("t", b.apply("ConvTranspose", b.input("x", 1, 4, 5, 6), b.weight(4, 6, 2, 2), **attrs))
    assert "transposed" not in check(b.done(), tmp_path)


def test_phases_share_the_taps_out() -> None:
    """Stride 3, five taps, one cell of padding: output cells 0, 3, 6 get taps 1 and 4, and so on."""
    phases = axis_phases(8, 5, 3, 1, 1)
    assert [(p.start, p.count, p.first_tap, p.taps, p.pad) for p in phases] == [
        (0, 3, 1, 2, 1),
        (1, 3, 2, 1, 0),
        (2, 2, 0, 2, 0),
    ]
    assert [p.border(3, 1) for p in phases] == [(1, 0), (0, 0), (0, 0)]
