"""Pairs of other people's networks, what counts for each of their tasks, and what a study of them says.

Scores are on labels where there are any, else on how far answers move from the original's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.merging.faces import load_people
from benchmarks.merging.people import UNLABELLED, People
from benchmarks.merging.record import OURS
from benchmarks.merging.speech import BINS, FRAMES, load_speech

LESS = 1.3
"""How many times fewer multiply-adds both tasks together should take than the two networks."""

Score = Callable[[np.ndarray, np.ndarray, Mapping[str, np.ndarray]], float]
"""(outputs [n, ...], the original's, labels) -> what counts; more is better."""


def percent_right(decide: Callable[[np.ndarray], np.ndarray], label: str) -> Score:
    """Percent of the labelled inputs on which `decide(outputs)` is the label."""

    def score(outputs: np.ndarray, original: np.ndarray, labels: Mapping[str, np.ndarray]) -> float:
        known = labels[label] != UNLABELLED
        return 100 * float(np.mean(decide(outputs)[known] == labels[label][known]))

    return score


def moved(outputs: np.ndarray, original: np.ndarray, labels: Mapping[str, np.ndarray]) -> float:
    """Mean absolute difference from the original's answers, below zero."""
    return 0.0 - float(np.mean(np.abs(outputs - original)))


@dataclass(frozen=True, slots=True)
class Task:
    """A network of a pair. `adapter`: from the common input; `limit`: what its score may lose, in `unit`; `shapes`:
    of its inputs, where the file leaves axes free.
    """

    file: str
    adapter: tuple[dict[str, Any], ...]
    score: Score
    limit: float
    unit: str
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pair:
    """Networks over one input. `load`: people of a folder of data sets, by a seed; `samples`: inputs that weights
    are fitted on.
    """

    what: str
    tasks: Mapping[str, Task]
    input: str = "face"
    shape: Sequence[int] = (1, 64, 64, 3)
    load: Callable[[Path, int], People] = load_people
    samples: int = 256

    def release(self) -> dict[str, Any]:
        """A release file that joins the networks over one input."""
        tasks = {t: _table(k) for t, k in self.tasks.items()}
        return {"schema": 1, "name": "pair", "input": {self.input: {"shape": list(self.shape)}}, "tasks": tasks}


def _table(task: Task) -> dict[str, Any]:
    shapes = {name: list(shape) for name, shape in task.shapes.items()}
    return {"model": task.file, "adapter": list(task.adapter)} | ({"shapes": shapes} if shapes else {})


BGR = ({"bgr": True},)
GREY = ({"layout": "NCHW"}, {"gray": True}, {"scale": 1 / 127.5, "offset": -1.0}, {"layout": "NHWC"})
HAPPY, WOMAN = 3, 0
"""Classes of the mini-XCEPTION networks."""

ACCURACY = "percent right"

HEARD = {"input_1": (1, FRAMES, BINS)}
MOVED = "mean points by which scores of one to five move, negated"

PAIRS = {
    "ssrnet": Pair(
        "SSR-Net, age and gender (Yang et al. 2018), trained on IMDB faces; LFW gender, years by which ages move",
        {
            "age": Task("ssrnet_age_imdb.onnx", BGR, moved, 1.0, "mean years from the original's age, negated"),
            "gender": Task(
                "ssrnet_gender_imdb.onnx", BGR, percent_right(lambda y: y[:, 0] < 0.5, "gender"), 0.5, ACCURACY
            ),
        },
    ),
    "minixc": Pair(
        "mini-XCEPTION, emotion and gender (Arriaga et al. 2017); LFW gender, LFW smile where the emotion is happy",
        {
            "emotion": Task(
                "minixc_emotion_fer.onnx",
                GREY,
                percent_right(lambda y: y.argmax(1) == HAPPY, "smile"),
                0.5,
                ACCURACY,
            ),
            "gender": Task(
                "minixc_gender.onnx", GREY, percent_right(lambda y: y.argmax(1) == WOMAN, "gender"), 0.5, ACCURACY
            ),
        },
    ),
    "dnsmos": Pair(
        "DNSMOS, quality of speech, and of the background and overall (Reddy et al. 2021); spoken digits in noise",
        {
            "signal": Task("dnsmos_sig.onnx", (), moved, 0.1, MOVED, HEARD),
            "background": Task("dnsmos_bak_ovr.onnx", (), moved, 0.1, MOVED, HEARD),
        },
        "spectrogram",
        (1, FRAMES, BINS),
        load_speech,
        48,
    ),
}
"""Name on the command line -> pair."""


@dataclass(frozen=True, slots=True)
class Point:
    """A network that some passes have made: multiply-adds of every subset, scores of every task on the people who
    choose and on those who report, minutes that it took.
    """

    pipeline: Sequence[str]
    macs: Mapping[str, int]
    selection: Mapping[str, float]
    report: Mapping[str, float]
    minutes: float

    def record(self) -> dict[str, Any]:
        """JSON-ready, scores to a thousandth."""
        scores = {n: {t: round(v, 3) for t, v in getattr(self, n).items()} for n in ("selection", "report")}
        return asdict(self) | scores


def smallest(pair: Pair, before: Point, points: Sequence[Point]) -> Point | None:
    """The cheapest point whose losses on the people who choose are all within the limits."""

    def kept(point: Point) -> bool:
        lost = {t: before.selection[t] - point.selection[t] for t in pair.tasks}
        return all(lost[t] <= task.limit for t, task in pair.tasks.items())

    return min(filter(kept, points), key=lambda p: sum(p.macs.values()), default=None)


def family_record(
    name: str,
    pair: Pair,
    before: Point,
    chosen: Mapping[str, Point | None],
    sweeps: Mapping[str, Sequence[Point]],
) -> dict[str, Any]:
    """The pair's part of the results file: what the originals do, and every method where it keeps the limits."""
    costs = {"original": before, **chosen}
    ours = chosen.get(OURS)
    both = "+".join(pair.tasks)
    return {
        "name": name,
        "what": pair.what,
        "tasks": list(pair.tasks),
        "scores": {t: {"unit": k.unit, "limit": k.limit} for t, k in pair.tasks.items()},
        "accuracy_single": before.record()["report"],
        "accuracy_merged": None if ours is None else ours.record()["report"],
        "fewer_macs_together": None if ours is None else round(before.macs[both] / ours.macs[both], 3),
        "wanted": LESS,
        "subsets": [
            {"tasks": q.split("+"), "macs": {m: None if p is None else p.macs[q] for m, p in costs.items()}}
            for q in before.macs
        ],
        "methods": {m: None if p is None else p.record() for m, p in costs.items()},
        "points": {m: [p.record() for p in points] for m, points in sweeps.items()},
    }


def table(record: Mapping[str, Any]) -> str:
    """A pair as Markdown: every point, and which of them counts."""
    tasks = record["tasks"]
    lines = [
        f"| {record['name']} | {' | '.join(tasks)} | both, multiply-adds | times fewer |",
        f"|---|{'--:|' * (len(tasks) + 2)}",
    ]
    whole = record["methods"]["original"]["macs"]["+".join(tasks)]
    rows = [("original", record["methods"]["original"])]
    rows += [(m, p) for m, points in record["points"].items() for p in points]
    for method, point in rows:
        together = point["macs"]["+".join(tasks)]
        mark = " *" if point == record["methods"][method] and method != "original" else ""
        scores = " | ".join(f"{point['report'][t]:.2f}" for t in tasks)
        lines.append(f"| {method}{mark} | {scores} | {together:,} | {whole / together:.2f} |")
    return "\n".join(lines)
