"""Cases of convolution, matrix product, recurrent, normalisation, pooling and softmax operators."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.ir.graph import Site
from tests.ir.op_case import Constant, OpCase, make_site
from tests.ir.oracles import by_onnxruntime

REFUSED: list[tuple[OpCase, str]] = []
DISAGREEMENTS: dict[str, str] = {
    "LRN-even": "onnxruntime implements odd sizes only",
}
NOT_INFERRED: dict[str, str] = {
    "GroupNormalization-two-groups": "ONNX has no inference for GroupNormalization",
    "AveragePool-ceil-window-on-pad": "ONNX counts a window that starts in the end pad",
    "MaxPool-ceil-window-on-pad": "ONNX counts a window that starts in the end pad",
}
CASES: list[OpCase] = []


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal float32 numbers, repeatable."""
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def weight(*shape: int, seed: int = 1) -> Constant:
    """A constant operand of standard normal numbers."""
    return Constant(normal(*shape, seed=seed))


def positive(*shape: int, seed: int = 2) -> Constant:
    """A constant operand of numbers in [0.5, 1.5)."""
    return Constant((np.random.default_rng([seed, *shape]).random(shape) + 0.5).astype(np.float32))


# ---------------------------------------------------------------------- Conv
CONV_FREE = "i0.1 i1.0 i1.1 i2.0 o0.1"
CASES += [
    OpCase(
        "Conv",
        "3x3",
        [normal(1, 4, 6, 7), weight(5, 4, 3, 3), weight(5)],
        {"pads": [1, 1, 1, 1]},
        free=CONV_FREE,
        macs=5 * 6 * 7 * 4 * 9,
    ),
    OpCase(
        "Conv",
        "no-bias-stride-dilation-asymmetric",
        [normal(2, 3, 9, 8), weight(4, 3, 3, 2)],
        {"pads": [0, 1, 2, 0], "strides": [2, 1], "dilations": [1, 2]},
        free="i0.0 o0.0 i0.1 i1.0 i1.1 o0.1",
        macs=2 * 4 * 5 * 7 * 3 * 6,
    ),
    OpCase(
        "Conv",
        "same-upper",
        [normal(1, 2, 7, 6), weight(3, 2, 4, 3)],
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        macs=3 * 4 * 3 * 2 * 12,
    ),
    OpCase(
        "Conv",
        "same-lower",
        [normal(1, 2, 7, 6), weight(3, 2, 4, 3)],
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        macs=3 * 4 * 3 * 2 * 12,
    ),
    OpCase(
        "Conv",
        "valid",
        [normal(1, 2, 7, 6), weight(3, 2, 4, 3)],
        {"auto_pad": "VALID"},
        macs=3 * 4 * 4 * 2 * 12,
    ),
    OpCase(
        "Conv",
        "grouped-slots",
        [normal(1, 6, 5, 5), weight(8, 3, 3, 3), weight(8)],
        {"group": 2},
        free=CONV_FREE,
        macs=8 * 9 * 3 * 9,
    ),
    OpCase(
        "Conv",
        "grouped-one-row",
        [normal(1, 6, 5, 5), weight(3, 2, 3, 3), weight(3)],
        {"group": 3},
        free="i0.1 i1.0 i2.0 o0.1",
        macs=3 * 9 * 2 * 9,
    ),
    OpCase(
        "Conv",
        "depthwise",
        [normal(1, 4, 5, 5), weight(4, 1, 3, 3), weight(4)],
        {"group": 4, "pads": [1, 1, 1, 1]},
        free="i0.1 i1.0 i2.0 o0.1",
        macs=4 * 25 * 9,
    ),
    OpCase(
        "Conv",
        "depthwise-multiplier",
        [normal(1, 3, 5, 5), weight(6, 1, 3, 3)],
        {"group": 3},
        free="i0.1 i1.0 o0.1",
        macs=6 * 9 * 9,
    ),
    OpCase("Conv", "1d", [normal(1, 3, 9), weight(4, 3, 3)], {"strides": [2]}, macs=4 * 4 * 9),
    OpCase(
        "Conv",
        "3d",
        [normal(1, 2, 4, 5, 4), weight(3, 2, 3, 2, 3)],
        {"pads": [1, 0, 1, 1, 0, 1]},
        macs=3 * 4 * 4 * 4 * 2 * 18,
    ),
]

