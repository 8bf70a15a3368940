"""Libraries for other processors: their own self-test runs them under emulation."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.fuzz.compare import Arrays, Done, Wrong
from benchmarks.fuzz.judge import Judge
from compiler.codegen.emulate import SelftestResult, run_selftest
from compiler.codegen.generate import generate
from compiler.codegen.golden import Golden, Sample
from compiler.codegen.interface import interface
from compiler.codegen.target import Target
from compiler.compile import write_library
from compiler.ir.graph import Graph

SECONDS = 120
"""What a self-test may take on the clock, twice: with the shared library and with the static one."""
_INACCURATE = re.compile(
    r"(level (?P<level>\d+): )?sample \d+, (?P<output>\S+): error (?P<error>\S+) of (scale|elements), limit"
)

Levels = Sequence[tuple[Graph, Arrays, Judge]]
"""Of every level: a graph of it, whose tasks are those of the library, its outputs, and the judge of others."""


def emulate(graph: Graph, target: Target, given: Arrays, levels: Levels, done: Done) -> None:
    """Compile a graph for `target` and run its self-test; Wrong where an output differs by more than it may.

    `done` hears where this machine cannot run it.
    """
    library = generate(graph, target, name="fuzzed")
    rows = [
        tuple(outputs[ref.name] for task in level.tasks.values() for ref in task.outputs)
        for level, outputs, _ in levels
    ]
    sample = Sample(tuple(given.values()), rows[0], tuple(rows[1:]))
    with tempfile.TemporaryDirectory(prefix="taskgraft-fuzz-") as work:
        bundle = write_library(library, target, Path(work), Golden(0, (sample,)), graph)
        result = run_selftest(bundle, target, timeout=SECONDS)
    called = [output.identifier for output in interface(library).outputs]
    names = [
        dict(zip(called, (r.name for task in level.tasks.values() for r in task.outputs), strict=True))
        for level, _, _ in levels
    ]
    hold_selftest(result, names, [judge for _, _, judge in levels])
    if result.status == "skipped":
        done.skipped.append(f"self-test: {result.reason}")


def hold_selftest(result: SelftestResult, names: Sequence[Mapping[str, str]], judges: Sequence[Judge]) -> None:
    """Wrong where a self-test failed. It knows nothing of ill-conditioned outputs: an error that an output may
    have does not count. By level: `names` from outputs in C to those of its graph, and `judges` of these.
    """
    if result.status != "failed":
        return
    complaints = [line.strip() for line in result.output.splitlines() if line.startswith("  ")]
    excused = 0
    for line in complaints:
        if found := _INACCURATE.search(line):
            level = int(found["level"] or 0)
            limit = judges[level].allowed.limits[names[level][found["output"]]]
            excused += limit is None or float(found["error"]) <= limit
    if not complaints or excused < len(complaints):
        raise Wrong(f"self-test: {result.reason}; {'; '.join(complaints[:5])}")
