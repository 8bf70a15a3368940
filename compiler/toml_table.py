"""Reading one TOML table key by key, with every problem collected, and writing tables deterministically."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any, TypeVar

MOST_SEED = 2**32 - 1
"""Generators of numpy and torch take it, also multiplied by what tells epochs apart."""

T = TypeVar("T")

_BARE = re.compile(r"[A-Za-z0-9_-]+")


class Table:
    """A TOML table under its dotted path. Every key must be taken; `close` reports those that were not."""

    def __init__(self, data: object, path: str, problems: list[str]) -> None:
        self.path = path
        self.problems = problems
        self._known: list[str] = []
        self._data: dict[str, Any] = data if isinstance(data, dict) else {}
        if not isinstance(data, dict):
            problems.append(f"{path}: expected a table, found {kind(data)}")

    def take(self, key: str, convert: Callable[[Any], T], default: T) -> T:
        """The converted value of `key`, or `default` where it is absent or cannot be converted."""
        self._known.append(key)
        if key not in self._data:
            return default
        try:
            return convert(self._data[key])
        except ValueError as error:
            self.problem(key, str(error))
            return default

    def need(self, key: str, convert: Callable[[Any], T], default: T) -> T:
        """The same; an absent key is a problem."""
        if key not in self._data:
            self.problem(key, "is missing")
        return self.take(key, convert, default)

    def table(self, key: str) -> Table:
        """The table under `key`; empty where it is absent."""
        self._known.append(key)
        return Table(self._data.get(key, {}), self._join(key), self.problems)

    def has(self, key: str) -> bool:
        """Whether the key is present."""
        return key in self._data

    def __iter__(self) -> Iterator[str]:
        """The keys in the order of the file; asking for them takes none."""
        return iter(tuple(self._data))

    def problem(self, key: str, what: str) -> None:
        """Record a problem of one key."""
        self.problems.append(f"{self._join(key)}: {what}")

    def close(self) -> None:
        """Report every key nobody took, with the nearest known one."""
        for key in self._data:
            if key not in self._known:
                near = difflib.get_close_matches(key, self._known, n=1)
                known = ", ".join(sorted(self._known))
                advice = f"did you mean '{near[0]}'?" if near else f"known keys are {known}"
                self.problem(key, f"unknown key; {advice}")

    def _join(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key


def kind(value: object) -> str:
    """What a TOML value is, in words."""
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "an array"}
    return names.get(type(value), "a table" if isinstance(value, dict) else type(value).__name__)


# ---------------------------------------------------------------------- conversions; ValueError says what is wrong
def text(value: object) -> str:
    """A non-empty string."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"expected a string, found {kind(value) if value != '' else 'an empty one'}")
    if "\0" in value:  # which no name of a file has, and none in C
        raise ValueError(f"{value!r} holds a character NUL")
    return value


def whole(value: object) -> int:
    """A non-negative integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"expected a non-negative whole number, found {value!r}")
    return value


def seed(value: object) -> int:
    """A whole number that generators take."""
    found = whole(value)
    if found > MOST_SEED:
        raise ValueError(f"expected at most {MOST_SEED}, found {found}")
    return found


def number(value: object) -> float:
    """A non-negative number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= sys.float_info.max:
        raise ValueError(f"expected a non-negative number, found {value!r}")
    return float(value)


def flag(value: object) -> bool:
    """A boolean."""
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, found {value!r}")
    return value


def texts(value: object) -> tuple[str, ...]:
    """An array of strings."""
    if not isinstance(value, list):
        raise ValueError(f"expected an array of strings, found {kind(value)}")
    return tuple(text(v) for v in value)


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?i?)b?", re.IGNORECASE)


def amount(value: object) -> int:
    """A whole number, or a string with a unit: "40M", "6MB", "512KiB"."""
    match = _AMOUNT.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is not None and match[2].lower() in _UNITS:
        return round(Fraction(match[1]) * _UNITS[match[2].lower()])
    if isinstance(value, str):
        raise ValueError(f"'{value}' is not an amount such as 40M, 6MB or 512KiB")
    return whole(value)


def shape(value: object) -> tuple[int, ...]:
    """An array of sizes."""
    if not isinstance(value, list):
        raise ValueError(f"expected an array of sizes, found {kind(value)}")
    return tuple(whole(v) for v in value)


# ---------------------------------------------------------------------- writing
def dumps(table: Mapping[str, Any]) -> str:
    """TOML of nested mappings, in their order; None and empty tables are left out."""
    lines = [f"{_key(k)} = {_value(v)}" for k, v in table.items() if not _is_table(v) and v is not None]
    for key, value in table.items():
        if _is_table(value) and value:
            lines += ["", *_section(_key(key), value)]
    return "\n".join(lines) + "\n"


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


def _section(path: str, table: Mapping[str, Any]) -> list[str]:
    plain = {k: v for k, v in table.items() if not _is_table(v) and v is not None}
    lines = [f"[{path}]", *(f"{_key(k)} = {_value(v)}" for k, v in plain.items())] if plain else []
    for key, value in table.items():
        if _is_table(value) and value:
            lines += [*([""] if lines else []), *_section(f"{path}.{_key(key)}", value)]
    return lines


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _quoted(name)


def _quoted(text: str) -> str:
    """A basic string in ASCII. Escapes are those of JSON, which writes characters beyond 16 bits in two halves, as
    TOML does not."""
    return '"' + "".join(json.dumps(c)[1:-1] if c < "\U00010000" else f"\\U{ord(c):08x}" for c in text) + '"'


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    return _quoted(value) if isinstance(value, str) else repr(value)
