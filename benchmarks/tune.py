"""The tuning database that comes with taskgraft: the layers of the usual networks, measured on this machine.

Every network is measured as `taskgraft compile --tune` does, all into one file: the target's own in the package, or
the one that --into names. The fastest choices of every layer are kept. The machine should be otherwise idle.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.cases import prepare
from benchmarks.dense import cases
from benchmarks.host import machine_lock
from benchmarks.ours import PASSES, through
from benchmarks.settings import Settings, chosen, parser, say
from compiler.codegen.profile import StepTime, profile_library
from compiler.codegen.program import Library
from compiler.codegen.search import in_place, tune
from compiler.codegen.target import Target, find_target
from compiler.codegen.tuning import TuningDatabase, shipped_file

KEPT_CHOICES = 8
"""Choices of a layer in the file."""
SECONDS = 300.0
DEFAULT = ("resnet18", "resnet50", "vgg16-224", "vgg16-32", "mobilenetv2", "lenet", "mlp")


def timed(library: Library, target: Target, settings: Settings) -> Sequence[StepTime]:
    """Times on the chosen core, while nobody else measures."""
    before = os.sched_getaffinity(0)
    with machine_lock(settings.lock):
        os.sched_setaffinity(0, settings.cores)
        try:
            return profile_library(library, target)
        finally:
            os.sched_setaffinity(0, before)


def main(arguments: list[str]) -> int:
    """0; measurements are written after every network."""
    options = parser("tune", __doc__, without=("json", "quick", "hot", "save", "prepare", "venvs"))
    options.add_argument("--seconds", type=float, default=SECONDS, help="what a network may take")
    options.add_argument("--into", type=Path, metavar="FILE", help="database (default: the one in the package)")
    options.add_argument("--fresh", action="store_true", help="measure again what the database knows")
    given = options.parse_args(arguments)
    settings, target = Settings.of(given), find_target(given.target)
    file = given.into or shipped_file(target)
    file.parent.mkdir(parents=True, exist_ok=True)
    database = TuningDatabase() if given.fresh or not file.exists() else TuningDatabase.load(file)
    networks = cases(False)
    for name in chosen(given.only or DEFAULT, networks):
        say(f"{name}: prepare")
        graph = through(prepare(networks[name], settings.kept).graph, PASSES)
        measure = partial(in_place, graph, target, profiler=partial(timed, settings=settings))
        database = tune(graph, target, database, seconds=given.seconds, measure=measure, say=say)
        database.best(KEPT_CHOICES).save(file)
        say(f"{name}: {len(database.entries)} layer shapes known, the best choices written to {file}")
    return 0
