"""Which test runs which line of the compiler, and how long it takes.

`python -m benchmarks.mutation.recording FILE TESTS...`, in the root of the repository, writes a `Recording`.
Runs pytest under coverage.py with a context per test. What a fixture of a module or a session runs counts for
every test that asks for it, not for the first alone. Tests that fail or skip are left out.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.mutation.mutants import PACKAGES

if TYPE_CHECKING:
    from coverage import Coverage

FIXTURE = "fixture "
"""Start of the context of a fixture that several tests share."""
MOST = 40
"""Tests of one file that are kept for a line: of different functions first, the most specific of each first."""


@dataclass
class Recording:
    """`seconds`: processor time of every test that passed, by its pytest id; `lines`: file, line -> ids;
    `reach`: how many lines of the compiler a test runs.

    The file of an id is what stands before its first colon. Lines that only importing runs have no tests.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, dict[int, list[str]]] = field(default_factory=dict)
    reach: dict[str, int] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write as JSON; in the lines tests are numbers, in the order of `seconds`."""
        number = {test: i for i, test in enumerate(self.seconds)}
        lines = {m: {n: [number[t] for t in ids] for n, ids in of.items()} for m, of in self.lines.items()}
        path.write_text(json.dumps({"seconds": self.seconds, "lines": lines, "reach": self.reach}))

    @classmethod
    def read(cls, path: Path) -> Recording:
        """What `save` wrote."""
        held = json.loads(path.read_text())
        tests = list(held["seconds"])
        lines = {
            m: {int(n): [tests[i] for i in numbers] for n, numbers in of.items()} for m, of in held["lines"].items()
        }
        return cls(held["seconds"], lines, held["reach"])

    def without(self, files: Iterable[str]) -> Recording:
        """Less the tests of some files."""
        gone = set(files)
        lines = {
            m: {n: [i for i in ids if file_of(i) not in gone] for n, ids in of.items()}
            for m, of in self.lines.items()
        }
        kept = [i for i in self.seconds if file_of(i) not in gone]
        return Recording({i: self.seconds[i] for i in kept}, lines, {i: self.reach[i] for i in kept})

    def with_(self, other: Recording) -> Recording:
        """Both; the lines are of the same sources."""
        lines = {
            m: {
                n: [*self.lines.get(m, {}).get(n, ()), *other.lines.get(m, {}).get(n, ())]
                for n in sorted({*self.lines.get(m, {}), *other.lines.get(m, {})})
            }
            for m in sorted({*self.lines, *other.lines})
        }
        return Recording({**self.seconds, **other.seconds}, lines, {**self.reach, **other.reach})

    def ranked(self, tests: Iterable[str], module: str = "") -> list[str]:
        """The most specific first: tests of the module's own files, then the others; both in turns of their
        functions, of each the test that runs the fewest lines first (then the shortest)."""

        def breadth(test: str) -> tuple[bool, int, float, str]:
            return not own(test, module), self.reach[test], self.seconds[test], test

        turn: Counter[str] = Counter()
        placed = []
        for test in sorted(tests, key=breadth):
            foreign, *rest = breadth(test)
            name = test.partition("[")[0]
            turn[name] += 1
            placed.append((foreign, turn[name], *rest))
        return [test for *_, test in sorted(placed)]


def file_of(test: str) -> str:
    """The file of a pytest id."""
    return test.partition("::")[0]


def own(test: str, module: str) -> bool:
    """Whether a test stands in a file that is named after the module: test_match.py or test_some_match.py."""
    return f"_{Path(module).stem}_" in f"_{Path(file_of(test)).stem}_"


class Recorder:
    """A plugin of pytest that tells coverage.py what runs."""

    def __init__(self, coverage: Coverage) -> None:
        self.coverage = coverage
        self.current = ""
        self.seconds: dict[str, float] = {}
        self.passed: set[str] = set()
        self.fixtures: dict[str, list[str]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """A context per test."""
        self.current = item.nodeid
        for name in getattr(item, "fixturenames", ()):
            self.fixtures.setdefault(f"{FIXTURE}{file_of(item.nodeid)} {name}", []).append(item.nodeid)
        self.coverage.switch_context(item.nodeid)
        start = time.process_time()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.process_time() - start

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, Any, Any]:
        """A context per fixture that outlives its test."""
        if fixturedef.scope == "function":
            return (yield)
        self.coverage.switch_context(f"{FIXTURE}{file_of(self.current)} {fixturedef.argname}")
        try:
            return (yield)
        finally:
            self.coverage.switch_context(self.current)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Only what passes can fail on a change."""
        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)

    def recording(self, root: Path) -> Recording:
        """What was noted, with paths below `root`."""
        data = self.coverage.get_data()
        seconds = {t: round(s, 4) for t, s in self.seconds.items() if t in self.passed}
        by_line = {
            path: {n: frozenset(found) for n, found in data.contexts_by_lineno(path).items()}
            for path in sorted(data.measured_files())
        }
        count = Counter(found for of in by_line.values() for found in of.values())
        tests = {found: self._tests(found, seconds) for found in count}  # neighbouring lines mostly share theirs
        reach: Counter[str] = Counter()
        for found, times in count.items():
            reach.update(dict.fromkeys(tests[found], times))
        made = Recording(seconds, {}, {t: reach[t] for t in seconds})
        kept = {found: _most(made.ranked(tests[found])) for found in count}
        for path, of in by_line.items():
            module = Path(path).relative_to(root).as_posix()
            made.lines[module] = {n: kept[found] for n, found in sorted(of.items())}
        return made

    def _tests(self, contexts: Iterable[str], seconds: Mapping[str, float]) -> set[str]:
        """The tests of contexts, which may be those of fixtures."""
        return {t for c in contexts for t in self.fixtures.get(c, [c]) if t in seconds}


def _most(ranked: Iterable[str]) -> list[str]:
    """The first of every file."""
    by_file: dict[str, list[str]] = {}
    for test in ranked:
        by_file.setdefault(file_of(test), []).append(test)
    return [t for file in sorted(by_file) for t in by_file[file][:MOST]]


def main(arguments: Sequence[str]) -> int:
    """Record tests in this process; pytest's exit status."""
    from coverage import Coverage  # the extra `mutation`; the rest of this file does without

    out, *tests = arguments
    root = Path.cwd()
    coverage = Coverage(data_file=None, source=[str(root / p) for p in PACKAGES])
    recorder = Recorder(coverage)
    coverage.start()
    status = pytest.main(["-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *tests], plugins=[recorder])
    coverage.stop()
    recorder.recording(root).save(Path(out))
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
