"""`taskgraft verify`: is a model imported, exported and compiled right? And: is a bundle whole?

onnxruntime on the original file is the judge. Right means: error / max(max|r|, 1e-2) <= max(1e-4, 4 x spread), or
what rounding to float16 may change where that is more. The spread is the same error between onnxruntime's own
optimised and unoptimised results on that input. Integer outputs are equal unless the decision they record has a
margin below that limit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from compiler.calibration.engine import Engine
from compiler.codegen.bundle import read_bundle
from compiler.codegen.emulate import SelftestResult, run_selftest
from compiler.codegen.generate import generate
from compiler.codegen.golden import SCALE_FLOOR, Golden, Sample
from compiler.codegen.runtime import open_bundle
from compiler.codegen.target import find_target
from compiler.compile import tolerances, write_library
from compiler.errors import BundleError, CompilerError, ConfigError, UnsupportedModelError
from compiler.ir.decisions import outputs_and_ties
from compiler.ir.graph import Graph
from compiler.ir.levels import at_level, level_count
from compiler.ir.onnx_in import load
from compiler.ir.reference import comparable, difference, evaluate
from compiler.ir.types import DType
from compiler.measure import bundle_runner
from compiler.passes.base import Pass
from compiler.pipeline import Pipeline
from compiler.release import Say, silent

SPREADS = 4.0
PASSES = ("fold-constants", "fold-batch-norm", "remove-dead-code", "deduplicate")
"""Exact passes a model goes through before it is compiled."""

Arrays = Mapping[str, np.ndarray]
Stage = Literal["imported", "exported", "compiled"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One output of one stage against onnxruntime. `error` is relative to the output's scale."""

    stage: Stage
    output: str
    error: float
    limit: float
    right: bool
    note: str = ""

    def record(self) -> dict[str, object]:
        """JSON-ready."""
        finite = np.isfinite(self.error)
        return {
            "stage": self.stage,
            "output": self.output,
            "error": self.error if finite else None,
            "limit": self.limit,
            "right": self.right,
            "note": self.note or ("" if finite else "shape, type or non-finite elements differ"),
        }


@dataclass(frozen=True)
class Verification:
    """Every comparison; `spread`: output -> onnxruntime's own disagreement."""

    comparisons: tuple[Comparison, ...]
    spread: Mapping[str, float]
    seed: int

    @property
    def right(self) -> bool:
        """Whether every stage gave every output right."""
        return bool(self.comparisons) and all(c.right for c in self.comparisons)

    def record(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "right": self.right,
            "seed": self.seed,
            "spread": dict(self.spread),
            "comparisons": [c.record() for c in self.comparisons],
        }


def verify_model(
    path: Path,
    *,
    inputs: Mapping[str, Sequence[int]] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    seed: int = 0,
    allow_external_data: bool = False,
    say: Say = silent,
) -> Verification:
    """Lift, verify, export, compile for this machine, and compare each with onnxruntime on one seeded input.

    `inputs` binds free axes, `ranges` replaces the standard normal values of an input by uniform ones. Raises what
    import, export and compilation raise, and UnsupportedModelError where an output is never finite.
    """
    say("import")
    graph = load(path, inputs=inputs, task="network", allow_external_data=allow_external_data)
    plain, optimised = Engine(path, optimise=False), Engine(path)
    feeds, expected = _judged(graph, plain, ranges or {}, seed)
    other = optimised.run(feeds)
    spread = {n: relative(other[n], r) for n, r in expected.items()}
    say("evaluate the imported graph")
    stages: list[tuple[Stage, Arrays]] = []
    stages.append(("imported", _labelled(graph, evaluate(graph, feeds))))
    say("export")
    stages.append(("exported", _labelled(graph, Engine.of(graph).run(feeds))))
    if level_count(graph) > 1:
        say(f"compile level 0 of {level_count(graph)}: the model's own tensors")
    passed = _after_passes(at_level(graph, 0, alone=True))
    say("compile")
    stages.append(("compiled", _compiled(passed, feeds, expected, say)))
    close = close_calls(graph, feeds)
    labels = [label for task in graph.tasks.values() for label in task.labels]
    least = dict(zip(labels, tolerances(graph), strict=True))
    found = [c for stage, outputs in stages for c in _compare(stage, outputs, expected, spread, close, least)]
    return Verification(tuple(found), spread, seed)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Error relative to the tensor's scale, which counts as SCALE_FLOOR at least."""
    return difference(found, expected, SCALE_FLOOR)