# ---------------------------------------------------------------------- ConvTranspose
CASES += [
    OpCase(
        "ConvTranspose",
        "stride-2",
        [normal(1, 4, 3, 4), weight(4, 5, 3, 3), weight(5)],
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        free=CONV_FREE,
        macs=12 * 4 * 5 * 9,
    ),
    OpCase(
        "ConvTranspose",
        "dilated-asymmetric",
        [normal(2, 3, 4, 3), weight(3, 2, 3, 2)],
        {"strides": [1, 3], "dilations": [2, 1], "pads": [1, 0, 0, 1]},
        macs=2 * 12 * 3 * 2 * 6,
    ),
    OpCase(
        "ConvTranspose",
        "grouped",
        [normal(1, 6, 3, 3), weight(6, 4, 2, 2), weight(8)],
        {"group": 2, "strides": [2, 2]},
        free=CONV_FREE,
        macs=9 * 6 * 4 * 4,
    ),
    OpCase(
        "ConvTranspose",
        "depthwise",
        [normal(1, 4, 3, 3), weight(4, 1, 3, 3)],
        {"group": 4, "strides": [2, 2]},
        free="i0.1 i1.0 o0.1",
        macs=9 * 4 * 9,
    ),
    OpCase(
        "ConvTranspose",
        "same-upper",
        [normal(1, 2, 3, 3), weight(2, 3, 4, 4)],
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        macs=9 * 2 * 3 * 16,
    ),
    OpCase(
        "ConvTranspose",
        "same-lower-odd",
        [normal(1, 2, 3, 3), weight(2, 3, 3, 3)],
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        macs=9 * 2 * 3 * 9,
    ),
    OpCase(
        "ConvTranspose",
        "output-shape",
        [normal(1, 2, 3, 3), weight(2, 3, 3, 3)],
        {"strides": [3, 2], "output_shape": [8, 6]},
        macs=9 * 2 * 3 * 9,
    ),
    OpCase(
        "ConvTranspose",
        "output-shape-larger",
        [normal(1, 2, 3, 3), weight(2, 3, 3, 3)],
        {"strides": [3, 2], "output_shape": [10, 8]},
        macs=9 * 2 * 3 * 9,
    ),
    OpCase("ConvTranspose", "1d", [normal(1, 3, 5), weight(3, 2, 4)], {"strides": [2]}, macs=5 * 3 * 2 * 4),
    OpCase(
        "ConvTranspose",
        "3d",
        [normal(1, 2, 2, 3, 2), weight(2, 2, 2, 3, 2)],
        {"strides": [2, 1, 2], "pads": [0, 1, 0, 0, 1, 0]},
        macs=12 * 2 * 2 * 12,
    ),
]

# ---------------------------------------------------------------------- Gemm, MatMul
CASES += [
    OpCase(
        "Gemm",
        "dense-layer",
        [normal(2, 5), weight(4, 5), weight(4)],
        {"transB": 1},
        free="i0.0 i0.1 i1.0 i1.1 i2.0 o0.0 o0.1",
        macs=2 * 4 * 5,
    ),
    OpCase(
        "Gemm",
        "transA-scaled",
        [normal(5, 3), weight(5, 4), weight(3, 1)],
        {"transA": 1, "alpha": 0.5, "beta": 2.0},
        free="i0.0 i0.1 i1.0 i1.1 i2.0 o0.0 o0.1",
        macs=3 * 4 * 5,
    ),
    OpCase("Gemm", "no-addend", [normal(3, 5), weight(5, 4)], {"alpha": 2.0}, macs=3 * 4 * 5),
    OpCase("Gemm", "scalar-addend", [normal(3, 5), normal(5, 4), weight()], macs=3 * 4 * 5),
    OpCase(
        "MatMul",
        "2d",
        [normal(3, 5), weight(5, 4)],
        free="i0.0 i0.1 i1.0 i1.1 o0.0 o0.1",
        macs=3 * 4 * 5,
    ),
    OpCase(
        "MatMul",
        "batched",
        [normal(2, 3, 4, 5), normal(2, 3, 5, 2)],
        free="i0.0 i0.1 i0.2 i0.3 i1.0 i1.1 i1.2 i1.3 o0.0 o0.1 o0.2 o0.3",
        macs=6 * 4 * 2 * 5,
    ),
    OpCase(
        "MatMul",
        "broadcast",
        [normal(2, 1, 4, 5), normal(3, 5, 2)],
        free="i0.0 i0.2 i0.3 i1.0 i1.1 i1.2 o0.0 o0.1 o0.2 o0.3",
        macs=6 * 4 * 2 * 5,
    ),
    OpCase("MatMul", "rows-by-matrix", [normal(2, 3, 4), weight(4, 5)], macs=2 * 3 * 5 * 4),
    OpCase("MatMul", "vector-matrix", [normal(4), normal(2, 4, 3)], free="i0.0 i1.0 i1.1 i1.2 o0.0 o0.1", macs=24),
    OpCase("MatMul", "matrix-vector", [normal(2, 3, 4), normal(4)], free="i0.0 i0.1 i0.2 i1.0 o0.0 o0.1", macs=24),
    OpCase("MatMul", "vector-vector", [normal(4), normal(4)], free="i0.0 i1.0", macs=4),
]

