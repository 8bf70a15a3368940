"""One case through every stage of the compiler.

Import, reference against onnxruntime, union, each pass, extraction of random subsets, export and import, compiled
library with every subset on one thread and all tasks on two; of some cases a portfolio of the network before the
passes and behind them, and sparsity levels in one of both (nested.py). Anything but a right result or a refusal
with a reason is a finding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from benchmarks.fuzz.adapt import adapted
from benchmarks.fuzz.case import Case, Member
from benchmarks.fuzz.compare import (
    Arrays,
    Done,
    Refused,
    Tell,
    Unrunnable,
    Wrong,
    believe,
    by_value,
    calibration,
    equal,
    hold,
    outputs_of,
    own_feeds,
    renamed,
    same_bits,
    subsets,
)
from benchmarks.fuzz.emulation import emulate
from benchmarks.fuzz.judge import Judge
from benchmarks.fuzz.nested import nested
from compiler.calibration.engine import Engine
from compiler.codegen.generate import generate
from compiler.codegen.golden import Golden
from compiler.codegen.interface import CHEAPEST
from compiler.codegen.runtime import open_bundle
from compiler.codegen.target import find_target
from compiler.compile import write_library
from compiler.cost.combine import cost_report
from compiler.cost.count import totals
from compiler.errors import ConfigError, PassError, UnsupportedModelError
from compiler.ir.graph import Graph
from compiler.ir.levels import at_level, level_count
from compiler.ir.onnx_in import load
from compiler.ir.onnx_out import to_onnx
from compiler.ir.portfolio import portfolio
from compiler.ir.reference import evaluate, random_feeds
from compiler.ir.text import digest
from compiler.ir.union import Binding, union
from compiler.ir.union import Member as Joined
from compiler.passes.base import Resources
from compiler.passes.extract import ExtractTasks
from compiler.pipeline import parse

TOGETHER = 3
"""One case of so many is compiled as a portfolio too, where it has several tasks."""
NESTED = 2
"""One case of so many gets sparsity levels too."""
DRAWS = 4
"""Inputs tried until every output is finite."""


def check(case: Case, tell: Tell = lambda stage: None) -> Done:
    """Take a case through all stages; `tell` hears the name of each before it starts.

    Raises Refused where the compiler refuses a network with a reason, Unrunnable where onnxruntime cannot run one,
    Wrong for a wrong result. Whatever else leaves is a defect.
    """
    done = Done(nodes=case.nodes)
    tell("import")
    members = {t: _imported(t, m.model) for t, m in case.members.items()}
    tell("union")
    graph = _joined(case, members)
    feeds, expected, other = _judged(case, graph)
    tell("reference")
    reference = evaluate(graph, feeds)
    judge = Judge(graph, feeds, case.seed, reference, (other, expected))
    done.unjudged = judge.allowed.unjudged
    hold(judge.wrong(reference, expected))
    first = graph, reference
    graph, reference = _passes(case, graph, feeds, reference, done, tell)
    judge = Judge(graph, feeds, case.seed, reference)
    tell("extract")
    _extracted(case, graph, feeds, reference)
    tell("export")
    _exported(graph, feeds, reference, judge)
    _compiled(case, graph, feeds, reference, judge, done, tell)
    if case.seed % NESTED == 0:
        nested(case, (first[0], graph), feeds, done, tell)
    if case.seed % TOGETHER == 0 and len(graph.tasks) > 1:
        _together(case, (first, (graph, reference)), feeds, done, tell)
    return done


# ---------------------------------------------------------------------- import and union
def _imported(task: str, model: onnx.ModelProto) -> Graph:
    try:
        return load(model, task=task)
    except UnsupportedModelError as error:
        kinds = [line.strip() for line in str(error).splitlines()[1:] if line.startswith("  ")]
        raise Refused("import", [_reason(k) for k in kinds] or [str(error)]) from None


def _reason(line: str) -> str:
    """A line of the list of refused nodes without count and place."""
    name, _, rest = line.partition(" x")
    return f"{name}: {rest.partition(': ')[2] or rest}"


def _joined(case: Case, members: Mapping[str, Graph]) -> Graph:
    joined: dict[str, Graph | Joined] = {}
    for task, graph in members.items():
        member = case.members[task]
        if member.shared:
            binding = Binding(member.shared, member.adapter)
            joined[task] = Joined(graph, {v.ref.name: binding for v in graph.inputs})
        else:
            joined[task] = graph
    read = {m.shared for m in case.members.values()}
    return union(joined, {i: t for i, t in case.inputs.items() if i in read} or None, name="fuzzed")


def _judged(case: Case, graph: Graph) -> tuple[Arrays, Arrays, Arrays]:
    """Feeds, and onnxruntime's outputs for them from the plain and from the optimised original networks."""
    engines = {t: _engines(m) for t, m in case.members.items()}
    for draw in range(DRAWS):
        feeds = random_feeds(graph, np.random.default_rng([case.seed, 9, draw]))
        plain, optimised = (
            {k: v for t in graph.tasks for k, v in _original(case, graph, t, engines[t][i], feeds).items()}
            for i in (0, 1)
        )
        if all(np.isfinite(a).all() for a in plain.values() if a.dtype.kind == "f"):
            break
    believe(graph, plain)
    return feeds, plain, optimised


