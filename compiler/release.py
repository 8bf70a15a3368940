"""A release up to the graph that is compiled: load the networks, join them, run the passes."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from compiler.calibration.data import Arrays, CalibrationSet, load_arrays, with_samples
from compiler.calibration.metrics import metric
from compiler.calibration.samples import Feeds, open_calibration
from compiler.codegen.variants import refuse_too_large
from compiler.cost.combine import CostReport, cheapest_levels, cost_report
from compiler.errors import CompilerError, ConfigError, UnsafeInputError, listed, plural
from compiler.files import takes_files
from compiler.ir.graph import Graph, Value
from compiler.ir.onnx_in import load
from compiler.ir.onnx_nodes import declared_shape
from compiler.ir.portfolio import portfolio
from compiler.ir.reference import evaluate, random_feeds
from compiler.ir.safety import read_model
from compiler.ir.types import TensorType
from compiler.ir.union import Binding, Member, union
from compiler.passes.base import Judge, Resources, Timer, check_patterns
from compiler.passes.extract import ExtractTasks
from compiler.pipeline import Observer, PassRecord, Pipeline
from compiler.progress import Say as Say
from compiler.progress import silent as silent
from compiler.progress import tracked
from compiler.settings import Config, TaskConfig

SHARING = ("deduplicate",)
"""What runs on a portfolio: what its networks have in common, such as adapters, is computed and stored once."""


@dataclass(frozen=True)
class Release:
    """The networks of a config, each on its own and joined; nothing is optimised yet."""

    config: Config
    members: Mapping[str, Graph]
    """Key of [tasks] -> the network as imported, with its own input names."""
    graph: Graph
    """All of them over the shared inputs."""
    sources: Mapping[str, str]
    """Label of every file that was read -> sha256."""

    def separate(self) -> dict[str, Graph]:
        """Every task as a network of its own, adapters included: what running them side by side costs."""
        return {t: ExtractTasks(tasks=(t,))(self.graph) for t in self.graph.tasks}

    def costs(self, graph: Graph, workspace: Mapping[frozenset[str], int] | None = None) -> CostReport:
        """The cost of every combination in `graph`, beside the separate networks."""
        return cost_report(graph, self.separate(), workspace=workspace)


def load_release(config: Config, *, allow_external_data: bool = False, say: Say = silent) -> Release:
    """Import every network of a config and join them.

    All networks are tried, so that one run shows every problem. Raises what the first failing one raised when there
    is one, else the class of the first with all messages; ConfigError before, where a pass cannot be read.
    """
    for passes in (config.passes, *config.variants.values()):
        Pipeline.parse(passes)
    members: dict[str, Graph] = {}
    sources: dict[str, str] = {}
    failures: list[CompilerError] = []
    for key, task in tracked(say, "networks", config.tasks.items()):
        say(f"import {key}: {task.model}")
        path = config.path(task.model)
        try:
            shapes = bound_shapes(path, task, config.inputs or {}, allow_external_data)
            members[key] = load(path, inputs=shapes, task=None, allow_external_data=allow_external_data)
            sources[f"{key}/{Path(task.model).name}"] = digest_of(path)
        except CompilerError as error:
            failures.append(error)
    if failures:
        raise joined(failures)
    _refuse_named(config, members)
    _refuse_undefined(config, members)
    say(f"join {plural(len(members), 'network')}")
    shared = config.inputs or {}
    parts = {k: member_of(config.tasks[k], g, shared) for k, g in members.items()}
    graph = union(parts, config.inputs, name=config.name)
    return Release(config, members, graph, {**sources, **_data_digests(config)})


def _refuse_named(config: Config, members: Mapping[str, Graph]) -> None:
    """ConfigError where a metric, gate or combination names a file that holds several tasks: they are called
    otherwise, so that nothing would be measured."""
    evaluation, gates = config.evaluation, config.gates
    named = {*evaluation.metric, *gates.max_accuracy_drop, *gates.max_output_drift}
    named.update(*config.workload, *(config.subsets or ()), *gates.max_flops)
    problems = [
        f"task '{key}': {config.tasks[key].model} holds the tasks {', '.join(graph.tasks)}, and metrics, gates and "
        f"combinations name one each; `taskgraft extract` with --tasks {next(iter(graph.tasks))} writes one of "
        "them as a file of its own"
        for key, graph in members.items()
        if key in named and len(graph.tasks) > 1
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _refuse_undefined(config: Config, members: Mapping[str, Graph]) -> None:
    """UnsafeInputError where NaN among a network's weights reach its outputs: every comparison with them would pass
    or fail by chance, and networks merged with it would take it over."""
    problems = []
    for key, graph in members.items():
        weights = [w for v in graph.values() if (w := _undefined(v))]
        if not weights:
            continue
        outputs = evaluate(graph, random_feeds(graph, np.random.default_rng(config.seed))).values()
        if any(a.dtype.kind == "f" and np.isnan(a).any() for a in outputs):
            problems.append(
                f"task '{key}': {config.tasks[key].model} gives NaN, because its weights do: the training "
                f"diverged, or the file is damaged. Export a sound network{listed(weights)}"
            )
    if problems:
        raise UnsafeInputError("\n".join(problems))


def _undefined(value: Value) -> str:
    """How many numbers of a parameter are NaN; empty where none is."""
    if value.data is None or value.constant.dtype.kind != "f":
        return ""
    count = int(np.isnan(value.constant).sum())
    return f"'{value.ref}' holds {count:,} NaN of {value.constant.size:,} numbers" if count else ""


def joined(failures: Sequence[CompilerError]) -> CompilerError:
    """One error for several of possibly different kinds; the first decides the kind."""
    if len(failures) == 1:
        return failures[0]
    return type(failures[0])("\n".join(str(f) for f in failures))


def digest_of(path: Path) -> str:
    """SHA-256 (hex) of a file; ConfigError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def member_of(task: TaskConfig, graph: Graph, shared: Mapping[str, TensorType]) -> Member:
    """A network with the bindings that a release states; the adapter feeds those inputs, or the only one.

    ConfigError where it is not said which input the adapter feeds.
    """
    bindings = {own: Binding(name, task.adapter) for own, name in task.inputs.items()}
    if task.adapter and not bindings:
        own = graph.inputs[0].ref.name
        if len(graph.inputs) != 1 or not (own in shared or len(shared) == 1):
            raise ConfigError(f'{task.model}: say which input the adapter feeds: input = "its own name"')
        bindings = {own: Binding(own if own in shared else next(iter(shared)), task.adapter)}
    return Member(graph, bindings, task.output)


