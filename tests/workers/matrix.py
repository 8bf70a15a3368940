"""A small network for several targets, subsets and levels, and the libraries it becomes."""

from __future__ import annotations

from compiler.codegen.generate import generate
from compiler.codegen.program import Library
from compiler.codegen.target import find_target
from compiler.ir.graph import Graph
from compiler.passes.base import Resources
from compiler.passes.sparsify.nest import Nest
from compiler.workers.jobs import Workers
from tests.graphs import Builder

TARGETS = ("host", "aarch64-cortex-a53")


def network() -> Graph:
    """Two tasks behind a convolution, at three levels."""
    b = Builder("matrix")
    trunk = b.apply("Relu", b.conv(b.input("image", 1, 4, 6, 6), 16, 3))
    b.task("a", b.conv(trunk, 16, 1))
    b.task("b", b.apply("Sigmoid", b.conv(trunk, 16, 3)))
    return Nest(levels=(0.0, 0.5, 0.75), dense=())(b.done(), Resources())


def libraries(workers: Workers | None) -> dict[str, Library]:
    """Everything that a bundle is written from, by target; every subset and level is in it."""
    graph = network()
    return {target: generate(graph, find_target(target), workers=workers) for target in TARGETS}
