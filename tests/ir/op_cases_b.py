"""Cases of element-wise, reduction, movement and indexing operators."""

from __future__ import annotations

from tests.ir.op_case import OpCase

REFUSED: list[tuple[OpCase, str]] = []
DISAGREEMENTS: dict[str, str] = {}
CASES: list[OpCase] = []
