"""Names of cases, what is in them, and the file every contender gets."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import __main__, dense
from benchmarks.cases import Case, generated, layers, prepare, real, static
from benchmarks.networks import Net
from benchmarks.settings import chosen
from benchmarks.speed_networks import DIRECT_SHAPES, SPEED_NETWORKS
from compiler.ir.onnx_in import load

NAMES = "resnet18 resnet50 vgg16-224 vgg16-32 mobilenetv2 lenet mlp lstm-tagger attention encoder".split()


def test_the_names_others_rely_on():
    assert list(generated()) == NAMES
    assert "dense" in __main__.STUDIES


def test_fifteen_direct_shapes():
    assert len(layers()) == len(DIRECT_SHAPES) == 15
    assert "conv3x3-128-128@28" in layers()


@pytest.mark.parametrize(
    ("name", "nodes", "parameters"),
    [("resnet18", {"Conv": 20, "BatchNormalization": 20}, 11.7e6), ("mobilenetv2", {"Conv": 52}, 3.5e6)],
)
def test_networks_are_the_usual_ones(name, nodes, parameters):
    model = SPEED_NETWORKS[name]()
    kinds = [n.op_type for n in model.graph.node]
    assert {kind: kinds.count(kind) for kind in nodes} == nodes
    assert sum(np.prod(t.dims) for t in model.graph.initializer) == pytest.approx(parameters, rel=0.02)


def old_style():
    """A free batch axis, and the weight listed as an input."""
    weight = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    value = helper.make_tensor_value_info
    inputs = [value("x", TensorProto.FLOAT, ["n", 3]), value("w", TensorProto.FLOAT, [3, 2])]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", inputs, [value("y", TensorProto.FLOAT, ["n", 2])], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_every_contender_gets_static_shapes_and_constant_weights():
    model = static(old_style(), {"x": (1, 3)})
    assert [i.name for i in model.graph.input] == ["x"]
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3]
    onnx.checker.check_model(model, full_check=True)
    assert load(model).inputs[0].shape == (1, 3)


def test_real_networks_come_from_a_manifest(tmp_path):
    assert real(tmp_path) == {}
    onnx.save(old_style(), tmp_path / "old.onnx")
    row = {"name": "fam/old", "file": "old.onnx", "input_shapes": {"x": [1, 3]}, "input_ranges": {"x": [5, 6]}}
    (tmp_path / "manifest.json").write_text(json.dumps([row]))
    found = real(tmp_path)
    assert list(found) == ["real:fam/old"]
    ready = prepare(found["real:fam/old"], tmp_path)
    assert ready.feeds["x"].shape == (1, 3) and 5 <= ready.feeds["x"].min() <= ready.feeds["x"].max() <= 6
    assert load(ready.file).inputs[0].shape == (1, 3)


def test_a_prepared_file_is_used_again_and_another_recipe_makes_another(tmp_path):
    made = []

    def model():
        made.append(1)
        net = Net("tiny", (1, 4))
        return net.model(net.gemm("x", 2))

    first = prepare(Case("tiny", model, "recipe 1"), tmp_path)
    again = prepare(Case("tiny", model, "recipe 1"), tmp_path)
    other = prepare(Case("tiny", model, "recipe 2"), tmp_path)
    assert first.file == again.file != other.file and len(made) == 2
    assert {n: a.tolist() for n, a in first.feeds.items()} == {n: a.tolist() for n, a in again.feeds.items()}


def test_choosing_by_pattern():
    assert chosen((), NAMES) == NAMES
    assert chosen(("mlp", "vgg*"), NAMES) == ["vgg16-224", "vgg16-32", "mlp"]
    with pytest.raises(SystemExit, match="no case resnet19; there are resnet18"):
        chosen(("resnet19",), NAMES)


def test_an_unknown_peer_is_refused():
    with pytest.raises(SystemExit, match="no peer tensorrt"):
        dense.main(["--peers", "tensorrt"])
