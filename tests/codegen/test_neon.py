"""Innermost loops for 64-bit ARM, by their disassembly: multiply-adds, by element, and nothing spilled.

No ARM core is at hand, and emulated time says nothing; what LLVM made of a kernel's hot loop does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from benchmarks.disassembly import Loop, disassembler, loops_of
from compiler.codegen.generate import generate
from compiler.codegen.target import find_target
from compiler.ir.encoding import BlockSparse
from compiler.ir.graph import Graph
from compiler.ir.types import ValueRef
from tests.codegen.test_generate import preferring
from tests.graphs import Builder
from tests.sparse import sparse_weight

TARGET = "aarch64-cortex-a76"


def hot_loops(objects: Sequence[bytes]) -> list[Loop]:
    """Of all innermost loops of object files those with most sums, and of these with most vector multiply-adds."""
    loops = [loop for code in objects for loop in loops_of(code, "aarch64")]
    most = max((loop.accumulators, loop.multiply_adds) for loop in loops)
    return [loop for loop in loops if (loop.accumulators, loop.multiply_adds) == most]


def network(layer: Callable[[Builder], ValueRef]) -> Graph:
    """A graph of one layer."""
    b = Builder()
    b.task("t", layer(b))
    return b.done()


def image(b: Builder) -> ValueRef:
    """64 channels of 14 x 14."""
    return b.input("x", 1, 64, 14, 14)


def wide(b: Builder) -> ValueRef:
    """128 channels of 14 x 14."""
    return b.input("x", 1, 128, 14, 14)


def attention(b: Builder) -> ValueRef:
    """Products of all pairs of 64 tokens, for 8 heads."""
    q, k = b.input("q", 8, 64, 64), b.input("k", 8, 64, 64)
    return b.apply("MatMul", q, b.apply("Transpose", k, perm=(0, 2, 1)))  # type: ignore[no-any-return]


def sparse(b: Builder) -> ValueRef:
    """3x3 with weights in blocks of 16."""
    weight = sparse_weight(b.graph, BlockSparse(0, (16, 1)), (64, 64, 3, 3))
    return b.apply("Conv", image(b), weight, kernel_shape=(3, 3), pads=(1,) * 4)


CASES: dict[str, tuple[Callable[[Builder], ValueRef], str, float, bool]] = {
    # layer, algorithm, least share of multiply-adds, whether all of them are by element
    "3x3": (lambda b: b.conv(image(b), 64, 3, pads=(1,) * 4), "conv", 0.85, True),
    "3x3 at stride 2": (lambda b: b.conv(image(b), 64, 3, pads=(1,) * 4, strides=(2, 2)), "conv", 0.85, True),
    "3 channels": (lambda b: b.conv(b.input("x", 1, 3, 30, 30), 32, 3, strides=(2, 2)), "conv", 0.83, True),
    "1x1": (lambda b: b.conv(image(b), 64, 1), "conv", 0.85, True),
    "strassen": (lambda b: b.conv(wide(b), 128, 1), "strassen", 0.85, True),
    "winograd 2x2": (lambda b: b.conv(wide(b), 64, 3, pads=(1,) * 4), "winograd2x2", 0.85, True),
    "winograd 4x4": (lambda b: b.conv(image(b), 64, 3, pads=(1,) * 4), "winograd4x4", 0.85, True),
    "winograd 6x6": (
        lambda b: b.conv(b.input("x", 1, 64, 30, 30), 64, 3, pads=(1,) * 4),
        "winograd6x6",
        0.85,
        True,
    ),
    "matrix": (lambda b: b.apply("MatMul", b.input("x", 14, 256), b.weight(256, 64)), "gemm", 0.85, True),
    "two computed operands": (attention, "contraction", 0.85, True),
    "one row": (lambda b: b.apply("MatMul", b.input("x", 1, 256), b.weight(256, 64)), "gemm", 0.6, True),
    "blocks": (sparse, "block-sparse", 0.68, True),
    # a load, a copy of the bias, an activation and a store for 9 products of an output
    "depthwise": (lambda b: b.conv(image(b), 64, 3, pads=(1,) * 4, group=64), "depthwise", 0.6, False),
}


@pytest.mark.skipif(disassembler("aarch64") is None, reason="no disassembler: install binutils-aarch64-linux-gnu")
@pytest.mark.parametrize("case", CASES)
def test_hot_loops_multiply_and_spill_nothing(case: str) -> None:
    layer, algorithm, least, by_element = CASES[case]
    graph = network(layer)
    library = generate(graph, find_target(TARGET), sources=preferring(graph, TARGET, algorithm))
    assert algorithm in {k.template for k in library.kernels}
    loops = hot_loops(library.objects)
    for loop in loops:
        assert loop.spilled == 0, loop.body
        assert loop.by_element == (loop.multiply_adds if by_element else 0), loop.body
        assert algorithm == "block-sparse" or not any("sxtw" in i.operands for i in loop.body), loop.body
    multiply_adds, instructions = sum(n.multiply_adds for n in loops), sum(len(n.body) for n in loops)
    assert multiply_adds >= least * instructions, (multiply_adds, instructions)
