"""From a trained network to an ONNX file, and what can be measured on that file."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper, shape_inference
from torch import nn

from models.training.fit import Inputs
from models.training.tasks import Labels

OPSET = 17


@dataclass(frozen=True)
class Interface:
    """Names of a network's input and output, and the input's shape with batch 1."""

    input: str
    output: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Size:
    """Parameters (every weight the file stores) and multiply-accumulates of one inference."""

    parameters: int
    macs: int


def export_onnx(net: nn.Module, path: Path, interface: Interface, keep_batch_norm: bool) -> None:
    """Write ``net`` as ONNX with batch 1, batch normalizations as nodes or folded into the convolutions."""
    net.eval().to(memory_format=torch.contiguous_format)
    mode = torch.onnx.TrainingMode.PRESERVE if keep_batch_norm else torch.onnx.TrainingMode.EVAL
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (torch.zeros(interface.shape),),
            str(path),
            input_names=[interface.input],
            output_names=[interface.output],
            opset_version=OPSET,
            training=mode,
            dynamo=False,
        )
    onnx.checker.check_model(onnx.load(path), full_check=True)


def rename_internals(path: Path, prefix: str) -> None:
    """Rename every node, weight and intermediate tensor of the file to ``prefix`` and a running number."""
    model = onnx.load(path)
    graph = model.graph
    graph.name = prefix
    names: dict[str, str] = {str(value.name): str(value.name) for value in (*graph.input, *graph.output)}

    def renamed(name: str) -> str:
        return names.setdefault(name, f"{prefix}_t{len(names)}") if name else ""

    for index, node in enumerate(graph.node):
        node.name = f"{prefix}_op{index}"
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)
    del graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def predict_onnx(path: Path, inputs: Inputs) -> Labels:
    """Return the class that the ONNX file predicts for each of the inputs [n, 1, h, w], one at a time."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    logits = [session.run(None, {name: inputs[index : index + 1]})[0] for index in range(len(inputs))]
    predicted: Labels = np.concatenate(logits).argmax(1).astype(np.int64)
    return predicted


def measure_size(path: Path) -> Size:
    """Count the parameters and the multiply-accumulates of Conv and Gemm nodes."""
    graph = shape_inference.infer_shapes(onnx.load(path)).graph
    weights = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    values = {value.name: value for value in (*graph.value_info, *graph.output)}
    macs = 0
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        dims = [dim.dim_value for dim in values[node.output[0]].type.tensor_type.shape.dim]
        positions = math.prod(dims[2:])  # 1 for Gemm: a weight is used once per output position
        macs += weights[node.input[1]] * positions
    return Size(sum(weights.values()), macs)


def weight_bytes(path: Path) -> set[bytes]:
    """Return the raw contents of the file's floating-point weights."""
    arrays = (numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer)
    return {array.tobytes() for array in arrays if array.dtype == np.float32}
