"""Whole dense networks against other engines: one thread, batch 1, float32, the same file and inputs for everybody.

`real:NAME` are networks by other people, from the folder that TASKGRAFT_MODELS names (default ../shared/models).
`--layers` takes single convolutions: our direct kernel alone against the measured peak of the core (peer `peak`;
the ratio is the share), then the kernel of the planner's choice against the direct one (peer `ours-direct`), then
the whole call, with the planner's choice and all copies, against the engines.
"""

from __future__ import annotations

from benchmarks.cases import Case, generated, layers, models_folder, real
from benchmarks.peers import PEAK, PEERS
from benchmarks.results import report
from benchmarks.running import DIRECT, direct_kernel, measure, whole
from benchmarks.settings import Settings, chosen, parser, say


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
    peers = [p for p in chosen(given.peers, [*PEERS, PEAK.name], "peer") if p != PEAK.name]
    build = direct_kernel(peers) if given.layers else whole(peers)
    labels = [PEAK.name, DIRECT, *peers] if given.layers else peers
    names = chosen(given.only, known)
    rows = (row for n in names for row in measure(known[n], labels, settings, build, time=not given.prepare))
    study = "dense-layers" if given.layers else "dense" if given.target == "host" else f"dense-{given.target}"
    return report(rows, study, given)
