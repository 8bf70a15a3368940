"""Cases of normalisation and softmax operators."""

from __future__ import annotations

import numpy as np

from tests.ir.op_case import OpCase
from tests.ir.op_values import positive, real, weight

REFUSED: list[tuple[OpCase, str]] = []
DISAGREEMENTS: dict[str, str] = {"LRN-even": "onnxruntime implements odd sizes only"}
NOT_INFERRED: dict[str, str] = {"GroupNormalization-two-groups": "ONNX has no inference for GroupNormalization"}
CASES: list[OpCase] = []

# ---------------------------------------------------------------------- normalisation
CASES += [
    OpCase(
        "BatchNormalization",
        "plane",
        [real(2, 3, 4, 2), positive(3), weight(3), weight(3, seed=3), positive(3, seed=4)],
        {"epsilon": 1e-3},
        free="i0.0 i0.1 i0.2 i0.3 o0.0 o0.1 o0.2 o0.3 i1.0 i2.0 i3.0 i4.0",
        flops=2 * 48,
    ),
    OpCase(
        "BatchNormalization",
        "rows",
        [real(2, 3), positive(3), weight(3), weight(3, seed=3), positive(3, seed=4)],
        flops=2 * 6,
    ),
    OpCase(
        "BatchNormalization",
        "computed",
        [real(2, 3, 4), real(3), real(3, seed=1), real(3, seed=3), real(3, seed=4) ** 2],
        flops=2 * 24,
    ),
]
REFUSED += [
    (
        OpCase(
            "BatchNormalization",
            "training",
            [real(2, 3), positive(3), weight(3), weight(3), positive(3)],
            {"training_mode": 1},
            results=3,
        ),
        "BatchNormalization training_mode=1 model.eval()",
    )
]

# ---------------------------------------------------------------------- softmax
CASES += [
    OpCase(
        name,
        label,
        [real(2, 3, 4) * 5],
        {"axis": axis} if axis is not None else {},
        free=free,
        mixed=mixed,
        flops=f * 24,
    )
    for name, f in (("Softmax", 5), ("LogSoftmax", 5), ("Hardmax", 1))
    for label, axis, free, mixed in (
        ("last", None, "i0.0 i0.1 o0.0 o0.1", "i0.2 o0.2"),
        ("channels", 1, "i0.0 i0.2 o0.0 o0.2", "i0.1 o0.1"),
    )
]
CASES += [
    OpCase("LogSoftmax", "far-apart", [np.array([[120, -80, 17, 33], [1, -200, 0, 1]], np.float32)]),
    OpCase("Hardmax", "equal-elements", [np.array([[1, 3, 3], [2, 2, 2]], np.float32)], flops=6),
    OpCase("Hardmax", "not-a-number", [np.array([[1, np.nan, 3], [2, 2, np.nan]], np.float32)], oracle="reference"),
]

# ---------------------------------------------------------------------- statistics of the input
CASES += [
    OpCase(
        "InstanceNormalization",
        "plane",
        [real(2, 3, 4, 5), positive(3), weight(3)],
        {"epsilon": 1e-3},
        free="i0.0 i0.1 i1.0 i2.0 o0.0 o0.1",
        mixed="i0.2 i0.3 o0.2 o0.3",
        flops=7 * 120,
    ),
    OpCase("InstanceNormalization", "1d", [real(1, 3, 9), positive(3), weight(3)], flops=7 * 27),
    OpCase(
        "GroupNormalization",
        "two-groups",
        [real(2, 6, 3, 2), positive(6), weight(6)],
        {"num_groups": 2},
        free="i0.0 o0.0",
        mixed="i0.1 i0.2 i0.3 o0.1 o0.2 o0.3",
        flops=7 * 72,
    ),
    OpCase(
        "LayerNormalization",
        "last",
        [real(2, 3, 8), positive(8), weight(8)],
        free="i0.0 i0.1 o0.0 o0.1",
        mixed="i0.2 o0.2",
        flops=7 * 48,
    ),
    OpCase(
        "LayerNormalization",
        "two-axes-with-statistics",
        [real(2, 3, 4, 2), positive(4, 2)],
        {"axis": 2, "epsilon": 1e-2},
        results=3,
        free="i0.0 i0.1 o0.0 o0.1 o1.0 o1.1 o2.0 o2.1",
        mixed="i0.2 i0.3 o0.2 o0.3",
        flops=7 * 48,
    ),
    OpCase(
        "MeanVarianceNormalization",
        "default",
        [real(2, 3, 4, 5)],
        free="i0.1 o0.1",
        mixed="i0.0 i0.2 i0.3 o0.0 o0.2 o0.3",
        flops=5 * 120,
    ),
    OpCase("MeanVarianceNormalization", "channels", [real(2, 3, 4, 5)], {"axes": [1, -1]}, flops=5 * 120),
    OpCase(
        "LRN",
        "odd",
        [real(1, 7, 3, 2)],
        {"size": 3, "alpha": 0.5, "beta": 0.5, "bias": 2.0},
        free="i0.2 i0.3 o0.2 o0.3",
        mixed="i0.1 o0.1",
        flops=11 * 42,
    ),
    # as many samples as channels: onnx.reference loops over the wrong axis
    OpCase("LRN", "even", [real(6, 6, 1, 2)], {"size": 4, "alpha": 0.9}, flops=13 * 72),
    OpCase(
        "LpNormalization",
        "p2",
        [real(2, 3, 4)],
        free="i0.0 i0.1 o0.0 o0.1",
        mixed="i0.2 o0.2",
        flops=3 * 24,
    ),
    OpCase("LpNormalization", "p1-middle", [real(2, 3, 4)], {"axis": 1, "p": 1}, flops=3 * 24),
    OpCase(
        "LpNormalization",
        "zero-vector",
        [np.array([[3, 4], [0, 0]], np.float32)],
        flops=3 * 4,
    ),
]
