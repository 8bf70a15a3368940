"""Mutation score of compiler/ir, passes and training: of a sample of small changes, how many the tests notice.

Needs the extra `mutation`. Which test runs which line is recorded once and kept, and so are outcomes, so that a
second run does only what other tests or sources may decide differently. Survivors are listed with their lines.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.host import versions
from benchmarks.mutation.choice import LOOKING, Chooser
from benchmarks.mutation.mutants import PACKAGES, Mutant, draw, modules
from benchmarks.mutation.recording import Recording, file_of
from benchmarks.mutation.trial import Bench, Outcome, copy_tree
from benchmarks.peers.client import ROOT
from benchmarks.settings import positive, say
from benchmarks.sources import sources_digest

TESTS = (
    *("tests/ir", "tests/passes", "tests/mutation", "tests/calibration", "tests/cost", "tests/training"),
    *("tests/broken_inputs", "tests/test_pipeline.py", "tests/test_outline.py", "tests/test_diff.py", LOOKING),
)
"""The tests that are asked: those of the packages and of what stands close to them, none that compiles much."""
Z = 1.96
"""Two-sided 95 %."""


def interval(killed: int, drawn: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; (0, 1) for no draws."""
    if not drawn:
        return 0.0, 1.0
    share, z2 = killed / drawn, Z * Z / drawn
    middle, half = share + z2 / 2, Z * math.sqrt(share * (1 - share) / drawn + z2 / (4 * drawn))
    return (middle - half) / (1 + z2), (middle + half) / (1 + z2)


def digest_of(paths: Sequence[Path]) -> str:
    """Digest of the contents of files."""
    return hashlib.sha256(b"\0".join(p.read_bytes() for p in paths)).hexdigest()[:16]


# ---------------------------------------------------------------------- which test runs which line
def recorded(tree: Path, kept: Path, tests: Sequence[str]) -> Recording:
    """The recording of all test files in `tests`; only files that are new or changed are run.

    RuntimeError where pytest cannot run them; failing tests are said and left out.
    """
    path, state = kept / "recording.json", kept / "recorded.json"
    files = sorted({f for t in tests for f in ([tree / t] if t.endswith(".py") else (tree / t).rglob("test_*.py"))})
    now = {f.relative_to(tree).as_posix(): digest_of([f]) for f in files}
    sources = digest_of([tree / m for m in [*modules(tree), "benchmarks/mutation/recording.py"]])
    was = json.loads(state.read_text()) if state.exists() and path.exists() else {}
    held = was.get("files", {}) if was.get("sources") == sources else {}
    known = Recording.read(path) if held else Recording()
    fresh = [name for name, digest in now.items() if held.get(name) != digest]
    if fresh:
        say(f"recording which lines {len(fresh)} test files run")
        known = known.without(set(held) - set(now) | set(fresh)).with_(_record(tree, kept, fresh))
        known.save(path)
        state.write_text(json.dumps({"sources": sources, "files": now}))
    return known


def _record(tree: Path, kept: Path, files: Sequence[str]) -> Recording:
    out = kept.absolute() / "fresh.json"
    command = [sys.executable, "-m", "benchmarks.mutation.recording", str(out), *files]
    done = subprocess.run([*command, f"--basetemp={kept.absolute() / 'tmp'}"], cwd=tree, check=False)
    if done.returncode == 1:
        say("tests that fail are not asked")
    elif done.returncode:
        raise RuntimeError(f"pytest ended with {done.returncode}; nothing is recorded")
    return Recording.read(out)


# ---------------------------------------------------------------------- outcomes, kept
@dataclass
class Kept:
    """Outcomes of earlier runs, a line each. A mutant that was noticed stays so while the test file that did stays
    as it is; one that survived, while all chosen tests do."""

    path: Path
    tree: Path
    _held: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.exists():
            rows = map(json.loads, self.path.read_text().splitlines())
            self._held = {row["key"]: row for row in rows}

    def outcome(self, mutant: Mutant, tests: Sequence[str]) -> Outcome | None:
        """What is known and still holds."""
        row = self._held.get(mutant.key)
        if row is None:
            return None
        found = Outcome(row["verdict"], row["by"])
        return found if row["tests"] == self._state(found, tests) else None

    def keep(self, mutant: Mutant, tests: Sequence[str], found: Outcome) -> None:
        """Add one."""
        row = {"key": mutant.key, "verdict": found.verdict, "by": found.by, "tests": self._state(found, tests)}
        self._held[mutant.key] = row
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _state(self, found: Outcome, tests: Sequence[str]) -> str:
        """Digest of the tests that the outcome rests on."""
        if found.verdict == "killed" and "::" in found.by:
            return digest_of([self.tree / file_of(found.by)])
        files = sorted(set(map(file_of, tests)))
        return digest_of([self.tree / f for f in files]) + hashlib.sha256(repr(tests).encode()).hexdigest()[:16]


def run(drawn: Sequence[Mutant], chooser: Chooser, bench: Bench, kept: Kept) -> Iterator[tuple[Mutant, Outcome]]:
    """Every mutant with its outcome, as they come."""
    for number, mutant in enumerate(drawn):
        tests = chooser.tests(mutant.module, mutant.line)
        found = kept.outcome(mutant, tests)
        if found is None:
            seconds = sum(chooser.recording.seconds[t] for t in tests)
            found = bench.run(mutant.module, mutant.source, tests, seconds)
            kept.keep(mutant, tests, found)
            where = f"{mutant.module}:{mutant.line} {mutant.operator}"
            say(f"{number + 1}/{len(drawn)} {found.verdict} {where} ({len(tests)} tests) {found.by}")
        yield mutant, found


