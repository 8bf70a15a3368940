"""Finished sweeps in a folder: their points, the network of every point, and how long they took."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.merging import methods
from benchmarks.merging.methods import Setting, sweep
from benchmarks.merging.record import Swept
from benchmarks.merging.rule import Point, Subset
from compiler import save
from compiler.calibration.moments import content_key
from compiler.ir.text import digest


def kept_sweep(setting: Setting, pipeline: str, caps: Mapping[Subset, float] | None, kept: Path) -> Swept:
    """The sweep, or what an earlier run with the same networks left in `kept`."""
    name = f"sweep-{_key(setting, pipeline, caps)[:16]}"
    file = kept / f"{name}.json"
    if not file.exists():
        started, records = time.monotonic(), []
        for number, (point, graph) in enumerate(sweep(setting, pipeline, caps)):
            save(graph, kept / f"{name}-{number}.onnx")
            records.append(point.record())
        file.write_text(json.dumps({"minutes": (time.monotonic() - started) / 60, "points": records}))
    held = json.loads(file.read_text())
    networks = [kept / f"{name}-{number}.onnx" for number in range(len(held["points"]))]
    return Swept([Point.of(p) for p in held["points"]], networks, held["minutes"])


def _key(setting: Setting, pipeline: str, caps: Mapping[Subset, float] | None) -> str:
    """Digest of all that a sweep depends on."""
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
