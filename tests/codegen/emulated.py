"""A generated library's own self-test, run where its target's processor is emulated."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.codegen.bundle import write_bundle
from compiler.codegen.emulate import SelftestResult, run_selftest
from compiler.codegen.link import find_toolchain
from compiler.codegen.program import Library
from compiler.codegen.target import Target, find_target
from compiler.compile import golden_of
from compiler.ir.graph import Graph


def linkable(name: str) -> Target:
    """The target, where this machine can link for it; else the test is skipped."""
    target = find_target(name)
    if find_toolchain(target) is None:
        pytest.skip(f"no C compiler for {name}")
    return target


def check_emulated(library: Library, graph: Graph, target: Target, folder: Path) -> None:
    """The self-test against the reference passes; skipped where nothing emulates the processor."""
    golden = golden_of(graph, None, 0)
    bundle = write_bundle(library, target, folder, sources={}, golden=golden, graph_onnx=b"", config_text="")
    expect_passed(run_selftest(bundle, target))


def expect_passed(result: SelftestResult) -> None:
    """Skipped where nothing emulates the processor."""
    if "cannot run or emulate" in result.reason:
        pytest.skip(result.reason)
    assert (result.status, result.reason) == ("passed", ""), result.output
