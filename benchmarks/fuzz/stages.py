"""One case through every stage of the compiler.

Import, reference against onnxruntime, union, each pass, extraction of random subsets, export and import, compiled
library with every subset on one thread and all tasks on two; of some cases a portfolio of the network before the
passes and behind them. Anything but a right result or a refusal with a reason is a finding.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import onnx

from benchmarks.fuzz.adapt import adapted
from benchmarks.fuzz.case import Case, Member
from benchmarks.fuzz.judge import Allowance, Judge
from compiler.calibration.engine import Engine
from compiler.codegen.emulate import SelftestResult, run_selftest
from compiler.codegen.generate import generate
from compiler.codegen.golden import Golden, Sample
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

Arrays = dict[str, np.ndarray]
CALIBRATION = 8
"""Random inputs for passes that want some."""
TOGETHER = 3
"""One case of so many is compiled as a portfolio too, where it has several tasks."""
DRAWS = 4
"""Inputs tried until every output is finite."""


class Wrong(Exception):
    """A result that differs from what it has to be; the message says which and by how much."""


class Refused(Exception):
    """The compiler said that it does not take the case, and why: one line per reason."""

    def __init__(self, stage: str, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.stage = stage
        self.reasons = tuple(reasons)


class Unrunnable(Exception):
    """onnxruntime itself does not run a network: there is no judge."""


@dataclass
class Done:
    """What a case that went through showed. `skipped`: passes that gave a reason not to run."""

    nodes: int = 0
    unjudged: int = 0
    skipped: list[str] = field(default_factory=list)


Tell = Callable[[str], None]


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
    _hold(judge.wrong(reference, expected))
    first = graph, reference
    graph, reference = _passes(case, graph, feeds, reference, done, tell)
    judge = Judge(graph, feeds, case.seed, reference)
    tell("extract")
    _extracted(case, graph, feeds, reference)
    tell("export")
    _exported(graph, feeds, reference, judge)
    _compiled(case, graph, feeds, reference, judge, tell)
    if case.seed % TOGETHER == 0 and len(graph.tasks) > 1 and find_target(case.target).native:
        _together(case, (first, (graph, reference)), feeds, tell)
    return done


def _hold(wrong: str) -> None:
    """Wrong with the complaint of a judge, if there is one."""
    if wrong:
        raise Wrong(wrong)


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


def _outputs(graph: Graph, values: Mapping[str, np.ndarray]) -> Arrays:
    """Outputs by value name, in the order of tasks."""
    return {r.name: values[r.name] for t in graph.tasks.values() for r in t.outputs}


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
    _believe(graph, plain)
    return feeds, plain, optimised


def _believe(graph: Graph, judged: Arrays) -> None:
    """Unrunnable where onnxruntime divided by the deviation of constants; ONNX's own function adds 1e-9 to it."""
    normalises = any(n.op.name == "MeanVarianceNormalization" for n in graph.nodes())
    if normalises and any(np.isnan(a).any() for a in judged.values() if a.dtype.kind == "f"):
        raise Unrunnable("NaN for MeanVarianceNormalization of constants, where ONNX's function gives zeros")


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
    use = Resources(calibration=_calibration(graph, case.seed), seed=case.seed)
    for spec in case.passes:
        tell(spec.partition("{")[0])
        pass_ = parse(spec)
        try:
            after = pass_(graph, use)
        except (PassError, ConfigError) as error:
            done.skipped.append(f"{pass_.name}: {str(error).splitlines()[0]}")
            continue
        new = evaluate(after, _own(after, feeds))
        if pass_.exact:
            judge = Judge(graph, _own(graph, feeds), case.seed, values)
            _hold(judge.changed(_renamed(graph, after, new), _outputs(graph, values)))
        graph, values = after, new
    return graph, values


def _own(graph: Graph, feeds: Arrays) -> Arrays:
    """What a graph reads: a pass may have dropped inputs that nothing needs."""
    return {v.ref.name: feeds[v.ref.name] for v in graph.inputs}


def _renamed(before: Graph, after: Graph, values: Arrays) -> Arrays:
    """Outputs of the graph after a pass under the names they had before it."""
    return {
        a.name: values[b.name]
        for t in before.tasks
        for a, b in zip(before.tasks[t].outputs, after.tasks[t].outputs, strict=True)
    }


def _calibration(graph: Graph, seed: int) -> Arrays:
    draws = [random_feeds(graph, np.random.default_rng([seed, 5, i])) for i in range(CALIBRATION)]
    return {n: (np.concatenate if draws[0][n].ndim else np.stack)([d[n] for d in draws]) for n in draws[0]}


# ---------------------------------------------------------------------- subsets
def _subsets(graph: Graph, seed: int, most: int = 4) -> Iterator[tuple[str, ...]]:
    """A few random subsets of tasks."""
    tasks = list(graph.tasks)
    every = [s for n in range(1, len(tasks) + 1) for s in combinations(tasks, n)]
    chosen = np.random.default_rng([seed, 6]).permutation(len(every))[:most]
    yield from (every[i] for i in sorted(chosen))


def _extracted(case: Case, graph: Graph, feeds: Arrays, reference: Arrays) -> None:
    """A subset gives the bits of the whole, at the cost that the report says."""
    rows = {frozenset(r.tasks): r.cost for r in cost_report(graph).combinations}
    for tasks in _subsets(graph, case.seed):
        part = ExtractTasks(tasks)(graph)
        found = evaluate(part, _own(part, feeds))
        for name, array in found.items():
            if not np.array_equal(array, reference[name], equal_nan=array.dtype.kind == "f"):
                raise Wrong(f"{'+'.join(tasks)} alone: '{name}' has other bits than in the whole graph")
        if totals(part) != rows[frozenset(tasks)]:
            raise Wrong(f"{'+'.join(tasks)} alone costs {totals(part)}; the report says {rows[frozenset(tasks)]}")


