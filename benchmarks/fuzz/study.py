"""Generated networks through every stage of the compiler, judged by onnxruntime.

`--count N --seed S` families of this repository's own generator, or every graph of `--corpus FOLDER`. What fails is
minimised and kept under `--findings`; `--replay FOLDER` runs one kept case again, in this process.
`--readers SECONDS` feeds damaged bytes to every reader instead, so long to each. `--save FILE` adds the counts to
those of earlier runs, `--totals FILE` prints them all as tables. Exit status 1 where anything was found.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.fuzz.case import RECORD, Case
from benchmarks.fuzz.corpus import graph_case
from benchmarks.fuzz.families import family
from benchmarks.fuzz.minimise import minimise
from benchmarks.fuzz.readers import attack
from benchmarks.fuzz.totals import add, origin, ranges, read, tables
from benchmarks.fuzz.worker import Result, Worker, run_here
from benchmarks.settings import say
from compiler.codegen.target import target_names

MINIMISED = 25
"""Findings that are shrunk in one run, one per signature."""


@dataclass
class Tally:
    """Counts over all cases."""

    verdicts: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    unrunnable: Counter[str] = field(default_factory=Counter)
    findings: dict[tuple[str, str, str], list[Result]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    nodes: int = 0
    unjudged: int = 0
    seconds: float = 0.0
    slowest: float = 0.0

    def add(self, result: Result, seed: int) -> None:
        """Count one case."""
        self.seeds.append(seed)
        self.verdicts[result.verdict] += 1
        self.refusals.update(set(result.reasons))
        self.skipped.update({s.partition(":")[0] for s in result.skipped})
        if result.verdict == "unrunnable":
            self.unrunnable[result.signature[2]] += 1
        if result.found:
            self.findings.setdefault(result.signature, []).append(result)
        self.nodes += result.nodes
        self.unjudged += result.unjudged
        self.seconds += result.seconds
        self.slowest = max(self.slowest, result.seconds)

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "cases": sum(self.verdicts.values()),
            "seeds": ranges(self.seeds),
            "verdicts": dict(self.verdicts),
            "refusals": dict(self.refusals.most_common()),
            "passes_that_gave_a_reason_not_to_run": dict(self.skipped.most_common()),
            "unrunnable": dict(self.unrunnable.most_common()),
            "findings": [
                {"signature": list(k), "cases": [r.name for r in v][:10], "count": len(v)}
                for k, v in self.findings.items()
            ],
            "nodes": self.nodes,
            "outputs_not_judged": self.unjudged,
            "seconds": round(self.seconds),
            "slowest": round(self.slowest, 1),
        }


def text(tally: Tally) -> str:
    """The counts for a terminal."""
    record = tally.record()
    lines = [f"{record['cases']} cases, {record['nodes']} nodes: "
             + ", ".join(f"{n} {v}" for v, n in tally.verdicts.most_common())]  # fmt: skip
    lines += [f"  {tally.unjudged} outputs not judged: rounding alone moves them by more than 1 %"] * bool(
        tally.unjudged
    )
    lines += [f"  refused, {n}x {r}" for r, n in tally.refusals.most_common()]
    lines += [f"  not run, {n}x {p}" for p, n in tally.skipped.most_common()]
    lines += [f"  onnxruntime does not run it, {n}x {r}" for r, n in tally.unrunnable.most_common()]
    for (verdict, stage, what), results in tally.findings.items():
        lines.append(f"  FOUND {len(results)}x {verdict} in {stage}: {what} ({results[0].name})")
    lines.append(f"  {tally.seconds:.0f} s, the slowest case {tally.slowest:.1f} s")
    return "\n".join(lines)


def run_cases(cases: Iterable[Case], findings: Path, seconds: float, until: float) -> Tally:
    """Run cases until the time `until` (monotonic), and shrink the first finding of every signature.

    An interrupt ends the run like the time does: what was counted is returned.
    """
    tally = Tally()
    with Worker(seconds) as worker, contextlib.suppress(KeyboardInterrupt):
        for number, case in enumerate(cases):
            if time.monotonic() > until:
                break
            result = worker.run(case)
            tally.add(result, case.seed)
            if result.found:
                say(f"{case.name}: {result.verdict} in {result.stage}: {result.detail.strip()[-400:]}")
                if len(tally.findings[result.signature]) == 1 and len(tally.findings) <= MINIMISED:
                    _keep(case, result, worker, findings)
            if number % 100 == 99:
                say(f"{number + 1} cases: {dict(tally.verdicts)}, {tally.seconds:.0f} s")
    return tally


def _keep(case: Case, result: Result, worker: Worker, findings: Path) -> None:
    """Shrink a finding and write it down."""
    small = minimise(case, lambda c: worker.run(c).signature == result.signature)
    folder = findings / f"{case.name} {case.target}".replace(" ", "-")
    small.save(folder)
    (folder / "finding.txt").write_text(f"{result.verdict} in {result.stage}\n{result.detail}\n")
    say(f"  {case.nodes} nodes became {small.nodes}: python -m benchmarks fuzz --replay {folder}")


def main(arguments: list[str]) -> int:
    """Run, print the counts, save them where asked. 1 where anything was found, 2 where a file is not here."""
    options = _parser().parse_args(arguments)
    for given in (options.replay and options.replay / RECORD, options.totals, options.corpus):
        if given and not given.exists():
            say(f"{given} is not here")
            return 2
    if options.replay:
        result = run_here(Case.read(options.replay))
        print(f"{result.verdict} in {result.stage}\n{result.detail}")
        return int(result.found)
    if options.totals:
        print(tables(read(options.totals)))
        return 0
    if options.readers:
        return attack(options.readers, options.seed, options.coverage, options.save)
    cases = (
        _corpus(options.corpus)
        if options.corpus
        else map(family, range(options.seed, options.seed + options.count))
    )
    if options.target:
        cases = (replace(case, target=target) for case in cases for target in options.target)
    until = time.monotonic() + (options.seconds or float("inf"))
    tally = run_cases(cases, options.findings, options.limit, until)
    kind = "NNSmith" if options.corpus else "families"
    entry = {"kind": kind, **origin(["python -m benchmarks fuzz", *arguments]), **tally.record()}
    print(json.dumps(entry, indent=1) if options.json else text(tally))
    if options.save:
        add(options.save, "graphs", entry)
    return int(bool(tally.findings))


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks fuzz", description=__doc__)
    made.add_argument("--count", type=int, default=100, help="families to generate")
    made.add_argument("--seed", type=int, default=0, help="seed of the first; the others follow")
    made.add_argument("--corpus", type=Path, metavar="FOLDER", help="ONNX files to run instead of families")
    made.add_argument(
        "--target",
        action="append",
        choices=target_names(),
        help="compile every case for this one instead of its own; may be repeated",
    )
    made.add_argument("--limit", type=float, default=60, help="seconds after which a case counts as hanging")
    made.add_argument("--seconds", type=float, help="start no case after so many seconds")
    made.add_argument("--findings", type=Path, default=Path(".fuzz"), help="where failing cases are kept")
    made.add_argument("--replay", type=Path, metavar="FOLDER", help="run one kept case and show what happens")
    made.add_argument("--readers", type=float, metavar="SECONDS", help="feed damaged bytes to every reader")
    made.add_argument("--coverage", action="store_true", help="with --readers: guided by atheris")
    made.add_argument("--json", action="store_true", help="print the counts as JSON")
    made.add_argument("--save", type=Path, metavar="FILE", help="add the counts to those of earlier runs there")
    made.add_argument(
        "--totals", type=Path, metavar="FILE", help="print what is saved there as tables, run nothing"
    )
    return made


def _corpus(folder: Path) -> Iterator[Case]:
    return map(graph_case, sorted(folder.glob("*.onnx")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
