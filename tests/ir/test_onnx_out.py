"""Export: deterministic, valid, read back as the same graph."""

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest

from compiler.errors import ConfigError, UnsafeInputError, VerifyError
from compiler.ir.encoding import BlockSparse, RegularBlock, Unstructured
from compiler.ir.graph import Graph
from compiler.ir.onnx_in import ENCODINGS_KEY, TASKS_KEY, load
from compiler.ir.onnx_out import save, to_onnx
from compiler.ir.op import IR_VERSION, OPSET, operator
from compiler.ir.reference import evaluate
from compiler.ir.text import digest, signature, text
from compiler.ir.types import DType, TensorType, ValueRef
from tests.graphs import Builder
from tests.ir.onnx_models import noise, parse, run
from tests.sparse import sparse_weight


def two_tasks() -> Graph:
    """Two tasks over a shared trunk, one value in both, an optional operand left out, a large splat."""
    graph = Graph("both")
    f32 = DType.FLOAT32
    x = graph.add_input("x", TensorType(f32, (20, 30)))
    top = graph.add_parameter("top", np.asarray(0.5, np.float32))
    half = graph.add_value("half", TensorType(f32, (20, 30)), np.broadcast_to(np.float32(2), (20, 30)))
    for name in ("trunk", "scaled", "out"):
        graph.add_value(name, TensorType(f32, (20, 30)))
    graph.add_node("clip", operator("Clip"), {}, [x.ref, None, top.ref], [ValueRef("trunk")])
    graph.add_node("mul", operator("Mul"), {}, [ValueRef("trunk"), half.ref], [ValueRef("scaled")])
    graph.add_node("relu", operator("Relu"), {}, [ValueRef("trunk")], [ValueRef("out")])
    graph.set_task("one", [ValueRef("scaled"), ValueRef("trunk")], ["probability", "trunk"])
    graph.set_task("two", [ValueRef("out"), ValueRef("trunk")], ["score", "features"])
    return graph


def test_pinned_versions_and_metadata():
    model = to_onnx(two_tasks())
    assert model.ir_version == IR_VERSION
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    assert [p.key for p in model.metadata_props] == [TASKS_KEY]
    assert [o.name for o in model.graph.output] == ["scaled", "trunk", "out"]
    onnx.checker.check_model(model, full_check=True)


def test_read_back_is_the_same_graph():
    graph = two_tasks()
    again = load(to_onnx(graph))
    assert digest(again) == digest(graph)
    assert dict(again.tasks) == dict(graph.tasks)
    assert again.name == "both"


def test_a_splat_is_not_written_out_and_computes():
    model = to_onnx(two_tasks())
    assert [n.op_type for n in model.graph.node].count("ConstantOfShape") == 1
    assert all(t.raw_data == b"" or len(t.raw_data) < 100 for t in model.graph.initializer)
    x = noise((20, 30))
    scaled, trunk, out = run(model, {"x": x})
    assert np.array_equal(trunk, np.minimum(x, np.float32(0.5)))
    assert np.array_equal(scaled, 2 * trunk)
    assert np.array_equal(out, np.maximum(trunk, 0))


