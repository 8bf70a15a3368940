"""Cases of reductions, gather, scatter, one-hot and top-k."""

from __future__ import annotations

from typing import Any

import numpy as np

from compiler.ir.graph import Site
from tests.ir.op_case import Constant, OpCase
from tests.ir.op_values import floats, longs, nonzero, real, scalar, truth, whole, within

REFUSED: list[tuple[OpCase, str]] = []
DISAGREEMENTS: dict[str, str] = {
    "ReduceMax-bool-empty": "onnxruntime has no empty boolean reduction",
    "ReduceMin-bool-empty": "onnxruntime has no empty boolean reduction",
}
NOT_INFERRED: dict[str, str] = {
    f"GatherND-one-element{kind}": "ONNX infers no shape for a result without axes" for kind in ("", "-constant")
}
CASES: list[OpCase] = []

NOT_FINITE = np.array([[np.nan, 1, -np.inf, np.nan], [-1, np.inf, 0, 2], [3, 1, 2, np.nan]], np.float32)


def by_cast(site: Site, indices: np.ndarray, depth: np.ndarray, values: np.ndarray) -> list[np.ndarray]:
    """ONNX casts the indices of OneHot before use; onnxruntime and onnx.reference wrap negative ones before."""
    return [values[np.eye(int(depth[0]), dtype=int)[indices.astype(int)]]]


# ---------------------------------------------------------------------- reductions
X = within(0.1, 2, 2, 3, 4)
PER_INPUT = {
    "Sum": 1,
    "Mean": 1,
    "Max": 1,
    "Min": 1,
    "Prod": 1,
    "L1": 2,
    "L2": 2,
    "LogSum": 1,
    "LogSumExp": 4,
    "SumSquare": 2,
}
PER_RESULT = {"Mean": 1, "L2": 1, "LogSum": 1, "LogSumExp": 2}
EXACT = ("Sum", "L1", "L2", "LogSum", "SumSquare")
"""Reductions to which a zero contributes nothing: entries of the reduced axis may go."""


def reduced(kind: str, id_: str, *operands, **more: Any) -> OpCase:
    """A case of one reduction."""
    fields = {k: more.pop(k) for k in ("free", "mixed", "flops", "oracle") if k in more}
    return OpCase(f"Reduce{kind}", id_, list(operands), more, **fields)


for kind, each in PER_INPUT.items():
    extra = PER_RESULT.get(kind, 0)
    inner = "i0.1 " if kind in EXACT else ""
    CASES += [
        reduced(kind, "axis", X, longs(1), free=f"i0.0 {inner}i0.2 o0.0 o0.2", flops=24 * each + 8 * extra,
                mixed="i0.1" if kind == "Mean" else ""),
        reduced(kind, "no-keepdims", X, longs(-1, 0), keepdims=0, flops=24 * each + 3 * extra),
        reduced(kind, "all", X, flops=24 * each + extra),
        reduced(kind, "empty-axes", X, longs()),
        reduced(kind, "noop", X, longs(), noop_with_empty_axes=1),
        reduced(kind, "scalar", within(0.5, 1), longs()),
        reduced(kind, "untouched-empty", real(2, 0, 4), longs(2)),
    ]  # fmt: skip
    if kind != "Mean":  # the mean of nothing is undefined
        CASES.append(reduced(kind, "empty-set", real(2, 0, 4), longs(1)))
    if not kind.startswith("Log"):
        CASES += [reduced(kind, t.__name__, nonzero(2, 3, 4, dtype=t), longs(1)) for t in (np.int32, np.int64)]
for kind in ("Max", "Min"):
    CASES += [
        reduced(kind, "not-finite", NOT_FINITE, longs(1), oracle="reference"),
        reduced(kind, "not-finite-columns", NOT_FINITE, longs(0), oracle="reference"),
        reduced(kind, "bool", truth(2, 3, 4), longs(1)),
        reduced(kind, "bool-empty", truth(2, 0, 4), longs(1)),
        reduced(kind, "uint8", whole(2, 3, 4, dtype=np.uint8, low=0), longs(1)),
    ]
CASES += [
    reduced("LogSumExp", "large", np.array([[1000, 999, -5]], np.float32), longs(1)),
    OpCase("ReduceSum", "float16", [np.ones((2, 3000), np.float16), longs(1)], tolerance=2e-3),
]

for name in ("ArgMax", "ArgMin"):
    ties = whole(2, 5, 4, low=0, high=3).astype(np.float32)
    for last in (0, 1):
        attrs = {"axis": 1, "select_last_index": last}
        CASES.append(OpCase(name, f"keep-last{last}", [ties], attrs, flops=40, free="i0.0 i0.2 o0.0 o0.2"))
        CASES.append(OpCase(name, f"drop-last{last}", [ties], {**attrs, "axis": -1, "keepdims": 0}))
        CASES.append(OpCase(name, f"not-finite-last{last}", [NOT_FINITE], attrs, oracle="reference"))
    CASES += [OpCase(name, "int64", [whole(3, 4)], {"axis": 1}), OpCase(name, "default", [real(3, 4)])]
