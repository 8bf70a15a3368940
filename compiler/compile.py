"""The release step: load, join, passes, evaluate, generate, link, self-test, gates, write.

Everything is written into a folder beside the final one and renamed at the end, so an error, a failed gate or an
interrupt leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from compiler.bundle_report import BundleReport
from compiler.calibration.data import typed
from compiler.calibration.evaluation import TaskEvaluation
from compiler.codegen.bundle import Bundle, write_bundle
from compiler.codegen.emulate import SelftestResult, run_selftest
from compiler.codegen.generate import generate
from compiler.codegen.golden import SCALE_FLOOR, TOLERANCE, Golden, Sample
from compiler.codegen.interface import check_macros, check_names, interface
from compiler.codegen.planner import Sources
from compiler.codegen.program import Library
from compiler.codegen.runtime import open_bundle
from compiler.codegen.target import Target, find_target
from compiler.codegen.tuning import TuningDatabase
from compiler.cost.combine import MOST_TASKS, CostReport, cost_report, refuse_too_many
from compiler.errors import ConfigError, GateError, TargetError, UnsupportedModelError, plural
from compiler.gates import GateResult, check_costs, check_target, check_tasks
from compiler.ir.decisions import outputs_and_ties
from compiler.ir.graph import Graph
from compiler.ir.levels import at_level, level_count
from compiler.ir.onnx_out import to_onnx
from compiler.ir.reference import comparable, evaluate, random_feeds, roundings
from compiler.measure import evaluate_release
from compiler.pipeline import PassRecord
from compiler.planning import Planning, paths, planning_of, tuned
from compiler.progress import tracked
from compiler.release import Release, Say, calibration_of, evaluation_of, load_release, silent, transform
from compiler.report import summary
from compiler.settings import Config
from compiler.staging import staged
from compiler.workers.jobs import Workers

GOLDEN_SAMPLES = 2


@dataclass(frozen=True)
class Built:
    """One target of a release. `selftest` is None where it was not asked for."""

    target: Target
    library: Library
    bundle: Bundle
    library_bytes: int | None
    """Size of the shared library; None where it is not linked."""
    selftest: SelftestResult | None

    @property
    def workspace(self) -> dict[frozenset[str], int]:
        """Bytes that a call of every listed subset needs."""
        return workspace_of(self.library)

    @property
    def workspace_max(self) -> int:
        """Bytes that are enough for every call, those of unlisted subsets included."""
        return interface(self.library).workspace_max


@dataclass(frozen=True)
class Compiled:
    """What a release became."""

    release: Release
    graph: Graph
    records: tuple[PassRecord, ...]
    costs: CostReport
    evaluation: tuple[TaskEvaluation, ...]
    builds: tuple[Built, ...]
    gates: tuple[GateResult, ...]
    folder: Path

    @property
    def failed(self) -> bool:
        """Whether a gate has failed, so that nothing was written."""
        return any(g.verdict == "failed" for g in self.gates)

    @property
    def unlinked(self) -> tuple[str, ...]:
        """Targets without a shared library, for lack of a linker."""
        return tuple(b.target.name for b in self.builds if not b.bundle.linked)

    def record(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "name": self.release.config.name,
            "folder": None if self.failed else str(self.folder),
            "targets": [_build_record(b) for b in self.builds],
            "summary": summary(self.costs),
            "costs": self.costs.record(),
            "evaluation": [e.record() for e in self.evaluation],
            "passes": [r.record() for r in self.records],
            "gates": [g.record() for g in self.gates],
        }


def _build_record(built: Built) -> dict[str, object]:
    test = built.selftest
    return {
        "target": built.target.name,
        "preset": built.target.preset,
        "linked": built.bundle.linked,
        "library_bytes": built.library_bytes,
        "pool_bytes": len(built.library.pool),
        "kernels": len(built.library.kernels),
        "selftest": None if test is None else {"status": test.status, "reason": test.reason},
    }


class FailedGates(GateError):
    """Some gates failed; carries everything that was measured. Nothing was written."""

    def __init__(self, compiled: Compiled) -> None:
        failed = [g for g in compiled.gates if g.verdict == "failed"]
        super().__init__(f"{len(failed)} of {len(compiled.gates)} gates failed; nothing was written")
        self.compiled = compiled


def workspace_of(library: Library) -> dict[frozenset[str], int]:
    """Bytes of workspace that a call of every listed subset needs."""
    return {frozenset(e.tasks): e.workspace_bytes for e in interface(library).entries}


def build(
    graph: Graph,
    target: str | Target = "host",
    output: str | Path = "dist",
    *,
    name: str | None = None,
    subsets: Sequence[frozenset[str]] | None = None,
    feeds: Sequence[Mapping[str, np.ndarray]] | None = None,
    seed: int = 0,
    threads: bool = True,
    force: bool = False,
    allow_unlinked: bool = False,
    selftest: bool = True,
    plan: str | Path | Sequence[str | Path] = (),
    tuning: str | Path | TuningDatabase | None = None,
    workers: Workers | None = None,
) -> Bundle:
    """Compile a graph for one target into the folder `output`.

    `feeds` are the golden inputs (default: seeded standard normal ones). `threads`: whether calls can be shared
    among threads; without it the library needs no pthread. `plan`: a plan.json, or a bundle, whose choices of
    algorithms and tiles are repeated exactly. `tuning`: measurements to choose by, "none" for the rule alone
    (default: those that come with taskgraft). `workers` compile the kernels; None: this process does.

    Raises ConfigError (name, existing folder, a plan that does not fit), UnsupportedModelError where no golden
    inputs give finite outputs, LoweringError, TargetError (no linker; the bundle is there all the same), GateError
    where the self-test fails.
    """
    goal = find_target(target) if isinstance(target, str) else target
    root = Path(output)
    if subsets is not None:
        subsets = [frozenset([s] if isinstance(s, str) else s) for s in subsets]
    check_names(name or graph.name, tuple(graph.tasks))
    check_macros(tuple(graph.tasks), subsets)
    planning = Planning(paths(plan), Path(tuning) if isinstance(tuning, str) else tuning)
    sources = planning.sources([goal])[goal.name]
    job = _Job(graph, name or graph.name, subsets, golden_of(graph, feeds, seed), {}, "", (), None, threads)
    with staged(root, [goal.name], force, name or graph.name) as folder:
        built = _build(job, goal, folder, sources, selftest=selftest, workers=workers)
        _require_selftests([built])
        if len(graph.tasks) <= MOST_TASKS:  # beyond, combinations have no table
            costs = cost_report(graph, workspace=built.workspace)
            report = BundleReport(graph, built.library, goal, str(built.bundle.manifest["build_id"]), costs)
            _write_reports(report, built.bundle.path / "reports")
    _require_linked([built], root, allow_unlinked)
    return replace(built.bundle, path=root / goal.name)


def compile_release(
    config: Config,
    *,
    output: str | Path | None = None,
    targets: Sequence[str] = (),
    force: bool = False,
    allow_unlinked: bool = False,
    allow_external_data: bool = False,
    selftest: bool = True,
    plan: str | Path | Sequence[str | Path] = (),
    tuning: str | Path | None = None,
    tune: float | None = None,
    workers: Workers | None = None,
    say: Say = silent,
) -> Compiled:
    """The whole release step. `output`, `targets`, `plan` and `tuning` replace those of the config.

    `plan`: files, bundles or output folders with the choices of every target. `tune`: seconds to measure choices
    for on this machine; the measurements go to `tuning`, or to tuning.json beside the output folder. `workers`
    compile the kernels of all targets; None: this process does. The bytes are the same.

    Raises FailedGates with everything measured, TargetError where a target could not be linked and
    `allow_unlinked` is not set (its bundle is written nevertheless), and what the stages raise.
    """
    wanted = [targets] if isinstance(targets, str) else targets or config.targets
    goals = [find_target(t) for t in dict.fromkeys(wanted)]
    root = Path(output) if output is not None else config.path(config.output) / config.name
    planning = planning_of(config, paths(plan), None if tuning is None else Path(tuning), tune)
    sources = {} if tune is not None else planning.sources(goals)
    with staged(root, [g.name for g in goals], force, config.name) as folder:
        release = load_release(config, allow_external_data=allow_external_data, say=say)
        evaluation_of(config, release.graph)  # what cannot be measured is told before hours of work
        refuse_too_many(release.graph.tasks)
        check_names(config.name, tuple(release.graph.tasks))
        check_macros(tuple(release.graph.tasks), config.subsets, bool(config.variants))
        graph, records = transform(release, say=say)
        if tune is not None:
            sources = tuned(graph, goals, planning, root, say, workers)
        job = _job(release, graph, records)
        builds = [
            _build(job, goal, folder, sources[goal.name], selftest=selftest, workers=workers, say=say)
            for goal in tracked(say, "targets", goals)
        ]
        compiled = _measured(release, graph, records, builds, folder, say)
        for built in builds:
            say(f"{built.target.name}: report")
            _write_reports(_report(compiled, built), built.bundle.path / "reports")
        if compiled.failed:
            raise FailedGates(compiled)
    _require_linked(builds, root, allow_unlinked)
    moved = [replace(b, bundle=replace(b.bundle, path=root / b.target.name)) for b in builds]
    return replace(compiled, builds=tuple(moved), folder=root)


def write_library(library: Library, target: Target, root: Path, golden: Golden, graph: Graph) -> Bundle:
    """Link a generated library into `root` with nothing but its graph beside it."""
    return write_bundle(
        library,
        target,
        root,
        sources={},
        golden=golden,
        graph_onnx=to_onnx(graph).SerializeToString(deterministic=True),
        config_text="",
    )


# ---------------------------------------------------------------------- one target
@dataclass(frozen=True)
class _Job:
    """What all targets of a build share."""

    graph: Graph
    name: str
    subsets: Sequence[frozenset[str]] | None
    golden: Golden
    sources: Mapping[str, str]
    config_text: str
    records: tuple[PassRecord, ...]
    release: Release | None
    threads: bool = True


def _job(release: Release, graph: Graph, records: tuple[PassRecord, ...]) -> _Job:
    config = release.config
    calibration = calibration_of(config, graph)
    feeds = None if calibration is None else [f for _, f in zip(range(GOLDEN_SAMPLES), calibration(), strict=False)]
    return _Job(
        graph=graph,
        name=config.name,
        subsets=config.subsets,
        golden=golden_of(graph, feeds, config.seed),
        sources=release.sources,
        config_text=config.resolved(),
        records=records,
        release=release,
        threads=config.threads,
    )


def golden_of(graph: Graph, feeds: Sequence[Mapping[str, np.ndarray]] | None, seed: int) -> Golden:
    """Inputs with the reference's outputs; UnsupportedModelError where no random input gives finite outputs, or
    `feeds` give an output no finite number; ConfigError where these do not fit the graph's inputs.
    """
    chosen = [_finite(graph, seed, i) for i in range(GOLDEN_SAMPLES)] if feeds is None else _fitting(graph, feeds)
    samples, close = [], []
    for feed in chosen:
        inputs = tuple(feed[v.ref.name] for v in graph.inputs)
        found, ties = zip(*(_outputs(at_level(graph, i), feed) for i in range(level_count(graph))), strict=True)
        samples.append(Sample(inputs, found[0], found[1:]))
        close += ties
    columns = zip(graph.outputs, zip(*(s.outputs for s in samples), strict=True), strict=True)
    lost = [v.ref.name for v, column in columns if not any(map(comparable, column))]
    if lost:
        raise UnsupportedModelError(
            f"'{graph.name}': what {', '.join(lost)} gives is infinite or no number on each of the first "
            f"{len(samples)} calibration inputs, so nothing can be compared; look at the data, at the scale of "
            "adapters, and at the weights"
        )
    return Golden(seed, tuple(samples), tolerances(graph), tuple(map(max, zip(*close, strict=True))))


def tolerances(graph: Graph) -> tuple[float, ...]:
    """Of every output: TOLERANCE, or what float16 on the way to it may change where that is more, at any level of a
    portfolio.
    """
    rounded = roundings(graph)
    return tuple(
        max(TOLERANCE, *(rounded[ref] for ref in column))
        for task in graph.tasks.values()
        for column in zip(*task.ladder, strict=True)
    )


def _fitting(graph: Graph, feeds: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Feeds in the element types of the inputs; ConfigError where one lacks an input, or there is none."""
    if isinstance(feeds, Mapping):
        raise ConfigError("feeds are golden inputs one after another, each by name; write [{name: array}]")
    feeds = list(feeds)
    if not feeds:
        raise ConfigError("there are no golden inputs in feeds; leave feeds out for random ones")
    for feed in feeds:
        if lacking := [v.ref.name for v in graph.inputs if v.ref.name not in feed]:
            named = ", ".join(map(repr, lacking))
            raise ConfigError(f"feeds: a golden input lacks {named}; it has {', '.join(feed)}")
    return [{v.ref.name: typed(v, np.asarray(feed[v.ref.name])) for v in graph.inputs} for feed in feeds]


