"""Cases of reshaping, slicing, padding and repeating operators."""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper

from tests.ir.op_case import Constant, OpCase
from tests.ir.op_values import longs, real, scalar, truth, whole

REFUSED: list[tuple[OpCase, str]] = []
DISAGREEMENTS: dict[str, str] = {}
NOT_INFERRED: dict[str, str] = {
    "Compress-axis": "ONNX leaves the number of kept entries open",
    "Compress-flat": "ONNX leaves the number of kept entries open",
    "Compress-negative-axis": "ONNX leaves the number of kept entries open",
}
CASES: list[OpCase] = []

THREE = "i0.0 i0.1 i0.2 o0.0 o0.1 o0.2"


def moved(op: str, id_: str, *operands, free: str | None = None, results: int = 1, **attrs) -> OpCase:
    """A case of an operator that computes nothing: 0 FLOPs."""
    return OpCase(op, id_, list(operands), attrs, results=results, free=free, flops=0)


# ---------------------------------------------------------------------- reshape
FOUR = "i0.0 i0.1 i0.2 i0.3"
RESHAPES = {
    "flatten-channels": ((2, -1), f"{FOUR} o0.0 o0.1"),
    "flatten-to-matrix": ((6, 20), f"{FOUR} o0.0 o0.1"),
    "join-inner": ((2, -1, 5), f"{FOUR} o0.0 o0.1 o0.2"),
    "copy-and-infer": ((0, -1), f"{FOUR} o0.0 o0.1"),
    "all": ((-1,), f"{FOUR} o0.0"),
    "split-inner": ((2, 3, 2, 2, 5), f"{FOUR} o0.0 o0.1 o0.2 o0.3 o0.4"),
    "ones": ((2, 1, 12, 5, 1), f"{FOUR} o0.0 o0.2 o0.3"),
    "crossing": ((4, 3, 10), ""),
    "no-common-factor": ((8, 15), ""),
}
for name, (shape, free) in RESHAPES.items():
    CASES.append(moved("Reshape", name, real(2, 3, 4, 5), longs(*shape), free=free if name != "crossing" else None))
CASES += [
    moved("Reshape", "heads", real(1, 4, 6), longs(1, 4, 2, 3), free="i0.1 i0.2 o0.1 o0.2 o0.3"),
    moved("Reshape", "refined", real(4, 6), longs(2, 12), free="i0.0 i0.1 o0.0 o0.1"),
    moved("Reshape", "allowzero", real(0, 3, 4), longs(3, 4, 0), allowzero=1),
    moved("Reshape", "from-scalar", real(), longs(1)),
    moved("Reshape", "to-scalar", real(1), longs()),
    *(moved("Flatten", f"axis{a}", real(2, 3, 4, 5), axis=a) for a in (0, 2, 4, -1)),
    moved("Flatten", "empty", real(3, 4, 0, 5), axis=-1),
    moved("Flatten", "default", real(2, 3, 4, 5), free=f"{FOUR} o0.0 o0.1"),
    moved("Flatten", "one-pixel", real(2, 3, 1, 1), free="i0.0 i0.1 o0.0 o0.1"),
    moved("Squeeze", "axes", real(1, 3, 1, 4), longs(0, -2), free="i0.1 i0.3 o0.0 o0.1"),
    moved("Squeeze", "all", real(1, 3, 1, 4), free="i0.1 i0.3 o0.0 o0.1"),
    moved("Unsqueeze", "axes", real(3, 4), longs(0, -1), free="i0.0 i0.1 o0.1 o0.2"),
    moved("Unsqueeze", "scalar", real(), longs(0)),
    moved("Identity", "2d", real(2, 3), free="i0.0 i0.1 o0.0 o0.1"),
    moved("Transpose", "default", real(2, 3, 4), free=THREE),
    moved("Transpose", "nhwc", real(1, 3, 4, 5), perm=[0, 2, 3, 1], free="i0.1 i0.2 i0.3 o0.1 o0.2 o0.3"),
    moved("DepthToSpace", "dcr", real(2, 12, 3, 4), blocksize=2, mode="DCR", free="i0.0 i0.1 o0.0 o0.1"),
    moved("DepthToSpace", "crd", real(2, 12, 3, 4), blocksize=2, mode="CRD", free="i0.0 i0.1 o0.0 o0.1"),
    moved("DepthToSpace", "one channel", real(2, 4, 3, 4), blocksize=2, mode="DCR", free="i0.0 o0.0"),
    moved("SpaceToDepth", "2", real(2, 3, 4, 6), blocksize=2, free="i0.0 i0.1 o0.0 o0.1"),
    moved("SpaceToDepth", "one channel", real(2, 1, 4, 6), blocksize=2, free="i0.0 o0.0"),
]