def bound_shapes(
    path: Path, task: TaskConfig, shared: Mapping[str, TensorType], allow_external_data: bool
) -> dict[str, tuple[int, ...]]:
    """Shapes for the free axes of a network: those the config gives, then those of shared inputs read directly."""
    shapes = dict(task.shapes)
    if not shared or (task.adapter and not task.inputs):
        return shapes
    adapted = task.inputs if task.adapter else ()
    model = read_model(path, allow_external_data=allow_external_data)
    constants = {t.name for t in model.graph.initializer}
    for info in model.graph.input:
        stated = declared_shape(info.type)
        free = stated is None or None in stated
        source = task.inputs.get(info.name, info.name if info.name in shared else None)
        if source is None and len(shared) == 1:
            source = next(iter(shared))
        direct = info.name not in adapted and info.name not in constants
        if free and direct and source is not None and source in shared:
            shapes.setdefault(info.name, shared[source].shape)
    return shapes


def _data_digests(config: Config) -> dict[str, str]:
    """Digests of the data files the build depends on."""
    found = {}
    for label, source in (("calibration", config.calibration.data), ("evaluation", config.evaluation.data)):
        if source and config.path(source).is_file():
            found[f"data/{label}"] = digest_of(config.path(source))
    return found


def calibration_of(config: Config, graph: Graph) -> Feeds | None:
    """The unlabelled inputs of a release as feeds of `graph`; None where the config names none."""
    source = config.calibration.data
    if not source:
        return None
    return open_calibration(source, config.folder, graph.inputs, config.calibration.samples)


def evaluation_of(config: Config, graph: Graph) -> tuple[CalibrationSet, Arrays] | None:
    """The labelled inputs as feeds, and every other array by name; None where the config names none.

    ConfigError where they do not fit, or a metric cannot be imported.
    """
    source = config.evaluation.data
    if not source:
        return None
    for name in config.evaluation.metric.values():
        metric(name)
    arrays = load_arrays(source, config.folder)
    found = CalibrationSet(arrays, graph.inputs, config.evaluation.samples)
    _check_labels(arrays, graph, config.evaluation.metric)
    return found, arrays


