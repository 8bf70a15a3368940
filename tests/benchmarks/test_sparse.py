"""Names of sparse cases and what is in their files."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks import sparse
from benchmarks.networks import Net
from benchmarks.rows import Row
from benchmarks.sparse_cases import IR_VERSION, OPSET, cases, dense_twin, rescaled, sparse_model
from compiler import load
from compiler.ir.encoding import BlockSparse, Dense
from compiler.pipeline import parse


def small():
    net = Net("small", (1, 32, 6, 6))
    return net.model(net.conv(net.relu(net.conv("x", 32)), 32, 1))


@pytest.mark.parametrize(
    "name",
    [
        "layer3x3-block16x1-0.75",
        "layer1x1-block16x1-0.95",
        "resnet18-block16x1-0.90",
        "vgg16-32-block16x1-0.90",
        "resnet18-regular16",
        "vgg16-32-regular16",
        "fc4096-regular16",
        "fc4096-regular16-cold",
        "lstm-tagger-regular16",
        "lstm-tagger-darb-0.90",
    ],
)
def test_the_names_others_rely_on(name):
    assert name in cases()


def test_every_pattern_is_one_that_the_pass_knows():
    for case in cases().values():
        (spec,) = case.case.model.args[1:]
        parse(spec)
        assert ("dense=()" in spec) == case.whole


def weights(model):
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return {n: a for n, a in arrays.items() if a.ndim == 4}


def test_a_sparse_file_is_read_by_old_engines_and_keeps_energy_and_encoding(tmp_path):
    model = sparse_model(small, "sparsify{pattern=block16x1,sparsity=0.75,dense=()}")
    onnx.checker.check_model(model, full_check=True)
    assert (model.opset_import[0].version, model.ir_version) == (OPSET, IR_VERSION)
    dense = weights(small())
    for name, array in weights(model).items():
        assert np.mean(array == 0) == pytest.approx(0.75, abs=0.02)
        (same,) = (d for d in dense.values() if d.shape == array.shape)
        assert np.linalg.norm(array) == pytest.approx(np.linalg.norm(same), rel=1e-5), name
    onnx.save(model, tmp_path / "sparse.onnx")
    twin = dense_twin(tmp_path / "sparse.onnx")

    def encodings(file):
        return [type(v.type.encoding) for v in load(file).parameters() if len(v.shape) == 4]

    assert encodings(tmp_path / "sparse.onnx") == [BlockSparse, BlockSparse]
    assert encodings(twin) == [Dense, Dense]
    assert {n: a.tolist() for n, a in weights(onnx.load(twin)).items()} == {
        n: a.tolist() for n, a in weights(model).items()
    }


def test_weights_that_did_not_change_are_not_scaled():
    first, second = small(), small()
    assert rescaled(first, second) == small()


def test_cold_cases_show_the_cold_times():
    row = sparse.cold(Row("fc", "p", 1.0, 2.0, 2.0, cold_ours_ms=3.0, cold_peer_ms=60.0, cold_ratio=20.0))
    assert (row.case, row.ours_ms, row.peer_ms, row.ratio) == ("fc-cold", 3.0, 60.0, 20.0)
    assert "cold_ratio" not in row.record()
    assert sparse.cold(Row("fc", "p", error="no")).record()["error"] == "no"
