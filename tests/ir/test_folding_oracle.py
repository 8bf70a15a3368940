"""Import folds at least what graphsurgeon folds: an outside oracle for shape arithmetic."""

from __future__ import annotations

import json
from collections import Counter

import onnx
import onnx_graphsurgeon as surgeon
import pytest

from compiler.ir.onnx_in import load
from tests.shared import shared_path

NETWORKS = ["bidi_lstm_sb", "ppocr_det_v2", "ppocr_cls", "yunet_n_320", "basic_pitch", "wakewords/Alice", "gtcrn"]
SHAPE_ARITHMETIC = [
    "Shape",
    "Size",
    "ConstantOfShape",
    "Range",
    "Gather",
    "Cast",
    "Floor",
    "Equal",
    "Where",
    "Expand",
]


def bound(model: onnx.ModelProto, shapes: dict[str, list[int]]) -> onnx.ModelProto:
    """The model with static inputs, and what ONNX infers from them."""
    for value in model.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            dim.dim_value = size
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_shape_arithmetic_is_left_that_graphsurgeon_folds(name: str) -> None:
    rows = json.loads(shared_path("models", "manifest.json").read_text())
    row = next(r for r in (rows if isinstance(rows, list) else rows["models"]) if r["name"] == name)
    path = shared_path("models", *row["file"].split("/"))
    model = onnx.load(path)
    model.ir_version = min(model.ir_version, 10)
    folded = surgeon.import_onnx(bound(model, row["input_shapes"]))
    folded.fold_constants(error_ok=False).cleanup()
    theirs = Counter(n.op for n in folded.nodes)
    ours = Counter(n.op.name for n in load(path, inputs=row["input_shapes"]).nodes())
    assert {k: ours[k] for k in SHAPE_ARITHMETIC if ours[k] > theirs[k]} == {}
