"""Plans from files: the choices of a former build as an input of the next one.

A plan is untrusted data. Only its form is judged here; whether a choice fits a layer is the planner's to judge,
which builds nothing that the strategies do not propose themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler.codegen.groups import Group
from compiler.codegen.planner import Sources
from compiler.codegen.program import PLAN_SCHEMA
from compiler.codegen.strategies.base import Choice
from compiler.codegen.target import Target
from compiler.errors import ConfigError, listed

MOST_BYTES = 64 * 1024 * 1024
"""Size of the largest plan that is read."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Plan:
    """The choices of a build. Also the measurements they rest on: see `planner.Measured`."""

    preset: str
    """The instruction set the choices were made for."""
    nodes: Mapping[str, tuple[str, ...]]
    """By first node: all nodes of the kernel."""
    choices: Mapping[str, Choice]
    """By first node."""
    measured: Mapping[str, Mapping[Choice, int]] = field(default_factory=dict)
    """Nanoseconds of some choices, by first node."""
    database: str = ""
    """SHA-256 (hex) of the database they come from."""

    def times(self, group: Group, target: Target) -> Mapping[Choice, int]:
        """See `planner.Measured`."""
        return self.measured.get(group.anchor.node.ref.name, {})

    @property
    def sources(self) -> Sources:
        """For code generation: exactly these choices."""
        return Sources(self.choices, self.nodes, self, self.database)


def load_plans(places: Iterable[Path], targets: Sequence[Target]) -> dict[str, Plan]:
    """A plan for every target, by its name.

    A place is a plan.json, a bundle's folder, or the output folder of a compile with a bundle per target.
    ConfigError where a file is not a plan, a target has none, or two that differ.
    """
    found: list[tuple[str, Plan]] = []
    for place in places:
        found += [(folder, load_plan(file)) for folder, file in _files(place)]
    chosen = {}
    for target in targets:
        fitting = [(name, plan) for name, plan in found if plan.preset == target.preset]
        own = [plan for name, plan in fitting if name == target.name] or [plan for _, plan in fitting]
        if not own or any(plan != own[0] for plan in own):
            known = ", ".join(dict.fromkeys(plan.preset for _, plan in found)) or "nothing"
            what = "several plans that differ" if own else "no plan"
            raise ConfigError(
                f"{what} for target '{target.name}' ({target.preset}): the given plans are for {known}; "
                "give one plan.json per target, or the output folder of a former compile for the same targets"
            )
        chosen[target.name] = own[0]
    return chosen


def _files(place: Path) -> list[tuple[str, Path]]:
    """(name of the target, or nothing where the place does not say it; file) of every plan in a place."""
    if not place.is_dir():
        return [("", place)]
    if (place / "plan.json").exists():
        return [("", place / "plan.json")]
    found = sorted(place.glob("*/plan.json"))
    if not found:
        raise ConfigError(
            f"{place}: holds no plan; name a plan.json, a bundle, or the output folder of a former compile"
        )
    return [(file.parent.name, file) for file in found]


def load_plan(path: Path) -> Plan:
    """Read a plan.json. ConfigError where it cannot be read or is not a plan; lists every problem."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"plan {path}: larger than {MOST_BYTES // 2**20} MiB; this is not a plan.json")
        record = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"plan {path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"plan {path}: not JSON: {error}; use the plan.json of a bundle as it is") from None
    return parse_plan(record, f"plan {path}")


def parse_plan(record: object, where: str = "plan") -> Plan:
    """A plan from JSON data. ConfigError with every problem; `where` names the source."""
    schema = record.get("schema") if isinstance(record, dict) else None
    if not isinstance(record, dict) or type(schema) is not int or schema != PLAN_SCHEMA:
        raise ConfigError(
            f"{where}: has schema {schema!r}, this version reads {PLAN_SCHEMA}; make the plan again by "
            "compiling without one"
        )
    problems: list[str] = []
    preset, steps, database = record.get("target"), record.get("steps"), record.get("database")
    if not isinstance(preset, str):
        problems.append("target: expected the name of an instruction set")
    if not isinstance(steps, list):
        problems.append("steps: expected a list")
    if database is not None and not (isinstance(database, str) and _DIGEST.fullmatch(database)):
        problems.append("database: expected null or a SHA-256 in hexadecimal digits")
    nodes: dict[str, tuple[str, ...]] = {}
    choices: dict[str, Choice] = {}
    measured: dict[str, dict[Choice, int]] = {}
    for number, step in enumerate(steps if isinstance(steps, list) else []):
        try:
            members, times = _step(step)
        except ValueError as error:
            problems.append(f"step {number}: {error}")
            continue
        if not times:
            continue
        if members[0] in nodes:
            problems.append(f"step {number}: a second one for '{members[0]}'")
        nodes[members[0]], choices[members[0]] = members, next(iter(times))
        measured[members[0]] = {c: ns for c, ns in times.items() if ns is not None}
    if problems:
        raise ConfigError(f"{where} is malformed, use the plan.json of a bundle as it is:{listed(problems)}")
    return Plan(str(preset), nodes, choices, measured, database or "")


def _step(step: object) -> tuple[tuple[str, ...], dict[Choice, int | None]]:
    """The nodes of a step, and its choices with measured nanoseconds, the one that runs first; none for a copy.

    ValueError says what is wrong.
    """
    if not isinstance(step, dict):
        raise ValueError("expected a table")
    nodes = step.get("nodes")
    if not isinstance(nodes, list) or not nodes or not all(type(n) is str for n in nodes):
        raise ValueError("nodes: expected a list of names")
    if "algorithm" not in step:
        return tuple(nodes), {}
    others = step.get("others", [])
    if not isinstance(others, list) or not all(isinstance(o, dict) for o in others):
        raise ValueError("others: expected a list of choices")
    found: dict[Choice, int | None] = {}
    for one in (step, *others):
        found.setdefault(_choice(one), _nanoseconds(one))
    return tuple(nodes), found


def _choice(record: Mapping[str, Any]) -> Choice:
    algorithm, tile = record.get("algorithm"), record.get("tile")
    if type(algorithm) is not str or not algorithm:
        raise ValueError("algorithm: expected a name")
    if not isinstance(tile, list) or not all(type(n) is int and n >= 0 for n in tile):
        raise ValueError("tile: expected a list of whole numbers, none below zero")
    return Choice(algorithm, tuple(tile))


def _nanoseconds(record: Mapping[str, Any]) -> int | None:
    value = record.get("measured_ns")
    if value is not None and (type(value) is not int or value <= 0):
        raise ValueError("measured_ns: expected null or a positive whole number")
    return value
