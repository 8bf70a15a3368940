"""What the steps of an input adapter mean, in numpy and onnxruntime: a second opinion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from compiler.calibration.engine import Engine

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def adapted(array: np.ndarray, steps: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """`array`, an image in NCHW or any tensor, after every step."""
    layout = "NCHW"
    bgr = False
    for step in steps:
        channel = (1 if layout == "NCHW" else array.ndim - 1) if array.ndim == 4 else 0
        if "cast" in step:
            array = array.astype(step["cast"])
        elif "layout" in step and step["layout"] != layout:
            array, layout = array.transpose(0, 2, 3, 1), step["layout"]
        elif "bgr" in step:
            array, bgr = np.flip(array, channel), not bgr
        elif "gray" in step:
            luma = LUMA[::-1] if bgr else LUMA
            weights = luma if step["gray"] is True else np.array(step["gray"], np.float32)
            array = np.expand_dims(np.tensordot(array, weights, (channel, 0)), channel)
        elif "resize" in step:
            array = _resized(array, step)
        else:
            array = _scaled(array, step, channel)
    return np.ascontiguousarray(array)


def _scaled(array: np.ndarray, step: Mapping[str, Any], channel: int) -> np.ndarray:
    def shaped(value: object) -> np.ndarray:
        values = np.asarray(value, array.dtype)
        return (
            values if values.ndim == 0 else np.expand_dims(values, [i for i in range(array.ndim) if i != channel])
        )

    return array * shaped(step.get("scale", 1.0)) + shaped(step.get("offset", 0.0))


def _resized(array: np.ndarray, step: Mapping[str, Any]) -> np.ndarray:
    """By onnxruntime, half-pixel centres."""
    shape = (*array.shape[:2], *step["resize"])
    if shape == array.shape:
        return array
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode=step.get("mode", "linear"))
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", array.shape), ("y", shape))]
    sizes = numpy_helper.from_array(np.array(shape, np.int64), "sizes")
    graph = helper.make_graph([node], "resize", infos[:1], infos[1:], [sizes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Engine(model, optimise=False).run({"x": array})["y"]
