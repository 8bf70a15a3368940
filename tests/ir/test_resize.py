"""Nearest positions of Resize against onnxruntime over many pairs of sizes: ties hang on the last bit."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from onnx import helper, numpy_helper

from compiler.ir.onnx_in import load
from compiler.ir.op import IR_VERSION, OPSET
from compiler.ir.ops.resize import AxisSpec, axis_table
from compiler.ir.reference import evaluate
from tests.ir.onnx_models import noise, parse, run

FRAMES = ["asymmetric", "half_pixel", "half_pixel_symmetric"]
ROUNDINGS = ["floor", "ceil", "round_prefer_ceil", "round_prefer_floor"]


def positions(size: int, out: int, frame: str, rounding: str) -> np.ndarray:
    """Which entry of an axis onnxruntime takes for each result."""
    info = [helper.make_tensor_value_info("x", 1, [1, 1, 1, size])]
    attrs = {"mode": "nearest", "coordinate_transformation_mode": frame, "nearest_mode": rounding}
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], **attrs)
    sizes = numpy_helper.from_array(np.array([1, 1, 1, out], np.int64), "sizes")
    result = [helper.make_tensor_value_info("y", 1, [1, 1, 1, out])]
    body = helper.make_graph([node], "resize", info, result, [sizes])
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    (made,) = run(model, {"x": np.arange(size, dtype=np.float32).reshape(1, 1, 1, size)})
    return made.reshape(-1).astype(int)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("frame", FRAMES)
def test_nearest_positions_are_those_of_onnxruntime(frame: str, rounding: str) -> None:
    attrs = {
        "mode": "nearest",
        "coordinate_transformation_mode": frame,
        "nearest_mode": rounding,
        "antialias": 0,
    }
    different = [
        (size, out)
        for size in range(2, 16)
        for out in range(2, 28)
        if (
            axis_table(attrs, AxisSpec(size, out, out / size)).index[:, 0] != positions(size, out, frame, rounding)
        ).any()
    ]
    assert not different


@pytest.mark.parametrize("opset", [10, 13, 21])
@pytest.mark.parametrize("scales", [(1, 0.7), (1, 2.3), (1.5, 0.7)], ids=str)
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_results_have_as_many_entries_as_float32_counts(mode: str, scales: tuple[float, float], opset: int) -> None:
    """10 * 0.7 is 7 in float32, as onnxruntime multiplies, though 0.7 is 0.69999999 there."""
    region = "" if opset == 10 else "r, "
    roi = "" if opset == 10 else "float[0] r = {}, "
    height, width = scales
    model = parse(
        f"""resize (float[1,1,5,10] x) => (float[1,1,h,w] y)
            <{roi}float[4] s = {{1, 1, {height}, {width}}}> {{ y = Resize <mode = "{mode}"> (x, {region}s) }}""",
        opset,
    )
    graph, x = load(model), noise((1, 1, 5, 10))
    (found,) = evaluate(graph, {"x": x}).values()
    (expected,) = run(model, {"x": x})
    assert found.shape == expected.shape == graph.outputs[0].shape
    assert found == pytest.approx(expected, abs=1e-5)


def test_an_axis_that_stays_takes_no_square_of_memory() -> None:
    attrs = {
        "mode": "linear",
        "coordinate_transformation_mode": "half_pixel",
        "antialias": 0,
        "exclude_outside": 0,
        "cubic_coeff_a": -0.75,
    }
    size = 4096
    stays, moves = (axis_table(attrs, AxisSpec(size, size, scale)) for scale in (1.0, 1.04))
    tracemalloc.start()
    try:
        assert (stays.copies(size), moves.copies(size)) == (True, False)
        assert tracemalloc.get_traced_memory()[1] < size * size
    finally:
        tracemalloc.stop()
