"""Sparse layers and networks at batch 1 on one thread, weights made sparse by `sparsify`.

Peers on the same file: engines (which store the zeros, or find them: deepsparse), and ourselves with every weight
dense. `ours-dense` is the planner's choice for whole networks and fully connected layers; for convolution layers it
is our direct kernel, and `ours-best` what the planner would choose. The rows of convolution layers against these
two compare kernels without the copies that only a network of one layer has. The ratio of a case `...-cold` is that
of calls with flushed caches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from benchmarks.cases import Prepared
from benchmarks.compare import Contender, Problem, bundle, compare, kernels
from benchmarks.ours import compiled
from benchmarks.outputs import Expected
from benchmarks.peers import PEERS
from benchmarks.results import report
from benchmarks.rows import Row
from benchmarks.running import Building, Timing, engines, measure
from benchmarks.settings import Settings, chosen, parser
from benchmarks.sparse_cases import SparseCase, cases, dense_twin
from compiler import load

OWN = ("ours-dense", "ours-best")
DEFAULT_PEERS = ("onnxruntime", "deepsparse", *OWN)


def against(case: SparseCase, peers: Sequence[str]) -> Building:
    """Our sparse bundle or kernels against engines and against ourselves."""
    alone = case.layer and not case.base.startswith("fc")

    def build(ready: Prepared, settings: Settings) -> Timing:
        twin = dense_twin(ready.file)
        ours = _bundle("ours", ready, settings)
        others = engines([p for p in peers if p not in OWN], ready)
        own = [] if alone or "ours-dense" not in peers else [_dense(ready, settings)]

        def timing(expected: Expected) -> list[Row]:
            problem = Problem(case.case.name, ready.feeds, expected)
            rows = compare(problem, ours, [*others, *own], settings) if [*others, *own] else []
            if alone and set(OWN) & set(peers):
                direct = {"ours-dense": "conv", "ours-best": ""}
                twins = [kernels(p, twin, settings, direct[p]) for p in peers if p in OWN]
                rows += compare(problem, kernels("ours", ready.file, settings), twins, settings)
            return rows

        return timing

    return build


def _bundle(label: str, ready: Prepared, settings: Settings) -> Contender:
    made = compiled(ready.graph, ready.case.identity, settings.kept, target=settings.target, feeds=ready.feeds)
    return bundle(made.folder, label=label)


def _dense(ready: Prepared, settings: Settings) -> Contender:
    graph = load(dense_twin(ready.file), task="network")
    identity = f"{ready.case.identity} dense"
    made = compiled(graph, identity, settings.kept, target=settings.target, feeds=ready.feeds)
    return bundle(made.folder, label="ours-dense")


def rows_of(case: SparseCase, peers: Sequence[str], settings: Settings, *, time: bool = True) -> list[Row]:
    """The rows of one case; for cold cases the cold times take the place of the others."""
    found = measure(case.case, peers, settings, against(case, peers), time=time)
    return [cold(row) for row in found] if case.cold else found


def cold(row: Row) -> Row:
    """The row of the `-cold` case: its plain times are those with flushed caches."""
    return replace(
        row,
        case=f"{row.case}-cold",
        ours_ms=row.cold_ours_ms,
        peer_ms=row.cold_peer_ms,
        ratio=row.cold_ratio,
        cold_ours_ms=None,
        cold_peer_ms=None,
        cold_ratio=None,
    )


def main(arguments: list[str]) -> int:
    """0 unless our side failed somewhere; a peer that cannot run is a row that says why."""
    given = parser("sparse", __doc__, DEFAULT_PEERS, OWN).parse_args(arguments)
    settings = Settings.of(given)
    known = cases()
    peers = chosen(given.peers, [*PEERS, *OWN], "peer")
    names = chosen(given.only, known)
    rows: Iterable[Row] = (
        row for name in names for row in rows_of(known[name], peers, settings, time=not given.prepare)
    )
    return report(rows, "sparse", given)
