"""Graph -> ONNX model at the pinned opset, with tasks and encodings in its metadata, which `load` reads back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import checker, helper, numpy_helper, shape_inference

from compiler.errors import VerifyError, unwritable
from compiler.files import replace_whole
from compiler.ir.encoding import Dense
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.levels import LEVELS_KEY, ORDER_KEY, written, written_order
from compiler.ir.onnx_in import ENCODINGS_KEY, TASKS_KEY
from compiler.ir.onnx_nodes import type_proto
from compiler.ir.op import IR_VERSION, OPSET, make_node
from compiler.ir.types import splat_value

_SPLAT_ELEMENTS = 256


def to_onnx(graph: Graph) -> onnx.ModelProto:
    """The graph as an ONNX model; the same graph gives the same bytes.

    Each value is an output once, in the order of the tasks, those of a portfolio's further levels behind; metadata
    says which task has which. Large splats become ConstantOfShape. Zeros of sparse weights are written out, and
    metadata names their encodings. Sparsity levels are metadata too: tensors are those of level 0.
    VerifyError where ONNX's checker or strict inference refuses the result.
    """
    splats = [v for v in graph.parameters() if _is_large_splat(v)]
    body = helper.make_graph(
        [*map(_splat_node, splats), *(_node(graph, n) for n in graph.nodes())],
        graph.name,
        [_info(v) for v in graph.inputs],
        [_info(v) for v in _outputs(graph)],
        list(_initializers(graph)),
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION, producer_name="taskgraft")
    helper.set_model_props(model, {TASKS_KEY: _tasks(graph), **_encodings(graph), **_levels(graph)})
    _check(model, graph)
    return model


def save(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write the graph as an ONNX file, aside first and then renamed.

    ConfigError where it cannot be written, TargetError where the disk is full.
    """
    target = Path(path)
    data = to_onnx(graph).SerializeToString(deterministic=True)
    try:
        replace_whole(target, data)
    except OSError as error:
        raise unwritable(target, error) from None


def _check(model: onnx.ModelProto, graph: Graph) -> None:
    """Strict inference is left out where an operator knows that ONNX's is wrong."""
    try:
        checker.check_model(model)
        if all(n.op.onnx_infers for n in graph.nodes()):
            shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except (checker.ValidationError, shape_inference.InferenceError, ValueError) as error:
        raise VerifyError(f"graph '{graph.name}' does not make a valid ONNX model: {error}") from None


def _outputs(graph: Graph) -> Iterable[Value]:
    """What tasks return, level 0 first, each value once."""
    further = (graph.value(r) for t in graph.tasks.values() for r in t.returned)
    return dict.fromkeys([*graph.outputs, *further])


def _tasks(graph: Graph) -> str:
    rows: list[list[object]] = []
    for task in graph.tasks.values():
        outputs, *variants = ([r.name for r in level] for level in task.ladder)
        rows.append([task.name, outputs, list(task.labels), *([variants] if variants else [])])
    return json.dumps(rows)


def _encodings(graph: Graph) -> dict[str, str]:
    """The metadata entry of the encodings; none where every parameter is dense."""
    found = {v.ref.name: str(v.type.encoding) for v in graph.parameters() if v.type.encoding != Dense()}
    return {ENCODINGS_KEY: json.dumps(found)} if found else {}


def _levels(graph: Graph) -> dict[str, str]:
    return {key: text for key, text in ((LEVELS_KEY, written(graph)), (ORDER_KEY, written_order(graph))) if text}


def _info(value: Value) -> onnx.ValueInfoProto:
    return helper.make_value_info(value.ref.name, type_proto(value.type))


def _node(graph: Graph, node: Node) -> onnx.NodeProto:
    operands = graph.operands(node)
    reads = [operands.optional(i) for i in range(len(operands))]
    inputs = ["" if v is None else v.ref.name for v in reads]
    outputs = [v.ref.name for v in graph.results(node)]
    return make_node(node.op.name, inputs, outputs, node.attrs, node.ref.name, node.op.domain)


# ---------------------------------------------------------------------- parameters
def _is_large_splat(value: Value) -> bool:
    if value.nested:
        return False
    splat = value.data is not None and value.size > _SPLAT_ELEMENTS and splat_value(value.data) is not None
    return splat and value.type.encoding == Dense()


def _shape_name(value: Value) -> str:
    return f"{value.ref.name}:shape"


def _splat_node(value: Value) -> onnx.NodeProto:
    element = numpy_helper.from_array(np.asarray(splat_value(value.constant)).reshape(1))
    name = value.ref.name
    return helper.make_node("ConstantOfShape", [_shape_name(value)], [name], name=f"{name}:splat", value=element)


def _initializers(graph: Graph) -> Iterator[onnx.TensorProto]:
    for value in graph.parameters():
        if _is_large_splat(value):
            yield numpy_helper.from_array(np.asarray(value.shape, np.int64), _shape_name(value))
        else:
            data = np.ascontiguousarray(value.constant).reshape(value.shape)
            yield numpy_helper.from_array(data, value.ref.name)