def _engines(member: Member) -> tuple[Engine, Engine]:
    try:
        return Engine(member.model, optimise=False), Engine(member.model)
    except UnsupportedModelError as error:
        raise Unrunnable(str(error)) from None


def _original(case: Case, graph: Graph, task: str, engine: Engine, feeds: Arrays) -> Arrays:
    member = case.members[task]
    own = dict.fromkeys(engine.inputs, adapted(feeds[member.shared], member.adapter)) if member.shared else feeds
    try:
        found = engine.run(own)
    except UnsupportedModelError as error:
        raise Unrunnable(str(error)) from None
    made = graph.tasks[task]
    return {r.name: found[label] for r, label in zip(made.outputs, made.labels, strict=True)}


# ---------------------------------------------------------------------- passes
def _passes(
    case: Case, graph: Graph, feeds: Arrays, values: Arrays, done: Done, tell: Tell
) -> tuple[Graph, Arrays]:
    """The graph after all passes, with its outputs; `values` are those before."""
    use = Resources(calibration=calibration(graph, case.seed), seed=case.seed)
    for spec in case.passes:
        tell(spec.partition("{")[0])
        pass_ = parse(spec)
        try:
            after = pass_(graph, use)
        except (PassError, ConfigError) as error:
            done.skipped.append(f"{pass_.name}: {str(error).splitlines()[0]}")
            continue
        new = evaluate(after, own_feeds(after, feeds))
        if pass_.exact:
            judge = Judge(graph, own_feeds(graph, feeds), case.seed, values)
            hold(judge.changed(renamed(graph, after, new), outputs_of(graph, values)))
        graph, values = after, new
    return graph, values


# ---------------------------------------------------------------------- subsets
def _extracted(case: Case, graph: Graph, feeds: Arrays, reference: Arrays) -> None:
    """A subset gives the bits of the whole, at the cost that the report says."""
    rows = {frozenset(r.tasks): r.cost for r in cost_report(graph).combinations}
    for tasks in subsets(graph, case.seed):
        part = ExtractTasks(tasks)(graph)
        found = evaluate(part, own_feeds(part, feeds))
        equal(reference, found, f"{'+'.join(tasks)} alone", "in the whole graph")
        if totals(part) != rows[frozenset(tasks)]:
            raise Wrong(f"{'+'.join(tasks)} alone costs {totals(part)}; the report says {rows[frozenset(tasks)]}")


