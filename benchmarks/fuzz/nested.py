"""Sparsity levels in a family: nested at random, then each level through the stages of a network.

Every level of the graph, of its file, of what passes and extraction leave of it, and of a library of all levels is
held to that level by itself, which onnxruntime judges; calls with a budget to the levels that they may fall to.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.fuzz.case import Case
from benchmarks.fuzz.compare import (
    Arrays,
    Done,
    Tell,
    Unrunnable,
    Wrong,
    believe,
    by_value,
    calibration,
    equal,
    hold,
    own_feeds,
    renamed,
    same_bits,
    subsets,
)
from benchmarks.fuzz.emulation import emulate
from benchmarks.fuzz.grown import Pick
from benchmarks.fuzz.judge import Judge
from compiler.calibration.engine import Engine
from compiler.codegen.budgets import MOST_BUDGET
from compiler.codegen.generate import generate
from compiler.codegen.golden import Golden
from compiler.codegen.runtime import Network, ThreadPool, open_bundle
from compiler.codegen.target import find_target
from compiler.compile import write_library
from compiler.cost.combine import cost_report
from compiler.cost.count import totals
from compiler.errors import ConfigError, LoweringError, PassError
from compiler.ir.graph import Graph
from compiler.ir.levels import at_level, level_count
from compiler.ir.onnx_in import load
from compiler.ir.onnx_out import save, to_onnx
from compiler.ir.reference import evaluate
from compiler.ir.text import digest
from compiler.passes.base import Resources
from compiler.passes.extract import ExtractTasks
from compiler.pipeline import parse

SHARES = (0.0, 0.05, 0.3, 0.5, 0.75, 0.9, 0.97)
"""What a level may leave out."""
KEEPING = ("remove-dead-code", "deduplicate")
"""Exact passes that keep levels, besides extract-tasks."""
CALLS = 12
"""Calls in random order, of a subset at a level each."""
BUDGETED = 3
"""Subsets that are called with a budget, and ranges of levels for each."""
MILD = {"pattern": "block4x1", "dense": "()", "min_inputs": "1"}
"""Options with which most networks have some layer with levels."""
NO_KERNEL = "no strategy applies to weights with"
"""What is said of a layer whose levels no kernel can switch."""


@dataclass(frozen=True)
class Level:
    """A level by itself, its outputs in the reference evaluator, and the judge of others."""

    graph: Graph
    outputs: Arrays
    judge: Judge


def drawn(pick: Pick) -> dict[str, str]:
    """Options of `nest`: two to four levels, most often of nearly every layer."""
    shares = list(SHARES)
    for _ in range(len(SHARES) - pick.whole(2, 4)):
        shares.remove(pick.one(shares))
    return {
        "levels": "+".join(map(str, shares)),
        "pattern": pick.one(("block16x1", "block8x1", "block4x1", "block4x1", "block4x1")),
        "scope": pick.one(("layer", "layer", "global")),
        "biases": pick.one(("shared", "shared", "corrected")),
        "dense": pick.one(("()", "()", "()", "()", "()", "first", "last", "first+last")),
        "min_inputs": pick.one(("1", "1", "1", "4", "16")),
    }


def specified(options: Mapping[str, str]) -> str:
    """`nest` with options, as a spec string."""
    return f"nest{{{','.join(f'{k}={v}' for k, v in options.items())}}}"


def nested(case: Case, networks: Sequence[Graph], feeds: Arrays, done: Done, tell: Tell) -> None:
    """One of the networks with levels nested in it. `done` hears why it cannot have any."""
    tell("nest")
    pick = Pick(case.seed, 8)
    try:
        whole = _nested(case, networks, pick)
    except (PassError, ConfigError) as error:
        done.skipped.append(f"nest: {str(error).splitlines()[0]}")
        return
    tell("file of levels")
    _filed(whole)
    tell("passes that keep levels")
    whole = _kept(whole, pick, feeds)
    tell("reference of levels")
    levels = [_level(case, whole, level, feeds, done) for level in range(level_count(whole))]
    tell("extract of levels")
    _extracted(case, whole, levels, feeds)
    tell("generate levels")
    try:
        target = find_target(case.target)
        if target.native:
            _switched(case, whole, levels, own_feeds(whole, feeds), tell)
        else:
            tell(f"emulate levels on {case.target}")
            known = [(level.graph, level.outputs, level.judge) for level in levels]
            emulate(whole, target, own_feeds(whole, feeds), known, done)
    except LoweringError as error:
        if NO_KERNEL not in str(error):
            raise
        done.skipped.append(f"levels: {str(error).splitlines()[0]}")


def _nested(case: Case, networks: Sequence[Graph], pick: Pick) -> Graph:
    """Any of the networks by options as they were drawn, or else the first by mild ones."""
    graph, options = pick.one(networks), drawn(pick)
    try:
        return _with_levels(case, graph, options)
    except (PassError, ConfigError):
        return _with_levels(case, networks[0], {**options, **MILD})


def _with_levels(case: Case, graph: Graph, options: Mapping[str, str]) -> Graph:
    use = Resources(calibration=calibration(graph, case.seed), seed=case.seed)
    return parse(specified(options))(graph, use)


def _level(case: Case, whole: Graph, level: int, feeds: Arrays, done: Done) -> Level:
    """A level, equal to what onnxruntime makes of its own file, with the data that was nested."""
    graph, given = at_level(whole, level, alone=True), own_feeds(whole, feeds)
    for value in whole.parameters():
        data = (value.constant, *value.sparser)[level if value.sparser else 0]
        if graph.value(value.ref).constant.tobytes() != data.tobytes():
            raise Wrong(f"'{value.ref}' has other data at level {level} by itself")
    model = to_onnx(graph)
    if digest(load(model)) != digest(graph):
        raise Wrong(f"the file of level {level} is another graph when it is read")
    found = evaluate(graph, given)
    judge, judged = Judge(graph, given, case.seed, found), Engine(model, optimise=False).run(given)
    try:
        believe(graph, judged)
        hold(judge.wrong(judged, found))
    except Unrunnable as error:
        done.skipped.append(f"judge of levels: {error}")
    return Level(graph, found, judge)


def _filed(whole: Graph) -> None:
    """A file keeps all levels, and each is the same whether those before it went at once or not."""
    with tempfile.TemporaryDirectory(prefix="taskgraft-fuzz-") as work:
        save(whole, Path(work) / "nested.onnx")
        if digest(load(Path(work) / "nested.onnx")) != digest(whole):
            raise Wrong("the file of all levels is another graph when it is read")
    last = level_count(whole) - 1
    direct = digest(at_level(whole, last, alone=True))
    for level in range(1, last):
        if digest(at_level(at_level(whole, level), last - level, alone=True)) != direct:
            raise Wrong(f"level {last} is another graph where level {level} was made the first before")


def _kept(whole: Graph, pick: Pick, feeds: Arrays) -> Graph:
    """The graph after passes that keep levels; no bit of any level may differ."""
    for spec in KEEPING if pick.chance(0.5) else reversed(KEEPING):
        after = parse(spec)(whole)
        if level_count(after) != level_count(whole):
            raise Wrong(f"{level_count(after)} levels after {spec}, {level_count(whole)} before")
        for level in range(level_count(whole)):
            old, new = (evaluate(at_level(g, level), own_feeds(g, feeds)) for g in (whole, after))
            equal(old, renamed(whole, after, new), f"level {level} after {spec}", "before")
        whole = after
    return whole


def _extracted(case: Case, whole: Graph, levels: Sequence[Level], feeds: Arrays) -> None:
    """A subset keeps all levels, with their bits and at the costs that the report says."""
    rows = {(frozenset(r.tasks), r.level): r.cost for part in cost_report(whole).levels for r in part}
    readers = whole.needed_by()
    for tasks in subsets(whole, case.seed):
        part, named = ExtractTasks(tasks)(whole), "+".join(tasks)
        needed = any(v.sparser and readers[v.ref] & set(tasks) for v in whole.parameters())
        if level_count(part) != (len(levels) if needed else 1):
            raise Wrong(f"{named} alone has {level_count(part)} levels of {len(levels)}")
        for number, level in enumerate(levels):
            alone = at_level(part, number if needed else 0, alone=True)
            found, what = evaluate(alone, own_feeds(alone, feeds)), f"{named} alone at level {number}"
            equal(level.outputs, found, what, "in the whole graph")
            if totals(alone) != rows[frozenset(tasks), number]:
                raise Wrong(f"{what} costs {totals(alone)}; the report says {rows[frozenset(tasks), number]}")


def _switched(case: Case, whole: Graph, levels: Sequence[Level], feeds: Arrays, tell: Tell) -> None:
    """Levels of a library are right, whatever ran before, and one of them has the bits of a library of its own."""
    rng = np.random.default_rng([case.seed, 10])
    with tempfile.TemporaryDirectory(prefix="taskgraft-fuzz-") as work:
        network = _opened(case, whole, Path(work) / "all")
        tell("run levels")
        full = [by_value(whole, network.run(feeds, level=number)) for number in range(len(levels))]
        for level, found in zip(levels, full, strict=True):
            hold(level.judge.wrong(found, level.outputs))
        some = [*subsets(whole, case.seed, most=7), tuple(whole.tasks)]
        calls = list(product(some, range(len(levels))))
        with network.pool(2) as pool:
            for tasks, number in (calls[i] for i in rng.permutation(len(calls))[:CALLS]):
                for threads in (None, pool):
                    found = by_value(whole, network.run(feeds, tasks=tasks, level=number, pool=threads))
                    what = f"{'+'.join(tasks)} at level {number}{', two threads' * (threads is not None)}"
                    same_bits(full[number], found, what, "in the first call for all tasks")
            tell("run levels within budgets")
            for tasks in (some[i] for i in rng.permutation(len(some))[:BUDGETED]):
                for threads in (None, pool):
                    _within_budgets(whole, network, full, feeds, tasks, threads, rng)
        tell("generate a level alone")
        number = int(rng.integers(len(levels)))
        alone = load(to_onnx(levels[number].graph))
        network = _opened(case, alone, Path(work) / "alone")
        tell("run a level alone")
        for tasks in some:
            found = by_value(alone, network.run(feeds, tasks=tasks))
            same_bits(full[number], found, f"{'+'.join(tasks)} of level {number} alone", "among all levels")


def _within_budgets(
    whole: Graph,
    network: Network,
    full: Sequence[Arrays],
    feeds: Arrays,
    tasks: Sequence[str],
    pool: ThreadPool | None,
    rng: np.random.Generator,
) -> None:
    """Calls with a budget: without limit at the level they begin with, without time at the sparsest they may fall
    to, and in between at some level from one to the other; bound calls and others alike.
    """
    times = network.measure(feeds, tasks=tasks, rounds=int(rng.integers(1, 4)), pool=pool)
    bound = network.bind(tasks, feeds, pool=pool)
    named = f"{'+'.join(tasks)}{', two threads' * (pool is not None)}"
    for _ in range(BUDGETED):
        first, last = (int(n) for n in np.sort(rng.integers(len(full), size=2)))
        last = max(last, 1)
        some = int(rng.uniform(0, 1.5) * times.seconds[first] * 1e6)
        for budget, expected in ((MOST_BUDGET, first), (0, last), (some, None)):
            found = bound.within(budget, times, level=first, sparsest=last)
            if rng.integers(2):
                found = network.run_within(feeds, budget, times, level=first, sparsest=last, pool=pool)
            what = f"{named} from level {first} to {last} in {budget} us"
            if not first <= found.level <= last:
                raise Wrong(f"{what} ends at level {found.level}")
            if found.late != (budget == 0) and expected is not None:
                raise Wrong(f"{what} is {'late' if found.late else 'in time'}")
            if expected is None and found.level == first:
                expected = first  # it falls only
            if expected is not None:
                same_bits(full[expected], by_value(whole, found.outputs), what, f"at level {expected}")


def _opened(case: Case, graph: Graph, folder: Path) -> Network:
    target = find_target(case.target)
    library = generate(graph, target, name="fuzzed")
    return open_bundle(write_library(library, target, folder, Golden(0, ()), graph).path)
