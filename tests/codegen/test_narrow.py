"""Convolutions with few results: vectors along the columns, or along the input channels with their lanes added."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler import parse_pass
from compiler.codegen.generate import generate
from compiler.codegen.groups import make_groups
from compiler.codegen.layouts import planar_channels
from compiler.codegen.templates.planar import starts
from compiler.machine import CORTEX_A72, X86_64_V4
from tests.codegen.emulated import check_emulated, linkable
from tests.codegen.test_generate import check, preferring
from tests.graphs import Builder


def drawn(seed: int, inputs: int, outputs: int, *, column_stride: int):
    """A convolution with an activation; another one adds to its result, a wide one reads it."""
    rng = np.random.default_rng(seed)
    kernel = tuple(int(k) for k in rng.choice([1, 2, 3, 5, 10], 2))
    dilation = tuple(int(d) for d in rng.integers(1, 3, 2))
    stride = (int(rng.integers(1, 3)), column_stride)
    pads = tuple(int(rng.integers(0, 3)) for _ in range(4))
    extent = tuple(int(n) for n in rng.integers(1, 12, 2) + [d * k for d, k in zip(dilation, kernel, strict=True)])
    attrs = {"strides": stride, "dilations": dilation, "pads": pads}
    b = Builder(seed=seed)
    x = b.input("x", int(rng.integers(1, 3)), inputs, *extent)
    y = b.apply("Relu", b.apply("Conv", x, b.weight(outputs, inputs, *kernel), b.weight(outputs), **attrs))
    again = b.conv(y, outputs, 3, bias=False, pads=(1, 1, 1, 1))
    b.task("t", b.apply("Sigmoid", b.apply("Add", again, y)))
    b.task("u", b.conv(y, 8, 3, pads=(1, 1, 1, 1)), y)
    return b.done()


@pytest.mark.parametrize("target", ["host", "x86-64-v3"])
@pytest.mark.parametrize("seed", range(8))
def test_few_channels_to_few(seed: int, target: str, tmp_path: Path) -> None:
    inputs, outputs = (int(c) for c in np.random.default_rng(seed).integers(1, 5, 2))
    graph = drawn(seed, inputs, outputs, column_stride=1)
    assert "planar" in check(graph, tmp_path, target=target, algorithm="planar", rank=seed % 5)


@pytest.mark.parametrize("target", ["host", "x86-64-v3"])
@pytest.mark.parametrize("seed", range(8))
def test_many_channels_to_few(seed: int, target: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    graph = drawn(seed, int(rng.integers(5, 40)), int(rng.integers(1, 5)), column_stride=int(rng.integers(1, 3)))
    assert "lane-sums" in check(graph, tmp_path, target=target, algorithm="lane-sums", rank=seed % 5)


@pytest.mark.parametrize("target", ["aarch64-cortex-a53", "armv7-neon"])
@pytest.mark.parametrize(("inputs", "algorithm"), [(3, "planar"), (22, "lane-sums")])
def test_under_emulation(inputs: int, algorithm: str, target: str, tmp_path: Path) -> None:
    known = linkable(target)
    graph = drawn(3, inputs, 3, column_stride=1)
    library = generate(graph, known, sources=preferring(graph, target, algorithm))
    assert algorithm in {k.template for k in library.kernels}
    check_emulated(library, graph, known, tmp_path)


@pytest.mark.parametrize(("channels", "algorithm"), [((2, 1), "planar"), ((20, 23), "lane-sums")])
def test_one_axis_and_joined_inputs(channels: tuple[int, int], algorithm: str, tmp_path: Path) -> None:
    """A sequence from two joined inputs."""
    b = Builder()
    left, right = (b.input(n, 1, c, 37) for n, c in zip("xz", channels, strict=True))
    joined = b.apply("Concat", b.conv(left, channels[0], 1), b.conv(right, channels[1], 1), axis=1)
    b.task("t", b.apply("Tanh", b.conv(joined, 2, 3, pads=(1, 1))))
    used = check(b.done(), tmp_path, algorithm=algorithm)
    assert algorithm in used and used <= {"planar", "lane-sums", "conv", "copy", "generic"}


@pytest.mark.parametrize("channels", [(3, 2), (32, 2)], ids=["planar", "lane-sums"])
def test_another_reader_wants_a_border_around_the_input(channels: tuple[int, int], tmp_path: Path) -> None:
    """Then the rows of a 1x1 convolution do not follow each other, and are shorter than a vector."""
    inputs, outputs = channels
    b = Builder()
    x = b.apply("Relu", b.input("x", 1, inputs, 5, 5))
    b.task("few", b.conv(x, outputs, 1))
    b.task("wide", b.apply("ConvTranspose", x, b.weight(inputs, 8, 3, 3), strides=(2, 2)))
    algorithm = "planar" if inputs < 5 else "lane-sums"
    assert {algorithm, "transposed"} <= check(b.done(), tmp_path, algorithm=algorithm)


def test_the_last_vector_of_a_row_ends_with_it() -> None:
    for width in range(1, 70):
        for lanes in (1, 2, 4, 8, 16):
            for vectors in (1, 2, 3) if lanes <= width else ():
                columns = [
                    left + j * lanes * vectors + offset + lane
                    for left, offsets, repeats in starts(width, lanes, vectors)
                    for j in range(repeats)
                    for offset in offsets
                    for lane in range(lanes)
                ]
                assert set(columns) == set(range(width))
                assert len(columns) < width + lanes


def groups_of(make) -> tuple:
    b = Builder()
    make(b)
    return make_groups(b.done())


def test_images_are_planar_where_every_maker_can_store_them_so() -> None:
    def image_to_image(b: Builder) -> None:
        y = b.conv(b.input("x", 1, 3, 9, 9), 3, 3)
        b.task("t", b.conv(b.conv(y, 24, 3), 2, 1))

    def also_depthwise(b: Builder) -> None:
        x = b.input("x", 1, 3, 9, 9)
        y = b.conv(x, 3, 3)
        b.task("t", b.conv(y, 3, 3, group=3), b.conv(y, 2, 3), b.conv(b.conv(x, 24, 3), 4, 1))

    assert planar_channels(groups_of(image_to_image), X86_64_V4) == {2, 3}
    assert planar_channels(groups_of(also_depthwise), X86_64_V4) == {4}
    assert planar_channels(groups_of(also_depthwise), CORTEX_A72) == set(), "four lanes are full of four channels"


def test_weights_with_levels_keep_their_blocks() -> None:
    def nested(b: Builder) -> None:
        b.task("t", b.conv(b.conv(b.input("x", 1, 3, 9, 9), 16, 3), 4, 3))

    b = Builder()
    nested(b)
    graph = parse_pass("nest{levels=0.0+0.5,pattern=block4x1,dense=()}")(b.done())
    assert planar_channels(make_groups(graph), X86_64_V4) == set()
