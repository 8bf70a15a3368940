"""Networks by other people: imported, exported and compiled results against onnxruntime, MACs against onnx-tool."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest

from compiler.check import verify_model
from compiler.errors import UnsupportedModelError
from compiler.ir.graph import Graph
from compiler.ir.onnx_in import load
from compiler.ir.onnx_out import to_onnx
from tests.shared import ROOT, shared_path

REFUSED = {
    "superres": "inputs without a static type",
    "silero_vad": "control flow: the condition is not constant",
}

# Networks that the outside counter can process and whose products are Conv, Gemm and MatMul only.
COUNTED = (
    "ultraface_slim320 dnsmos_sig dnsmos_bak_ovr oww_melspectrogram oww_embedding yunet_n_320 basic_pitch "
    "ppocr_cls nanodet_m_320 sci_easy mnist_cntk mnist_rten sinet_portrait keypoint_cls ssrnet_age_imdb "
    "minixc_gender mlperftiny_resnet8_cifar10 mlperftiny_vww_mobilenet mlperftiny_ad_autoencoder"
    " mlperftiny_streaming_ww"
).split()


@cache
def manifest() -> dict[str, dict[str, Any]]:
    """Rows of the manifest by network name; empty where the folder is missing."""
    path = ROOT.parent / "shared" / "models" / "manifest.json"
    if not path.exists():
        return {}
    rows = json.loads(path.read_text())
    return {row["name"]: row for row in (rows if isinstance(rows, list) else rows["models"])}


def entry(name: str) -> dict[str, Any]:
    """The manifest row, or skip."""
    shared_path("models", "manifest.json")
    return manifest()[name]


def ranges(row: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Value ranges of inputs for which standard normal values make no sense."""
    return {n: (low, high) for n, (low, high) in row.get("input_ranges", {}).items()}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", sorted(manifest()) or ["none"])
def test_lifted_exported_and_compiled_results_are_right(name: str) -> None:
    row = entry(name)
    path = shared_path("models", *row["file"].split("/"))
    if name in REFUSED:
        with pytest.raises(UnsupportedModelError, match=REFUSED[name]):
            load(path, inputs=row["input_shapes"])
        return
    found = verify_model(path, inputs=row["input_shapes"], ranges=ranges(row))
    assert not [c for c in found.comparisons if not c.right]
    # the exported file's sums are onnxruntime's too: there no decision that is too close to call falls another way
    assert not [c for c in found.comparisons if c.stage == "exported" and c.error > c.limit]
    assert {c.stage for c in found.comparisons} == {"imported", "exported", "compiled"}


def without_biases(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the bias operand of Conv and Gemm left out: the counter counts a bias as a multiply-add."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for node in bare.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            del node.input[2:]
    return bare


def counted_outside(graph: Graph) -> dict[str, int]:
    """Multiply-adds per product node according to onnx-tool."""
    onnx_tool = pytest.importorskip("onnx_tool")
    model = onnx_tool.Model(without_biases(to_onnx(graph)), {"verbose": False})
    model.graph.shape_infer()
    model.graph.profile()
    products = [n.ref.name for n in graph.nodes() if n.op.name in ("Conv", "Gemm", "MatMul")]
    return {n: int(np.sum(model.graph.nodemap[n].macs)) for n in products}


@pytest.mark.parametrize("name", COUNTED)
def test_macs_agree_with_an_outside_counter(name: str) -> None:
    row = entry(name)
    graph = load(shared_path("models", *row["file"].split("/")), inputs=row["input_shapes"])
    ours = {s.node.ref.name: s.node.op.macs(s) for s in graph.sites()}
    outside = counted_outside(graph)
    assert outside
    assert {n: ours[n] for n in outside} == outside
    assert sum(ours.values()) == sum(outside.values())
