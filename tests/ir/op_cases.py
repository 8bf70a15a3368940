"""Cases of every operator; adding an operator means adding cases to one of the parts."""

from __future__ import annotations

from tests.ir import (
    op_cases_conv,
    op_cases_elementwise,
    op_cases_index,
    op_cases_linear,
    op_cases_movement,
    op_cases_norm,
    op_cases_pool,
    op_cases_recurrent,
    op_cases_resample,
)
from tests.ir.op_case import OpCase

_PARTS = (
    op_cases_conv,
    op_cases_linear,
    op_cases_recurrent,
    op_cases_norm,
    op_cases_pool,
    op_cases_elementwise,
    op_cases_movement,
    op_cases_index,
    op_cases_resample,
)

CASES: list[OpCase] = [c for part in _PARTS for c in part.CASES]

REFUSED: list[tuple[OpCase, str]] = [r for part in _PARTS for r in part.REFUSED]
"""Cases that are refused, with words the message contains."""

DISAGREEMENTS: dict[str, str] = {k: v for part in _PARTS for k, v in part.DISAGREEMENTS.items()}
"""Case id -> why onnxruntime cannot be the oracle there; onnx.reference is compared instead unless the case
names its own oracle."""

NOT_INFERRED: dict[str, str] = {k: v for part in _PARTS for k, v in part.NOT_INFERRED.items()}
"""Case id -> why ONNX cannot infer the types, or infers others than onnxruntime computes."""
