"""Cases of matrix products."""

from __future__ import annotations

import numpy as np

from tests.ir.op_case import OpCase
from tests.ir.op_values import real, weight, whole

REFUSED: list[tuple[OpCase, str]] = []
DISAGREEMENTS: dict[str, str] = {}
NOT_INFERRED: dict[str, str] = {}
CASES: list[OpCase] = []

# ---------------------------------------------------------------------- Gemm, MatMul
CASES += [
    OpCase(
        "Gemm",
        "dense-layer",
        [real(2, 5), weight(4, 5), weight(4)],
        {"transB": 1},
        free="i0.0 i0.1 i1.0 i1.1 i2.0 o0.0 o0.1",
        macs=2 * 4 * 5,
    ),
    OpCase(
        "Gemm",
        "transA-scaled",
        [real(5, 3), weight(5, 4), weight(3, 1)],
        {"transA": 1, "alpha": 0.5, "beta": 2.0},
        free="i0.0 i0.1 i1.0 i1.1 i2.0 o0.0 o0.1",
        macs=3 * 4 * 5,
    ),
    OpCase("Gemm", "no-addend", [real(3, 5), weight(5, 4)], {"alpha": 2.0}, macs=3 * 4 * 5),
    OpCase("Gemm", "scalar-addend", [real(3, 5), real(5, 4), weight()], macs=3 * 4 * 5),
    OpCase(
        "MatMul",
        "2d",
        [real(3, 5), weight(5, 4)],
        free="i0.0 i0.1 i1.0 i1.1 o0.0 o0.1",
        macs=3 * 4 * 5,
    ),
    OpCase(
        "MatMul",
        "batched",
        [real(2, 3, 4, 5), real(2, 3, 5, 2)],
        free="i0.0 i0.1 i0.2 i0.3 i1.0 i1.1 i1.2 i1.3 o0.0 o0.1 o0.2 o0.3",
        macs=6 * 4 * 2 * 5,
    ),
    OpCase(
        "MatMul",
        "broadcast",
        [real(2, 1, 4, 5), real(3, 5, 2)],
        free="i0.0 i0.2 i0.3 i1.0 i1.1 i1.2 o0.0 o0.1 o0.2 o0.3",
        macs=6 * 4 * 2 * 5,
    ),
    OpCase("MatMul", "rows-by-matrix", [real(2, 3, 4), weight(4, 5)], macs=2 * 3 * 5 * 4),
    OpCase("MatMul", "vector-matrix", [real(4), real(2, 4, 3)], free="i0.0 i1.0 i1.1 i1.2 o0.0 o0.1", macs=24),
    OpCase("MatMul", "matrix-vector", [real(2, 3, 4), real(4)], free="i0.0 i0.1 i0.2 i1.0 o0.0 o0.1", macs=24),
    OpCase("MatMul", "integers", [whole(2, 3, dtype=np.int32), whole(3, 2, dtype=np.int32)], macs=12),
    OpCase("MatMul", "doubles", [real(2, 3).astype(np.float64), real(3, 2).astype(np.float64)], macs=12),
    OpCase("MatMul", "vector-vector", [real(4), real(4)], free="i0.0 i1.0", macs=4),
]

# ---------------------------------------------------------------------- Einsum
CASES += [
    OpCase(
        "Einsum",
        "explicit",
        [real(3, 4), weight(4, 5)],
        {"equation": "ij, jk -> ki"},
        free="i0.0 i0.1 i1.0 i1.1 o0.0 o0.1",
        macs=60,
    ),
    OpCase("Einsum", "implicit", [real(3, 4), real(4, 2)], {"equation": "bj,ja"}, macs=24),
    OpCase(
        "Einsum",
        "attention",
        [real(2, 3, 4, 5), real(2, 6, 4, 5)],
        {"equation": "bqhd,bkhd->bhqk"},
        free="i0.0 i0.1 i0.2 i0.3 i1.0 i1.1 i1.2 i1.3 o0.0 o0.1 o0.2 o0.3",
        macs=2 * 3 * 6 * 4 * 5,
    ),
    OpCase("Einsum", "transpose", [real(3, 4)], {"equation": "ij->ji"}, flops=0),
    OpCase("Einsum", "sum", [real(3, 4)], {"equation": "ij->i"}, flops=12),
    OpCase("Einsum", "sum-all-implicit", [real(3), real(3)], {"equation": "i,i"}, macs=3),
    OpCase("Einsum", "outer", [real(3), real(4)], {"equation": "i,j->ij"}, macs=12),
    OpCase(
        "Einsum",
        "ellipsis-broadcast",
        [real(2, 1, 3, 4), real(1, 5, 4, 2)],
        {"equation": "...ij,...jk->...ik"},
        free="i0.0 i0.2 i0.3 i1.1 i1.2 i1.3 o0.0 o0.1 o0.2 o0.3",
        macs=2 * 5 * 3 * 4 * 2,
    ),
    OpCase(
        "Einsum",
        "three-operands",
        [real(2, 3), real(3, 4), real(4, 5)],
        {"equation": "ab,bc,cd->ad"},
        macs=2 * 3 * 4 + 2 * 4 * 5,
    ),
    OpCase(
        "Einsum",
        "diagonal",
        [real(2, 3, 3)],
        {"equation": "...ii->...i"},
        flops=18,
        free="i0.0 i0.1 i0.2 o0.0 o0.1",
    ),
]
