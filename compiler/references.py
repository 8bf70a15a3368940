"""Things of users that are called by where they are: "package.module:name"."""

from __future__ import annotations

import importlib
from typing import Any

from compiler.errors import ConfigError


def imported(where: str) -> Any:
    """What "package.module:name" names; ConfigError where it cannot be imported."""
    module, _, name = where.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # a module of a user may fail in any way, and names of modules in several
        raise ConfigError(f"'{where}' cannot be imported: {error}") from error