def _exported(graph: Graph, feeds: Arrays, reference: Arrays, judge: Judge) -> None:
    """The exported file gives the same in onnxruntime, and the same graph when it is read again."""
    model = to_onnx(graph)
    given = own_feeds(graph, feeds)
    judged = Engine(model, optimise=False).run(given)
    believe(graph, judged)
    hold(judge.wrong(judged, reference))
    again = load(model)
    if digest(load(to_onnx(again))) != digest(again):
        raise Wrong("the exported file changes when it is read and exported again")
    found = evaluate(again, given)
    for old, new in zip(outputs_of(graph, reference).values(), outputs_of(again, found).values(), strict=True):
        if not np.array_equal(old, new, equal_nan=old.dtype.kind == "f"):
            raise Wrong("the graph read back from the exported file gives other bits")


# ---------------------------------------------------------------------- compiled
def _compiled(
    case: Case, graph: Graph, feeds: Arrays, reference: Arrays, judge: Judge, done: Done, tell: Tell
) -> None:
    target = find_target(case.target)
    given = own_feeds(graph, feeds)
    if not target.native:
        tell(f"emulate {case.target}")
        emulate(graph, target, given, [(graph, reference, judge)], done)
        return
    tell(f"generate for {case.target}")
    library = generate(graph, target, name="fuzzed")
    with tempfile.TemporaryDirectory(prefix="taskgraft-fuzz-") as work:
        tell(f"link for {case.target}")
        bundle = write_library(library, target, Path(work), Golden(0, ()), graph)
        tell(f"run on {case.target}")
        network = open_bundle(bundle.path)
        full = by_value(graph, network.run(given))
        hold(judge.wrong(full, outputs_of(graph, reference)))
        for tasks in subsets(graph, case.seed, most=15):
            same_bits(full, by_value(graph, network.run(given, tasks=tasks)), "+".join(tasks))
        with network.pool(2) as pool:
            same_bits(full, by_value(graph, network.run(given, pool=pool)), "two threads")


# ---------------------------------------------------------------------- portfolios
def _together(case: Case, networks: Sequence[tuple[Graph, Arrays]], feeds: Arrays, done: Done, tell: Tell) -> None:
    """Networks with their outputs as levels of one library: each gives what it gives alone, files keep all of them,
    and a call at the cheapest level has the bits of that level.
    """
    tell("portfolio")
    if any(level_count(graph) > 1 for graph, _ in networks):
        return
    whole = parse("deduplicate")(portfolio([graph for graph, _ in networks]))
    if digest(load(to_onnx(whole))) != digest(whole):
        raise Wrong("the exported portfolio is another one when it is read")
    for level, (graph, _) in enumerate(networks):
        alone = at_level(whole, level, alone=True)
        if totals(alone) != totals(parse("deduplicate")(graph)):
            raise Wrong(f"level {level} of the portfolio costs {totals(alone)}, not what its network costs")
    target = find_target(case.target)
    judges = [Judge(graph, own_feeds(graph, feeds), case.seed, reference) for graph, reference in networks]
    if not target.native:
        levels = [(*network, judge) for network, judge in zip(networks, judges, strict=True)]
        tell(f"emulate the portfolio on {case.target}")
        emulate(whole, target, own_feeds(whole, feeds), levels, done)
        return
    library = generate(whole, target, name="fuzzed")
    with tempfile.TemporaryDirectory(prefix="taskgraft-fuzz-") as work:
        bundle = write_library(library, target, Path(work), Golden(0, ()), whole)
        tell("run the portfolio")
        network = open_bundle(bundle.path)
        for level, ((graph, reference), judge) in enumerate(zip(networks, judges, strict=True)):
            found = network.run(own_feeds(whole, feeds), level=level)
            hold(judge.wrong(by_value(graph, found), outputs_of(graph, reference)))
        cheapest = {row.tasks: row.level for row in cost_report(whole).cheapest()}
        for tasks in subsets(whole, case.seed, most=7):
            calls = [
                network.run(own_feeds(whole, feeds), tasks=tasks, level=n) for n in (cheapest[tasks], CHEAPEST)
            ]
            wanted, found = (by_value(whole, call) for call in calls)
            same_bits(wanted, found, f"{'+'.join(tasks)} at the cheapest level")