# ---------------------------------------------------------------------- normalisation
CASES += [
    OpCase(
        "BatchNormalization",
        "plane",
        [normal(2, 3, 4, 2), positive(3), weight(3), weight(3, seed=3), positive(3, seed=4)],
        {"epsilon": 1e-3},
        free="i0.0 i0.1 i0.2 i0.3 o0.0 o0.1 o0.2 o0.3 i1.0 i2.0 i3.0 i4.0",
        flops=2 * 48,
    ),
    OpCase(
        "BatchNormalization",
        "rows",
        [normal(2, 3), positive(3), weight(3), weight(3, seed=3), positive(3, seed=4)],
        flops=2 * 6,
    ),
]
REFUSED += [
    (
        OpCase(
            "BatchNormalization",
            "training",
            [normal(2, 3), positive(3), weight(3), weight(3), positive(3)],
            {"training_mode": 1},
            results=3,
        ),
        "BatchNormalization training_mode=1 model.eval()",
    )
]

# ---------------------------------------------------------------------- pooling
CASES += [
    OpCase(
        "MaxPool",
        "2x2",
        [normal(2, 3, 6, 6)],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        free="i0.0 i0.1 o0.0 o0.1",
        flops=2 * 3 * 9 * 4,
    ),
    OpCase(
        "MaxPool",
        "indices",
        [normal(2, 3, 6, 5)],
        {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 1, 0, 0]},
        results=2,
        free="",
        mixed="i0.0 i0.1 o0.0 o0.1 o1.0 o1.1",
        flops=2 * 3 * 9 * 6,
    ),
    OpCase(
        "MaxPool",
        "indices-column-major-equal-elements",
        [np.round(normal(1, 2, 6, 5))],
        {"kernel_shape": [3, 2], "strides": [1, 1], "storage_order": 1},
        results=2,
        flops=2 * 4 * 4 * 6,
    ),
    OpCase(
        "MaxPool",
        "ceil-dilated",
        [normal(1, 2, 8, 9)],
        {"kernel_shape": [2, 3], "strides": [2, 3], "dilations": [2, 2], "ceil_mode": 1},
        flops=2 * 4 * 3 * 6,
    ),
    OpCase(
        "MaxPool",
        "same-upper",
        [normal(1, 2, 5, 5)],
        {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        flops=2 * 9 * 9,
    ),
    *(
        OpCase(
            name,
            "ceil-window-on-pad",
            [normal(1, 3, 2, 2)],
            {"kernel_shape": [3, 3], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1},
            flops=3 * 9,
        )
        for name in ("MaxPool", "AveragePool")
    ),
    OpCase("MaxPool", "1d", [normal(1, 2, 7)], {"kernel_shape": [3]}, flops=2 * 5 * 3),
    OpCase("MaxPool", "3d", [normal(1, 2, 4, 4, 4)], {"kernel_shape": [2, 3, 2]}, flops=2 * 18 * 12),
    OpCase(
        "MaxPool",
        "uint8",
        [np.arange(32, dtype=np.uint8).reshape(1, 2, 4, 4)],
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
        flops=32 * 9,
    ),
    OpCase(
        "AveragePool",
        "exclude-pad",
        [normal(2, 3, 6, 6)],
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        free="i0.0 i0.1 o0.0 o0.1",
        flops=2 * 3 * 9 * 9,
    ),
    OpCase(
        "AveragePool",
        "include-pad",
        [normal(1, 2, 6, 6)],
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 0, 1], "count_include_pad": 1},
        flops=2 * 3 * 3 * 9,
    ),
    OpCase(
        "AveragePool",
        "ceil",
        [normal(1, 2, 6, 5)],
        {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1},
        flops=2 * 3 * 3 * 6,
    ),
    OpCase(
        "AveragePool",
        "ceil-include-pad",
        [normal(1, 2, 7, 7)],
        {"kernel_shape": [3, 3], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1, "count_include_pad": 1},
        flops=2 * 3 * 3 * 9,
    ),
    OpCase(
        "AveragePool",
        "dilated",
        [normal(1, 2, 7, 7)],
        {"kernel_shape": [2, 2], "dilations": [2, 3], "pads": [1, 1, 1, 1]},
        flops=2 * 7 * 6 * 4,
    ),
    OpCase(
        "AveragePool",
        "same-lower",
        [normal(1, 2, 5, 5)],
        {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"},
        flops=2 * 25 * 4,
    ),
    OpCase("AveragePool", "1d", [normal(1, 2, 7)], {"kernel_shape": [3], "strides": [2]}, flops=2 * 3 * 3),
    OpCase("AveragePool", "3d", [normal(1, 1, 4, 4, 4)], {"kernel_shape": [2, 2, 2]}, flops=27 * 8),
    OpCase(
        "LpPool",
        "p2",
        [normal(1, 2, 6, 6)],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        free="i0.1 o0.1",
        flops=3 * 2 * 9 * 4,
    ),
    OpCase(
        "LpPool",
        "p3-padded",
        [normal(1, 2, 5, 5)],
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "p": 3},
        flops=3 * 2 * 25 * 9,
    ),
    OpCase("LpPool", "p1-1d", [normal(1, 2, 6)], {"kernel_shape": [3], "p": 1}, flops=3 * 2 * 4 * 3),
    OpCase("GlobalAveragePool", "2d", [normal(2, 3, 4, 5)], free="i0.0 i0.1 o0.0 o0.1", flops=120),
    OpCase("GlobalAveragePool", "1d", [normal(1, 3, 4)], flops=12),
    OpCase("GlobalMaxPool", "2d", [normal(2, 3, 4, 5)], free="i0.0 i0.1 o0.0 o0.1", flops=120),
    OpCase("GlobalMaxPool", "3d", [normal(1, 3, 2, 2, 3)], flops=36),
    OpCase("GlobalLpPool", "p2", [normal(2, 3, 4, 5)], free="i0.0 i0.1 o0.0 o0.1", flops=3 * 120),
    OpCase("GlobalLpPool", "p3", [normal(1, 3, 4, 5)], {"p": 3}, flops=3 * 60),
]