for t in (np.int32, np.int64):
    large = whole(3, 5, 7, dtype=t) * (np.iinfo(t).max // 8)
    for name in ("ReduceSum", "ReduceProd"):
        for axis in (0, 2):  # onnxruntime stops at the largest number
            CASES.append(OpCase(name, f"wraps-{t.__name__}-{axis}", [large, longs(axis)], oracle="reference"))
    CASES.append(OpCase("CumSum", f"wraps-{t.__name__}", [large, longs(1)]))
    CASES.append(OpCase("ReduceL1", f"lowest-{t.__name__}", [np.full(3, np.iinfo(t).min, t)], oracle="reference"))
CASES.append(OpCase("ReduceSumSquare", "wraps", [large, longs(2)], oracle="reference"))
for shape, axis in (((0, 3), 0), ((3, 0), 1)):
    CASES.append(OpCase("ReduceMean", f"of-nothing-{axis}", [np.zeros(shape, np.float32), longs(axis)]))
EXACT = np.array([[2**60 + 1, 2**60 + 2, 2**60 + 3], [-7, -1, 0]])
CASES.append(OpCase("ReduceMean", "exact", [EXACT, longs(1)], oracle=lambda *_: [np.array([[2**60 + 2], [-2]])]))
CASES.append(OpCase("CumSum", "vector-axis", [whole(2, 3, dtype=np.int32), longs(-1)]))
for reverse in (0, 1):
    for exclusive in (0, 1):
        CASES.append(
            OpCase(
                "CumSum",
                f"reverse{reverse}-exclusive{exclusive}",
                [real(2, 5, 3), scalar(1 if reverse else -2, np.int32)],
                {"reverse": reverse, "exclusive": exclusive},
                flops=30,
                free="i0.0 i0.1 i0.2 o0.0 o0.1 o0.2",
            )
        )

# ---------------------------------------------------------------------- gather
TABLE = np.array([[0, 1], [3, -4]])
ROWS = np.array([[1, 2, 0], [2, 0, 0]])
SHORT = np.array([[1, 2, 0], [2, -3, 0]], np.int32)


def indexed(
    op: str, id_: str, x: np.ndarray, indices: np.ndarray, *rest, constant: str | None = None, **more
) -> list[OpCase]:
    """A case with computed indices (`free` is for it) and the same with constant ones (`constant`)."""
    fields = {k: more.pop(k) for k in ("free", "flops") if k in more}
    computed = OpCase(op, id_, [x, indices, *rest], more, **fields)
    return [
        computed,
        OpCase(op, f"{id_}-constant", [x, Constant(indices), *rest], more, **{**fields, "free": constant}),
    ]


CASES += [
    *indexed("Gather", "vector", real(5, 4, 3), np.array([0, -1, 2]), axis=1, flops=0,
             free="i0.0 i0.2 i1.0 o0.0 o0.1 o0.2", constant="i0.0 i0.1 i0.2 o0.0 o0.1 o0.2"),
    *indexed("Gather", "repeated", real(3, 4), np.array([3, 1, 1, 0, 3]), axis=1, constant="i0.0 i0.1 o0.0 o0.1"),
    *indexed("Gather", "matrix", real(5, 4, 3), TABLE, axis=0, free="i0.1 i0.2 i1.0 i1.1 o0.0 o0.1 o0.2 o0.3"),
    *indexed("Gather", "scalar", real(5, 4, 3), np.array(-1, np.int32), axis=2, free="i0.0 i0.1 o0.0 o0.1"),
    *indexed("GatherElements", "axis0", real(3, 3), ROWS, axis=0, flops=0),
    *indexed("GatherElements", "axis1-short", real(3, 3), SHORT, axis=1, free="i1.1 o0.1"),
    *indexed("GatherND", "pairs", real(2, 3, 4), np.array([[0, 1], [1, 2]]), flops=0, free="i0.2 i1.0 o0.0 o0.1"),
    *indexed("GatherND", "batch", real(2, 3, 4), np.array([[1], [0]]), batch_dims=1),
    *indexed("GatherND", "elements", real(2, 3), np.array([[0, 0], [1, -1]])),
    *indexed("GatherND", "one-element", real(2, 3), np.array([1, -1])),
]  # fmt: skip

# ---------------------------------------------------------------------- scatter
for how in ("none", "add", "mul", "max", "min"):
    last = 7 if how == "none" else -1
    CASES += [
        *indexed("ScatterND", f"elements-{how}", real(8), np.array([[4], [3], [1], [last]]), real(4),
                 reduction=how),
        *indexed("ScatterND", f"rows-{how}", real(4, 4, 2), np.array([[[0, 1], [2, 3]]]), real(1, 2, 2),
                 reduction=how, flops=0 if how == "none" else 4, free="i0.2 i2.2 o0.2", constant="i0.2 i2.2 o0.2"),
        *indexed("ScatterElements", f"row-{how}", real(3, 5), np.array([[1, 3], [0, 4]]), real(2, 2),
                 axis=1, reduction=how, flops=0 if how == "none" else 4),
        *indexed("ScatterElements", f"column-{how}", real(3, 3), np.array([[1, 0, 2], [0, 2, 1]], np.int32),
                 real(2, 3), axis=0, reduction=how),
    ]  # fmt: skip
CASES += [
    *indexed("ScatterND", "last-wins", real(4), np.array([[1], [1], [2], [1]]), real(4)),
    *indexed("ScatterND", "nothing", real(4, 2), np.zeros((0, 1), np.int64), real(0, 2)),
    *indexed("ScatterND", "int64-max", whole(8), np.array([[4], [3]]), whole(2), reduction="max"),
    *indexed(
        "ScatterElements",
        "repeated-add",
        real(3, 5),
        np.array([[1, 1], [0, -1]]),
        real(2, 2),
        axis=1,
        reduction="add",
    ),
]

# ---------------------------------------------------------------------- one-hot and top-k
LEVELS = whole(6, 4, low=0, high=3).astype(np.float32)
CASES += [
    OpCase("OneHot", "last", [np.array([0, 7, -8, 12]), longs(10), floats(5, 2)], flops=0, free="i0.0 o0.0"),
    OpCase(
        "OneHot", "towards-zero", [np.array([-0.5, 0.7, -1.5], np.float32), longs(3), floats(0, 1)], oracle=by_cast
    ),
    OpCase("OneHot", "first", [np.array([0, 7, -8, 12]), longs(10), real(2)], {"axis": 0}),
    OpCase("OneHot", "matrix", [np.array([[1, 9], [2, 4]]), scalar(10, np.int64), floats(0, 1)], {"axis": 1}),
]
for largest in (0, 1):
    CASES += [
        OpCase("TopK", f"three-largest{largest}", [real(3, 6), longs(3)], {"largest": largest}, results=2,
               flops=6 * 18, free="i0.0 o0.0 o1.0"),
        OpCase("TopK", f"equal-largest{largest}", [LEVELS, longs(4)], {"axis": 0, "largest": largest}, results=2),
        OpCase("TopK", f"not-finite-largest{largest}", [NOT_FINITE, longs(3)], {"largest": largest}, results=2),
        OpCase("TopK", f"int64-largest{largest}", [whole(2, 9), longs(5)], {"largest": largest}, results=2),
    ]  # fmt: skip

REFUSED += [
    (OpCase("TopK", "computed-k", [real(3, 6), np.array([3])], results=2), "TopK 'K' constant"),
    (OpCase("ArgMax", "nothing", [real(2, 0)], {"axis": 1}), "ArgMax axis 1 entry"),
    (OpCase("OneHot", "computed-depth", [whole(3), np.array([3]), floats(0, 1)]), "OneHot 'depth'"),
    (OpCase("ReduceSum", "computed-axes", [real(3, 6), np.array([1])]), "ReduceSum 'axes' constant"),
    (reduced("Sum", "repeated-axes", real(3, 6), longs(1, -1)), "ReduceSum axes [1, 1]"),
    (OpCase("CumSum", "axis", [real(3, 6), scalar(2, np.int64)]), "CumSum axis 2"),
    (OpCase("TopK", "negative", [real(3, 6), longs(-1)], results=2), "TopK -1"),
    (OpCase("Gather", "range", [real(3, 6), longs(3)]), "Gather [3] (3,)"),
    (OpCase("GatherElements", "range", [real(3, 6), Constant(np.array([[-4]]))]), "GatherElements [-4] (3,)"),
    (OpCase("GatherElements", "larger", [real(3, 6), np.zeros((1, 7), np.int64)]), "(1, 7) larger"),
    (OpCase("GatherND", "range", [real(3, 6), Constant(np.array([[1, 6]]))]), "GatherND [6] (3, 6)"),
    (OpCase("ScatterND", "range", [real(3, 6), Constant(np.array([[3]])), real(1, 6)]), "ScatterND [3]"),
    (OpCase("ScatterND", "updates", [real(3, 6), Constant(np.array([[2]])), real(1, 5)]), "updates (1, 5) (1, 6)"),
    (OpCase("ScatterND", "wider", [real(3, 6), Constant(np.array([[2]])), real(1, 7)]), "updates (1, 7) (1, 6)"),
    (
        OpCase("ScatterND", "choice", [real(3), Constant(np.array([[2]])), real(1)], {"reduction": "mean"}),
        "'mean' add",
    ),
    (OpCase("ScatterElements", "range", [real(3), longs(3), real(1)]), "ScatterElements [3]"),
    (OpCase("ScatterElements", "updates", [real(3), longs(1), real(2)]), "updates (2,)"),
]
