"""Sweeps of a saved record beside those that were run now: a method joins a study, and no other is run again.

They count as one study where the single networks are the same ones. What tells that here is their accuracy, to
the digits of the record, on the data that choose and on those that report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.merging.methods import METHODS
from benchmarks.merging.portfolios import PORTFOLIO
from benchmarks.merging.record import Seeded, Swept
from benchmarks.merging.rule import Point

HALF_A_DIGIT = 0.00501
"""Points of accuracy: some records have two decimals."""

LATENCY = ("latency_ms", "latency_macs")
"""Keys of what was timed, in the row of a subset: method -> number."""


class RecordError(Exception):
    """A record that what was run now cannot stand beside."""


def with_recorded(seeds: Sequence[Seeded], record: Mapping[str, Any]) -> list[Seeded]:
    """The seeds with the record's methods that were not run now, and its accuracies of the single networks, which
    may have fewer digits. RecordError where its single networks are others.
    """
    held = {found["seed"]: found for found in record["families"][0]["points"]}
    cut = {tuple(found) for found in record["cut_short"]}
    joined = []
    for seeded in seeds:
        found = held.get(seeded.seed)
        if found is None:
            raise RecordError(f"it has no seed {seeded.seed}, but {', '.join(map(str, held))}")
        selection, report = found["accuracy_single_selection"], found["accuracy_single"]
        for mine, theirs in ((seeded.single_selection, selection), (seeded.single_report, report)):
            if mine.keys() != theirs.keys() or any(abs(mine[t] - theirs[t]) > HALF_A_DIGIT for t in mine):
                raise RecordError(
                    f"seed {seeded.seed}: it is of other single networks, {_shown(theirs)} percent right and not "
                    f"{_shown(mine)}; name the folder that holds its networks with --kept"
                )
        sweeps = {
            method: {p: _swept(points, record, (seeded.seed, method, p) in cut) for p, points in of.items()}
            for method, of in found["sweeps"].items()
        } | dict(seeded.sweeps)
        ordered = {m: sweeps[m] for m in METHODS if m in sweeps}
        joined.append(replace(seeded, single_selection=selection, single_report=report, sweeps=ordered))
    return joined


def _swept(points: Sequence[Mapping[str, Any]], record: Mapping[str, Any], cut: bool) -> Swept:
    return Swept([Point.of(p) for p in points], [], 0.0, record["trained_on"][0], not cut)


def _shown(found: Mapping[str, float]) -> str:
    return ", ".join(f"{t} {a}" for t, a in found.items())


def joined_notes(made: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of the whole study: both commands, their minutes, both processors."""
    return {
        "command": f"{record['command']}; {made['command']}",
        "minutes": round(record["minutes"] + made["minutes"], 1),
        "trained_on": sorted({*record["trained_on"], *made["trained_on"]}),
    }


def with_timed(family: dict[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """A family's record with what the saved one has timed, and its bytes; without those of its portfolio, if that
    consists of other networks now."""
    old = record["families"][0]
    same = _names(family) == _names(old)
    rows = {tuple(row["tasks"]): row for row in old["subsets"]}

    def timed(row: Mapping[str, Any], key: str) -> dict[str, Any]:
        found = rows[tuple(row["tasks"])].get(key, {})
        return {m: number for m, number in found.items() if same or m != PORTFOLIO}

    kept = [key for key in LATENCY if any(key in row for row in old["subsets"])]
    subsets = [{**row, **{key: timed(row, key) for key in kept}} for row in family["subsets"]]
    sizes = {"pool_bytes": old["pool_bytes"]} if same and "pool_bytes" in old else {}
    return {**family, "subsets": subsets, **sizes}


def _names(family: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(n["method"], n["pipeline"]) for n in family.get(PORTFOLIO, {}).get("networks", ())]
