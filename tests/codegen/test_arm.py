"""Templates without an emulated test of their own; patches wider than the registers; levels on 32 bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler import parse_pass
from compiler.codegen.generate import generate
from compiler.ir.graph import Graph
from tests.codegen.emulated import check_emulated, linkable
from tests.graphs import Builder


def mixed() -> Graph:
    """Siblings of two tasks, a grouped convolution, matrix products and a recurrent layer; no extent is a multiple
    of the lanes."""
    b = Builder()
    image = b.input("x", 1, 3, 9, 11)
    both, own = (b.apply("Relu", b.conv(image, n, 3, pads=(1,) * 4)) for n in (14, 6))
    b.task("a", b.apply("Tanh", b.conv(both, 13, 3, pads=(1,) * 4)))
    b.task("b", b.conv(b.apply("Concat", both, own, axis=1), 7, 3, pads=(1,) * 4))
    grouped = b.apply("Sigmoid", b.conv(both, 22, 3, strides=(2, 2), group=2))
    flat = b.apply("Flatten", grouped)
    b.task("c", b.apply("Gemm", flat, b.weight(b.graph.value(flat).shape[1], 5), b.weight(5)), grouped)
    sequence = b.input("sequence", 6, 3, 5)
    weights = [b.weight(2, 3 * 9, 5), b.weight(2, 3 * 9, 9), b.weight(2, 6 * 9)]
    b.task("d", b.apply("GRU", sequence, *weights, hidden_size=9, direction="bidirectional"))
    return b.done()


@pytest.mark.cross
@pytest.mark.parametrize("name", ["aarch64-cortex-a76", "armv7-neon"])
def test_grouped_siblings_products_and_recurrent(name: str, tmp_path: Path) -> None:
    target, graph = linkable(name), mixed()
    library = generate(graph, target)
    used = {k.template for k in library.kernels}
    assert {"grouped", "gemm", "recurrent"} <= used
    assert any(u.endswith("-siblings") for u in used)
    check_emulated(library, graph, target, tmp_path)


@pytest.mark.cross
@pytest.mark.parametrize(("name", "channels"), [("aarch64-cortex-a76", 8), ("armv7-neon", 1)])
def test_patches_with_more_inputs_than_registers(name: str, channels: int, tmp_path: Path) -> None:
    """Inputs of a position lie side by side with those read ahead for it, more than there are registers."""
    target = linkable(name)
    b = Builder()
    b.task("a", b.apply("Relu", b.conv(b.input("x", 1, channels, 1, 100), 9, (1, 32), strides=(1, 32))))
    graph = b.done()
    check_emulated(generate(graph, target), graph, target, tmp_path)


@pytest.mark.cross
def test_levels_on_32_bits(tmp_path: Path) -> None:
    target = linkable("armv7-neon")
    b = Builder()
    x = b.apply("Relu", b.conv(b.input("x", 1, 12, 5, 6), 20, 3))
    b.task("a", b.conv(x, 24, 1))
    b.task("b", b.apply("Gemm", b.apply("Flatten", x), b.weight(16, 240), b.weight(16), transB=1))
    graph = parse_pass("nest{levels=0.1+0.6,dense=()}")(b.done())
    library = generate(graph, target)
    assert len(library.levels) == 2 and "block-sparse" in {k.template for k in library.kernels}
    check_emulated(library, graph, target, tmp_path)
