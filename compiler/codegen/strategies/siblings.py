"""Sibling convolutions by one kernel: what several of them read is transformed once.

There is no direct form: direct kernels of single siblings run as near to the multiply-add peak as that of an
undivided layer (docs/decisions/0013).
"""

from __future__ import annotations

from compiler.codegen.strategies.winograd import Winograd2x2, Winograd4x2, Winograd4x4


class Siblings2x2(Winograd2x2):
    """Tiles of 2x2 of all siblings."""

    name = "winograd2x2-siblings"
    families = ("siblings",)


class Siblings4x2(Winograd4x2):
    """Tiles of 4x2 of all siblings."""

    name = "winograd4x2-siblings"
    families = ("siblings",)


class Siblings4x4(Winograd4x4):
    """Tiles of 4x4 of all siblings."""

    name = "winograd4x4-siblings"
    families = ("siblings",)