def _outputs(graph: Graph, feed: Mapping[str, np.ndarray]) -> tuple[tuple[np.ndarray, ...], tuple[float, ...]]:
    """Outputs, and of each the share of its elements that are a decision too close to call."""
    found, ties = outputs_and_ties(graph, feed, SCALE_FLOOR)
    names = [v.ref.name for v in graph.outputs]
    shares = (float(ties[n].mean()) if n in ties and ties[n].size else 0.0 for n in names)
    return tuple(found[n] for n in names), tuple(shares)


def _finite(graph: Graph, seed: int, number: int) -> dict[str, np.ndarray]:
    """Seeded inputs on which every output is finite: others prove little."""
    for attempt in range(10):
        feeds = random_feeds(graph, np.random.default_rng([seed, number, attempt]))
        outputs = evaluate(graph, feeds)
        if _all_finite(outputs.values()):
            return feeds
    tasks = [t for t, task in graph.tasks.items() if not _all_finite(outputs[r.name] for r in task.outputs)]
    raise UnsupportedModelError(
        f"'{graph.name}': what {', '.join(tasks)} gives is infinite or no number on each of ten standard normal "
        "inputs, so nothing can be compared; give inputs of the kind that it is made for, as [calibration] data of "
        "a release or as `feeds` of `build`"
    )