def controls(drawn: Sequence[Mutant], chooser: Chooser, bench: Bench, count: int) -> int:
    """Run the tests of `count` mutants on unchanged files; how many passed. All must, or verdicts mean nothing."""
    passed = 0
    for mutant in drawn[:count]:
        tests = chooser.tests(mutant.module, mutant.line)
        seconds = sum(chooser.recording.seconds[t] for t in tests)
        found = bench.run(mutant.module, chooser.sources[mutant.module], tests, seconds)
        passed += not found.killed
        if found.killed:
            say(f"the tests of {mutant.module}:{mutant.line} fail on the unchanged file: {found.by}")
    return passed


# ---------------------------------------------------------------------- what is told
def record(results: Sequence[tuple[Mutant, Outcome]], found: Mapping[str, int]) -> dict[str, Any]:
    """JSON-ready counts over all, per package and per file, and every survivor."""
    killed = sum(o.killed for _, o in results)
    per_module: dict[str, Counter[str]] = {m: Counter() for m in found}
    for mutant, outcome in results:
        per_module[mutant.module][outcome.verdict] += 1
    return {
        "places": sum(found.values()),
        "drawn": len(results),
        "killed": killed,
        "score": round(killed / len(results), 4) if results else None,
        "interval_95": [round(x, 4) for x in interval(killed, len(results))],
        "verdicts": dict(Counter(o.verdict for _, o in results)),
        "noticed_while_importing": sum(o.by == "import" for _, o in results),
        "modules": {m: {"places": found[m], **per_module[m]} for m in found if found[m]},
        "survivors": [m.record() | {"verdict": o.verdict} for m, o in results if not o.killed],
    }


def text(made: Mapping[str, Any]) -> str:
    """The record for a terminal."""
    low, high = made["interval_95"]
    lines = [
        f"{made['killed']} of {made['drawn']} changes noticed, drawn from {made['places']} places: "
        f"{made['score']:.1%} (95 %: {low:.1%} to {high:.1%})"
    ]
    for package in PACKAGES:
        own = [row for m, row in made["modules"].items() if m.startswith(package + "/")]
        noticed = sum(row.get("killed", 0) + row.get("timeout", 0) for row in own)
        drawn = noticed + sum(row.get("survived", 0) + row.get("untested", 0) for row in own)
        if own:
            lines.append(f"  {package}: {noticed} of {drawn}")
    for row in made["survivors"]:
        lines.append(f"{row['module']}:{row['line']} {row['function']} {row['operator']} {row['verdict']}")
        lines += [f"  - {row['before']}", f"  + {row['after']}"]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Draw, run, print; 1 where fewer than `--least` of the changes are noticed or a control fails."""
    options = _parser().parse_args(arguments)
    try:
        cosmic = importlib.import_module("benchmarks.mutation.cosmic")
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}; pip install 'taskgraft[mutation]'") from None
    options.kept.mkdir(parents=True, exist_ok=True)
    tree = copy_tree(ROOT, options.kept / "copy")
    recording = recorded(tree, options.kept, options.tests)
    drawn, found = draw(tree, options.sample, options.seed, cosmic, options.packages)
    say(f"{len(drawn)} changes drawn from {sum(found.values())} places")
    if not drawn:
        raise SystemExit(
            f"nothing to change in {', '.join(options.packages)}: --packages names folders with source"
        )
    chooser = Chooser(
        recording, {m: (tree / m).read_text() for m in modules(tree)}, options.seconds, options.longest
    )
    bench, kept = Bench(tree.absolute()), Kept(options.kept / "outcomes.jsonl", tree)
    passed = controls(drawn, chooser, bench, options.controls)
    made = _head(options, arguments) | {"controls_passed": passed}
    made |= record(list(run(drawn, chooser, bench, kept)), found)
    print(json.dumps(made, indent=1) if options.json else text(made))
    if options.save:
        options.save.write_text(json.dumps(made, indent=1) + "\n")
    return int(passed < options.controls or made["score"] < options.least)


def _head(options: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """How the counts came about."""
    return {
        "command": " ".join(["python -m benchmarks mutation", *arguments]),
        "seed": options.seed,
        "packages": list(options.packages),
        "sources": sources_digest(),
        "versions": versions(
            ("cosmic-ray", "coverage", "pytest", "hypothesis", "numpy", "onnx", "onnxruntime", "torch")
        ),
        "tests": list(options.tests),
        "seconds_per_change": options.seconds,
        "longest_test": options.longest,
        "controls": options.controls,
    }


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks mutation", description=__doc__)
    made.add_argument("--sample", type=positive, default=300, help="changes to draw")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument(
        "--packages", nargs="+", default=PACKAGES, metavar="PATH", help="folders and files that are changed"
    )
    made.add_argument("--tests", nargs="+", default=TESTS, metavar="PATH", help="test files and folders to ask")
    made.add_argument(
        "--seconds", type=float, default=20, help="processor seconds of tests per change, as recorded"
    )
    made.add_argument("--longest", type=float, default=5, help="seconds above which a test is not asked")
    made.add_argument("--controls", type=int, default=5, help="unchanged files that the chosen tests must pass on")
    made.add_argument("--least", type=float, default=0.8, help="share of changes that has to be noticed")
    made.add_argument(
        "--kept", type=Path, default=ROOT / ".mutation", metavar="FOLDER", help="copy, recording, outcomes"
    )
    made.add_argument("--json", action="store_true", help="print the record as JSON")
    made.add_argument("--save", type=Path, metavar="FILE", help="write the record there too")
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
