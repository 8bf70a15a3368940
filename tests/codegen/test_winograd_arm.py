"""Winograd kernels for ARM, where the transformed inputs of several tiles lie side by side, under emulation."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.codegen.generate import generate
from tests.codegen.emulated import check_emulated, linkable
from tests.codegen.test_generate import preferring
from tests.graphs import Builder


@pytest.mark.cross
@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        ("aarch64-cortex-a76", "winograd2x2"),
        ("aarch64-cortex-a53", "winograd4x4"),
        ("armv7-neon", "winograd4x2"),
    ],
)
def test_under_emulation(name: str, algorithm: str, tmp_path: Path) -> None:
    """Channels that fill no vector, inputs in two buffers, two phases, tiles that fill no set, two samples."""
    b = Builder()
    x = b.input("x", 2, 18, 11, 9)
    joined = b.apply("Concat", x, b.apply("Abs", x), axis=1)
    b.task("t", b.apply("Relu", b.conv(joined, 22, 3, pads=(1,) * 4)))
    b.task("u", b.conv(joined, 16, 3, pads=(1,) * 4, strides=(2, 2)))
    target, graph = linkable(name), b.done()
    library = generate(graph, target, sources=preferring(graph, name, algorithm))
    assert [k.template for k in library.kernels].count(algorithm) == 2
    check_emulated(library, graph, target, tmp_path)
