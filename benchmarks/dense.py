"""Whole dense networks against other engines: one thread, batch 1, float32, the same file and inputs for everybody.

`real:NAME` are networks by other people, from the folder that TASKGRAFT_MODELS names (default ../shared/models).
`--layers` takes single convolutions instead and shows their share of the core's measured peak.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence

from benchmarks.cases import Case, generated, layers, models_folder, prepare, real
from benchmarks.compare import Contender, Problem, bundle, compare, reference
from benchmarks.ours import compiled
from benchmarks.peers import PEERS
from benchmarks.rows import OUR_FAULT, Row, report
from benchmarks.settings import Settings, chosen, parser, say
from compiler.cost.count import totals
from compiler.errors import UnsupportedModelError


def measure(case: Case, peers: Sequence[str], settings: Settings, *, time: bool = True) -> list[Row]:
    """The rows of one case; none where our compiler does not take the network, which is printed.

    `time=False` stops when model and bundle are there.
    """
    say(f"{case.name}: prepare")
    try:
        ready = prepare(case, settings.kept)
        made = compiled(ready.graph, case.identity, settings.kept, target=settings.target, feeds=ready.feeds)
        if not time:
            return []
        say(f"{case.name}: measure")
        expected = reference(ready.file, ready.feeds, settings)
    except UnsupportedModelError as error:
        say(f"{case.name}: not compiled, so not compared: {error}")
        return []
    except Exception as error:  # one network that breaks the compiler must not cost the rows of the others
        traceback.print_exc()
        return [Row(case.name, peer, error=f"{OUR_FAULT}{type(error).__name__}: {error}") for peer in peers]
    problem = Problem(case.name, ready.feeds, expected, totals(ready.graph).flops)
    contenders = [Contender(name, PEERS[name], ready.file) for name in peers]
    return compare(problem, bundle(made.folder), contenders, settings)


def cases(of_layers: bool) -> dict[str, Case]:
    """All cases by name."""
    if of_layers:
        return layers()
    folder = models_folder()
    others = real(folder)
    if not others:
        say(f"no real networks: {folder}/manifest.json is not there")
    return generated() | others


def main(arguments: list[str]) -> int:
    """0 unless our side failed somewhere; a peer that cannot run is a row that says why."""
    options = parser("dense", __doc__, tuple(PEERS))
    options.add_argument("--layers", action="store_true", help="single convolutions instead of networks")
    given = options.parse_args(arguments)
    settings = Settings.of(given)
    known = cases(given.layers)
    peers = chosen(given.peers, PEERS, "peer")
    names = chosen(given.only, known)
    rows = (row for name in names for row in measure(known[name], peers, settings, time=not given.prepare))
    return report(rows, given.json)
