"""1x1 convolution with seven products instead of eight: the identity, compiled results, where it is proposed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler.codegen.generate import generate
from compiler.codegen.groups import make_groups
from compiler.codegen.planner import candidates, situation
from compiler.codegen.strategies import strassen as strategy
from compiler.codegen.target import find_target
from compiler.codegen.templates import strassen
from compiler.ir.graph import Graph
from compiler.ir.types import ValueRef
from tests.codegen.emulated import check_emulated, linkable
from tests.codegen.test_generate import check, preferring
from tests.graphs import Builder


def wide(b: Builder, channels: int, *size: int) -> ValueRef:
    """An activation of so many channels."""
    return b.apply("Relu", b.conv(b.input("x", *size[:1], 4, *size[1:]), channels, 1))


def one_layer(inputs: int, outputs: int, *size: int, stride: int = 1) -> Graph:
    b = Builder(seed=1)
    b.task("t", b.conv(wide(b, inputs, 1, *size), outputs, 1, strides=(stride, stride)))
    return b.done()


def proposed(graph: Graph, target: str = "host") -> list[tuple[int, ...]]:
    """Tiles proposed for the last convolution."""
    groups = make_groups(graph)
    known = situation(graph, groups, find_target(target))
    return [c.choice.tile for g in groups[-1:] for c in candidates(g, known) if c.choice.algorithm == "strassen"]


def test_seven_products_of_integers_are_exact() -> None:
    """Small integers leave no rounding: a wrong sign or sum anywhere shows."""
    rng = np.random.default_rng(0)
    weight, x = rng.integers(-8, 9, (6, 20)).astype(np.float32), rng.integers(-8, 9, (20, 2, 5)).astype(np.float32)
    made = strassen.reference(x, weight, [8, 12])
    np.testing.assert_array_equal(made, np.tensordot(weight, x, 1))


def test_weights_are_packed_panel_by_panel_in_the_order_of_the_products() -> None:
    weight = np.random.default_rng(1).normal(size=(8, 6)).astype(np.float32)
    packed = strassen.pack(weight, [4, 2], 2)
    order = [0, 1, 4, 2, 3, 5]
    sums = strassen.sums_of_weights(weight[:, order])
    assert packed.shape == (2, strassen.PRODUCTS, 3, 2)
    for panel in range(2):
        for product, exact in enumerate(sums):
            np.testing.assert_allclose(packed[panel, product], exact[2 * panel : 2 * panel + 2].T, rtol=1e-6)


@pytest.mark.parametrize(("target", "rank"), [("host", 0), ("host", 7), ("x86-64-v3", 0), ("x86-64-v3", 1000)])
def test_compiled_layers_with_everything_around_them(target: str, rank: int, tmp_path: Path) -> None:
    """Residual, stride, two segments, a border around the result, odd widths, two samples; any units."""
    b = Builder(seed=rank)
    x = b.input("x", 2, 4, 8, 18)
    a = b.apply("Relu", b.conv(x, 128, 1, strides=(2, 2)))
    c = b.apply("Relu", b.conv(x, 64, 1, strides=(2, 2)))
    y = b.apply("Relu", b.apply("Add", b.conv(a, 128, 1), a))
    both = b.conv(b.apply("Concat", y, c, axis=1), 160, 1)
    z = b.conv(b.apply("Relu", both), 128, 1, strides=(2, 2))
    b.task("t", b.conv(z, 8, 3, pads=(1, 1, 1, 1)))
    b.task("u", y)
    assert "strassen" in check(b.done(), tmp_path, algorithm="strassen", rank=rank, target=target)


@pytest.mark.parametrize(("size", "rank"), [((7, 7), 0), ((5, 4), 3), ((1, 11), 0), ((1, 11), 3)])
def test_images_of_an_odd_number_of_rows_are_halved_by_cells(
    size: tuple[int, int], rank: int, tmp_path: Path
) -> None:
    """Strided from an even image, residual, and into a border; two samples."""
    b = Builder(seed=2)
    x = b.input("x", 2, 4, 2 * size[0], 2 * size[1])
    wider = b.apply("Relu", b.conv(x, 128, 1))
    y = b.apply("Relu", b.conv(wider, 128, 1, strides=(2, 2)))
    z = b.apply("Relu", b.apply("Add", b.conv(y, 128, 1), y))
    b.task("t", b.conv(z, 8, 3, pads=(1, 1, 1, 1)))
    b.task("u", y)
    assert "strassen" in check(b.done(), tmp_path, algorithm="strassen", rank=rank)


@pytest.mark.parametrize(
    "layer",
    [
        one_layer(128, 128, 15, 14),  # an odd number of rows, and many cells
        one_layer(144, 128, 8, 8),  # nine blocks of input channels
        one_layer(128, 120, 8, 8),  # a block of output channels that is not full
        one_layer(96, 128, 8, 8),  # too few products to repay the sums
    ],
    ids=["rows", "input", "output", "few"],
)
def test_layers_that_do_not_halve_are_left_to_others(layer: Graph) -> None:
    assert proposed(layer, "x86-64-v4") == []


def test_proposed_only_where_the_error_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = one_layer(128, 128, 8, 8)
    assert 0 < strategy.error(make_groups(layer)[-1].anchor, [128]) < strategy.MOST_ERROR
    assert proposed(layer)
    monkeypatch.setattr(strategy, "MOST_ERROR", 0.0)
    assert not proposed(layer)


def test_the_rule_takes_it_where_sums_are_long() -> None:
    """Measured, 256 to 1024 channels at 14 x 14 are a tenth faster, alone and within ResNet-50."""
    layer = one_layer(256, 1024, 14, 14)
    groups = make_groups(layer)
    known = situation(layer, groups, find_target("x86-64-v4"))
    best = min(candidates(groups[-1], known), key=lambda c: c.seconds)
    assert best.choice.algorithm == "strassen"


@pytest.mark.cross
@pytest.mark.parametrize(
    ("name", "size"), [("aarch64-cortex-a53", (4, 6)), ("aarch64-cortex-a76", (5, 7)), ("armv7-neon", (4, 6))]
)
def test_under_emulation(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    """Rows in pairs; and halves of all cells, whose places 64-bit ARM calculates, and the last one is missing."""
    b = Builder()
    h = b.apply("Relu", b.conv(wide(b, 128, 1, *size), 144, 1))
    b.task("t", b.conv(h, 5, 3, pads=(1, 1, 1, 1)))
    target, graph = linkable(name), b.done()
    library = generate(graph, target, sources=preferring(graph, name, "strassen"))
    assert "strassen" in {k.template for k in library.kernels}
    check_emulated(library, graph, target, tmp_path)
