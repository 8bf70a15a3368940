"""Cases of pooling operators."""

from __future__ import annotations

import numpy as np

from tests.ir.op_case import OpCase
from tests.ir.op_values import real

REFUSED: list[tuple[OpCase, str]] = []
DISAGREEMENTS: dict[str, str] = {}
NOT_INFERRED: dict[str, str] = {
    name + "-ceil-window-on-pad": "ONNX counts a window that starts in the end pad"
    for name in ("MaxPool", "AveragePool")
}
CASES: list[OpCase] = []

# ---------------------------------------------------------------------- pooling
CASES += [
    OpCase(
        "MaxPool",
        "2x2",
        [real(2, 3, 6, 6)],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        free="i0.0 i0.1 o0.0 o0.1",
        flops=2 * 3 * 9 * 4,
    ),
    OpCase(
        "MaxPool",
        "indices",
        [real(2, 3, 6, 5)],
        {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 1, 0, 0]},
        results=2,
        free="",
        mixed="i0.0 i0.1 o0.0 o0.1 o1.0 o1.1",
        flops=2 * 3 * 9 * 6,
    ),
    OpCase(
        "MaxPool",
        "indices-lowest",
        [np.full((1, 1, 3, 3), -128, np.int8)],
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
        results=2,
    ),
    OpCase(
        "MaxPool",
        "indices-beside-the-input",
        [np.array([[[7]]], np.int8)],
        {"kernel_shape": [2], "dilations": [2], "pads": [1, 1]},
        results=2,
    ),
    OpCase(
        "MaxPool",
        "indices-column-major-equal-elements",
        [np.round(real(1, 2, 6, 5))],
        {"kernel_shape": [3, 2], "strides": [1, 1], "storage_order": 1},
        results=2,
        flops=2 * 4 * 4 * 6,
    ),
    OpCase(
        "MaxPool",
        "ceil-dilated",
        [real(1, 2, 8, 9)],
        {"kernel_shape": [2, 3], "strides": [2, 3], "dilations": [2, 2], "ceil_mode": 1},
        flops=2 * 4 * 3 * 6,
    ),
    OpCase(
        "MaxPool",
        "same-upper",
        [real(1, 2, 5, 5)],
        {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        flops=2 * 9 * 9,
    ),
    *(
        OpCase(
            name,
            "ceil-window-on-pad",
            [real(1, 3, 2, 2)],
            {"kernel_shape": [3, 3], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1},
            flops=3 * 9,
        )
        for name in ("MaxPool", "AveragePool")
    ),
    OpCase("MaxPool", "1d", [real(1, 2, 7)], {"kernel_shape": [3]}, flops=2 * 5 * 3),
    OpCase("MaxPool", "3d", [real(1, 2, 4, 4, 4)], {"kernel_shape": [2, 3, 2]}, flops=2 * 18 * 12),
    OpCase(
        "MaxPool",
        "uint8",
        [np.arange(32, dtype=np.uint8).reshape(1, 2, 4, 4)],
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
        flops=32 * 9,
    ),
    OpCase(
        "AveragePool",
        "beside-the-input",
        [real(1, 2, 1, 3)],
        {"kernel_shape": [2, 2], "dilations": [2, 1], "pads": [1, 0, 1, 0]},
    ),
    OpCase(
        "AveragePool",
        "exclude-pad",
        [real(2, 3, 6, 6)],
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        free="i0.0 i0.1 o0.0 o0.1",
        flops=2 * 3 * 9 * 9,
    ),
    OpCase(
        "AveragePool",
        "include-pad",
        [real(1, 2, 6, 6)],
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 0, 1], "count_include_pad": 1},
        flops=2 * 3 * 3 * 9,
    ),
    OpCase(
        "AveragePool",
        "ceil",
        [real(1, 2, 6, 5)],
        {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1},
        flops=2 * 3 * 3 * 6,
    ),
    OpCase(
        "AveragePool",
        "ceil-include-pad",
        [real(1, 2, 7, 7)],
        {"kernel_shape": [3, 3], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1, "count_include_pad": 1},
        flops=2 * 3 * 3 * 9,
    ),
    OpCase(
        "AveragePool",
        "dilated",
        [real(1, 2, 7, 7)],
        {"kernel_shape": [2, 2], "dilations": [2, 3], "pads": [1, 1, 1, 1]},
        flops=2 * 7 * 6 * 4,
    ),
    OpCase(
        "AveragePool",
        "same-lower",
        [real(1, 2, 5, 5)],
        {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"},
        flops=2 * 25 * 4,
    ),
    OpCase("AveragePool", "1d", [real(1, 2, 7)], {"kernel_shape": [3], "strides": [2]}, flops=2 * 3 * 3),
    OpCase("AveragePool", "3d", [real(1, 1, 4, 4, 4)], {"kernel_shape": [2, 2, 2]}, flops=27 * 8),
    OpCase(
        "LpPool",
        "p2",
        [real(1, 2, 6, 6)],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        free="i0.1 o0.1",
        flops=3 * 2 * 9 * 4,
    ),
    OpCase(
        "LpPool",
        "p3-padded",
        [real(1, 2, 5, 5)],
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "p": 3},
        flops=3 * 2 * 25 * 9,
    ),
    OpCase("LpPool", "p1-1d", [real(1, 2, 6)], {"kernel_shape": [3], "p": 1}, flops=3 * 2 * 4 * 3),
    OpCase("GlobalAveragePool", "2d", [real(2, 3, 4, 5)], free="i0.0 i0.1 o0.0 o0.1", flops=120),
    OpCase("GlobalAveragePool", "1d", [real(1, 3, 4)], flops=12),
    OpCase("GlobalMaxPool", "2d", [real(2, 3, 4, 5)], free="i0.0 i0.1 o0.0 o0.1", flops=120),
    OpCase("GlobalMaxPool", "3d", [real(1, 3, 2, 2, 3)], flops=36),
    OpCase("GlobalLpPool", "p2", [real(2, 3, 4, 5)], free="i0.0 i0.1 o0.0 o0.1", flops=3 * 120),
    OpCase("GlobalLpPool", "p3", [real(1, 3, 4, 5)], {"p": 3}, flops=3 * 60),
]
