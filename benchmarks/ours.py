"""Our side of a comparison: from the ONNX file to a bundle, by the calls a user makes.

Bundles are kept, by everything that decides their bytes: the model, the passes, the target and the compiler's own
sources. A changed compiler never meets an old bundle.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.sources import sources_digest
from compiler import build, find_target, parse_pass
from compiler.codegen import search
from compiler.codegen.groups import make_groups
from compiler.codegen.planner import Sources, candidates, situation
from compiler.codegen.tuning import TuningDatabase
from compiler.ir.graph import Graph
from compiler.settings import DEFAULT_PASSES

PASSES = DEFAULT_PASSES
"""What a release runs where its file says nothing else; all exact."""
WEIGHTS = "weights.bin"
"""The weight pool in a bundle."""


@dataclass(frozen=True)
class Compiled:
    """A bundle of ours. `seconds`: wall time of passes and build when it was made."""

    folder: Path
    seconds: float
    library_bytes: int
    pool_bytes: int


def through(graph: Graph, passes: Sequence[str]) -> Graph:
    """The graph after passes given as spec strings."""
    for spec in passes:
        graph = parse_pass(spec)(graph)
    return graph


def forced(graph: Graph, target: str, algorithm: str) -> Sources:
    """A recorded plan with one algorithm, at its best predicted tile, wherever it applies. Empty: no plan."""
    groups = make_groups(graph)
    known = situation(graph, groups, find_target(target))
    recorded = {}
    for group in groups:
        fitting = [c.choice for c in candidates(group, known) if c.choice.algorithm == algorithm]
        if fitting:
            recorded[group.anchor.node.ref.name] = fitting[0]
    return Sources(recorded)


def built(
    graph: Graph,
    folder: Path,
    *,
    passes: Sequence[str] = PASSES,
    target: str = "host",
    feeds: Mapping[str, np.ndarray] | None = None,
    tune: float | None = None,
) -> Compiled:
    """The bundle of `graph` after `passes`, made in `folder`, by the measurements that come with taskgraft.

    With `tune` by candidates measured for about so many seconds, from an empty database; 0: by rule alone. Raises
    what passes and build raise.
    """
    start = time.perf_counter()
    passed = through(graph, passes)
    database = None if tune is None else TuningDatabase()
    if tune:
        database = search.tune(passed, find_target(target), TuningDatabase(), seconds=tune)
    samples = None if feeds is None else [feeds]
    bundle = build(passed, target, folder, name="net", feeds=samples, selftest=False, force=True, tuning=database)
    sizes = [p.stat().st_size for p in (bundle.library, bundle.path / WEIGHTS)]
    return Compiled(bundle.path, time.perf_counter() - start, *sizes)


def compiled(
    graph: Graph,
    identity: str,
    kept: Path,
    *,
    passes: Sequence[str] = PASSES,
    target: str = "host",
    feeds: Mapping[str, np.ndarray] | None = None,
    tune: float | None = None,
) -> Compiled:
    """What `built` makes, from the folder `kept` if it was built before.

    `identity` names the graph's bytes (a digest of its source). Raises what `built` raises.
    """
    parts = [sources_digest(), identity, list(passes), target, tune]
    folder = kept / f"bundle-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]}"
    record = folder.with_suffix(".json")
    if not record.exists():
        shutil.rmtree(folder, ignore_errors=True)
        made = built(graph, folder, passes=passes, target=target, feeds=feeds, tune=tune)
        facts = {**asdict(made), "folder": made.folder.name}
        record.write_text(json.dumps(facts))
    facts = json.loads(record.read_text())
    return Compiled(**{**facts, "folder": folder / facts["folder"]})
