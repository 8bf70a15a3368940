"""Results on disk and on a page: one JSON file per study, tables of ratios rendered from it.

A file holds the machine, versions and rows of a study; every row says from which sources of the compiler it came,
so that a table cannot pass for one build where it is not.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmarks import loop_rows
from benchmarks.host import facts
from benchmarks.rows import COLUMNS, OUR_FAULT, REFUSED, Row, line, means, to_json
from benchmarks.settings import say
from benchmarks.sources import sources_digest

Record = Mapping[str, Any]
BUILD = "build"
"""Key of a row: the start of the digest of the compiler's sources."""
_DIGITS = 8
_NONE = "–"
TITLES = {
    "dense": "Dense networks",
    "dense-layers": "Direct convolutions",
    "dense-x86-64-v3": "Dense networks, bundles for AVX2",
    "sparse": "Sparse layers and networks",
    "multitask": "Subsets of one library",
    "threads": "Threads",
    "reading": "Products of one row",
    "overhead": "Overhead of a call",
    "compile-time": "Compilation",
    "inner-loops": "Innermost loops",
}
"""Study -> heading, in the order of the page."""
NOTES = {
    "overhead": "The engines are called from Python in both rows, with bound buffers where they have them. So the "
    "second row compares like with like; in the first our side is a loop in C.",
    "threads": "`reading` is two threads that only read the weights: the ratio is the share of their rate.",
    "reading": "The ratio is the share of the rate at which a loop reads as many bytes.",
    "compile-time": "Wall clock of a fresh process, from the ONNX file to a network that can be called. "
    "`resnet18-untuned`: calls of the library built by rule against those of the tuned one.",
    "inner-loops": "Share of multiply-adds (of vector arithmetic, where nothing is multiplied), products per cycle "
    "and pipe, accesses to the stack.",
}
"""Study -> what a reader of its table should know."""


class Recorded(Protocol):
    """A row of any study."""

    def record(self) -> dict[str, Any]:
        """JSON-ready, with `case` and `peer`."""


def report(rows: Iterable[Row], study: str, options: argparse.Namespace) -> int:
    """Print rows as they come, or as JSON at the end, and save each.

    Returns the exit status: 1 if our side failed anywhere.
    """
    done: list[Row] = []
    if not options.json:
        print(COLUMNS)
    for row in rows:
        done.append(row)
        if not options.json:
            print(line(row), flush=True)
        elif row.error:
            say(f"{row.case} against {row.peer}: {row.error}")
        if options.save:
            save(options.save, study, [row])
    print(to_json(done) if options.json else means(done))
    return int(any(r.our_fault for r in done))


def save(folder: Path, study: str, rows: Sequence[Recorded]) -> Path:
    """Add rows to the study's file; rows of the same case and peer are replaced where they are.

    What was measured on another machine or with other versions does not stay: one file, one machine.
    """
    path, machine, build = folder / f"{study}.json", facts(), sources_digest()[:_DIGITS]
    new = [{**row.record(), BUILD: build} for row in rows]
    old: list[Record] = []
    if path.exists() and (held := json.loads(path.read_text()))["machine"] == machine:
        old = held["rows"]
    every = {(r["case"], r["peer"]): r for r in [*old, *new]}
    folder.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(r, ensure_ascii=True) for r in every.values())
    head = json.dumps(machine, indent=1, sort_keys=True)
    path.write_text(f'{{"machine": {head},\n"rows": [\n{lines}\n]}}\n')
    return path


def record_of(study: str, arguments: Sequence[str], case: str, seeds: Record, measured: Record) -> Record:
    """What a file for one network holds: how and where it was measured, then what was measured."""
    head = {"command": f"python -m benchmarks {study} {shlex.join(arguments)}".rstrip(), "seeds": seeds, **facts()}
    return head | {BUILD: sources_digest()[:_DIGITS], "network": case, **measured}


