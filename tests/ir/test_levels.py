"""Sparsity levels of a graph: nested by construction, in files, and one by one."""

from __future__ import annotations

import base64
import itertools
import json
import zlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx
import pytest

from compiler import load, to_onnx, union
from compiler.errors import ConfigError, UnsafeInputError, VerifyError
from compiler.ir.encoding import BlockSparse, Dense, Unstructured
from compiler.ir.graph import Graph
from compiler.ir.levels import LEVELS_KEY, ORDER_KEY, at_level, level_count
from compiler.ir.reference import evaluate, random_feeds
from compiler.ir.text import digest
from compiler.ir.types import DType, TensorType, ValueRef
from compiler.ir.verify import verify
from tests.graphs import Builder
from tests.sparse import fitted

BLOCKS = BlockSparse(0, (4, 1))


def levelled(seed: int = 0) -> Graph:
    """A convolution with three levels of weights and of biases, and a plain one."""
    b = Builder(seed=seed)
    w = fitted(BLOCKS, (10, 6, 3, 3), 0.8, seed) + np.float32(0)  # no negative zeros
    ranks = b.rng.integers(1, 4, BLOCKS.alive(w).shape)
    sparser = [BLOCKS.of_rank(w, ranks, least) for least in (2, 3)]
    weight = b.graph.add_value("w", TensorType(DType.FLOAT32, w.shape, BLOCKS), w, sparser).ref
    bias = b.graph.add_value("b", TensorType(DType.FLOAT32, (10,)), *_biases(b)).ref
    y = b.apply("Conv", b.input("x", 1, 6, 5, 5), weight, bias)
    b.task("t", b.conv(b.apply("Relu", y), 4, 3))
    return b.done()


def _biases(b: Builder) -> tuple[np.ndarray, list[np.ndarray]]:
    first, *others = (b.rng.normal(size=10).astype(np.float32) for _ in range(3))
    return first, others


