"""Which test runs which line of the compiler, and how long it takes.

`python -m benchmarks.mutation.recording FILE TESTS...`, in the root of the repository, writes a `Recording`.
Runs pytest under coverage.py with a context per test. What a fixture of a module or a session runs counts for
every test that asks for it, not for the first alone. Tests that fail or skip are left out.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.mutation.mutants import PACKAGES

if TYPE_CHECKING:
    from coverage import Coverage

FIXTURE = "fixture "
"""Start of the context of a fixture that several tests share."""
MOST = 8
"""Tests of one file that are kept for a line: of different functions first, the shortest of each first."""


@dataclass
class Recording:
    """`seconds`: processor time of every test that passed, by its pytest id; `lines`: file, line -> ids.

    The file of an id is what stands before its first colon. Lines that only importing runs have no tests.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, dict[int, list[str]]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Recording:
        """What `save` wrote."""
        held = json.loads(path.read_text())
        return cls(held["seconds"], {m: {int(n): ids for n, ids in of.items()} for m, of in held["lines"].items()})

    def without(self, files: Iterable[str]) -> Recording:
        """Less the tests of some files."""
        gone = set(files)
        lines = {
            m: {n: [i for i in ids if file_of(i) not in gone] for n, ids in of.items()}
            for m, of in self.lines.items()
        }
        return Recording({i: s for i, s in self.seconds.items() if file_of(i) not in gone}, lines)

    def with_(self, other: Recording) -> Recording:
        """Both; the lines are of the same sources."""
        lines = {
            m: {
                n: [*self.lines.get(m, {}).get(n, ()), *other.lines.get(m, {}).get(n, ())]
                for n in sorted({*self.lines.get(m, {}), *other.lines.get(m, {})})
            }
            for m in sorted({*self.lines, *other.lines})
        }
        return Recording({**self.seconds, **other.seconds}, lines)


def file_of(test: str) -> str:
    """The file of a pytest id."""
    return test.partition("::")[0]


def spread(tests: Iterable[str], seconds: dict[str, float]) -> list[str]:
    """Tests in turns of their functions, every function's shortest first."""
    turn: dict[str, int] = {}
    placed = []
    for test in sorted(tests, key=lambda t: (seconds[t], t)):
        name = test.partition("[")[0]
        turn[name] = turn.get(name, 0) + 1
        placed.append((turn[name], seconds[test], test))
    return [test for _, _, test in sorted(placed)]


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
        made = Recording(seconds)
        known: dict[tuple[str, ...], list[str]] = {}  # neighbouring lines are mostly run by the same tests
        for path in sorted(data.measured_files()):
            found = data.contexts_by_lineno(path)
            module = Path(path).relative_to(root).as_posix()
            lines = made.lines.setdefault(module, {})
            for number, contexts in sorted(found.items()):
                key = tuple(contexts)
                if key not in known:
                    known[key] = self._tests(key, seconds)
                lines[number] = known[key]
        return made

    def _tests(self, contexts: Sequence[str], seconds: dict[str, float]) -> list[str]:
        by_file: dict[str, set[str]] = {}
        for context in contexts:
            for test in self.fixtures.get(context, [context]):
                if test in seconds:
                    by_file.setdefault(file_of(test), set()).add(test)
        return [t for file in sorted(by_file) for t in spread(by_file[file], seconds)[:MOST]]


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
