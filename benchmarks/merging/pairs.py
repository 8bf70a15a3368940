"""Other people's networks, two that look at the same face: what both cost when they are merged and narrowed.

The networks come as they are, with the adapters of a release for the colours and values that each was trained on.
They are merged, narrowed and trained towards their own answers on faces without labels. Each budget is judged on
people whom the training has not seen: by labels where there are any, else by how far answers move. The smallest
budget that keeps every limit on the people who choose counts; the figures beside it are those of other people.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.merging import faces, methods, pair_record
from benchmarks.merging.faces import Faces, People, load_people
from benchmarks.merging.methods import expected_macs, macs
from benchmarks.merging.pair_record import PAIRS, Pair, Point, family_record, smallest, table
from benchmarks.merging.record import OURS, passes_of
from benchmarks.results import keep
from compiler import Graph, parse_pass
from compiler.calibration.evaluation import collect
from compiler.calibration.judge import graph_runner
from compiler.calibration.moments import content_key
from compiler.config import parse_config
from compiler.ir.text import digest
from compiler.passes.base import Resources
from compiler.passes.narrow.narrowing import Narrow, Narrowing
from compiler.release import load_release

EXACT = ("fold-constants", "fold-batch-norm", "remove-dead-code", "deduplicate")

SHARES = (0.76, 0.6, 0.45, 0.33)
"""Budgets: expected multiply-adds of a request, of what the two networks cost side by side."""

SAMPLES = 512
"""Faces that merging and ranking look at."""

SEED = 0

JOINS = tuple(f"merge{{max_loss={loss},max_drift={loss},samples=256}}" for loss in (0.02, 0.1))
"""Joins within limits, without training."""

SHARED = f"merge{{start=shared,samples=256}};prune-channels{{flops=FIRST,score=obs,samples={SAMPLES}}}"

EPOCHS_MERGED, EPOCHS_NARROWED, BETWEEN, RATE = 5, 3, 0.1, 2e-3

SWEEPS = ("separate", OURS, "joins")
"""Methods in the order they run; what the first costs within the limits caps the second."""

SOURCE = Path(__file__).read_bytes()
"""This file, whose change makes earlier sweeps worthless."""


@dataclass(frozen=True, slots=True)
class Options:
    """Folders of the files and of finished sweeps, and the methods to run."""

    networks: Path
    data: Path
    kept: Path
    methods: Sequence[str] = SWEEPS

    def named(self) -> str:
        """The methods as the command line names them, nothing where all run."""
        return "" if tuple(self.methods) == SWEEPS else "".join(f" --method {m}" for m in self.methods)


class Study:
    """One pair on some people."""

    def __init__(self, pair: Pair, networks: Path, people: People, say: Callable[[str], None]) -> None:
        self.pair, self.people, self._say = pair, people, say
        self.originals = joined(pair, networks)
        self._inputs = {self.originals.inputs[0].ref.name: people.unlabelled}
        self._answers = [outputs_on(self.originals, part) for part in (people.selection, people.report)]
        self.before = self.point(self.originals)

    def use(self, samples: int = 0) -> Resources:
        """Faces without labels (0: all of them), and the originals to learn from."""
        inputs = {n: a[: samples or None, None] for n, a in self._inputs.items()}
        return Resources(calibration=inputs, seed=SEED, teacher=self.originals)

    def point(self, graph: Graph) -> Point:
        """Cost and scores of a graph."""
        scores = []
        for part, answers in zip((self.people.selection, self.people.report), self._answers, strict=True):
            found = outputs_on(graph, part)
            scores.append({t: k.score(found[t], answers[t], part.labels) for t, k in self.pair.tasks.items()})
        share = expected_macs(graph) / expected_macs(self.originals)
        return Point(share, {"+".join(q): n for q, n in macs(graph).items()}, *scores)

    def sweep(self, start: str, caps: Point | None = None) -> Iterator[Point]:
        """A start, trained where it changed something, then narrowed from budget to budget; each is trained aside.

        `start` "": the networks apart. `caps`: what combinations should not cost more than.
        """
        graph = self.originals
        for text in passes_of(start, len(graph.tasks)):
            graph = parse_pass(text)(graph, self.use(SAMPLES))
        if start:
            graph = self.trained(graph, EPOCHS_MERGED)
            yield self.said(start, graph)
        first = expected_macs(graph) / expected_macs(self.originals)
        options = Narrow(loss=self.pair.loss, between=BETWEEN, whole=not start, drawn=SAMPLES)
        narrowing = Narrowing(options, graph, self.use())
        limits = {} if caps is None else {frozenset(q.split("+")): float(n) for q, n in caps.macs.items()}
        for share in SHARES:
            if share < first:
                narrowing.down_to(share / first, limits)
                yield self.said(start, self.trained(narrowing.graph(), EPOCHS_NARROWED))

    def joins(self) -> Iterator[Point]:
        """Joins within limits, without training."""
        for text in JOINS:
            yield self.said(text, parse_pass(text)(self.originals, self.use(SAMPLES)))

    def trained(self, graph: Graph, epochs: int) -> Graph:
        """The graph after training towards the originals, without labels."""
        return parse_pass(f"distil{{epochs={epochs},rate={RATE},loss={self.pair.loss}}}")(graph, self.use())

    def said(self, start: str, graph: Graph) -> Point:
        """The graph's point, shown."""
        point = self.point(graph)
        scores = ", ".join(f"{t} {point.selection[t]:.2f}" for t in point.selection)
        self._say(f"  {start or 'separate'} at {point.share:.2f}: {scores}; {point.macs}")
        return point


