"""Other people's networks, two that look at or hear the same: what both cost when they are merged and pruned.

The networks come as they are, with the adapters of a release for the colours and values that each was trained on.
Nothing is trained: channels are joined, taken away and fitted anew in closed form, on inputs without labels. Each
pipeline is judged on people whom it has not seen: by labels where there are any, else by how far answers move. The
cheapest that keeps every limit on the people who choose counts; the figures beside it are those of other people.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.merging import faces, pair_record, people, speech
from benchmarks.merging.pair_record import PAIRS, Pair, Point, family_record, smallest, table
from benchmarks.merging.people import People, Seen
from benchmarks.merging.record import OURS
from benchmarks.merging.rule import all_subsets
from benchmarks.results import keep
from compiler import Graph, cost_report, parse_pass
from compiler.calibration.evaluation import collect
from compiler.calibration.judge import graph_runner
from compiler.calibration.moments import content_key
from compiler.config import parse_config
from compiler.ir.text import digest
from compiler.passes.base import Resources
from compiler.release import load_release

EXACT = ("fold-constants", "fold-batch-norm", "remove-dead-code", "deduplicate")

SEED = 0

METHODS = ("separate", OURS)


@dataclass(frozen=True, slots=True)
class Tried:
    """What is tried on a pair. `shares` of the multiply-adds that pruning leaves; `losses` up to which channels are
    joined; behind the loss of `both` the shares of `then`. `samples`: inputs that channels are joined by, where
    not all that pruning is fitted on.
    """

    shares: Sequence[float] = (0.75, 0.6)
    losses: Sequence[float] = (0.05, 0.1, 0.2)
    both: float = 0.1
    then: Sequence[float] = (0.75, 0.6)
    samples: int = 0


TRIED = {"dnsmos": Tried((0.75, 0.6, 0.4, 0.25), (0.1,), then=(), samples=12)}
"""Pair -> what is tried, if not the usual. Merging on all computes large values again and again."""


def pipelines(name: str) -> dict[str, list[tuple[str, ...]]]:
    """Method -> what is tried behind the exact passes, on a pair."""
    fitted, tried = PAIRS[name].samples, TRIED.get(name, Tried())

    def merged(loss: float) -> str:
        return f"merge{{max_loss={loss},max_drift={loss},samples={tried.samples or fitted}}}"

    def pruned(flops: float) -> str:
        return f"prune-channels{{flops={flops},score=obs,recover=least-squares,samples={fitted}}}"

    return {
        "separate": [(pruned(share),) for share in tried.shares],
        OURS: [
            *[(merged(loss),) for loss in tried.losses],
            *[(merged(tried.both), pruned(share)) for share in tried.then],
        ],
    }


@dataclass(frozen=True, slots=True)
class Options:
    """Folders of the files and of finished pipelines, and the methods to run."""

    networks: Path
    data: Path
    kept: Path
    methods: Sequence[str] = METHODS

    def named(self) -> str:
        """The methods as the command line names them, nothing where all run."""
        return "" if list(self.methods) == list(METHODS) else "".join(f" --method {m}" for m in self.methods)


class Study:
    """One pair on some people."""

    def __init__(self, pair: Pair, networks: Path, people: People, say: Callable[[str], None]) -> None:
        self.pair, self.people, self._say = pair, people, say
        self.originals = joined(pair, networks)
        self._use = Resources(
            calibration={self.originals.inputs[0].ref.name: people.unlabelled[:, None]}, seed=SEED
        )
        self._answers = [outputs_on(self.originals, part) for part in (people.selection, people.report)]
        self._made: dict[tuple[str, ...], Graph] = {(): self.originals}
        self.before = self.point((), 0.0)

    def run(self, pipeline: tuple[str, ...]) -> Point:
        """The network behind some passes; what an earlier pipeline began with is not made anew."""
        started = time.monotonic()
        if pipeline not in self._made:
            before = self._behind(pipeline[:-1])
            self._made[pipeline] = parse_pass(pipeline[-1])(before, self._use)
        point = self.point(pipeline, (time.monotonic() - started) / 60)
        self._say(f"  {';'.join(pipeline)}: {point.macs}, {point.selection}")
        return point

    def _behind(self, pipeline: tuple[str, ...]) -> Graph:
        if pipeline not in self._made:
            self._made[pipeline] = parse_pass(pipeline[-1])(self._behind(pipeline[:-1]), self._use)
        return self._made[pipeline]

    def point(self, pipeline: tuple[str, ...], minutes: float) -> Point:
        """Cost and scores of a network that was made."""
        graph, scores = self._made[pipeline], []
        for part, answers in zip((self.people.selection, self.people.report), self._answers, strict=True):
            found = outputs_on(graph, part)
            scores.append({t: k.score(found[t], answers[t], part.labels) for t, k in self.pair.tasks.items()})
        return Point(list(pipeline), macs(graph), *scores, round(minutes, 2))


def macs(graph: Graph) -> dict[str, int]:
    """Multiply-adds of every subset, small ones first."""
    found = {frozenset(r.tasks): r.cost.macs for r in cost_report(graph).combinations}
    return {"+".join(q): int(found[frozenset(q)]) for q in all_subsets(tuple(graph.tasks))}


def joined(pair: Pair, networks: Path) -> Graph:
    """The networks of a pair over one input, with what is exact done."""
    graph = load_release(parse_config(pair.release(), networks)).graph
    for text in EXACT:
        graph = parse_pass(text)(graph)
    return graph


def outputs_on(graph: Graph, seen: Seen) -> dict[str, np.ndarray]:
    """Task -> its first output on all inputs, in onnxruntime."""
    name = graph.inputs[0].ref.name
    found = collect(graph_runner(graph), ({name: one[None]} for one in seen.inputs))
    return {t: outputs[0] for t, outputs in found.items()}


def kept_point(study: Study, pipeline: tuple[str, ...], kept: Path) -> Point:
    """The point of a pipeline, or what an earlier run with the same networks and people left in `kept`."""
    sources = (Path(m.__file__).read_bytes() for m in (faces, pair_record, people, speech))
    key = content_key(digest(study.originals), repr(pipeline), repr(study.before.record()), *sources)
    file = kept / f"pair-{key[:16]}.json"
    if not file.exists():
        kept.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(study.run(pipeline).record()))
    return Point(**json.loads(file.read_text()))


def run(options: Options, name: str, say: Callable[[str], None]) -> dict[str, Any]:
    """The record of one pair."""
    pair = PAIRS[name]
    say(f"{name}: {pair.input}s")
    study = Study(pair, options.networks, pair.load(options.data, SEED), say)
    say(f"{name}: {study.before}")
    tried = pipelines(name)
    points = {m: [kept_point(study, p, options.kept) for p in tried[m]] for m in options.methods}
    chosen = {m: smallest(pair, study.before, found) for m, found in points.items()}
    return {
        "command": f"python -m benchmarks merging --pairs {name}{options.named()}",
        "seeds": [SEED],
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "minutes": round(sum(p.minutes for found in points.values() for p in found), 1),
        "effort": {
            f"unlabelled_{pair.input}s": len(study.people.unlabelled),
            f"selection_{pair.input}s": len(study.people.selection.inputs),
            f"report_{pair.input}s": len(study.people.report.inputs),
        },
        "families": [family_record(name, pair, study.before, chosen, points)],
    }


def main(names: Sequence[str], options: Options, save: Path | None, say: Callable[[str], None]) -> None:
    """Run some pairs (none: all), print their tables, keep their records."""
    for name in names or PAIRS:
        record = run(options, name, say)
        print(table(record["families"][0]), flush=True)
        if save:
            keep(save, f"merging-{name}", record)
