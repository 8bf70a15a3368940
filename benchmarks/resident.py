"""What libraries take once they are loaded and run: resident memory, and the time to bring each in.

Measured in a process of its own: `python -m benchmarks.resident FEEDS.npz BUNDLE...`.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.peers.client import ROOT
from benchmarks.random_switching import resident_bytes
from compiler import open_bundle
from compiler.codegen.bundle import read_bundle

STEADY = 20


@dataclass(frozen=True)
class Resident:
    """`bytes`: growth of the process. Per library: `load_us` maps it and pages it in by a first call; `opened_us`
    checks its digests as well."""

    bytes: int
    load_us: list[float]
    opened_us: list[float]


def resident(folders: Sequence[Path], feeds: Mapping[str, np.ndarray], core: int) -> Resident:
    """Load every bundle in a fresh process on `core` and run it at all its levels."""
    with tempfile.TemporaryDirectory(prefix="taskgraft-") as work:
        file = Path(work) / "feeds.npz"
        np.savez(file, **dict(feeds))  # type: ignore[arg-type]
        command = [sys.executable, "-m", "benchmarks.resident", str(core), str(file), *map(str, folders)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return Resident(**json.loads(done.stdout))


def main(arguments: list[str]) -> None:
    """Print a `Resident` as JSON."""
    core, file, *folders = arguments
    os.sched_setaffinity(0, {int(core)})
    feeds = dict(np.load(file))
    held, loads, opens = [], [], []
    paths = [read_bundle(Path(folder)).library for folder in folders]
    before = resident_bytes()
    for folder, path in zip(folders, paths, strict=True):
        start = time.perf_counter()
        mapped = ctypes.CDLL(str(path))
        mapping = time.perf_counter() - start
        net = open_bundle(folder)
        opening = time.perf_counter() - start - mapping
        bound = net.bind(net.tasks, **feeds)
        first, steady = _call(bound), min(_call(bound) for _ in range(STEADY))
        for level in range(len(net.levels)):
            bound(level)
        loads.append((mapping + first - steady) * 1e6)
        opens.append((opening + mapping + first - steady) * 1e6)
        held.append((mapped, net, bound))
    print(json.dumps({"bytes": resident_bytes() - before, "load_us": loads, "opened_us": opens}))


def _call(bound: object) -> float:
    start = time.perf_counter()
    bound()  # type: ignore[operator]
    return time.perf_counter() - start


if __name__ == "__main__":
    main(sys.argv[1:])