def _check_labels(arrays: Arrays, graph: Graph, tasks: Collection[str]) -> None:
    """ConfigError where a task has no labels, where there are neither as many as rows of data nor as calls they
    make, for they are of other data, and where an array is an input, for it holds no labels then."""
    inputs = {v.ref.name for v in graph.inputs}
    if both := [t for t in tasks if t in inputs]:
        raise ConfigError(
            f"the evaluation data cannot hold labels of task '{both[0]}': the array of this name is an input; "
            "call the task otherwise"
        )
    if lacking := [t for t in tasks if t not in arrays]:
        raise ConfigError(f"the evaluation data lacks labels '{lacking[0]}'; it has {', '.join(sorted(arrays))}")
    _check_counts(arrays, graph, tasks, "evaluation")


def _check_counts(arrays: Arrays, graph: Graph, tasks: Collection[str], kind: str) -> None:
    """ConfigError where labels are neither as many as rows of data of a kind nor as calls they make."""
    labelled = list(tasks)
    with_samples(arrays, labelled)
    value = next(iter(graph.inputs), None)
    if not labelled or value is None or value.ref.name not in arrays:
        return  # what is missing is told where the data are read
    rows, first = len(arrays[value.ref.name]), value.shape[0] if value.rank else 1
    counts = {rows, rows * first, rows // max(first, 1)}
    wrong = [f"'{t}' {len(arrays[t])}" for t in labelled if len(arrays[t]) not in counts]
    if wrong:
        raise ConfigError(f"the {kind} data hold {rows} samples and other numbers of labels: {', '.join(wrong)}")


def labels_of(config: Config, graph: Graph) -> Arrays:
    """Class labels that lie beside the calibration inputs of a release, by task; only an .npz file can have any."""
    source = config.calibration.data
    if not source.endswith(".npz"):
        return {}
    arrays = load_arrays(source, config.folder)
    limit = config.calibration.samples or None
    inputs = {v.ref.name for v in graph.inputs}
    labelled = [t for t in graph.tasks if t in arrays and t not in inputs]
    _check_counts(arrays, graph, labelled, "calibration")
    return {t: arrays[t][:limit] for t in labelled}


def resources(config: Config, graph: Graph, say: Say = silent) -> Resources:
    """What the passes of a release may use; `graph` is the originals joined, before any pass.

    ConfigError where a pattern of `exclude` names nothing in it, or nothing can be written to the cache.
    """
    check_patterns(graph, config.exclude, "passes.exclude")
    cache = config.path(config.calibration.cache) if config.calibration.cache else None
    if cache and not takes_files(cache):
        raise ConfigError(f"calibration.cache {cache}: not a folder that can be written to; name another")
    calibration = calibration_of(config, graph)
    return Resources(
        calibration=calibration,
        seed=config.seed,
        workload=config.workload,
        exclude=config.exclude,
        teacher=graph,
        labels=labels_of(config, graph),
        say=say,
        cache=cache,
        clock=clock_of(config),
        judge=judge_of(config, graph),
    )


def clock(target: str) -> Timer:
    """Predicted times on a target; the planner is loaded only where a pass asks for them."""
    from compiler.codegen.predict import planner_clock

    return planner_clock(target)


def tuning_of(config: Config) -> Path | None:
    """The tuning database that a release names (the path `none`: the rule alone); None: the one of taskgraft."""
    from compiler.codegen.tuning import NO_DATABASE

    named = config.planning.tuning
    return None if not named else Path(named) if named == NO_DATABASE else config.path(named)


def clock_of(config: Config) -> Callable[[str], Timer]:
    """Predicted times by the measurements that a release plans with; their file is read when a pass asks."""
    if not config.planning.tuning:
        return clock

    @functools.cache
    def timed(target: str) -> Timer:
        from compiler.codegen.predict import timer_by

        return timer_by(tuning_of(config), target)

    return timed


def judge_of(config: Config, graph: Graph) -> Judge | None:
    """Accuracy lost against `graph` on the evaluation data of a release; None where it names no metric."""
    if not (config.evaluation.metric and config.evaluation.data):
        return None

    return _ReleaseJudge(config, graph)


class _ReleaseJudge:
    """The judge of a release, whose data are read when it is first asked."""

    def __init__(self, config: Config, graph: Graph) -> None:
        self._config, self._graph = config, graph

    @property
    def most_drop(self) -> float:
        """The most that any metric can drop."""
        return max(metric(name).most for name in self._config.evaluation.metric.values())

    @functools.cached_property
    def _ready(self) -> Judge:
        from compiler.calibration.judge import AccuracyJudge

        found = evaluation_of(self._config, self._graph)
        assert found is not None
        return AccuracyJudge(self._graph, *found, self._config.evaluation.metric)

    def __call__(self, candidate: Graph) -> Mapping[str, float]:
        return self._ready(candidate)


def transform(
    release: Release,
    *,
    stop_after: str | None = None,
    observers: Sequence[Observer] = (),
    say: Say = silent,
) -> tuple[Graph, tuple[PassRecord, ...]]:
    """Run the pipeline of the config on the joined graph.

    Where it has variants they run too, and the result is a portfolio of all, unless `stop_after` ends the first
    pipeline at a pass. `observers` see the first pipeline.
    """
    config = release.config
    pipeline = Pipeline.parse(config.passes, config.numerics)
    variants = {} if stop_after else {n: Pipeline.parse(p, config.numerics) for n, p in config.variants.items()}
    use = resources(config, release.graph, say)
    if variants:
        _refuse_variants(release.graph, use, {"pipeline": pipeline, **variants})
    if config.subsets and not stop_after:
        _refuse_subsets(config.subsets, pipeline.check(release.graph, use).tasks)
    say(f"{plural(len(pipeline.passes), 'pass')}: {', '.join(map(str, pipeline.passes))}")
    graph, records = pipeline.run(release.graph, use, observers=observers, stop_after=stop_after)
    if not variants:
        return graph, records
    found = [graph]
    for name, variant in variants.items():
        say(f"variant {name}, {plural(len(variant.passes), 'pass')}: {', '.join(map(str, variant.passes))}")
        try:
            graph, more = variant.run(release.graph, use)
        except CompilerError as error:
            error.add_note(f"in variant {name}")
            raise
        found.append(graph)
        records += tuple(replace(r, variant=name) for r in more)
    joint = portfolio(found, names=["the pipeline's network", *(f"variant {name}" for name in variants)])
    graph, more = Pipeline.parse(SHARING, config.numerics).run(joint, use)
    _say_cheapest(graph, variants, say)
    return graph, records + more


def _say_cheapest(graph: Graph, variants: Iterable[str], say: Say) -> None:
    """Tell for how many combinations each network of a portfolio is the cheapest."""
    levels = cheapest_levels(graph)[1:]
    for level, name in enumerate(["pipeline", *variants]):
        say(f"level {level}, {name}: the cheapest for {levels.count(level)} of {len(levels)} combinations of tasks")


def _refuse_subsets(subsets: Iterable[frozenset[str]], left: Sequence[str]) -> None:
    """ConfigError, before any pass runs, where a subset is listed whose tasks the pipeline takes out."""
    if gone := sorted(frozenset().union(*subsets) - set(left)):
        raise ConfigError(
            f"subsets.include: the pipeline leaves the tasks {', '.join(left)}, and combinations with "
            f"{', '.join(gone)} are listed; list those of the tasks that are left, or keep more in extract-tasks"
        )


def _refuse_variants(graph: Graph, use: Resources, pipelines: Mapping[str, Pipeline]) -> None:
    """ConfigError, before any pass runs, where a network of a portfolio would have levels of its own or tasks that
    the first has not, or where there are more of them, or tasks, than a library holds."""
    ahead = {name: pipeline.check(graph, use) for name, pipeline in pipelines.items()}
    first = ahead["pipeline"].tasks
    refuse_too_large(graph.name, len(first), len(pipelines))
    if nested := [name for name, found in ahead.items() if found.levels > 1]:
        raise ConfigError(
            f"passes: {', '.join(nested)} would make sparsity levels, and networks of a portfolio have none; leave "
            "out nest, or the variants"
        )
    if strange := {name: lost for name, found in ahead.items() if (lost := sorted(set(found.tasks) - set(first)))}:
        told = "; ".join(f"{name} would answer {', '.join(tasks)}" for name, tasks in strange.items())
        raise ConfigError(
            f"passes: the pipeline leaves the tasks {', '.join(first)}, and {told}; extract the same tasks, or "
            "fewer, in every variant"
        )