def test_same_bytes_from_another_process_and_insertion_order(tmp_path):
    model = parse("net (float[2,3] x) => (float[2,3] z) { b = Exp(x) a = Abs(x) z = Add(a, b) }")
    first = to_onnx(load(model)).SerializeToString(deterministic=True)
    swapped = onnx.ModelProto.FromString(model.SerializeToString())
    nodes = [model.graph.node[i] for i in (1, 0, 2)]
    del swapped.graph.node[:]
    swapped.graph.node.extend(nodes)
    assert to_onnx(load(swapped)).SerializeToString(deterministic=True) == first
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    code = (
        "import sys, hashlib; from compiler.ir.onnx_in import load; from compiler.ir.onnx_out import to_onnx;"
        "g = load(sys.argv[1], task='net');"
        "print(hashlib.sha256(to_onnx(g).SerializeToString(deterministic=True)).hexdigest())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code, path],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


def test_empty_attribute_lists_survive():
    model = parse("net (float[2,3] x) => (float[2,3] z) { z = Transpose <perm = [0, 1]> (x) }")
    assert digest(load(to_onnx(load(model)))) == digest(load(model))


def test_save_replaces_the_file_at_once(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    save(two_tasks(), path)
    assert digest(load(path)) == digest(two_tasks())
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_save_into_a_missing_folder_leaves_nothing(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        save(two_tasks(), tmp_path / "none" / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_is_not_valid_onnx_is_our_defect():
    graph = two_tasks()
    graph.update(ValueRef("out"), type=TensorType(DType.FLOAT32, (20, 31)))
    with pytest.raises(VerifyError, match="graph 'both' does not make a valid ONNX model"):
        to_onnx(graph)


# ---------------------------------------------------------------------- encodings
ENCODINGS = [BlockSparse(), RegularBlock(sizes=(4, 8) * 16), RegularBlock(0, 1, (16,)), Unstructured()]


def sparse_net(encoding) -> Graph:
    b = Builder()
    weight = sparse_weight(b.graph, encoding, (32, 8, 3, 3))
    b.task("t", b.apply("Conv", b.input("x", 1, 8, 6, 6), weight))
    return b.done()


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_sparse_weights_are_zeros_with_a_metadata_entry(encoding):
    graph = sparse_net(encoding)
    model = to_onnx(graph)
    assert [p.key for p in model.metadata_props] == [TASKS_KEY, ENCODINGS_KEY]
    assert json.loads(model.metadata_props[1].value) == {"sparse": str(encoding)}
    assert np.array_equal(onnx.numpy_helper.to_array(model.graph.initializer[0]), graph.parameters()[0].constant)
    again = load(model)
    assert digest(again) == digest(graph)
    assert again.parameters()[0].type == graph.parameters()[0].type
    x = noise((1, 8, 6, 6))
    assert np.allclose(run(model, {"x": x})[0], evaluate(graph, {"x": x})["conv:0"], atol=1e-5)


def test_digest_and_text_tell_encodings_apart():
    graph = sparse_net(BlockSparse())
    dense = graph.copy()
    dense.update(ValueRef("sparse"), type=TensorType(DType.FLOAT32, (32, 8, 3, 3)))
    assert digest(dense) != digest(graph)
    assert 'parameter %"sparse": float32[32,8,3,3] block16x1/0 = ' in text(graph)
    assert signature(next(dense.sites())) != signature(next(graph.sites()))


def test_an_encoded_splat_is_written_out():
    graph = sparse_net(BlockSparse()).copy()
    zeros = np.broadcast_to(np.float32(0), (32, 8, 3, 3))
    graph.update(ValueRef("sparse"), data=zeros)
    assert digest(load(to_onnx(graph))) == digest(graph)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("[]", "cannot be used"),
        ("{", "cannot be used"),
        ('{"sparse": 3}', "cannot be used"),
        ('{"sparse": "block"}', "'block' is not an encoding; the forms are dense, block16x1/ROWS"),
        ('{"other": "dense"}', "there is no initializer 'other'; remove it to load all weights dense"),
        ('{"sparse": "regular16/0,1"}', "'sparse': regular16/0,1: row 0 has more than one non-zero element"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(entry, reason):
    model = to_onnx(sparse_net(BlockSparse()))
    model.metadata_props[1].value = entry
    with pytest.raises(UnsafeInputError, match=f"metadata '{ENCODINGS_KEY}'.*{reason}"):
        load(model)


def test_an_encoded_constant_that_is_an_output_is_computed_dense():
    model = to_onnx(sparse_net(BlockSparse()))
    model.graph.output.add().CopyFrom(onnx.helper.make_tensor_value_info("sparse", 1, (32, 8, 3, 3)))
    del model.metadata_props[0]
    graph = load(model)
    assert [str(v.type.encoding) for v in graph.outputs] == ["dense", "dense"]