def joined(pair: Pair, networks: Path) -> Graph:
    """The networks of a pair over one face, with what is exact done."""
    graph = load_release(parse_config(pair.release(), networks)).graph
    for text in EXACT:
        graph = parse_pass(text)(graph)
    return graph


def outputs_on(graph: Graph, faces: Faces) -> dict[str, np.ndarray]:
    """Task -> its first output on all faces, in onnxruntime."""
    name = graph.inputs[0].ref.name
    found = collect(graph_runner(graph), ({name: image[None]} for image in faces.images))
    return {t: outputs[0] for t, outputs in found.items()}


def kept_sweep(study: Study, method: str, caps: Point | None, kept: Path) -> tuple[list[Point], float]:
    """The points of a method and the minutes they took, or what an earlier run left in `kept`."""
    makes = {"separate": lambda: study.sweep(""), OURS: lambda: study.sweep(SHARED, caps), "joins": study.joins}
    what = repr((method, caps, study.before, len(study.people.unlabelled)))
    sources = (Path(m.__file__).read_bytes() for m in (faces, methods, pair_record))
    key = content_key(digest(study.originals), what, *sources, SOURCE)
    file = kept / f"pair-{key[:16]}.json"
    if not file.exists():
        started = time.monotonic()
        points = [asdict(p) for p in makes[method]()]
        kept.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"minutes": (time.monotonic() - started) / 60, "points": points}))
    held = json.loads(file.read_text())
    return [Point(**p) for p in held["points"]], held["minutes"]


def run(options: Options, name: str, say: Callable[[str], None]) -> dict[str, Any]:
    """The record of one pair."""
    say(f"{name}: faces")
    study = Study(PAIRS[name], options.networks, load_people(options.data, SEED), say)
    say(f"{name}: {study.before}")
    sweeps: dict[str, list[Point]] = {}
    minutes = 0.0
    for method in options.methods:
        caps = smallest(study.pair, study.before, sweeps.get("separate", []))
        sweeps[method], took = kept_sweep(study, method, caps, options.kept)
        minutes += took
    chosen = {m: smallest(study.pair, study.before, points) for m, points in sweeps.items()}
    return {
        "command": f"python -m benchmarks merging --pairs {name}{options.named()}",
        "seeds": [SEED],
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "minutes": round(minutes, 1),
        "effort": {
            "unlabelled_faces": len(study.people.unlabelled),
            "selection_faces": len(study.people.selection.images),
            "report_faces": len(study.people.report.images),
            "epochs_after_merge": EPOCHS_MERGED,
            "epochs_after_each_pruning": EPOCHS_NARROWED,
        },
        "families": [family_record(name, study.pair, study.before, chosen, sweeps)],
    }


def main(names: Sequence[str], options: Options, save: Path | None, say: Callable[[str], None]) -> None:
    """Run some pairs (none: all), print their tables, keep their records."""
    for name in names or PAIRS:
        record = run(options, name, say)
        print(table(record["families"][0]), flush=True)
        if save:
            keep(save, f"merging-{name}", record)
