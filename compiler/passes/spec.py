"""Pass options as text, both ways: `prune-channels{flops=0.5,scope=global}`.

A value is a number, `true`, `false`, `none`, a bare word, or a JSON string; several values of a tuple are joined by
`+` (`()` is the empty tuple). A `+` in a string or in brackets, as in `fc[a+b]`, joins nothing. Options that have
their default are left out when printing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from compiler.errors import ConfigError

K = TypeVar("K")

_WORD = re.compile(r"[A-Za-z0-9_./*@:-]+")
_SPEC = re.compile(r"\s*([A-Za-z0-9_.:-]+)\s*(?:\{(.*)\})?\s*", re.DOTALL)
_PAIR = re.compile(r'\s*([A-Za-z_][A-Za-z0-9_-]*)\s*=\s*((?:"(?:[^"\\]|\\.)*"|[^",{}])*)(,|\Z)', re.DOTALL)
_ITEM = re.compile(r'("(?:[^"\\]|\\.)*"|(?>\[[^]"]*\]|[^"+])++)(\+|\Z)')
_RESERVED = frozenset(("true", "false", "none", "()"))


def split(text: str) -> tuple[str, dict[str, str]]:
    """Name and option texts of a spec string; ConfigError where it is malformed or an option comes twice."""
    match = _SPEC.fullmatch(text)
    if match is None:
        raise ConfigError(f"'{text}' is not a pass; write NAME or NAME{{option=value,...}}")
    body = (match[2] or "").strip()
    options: dict[str, str] = {}
    at = 0
    while at < len(body):
        pair = _PAIR.match(body, at)
        if pair is None:
            raise ConfigError(f"'{text}': cannot read '{body[at:]}'; options are written option=value")
        key = pair[1].replace("-", "_")
        if key in options:
            raise ConfigError(f"'{text}': option {key} is given twice")
        options[key] = pair[2].strip()
        at = pair.end()
    return match[1], options


def convert(cls: type, options: Mapping[str, str | object]) -> dict[str, Any]:
    """Option texts, or values as TOML has them, as the types of the fields of dataclass `cls`.

    ConfigError lists every unknown or unreadable option.
    """
    hints = get_type_hints(cls)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}
    values, problems = {}, []
    for key, given in options.items():
        if key not in fields:
            known = ", ".join(fields) or "none"
            problems.append(f"there is no option {key}; the options are {known}")
            continue
        try:
            values[key] = _read(given, fields[key]) if isinstance(given, str) else _fit(given, fields[key])
        except ValueError as error:
            problems.append(f"option {key}: {error}")
    if problems:
        raise ConfigError(f"{getattr(cls, 'name', cls.__name__)}: " + "; ".join(problems))
    return values


def render(name: str, instance: Any) -> str:
    """The spec string of a dataclass instance: its name and every field that differs from its default."""
    shown = [f"{k}={written(v)}" for k, v in changed(instance)]
    return f"{name}{{{','.join(shown)}}}" if shown else name


def changed(instance: Any) -> Iterator[tuple[str, Any]]:
    """Fields that do not have their default, in order of declaration."""
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.init and (value != default or type(value) is not type(default)):
            yield field.name, value


# ---------------------------------------------------------------------- values
def as_read(value: Any) -> Any:
    """An option given in Python as it is read from text: numbers of numpy become Python's, and arrays, lists, sets
    and what can be gone through once become tuples.
    """
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, (set, frozenset)):
        value = sorted(value)
    return tuple(map(as_read, value)) if isinstance(value, (tuple, list, Iterator)) else value


def written(value: Any) -> str:
    """One value as it stands in a spec string."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value).replace("e+", "e")
    if isinstance(value, tuple):
        return "+".join(map(written, value)) or "()"
    text = str(value)
    plain = _WORD.fullmatch(text) and text not in _RESERVED and not _is_number(text)
    return text if plain else json.dumps(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read(text: str, hint: Any) -> Any:
    """`text` as a value of the annotated type; ValueError says what was expected."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple:
        items = [] if text == "()" else [m[1] for m in _ITEM.finditer(text)]
        if text != "()" and "+".join(items) != text:
            raise ValueError(f"cannot read '{text}'; values are joined by +")
        return tuple(_read(item, arguments[0]) for item in items)
    if origin in (Union, types.UnionType):
        return _first(text, arguments)
    if origin is Literal:
        return _literal(_read(text, type(arguments[0])), arguments)
    return _scalar(text, hint)


def _first(text: str, hints: tuple[Any, ...]) -> Any:
    """The reading by the first member of a union that accepts the text; None first, then numbers, then text."""
    order = sorted(hints, key=lambda h: (h is not types.NoneType, h is not bool, h is not int, h is str))
    reasons = []
    for hint in order:
        try:
            return _read(text, hint)
        except ValueError as error:
            reasons.append(str(error).removeprefix(f"'{text}' is not "))
    raise ValueError(f"'{text}' is not {' or '.join(reasons)}")


def _scalar(text: str, hint: Any) -> Any:
    if hint is types.NoneType:
        if text != "none":
            raise ValueError(f"'{text}' is not none")
        return None
    if hint is bool:
        if text not in ("true", "false"):
            raise ValueError(f"'{text}' is not true or false")
        return text == "true"
    if hint in (int, float):
        return _number(text, hint)
    if hint is str:
        return _text(text)
    raise ValueError(f"values of {hint} cannot be written in a spec string")


def _number(text: str, hint: type[int] | type[float]) -> int | float:
    """A number of the type; nan is none, for it passes every comparison that is to keep wrong values out."""
    try:
        found = hint(text)
    except ValueError:
        found = math.nan
    if math.isnan(found):
        raise ValueError(f"'{text}' is not {'a whole' if hint is int else 'a'} number")
    return found


def named_numbers(
    option: str, texts: Iterable[str], key: Callable[[str], K | None], form: str, least: float = 0.0
) -> dict[K, float]:
    """Texts such as `name:1.5` as key of the name -> finite number from `least` on.

    `key` gives None for names that mean nothing. ValueError where a text is not of this `form`, which is what the
    user is told, or two texts name the same.
    """
    found: dict[K, float] = {}
    for text in texts:
        name, _, number = text.rpartition(":")
        try:
            value = _number(number, float)
        except ValueError:
            value = math.inf
        what = key(name)
        if what is None or not least <= value < math.inf:
            raise ValueError(f"{option}: '{text}' is not {form}")
        if what in found:
            raise ValueError(f"{option}: '{name}' is given twice")
        found[what] = value
    return found


def task_numbers(
    option: str, texts: Iterable[str], tasks: Iterable[str], what: str, default: float
) -> dict[str, float]:
    """Every task -> its number of texts such as `task:1.5`, or the default; ValueError as for `named_numbers`."""
    base = dict.fromkeys(tasks, default)
    form = f"TASK:{what} with one of {', '.join(base)}"
    return base | named_numbers(option, texts, lambda name: name if name in base else None, form)


def _text(text: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        raise ValueError(f"{text} is not a JSON string") from None


def _literal(value: Any, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        raise ValueError(f"'{value}' is not one of {', '.join(map(str, allowed))}")
    return value


def _fit(value: object, hint: Any) -> Any:
    """A TOML value as a value of the annotated type."""
    if isinstance(value, list):
        members = get_args(hint) or (str,)
        return tuple(_fit(v, members[0]) for v in value)
    return _read(written(value), hint)
