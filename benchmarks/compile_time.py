"""How long compilation takes: a fresh process, from the ONNX file to a network that can be called.

`resnet18-compile`: algorithms chosen by rule, against other compilers doing the same. `resnet18-compile-tuned`:
with candidates measured, from an empty database. `resnet18-untuned`: the speed of the first against the second
(peer `ours-tuned`), the share that is left without tuning. Uses all cores the process may use.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.cases import Prepared, generated, prepare
from benchmarks.compare import Contender, Problem, bundle, compare, reference, started
from benchmarks.host import machine_lock
from benchmarks.ours import compiled
from benchmarks.peers import BUILD, PEERS
from benchmarks.peers.client import PeerError
from benchmarks.results import report
from benchmarks.rows import OUR_FAULT, Row
from benchmarks.settings import Settings, chosen, parser, say

TUNED = "ours-tuned"
COMPILERS = ("iree", "tvm-stock")
NETWORK = "resnet18"
SECONDS = 300.0
"""What measuring candidates may take."""


def rows_of(name: str, ready: Prepared, settings: Settings, seconds: float) -> Iterator[Row]:
    """The rows of one case."""
    if name == f"{NETWORK}-untuned":
        yield from _gain(name, ready, settings, seconds)
        return
    tune = seconds if name.endswith("-tuned") else 0.0
    own = Contender("ours", BUILD, ready.file, {"tune": tune, "target": settings.target})
    say(f"{name}: compile")
    try:
        ours, sizes = _loading(own, ready, settings)
    except PeerError as error:
        yield from (Row(name, peer, error=f"{OUR_FAULT}{error}") for peer in COMPILERS)
        return
    row = Row(name, "", ours_ms=ours * 1e3, clock="wall", **json.loads(sizes))
    for peer in COMPILERS:
        say(f"{name}: {peer}")
        try:
            theirs, _ = _loading(Contender(peer, PEERS[peer], ready.file), ready, settings)
            yield replace(row, peer=peer, peer_ms=theirs * 1e3, ratio=theirs / ours)
        except PeerError as error:
            yield replace(row, peer=peer, error=str(error))


def _loading(contender: Contender, ready: Prepared, settings: Settings) -> tuple[float, str]:
    """Wall seconds from the start of the process to a loaded model, with nothing kept from before, and its note."""
    every = replace(settings, cores=tuple(sorted(os.sched_getaffinity(0))))
    with tempfile.TemporaryDirectory(prefix="taskgraft-compile-") as empty, machine_lock(settings.lock):
        options = {**contender.options, "threads": 1, "kept": empty}
        start = time.perf_counter()
        with started(replace(contender, options=options), ready.feeds, every) as worker:
            return time.perf_counter() - start, worker.note


def _gain(name: str, ready: Prepared, settings: Settings, seconds: float) -> list[Row]:
    def folder(tune: float) -> Path:
        identity = ready.case.identity
        return compiled(
            ready.graph, identity, settings.kept, target=settings.target, feeds=ready.feeds, tune=tune
        ).folder

    say(f"{name}: tune")
    problem = Problem(name, ready.feeds, reference(ready.file, ready.feeds, settings))
    return compare(problem, bundle(folder(0.0)), [bundle(folder(seconds), TUNED)], settings)


def main(arguments: list[str]) -> int:
    """0 unless our side failed somewhere; a compiler that cannot run is a row that says why."""
    options = parser("compile-time", __doc__, without=("prepare",))
    options.add_argument("--seconds", type=float, default=SECONDS, help="what measuring candidates may take")
    given = options.parse_args(arguments)
    settings = Settings.of(given)
    ready = prepare(generated()[NETWORK], settings.kept)
    names = chosen(given.only, [f"{NETWORK}{kind}" for kind in ("-compile", "-compile-tuned", "-untuned")])
    return report(
        (r for name in names for r in rows_of(name, ready, settings, given.seconds)), "compile-time", given
    )
