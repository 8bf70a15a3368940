"""Tiny ONNX files for tests of commands and releases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RELEASE = """
schema = 1
name = "pair"
output = "dist"
[input.image]
shape = [1, 3, 8, 8]
[tasks.a]
model = "a.onnx"
[tasks.b]
model = "b.onnx"
input = "pixels"
adapter = [{ scale = 2.0 }]
[calibration]
data = "data.npz"
[evaluation]
data = "data.npz"
metric = { a = "accuracy", b = "mae" }
[passes]
pipeline = ["fold-constants", "fold-batch-norm", "remove-dead-code", "deduplicate"]
[gates]
max_output_drift = 1e-4
"""


def network(name: str, outputs: int, seed: int = 0, channels: int = 4) -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu, global mean, Gemm: `name` [1, 3, 8, 8] -> `scores` [1, outputs]."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (channels, 3, 3, 3), "v": (outputs, channels), "c": (outputs,)}
    data = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    data |= {k: rng.uniform(0.5, 2, channels).astype(np.float32) for k in ("scale", "shift", "mean", "var")}
    nodes = [
        helper.make_node("Conv", [name, "w"], ["y1"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("BatchNormalization", ["y1", "scale", "shift", "mean", "var"], ["y2"], name="bn"),
        helper.make_node("Relu", ["y2"], ["y3"], name="relu"),
        helper.make_node("GlobalAveragePool", ["y3"], ["y4"], name="pool"),
        helper.make_node("Flatten", ["y4"], ["y5"], name="flat"),
        helper.make_node("Gemm", ["y5", "v", "c"], ["scores"], transB=1, name="head"),
    ]
    return model(nodes, {name: (1, 3, 8, 8)}, {"scores": (1, outputs)}, data)


def model(nodes, inputs, outputs, data=None) -> onnx.ModelProto:
    """A model of float32 tensors at opset 17."""
    infos = [
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in group.items()]
        for group in (inputs, outputs)
    ]
    constants = [numpy_helper.from_array(np.asarray(v), k) for k, v in (data or {}).items()]
    graph = helper.make_graph(nodes, "net", *infos, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_release(folder: Path, text: str = RELEASE) -> Path:
    """Two networks (one behind an adapter), labelled data, and the release file; returns its path."""
    onnx.save(network("image", 3), folder / "a.onnx")
    onnx.save(network("pixels", 1, seed=1), folder / "b.onnx")
    rng = np.random.default_rng(5)
    data = {"image": rng.normal(size=(12, 3, 8, 8)), "a": rng.integers(0, 3, 12), "b": rng.normal(size=(12, 1))}
    np.savez(folder / "data.npz", **{k: v.astype(np.float32 if k != "a" else np.int64) for k, v in data.items()})
    path = folder / "release.toml"
    path.write_text(text)
    return path
