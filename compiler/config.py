"""Reading a release file: TOML into the dataclasses of `compiler.settings`. Paths are relative to the file.

An unknown key is an error that names the nearest valid one, and all errors are reported at once. No environment
variable changes anything.
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler.calibration.metrics import METRICS
from compiler.errors import ConfigError
from compiler.ir.names import RULE, is_c_name
from compiler.ir.types import DType, TensorType
from compiler.settings import (
    DEFAULT_PASSES,
    SCHEMA,
    CalibrationConfig,
    Config,
    EvaluationConfig,
    Gates,
    PlanningConfig,
    TaskConfig,
)
from compiler.toml_table import Table, amount, flag, kind, number, seed, shape, text, texts, whole

MOST_EVERY = 10
"""Tasks up to which `include = "every"` lists all combinations: 1,023 functions."""


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a release file; `overrides` are `key.path=value` with TOML values (bare words are strings).

    ConfigError lists every problem of the file at once.
    """
    file = Path(path)
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8-sig"))  # editors put a byte order mark in front
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        advice = ""
        if file.suffix == ".onnx":
            advice = f". It looks like a network; `taskgraft init {file.name}` writes a release file for it"
        raise ConfigError(f"{file}: not valid TOML: {error}{advice}") from None
    _override(data, overrides)
    return parse_config(data, file.parent, str(file))


def parse_config(data: Mapping[str, Any], folder: Path, where: str = "config") -> Config:
    """A config from parsed TOML; ConfigError with all problems, each under its dotted key."""
    problems: list[str] = []
    config = _config(Table(dict(data), "", problems), folder)
    if problems:
        raise ConfigError(
            f"{where}: {len(problems)} problem{'s' * (len(problems) > 1)}\n  " + "\n  ".join(problems)
        )
    return config


def _override(data: dict[str, Any], overrides: Iterable[str]) -> None:
    """Put values of `key.path=value` in their places; ConfigError where one cannot be read or undoes another."""
    done: dict[str, str] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        path = key.strip()
        if not equals or not path:
            raise ConfigError(f"--set {override}: write key.path=value")
        if lost := [done[p] for p in done if p == path or p.startswith(f"{path}.")]:
            raise ConfigError(f"--set {override}: would undo --set {lost[0]}; give one of them")
        done[path] = override
        _put(data, path.split("."), _parsed(value), override)


def _parsed(value: str) -> object:
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value


def _put(data: dict[str, Any], path: Sequence[str], value: object, override: str) -> None:
    *parents, last = path
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ConfigError(f"--set {override}: '{parent}' is not a table")
    data[last] = value


# ---------------------------------------------------------------------- tables
def _config(root: Table, folder: Path) -> Config:
    version = root.need("schema", whole, SCHEMA)
    if version != SCHEMA:
        root.problem("schema", f"is {version}; this version of taskgraft reads {SCHEMA}")
    inputs = _inputs(root)
    tasks = _tasks(root, list(inputs or ()))
    names = list(tasks)
    passes, workload, targets = root.table("passes"), _workload(root, names), root.table("targets")
    evaluation = _evaluation(root.table("evaluation"), names)
    config = Config(
        name=root.need("name", _name, "release"),
        folder=folder,
        tasks=tasks,
        inputs=inputs,
        output=root.take("output", text, "dist"),
        seed=root.take("seed", seed, 0),
        calibration=_calibration(root.table("calibration")),
        evaluation=evaluation,
        workload=workload,
        passes=passes.take("pipeline", texts, DEFAULT_PASSES),
        variants=_variants(passes.table("variants")),
        exclude=passes.take("exclude", texts, ()),
        numerics=passes.take("numerics", flag, True),
        subsets=_subsets(root.table("subsets"), names, workload),
        targets=_targets(targets),
        threads=targets.take("threads", flag, True),
        planning=_planning(root.table("planning")),
        gates=_gates(root.table("gates"), names, evaluation.metric),
    )
    passes.close()
    targets.close()
    root.close()
    return config


def _inputs(root: Table) -> dict[str, TensorType] | None:
    table, found = root.table("input"), {}
    for key in table:
        one = table.table(key)
        dtype = one.take("dtype", DType, DType.FLOAT32)
        found[key] = TensorType(dtype, one.need("shape", shape, ()))
        one.close()
    table.close()
    return found or None


def _tasks(root: Table, shared: Sequence[str]) -> dict[str, TaskConfig]:
    table, found = root.table("tasks"), {}
    for key in table:
        try:
            _name(key)
        except ValueError as error:
            table.problem(key, str(error))
        found[key] = _task(table.table(key), shared)
    if not found:
        root.problem("tasks", "a release needs at least one [tasks.NAME]")
    table.close()
    return found


