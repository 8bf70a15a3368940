"""The tests that are run on a mutant: those that run the changed statement, most specific first, within some time.

Tests of the module's own files come first, then those that run the fewest lines of the compiler; functions take
turns, so that many cases of one do not keep out another. `recording.MOST` tests of a file are known for a line.
The first that fails ends it; a mutant that passes all of them counts as unnoticed although others might notice it.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.mutation.recording import Recording, file_of

LOOKING = "tests/test_public_api.py"
"""Looks at what importing made, such as defaults of options, and so is asked where only importing runs a line."""


@dataclass(frozen=True)
class Spans:
    """Statements, and the functions and classes around them, of one file, as ranges of lines."""

    statements: list[range]
    bodies: list[range]

    @classmethod
    def of(cls, source: str) -> Spans:
        """From the text of a file."""
        statements, bodies = [], []
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                bodies.append(range(_first(node), _last(node) + 1))
            if isinstance(node, ast.stmt):
                body = getattr(node, "body", None)
                end = body[0].lineno if body else _last(node) + 1
                statements.append(range(_first(node), max(end, node.lineno + 1)))
        return cls(statements, bodies)

    def around(self, line: int) -> Iterator[range]:
        """The statement of a line, then every body around it from the innermost on."""
        for found in (self.statements, self.bodies):
            held = sorted((s for s in found if line in s), key=len)
            yield from held[:1] if found is self.statements else held


def _first(node: ast.stmt) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(d.lineno for d in decorators)])


def _last(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


@dataclass
class Chooser:
    """Tests by changed line. `most`: seconds of processor time, as recorded, that a mutant's tests may take;
    `longest`: seconds above which a test is not asked at all."""

    recording: Recording
    sources: dict[str, str]
    most: float
    longest: float = math.inf
    _spans: dict[str, Spans] = field(default_factory=dict)

    def tests(self, module: str, line: int) -> list[str]:
        """Of the statement; where only importing runs it, what looks at modules from outside, then tests of what
        stands around it, then of the whole file."""
        if module not in self._spans:
            self._spans[module] = Spans.of(self.sources[module])
        lines = self.recording.lines.get(module, {})
        statement, *bodies = [*self._spans[module].around(line), range(1, max(lines, default=0) + 1)]
        if asked := self._asked(_running(lines, statement), module):
            return list(self._within(asked))
        looking = self._asked((t for t in self.recording.seconds if file_of(t) == LOOKING), module)
        every = (test for body in bodies for test in self._asked(_running(lines, body), module))
        return list(self._within(dict.fromkeys([*looking, *every])))

    def _asked(self, tests: Iterable[str], module: str) -> list[str]:
        return self.recording.ranked((t for t in tests if self.recording.seconds[t] <= self.longest), module)

    def _within(self, tests: Iterable[str]) -> Iterator[str]:
        """Less the tests that do not fit into what the ones before them leave."""
        left = self.most
        for test in tests:
            if self.recording.seconds[test] <= left:
                left -= self.recording.seconds[test]
                yield test


def _running(lines: Mapping[int, Sequence[str]], span: range) -> set[str]:
    return {t for n in span for t in lines.get(n, ())}
