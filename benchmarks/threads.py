"""One call shared among threads, by wall clock: against our own single thread, engines with as many, and a loop in
which as many threads only read the weights (peer `reading`: the ratio is the share of its rate that calls reach).

Wants that many idle cores: what a neighbour takes from one of them is waited for by all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.cases import Case, Prepared, generated
from benchmarks.compare import Contender, Problem, bundle, compare
from benchmarks.ours import compiled
from benchmarks.outputs import Expected
from benchmarks.peers import PEERS, READING
from benchmarks.reading import beside_reading
from benchmarks.results import report
from benchmarks.rows import Row
from benchmarks.running import Building, Timing, engines, measure
from benchmarks.settings import Settings, chosen, parser, positive

ALONE = "ours-1-thread"
DEFAULT_PEERS = (ALONE, "onnxruntime", "openvino", READING.name)
NETWORKS = ("resnet18", "resnet50", "vgg16-32", "mobilenetv2", "lenet")
COUNT = 2


def cases(count: int) -> dict[str, Case]:
    """`NETWORK-N-threads` by name."""
    known = generated()
    return {f"{name}-{count}-threads": known[name] for name in NETWORKS}


def shared(name: str, peers: Sequence[str]) -> Building:
    """Our bundle with a pool as large as there are cores, against engines with as many threads."""

    def build(ready: Prepared, settings: Settings) -> Timing:
        made = compiled(ready.graph, ready.case.identity, settings.kept, target=settings.target, feeds=ready.feeds)
        ours = bundle(made.folder)
        alone = replace(ours, label=ALONE, options={**ours.options, "threads": 1})

        def timing(expected: Expected) -> list[Row]:
            by_name: dict[str, Contender] = {ALONE: alone}
            by_name |= {c.label: c for c in engines([p for p in peers if p in PEERS], ready)}
            problem = Problem(name, ready.feeds, expected, wall=True)
            rows = compare(problem, ours, [by_name[p] for p in peers if p in by_name], settings)
            if READING.name in peers:
                rows.append(beside_reading(ready, ours, made.pool_bytes, expected, settings))
            return rows

        return timing

    return build


def main(arguments: list[str]) -> int:
    """0 unless our side failed somewhere; a peer that cannot run is a row that says why."""
    options = parser("threads", __doc__, DEFAULT_PEERS, (ALONE, READING.name))
    options.add_argument("--threads", type=positive, default=COUNT, help="threads, and cores, to use")
    given = options.parse_args(arguments)
    settings = Settings.of(given, cores=given.threads)
    known = cases(given.threads)
    peers = chosen(given.peers, [ALONE, *PEERS, READING.name], "peer")
    rows = (
        replace(row, case=name)
        for name in chosen(given.only, known)
        for row in measure(known[name], peers, settings, shared(name, peers), time=not given.prepare)
    )
    return report(rows, "threads", given)
