"""One case from file to rows, in the steps that all studies share."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace

from benchmarks.cases import Case, Prepared, prepare
from benchmarks.compare import Contender, Problem, bundle, compare, kernels, reference
from benchmarks.ours import compiled
from benchmarks.outputs import Expected
from benchmarks.peers import PEERS
from benchmarks.rows import OUR_FAULT, REFUSED, Row
from benchmarks.settings import Settings, say
from compiler.cost.count import totals
from compiler.errors import UnsupportedModelError

Timing = Callable[[Expected], list[Row]]
"""Times what was built, given what onnxruntime computes."""
Building = Callable[[Prepared, Settings], Timing]
"""Builds what is needed beside the file and returns what times it."""


def measure(
    case: Case, labels: Sequence[str], settings: Settings, build: Building, *, time: bool = True
) -> list[Row]:
    """The rows of one case. A network that our compiler refuses, or a failure on our side, is a row for each of
    `labels` that says so. `time=False` stops when everything is built.
    """
    say(f"{case.name}: prepare")
    try:
        ready = prepare(case, settings.kept)
        timing = build(ready, settings)
        if not time:
            return []
        say(f"{case.name}: measure")
        return timing(reference(ready.file, ready.feeds, settings))
    except UnsupportedModelError as error:
        reason = REFUSED + re.sub(r"^\S*\.onnx: ", "", " ".join(str(error).split()))
    except Exception as error:  # one network that breaks the compiler must not cost the rows of the others
        traceback.print_exc()
        reason = f"{OUR_FAULT}{type(error).__name__}: {error}"
    return [Row(case.name, label, error=reason) for label in labels]


def whole(peers: Sequence[str]) -> Building:
    """Our bundle of the whole network against engines on the same file."""

    def build(ready: Prepared, settings: Settings) -> Timing:
        folder = compiled(
            ready.graph, ready.case.identity, settings.kept, target=settings.target, feeds=ready.feeds
        ).folder

        def timing(expected: Expected) -> list[Row]:
            problem = Problem(ready.case.name, ready.feeds, expected, totals(ready.graph).flops)
            return compare(problem, bundle(folder), engines(peers, ready), settings)

        return timing

    return build


DIRECT = "ours-direct"
"""Our direct kernel, where the planner chose another one."""


def direct_kernel(peers: Sequence[str]) -> Building:
    """A single layer: our direct kernel alone against the core's peak, then the kernel of the planner's choice
    against the direct one, then the whole call against `peers`."""

    def build(ready: Prepared, settings: Settings) -> Timing:
        call = whole(peers)(ready, settings) if peers else None

        def timing(expected: Expected) -> list[Row]:
            flops = totals(ready.graph).flops
            problem = Problem(ready.case.name, ready.feeds, expected, flops, against_peak=True)
            direct = kernels(DIRECT, ready.file, settings, "conv")
            rows = compare(problem, replace(direct, label="ours"), [], settings)
            best = kernels("ours", ready.file, settings)
            rows += compare(replace(problem, against_peak=False), best, [direct], settings)
            return rows + (call(expected) if call else [])

        return timing

    return build


def engines(peers: Sequence[str], ready: Prepared) -> list[Contender]:
    """Engines on the file of a case."""
    return [Contender(name, PEERS[name], ready.file) for name in peers]
