"""What a call costs that computes next to nothing: Relu of a few numbers.

`call-from-c`: the C function of a subset, in a loop compiled by the C compiler. `call-from-python`: a bound call
with preallocated buffers. Against engines called from Python, with bound buffers where they offer that. Hot only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx

from benchmarks.cases import Case, Prepared, recipe_digest
from benchmarks.compare import Contender, Problem, bundle, compare
from benchmarks.networks import Net
from benchmarks.ours import compiled
from benchmarks.outputs import Expected
from benchmarks.peers import C_CALLS, PEERS
from benchmarks.results import report
from benchmarks.rows import Row
from benchmarks.running import Building, Timing, engines, measure
from benchmarks.settings import Settings, chosen, parser

FROM_C, FROM_PYTHON = "call-from-c", "call-from-python"
NUMBERS = 4


def tiny() -> onnx.ModelProto:
    """Relu."""
    net = Net("tiny", (1, NUMBERS))
    return net.model(net.relu("x"))


def calls(name: str, peers: Sequence[str]) -> Building:
    """Our bundle, called from C or from Python."""

    def build(ready: Prepared, settings: Settings) -> Timing:
        made = compiled(ready.graph, ready.case.identity, settings.kept, target=settings.target, feeds=ready.feeds)
        ours = bundle(made.folder) if name == FROM_PYTHON else Contender("ours", C_CALLS, made.folder)

        def timing(expected: Expected) -> list[Row]:
            problem = Problem(name, ready.feeds, expected)
            return compare(problem, ours, engines(peers, ready), settings)

        return timing

    return build


def main(arguments: list[str]) -> int:
    """0 unless our side failed somewhere; a peer that cannot run is a row that says why."""
    given = parser("overhead", __doc__, ("onnxruntime", "openvino"), without=("hot",)).parse_args(arguments)
    settings = replace(Settings.of(given), cold=False)
    peers = chosen(given.peers, PEERS, "peer")
    rows = (
        row
        for name in chosen(given.only, (FROM_C, FROM_PYTHON))
        for row in measure(
            Case(name, tiny, recipe_digest()), peers, settings, calls(name, peers), time=not given.prepare
        )
    )
    return report(rows, "overhead", given)