def _task(table: Table, shared: Sequence[str]) -> TaskConfig:
    nothing: dict[str, str] = {}
    inputs = table.take("inputs", _texts_by_name, nothing)
    single = table.take("input", text, "")
    if single and inputs:
        table.problem("input", "give either `input` or `inputs`")
    elif single and len(shared) == 1:
        inputs = {single: shared[0]}
    elif single:
        declared = "several shared inputs are declared" if shared else "no shared input is declared as [input.NAME]"
        table.problem("input", f'{declared}; write inputs = {{ own_name = "shared_name" }}')
    config = TaskConfig(
        model=table.need("model", text, ""),
        inputs=inputs,
        output=table.take("output", _outputs, ()),
        adapter=table.take("adapter", _steps, ()),
        shapes=table.take("shapes", _shapes, {}),
    )
    table.close()
    return config


def _calibration(table: Table) -> CalibrationConfig:
    config = CalibrationConfig(
        table.take("data", text, ""), table.take("samples", whole, 512), table.take("cache", text, "")
    )
    table.close()
    return config


def _evaluation(table: Table, tasks: Sequence[str]) -> EvaluationConfig:
    data, samples, metrics = table.take("data", text, ""), table.take("samples", whole, 0), table.table("metric")
    found = {}
    for task in metrics:
        found[task] = metrics.take(task, _metric, "accuracy")
        if task not in tasks:
            metrics.problem(task, _unknown_task(task, tasks))
    if found and not data:
        table.problem("data", "is missing; metrics need labelled data")
    table.close()
    return EvaluationConfig(data, found, samples)


def _workload(root: Table, tasks: Sequence[str]) -> dict[frozenset[str], float]:
    found = _by_combination(root.table("workload"), tasks, number)
    total = math.fsum(found.values())
    if found and abs(total - 1) > 1e-6:
        root.problem("workload", f"the probabilities sum to {total:g}, not to 1")
    return found


def _subsets(
    table: Table, tasks: Sequence[str], workload: Mapping[frozenset[str], float]
) -> tuple[frozenset[str], ...] | None:
    every: tuple[str, ...] = ("all",)
    include = table.take("include", _listed, every)
    table.close()
    if include == ("all",):
        return None
    if include == ("workload",):
        if not workload:
            table.problem("include", '"workload" needs a [workload] table')
        return tuple(workload)
    if include == ("every",):
        return _every(table, tasks)
    found: list[frozenset[str]] = []
    for one in include:
        try:
            found.append(combination(one, tasks))
        except ValueError as error:
            table.problem("include", str(error))
    if len(set(found)) < len(found):
        table.problem("include", "a combination is listed twice")
    if not include:
        table.problem("include", 'lists nothing; leave it out, or write "all"')
    return tuple(found)


def _every(table: Table, tasks: Sequence[str]) -> tuple[frozenset[str], ...]:
    """Every non-empty set of tasks, small ones first; a problem where these are too many."""
    if len(tasks) > MOST_EVERY:
        table.problem(
            "include",
            f'"every" would make {2 ** len(tasks) - 1:,} functions of {len(tasks)} tasks; it serves up to '
            f"{MOST_EVERY}. List the combinations that are called; any other runs through the table",
        )
        return ()
    sizes = range(1, len(tasks) + 1)
    return tuple(frozenset(c) for size in sizes for c in itertools.combinations(tasks, size))


def _listed(value: object) -> tuple[str, ...]:
    if not isinstance(value, str):
        return texts(value)
    if value not in ("all", "every", "workload"):
        raise ValueError(f'expected "all", "every", "workload" or an array of combinations, found \'{value}\'')
    return (value,)


def _targets(table: Table) -> tuple[str, ...]:
    default: tuple[str, ...] = ("host",)
    names = table.take("build", texts, default)
    if len(set(names)) < len(names):
        table.problem("build", "a target is listed twice")
    if not names:
        table.problem("build", "lists nothing; leave it out for this machine, or name targets")
    return names


def _variants(table: Table) -> dict[str, tuple[str, ...]]:
    """Pipelines by name."""
    nothing: tuple[str, ...] = ()
    found = {name: table.take(name, texts, nothing) for name in table}
    table.close()
    return found


def _planning(table: Table) -> PlanningConfig:
    config = PlanningConfig(table.take("plan", _one_or_more, ()), table.take("tuning", text, ""))
    if config.plan and config.tuning:
        table.problem("plan", "give either `plan` or `tuning`; a plan fixes every choice")
    table.close()
    return config


