"""The public surface against checked-in lists of names, signatures and options; `--update-golden` rewrites them."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest

import compiler
from compiler.passes import REGISTRY, find
from tests.shared import ROOT

GOLDEN = ROOT / "tests" / "golden" / "public_api.txt"
OPTIONS = GOLDEN.with_name("pass_options.txt")
UPDATE = "run: python -m tests.test_public_api --update-golden; read the diff"


def described(name: str) -> str:
    thing = getattr(compiler, name)
    if isinstance(thing, int):
        return f"{name} = {thing}"
    if isinstance(thing, str):
        return f"{name}: str"
    if not isinstance(thing, type):
        return f"{name}{inspect.signature(thing)}"
    bases = ", ".join(b.__name__ for b in thing.__bases__)
    arguments = "" if issubclass(thing, Exception) else str(inspect.signature(thing))
    lines = [f"class {name}{arguments} <- {bases}"]
    for member, value in sorted(vars(thing).items()):
        if member.startswith("_") and member != "__call__":
            continue
        if isinstance(value, (classmethod, staticmethod)):
            value = value.__func__
        if inspect.isfunction(value):
            lines.append(f"    {member}{inspect.signature(value)}")
        elif isinstance(value, property):
            lines.append(f"    {member}: property")
    return "\n".join(lines)


def surface() -> str:
    text = "\n".join(described(name) for name in sorted(compiler.__all__)) + "\n"
    return re.sub(r"<function (\S+) at 0x[0-9a-f]+>", r"\1", text)


def options() -> str:
    return "".join(f"{name}{inspect.signature(find(name))}\n" for name in sorted(REGISTRY))


def test_names_and_signatures_are_the_checked_in_ones():
    assert surface() == GOLDEN.read_text(), UPDATE


def test_options_of_passes_and_their_defaults_are_the_checked_in_ones():
    assert options() == OPTIONS.read_text(), UPDATE


@pytest.mark.parametrize("name", sorted(compiler.__all__))
def test_every_public_name_is_documented(name):
    thing = getattr(compiler, name)
    assert isinstance(thing, str) or (thing.__doc__ and thing.__doc__.strip())


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        compiler.nothing  # noqa: B018


def test_python_m_compiler_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "compiler", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"taskgraft {compiler.__version__}\n"


if __name__ == "__main__" and "--update-golden" in sys.argv:
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(surface())
    OPTIONS.write_text(options())
