"""Cases of element-wise, comparison and cast operators."""

from __future__ import annotations

import numpy as np
from onnx import helper

from compiler.ir.graph import Site
from tests.ir.op_case import Constant, OpCase
from tests.ir.op_values import floats, nonzero, real, scalar, truth, whole, within

REFUSED: list[tuple[OpCase, str]] = []
DISAGREEMENTS: dict[str, str] = {
    "Erf-float16": "onnxruntime has none",
    "Gelu-float16": "onnxruntime has none",
    "Mod-float-floored": "onnxruntime wants fmod for floats; ONNX allows both since opset 27",
}
NOT_INFERRED: dict[str, str] = {}
CASES: list[OpCase] = []

ALL = "i0.0 i0.1 i0.2 o0.0 o0.1 o0.2"


def by_numpy(site: Site, a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    """Division of integers where onnxruntime ends the process."""
    with np.errstate(divide="ignore"):
        return [a // b if site.node.op.name == "Div" else np.mod(a, b)]


def wrapped(site: Site, a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    """Sums, differences and products as numpy wraps them; onnxruntime has none of some types."""
    with np.errstate(over="ignore"):
        return [{"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}[site.node.op.name](a, b)]


# ---------------------------------------------------------------------- functions of one tensor
COSTS = {
    "Abs": 1, "Neg": 1, "Exp": 1, "Reciprocal": 1, "Relu": 1, "LeakyRelu": 2, "Elu": 4, "Selu": 5, "Celu": 7,
    "Sigmoid": 4, "HardSigmoid": 4, "HardSwish": 5, "Tanh": 1, "Softplus": 3, "Softsign": 3, "Erf": 1, "Gelu": 5,
    "Mish": 5, "ThresholdedRelu": 1, "Shrink": 3, "Sign": 2, "Floor": 1, "Ceil": 1, "Round": 1, "Sin": 1, "Cos": 1,
    "Tan": 1, "Atan": 1, "Sinh": 1, "Cosh": 1, "Asinh": 1, "IsNaN": 1,
}  # fmt: skip
"""Scalar operations per element, counted from the defining formula."""

for name, cost in COSTS.items():
    CASES.append(OpCase(name, "3d", [3 * real(2, 3, 4)], free=ALL, flops=cost * 24))
for name in ("Asin", "Acos", "Atanh"):
    CASES.append(OpCase(name, "3d", [within(-0.9, 0.9, 2, 3, 4)], free=ALL, flops=24))
for name in ("Log", "Sqrt", "Acosh"):
    CASES.append(OpCase(name, "3d", [within(1.1, 3, 2, 3, 4)], free=ALL, flops=24))
for name in ("Exp", "Softsign", "Relu", "Gelu"):
    CASES.append(OpCase(name, "scalar", [real()], free=""))

EDGES = np.array([np.nan, -1, np.inf, -np.inf, 0, -0.0], np.float32)
HALVES = np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32)
CASES += [
    OpCase("Relu", "not-finite", [EDGES]),
    OpCase("LeakyRelu", "not-finite", [EDGES], {"alpha": 0.2}),
    *(
        OpCase(name, f"{value}", [EDGES], {"alpha": value})
        for name in ("LeakyRelu", "ThresholdedRelu", "Elu", "Selu")
        for value in (np.inf, -np.inf, np.nan)
    ),
    *(
        OpCase("PRelu", f"slope-{value}{end}", [EDGES, kind(np.array([value], np.float32))])
        for value in (np.inf, -np.inf, np.nan)
        for end, kind in (("", np.asarray), ("-fixed", Constant))
    ),
    OpCase("Softplus", "large", [np.array([100, -100, 0], np.float32)]),
    OpCase("Elu", "alpha", [real(9)], {"alpha": 2.0}),
    OpCase("Selu", "attributes", [real(9)], {"alpha": 3.0, "gamma": 2.0}),
    OpCase("Celu", "alpha", [real(9)], {"alpha": 2.0}),
    OpCase("Celu", "negative-alpha", [real(9)], {"alpha": -2.0}),
    OpCase("Sign", "not-finite", [EDGES]),
    *(OpCase(name, "not-finite", [EDGES, EDGES[::-1].copy(), EDGES]) for name in ("Max", "Min")),
    OpCase("HardSigmoid", "attributes", [real(9)], {"alpha": 0.5, "beta": 0.6}),
    OpCase("ThresholdedRelu", "alpha", [real(9)], {"alpha": 0.1}),
    OpCase("Shrink", "bias", [real(9)], {"lambd": 0.3, "bias": 0.1}),
    OpCase("Shrink", "int32", [whole(9, dtype=np.int32)], {"lambd": 1.5, "bias": 0.25}),
    OpCase("Shrink", "uint8", [whole(9, dtype=np.uint8, low=0)], {"lambd": 1.5, "bias": 1.5}),
    OpCase("Gelu", "tanh", [real(3, 4)], {"approximate": "tanh"}, flops=8 * 12),
    OpCase("Round", "halves", [HALVES]),
    OpCase("IsNaN", "edges", [EDGES]),
    OpCase("IsInf", "both", [EDGES], flops=2 * 6),
    OpCase("IsInf", "negative", [EDGES], {"detect_positive": 0}),
    OpCase("IsInf", "positive", [EDGES], {"detect_negative": 0}),
    OpCase("Not", "3d", [truth(2, 3, 4)], free=ALL, flops=24),
    OpCase("BitwiseNot", "int32", [whole(5, dtype=np.int32)], flops=5),
    OpCase("BitwiseNot", "uint8", [whole(5, dtype=np.uint8, low=0)]),
]
for name in ("Abs", "Neg", "Sign"):
    CASES += [OpCase(name, t.__name__, [whole(7, dtype=t)]) for t in (np.int8, np.int32, np.int64)]
for name in ("Exp", "Relu", "Tanh", "Sigmoid", "Sqrt", "Erf", "Gelu"):
    CASES.append(OpCase(name, "float16", [np.abs(real(3, 4)).astype(np.float16)], tolerance=2e-3))

# ---------------------------------------------------------------------- arithmetic with broadcasting
BROADCAST = "i0.0 i0.1 i0.2 i1.0 o0.0 o0.1 o0.2"
for name in ("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum"):
    CASES.append(OpCase(name, "column", [within(0.5, 3, 2, 3, 4), within(0.5, 3, 3, 1)], free=BROADCAST, flops=24))
CASES.append(OpCase("PRelu", "column", [real(2, 3, 4), within(0.5, 3, 3, 1)], free=BROADCAST, flops=2 * 24))
CASES.append(OpCase("Mean", "column", [real(2, 3, 4), real(3, 1)], free=BROADCAST, flops=2 * 24))
for name in ("Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Equal"):
    CASES.append(OpCase(name, "column", [whole(2, 3, 4, high=-4), whole(3, 1, high=-4)], free=BROADCAST, flops=24))
for name in ("Add", "Mul", "Sub", "Div"):
    CASES.append(OpCase(name, "two-way", [real(4, 1), within(1, 2, 5)], free="i0.0 i1.0 o0.0 o0.1"))
    CASES.append(OpCase(name, "constant-channel", [real(1, 3, 4, 4), Constant(within(1, 2, 3, 1, 1))]))
for name in ("Min", "Max", "Sum", "Mean"):
    CASES.append(OpCase(name, "one", [real(3)], free="i0.0 o0.0"))
    CASES.append(OpCase(name, "three", [real(3, 1), real(2, 1, 1), real(4)], free="i0.0 i1.0 i2.0 o0.0 o0.1 o0.2"))

ROWS = np.stack([np.arange(40), np.random.default_rng(0).permutation(40)])
"""A table whose first row is a line and whose second is none."""
for id_, table in (("square-table", np.eye(2, dtype=np.int64)), ("row-of-table", ROWS)):
    CASES.append(OpCase("Add", id_, [whole(*table.shape), Constant(table)]))

INTEGERS = (np.int8, np.uint8, np.int32, np.int64)
for t in INTEGERS:
    kind, low = t.__name__, 0 if t is np.uint8 else -9
    left = whole(3, 4, dtype=t, low=low)
    right = np.abs(nonzero(4, dtype=t)) if t is np.uint8 else nonzero(4, dtype=t)
    CASES += [
        OpCase("Div", kind, [left, right]),
        OpCase("Mod", kind, [left, right], flops=12),
        OpCase("Mod", f"{kind}-fmod", [left, right], {"fmod": 1}),
        *(OpCase(name, kind, [left, right]) for name in ("Add", "Mul", "Max")),
        *(OpCase(name, kind, [left, right], flops=12) for name in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    ]
LOWEST = {t: np.full(4, np.iinfo(t).min, t) for t in (np.int8, np.int32, np.int64)}
"""The number without an opposite, over divisors at which processors trap or round another way."""
for t, least in LOWEST.items():
    CASES.append(OpCase("Div", f"lowest-{t.__name__}", [least, np.array([-1, 3, 0, -3], t)], oracle="reference"))
    rounds = [least, np.array([-1, 3, 1, -3], t)]
    CASES += [OpCase("Mod", f"lowest-{t.__name__}-{k}", rounds, {"fmod": k}, oracle="reference") for k in (0, 1)]
    CASES += [OpCase(name, f"lowest-{t.__name__}", [least]) for name in ("Abs", "Neg")]
CASES.append(OpCase("Div", "lowest-by-minus-one", [LOWEST[np.int32], scalar(-1, np.int32)], oracle="reference"))
for t in (np.uint8, np.int64):
    CASES += [
        OpCase(name, f"by-zero-{t.__name__}", [whole(3, low=1, dtype=t), np.array([0, 2, 0], t)], oracle=by_numpy)
        for name in ("Div", "Mod")
    ]
for zero in (0.0, -0.0):
    CASES.append(OpCase("Div", f"by-the-number-{zero}", [EDGES, scalar(zero)]))
CASES.append(OpCase("Mod", "float-floored", [real(7), real(7, seed=1)]))
CASES.append(OpCase("Mod", "float", [real(7), within(0.5, 2, 7)], {"fmod": 1}))

for dtype in (np.int8, np.int32, np.int64, np.uint8, np.uint32, np.uint64):
    ends = [np.iinfo(dtype).min, np.iinfo(dtype).max]
    values = np.array([*ends, 5, 1, 100] * 4, dtype)
    for end, side in ((e, s) for e in ends for s in (0, 1)):
        operands = [values, scalar(end, dtype)][:: 1 - 2 * side]
        label = f"wraps-{np.dtype(dtype)}-{end}-{side}"
        CASES += [OpCase(name, label, operands, oracle=wrapped) for name in ("Add", "Sub", "Mul")]

BASES, POWERS = np.array([1, 2, 3]), np.array([3, 0, 2])
for a, b in ((np.float32, np.int64), (np.int64, np.float32), (np.int32, np.int32), (np.float32, np.float32)):
    CASES.append(OpCase("Pow", f"{a.__name__}-{b.__name__}", [BASES.astype(a), POWERS.astype(b)]))
CASES.append(OpCase("Pow", "negative-int64", [np.array([1, -1, 2, 5]), np.array([-3, -1, -1, 2])]))
CASES.append(OpCase("Pow", "half-of-not-finite", [EDGES, scalar(0.5)]))
CASES += [OpCase("Pow", f"constant-{p}", [within(0.1, 2, 4), scalar(p)]) for p in (0.5, 1, 2, 3, 4, -1)]
CASES += [
    OpCase("BitShift", "left", [whole(3, dtype=np.uint8, low=1), whole(3, dtype=np.uint8, low=0, high=7)],
           {"direction": "LEFT"}, flops=3),
    OpCase("BitShift", "right", [whole(3, dtype=np.uint32, low=1, high=999), whole(3, dtype=np.uint32, low=0)],
           {"direction": "RIGHT"}),
    OpCase("Clip", "both", [real(2, 3), scalar(-0.5), scalar(0.5)], free="i0.0 i0.1 o0.0 o0.1", flops=12),
    OpCase("Clip", "crossed", [real(2, 3), scalar(0.5), scalar(-0.5)]),
    OpCase("Clip", "high", [real(2, 3), None, scalar(0.5)], flops=6),
    OpCase("Clip", "computed-low", [real(2, 3), real()], flops=6),
    OpCase("Clip", "bound-of-one-axis", [real(), floats(0.5)]),
    OpCase("Clip", "none", [real(2, 3)], flops=0),
    *(
        OpCase("Clip", f"{low}-to-{high}{end}", [EDGES, kind(np.float32(low)), kind(np.float32(high))])
        for low, high in ((np.nan, 0.5), (-0.5, np.nan), (-np.inf, 0.5), (np.inf, np.nan))
        for end, kind in (("", np.asarray), ("-fixed", Constant))
    ),
    OpCase("Clip", "int64", [whole(7), scalar(-2, np.int64), scalar(3, np.int64)]),
]  # fmt: skip

for t in (np.uint8, np.uint32, np.uint64):
    bits = 8 * np.dtype(t).itemsize
    for count in (np.array([0, 1, bits, 99], t), scalar(bits, t)):
        label = f"by-all-bits-{np.dtype(t)}-{type(count).__name__}"
        for way in ("LEFT", "RIGHT"):
            operands = [np.full(4, 200, t), count]
            CASES.append(OpCase("BitShift", f"{label}-{way}", operands, {"direction": way}, oracle="reference"))

# ---------------------------------------------------------------------- logic, selection, casts
for name in ("And", "Or", "Xor"):
    CASES.append(OpCase(name, "row", [truth(3, 4), truth(4, seed=1)], free="i0.0 i0.1 i1.0 o0.0 o0.1", flops=12))
for t in (np.int32, np.int64):
    limits = np.iinfo(t)
    numbers = np.array([limits.min, limits.min + 1, -1, 0, 1, limits.max - 1, limits.max] * 3, t)
    for name in ("Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Equal"):
        for end in (limits.min, limits.max):
            CASES.append(OpCase(name, f"{limits.dtype}-to-{end}", [numbers, scalar(end, t)]))
            CASES.append(OpCase(name, f"{end}-to-{limits.dtype}", [scalar(end, t), numbers]))
    CASES.append(OpCase("Equal", f"{limits.dtype}-table", [numbers, Constant(np.full(21, limits.min, t))]))
CASES += [
    OpCase("Equal", "positions", [Constant(np.arange(12).reshape(3, 4)), whole(3, 4)]),
    OpCase("Equal", "bool", [truth(3, 4), truth(4, seed=1)]),
    OpCase("Where", "float", [truth(3, 1), real(3, 4), real(4)], free="i0.0 i1.0 i1.1 i2.0 o0.0 o0.1", flops=12),
    OpCase("Where", "int64", [truth(3, 1), whole(3, 4), whole(4)]),
    OpCase("Where", "positions", [truth(3, 4), whole(3, 4), Constant(np.arange(12).reshape(3, 4))]),
    OpCase("Where", "constant", [truth(3, 4), real(3, 4), scalar(0)]),
]

TYPES = (np.float32, np.float64, np.float16, np.int32, np.int64, np.uint8, np.int8, np.bool_)
for a in TYPES:
    values = np.array([0, 1, 3.7 if np.dtype(a).kind == "f" else 3, 100]).astype(a)
    for b in TYPES:
        code = helper.np_dtype_to_tensor_dtype(np.dtype(b))
        CASES.append(
            OpCase("Cast", f"{np.dtype(a)}-{np.dtype(b)}", [values], {"to": code}, flops=0, free="i0.0 o0.0")
        )
CASES.append(OpCase("Cast", "not-finite", [EDGES], {"to": 9}))
CASES.append(OpCase("Cast", "negative", [np.array([-1.5, -0.5, 2.9], np.float32)], {"to": 7}))
CASES.append(
    OpCase("CastLike", "int64", [3 * real(2, 3), whole(1)], oracle="reference", flops=0, free="i0.0 i0.1 o0.0 o0.1")
)

REFUSED += [
    (OpCase("Cast", "bfloat16", [real(3)], {"to": 16}), "bfloat16"),
    (OpCase("Add", "shapes", [real(3), real(4)]), "Add"),
    (OpCase("Gelu", "choice", [real(3)], {"approximate": "sigmoid"}), "Gelu 'sigmoid' none tanh"),
    (OpCase("BitShift", "choice", [whole(3, dtype=np.uint8, low=0)] * 2, {"direction": "UP"}), "'UP' LEFT"),
    (OpCase("Clip", "vector", [real(3), Constant(real(3))]), "Clip scalar"),
]
