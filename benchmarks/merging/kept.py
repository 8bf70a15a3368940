"""Sweeps in a folder: their points, the networks of the points, how long they took and on what.

Several processes may fill one folder, each with sweeps of its own; what two of them make at once is written whole
by either. A sweep is written after every point, so that one that was cut short leaves what it got to.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.host import cpu_model
from benchmarks.merging import methods
from benchmarks.merging.families import Part
from benchmarks.merging.methods import Setting, sweep
from benchmarks.merging.record import Swept
from benchmarks.merging.rule import Point, Subset, rounded
from benchmarks.merging.training import accuracy
from compiler import Graph, load, save
from compiler.calibration.moments import content_key
from compiler.files import replace_whole
from compiler.ir.text import digest
from compiler.training.distilling import chosen_device


def kept_sweep(
    setting: Setting, pipeline: str, caps: Mapping[Subset, float] | None, kept: Path, train: bool = True
) -> Swept | None:
    """The sweep, or what an earlier run with the same networks left in `kept`.

    Without `train` nothing is computed: a sweep that was cut short counts as far as it got; None where there is
    none.
    """
    name = f"sweep-{_key(setting, pipeline, caps)[:16]}"
    held = _read(kept / f"{name}.json")
    if train and not (held and held["finished"]):
        held = _run(setting, pipeline, caps, kept / name)
    if held is None:
        return None
    networks = [kept / f"{name}-{number}.onnx" for number in range(len(held["points"]))]
    points = [Point.of(p) for p in held["points"]]
    return Swept(points, networks, held["minutes"], held["trained_on"], held["finished"])


def _run(setting: Setting, pipeline: str, caps: Mapping[Subset, float] | None, stem: Path) -> dict[str, Any]:
    """Sweep and write. The minutes are those of a sweep alone, whoever made its start."""
    began = time.monotonic()
    start, minutes = kept_start(setting, pipeline, stem.parent)
    began -= 60 * minutes
    held: dict[str, Any] = {"pipeline": pipeline, "trained_on": trained_on(), "points": []}
    for number, (point, graph) in enumerate(sweep(setting, pipeline, start, caps)):
        save(graph, stem.with_name(f"{stem.name}-{number}.onnx"))
        held["points"].append(point.record())
        _write(stem.with_suffix(".json"), held | _taken(began, finished=False))
    held |= _taken(began, finished=True)
    _write(stem.with_suffix(".json"), held)
    return held


def kept_start(setting: Setting, pipeline: str, kept: Path) -> tuple[Graph, float]:
    """What a pipeline prunes, merged and trained, or what an earlier sweep that starts alike left of it; and the
    minutes that it took then (0 where it was made now).
    """
    passes = methods.merging_of(setting, pipeline)
    if not passes:
        return setting.originals, 0.0
    first = replace(setting, shares=())  # budgets come after it
    file = kept / f"start-{_key(first, ';'.join(passes), None)[:16]}.onnx"
    took = file.with_suffix(".minutes")
    if file.exists():
        return load(file), float(took.read_text())
    began = time.monotonic()
    made = methods.merged(setting, passes)
    replace_whole(took, str(_minutes(began)).encode())
    save(made, file)  # last: where it is, the minutes are
    return load(file), 0.0


def _minutes(began: float) -> float:
    return (time.monotonic() - began) / 60


def _taken(began: float, finished: bool) -> dict[str, Any]:
    return {"minutes": _minutes(began), "finished": finished}


def kept_accuracy(setting: Setting, kept: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracies of the single networks on the data that choose and on those that report.

    They are kept, as caps follow from them, and another processor may decide a close sample otherwise.
    """
    parts = setting.data.selection, setting.data.report
    file = kept / f"singles-{content_key(digest(setting.originals), *map(_labels, parts))[:16]}.json"
    held = _read(file)
    if held is None:
        held = {"accuracy": [accuracy(setting.originals, p) for p in parts]}
        _write(file, held)
    selection, report = map(rounded, held["accuracy"])
    return selection, report


def trained_on() -> str:
    """The processor that trains, and torch's version."""
    device = chosen_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()
    return f"{name}, torch {torch.__version__}"


def _labels(part: Part) -> bytes:
    return b"".join(np.ascontiguousarray(part.labels[t]).tobytes() for t in sorted(part.labels))


def _read(file: Path) -> dict[str, Any] | None:
    return dict(json.loads(file.read_text())) if file.exists() else None


def _write(file: Path, held: Mapping[str, Any]) -> None:
    replace_whole(file, json.dumps(held).encode())


def _key(setting: Setting, pipeline: str, caps: Mapping[Subset, float] | None) -> str:
    """Digest of what a sweep depends on. Data count as far as the single networks tell them apart, which were
    trained on them; the compiler, which may change in what no sweep would show, does not count.
    """
    what = (
        pipeline,
        sorted((caps or {}).items()),
        setting.effort,
        setting.seed,
        setting.shares,
        methods.SAMPLES,
        methods.BETWEEN,
    )
    return content_key(digest(setting.originals), repr(what), *_sources())


def _sources() -> list[bytes]:
    """The files whose change makes earlier sweeps worthless."""
    return [p.read_bytes() for p in sorted(Path(__file__).parent.glob("[mt]*.py"))]
