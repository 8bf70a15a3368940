"""The tuning database: measured times of choices by instruction set, layer shape and epilogue, in one JSON file.

A time is that of a layer inside a whole network. Entries of an older version of an algorithm's generated code are
ignored. The database is an input of a build like any other: the same database gives the same plan.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from compiler.codegen.families import CONVOLUTIONS
from compiler.codegen.groups import Group, loops_of
from compiler.codegen.strategies import STRATEGIES
from compiler.codegen.strategies.base import Choice, weight_form
from compiler.codegen.strategies.convolution import facts
from compiler.codegen.strategies.matrix import matrix_extent
from compiler.codegen.target import Target
from compiler.errors import ConfigError, unwritable
from compiler.files import locked, replace_whole

SCHEMA = 1
NO_DATABASE = "none"
"""In place of a file: choose by rule alone."""
DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True, order=True)
class Measurement:
    """Nanoseconds of one choice, and the version of the algorithm's code that was measured."""

    nanoseconds: int
    algorithm: str
    tile: tuple[int, ...]
    version: int

    @property
    def choice(self) -> Choice:
        """What was measured."""
        return Choice(self.algorithm, self.tile)

    def current(self, key: str) -> bool:
        """Whether the algorithm still generates the code that was measured for the layer `key`."""
        strategy = STRATEGIES.get(self.algorithm)
        return strategy is not None and strategy.code_version(_preset(key)) == self.version