def _gates(table: Table, tasks: Sequence[str], metrics: Mapping[str, str]) -> Gates:
    gates = Gates(
        max_accuracy_drop=_per_task(table, "max_accuracy_drop", tasks),
        max_output_drift=_per_task(table, "max_output_drift", tasks),
        max_library=table.take("max_library", amount, None),
        max_workspace=table.take("max_workspace", amount, None),
        max_flops=_flops_gate(table, tasks),
    )
    if unmeasured := [t for t in gates.max_accuracy_drop if t not in metrics]:
        table.problem(
            "max_accuracy_drop",
            f"nothing measures {', '.join(unmeasured)}; name a metric of each in [evaluation.metric], or limit "
            "only tasks that have one, as in { age = 0.01 }; max_output_drift needs no metric",
        )
    bounds = {t: METRICS[m].most for t, m in metrics.items() if m in METRICS}
    if idle := [t for t, n in gates.max_accuracy_drop.items() if n >= bounds.get(t, math.inf)]:
        table.problem(
            "max_accuracy_drop",
            f"limits nothing for {', '.join(idle)}: {metrics[idle[0]]} lies from 0 to 1; two per cent are 0.02",
        )
    table.close()
    return gates


def _per_task(table: Table, key: str, tasks: Sequence[str]) -> dict[str, float]:
    """A number for all tasks, or a table by task."""

    def convert(value: Any) -> dict[str, float]:
        if not isinstance(value, dict):
            return dict.fromkeys(tasks, number(value))
        unknown = [t for t in value if t not in tasks]
        if unknown:
            raise ValueError("; ".join(_unknown_task(t, tasks) for t in unknown))
        return {t: number(v) for t, v in value.items()}

    return table.take(key, convert, {})


def _flops_gate(table: Table, tasks: Sequence[str]) -> dict[frozenset[str], int]:
    if table.has("max_flops") and not isinstance(table.take("max_flops", lambda v: v, None), dict):
        return {frozenset(tasks): table.take("max_flops", amount, 0)}
    return _by_combination(table.table("max_flops"), tasks, amount)


def _by_combination(table: Table, tasks: Sequence[str], convert: Any) -> dict[frozenset[str], Any]:
    found: dict[frozenset[str], Any] = {}
    for key in table:
        value = table.take(key, convert, 0)
        try:
            subset = combination(key, tasks)
        except ValueError as error:
            table.problem(key, str(error))
            continue
        if subset in found:
            table.problem(key, "the combination is listed twice")
        found[subset] = value
    return found


def combination(key: str, tasks: Sequence[str]) -> frozenset[str]:
    """`age+gender` as a set; ValueError for unknown or repeated tasks."""
    names = [n.strip() for n in key.split("+")]
    unknown = [n for n in names if n not in tasks]
    if unknown:
        raise ValueError("; ".join(_unknown_task(n, tasks) for n in unknown))
    if len(set(names)) < len(names):
        raise ValueError(f"'{key}' names a task twice")
    return frozenset(names)


def _unknown_task(name: str, tasks: Sequence[str]) -> str:
    return f"there is no task '{name}'; the tasks are {', '.join(tasks) or 'none'}"


# ---------------------------------------------------------------------- values
def _name(value: object) -> str:
    name = text(value)
    if not is_c_name(name):
        raise ValueError(f"'{name}' becomes part of C names: {RULE}")
    return name


def _metric(value: object) -> str:
    name = text(value)
    if name not in METRICS and ":" not in name:
        raise ValueError(f"unknown metric '{name}'; known are {', '.join(METRICS)}, or \"package.module:function\"")
    return name


def _one_or_more(value: object) -> tuple[str, ...]:
    return (text(value),) if isinstance(value, str) else texts(value)


def _outputs(value: object) -> tuple[str, ...]:
    names = _one_or_more(value)
    if not names:
        raise ValueError("lists nothing; leave it out for all outputs")
    if len(set(names)) < len(names):
        raise ValueError("an output is listed twice")
    return names


def _texts_by_name(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a table, found {kind(value)}")
    return {k: text(v) for k, v in value.items()}


def _shapes(value: object) -> dict[str, tuple[int, ...]]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a table of shapes, found {kind(value)}")
    return {k: shape(v) for k, v in value.items()}


def _steps(value: object) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise ValueError(f"expected an array of tables such as [{{ scale = 0.5 }}], found {kind(value)}")
    strange = [f"{k} = {v}" for step in value for k, v in step.items() if not _plain(v)]
    if strange:
        raise ValueError(f"{strange[0]}: a step takes numbers, strings, booleans and arrays of them")
    return tuple(value)


def _plain(value: object) -> bool:
    """Whether a value is a number, a string, a boolean, or an array of these."""
    return all(map(_plain, value)) if isinstance(value, list) else isinstance(value, (bool, int, float, str))
