"""The innermost loop of every kernel template, by its machine code: multiply-adds, spills, estimated cycles.

For each case the kernel is built as the rule has it, for every target, and its loop with most sums in registers is
looked at (of kernels that do not multiply, the one with most vector arithmetic); where several have as many sums
and multiply-adds, as Strassen's seven products do, all of them together. Nothing runs: cycles are what llvm-mca's
model of the core says, with everything in the nearest cache.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.disassembly import Loop, loops_of
from benchmarks.loop_cases import CASES, LoopCase
from benchmarks.loop_rows import COLUMNS, LoopRow, line
from benchmarks.ours import forced
from benchmarks.results import save
from benchmarks.settings import chosen, say, words
from benchmarks.throughput import NoModel, core_of
from compiler import find_target
from compiler.codegen.generate import generate
from compiler.codegen.target import Target

TARGETS = ("aarch64-cortex-a76", "armv7-neon", "x86-64-v3", "x86-64-v4")
STUDY = "inner-loops"
LEAST = 8
"""Vector arithmetic of a loop that transforms: shorter ones clear and copy."""


def rows_of(name: str, case: LoopCase, target: Target) -> Iterator[LoopRow]:
    """The rows of one case on one target."""
    graph = case.graph()
    sources = forced(graph, target.name, case.algorithm)
    if case.algorithm != "generic" and not sources.recorded:
        yield LoopRow(name, target.name, error=f"{case.algorithm} does not apply")
        return
    library = generate(graph, target, sources=sources)
    pairs = zip(library.kernels, library.objects, strict=True)
    found = [(k.symbol, loops_of(code, target.arch)) for k, code in pairs if k.template == case.algorithm]
    symbol, loops = max(found, key=lambda f: max(map(_weight, f[1]), default=(0, 0, 0)))
    tile = _tile(library.plan["steps"], symbol)
    kernel = f"{case.algorithm} {tile}".rstrip()
    hot = max([loop for loop in loops if not loop.divides] or loops, key=_weight)
    if hot.multiply_adds:
        equal = [loop for loop in loops if _sums(loop) == _sums(hot)]
        spilled = sum(loop.spilled for loop in equal)
        yield multiplying(LoopRow(name, target.name, kernel, spills=spilled), equal, target)
    else:
        yield calculating(LoopRow(name, target.name, kernel, spills=hot.spilled), hot)
    if case.transforms:
        at = loops.index(hot)
        for stage, some in (("input", loops[:at]), ("output", loops[at + 1 :])):
            best = max(some, key=lambda loop: loop.arithmetic, default=None)
            if best is not None and best.arithmetic >= LEAST:
                row = LoopRow(f"{name}-{stage}", target.name, kernel, spills=best.spilled)
                yield calculating(row, best)


def _weight(loop: Loop) -> tuple[int, int, int]:
    """A full tile before parts of one, however these are unrolled; products before transforms."""
    return *_sums(loop), loop.arithmetic


def _sums(loop: Loop) -> tuple[int, int]:
    """Sums in registers, none where other arithmetic prevails (transforms), and multiply-adds."""
    prevail = 2 * loop.multiply_adds >= loop.arithmetic
    return loop.accumulators if prevail else 0, loop.multiply_adds


def _tile(steps: object, symbol: str) -> str:
    assert isinstance(steps, list)
    tile = next(s.get("tile", ()) for s in steps if s["kernel"] == symbol)
    return "x".join(map(str, tile))


def calculating(row: LoopRow, loop: Loop) -> LoopRow:
    """The row of a loop that transforms or compares: its share of vector arithmetic."""
    share = loop.arithmetic / len(loop.body)
    return replace(row, instructions=len(loop.body), multiply_adds=loop.multiply_adds, share=share)


def multiplying(row: LoopRow, loops: Sequence[Loop], target: Target) -> LoopRow:
    """The row of loops that multiply, one turn of each; where no model of the core is at hand, with the reason."""
    multiply, instructions = sum(loop.multiply_adds for loop in loops), sum(len(loop.body) for loop in loops)
    counted = replace(
        row,
        instructions=instructions,
        multiply_adds=multiply,
        share=multiply / instructions,
        by_element=sum(loop.by_element for loop in loops) / multiply,
    )
    try:
        core = core_of(target)
        products = sum(loop.products for loop in loops) / sum(map(core.cycles, loops))
    except NoModel as error:
        return replace(counted, error=str(error))
    return replace(counted, products=products, per_pipe=products / core.multiply_adds, version=core.label)


def results(names: Sequence[str], targets: Sequence[str]) -> Iterator[LoopRow]:
    """All rows, case by case."""
    for name in names:
        for target in targets:
            yield from rows_of(name, CASES[name], find_target(target))


def report(rows: Iterable[LoopRow], as_json: bool, folder: Path | None) -> None:
    """Print rows as they come, or as JSON at the end, and save each."""
    done: list[LoopRow] = []
    if not as_json:
        print(COLUMNS)
    for row in rows:
        done.append(row)
        if not as_json:
            print(line(row), flush=True)
        elif row.error:
            say(f"{row.case} for {row.peer}: {row.error}")
        if folder:
            save(folder, STUDY, [row])
    if as_json:
        print("[\n" + ",\n".join(json.dumps(r.record()) for r in done) + "\n]")


def main(arguments: list[str]) -> int:
    """0; what a target cannot run, and cycles without a model, are rows that say why."""
    options = argparse.ArgumentParser(prog=f"python -m benchmarks {STUDY}", description=__doc__)
    options.add_argument("--only", type=words, default=(), metavar="CASE,...", help="cases; * and ? match")
    options.add_argument("--target", type=words, default=(), metavar="TARGET,...", help=f"of {', '.join(TARGETS)}")
    options.add_argument("--json", action="store_true", help="print the rows as JSON and nothing else")
    options.add_argument("--save", type=Path, metavar="FOLDER", help="add the rows to the study's file there")
    given = options.parse_args(arguments)
    names, targets = chosen(given.only, CASES), chosen(given.target, TARGETS, "target")
    report(results(names, targets), given.json, given.save)
    return 0
