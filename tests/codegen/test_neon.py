"""Innermost loops for 64-bit ARM, by their disassembly: multiply-adds, by element, and nothing spilled.

No ARM core is at hand, and emulated time says nothing; what LLVM made of a kernel's hot loop does.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from compiler.codegen.generate import generate
from compiler.codegen.link import kernel_archive
from compiler.codegen.target import find_target
from compiler.ir.encoding import BlockSparse
from compiler.ir.graph import Graph
from compiler.ir.types import ValueRef
from tests.codegen.test_generate import preferring
from tests.graphs import Builder
from tests.sparse import sparse_weight

TARGET = "aarch64-cortex-a76"
OBJDUMP = shutil.which("aarch64-linux-gnu-objdump")
MULTIPLY = re.compile(r"fmla\s+v\d+\.4s")
BY_ELEMENT = re.compile(r"fmla\s+v\d+\.4s, v\d+\.4s, v\d+\.s\[\d\]")
VECTOR_SPILL = re.compile(r"(str|ldr|stp|ldp|stur|ldur)\s+q\d+.*\[(sp|x29)")


@dataclass(frozen=True)
class Loop:
    """A loop without loops inside: its instructions."""

    lines: tuple[str, ...]

    def count(self, pattern: re.Pattern[str]) -> int:
        """Instructions that match."""
        return sum(bool(pattern.search(line)) for line in self.lines)


def hot_loop(objects: Sequence[bytes], folder: Path) -> Loop:
    """Of all innermost loops of object files the one with most vector multiply-adds."""
    assert OBJDUMP is not None
    path = folder / "kernels.a"
    path.write_bytes(kernel_archive(objects))
    command = [OBJDUMP, "-d", "--no-show-raw-insn", path]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # addresses begin anew in every section
    loops = [loop for section in text.split("Disassembly of section ") for loop in _inner_loops(section)]
    return max(loops, key=lambda loop: loop.count(MULTIPLY))


def _inner_loops(section: str) -> list[Loop]:
    code = [m.groups() for m in re.finditer(r"^\s+([0-9a-f]+):\t(.*)$", section, re.M)]
    at = {address: number for number, (address, _) in enumerate(code)}
    ranges = []
    for number, (_, line) in enumerate(code):
        branch = re.match(r"(?:b\.\w+|b|cbn?z|tbn?z)\s+(?:.*, )?([0-9a-f]+) <", line)
        if branch and at.get(branch[1], number + 1) <= number:
            ranges.append((at[branch[1]], number))
    inner = [(a, b) for a, b in ranges if not any((c, d) != (a, b) and a <= c and d <= b for c, d in ranges)]
    return [Loop(tuple(line for _, line in code[a : b + 1])) for a, b in inner]


def network(layer: Callable[[Builder], ValueRef]) -> Graph:
    """A graph of one layer."""
    b = Builder()
    b.task("t", layer(b))
    return b.done()


def image(b: Builder) -> ValueRef:
    """64 channels of 14 x 14."""
    return b.input("x", 1, 64, 14, 14)


def sparse(b: Builder) -> ValueRef:
    """3x3 with weights in blocks of 16."""
    weight = sparse_weight(b.graph, BlockSparse(0, (16, 1)), (64, 64, 3, 3))
    return b.apply("Conv", image(b), weight, kernel_shape=(3, 3), pads=(1,) * 4)


CASES: dict[str, tuple[Callable[[Builder], ValueRef], str, float, bool]] = {
    # layer, algorithm, least share of multiply-adds, whether all of them are by element
    "3x3": (lambda b: b.conv(image(b), 64, 3, pads=(1,) * 4), "conv", 0.85, True),
    "1x1": (lambda b: b.conv(image(b), 64, 1), "conv", 0.85, True),
    "winograd": (lambda b: b.conv(image(b), 64, 3, pads=(1,) * 4), "winograd4x4", 0.85, True),
    "matrix": (lambda b: b.apply("MatMul", b.input("x", 14, 256), b.weight(256, 64)), "gemm", 0.75, True),
    "one row": (lambda b: b.apply("MatMul", b.input("x", 1, 256), b.weight(256, 64)), "gemm", 0.6, True),
    "blocks": (sparse, "block-sparse", 0.6, True),
    # bound by loads: 36 inputs for 126 products, one weight each for a channel; a pair of constants is on the stack
    "depthwise": (lambda b: b.conv(image(b), 64, 3, pads=(1,) * 4, group=64), "depthwise", 0.6, False),
}


@pytest.mark.skipif(OBJDUMP is None, reason="no disassembler for aarch64: install binutils-aarch64-linux-gnu")
@pytest.mark.parametrize("case", CASES)
def test_hot_loops_multiply_and_spill_nothing(case: str, tmp_path: Path) -> None:
    layer, algorithm, least, by_element = CASES[case]
    graph = network(layer)
    library = generate(graph, find_target(TARGET), sources=preferring(graph, TARGET, algorithm))
    assert algorithm in {k.template for k in library.kernels}
    loop = hot_loop(library.objects, tmp_path)
    multiplies = loop.count(MULTIPLY)
    assert loop.count(VECTOR_SPILL) <= (0 if by_element else 1), loop
    assert multiplies >= least * len(loop.lines), (multiplies, loop)
    assert loop.count(BY_ELEMENT) == (multiplies if by_element else 0), loop
