"""The tuning database: measured times of choices by instruction set, layer shape and epilogue, in one JSON file.

A time is that of a layer inside a whole network. Entries of an older version of an algorithm's generated code are
ignored. The database is an input of a build like any other: the same database gives the same plan.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler.codegen.groups import CONVOLUTIONS, Group
from compiler.codegen.strategies import STRATEGIES
from compiler.codegen.strategies.base import Choice, weight_form
from compiler.codegen.strategies.convolution import facts
from compiler.codegen.target import Target
from compiler.errors import ConfigError

SCHEMA = 1


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

    @property
    def current(self) -> bool:
        """Whether the algorithm still generates the code that was measured."""
        strategy = STRATEGIES.get(self.algorithm)
        return strategy is not None and strategy.version == self.version


@dataclass
class TuningDatabase:
    """Measurements by layer, fastest first."""

    entries: dict[str, tuple[Measurement, ...]] = field(default_factory=dict)

    def best(self, group: Group, target: Target, algorithms: Collection[str]) -> Choice | None:
        """See `planner.Measured`."""
        key = layer_key(group, target)
        known = self.entries.get(key, ()) if key else ()
        return next((m.choice for m in known if m.current and m.algorithm in algorithms), None)

    def add(self, key: str, choice: Choice, seconds: float) -> None:
        """Enter a measurement; a newer one of the same choice replaces the older."""
        version = STRATEGIES[choice.algorithm].version
        made = Measurement(round(seconds * 1e9), choice.algorithm, choice.tile, version)
        others = [m for m in self.entries.get(key, ()) if m.choice != choice and m.current]
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
        """Write the file, whole or not at all."""
        partial = path.with_name(path.name + ".part")
        partial.write_text(self.text(), encoding="ascii")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> TuningDatabase:
        """Read a file. ConfigError where it cannot be read or is not a tuning database."""
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return cls.parse(record)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"{path} is not a tuning database of schema {SCHEMA}: {error}; delete it, or write one with --tune"
            ) from error

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> TuningDatabase:
        """From JSON data. ValueError, TypeError or KeyError where it is malformed."""
        if record["schema"] != SCHEMA:
            raise ValueError(f"schema {record['schema']}")
        entries = {}
        for key, rows in record["entries"].items():
            made = [Measurement(int(ns), str(a), tuple(int(n) for n in tile), int(v)) for a, v, tile, ns in rows]
            entries[str(key)] = tuple(sorted(made))
        return cls(entries)


def layer_key(group: Group, target: Target) -> str | None:
    """Name of a group's shape, weights, epilogue and instruction set; None for families with nothing to choose."""
    if group.family not in CONVOLUTIONS:
        return None
    after = "+".join(s.node.op.name for s in group.sites[1:]) or "linear"
    parts = "+".join(str(v.shape[1]) for v in group.segments)
    weights = weight_form(group.anchor.operands[1])
    return f"{target.preset}|{group.family}|{facts(group.anchor).signature}|{parts}|{weights}|{after}"