@dataclass
class TuningDatabase:
    """Measurements by layer, fastest first."""

    entries: dict[str, tuple[Measurement, ...]] = field(default_factory=dict)

    def times(self, group: Group, target: Target) -> Mapping[Choice, int]:
        """See `planner.Measured`."""
        key = layer_key(group, target)
        return {} if key is None else self.known(key)

    def known(self, key: str) -> dict[Choice, int]:
        """Nanoseconds by choice for a layer, leaving out algorithms whose code has changed since."""
        return {m.choice: m.nanoseconds for m in self.entries.get(key, ()) if m.current(key)}

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the text."""
        return hashlib.sha256(self.text().encode("ascii")).hexdigest()

    def best(self, most: int) -> TuningDatabase:
        """The `most` fastest choices of every layer, without measurements of older code: what is worth keeping."""
        current = {key: tuple(m for m in rows if m.current(key))[:most] for key, rows in self.entries.items()}
        return TuningDatabase({key: rows for key, rows in current.items() if rows})

    def add(self, key: str, choice: Choice, seconds: float) -> None:
        """Enter a measurement; a newer one of the same choice replaces the older."""
        version = STRATEGIES[choice.algorithm].code_version(_preset(key))
        made = Measurement(max(1, round(seconds * 1e9)), choice.algorithm, choice.tile, version)
        others = [m for m in self.entries.get(key, ()) if m.choice != choice and m.current(key)]
        self.entries[key] = tuple(sorted([*others, made]))

    def text(self) -> str:
        """JSON: sorted keys, one measurement a line."""
        lines = []
        for key in sorted(self.entries):
            rows = (
                json.dumps([m.algorithm, m.version, list(m.tile), m.nanoseconds], separators=(", ", ": "))
                for m in self.entries[key]
            )
            lines.append(f"  {json.dumps(key)}: [\n    " + ",\n    ".join(rows) + "\n  ]")
        return f'{{"schema": {SCHEMA}, "entries": {{\n' + ",\n".join(lines) + "\n}}\n"

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all. ConfigError where that is not possible."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_whole(path, self.text().encode("ascii"))
        except OSError as error:
            raise unwritable(f"tuning database {path}", error, "name another file") from None

    def merge_into(self, path: Path) -> TuningDatabase:
        """Write these measurements and what a file holds besides, which is returned too.

        Processes may do so at once, and none loses what another has measured: of two measurements of a choice the
        one that is written last stays. ConfigError as for `load` and `save`.
        """
        path = Path(os.path.realpath(path))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(path.with_name(f".{path.name}.lock"), wait=True):
                made = self._over(TuningDatabase.load(path)) if path.exists() else self
                made.save(path)
        except OSError as error:
            raise unwritable(f"tuning database {path}", error, "name another file") from None
        return made

    def _over(self, other: TuningDatabase) -> TuningDatabase:
        """These measurements, and those of `other` of choices that are not among them; of older code only for
        layers that are not.
        """
        merged = dict(self.entries)
        for key, rows in other.entries.items():
            mine = self.entries.get(key, ())
            known = {m.choice for m in mine}
            merged[key] = tuple(
                sorted((*mine, *(m for m in rows if m.choice not in known and (not mine or m.current(key)))))
            )
        return TuningDatabase(merged)

    @classmethod
    def load(cls, path: Path) -> TuningDatabase:
        """Read a file. ConfigError where it cannot be read or is not a tuning database."""
        try:
            return cls.parse(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise ConfigError(f"tuning database {path}: cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{path} is not a tuning database of schema {SCHEMA}: {error}. Restore it, or delete it and "
                "measure again with --tune"
            ) from None

    @classmethod
    def parse(cls, record: object) -> TuningDatabase:
        """From JSON data. ValueError says where it is malformed."""
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise ValueError(f'there is no "schema": {SCHEMA} at its top')
        entries = record.get("entries")
        if not isinstance(entries, dict):
            raise ValueError('there is no table "entries"')
        return cls({key: _measurements(key, rows) for key, rows in entries.items()})


def _measurements(key: str, rows: object) -> tuple[Measurement, ...]:
    """The rows [algorithm, version, tile, nanoseconds] of one layer; each choice once."""
    if not isinstance(rows, list):
        raise ValueError(f"entry '{key}' is not a list of measurements")
    found: dict[Choice, Measurement] = {}
    for row in rows:
        made = _measurement(row)
        if made is None or made.choice in found:
            raise ValueError(f"entry '{key}': {json.dumps(row)[:80]} is no measurement, or one of two of a choice")
        found[made.choice] = made
    return tuple(sorted(found.values()))


def _measurement(row: object) -> Measurement | None:
    if not isinstance(row, list) or len(row) != 4:
        return None
    algorithm, version, tile, nanoseconds = row
    whole = isinstance(tile, list) and all(type(n) is int and n > 0 for n in (version, nanoseconds, *tile))
    return Measurement(nanoseconds, algorithm, tuple(tile), version) if whole and type(algorithm) is str else None


def shipped_file(target: Target) -> Path:
    """Where the measurements of an instruction set lie in the package; written by `python -m benchmarks tune`."""
    return DATA / f"tuning-{target.preset}.json"


def shipped(target: Target) -> TuningDatabase:
    """The measurements that come with taskgraft for an instruction set; empty where there are none."""
    path = shipped_file(target)
    return TuningDatabase.load(path) if path.exists() else TuningDatabase()


def database_of(named: Path | None, target: Target) -> TuningDatabase:
    """The measurements of a file, none for the path `none`, those that come with taskgraft where none is named."""
    if named is None:
        return shipped(target)
    return TuningDatabase() if named == Path(NO_DATABASE) else TuningDatabase.load(named)


def _preset(key: str) -> str:
    """The instruction set in the name of a layer."""
    return key.partition("|")[0]


def _members(group: Group) -> str:
    """Siblings: channels of each result, after the numbers of the segments that are read for it."""
    at = {value.ref: number for number, value in enumerate(group.segments)}
    parts = (("+".join(str(at[v.ref]) for v in m.segments), m.outputs[0].shape[1]) for m in group.members)
    return ";".join(f"{read}-{channels}" for read, channels in parts)


def layer_key(group: Group, target: Target) -> str | None:
    """Name of a group's shape, weights, epilogue and instruction set; None for families with nothing to choose."""
    site = group.anchor
    if group.family in CONVOLUTIONS:
        shape = f"{facts(site).signature}|{'+'.join(str(v.shape[1]) for v in group.segments)}"
        if group.members:
            shape += "|" + _members(group)
    elif group.family == "gemm":
        inner, columns = matrix_extent(site)
        shape = f"{site.operands[0].size // inner}x{inner}-{columns}"
    elif group.family == "contraction":
        shape = str(loops_of(group))
    else:
        return None
    after = "+".join(s.node.op.name for s in group.after) or "linear"
    return f"{target.preset}|{group.family}|{shape}|{weight_form(site.operands[1])}|{after}"
