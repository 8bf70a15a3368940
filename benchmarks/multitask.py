"""Every subset of a family's tasks in the full bundle: against the same subset compiled alone, and against engines.

`ours-alone` is a bundle of that subset only; a ratio of 1 means that the rest of the family costs nothing. Engines
run the subset as one ONNX file. The row of all tasks has the size of the library and of the weights in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from benchmarks.cases import Case, Prepared
from benchmarks.compare import Contender, Problem, bundle, compare
from benchmarks.families import families, subsets
from benchmarks.ours import Compiled, compiled
from benchmarks.outputs import Expected
from benchmarks.peers import PEERS
from benchmarks.results import report
from benchmarks.rows import Row
from benchmarks.running import Building, Timing, engines, measure
from benchmarks.settings import Settings, chosen, parser, say
from compiler import ExtractTasks, Graph, to_onnx
from compiler.ir.text import digest

ALONE = "ours-alone"
DEFAULT_PEERS = (ALONE, "onnxruntime")


def rows_of(family: str, graph: Graph, peers: Sequence[str], settings: Settings, time: bool) -> Iterator[Row]:
    """The rows of every subset of a family."""
    full = compiled(graph, digest(graph), settings.kept, passes=(), target=settings.target)
    for tasks in subsets(graph):
        part = ExtractTasks(tasks=tasks)(graph)
        case = Case(f"{family}:{'+'.join(tasks)}", partial(to_onnx, part), digest(part))
        found = measure(case, peers, settings, _subset(tasks, part, full, peers), time=time)
        if len(tasks) == len(graph.tasks):
            found = [replace(r, library_bytes=full.library_bytes, pool_bytes=full.pool_bytes) for r in found]
        yield from found


def _subset(tasks: Sequence[str], part: Graph, full: Compiled, peers: Sequence[str]) -> Building:
    def build(ready: Prepared, settings: Settings) -> Timing:
        alone = compiled(part, ready.case.recipe, settings.kept, passes=(), target=settings.target)

        def timing(expected: Expected) -> list[Row]:
            by_name: dict[str, Contender] = {ALONE: bundle(alone.folder, ALONE, qualified=True)}
            by_name |= {c.label: c for c in engines([p for p in peers if p != ALONE], ready)}
            ours = bundle(full.folder, tasks=list(tasks), qualified=True)
            problem = Problem(ready.case.name, ready.feeds, expected)
            return compare(problem, ours, [by_name[p] for p in peers], settings)

        return timing

    return build


def main(arguments: list[str]) -> int:
    """0 unless our side failed somewhere; a peer that cannot run is a row that says why."""
    given = parser("multitask", __doc__, DEFAULT_PEERS, (ALONE,)).parse_args(arguments)
    settings = Settings.of(given)
    peers = chosen(given.peers, [ALONE, *PEERS], "peer")
    known = families()
    return report(
        _all(known, chosen(given.only, known, "family"), peers, settings, not given.prepare), "multitask", given
    )


def _all(
    known: dict[str, Callable[[], Graph]],
    names: Sequence[str],
    peers: Sequence[str],
    settings: Settings,
    time: bool,
) -> Iterator[Row]:
    for name in names:
        say(f"{name}: join")
        yield from rows_of(name, known[name](), peers, settings, time)
