"""One operator in implementations that are not ours."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from onnx.reference import ReferenceEvaluator

from compiler.ir.graph import Site
from compiler.ir.op import IR_VERSION, OPSET, to_onnx_node


def one_node_model(site: Site) -> onnx.ModelProto:
    """The site as a checked ONNX model whose operands are all graph inputs, except constants."""
    names = ["" if site.operands.optional(i) is None else f"i{i}" for i in range(len(site.operands))]
    outputs = [f"o{i}" for i in range(len(site.results))]

    def info(name: str, value) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype.numpy), value.shape)

    constants = [
        onnx.numpy_helper.from_array(np.asarray(v.data, order="C"), f"i{i}")
        for i, v in site.operands.present()
        if v.data is not None
    ]
    body = helper.make_graph(
        [to_onnx_node(site.node, names, outputs)],
        "one",
        [info(f"i{i}", v) for i, v in site.operands.present() if v.data is None],
        [info(o, v) for o, v in zip(outputs, site.results, strict=True)],
        constants,
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=site.node.op.onnx_infers)
    return model


def by_onnxruntime(site: Site, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The results as onnxruntime computes them, unoptimised; `feeds` by input name i0, i1..."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    text = one_node_model(site).SerializeToString()
    return onnxruntime.InferenceSession(text, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def by_onnx_reference(site: Site, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The results as the ONNX reference implementation computes them; `feeds` by input name i0, i1..."""
    return ReferenceEvaluator(one_node_model(site)).run(None, feeds)


def assert_close(got: np.ndarray, want: np.ndarray, limit: float, where: str) -> None:
    """Equal type, shape and values, relative to the largest finite element; NaN and infinity at the same places."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{where}: shape {got.shape}, expected {want.shape}"
    assert got.dtype == want.dtype, f"{where}: type {got.dtype}, expected {want.dtype}"
    if got.dtype.kind != "f":
        assert np.array_equal(got, want), f"{where}: {got}, expected {want}"
        return
    finite = np.isfinite(want)
    assert np.array_equal(np.isfinite(got), finite), f"{where}: not finite at other places"
    assert np.array_equal(got[~finite], want[~finite], equal_nan=True), f"{where}: other infinities"
    scale = max(float(np.abs(want[finite]).max(initial=0)), 1e-30)
    worst = float(np.abs(got[finite].astype(np.float64) - want[finite]).max(initial=0)) / scale
    assert worst <= limit, f"{where}: differs by {worst:.1e} of scale (limit {limit:.0e})"