def drawn_feeds(graph: Graph, ranges: Mapping[str, tuple[float, float]], seed: int) -> dict[str, np.ndarray]:
    """Seeded inputs: standard normal, or uniform in the given range; integers in a small range.

    ConfigError for a range of an input that does not exist, or beyond its element type.
    """
    names = [v.ref.name for v in graph.inputs]
    unknown = sorted(set(ranges) - set(names))
    if unknown:
        raise ConfigError(f"--range {unknown[0]}: there is no such input; the inputs are {', '.join(names)}")
    rng = np.random.default_rng(seed)
    feeds = {}
    drawn: np.ndarray
    for value in graph.inputs:
        low, high = ranges.get(value.ref.name, (0, 2))
        if value.ref.name in ranges and not _holds(value.dtype, low, high):
            raise ConfigError(
                f"--range {value.ref.name}:{low:g}:{high:g}: a {value.dtype.value} has no such values"
            )
        if value.ref.name in ranges and value.dtype.is_float:
            drawn = rng.uniform(low, high, value.shape)
        elif value.dtype.is_float:
            drawn = rng.standard_normal(value.shape)
        else:
            drawn = rng.integers(int(low), max(int(high), int(low) + 1), value.shape)
        feeds[value.ref.name] = np.asarray(drawn).astype(value.dtype.numpy)
    return feeds


def _holds(dtype: DType, low: float, high: float) -> bool:
    """Whether the type has what is drawn between low and high; of integers high itself is not."""
    if dtype.is_float:
        return max(high, -low) <= float(np.finfo(dtype.value).max)
    least, most = (0, 1) if dtype is DType.BOOL else (np.iinfo(dtype.value).min, np.iinfo(dtype.value).max)
    return least <= low and max(high - 1, low) <= most