@hypothesis.given(
    rows=st.integers(2, 20),
    inputs=st.integers(1, 6),
    height=st.sampled_from([2, 4, 8]),
    levels=st.integers(2, 5),
    axis=st.integers(0, 1),
    seed=st.integers(0, 2**16),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_ranks_say_which_levels_store_a_block(
    rows: int, inputs: int, height: int, levels: int, axis: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    form = BlockSparse(axis, (height, 1))
    data = fitted(form, (inputs, rows) if axis else (rows, inputs), 0.7, seed) + np.float32(0)
    ranks = rng.integers(1, levels + 1, form.alive(data).shape).astype(np.uint8) * form.alive(data)
    made = [form.of_rank(data, ranks, least) for least in range(1, levels + 1)]
    assert np.array_equal(form.ranks(made), ranks)
    for denser, sparser in itertools.pairwise(made):
        form.check_level(denser, sparser)
        kept = sparser != 0
        assert np.array_equal(sparser[kept], denser[kept])


@pytest.mark.parametrize("change", ["value", "sign of zero", "negative zeros", "part of a block", "grown"])
def test_levels_that_are_not_nested_are_refused(change: str) -> None:
    data = np.ones((8, 3), np.float32)
    sparser = data.copy()
    sparser[:4, 0] = 0
    if change == "value":
        sparser[5, 1] = 2
    elif change == "sign of zero":
        data[5, 1], sparser[5, 1] = 0.0, -0.0
    elif change == "negative zeros":
        sparser[:4, 0] = -0.0
    elif change == "part of a block":
        sparser[5, 1] = 0
    else:
        data[:4, 0] = 0
        sparser[:4, 0] = 1
    with pytest.raises(VerifyError, match=r"'w', level 1: \d+ weights are neither"):
        Graph().add_value("w", TensorType(DType.FLOAT32, (8, 3), BLOCKS), data, [sparser])


@pytest.mark.parametrize("encoding", [Dense(), Unstructured()], ids=str)
def test_only_blocks_and_vectors_have_levels(encoding: Dense | Unstructured) -> None:
    data = np.ones((8, 3), np.float32)
    with pytest.raises(VerifyError, match=r"have no levels|has no levels"):
        Graph().add_value("w", TensorType(DType.FLOAT32, (8, 3), encoding), data, [data])


def test_new_data_do_not_silently_lose_levels() -> None:
    graph = levelled().copy()
    with pytest.raises(VerifyError, match="'w': has 2 sparser levels; new data would lose them"):
        graph.update(ValueRef("w"), data=graph.value(ValueRef("w")).constant)
    graph.update(ValueRef("w"), data=graph.value(ValueRef("w")).constant, sparser=())
    with pytest.raises(VerifyError, match="only a parameter has levels"):
        graph.add_value("y", TensorType(DType.FLOAT32, (1,)), None, [np.zeros(1, np.float32)])


def test_all_parameters_have_as_many_levels() -> None:
    graph = levelled().copy()
    bias = graph.value(ValueRef("b"))
    graph.update(bias.ref, type=bias.type, data=bias.constant, sparser=bias.sparser[:1])
    with pytest.raises(VerifyError, match="'b': has 2 levels, another one has 3"):
        verify(graph)


def test_each_level_is_a_network_of_its_own() -> None:
    graph = levelled()
    feeds = random_feeds(graph, np.random.default_rng(0))
    assert level_count(graph) == 3
    outputs = []
    for level in range(3):
        nested, alone = at_level(graph, level), at_level(graph, level, alone=True)
        assert (level_count(nested), level_count(alone)) == (3 - level, 1)
        (name,) = (v.ref.name for v in graph.outputs)
        outputs.append(evaluate(nested, feeds)[name])
        assert np.array_equal(outputs[-1], evaluate(alone, feeds)[name])
        verify(nested)
    assert not np.array_equal(outputs[0], outputs[1])
    assert digest(at_level(at_level(graph, 1), 1)) == digest(at_level(graph, 2))
    with pytest.raises(ConfigError, match="no level 3; graph 'net' has levels 0 to 2"):
        at_level(graph, 3)


def test_the_digest_covers_every_level() -> None:
    graph = levelled()
    other = graph.copy()
    bias = graph.value(ValueRef("b"))
    last = bias.sparser[1] + np.float32(1)
    other.update(bias.ref, type=bias.type, data=bias.constant, sparser=(bias.sparser[0], last))
    assert digest(other) != digest(graph)
    assert digest(at_level(other, 0, alone=True)) == digest(at_level(graph, 0, alone=True))


def test_levels_survive_union_and_files() -> None:
    graph = levelled()
    joined = union({"a": graph, "b": levelled(1)}, input="x")
    assert level_count(joined) == 3
    back = load(to_onnx(joined))
    assert digest(back) == digest(joined)


def damaged(change: str) -> onnx.ModelProto:
    model = to_onnx(levelled())
    (entry,) = (p for p in model.metadata_props if p.key == LEVELS_KEY)
    record = json.loads(entry.value)
    ranks = base64.b64decode(record["ranks"]["w"])
    if change == "bomb":
        record["values"]["b"] = base64.b64encode(zlib.compress(bytes(1 << 22))).decode()
    elif change == "short":
        record["ranks"]["w"] = base64.b64encode(zlib.compress(zlib.decompress(ranks)[:-1])).decode()
    elif change == "bits":
        record["ranks"]["w"] = base64.b64encode(ranks[:4] + b"?" + ranks[5:]).decode()
    elif change == "name":
        record["ranks"]["nothing"] = record["ranks"].pop("w")
    elif change == "matrix":
        record["values"]["w"] = record["values"].pop("b")
    else:
        record["count"] = {"count": 99, "text": "3"}[change]
    entry.value = json.dumps(record) if change != "json" else "{"
    return model


@pytest.mark.parametrize("change", ["bomb", "short", "bits", "name", "matrix", "count", "text"])
def test_damaged_levels_in_files_are_refused(change: str) -> None:
    with pytest.raises(UnsafeInputError, match=f"metadata '{LEVELS_KEY}' cannot be used"):
        load(damaged(change))


def test_a_level_alone_keeps_its_order_in_unions_and_files() -> None:
    for level in range(3):
        alone = at_level(levelled(), level, alone=True)
        weight, bias = (alone.value(ValueRef(name)) for name in "wb")
        assert (len(weight.order), len(bias.order)) == (max(1, 2 - level), 1)
        assert np.array_equal(weight.order[-1], levelled().value(weight.ref).sparser[1])
        assert np.array_equal(bias.order[0], bias.constant), "nothing of the biases of other levels"
        assert digest(at_level(alone, 0)) == digest(at_level(alone, 0, alone=True)) == digest(alone)
        joined = union({"a": alone, "b": levelled(1)}, input="x")
        assert level_count(alone) == 1 and level_count(joined) == 3
        assert digest(load(to_onnx(joined))) == digest(joined)
        assert ORDER_KEY in {p.key for p in to_onnx(joined).metadata_props}


def test_an_order_belongs_to_the_bits_of_its_level() -> None:
    graph = levelled()
    alone, free = at_level(graph, 0, alone=True).copy(), at_level(graph, 0, alone=True, order=False)
    assert digest(alone) != digest(free)
    assert digest(at_level(alone, 0, order=False)) == digest(free)
    weight = alone.value(ValueRef("w"))
    alone.update(weight.ref, type=weight.type)
    assert alone.value(weight.ref).order
    alone.update(weight.ref, data=weight.constant * np.float32(2))
    assert not alone.value(weight.ref).order
    with pytest.raises(VerifyError, match="'v': has levels of its own; an order is for what was taken from levels"):
        alone.add_value("v", weight.type, weight.constant, [weight.constant], [weight.constant])


def test_the_longest_order_of_all_survives_a_file() -> None:
    b = Builder()
    data = np.ones((4, 16), np.float32)
    levels = [np.where(np.arange(16) < kept, data, 0).astype(np.float32) for kept in range(15, 0, -1)]
    w = b.graph.add_value("w", TensorType(DType.FLOAT32, data.shape, BLOCKS), data, levels).ref
    b.task("t", b.apply("Gemm", b.input("x", 1, 16), w, transB=1))
    alone = at_level(b.done(), 0, alone=True)
    assert len(alone.value(w).order) == 15
    assert digest(load(to_onnx(alone))) == digest(alone)
    longer = alone.copy()
    longer.update(w, order=[data] * 16)
    with pytest.raises(VerifyError, match="'w': has an order of 16 levels; 15 are the most"):
        verify(longer)


@pytest.mark.parametrize(
    "change", ["{", "{}", '[{"count": 1, "ranks": {}, "values": {}}]', "[1]", "[" + "{}," * 16 + "{}]"]
)
def test_damaged_orders_in_files_are_refused(change: str) -> None:
    model = to_onnx(at_level(levelled(), 0, alone=True))
    (entry,) = (p for p in model.metadata_props if p.key == ORDER_KEY)
    entry.value = change
    with pytest.raises(UnsafeInputError, match=f"metadata '{ORDER_KEY}' cannot be used"):
        load(model)


def test_a_graph_without_parameters_has_one_level() -> None:
    b = Builder()
    b.task("t", b.apply("Relu", b.input("x", 3)))
    assert level_count(b.done()) == 1