# ---------------------------------------------------------------------- join and cut
CONCAT = "i0.0 i0.2 i1.0 i1.2 i3.0 i3.2 o0.0 o0.2 i0.1 i2.0 i2.2 i3.1 o0.1"
CUT_FREE = "i0.0 i0.1 o0.0 o0.1 o1.0 o1.1 o2.0 o2.1"
CASES += [
    moved("Concat", "four", real(2, 3, 4), real(2, 1, 4), real(2, 0, 4), real(2, 3, 4), axis=-2),
    moved("Concat", "two", real(2, 3), real(2, 4), axis=1, free="i0.0 i0.1 i1.0 i1.1 o0.0 o0.1"),
    moved("Concat", "one", real(2, 3), axis=0),
    moved("Split", "sizes", real(2, 6), longs(1, 3, 2), results=3, axis=1),
    moved("Split", "three", real(2, 9), longs(2, 4, 3), results=3, axis=1, free=CUT_FREE),
    moved("Split", "zero", real(6, 2), longs(2, 0, 4), results=3, axis=-2),
    moved("Split", "equal", real(2, 6), results=3, axis=1, num_outputs=3, free=CUT_FREE),
    moved("Split", "uneven", real(7, 2), results=3, num_outputs=3),
]
X = real(5, 6, 7)
PICK = np.array([True, False, True])
CASES += [
    moved("Slice", "front", X, longs(0, 1), longs(3, -1), free=THREE),
    moved("Slice", "axes", X, longs(1, 0), longs(1000, 5), longs(2, 1)),
    moved("Slice", "reverse", X, longs(-1), longs(-100), longs(1), longs(-1), free=THREE),
    moved("Slice", "reverse-from-before", X, longs(-100), longs(-200), longs(1), longs(-1)),
    moved("Slice", "reverse-part", X, longs(4), longs(0), longs(1), longs(-1), free=THREE),
    moved("Slice", "back-stride", X, longs(-1, 20), longs(-100, 0), longs(-1, 0), longs(-2, -1)),
    moved("Slice", "stride", X, longs(1), longs(-1), longs(1), longs(2), free="i0.0 i0.2 o0.0 o0.2"),
    moved("Slice", "empty", X, longs(5), longs(1)),
    moved("Slice", "int32", X, Constant(np.zeros(1, np.int32)), Constant(np.array([2**31 - 1], np.int32))),
    moved("Compress", "axis", real(3, 4), Constant(PICK), axis=0, free="i0.0 i0.1 o0.0 o0.1"),
    moved("Compress", "flat", real(3, 4), Constant(PICK), free=""),
    moved("Compress", "negative-axis", real(3, 4), Constant(np.array([False, True, True, False])), axis=-1),
    moved("ReverseSequence", "time-first", real(4, 3, 2), np.array([1, 2, 4]), time_axis=0, batch_axis=1),
    moved("ReverseSequence", "batch-first", real(3, 4, 2), longs(1, 2, 4), time_axis=1, batch_axis=0,
          free="i0.0 i0.2 i1.0 o0.0 o0.2"),
]  # fmt: skip

