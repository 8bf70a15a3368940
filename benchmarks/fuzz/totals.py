"""What all runs found together: one file that every run with `--save` adds to, and the tables made from it.

`graphs` has an entry per campaign on generated networks, `readers` one per attack on a reader. Counts are never
merged into one entry: each says its command, versions and the sources it ran on, and totals are computed from all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from benchmarks.host import machine_lock
from benchmarks.sources import sources_digest

Entry = Mapping[str, Any]
KINDS = ("graphs", "readers")


def origin(command: Sequence[str]) -> dict[str, Any]:
    """How an entry came about: command, digest of the compiler's sources, versions."""
    versions = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
    return {"command": " ".join(command), "sources": sources_digest(), "versions": versions}


def ranges(seeds: Iterable[int]) -> list[list[int]]:
    """Seeds as [first, last] of every unbroken run, in order."""
    found: list[list[int]] = []
    for seed in sorted(set(seeds)):
        if found and found[-1][1] == seed - 1:
            found[-1][1] = seed
        else:
            found.append([seed, seed])
    return found


def read(path: Path) -> dict[str, list[Entry]]:
    """The entries of a file; none where it does not exist or is empty."""
    text = path.read_text() if path.exists() else ""
    held = json.loads(text) if text.strip() else {}
    return {kind: list(held.get(kind, ())) for kind in KINDS}


def add(path: Path, kind: str, entry: Entry) -> None:
    """Append an entry; runs that end at the same time take turns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with machine_lock(path):
        held = read(path)
        held[kind].append(entry)
        path.write_text(json.dumps(held, indent=1) + "\n")


# ---------------------------------------------------------------------- totals
def graphs(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """Per kind of graph: campaigns, cases, distinct seeds, nodes, verdicts, shares, and what was refused why."""
    by_kind: dict[str, list[Entry]] = {}
    for entry in entries:
        by_kind.setdefault(entry["kind"], []).append(entry)
    return [_graphs(kind, own) for kind, own in sorted(by_kind.items())]


def _graphs(kind: str, own: Sequence[Entry]) -> dict[str, Any]:
    verdicts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    seeds: set[int] = set()
    for entry in own:
        verdicts.update(entry["verdicts"])
        reasons.update(entry["refusals"])
        seeds.update(s for first, last in entry["seeds"] for s in range(first, last + 1))
    cases = sum(e["cases"] for e in own)
    judged = cases - verdicts["unrunnable"]
    return {
        "kind": kind,
        "campaigns": len(own),
        "cases": cases,
        "distinct": len(seeds),
        "nodes": sum(e["nodes"] for e in own),
        "verdicts": dict(verdicts),
        "accepted": (judged - verdicts["refused"]) / judged if judged else None,
        "refusals": dict(reasons.most_common()),
        "findings": sum(f["count"] for e in own for f in e["findings"]),
        "not_judged": sum(e["outputs_not_judged"] for e in own),
        "hours": sum(e["seconds"] for e in own) / 3600,
        "slowest": max(e["slowest"] for e in own),
    }


def readers(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """Per reader: processor seconds by guidance, damaged files, how many were read or refused, findings, memory."""
    by_name: dict[str, list[Entry]] = {}
    for entry in entries:
        by_name.setdefault(entry["reader"], []).append(entry)
    return [_reader(name, own) for name, own in sorted(by_name.items())]


def _reader(name: str, own: Sequence[Entry]) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for entry in own:
        counts.update(entry["outcomes"])
    found, accepted = counts.pop("found", 0), counts["accepted"]
    return {
        "reader": name,
        "guided": sum(e["seconds"] for e in own if e["guided"]),
        "seeded": sum(e["seconds"] for e in own if not e["guided"]),
        "inputs": counts.total() + found,
        "accepted": accepted,
        "refused": counts.total() - accepted,
        "found": found,
        "peak_mb": max(e["peak_mb"] or 0 for e in own),
    }


# ---------------------------------------------------------------------- tables
def tables(held: Mapping[str, Sequence[Entry]]) -> str:
    """Both tables as Markdown, as docs/fuzzing.md shows them."""
    heads = (
        *("graphs", "runs", "cases", "distinct", "nodes", "right", "refused", "not run by onnxruntime", "accepted"),
        *("wrong, error, crash or hang", "outputs not judged", "hours", "slowest s"),
    )
    rows = [
        (
            *(t["kind"], t["campaigns"], f"{t['cases']:,}", f"{t['distinct']:,}", f"{t['nodes']:,}"),
            *(f"{t['verdicts'].get(v, 0):,}" for v in ("right", "refused", "unrunnable")),
            *(_percent(t["accepted"]), t["findings"], t["not_judged"], f"{t['hours']:.1f}", f"{t['slowest']:.0f}"),
        )
        for t in graphs(held["graphs"])
    ]
    names = ("reader", "guided s", "by seed s", "damaged files", "read", "refused", "findings", "peak MB")
    attacks = [
        (
            *(t["reader"], f"{t['guided']:,.0f}", f"{t['seeded']:,.0f}", f"{t['inputs']:,}", f"{t['accepted']:,}"),
            *(f"{t['refused']:,}", t["found"], t["peak_mb"] or "–"),
        )
        for t in readers(held["readers"])
    ]
    return f"{_table(heads, rows)}\n\n{_table(names, attacks)}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