def _judged(
    graph: Graph, engine: Engine, ranges: Mapping[str, tuple[float, float]], seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs and onnxruntime's outputs; another input is drawn where one gives an output nothing finite.

    UnsupportedModelError where ten do: equal to such outputs are those of many wrong networks.
    """
    for attempt in range(10):
        feeds = drawn_feeds(graph, ranges, seed + 1000 * attempt)
        expected = engine.run(feeds)
        lost = [name for name, r in expected.items() if not comparable(r)]
        if not lost:
            return feeds, expected
    raise UnsupportedModelError(
        f"'{graph.name}': what {', '.join(lost)} gives is infinite or no number on each of ten inputs, so nothing "
        "can be compared; give inputs of the kind that it is made for, as --range NAME:LO:HI; if there are none, "
        "weights are infinite or NaN: export a sound network"
    )


def _labelled(graph: Graph, outputs: Arrays) -> dict[str, np.ndarray]:
    """Outputs by their names in the source model."""
    return {
        label: outputs[ref.name]
        for task in graph.tasks.values()
        for ref, label in zip(task.outputs, task.labels, strict=True)
    }


def _after_passes(graph: Graph) -> Graph:
    passes: tuple[Pass, ...] = Pipeline.parse(PASSES).passes
    return Pipeline(passes).run(graph)[0]


def _compiled(graph: Graph, feeds: Arrays, expected: Arrays, say: Say) -> dict[str, np.ndarray]:
    target = find_target("host")
    library = generate(graph, target, name="verified")
    golden = Golden(0, (_sample(graph, feeds, expected),))
    with tempfile.TemporaryDirectory(prefix="taskgraft-") as work:
        bundle = write_library(library, target, Path(work), golden, graph)
        say("run the library")
        network = open_bundle(bundle.path)
        outputs = bundle_runner(network, graph)(feeds)
    return {
        label: array
        for task in graph.tasks.values()
        for label, array in zip(task.labels, outputs[task.name], strict=True)
    }


def _sample(graph: Graph, feeds: Arrays, expected: Arrays) -> Sample:
    labels = [label for t in graph.tasks.values() for label in t.labels]
    return Sample(tuple(feeds[v.ref.name] for v in graph.inputs), tuple(expected[label] for label in labels))


def _compare(
    stage: Stage,
    found: Arrays,
    expected: Arrays,
    spread: Mapping[str, float],
    close: Mapping[str, np.ndarray],
    least: Mapping[str, float],
) -> list[Comparison]:
    """`least`: the limit of each output where onnxruntime agrees with itself."""
    rows = []
    for name, reference in expected.items():
        if name not in found or found[name].dtype != reference.dtype:
            rows.append(Comparison(stage, name, float("inf"), least[name], False, "missing, or of another type"))
        elif reference.dtype.kind == "f":
            limit = max(least[name], SPREADS * spread[name])
            error = relative(found[name], reference)
            rows.append(Comparison(stage, name, error, limit, error <= limit))
        else:
            rows.append(_exactly(stage, name, found[name], reference, close.get(name)))
    return rows


def _exactly(
    stage: Stage, name: str, found: np.ndarray, reference: np.ndarray, close: np.ndarray | None
) -> Comparison:
    """An integer or boolean output: equal, or different only where the decision was too close to call."""
    if found.shape != reference.shape:
        return Comparison(stage, name, float("inf"), 0.0, False)
    differs = found != reference
    wrong = differs if close is None else differs & ~close
    note = f"{int(differs.sum())} of {differs.size} differ" if differs.any() else ""
    if note and not wrong.any():
        note += ", each with a decision margin below the limit"
    return Comparison(stage, name, float(differs.mean()) if differs.size else 0.0, 0.0, not wrong.any(), note)


# ---------------------------------------------------------------------- decisions
def close_calls(graph: Graph, feeds: Arrays) -> dict[str, np.ndarray]:
    """Integer and boolean outputs, by label, that record a decision -> where it is too close to call."""
    _, ties = outputs_and_ties(graph, feeds, SCALE_FLOOR)
    return {
        label: ties[ref.name]
        for task in graph.tasks.values()
        for ref, label in zip(task.outputs, task.labels, strict=True)
        if ref.name in ties
    }


# ---------------------------------------------------------------------- bundles
@dataclass(frozen=True, slots=True)
class BundleCheck:
    """Digests and self-test of one target."""

    target: str
    intact: bool
    selftest: SelftestResult | None
    reason: str = ""

    @property
    def right(self) -> bool:
        """Whole, and the self-test passed; a skipped one counts as whole only."""
        return self.intact and (self.selftest is None or self.selftest.status != "failed")

    def record(self) -> dict[str, object]:
        """JSON-ready."""
        test = self.selftest
        return {
            "target": self.target,
            "intact": self.intact,
            "selftest": None if test is None else test.status,
            "reason": self.reason or (test.reason if test else ""),
            "right": self.right,
        }


def verify_bundle(path: Path, targets: Sequence[str], *, say: Say = silent) -> tuple[BundleCheck, ...]:
    """Check every digest of each target in a bundle folder and run its self-test.

    Raises BundleError where a bundle is damaged, with all that were found.
    """
    checks: list[BundleCheck] = []
    broken: list[CompilerError] = []
    for name in targets or [""]:
        say(f"check {name or path}")
        try:
            bundle = read_bundle(path, name or None)
        except BundleError as error:
            broken.append(error)
            continue
        test = run_selftest(bundle, find_target(bundle.target))
        checks.append(BundleCheck(bundle.target, True, test))
    if broken:
        raise BundleError("\n".join(str(e) for e in broken))
    return tuple(checks)