# ---------------------------------------------------------------------- repeat and pad
PADS = longs(1, 0, 2, 0, 3, 1)
CASES += [
    moved("Expand", "rank", real(3, 1), longs(2, 1, 4), free="i0.0 o0.0 o0.1 o0.2"),
    moved("Expand", "same-rank", real(3, 1), longs(3, 4), free="i0.0 o0.0 o0.1"),
    moved("Expand", "partial-shape", real(3, 4), longs(2, 1, 1), free="i0.0 i0.1 o0.0 o0.1 o0.2"),
    moved("Tile", "mixed", real(2, 1, 3), longs(2, 3, 2), free="i0.0 i0.2 o0.0 o0.1 o0.2"),
    *(moved("Pad", mode, real(3, 4, 5), PADS, mode=mode) for mode in ("constant", "edge", "wrap")),
    *(moved("Pad", f"{m}-negative", real(3, 4, 5), longs(1, -1, 2, 0, 3, -2), mode=m)
      for m in ("constant", "edge")),
    *(moved("Pad", f"{m}-axes", real(3, 4, 5), longs(1, 2), None, longs(-1), mode=m, free="i0.0 i0.1 o0.0 o0.1")
      for m in ("edge", "reflect", "wrap")),
    moved("Pad", "constant-axes", real(3, 4, 5), longs(1, 2), None, longs(-1),
          free=THREE),
    moved("Pad", "value", real(3, 4), longs(1, 0, 2, 3), scalar(1.5), free="i0.0 i0.1 o0.0 o0.1"),
    moved("Pad", "computed-value", real(3, 4), longs(1, 0, 2, 3), real()),
    moved("Pad", "axes-swapped", real(3, 4), longs(1, 2, 3, 4), scalar(1.5), longs(1, 0)),
    moved("Pad", "empty", real(0, 4), longs(1, 0, 2, 3), scalar(1.5)),
    moved("Pad", "int64", whole(3, 4), longs(1, 0, 2, 3), scalar(7, np.int64)),
    moved("Pad", "bool", truth(3, 4), longs(1, 0, 2, 3)),
    *(moved("Trilu", f"upper{u}-k{k}", real(2, 4, 5), scalar(k, np.int64), upper=u, free="i0.0 o0.0")
      for u in (0, 1) for k in (-2, 0, 1)),
    moved("Transpose", "scalar", real()),
    *(OpCase("Trilu", f"upper{u}-beyond{k}", [real(4, 5), scalar(k, np.int64)], {"upper": u})
      for u in (0, 1) for k in (-(2**63), 2**63 - 1)),
    moved("Trilu", "default", real(4, 5), free=""),
]  # fmt: skip

# ---------------------------------------------------------------------- made from shapes
SEVEN = numpy_helper.from_array(np.array([7], np.int32))
CASES += [
    moved("Shape", "all", real(2, 3, 4), free=""),
    moved("Shape", "part", real(2, 3, 4), start=-2, end=3),
    moved("Size", "all", real(2, 3, 4)),
    moved("ConstantOfShape", "int32", longs(2, 3), value=SEVEN),
    moved("ConstantOfShape", "default", longs(2, 3)),
    moved("Range", "float", scalar(1), scalar(3), scalar(0.3)),
    moved("Range", "down", scalar(10, np.int64), scalar(3, np.int64), scalar(-2, np.int64)),
    moved("EyeLike", "diagonal", real(3, 4), k=1),
    moved("EyeLike", "square", whole(2, 2)),
    moved("EyeLike", "typed", whole(3, 4, dtype=np.int32), k=-1, dtype=1),
]

REFUSED += [
    (moved("Reshape", "computed", real(4), np.array([2, 2])), "Reshape 'shape' constant fixed"),
    (moved("Slice", "computed", real(4), np.array([0]), np.array([2])), "'starts' 'ends' constant"),
    (moved("Split", "sum", real(4), longs(1, 2), results=2, axis=0), "Split [1, 2] 4"),
    (moved("Expand", "computed", real(4), np.array([2, 4])), "Expand 'shape'"),
    (moved("Range", "computed", real(), scalar(3), scalar(1)), "Range 'start'"),
    (moved("Pad", "mode", real(4), longs(1, 1), mode="mirror"), "Pad 'mirror' reflect"),
    (moved("Pad", "too-negative", real(4), longs(-3, -3)), "Pad negative (4,)"),
    (moved("Pad", "no-edge", real(0), longs(1, 1), mode="edge"), "Pad edge"),
    (moved("Pad", "cut-away", real(4), longs(-4, 2), mode="edge"), "Pad edge"),
    (moved("DepthToSpace", "divide", real(1, 5, 2, 2), blocksize=2), "DepthToSpace blocksize channels"),
    (moved("SpaceToDepth", "divide", real(1, 5, 3, 2), blocksize=2), "SpaceToDepth blocksize"),
    (moved("ReverseSequence", "axes", real(3, 4), longs(1, 2, 4), time_axis=0, batch_axis=0), "batch_axis [0]"),
    (moved("ReverseSequence", "lengths", real(3, 4), longs(1, 2), time_axis=1, batch_axis=0), "sequence_lens (2,)"),
]
