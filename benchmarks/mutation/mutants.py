"""Changes of source files, one per place, drawn by a seed.

A place is a piece of source that operators change. Places are put in an order that the seed and the text around
them decide, so that a sample stays the same, but for what was edited, while the sources move on.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PACKAGES = ("compiler/ir", "compiler/passes", "compiler/training")
"""What is changed, as paths of folders and files below the repository."""
Spot = tuple[int, int]
"""Line, from 1, and column, from 0."""


@dataclass(frozen=True)
class Place:
    """A piece of source, and every change of it as (operator, number of its occurrence in the file)."""

    module: str
    start: Spot
    end: Spot
    function: str
    changes: tuple[tuple[str, int], ...]


class Changer(Protocol):
    """Whatever finds and makes changes: cosmic.py."""

    def places(self, module: str, source: str) -> list[Place]:
        """Every place of a file, in order."""

    def changed(self, source: str, operator: str, occurrence: int) -> str | None:
        """The file after a change."""


@dataclass(frozen=True)
class Mutant:
    """A changed file. `line` counts from 1; `before` and `after`: that line; `source`: the whole file."""

    module: str
    line: int
    function: str
    operator: str
    before: str
    after: str
    source: str

    @property
    def key(self) -> str:
        """Digest of the changed file and its name."""
        return hashlib.sha256(f"{self.module}\n{self.source}".encode()).hexdigest()[:16]

    def record(self) -> dict[str, Any]:
        """JSON-ready, without the file."""
        shown = ("module", "line", "function", "operator", "before", "after")
        return {name: getattr(self, name) for name in shown}


def modules(root: Path, packages: Sequence[str] = PACKAGES) -> list[str]:
    """Source files of packages below `root`, in order; a package may be a single file."""
    found = (path for package in packages for path in _files(root / package))
    return sorted(p.relative_to(root).as_posix() for p in found)


def _files(package: Path) -> Iterable[Path]:
    return [package] if package.suffix == ".py" else package.rglob("*.py")


def draw(
    root: Path, count: int, seed: int, changer: Changer, packages: Sequence[str] = PACKAGES
) -> tuple[list[Mutant], dict[str, int]]:
    """`count` mutants of distinct places (all places, where there are fewer), and how many places each file has.

    A change that leaves the meaning alone (annotations, what only type checkers read) does not count as one.
    """
    sources = {m: (root / m).read_text() for m in modules(root, packages)}
    every = {m: changer.places(m, text) for m, text in sources.items()}
    ranked = sorted(_ranked((p for found in every.values() for p in found), sources, seed), key=lambda r: r[0])
    drawn: list[Mutant] = []
    for rank, place in ranked:
        if len(drawn) == count:
            break
        mutant = mutant_of(place, sources[place.module], int(rank[:8], 16), changer)
        if mutant is not None:
            drawn.append(mutant)
    return drawn, {m: len(found) for m, found in every.items()}


def _ranked(found: Iterable[Place], sources: dict[str, str], seed: int) -> Iterator[tuple[str, Place]]:
    """Places with a digest of the seed and of the text around them; equal lines of a function are counted."""
    seen: dict[str, int] = {}
    lines = {m: text.splitlines() for m, text in sources.items()}
    for place in found:
        text = lines[place.module][place.start[0] - 1].strip()
        name = (
            f"{seed} {place.module} {place.function} {text} {place.end[1] - place.start[1]} {place.changes[0][0]}"
        )
        seen[name] = seen.get(name, 0) + 1
        yield hashlib.sha256(f"{name} {seen[name]}".encode()).hexdigest(), place


def mutant_of(place: Place, source: str, number: int, changer: Changer) -> Mutant | None:
    """One change of a place; the next one where the first is no Python or means the same. None: there is none."""
    was, first = meaning(source), number % len(place.changes)
    for name, occurrence in place.changes[first:] + place.changes[:first]:
        changed = changer.changed(source, name, occurrence)
        if changed is None or meaning(changed) in (None, was):
            continue
        line = place.start[0]
        before, after = (text.splitlines()[line - 1].strip() for text in (source, changed))
        operator = name.rpartition("/")[2]
        return Mutant(place.module, line, place.function, operator, before, after, changed)
    return None


class _Bare(ast.NodeTransformer):
    """Takes away what is never evaluated: annotations, and blocks for type checkers."""

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return [self.visit(n) for n in node.orelse]
        return self.generic_visit(node)


def meaning(source: str) -> str | None:
    """The syntax tree as far as it is evaluated (annotations are not); None where it is no Python."""
    try:
        return ast.dump(_Bare().visit(ast.parse(source)))
    except SyntaxError:
        return None
