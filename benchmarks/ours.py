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
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.peers.client import ROOT
from compiler import build, find_target, parse_pass
from compiler.codegen.groups import make_groups
from compiler.codegen.planner import Sources, candidates, situation
from compiler.ir.graph import Graph
from compiler.pipeline import DEFAULT as PASSES


@dataclass(frozen=True)
class Compiled:
    """A bundle of ours. `seconds`: wall time of passes and build when it was made."""

    folder: Path
    seconds: float
    library_bytes: int


@cache
def sources_digest() -> str:
    """Digest of every source file of the compiler."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "compiler").rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


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


def compiled(
    graph: Graph,
    identity: str,
    kept: Path,
    *,
    passes: Sequence[str] = PASSES,
    target: str = "host",
    feeds: Mapping[str, np.ndarray] | None = None,
) -> Compiled:
    """The bundle of `graph` after `passes`, from the folder `kept` if it was built before.

    `identity` names the graph's bytes (a digest of its source). Raises what passes and build raise.
    """
    key = hashlib.sha256(json.dumps([sources_digest(), identity, list(passes), target]).encode()).hexdigest()[:24]
    folder, record = kept / f"bundle-{key}", kept / f"bundle-{key}.json"
    if not record.exists():
        shutil.rmtree(folder, ignore_errors=True)
        start = time.perf_counter()
        bundle = build(
            through(graph, passes),
            target,
            folder,
            name="net",
            feeds=None if feeds is None else [feeds],
            selftest=False,
            force=True,
        )
        seconds = time.perf_counter() - start
        facts = {"target": bundle.target, "seconds": seconds, "bytes": bundle.library.stat().st_size}
        record.write_text(json.dumps(facts))
    facts = json.loads(record.read_text())
    return Compiled(folder / facts["target"], facts["seconds"], facts["bytes"])