def _all_finite(arrays: Iterable[np.ndarray]) -> bool:
    return all(np.isfinite(a).all() for a in arrays if a.dtype.kind == "f")


def _build(
    job: _Job,
    target: Target,
    folder: Path,
    sources: Sources,
    *,
    selftest: bool,
    workers: Workers | None = None,
    say: Say = silent,
) -> Built:
    say(f"{target.name}: generate")
    library = generate(
        job.graph, target, name=job.name, subsets=job.subsets, sources=sources, workers=workers, say=say
    )
    costs = None if job.release is None else job.release.costs(job.graph, workspace_of(library))
    say(f"{target.name}: {plural(len(library.kernels), 'kernel')}, {plural(len(library.programs), 'subset')}; link")
    bundle = write_bundle(
        library,
        target,
        folder,
        sources=job.sources,
        golden=job.golden,
        graph_onnx=to_onnx(job.graph).SerializeToString(deterministic=True),
        config_text=job.config_text,
        passes=[r.record() for r in job.records],
        costs=[] if costs is None else [r for rows in costs.levels for r in rows.records()],
        threads=job.threads,
        allow_unlinked=True,
    )
    test = None
    if selftest:
        say(f"{target.name}: self-test")
        test = run_selftest(bundle, target, quick=not target.native)
        say(f"{target.name}: self-test {test.status}{', ' * bool(test.reason)}{test.reason}")
    size = bundle.library.stat().st_size if bundle.linked else None
    return Built(target, library, bundle, size, test)


