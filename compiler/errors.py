"""Errors that taskgraft raises on purpose, and the exit status each one maps to.

Every message says what is wrong, where (model, node, operator), why, and what to do. All problems of one kind
are collected and reported together.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import ClassVar


class CompilerError(Exception):
    """Base of everything raised on purpose. `exit_code` is the status of the command line."""

    exit_code: ClassVar[int] = 70


class GateError(CompilerError):
    """A drift, accuracy, size or FLOPs gate is not met."""

    exit_code = 1


class ConfigError(CompilerError):
    """The release file or an option is wrong."""

    exit_code = 2


class UnsupportedModelError(CompilerError):
    """The model is sound but uses something taskgraft does not compile; every case is listed."""

    exit_code = 3


class PassError(CompilerError):
    """A pass cannot do what was asked."""

    exit_code = 3

    def __init__(self, message: str, refusals: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.refusals = tuple(refusals)


class BudgetError(PassError):
    """A pass would have to take what has to stay: the budget is below what it can reach."""


class UnsafeInputError(CompilerError):
    """An input file is damaged, exceeds a limit, or reaches outside its folder."""

    exit_code = 4


class BundleError(CompilerError):
    """A bundle is damaged, has another schema, or cannot run here."""

    exit_code = 4


class LoweringError(CompilerError):
    """Code generation failed."""

    exit_code = 5


class TargetError(CompilerError):
    """What a target or a pass needs (compiler, linker, emulator, torch, memory, disk) is missing."""

    exit_code = 5


class JobError(CompilerError):
    """A job of a build failed for a reason of its own, or its worker was lost again and again."""

    exit_code = 5


class VerifyError(CompilerError):
    """The graph broke a rule of the IR: a defect of taskgraft, not of the model."""

    exit_code = 70


DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of an OSError that say that there is no room for what is written, or that a limit on files is reached."""


def unwritable(where: object, error: OSError, advice: str = "choose another place") -> CompilerError:
    """The error for a file or folder that cannot be written: TargetError where there is no room, else ConfigError
    with `advice`.
    """
    told = f"{where}: cannot be written: {error.strerror}; "
    if error.errno in DISK_FULL:
        return TargetError(f"{told}make room there, or {advice}")
    return ConfigError(told + advice)


def printable(text: str) -> str:
    """A name from a file as it may reach a terminal: what is no visible character is escaped."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def listed(problems: Sequence[str], most: int = 8) -> str:
    """Problems as indented lines behind a message; beyond `most` they are counted."""
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return "".join(f"\n  {line}" for line in [*problems[:most], *more])


def plural(count: int, one: str, many: str = "") -> str:
    """A number of things in words: `1 network`, `2 batches`; `many` where its ending does not tell."""
    ending = "es" if one.endswith(("s", "ch")) else "s"
    return f"{count:,} {one if count == 1 else many or one + ending}"