def _exported(graph: Graph, feeds: Arrays, reference: Arrays, judge: Judge) -> None:
    """The exported file gives the same in onnxruntime, and the same graph when it is read again."""
    model = to_onnx(graph)
    given = _own(graph, feeds)
    judged = Engine(model, optimise=False).run(given)
    _believe(graph, judged)
    _hold(judge.wrong(judged, reference))
    again = load(model)
    if digest(load(to_onnx(again))) != digest(again):
        raise Wrong("the exported file changes when it is read and exported again")
    found = evaluate(again, given)
    for old, new in zip(_outputs(graph, reference).values(), _outputs(again, found).values(), strict=True):
        if not np.array_equal(old, new, equal_nan=old.dtype.kind == "f"):
            raise Wrong("the graph read back from the exported file gives other bits")


# ---------------------------------------------------------------------- compiled
def _compiled(case: Case, graph: Graph, feeds: Arrays, reference: Arrays, judge: Judge, tell: Tell) -> None:
    target = find_target(case.target)
    tell(f"generate for {case.target}")
    library = generate(graph, target, name="fuzzed")
    given = _own(graph, feeds)
    sample = Sample(
        tuple(given.values()), tuple(reference[v.name] for t in graph.tasks.values() for v in t.outputs)
    )
    with tempfile.TemporaryDirectory(prefix="taskgraft-fuzz-") as work:
        tell(f"link for {case.target}")
        bundle = write_library(library, target, Path(work), Golden(0, (sample,)), graph)
        tell(f"run on {case.target}")
        if not target.native:
            outputs = zip(
                (port.name for task in library.tasks for port in task.outputs),
                (ref.name for task in graph.tasks.values() for ref in task.outputs),
                strict=True,
            )
            emulated(run_selftest(bundle, target, quick=True, timeout=120), dict(outputs), judge.allowed)
            return
        network = open_bundle(bundle.path)
        full = _by_value(graph, network.run(given), graph.tasks)
        _hold(judge.wrong(full, _outputs(graph, reference)))
        for tasks in _subsets(graph, case.seed, most=15):
            _same_bits(full, _by_value(graph, network.run(given, tasks=tasks), tasks), "+".join(tasks))
        with network.pool(2) as pool:
            _same_bits(full, _by_value(graph, network.run(given, pool=pool), graph.tasks), "two threads")


# ---------------------------------------------------------------------- portfolios
def _together(case: Case, networks: Sequence[tuple[Graph, Arrays]], feeds: Arrays, tell: Tell) -> None:
    """Networks with their outputs as levels of one library: each gives what it gives alone, files keep all of them,
    and a call at the cheapest level has the bits of that level.
    """
    tell("portfolio")
    if any(level_count(graph) > 1 for graph, _ in networks):
        return
    whole = parse("deduplicate")(portfolio([graph for graph, _ in networks]))
    if digest(load(to_onnx(whole))) != digest(whole):
        raise Wrong("the exported portfolio is another one when it is read")
    library = generate(whole, find_target(case.target), name="fuzzed")
    with tempfile.TemporaryDirectory(prefix="taskgraft-fuzz-") as work:
        bundle = write_library(library, find_target(case.target), Path(work), Golden(0, ()), whole)
        tell("run the portfolio")
        network = open_bundle(bundle.path)
        for level, (graph, reference) in enumerate(networks):
            alone = at_level(whole, level, alone=True)
            if totals(alone) != totals(parse("deduplicate")(graph)):
                raise Wrong(f"level {level} of the portfolio costs {totals(alone)}, not what its network costs")
            judge = Judge(graph, _own(graph, feeds), case.seed, reference)
            found = network.run(_own(whole, feeds), level=level)
            _hold(judge.wrong(_by_value(graph, found, graph.tasks), _outputs(graph, reference)))
        levels = {row.tasks: row.level for row in cost_report(whole).cheapest()}
        for tasks in _subsets(whole, case.seed, most=7):
            calls = [network.run(_own(whole, feeds), tasks=tasks, level=n) for n in (levels[tasks], CHEAPEST)]
            wanted, found = (_by_value(whole, call, tasks) for call in calls)
            _same_bits(wanted, found, f"{'+'.join(tasks)} at the cheapest level")


_INACCURATE = re.compile(r"sample \d+, (?P<output>\S+): error (?P<error>\S+) of scale, limit")


def emulated(result: SelftestResult, names: Mapping[str, str], allowed: Allowance) -> None:
    """Wrong where a self-test failed. It knows nothing of ill-conditioned outputs: an error that an output may have
    does not count. `names`: from outputs in C to those of the graph."""
    if result.status != "failed":
        return
    complaints = [line.strip() for line in result.output.splitlines() if line.startswith("  ")]
    excused = 0
    for line in complaints:
        if found := _INACCURATE.search(line):
            limit = allowed.limits[names[found["output"]]]
            excused += limit is None or float(found["error"]) <= limit
    if not complaints or excused < len(complaints):
        raise Wrong(f"self-test: {result.reason}")


def _by_value(graph: Graph, found: Mapping[str, object], tasks: object) -> Arrays:
    named: Arrays = {}
    for task in graph.tasks.values():
        if task.name not in found:
            continue
        result = found[task.name]
        for ref, label in zip(task.outputs, task.labels, strict=True):
            named[ref.name] = result[label] if isinstance(result, Mapping) else np.asarray(result)
    return named


def _same_bits(full: Arrays, part: Arrays, what: str) -> None:
    for name, array in part.items():
        if array.tobytes() != full[name].tobytes():
            raise Wrong(f"{what}: '{name}' has other bits than in one call for all tasks")
