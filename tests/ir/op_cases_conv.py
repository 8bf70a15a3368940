"""Cases of convolution operators."""

from __future__ import annotations

from tests.ir.op_case import OpCase
from tests.ir.op_values import real, weight

REFUSED: list[tuple[OpCase, str]] = []
DISAGREEMENTS: dict[str, str] = {}
NOT_INFERRED: dict[str, str] = {}
CASES: list[OpCase] = []

# ---------------------------------------------------------------------- Conv
CONV_FREE = "i0.1 i1.0 i1.1 i2.0 o0.1"
CASES += [
    OpCase(
        "Conv",
        "3x3",
        [real(1, 4, 6, 7), weight(5, 4, 3, 3), weight(5)],
        {"pads": [1, 1, 1, 1]},
        free=CONV_FREE,
        macs=5 * 6 * 7 * 4 * 9,
    ),
    OpCase(
        "Conv",
        "no-bias-stride-dilation-asymmetric",
        [real(2, 3, 9, 8), weight(4, 3, 3, 2)],
        {"pads": [0, 1, 2, 0], "strides": [2, 1], "dilations": [1, 2]},
        free="i0.0 o0.0 i0.1 i1.0 i1.1 o0.1",
        macs=2 * 4 * 5 * 7 * 3 * 6,
    ),
    OpCase(
        "Conv",
        "same-upper",
        [real(1, 2, 7, 6), weight(3, 2, 4, 3)],
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        macs=3 * 4 * 3 * 2 * 12,
    ),
    OpCase(
        "Conv",
        "same-lower",
        [real(1, 2, 7, 6), weight(3, 2, 4, 3)],
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        macs=3 * 4 * 3 * 2 * 12,
    ),
    OpCase(
        "Conv",
        "valid",
        [real(1, 2, 7, 6), weight(3, 2, 4, 3)],
        {"auto_pad": "VALID"},
        macs=3 * 4 * 4 * 2 * 12,
    ),
    OpCase(
        "Conv",
        "grouped-slots",
        [real(1, 6, 5, 5), weight(8, 3, 3, 3), weight(8)],
        {"group": 2},
        free=CONV_FREE,
        macs=8 * 9 * 3 * 9,
    ),
    OpCase(
        "Conv",
        "grouped-one-row",
        [real(1, 6, 5, 5), weight(3, 2, 3, 3), weight(3)],
        {"group": 3},
        free="i0.1 i1.0 i2.0 o0.1",
        macs=3 * 9 * 2 * 9,
    ),
    OpCase(
        "Conv",
        "depthwise",
        [real(1, 4, 5, 5), weight(4, 1, 3, 3), weight(4)],
        {"group": 4, "pads": [1, 1, 1, 1]},
        free="i0.1 i1.0 i2.0 o0.1",
        macs=4 * 25 * 9,
    ),
    OpCase(
        "Conv",
        "depthwise-multiplier",
        [real(1, 3, 5, 5), weight(6, 1, 3, 3)],
        {"group": 3},
        free="i0.1 i1.0 o0.1",
        macs=6 * 9 * 9,
    ),
    OpCase("Conv", "1d", [real(1, 3, 9), weight(4, 3, 3)], {"strides": [2]}, macs=4 * 4 * 9),
    OpCase(
        "Conv",
        "3d",
        [real(1, 2, 4, 5, 4), weight(3, 2, 3, 2, 3)],
        {"pads": [1, 0, 1, 1, 0, 1]},
        macs=3 * 4 * 4 * 4 * 2 * 18,
    ),
]

# ---------------------------------------------------------------------- ConvTranspose
CASES += [
    OpCase(
        "ConvTranspose",
        "stride-2",
        [real(1, 4, 3, 4), weight(4, 5, 3, 3), weight(5)],
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        free=CONV_FREE,
        macs=12 * 4 * 5 * 9,
    ),
    OpCase(
        "ConvTranspose",
        "dilated-asymmetric",
        [real(2, 3, 4, 3), weight(3, 2, 3, 2)],
        {"strides": [1, 3], "dilations": [2, 1], "pads": [1, 0, 0, 1]},
        macs=2 * 12 * 3 * 2 * 6,
    ),
    OpCase(
        "ConvTranspose",
        "grouped",
        [real(1, 6, 3, 3), weight(6, 4, 2, 2), weight(8)],
        {"group": 2, "strides": [2, 2]},
        free=CONV_FREE,
        macs=9 * 6 * 4 * 4,
    ),
    OpCase(
        "ConvTranspose",
        "depthwise",
        [real(1, 4, 3, 3), weight(4, 1, 3, 3)],
        {"group": 4, "strides": [2, 2]},
        free="i0.1 i1.0 o0.1",
        macs=9 * 4 * 9,
    ),
    OpCase(
        "ConvTranspose",
        "same-upper",
        [real(1, 2, 3, 3), weight(2, 3, 4, 4)],
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        macs=9 * 2 * 3 * 16,
    ),
    OpCase(
        "ConvTranspose",
        "same-lower-odd",
        [real(1, 2, 3, 3), weight(2, 3, 3, 3)],
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        macs=9 * 2 * 3 * 9,
    ),
    OpCase(
        "ConvTranspose",
        "same-short-kernel",
        [real(1, 2, 3, 3), weight(2, 3, 2, 1)],
        {"strides": [3, 2], "auto_pad": "SAME_LOWER"},
        macs=9 * 2 * 3 * 2,
    ),
    OpCase(
        "ConvTranspose",
        "output-shape",
        [real(1, 2, 3, 3), weight(2, 3, 3, 3)],
        {"strides": [3, 2], "output_shape": [8, 6]},
        macs=9 * 2 * 3 * 9,
    ),
    OpCase(
        "ConvTranspose",
        "output-shape-larger",
        [real(1, 2, 3, 3), weight(2, 3, 3, 3)],
        {"strides": [3, 2], "output_shape": [10, 8]},
        macs=9 * 2 * 3 * 9,
    ),
    OpCase(
        "ConvTranspose",
        "output-shape-valid",
        [real(1, 2, 3, 3), weight(2, 3, 3, 3)],
        {"strides": [3, 2], "output_shape": [8, 6], "auto_pad": "VALID"},
        macs=9 * 2 * 3 * 9,
    ),
    OpCase("ConvTranspose", "1d", [real(1, 3, 5), weight(3, 2, 4)], {"strides": [2]}, macs=5 * 3 * 2 * 4),
    OpCase(
        "ConvTranspose",
        "3d",
        [real(1, 2, 2, 3, 2), weight(2, 2, 2, 3, 2)],
        {"strides": [2, 1, 2], "pads": [0, 1, 0, 0, 1, 0]},
        macs=12 * 2 * 2 * 12,
    ),
]

# ---------------------------------------------------------------------- nothing to compute
CASES += [
    OpCase("Conv", "empty-batch", [real(0, 2, 5, 5), weight(3, 2, 3, 3), weight(3)]),
    OpCase("Conv", "no-channels", [real(1, 0, 5, 5), weight(3, 0, 3, 3), weight(3)]),
    OpCase("ConvTranspose", "empty-batch", [real(0, 2, 5, 5), weight(2, 3, 3, 3)]),
]