# ---------------------------------------------------------------------- measuring and judging
def _measured(
    release: Release,
    graph: Graph,
    records: tuple[PassRecord, ...],
    builds: Sequence[Built],
    folder: Path,
    say: Say,
) -> Compiled:
    runs = next(
        (b for b in builds if b.selftest is not None and b.selftest.status == "passed" and b.target.native), None
    )
    network = open_bundle(runs.bundle.path) if runs else None
    evaluation = evaluate_release(release, graph, network, say=say)
    costs = release.costs(graph, builds[0].workspace if builds else None)
    limits = release.config.gates
    gates = [_selftest_gate(b) for b in builds if b.selftest is not None]
    gates += [*check_tasks(limits, evaluation, portfolio=costs.portfolio), *check_costs(limits, costs)]
    for built in builds:
        gates += check_target(limits, built.target.name, built.library_bytes, built.workspace_max)
    return Compiled(release, graph, records, costs, evaluation, tuple(builds), tuple(gates), folder)


def _selftest_gate(built: Built) -> GateResult:
    assert built.selftest is not None
    return GateResult("selftest", built.target.name, None, None, built.selftest.status, built.selftest.reason)


def _report(compiled: Compiled, built: Built) -> BundleReport:
    return BundleReport(
        graph=compiled.graph,
        library=built.library,
        target=built.target,
        build_id=str(built.bundle.manifest["build_id"]),
        costs=compiled.release.costs(compiled.graph, built.workspace),
        records=compiled.records,
        evaluation=compiled.evaluation,
        gates=compiled.gates,
    )


def _write_reports(report: BundleReport, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, data in report.files().items():
        (folder / name).write_bytes(data)


def _require_selftests(builds: Sequence[Built]) -> None:
    failed = [b for b in builds if b.selftest is not None and b.selftest.status == "failed"]
    if failed:
        lines = [f"{b.target.name}: {b.selftest.reason}" for b in failed if b.selftest is not None]
        raise GateError("the self-test failed; nothing was written\n  " + "\n  ".join(lines))


def _require_linked(builds: Sequence[Built], root: Path, allow_unlinked: bool) -> None:
    missing = [b.target for b in builds if not b.bundle.linked]
    if missing and not allow_unlinked:
        names = ", ".join(t.name for t in missing)
        tools = ", ".join(dict.fromkeys(t.compilers[0] for t in missing))
        raise TargetError(
            f"no C compiler for {names}: the bundles in {root} hold the static archive, the header and LINK.txt "
            f"with the commands that link them. Install {tools} or the zig extra; --allow-unlinked, in Python "
            "allow_unlinked=True, accepts this"
        )
