"""What a release file says, as frozen dataclasses with their defaults, and as TOML with every key written out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from compiler.ir.types import TensorType
from compiler.toml_table import dumps

SCHEMA = 1
DEFAULT_PASSES = ("fold-constants", "fold-batch-norm", "remove-dead-code", "deduplicate", "dead-channels")

LEVEL_PASSES = ("remove-dead-code", "deduplicate")
"""Those of them that keep levels, and the bits of a level that was taken from others."""
"""Constants first, so that batch norms have constant parameters; sharing before channels are counted."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class TaskConfig:
    """One network. `inputs`: own input name -> shared input; `shapes` binds free axes that those leave open."""

    model: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    output: tuple[str, ...] = ()
    adapter: tuple[Mapping[str, Any], ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CalibrationConfig:
    """Unlabelled inputs: an .npz file with an array per shared input, an .npy file, a folder of arrays, or
    "module:function". `cache`: a folder for statistics taken from them.
    """

    data: str = ""
    samples: int = 512
    cache: str = ""


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """Labelled inputs in the same form, with an array per task, and each task's metric (a name or
    "module:function").
    """

    data: str = ""
    metric: Mapping[str, str] = field(default_factory=dict)
    samples: int = 0
    """At most so many; 0 = all."""


@dataclass(frozen=True, slots=True)
class PlanningConfig:
    """Where algorithms and tiles come from: recorded plans (files, bundles or output folders), or a tuning database
    (a file, or "none" for the rule alone). Neither: the database that comes with taskgraft.
    """

    plan: tuple[str, ...] = ()
    tuning: str = ""


@dataclass(frozen=True, slots=True)
class Gates:
    """Limits that fail a compile. Accuracy drop and drift per task, FLOPs per combination, the rest in bytes."""

    max_accuracy_drop: Mapping[str, float] = field(default_factory=dict)
    max_output_drift: Mapping[str, float] = field(default_factory=dict)
    max_library: int | None = None
    max_workspace: int | None = None
    max_flops: Mapping[frozenset[str], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Config:
    """A release. `folder` is where its file lies; `subsets` None means every combination up to six tasks."""

    name: str
    folder: Path
    tasks: Mapping[str, TaskConfig]
    inputs: Mapping[str, TensorType] | None = None
    output: str = "dist"
    seed: int = 0
    calibration: CalibrationConfig = CalibrationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    workload: Mapping[frozenset[str], float] = field(default_factory=dict)
    passes: tuple[str, ...] = DEFAULT_PASSES
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name -> another pipeline for the same networks: together a portfolio, whose levels are in this order."""
    exclude: tuple[str, ...] = ()
    numerics: bool = True
    """Compare every pass on seeded inputs; exact ones are held to a limit."""
    subsets: tuple[frozenset[str], ...] | None = None
    targets: tuple[str, ...] = ("host",)
    threads: bool = True
    """Whether libraries can share a call among threads, for which they need pthread."""
    planning: PlanningConfig = PlanningConfig()
    gates: Gates = Gates()

    def path(self, name: str) -> Path:
        """A file the config names."""
        return self.folder / name

    def resolved(self) -> str:
        """TOML with every key written out; the same release gives the same text."""
        return dumps(_resolved(self))


def _resolved(config: Config) -> dict[str, Any]:
    join = {s: "+".join(t for t in config.tasks if t in s) for s in (*config.workload, *config.gates.max_flops)}
    subsets = config.subsets
    listed = "all" if subsets is None else ["+".join(t for t in config.tasks if t in s) for s in subsets]
    return {
        "schema": SCHEMA,
        "name": config.name,
        "output": config.output,
        "seed": config.seed,
        "input": {
            k: {"shape": list(t.shape), "dtype": t.dtype.value} for k, t in (config.inputs or _NOTHING).items()
        },
        "tasks": {k: _resolved_task(t) for k, t in config.tasks.items()},
        "calibration": {
            "data": config.calibration.data or None,
            "samples": config.calibration.samples,
            "cache": config.calibration.cache or None,
        },
        "evaluation": {
            "data": config.evaluation.data or None,
            "samples": config.evaluation.samples,
            "metric": dict(config.evaluation.metric),
        },
        "workload": {join[s]: p for s, p in config.workload.items()},
        "passes": {
            "pipeline": list(config.passes),
            "variants": {name: list(passes) for name, passes in config.variants.items()},
            "exclude": list(config.exclude),
            "numerics": config.numerics,
        },
        "subsets": {"include": listed},
        "targets": {"build": list(config.targets), "threads": config.threads},
        "planning": {"plan": list(config.planning.plan) or None, "tuning": config.planning.tuning or None},
        "gates": {
            "max_library": config.gates.max_library,
            "max_workspace": config.gates.max_workspace,
            "max_accuracy_drop": dict(config.gates.max_accuracy_drop),
            "max_output_drift": dict(config.gates.max_output_drift),
            "max_flops": {join[s]: n for s, n in config.gates.max_flops.items()},
        },
    }


def _resolved_task(task: TaskConfig) -> dict[str, Any]:
    return {
        "model": task.model,
        "output": list(task.output) or None,
        "adapter": [dict(s) for s in task.adapter] or None,
        "inputs": dict(task.inputs),
        "shapes": {k: list(v) for k, v in task.shapes.items()},
    }
