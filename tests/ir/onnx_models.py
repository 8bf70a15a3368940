"""ONNX models written as text, and what onnxruntime makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from compiler.ir.onnx_in import load
from compiler.ir.onnx_out import to_onnx


def parse(text: str, opset: int = 21, ir_version: int = 10) -> onnx.ModelProto:
    """A model from the text of its graph."""
    return onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n{text}')


def run(model: onnx.ModelProto | Path, feeds: dict[str, np.ndarray], optimise: bool = True) -> list[np.ndarray]:
    """All outputs, by onnxruntime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def outputs_by_label(model: onnx.ModelProto, graph, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of an exported graph under the names its source model gave them."""
    found = dict(zip([o.name for o in model.graph.output], run(model, feeds), strict=True))
    return {
        label: found[ref.name]
        for task in graph.tasks.values()
        for ref, label in zip(task.outputs, task.labels, strict=True)
    }


def noise(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> np.ndarray:
    """Standard normal numbers of a type."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def assert_same_outputs(model: onnx.ModelProto, feeds: dict[str, np.ndarray], limit: float = 1e-6) -> None:
    """The exported import computes what the model computes."""
    graph = load(model)
    got = outputs_by_label(to_onnx(graph), graph, feeds)
    want = run(model, feeds)
    for info, expected in zip(model.graph.output, want, strict=True):
        found = got[info.name]
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype), info.name
        scale = max(float(np.abs(expected).max(initial=0)), 1e-30)
        assert float(np.abs(found.astype(np.float64) - expected).max(initial=0)) <= limit * scale, info.name
