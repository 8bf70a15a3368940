"""Cases of element-wise, reduction, movement and indexing operators."""

from __future__ import annotations

from tests.ir import op_cases_elementwise, op_cases_index, op_cases_movement, op_cases_resample
from tests.ir.op_case import OpCase

_PARTS = (op_cases_elementwise, op_cases_movement, op_cases_index, op_cases_resample)

CASES: list[OpCase] = [c for part in _PARTS for c in part.CASES]
REFUSED: list[tuple[OpCase, str]] = [r for part in _PARTS for r in part.REFUSED]
DISAGREEMENTS: dict[str, str] = {k: v for part in _PARTS for k, v in part.DISAGREEMENTS.items()}
NOT_INFERRED: dict[str, str] = {k: v for part in _PARTS for k, v in part.NOT_INFERRED.items()}
