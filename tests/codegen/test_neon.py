"""Innermost loops for 64-bit ARM, by their disassembly: multiply-adds by element, and nothing spilled.

No ARM core is at hand, and emulated time says nothing; what LLVM made of a kernel's hot loop does.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from compiler.codegen.generate import generate
from compiler.codegen.target import find_target
from compiler.ir.graph import Graph
from tests.codegen.test_generate import preferring
from tests.graphs import Builder

TARGET = "aarch64-cortex-a76"
OBJDUMP = shutil.which("aarch64-linux-gnu-objdump")
BY_ELEMENT = re.compile(r"fmla\s+v\d+\.4s, v\d+\.4s, v\d+\.s\[\d\]")
VECTOR_SPILL = re.compile(r"(str|ldr|stp|ldp|stur|ldur)\s+q\d+.*\[(sp|x29)")


@dataclass(frozen=True)
class Loop:
    """A loop without loops inside: its instructions."""

    lines: tuple[str, ...]

    @property
    def multiplies(self) -> int:
        """Multiply-adds of a vector by an element."""
        return sum(bool(BY_ELEMENT.search(line)) for line in self.lines)

    @property
    def share(self) -> float:
        """Of multiply-adds by element among all instructions."""
        return self.multiplies / len(self.lines)

    @property
    def spills(self) -> int:
        """Vectors written to or read from the stack."""
        return sum(bool(VECTOR_SPILL.search(line)) for line in self.lines)


def hot_loop(object_code: bytes, folder: Path) -> Loop:
    """Of all innermost loops of an object file the one with most multiply-adds by element."""
    assert OBJDUMP is not None
    path = folder / "kernels.o"
    path.write_bytes(object_code)
    text = subprocess.run([OBJDUMP, "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True)
    code = [m.groups() for m in re.finditer(r"^\s+([0-9a-f]+):\t(.*)$", text.stdout, re.M)]
    at = {address: number for number, (address, _) in enumerate(code)}
    ranges = []
    for number, (_, line) in enumerate(code):
        branch = re.match(r"(?:b\.\w+|b|cbn?z|tbn?z)\s+(?:.*, )?([0-9a-f]+) <", line)
        if branch and at.get(branch[1], number + 1) <= number:
            ranges.append((at[branch[1]], number))
    inner = [(a, b) for a, b in ranges if not any((c, d) != (a, b) and a <= c and d <= b for c, d in ranges)]
    loops = [Loop(tuple(line for _, line in code[a : b + 1])) for a, b in inner]
    return max(loops, key=lambda loop: loop.multiplies)


def layer(kernel: int, channels: int = 64, side: int = 14) -> Graph:
    """A convolution with a Relu."""
    b = Builder()
    y = b.conv(b.input("x", 1, channels, side, side), channels, kernel, pads=(kernel // 2,) * 4)
    b.task("t", b.apply("Relu", y))
    return b.done()


CASES = {
    "3x3": (layer(3), "conv", 0.85),
    "1x1": (layer(1), "conv", 0.85),
    "winograd": (layer(3), "winograd4x4", 0.85),
}


@pytest.mark.skipif(OBJDUMP is None, reason="no disassembler for aarch64: install binutils-aarch64-linux-gnu")
@pytest.mark.parametrize("case", CASES)
def test_hot_loops_multiply_by_element_and_spill_nothing(case: str, tmp_path: Path) -> None:
    graph, algorithm, least = CASES[case]
    library = generate(graph, find_target(TARGET), sources=preferring(graph, TARGET, algorithm))
    assert algorithm in {k.template for k in library.kernels}
    loop = hot_loop(library.object_code, tmp_path)
    assert (loop.spills, loop.share >= least) == (0, True), (loop.spills, loop.share, loop.lines)