# ---------------------------------------------------------------------- softmax
CASES += [
    OpCase(
        name,
        label,
        [normal(2, 3, 4) * 5],
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
CASES += [OpCase("Hardmax", "equal-elements", [np.array([[1, 3, 3], [2, 2, 2]], np.float32)], flops=6)]

# ---------------------------------------------------------------------- statistics of the input
CASES += [
    OpCase(
        "InstanceNormalization",
        "plane",
        [normal(2, 3, 4, 5), positive(3), weight(3)],
        {"epsilon": 1e-3},
        free="i0.0 i0.1 i1.0 i2.0 o0.0 o0.1",
        mixed="i0.2 i0.3 o0.2 o0.3",
        flops=7 * 120,
    ),
    OpCase("InstanceNormalization", "1d", [normal(1, 3, 9), positive(3), weight(3)], flops=7 * 27),
    OpCase(
        "GroupNormalization",
        "two-groups",
        [normal(2, 6, 3, 2), positive(6), weight(6)],
        {"num_groups": 2},
        free="i0.0 o0.0",
        mixed="i0.1 i0.2 i0.3 o0.1 o0.2 o0.3",
        flops=7 * 72,
    ),
    OpCase(
        "LayerNormalization",
        "last",
        [normal(2, 3, 8), positive(8), weight(8)],
        free="i0.0 i0.1 o0.0 o0.1",
        mixed="i0.2 o0.2",
        flops=7 * 48,
    ),
    OpCase(
        "LayerNormalization",
        "two-axes-with-statistics",
        [normal(2, 3, 4, 2), positive(4, 2)],
        {"axis": 2, "epsilon": 1e-2},
        results=3,
        free="i0.0 i0.1 o0.0 o0.1 o1.0 o1.1 o2.0 o2.1",
        mixed="i0.2 i0.3 o0.2 o0.3",
        flops=7 * 48,
    ),
    OpCase(
        "MeanVarianceNormalization",
        "default",
        [normal(2, 3, 4, 5)],
        free="i0.1 o0.1",
        mixed="i0.0 i0.2 i0.3 o0.0 o0.2 o0.3",
        flops=5 * 120,
    ),
    OpCase("MeanVarianceNormalization", "channels", [normal(2, 3, 4, 5)], {"axes": [1, -1]}, flops=5 * 120),
    OpCase(
        "LRN",
        "odd",
        [normal(1, 7, 3, 2)],
        {"size": 3, "alpha": 0.5, "beta": 0.5, "bias": 2.0},
        free="i0.2 i0.3 o0.2 o0.3",
        mixed="i0.1 o0.1",
        flops=11 * 42,
    ),
    # as many samples as channels: onnx.reference loops over the wrong axis
    OpCase("LRN", "even", [normal(6, 6, 1, 2)], {"size": 4, "alpha": 0.9}, flops=13 * 72),
    OpCase(
        "LpNormalization",
        "p2",
        [normal(2, 3, 4)],
        free="i0.0 i0.1 o0.0 o0.1",
        mixed="i0.2 o0.2",
        flops=3 * 24,
    ),
    OpCase("LpNormalization", "p1-middle", [normal(2, 3, 4)], {"axis": 1, "p": 1}, flops=3 * 24),
    OpCase(
        "LpNormalization",
        "zero-vector",
        [np.array([[3, 4], [0, 0]], np.float32)],
        flops=3 * 4,
    ),
]

# ---------------------------------------------------------------------- Einsum
CASES += [
    OpCase(
        "Einsum",
        "explicit",
        [normal(3, 4), weight(4, 5)],
        {"equation": "ij, jk -> ki"},
        free="i0.0 i0.1 i1.0 i1.1 o0.0 o0.1",
        macs=60,
    ),
    OpCase("Einsum", "implicit", [normal(3, 4), normal(4, 2)], {"equation": "bj,ja"}, macs=24),
    OpCase(
        "Einsum",
        "attention",
        [normal(2, 3, 4, 5), normal(2, 6, 4, 5)],
        {"equation": "bqhd,bkhd->bhqk"},
        free="i0.0 i0.1 i0.2 i0.3 i1.0 i1.1 i1.2 i1.3 o0.0 o0.1 o0.2 o0.3",
        macs=2 * 3 * 6 * 4 * 5,
    ),
    OpCase("Einsum", "transpose", [normal(3, 4)], {"equation": "ij->ji"}, flops=0),
    OpCase("Einsum", "sum", [normal(3, 4)], {"equation": "ij->i"}, flops=12),
    OpCase("Einsum", "sum-all-implicit", [normal(3), normal(3)], {"equation": "i,i"}, macs=3),
    OpCase("Einsum", "outer", [normal(3), normal(4)], {"equation": "i,j->ij"}, macs=12),
    OpCase(
        "Einsum",
        "ellipsis-broadcast",
        [normal(2, 1, 3, 4), normal(1, 5, 4, 2)],
        {"equation": "...ij,...jk->...ik"},
        free="i0.0 i0.2 i0.3 i1.1 i1.2 i1.3 o0.0 o0.1 o0.2 o0.3",
        macs=2 * 5 * 3 * 4 * 2,
    ),
    OpCase(
        "Einsum",
        "three-operands",
        [normal(2, 3), normal(3, 4), normal(4, 5)],
        {"equation": "ab,bc,cd->ad"},
        macs=2 * 3 * 4 + 2 * 4 * 5,
    ),
    OpCase(
        "Einsum",
        "diagonal",
        [normal(2, 3, 3)],
        {"equation": "...ii->...i"},
        flops=18,
        free="i0.0 i0.1 i0.2 o0.0 o0.1",
    ),
]

# ---------------------------------------------------------------------- recurrent
STEPS, SAMPLES, INPUTS, HIDDEN = 5, 2, 3, 4


def by_transposing(site: Site, *operands: np.ndarray | None) -> list[np.ndarray]:
    """onnxruntime has no layout=1: run layout=0 on transposed operands and transpose the results."""
    flipped = [o.swapaxes(0, 1) if o is not None and i in (0, 5, 6) else o for i, o in enumerate(operands)]
    twin = make_site(site.node.op.name, flipped, {**site.attrs, "layout": 0}, len(site.results))
    y, *states = by_onnxruntime(twin, {f"i{i}": o for i, o in enumerate(flipped) if o is not None})
    return [y.transpose(2, 0, 1, 3), *(s.swapaxes(0, 1) for s in states)]


def recurrent(
    op: str,
    label: str,
    directions: int = 1,
    bias: bool = True,
    lens: Sequence[int] | None = None,
    states: bool = False,
    peepholes: bool = False,
    **attrs: object,
) -> OpCase:
    """A recurrent case with few steps, samples, inputs and units."""
    gates, layout = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], int(attrs.get("layout", 0))
    operands: list[np.ndarray | Constant | None] = [
        normal(STEPS, SAMPLES, INPUTS),
        weight(directions, gates * HIDDEN, INPUTS),
        weight(directions, gates * HIDDEN, HIDDEN),
        weight(directions, 2 * gates * HIDDEN) if bias else None,
        np.array(lens, np.int32) if lens is not None else None,
        normal(directions, SAMPLES, HIDDEN, seed=5) if states else None,
        normal(directions, SAMPLES, HIDDEN, seed=6) if states and op == "LSTM" else None,
        weight(directions, 3 * HIDDEN, seed=7) if peepholes else None,
    ]
    results = 3 if op == "LSTM" else 2
    batch_axes = {0: 1 - layout, 4: 0, 5: 1 - layout, 6: 1 - layout}
    hidden_axes = {1: 1, 2: 1, 3: 1, 5: 2, 6: 2, 7: 1}
    free = [
        f"i{i}.{dim}" for axes in (batch_axes, hidden_axes) for i, dim in axes.items() if operands[i] is not None
    ]
    free += ["i0.2", "i1.2", "i2.2", f"o0.{0 if layout else 2}", "o0.3"]
    free += [f"o{i}.{dim}" for i in range(1, results) for dim in (1 - layout, 2)]
    if layout:
        operands = [o.swapaxes(0, 1) if isinstance(o, np.ndarray) and o.ndim == 3 else o for o in operands]
    while operands[-1] is None:
        operands.pop()
    return OpCase(
        op,
        label,
        operands,
        {"hidden_size": HIDDEN, "direction": ["forward", "bidirectional"][directions - 1], **attrs},
        results=results,
        free=" ".join(free),
        macs=STEPS * SAMPLES * directions * gates * HIDDEN * (INPUTS + HIDDEN),
        lowers=False,
        oracle=by_transposing if layout else "onnxruntime",
    )


CASES += [
    *(
        case
        for op in ("LSTM", "GRU", "RNN")
        for case in (
            recurrent(op, "forward"),
            recurrent(op, "reverse", direction="reverse", bias=False),
            recurrent(op, "bidirectional-states", 2, states=True),
            recurrent(op, "lengths", 2, lens=[3, 5], states=True),
            recurrent(op, "clip", clip=0.5),
        )
    ),
    recurrent("LSTM", "peepholes", 2, peepholes=True, states=True, clip=0.7),
    recurrent("LSTM", "input-forget", input_forget=1),
    recurrent("LSTM", "activations", activations=["Sigmoid", "Relu", "Tanh"]),
    recurrent("GRU", "linear-before-reset", 2, linear_before_reset=1, states=True),
    recurrent("GRU", "zero-length", lens=[0, 5], states=True),
    recurrent("LSTM", "zero-length", lens=[0, 5], states=True),
    recurrent("RNN", "zero-length", lens=[0, 5], states=True),
    recurrent("RNN", "relu", activations=["Relu"]),
    recurrent("LSTM", "layout", 2, layout=1, states=True),
    recurrent("GRU", "layout", lens=[3, 5], layout=1),
]
REFUSED += [
    (
        recurrent("LSTM", "softsign", activations=["Sigmoid", "Softsign", "Tanh"]),
        "LSTM Softsign Sigmoid, Tanh, Relu",
    ),
    (recurrent("GRU", "too-few", 2, activations=["Sigmoid", "Tanh"]), "GRU 2 per direction"),
]