def keep(folder: Path, name: str, record: Record) -> None:
    """Write `name`.json in the folder; what was there is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def failed(record: Record) -> int:
    """Exit status of a study with rows in its record: 1 if our side failed in one of them."""
    return int(any((row.get("error") or "").startswith(OUR_FAULT) for row in record["rows"]))


def render(folder: Path) -> str:
    """All studies in a folder as Markdown."""
    parts = []
    for study, title in TITLES.items():
        path = folder / f"{study}.json"
        if path.exists():
            held = json.loads(path.read_text())
            table = loop_rows.table if study == "inner-loops" else _table
            parts += [f"### {title}", *([NOTES[study]] if study in NOTES else []), _machine(study, held)]
            parts.append(table(held["rows"]))
    return "\n\n".join(parts)


def _machine(study: str, held: Record) -> str:
    """Command, processor and versions."""
    machine, rows = held["machine"], held["rows"]
    name, _, rest = study.partition("-") if study.startswith("dense-") else (study, "", "")
    option = {"": "", "layers": " --layers"}.get(rest, f" --target {rest}")
    caches = ", ".join(f"{k} {v >> 10} KiB" for k, v in machine["caches"].items())
    versions = {k: [v] for k, v in machine["versions"].items()}
    for peer in dict.fromkeys(r["peer"] for r in rows if r.get("version")):
        versions[peer] = list(dict.fromkeys(r["version"] for r in rows if r["peer"] == peer and r.get("version")))
    told = ", ".join(f"{k} {' and '.join(v)}" for k, v in versions.items())
    builds = ", ".join(sorted({r[BUILD] for r in rows}))
    return (
        f"`python -m benchmarks {name}{option}` on {machine['cpu']}, {machine['isa']}; {caches}. "
        f"{told}. Sources of the compiler: {builds}."
    )


def _table(rows: Sequence[Record]) -> str:
    """A line per case, a column per peer; what was not measured is explained below."""
    peers = list(dict.fromkeys(r["peer"] for r in rows))
    rated = any(r.get("gflops") for r in rows)
    sized = any(r.get("library_bytes") for r in rows)
    heads = ["case", "ours ms", *["GFLOP/s"] * rated, *["library / weights KB"] * sized, *peers]
    lines = [_line(heads), _line(["---", *["--:"] * (len(heads) - 1)])]
    for case in dict.fromkeys(r["case"] for r in rows):
        own = {r["peer"]: r for r in rows if r["case"] == case}
        any_row = next((r for r in own.values() if r["ours_ms"] is not None), {})
        cells = [case, _digits(any_row.get("ours_ms"))]
        cells += [_digits(any_row.get("gflops"))] * rated
        cells += [_sizes(own.values())] * sized
        lines.append(_line([*cells, *(_ratio(own.get(p)) for p in peers)]))
    return "\n".join([*lines, *_means(rows), *_remarks(rows)])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _digits(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _sizes(rows: Iterable[Record]) -> str:
    for row in rows:
        if row.get("library_bytes"):
            return f"{row['library_bytes'] / 1000:.0f} / {row['pool_bytes'] / 1000:.0f}"
    return ""


def _ratio(row: Record | None) -> str:
    """Hot ratio, and the cold one in brackets where it was measured."""
    if row is None or row["ratio"] is None:
        return _NONE
    cold = f" ({row['cold_ratio']:.2f})" if row.get("cold_ratio") else ""
    wall = " w" if row.get("clock") == "wall" else ""
    return f"{row['ratio']:.2f}{cold}{wall}"


def _means(rows: Sequence[Record]) -> list[str]:
    """Means over networks by other people, where there are any: other cases are no sample of anything."""
    real = means([Row(r["case"], r["peer"], ratio=r["ratio"]) for r in rows if r["case"].startswith("real:")])
    return ["", *(f"- {line}" for line in real.splitlines())] if real else []


def _remarks(rows: Sequence[Record]) -> list[str]:
    """Reasons, each once."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.get("error"):
            of_peer = "" if row["error"].startswith(REFUSED) else f"{row['peer']}: "
            found.setdefault(of_peer + row["error"][:160], []).append(row["case"])
    if not found:
        return []
    told = (f"- {', '.join(dict.fromkeys(cases))}: {reason}" for reason, cases in found.items())
    return ["", "Not measured:", "", *told]
