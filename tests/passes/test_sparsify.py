"""sparsify: patterns, densities, what stays dense and why, options as text."""

from __future__ import annotations

import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from compiler.cost.count import totals
from compiler.errors import ConfigError
from compiler.ir.encoding import BlockSparse, Dense, RegularBlock, Unstructured
from compiler.ir.graph import Graph
from compiler.ir.onnx_in import load
from compiler.ir.onnx_out import to_onnx
from compiler.ir.reference import evaluate, random_feeds
from compiler.ir.text import digest
from compiler.ir.types import ValueRef
from compiler.passes import find
from compiler.passes.base import Resources
from compiler.passes.sparsify import patterns
from compiler.passes.sparsify.magnitude import Sparsify
from compiler.pipeline import Pipeline, parse
from tests.graphs import Builder

ALL = {"dense": (), "min_inputs": 1}
"""Options under which every layer with a kernel becomes sparse."""


def network() -> Graph:
    """Convolutions, a matrix product each way round, and a first and a last layer."""
    b = Builder(seed=1)
    h = b.apply("Relu", b.conv(b.input("x", 1, 3, 8, 8), 32, 3, pads=(1, 1, 1, 1)))
    h = b.apply("Relu", b.conv(h, 48, 3, pads=(1, 1, 1, 1), strides=(2, 2)))
    h = b.apply("Flatten", b.apply("Relu", b.conv(h, 32, 1)))
    h = b.apply("Relu", b.apply("Gemm", h, b.weight(64, 512), b.weight(64), transB=1))
    h = b.apply("Relu", b.apply("MatMul", h, b.weight(64, 40)))
    b.task("t", b.apply("Gemm", h, b.weight(40, 10), b.weight(10)))
    return b.done()


def weights(graph: Graph) -> dict[str, object]:
    return {v.ref.name: v.type.encoding for v in graph.parameters() if v.rank > 1}


def test_blocks_of_every_layer_at_the_density_asked_for() -> None:
    graph = network()
    after = Sparsify(sparsity=0.9)(graph)
    assert weights(after) == {
        "w": Dense(),
        "w.2": BlockSparse(),
        "w.4": BlockSparse(),
        "w.6": BlockSparse(),
        "w.8": BlockSparse(rows=1),
        "w.9": Dense(),
    }
    for name, encoding in weights(after).items():
        old, new = graph.value(ValueRef(name)).constant, after.value(ValueRef(name)).constant
        if isinstance(encoding, BlockSparse):
            alive = encoding.alive(new)
            assert np.count_nonzero(alive) == round(0.1 * alive.size)
        assert np.array_equal(new[new != 0], old[new != 0])


def test_the_largest_blocks_survive() -> None:
    b = Builder()
    data = np.ones((8, 6), np.float32)
    data[0:4, 2] = 5
    data[4:8, 5] = 4
    data[7, 1] = 7.5  # one large weight makes a block of norm sqrt(7.5^2 + 3) < 2 * 4
    b.task("t", b.apply("Gemm", b.input("x", 1, 6), b.const(data), transB=1))
    after = Sparsify(pattern="block4x1", density=1 / 6, dense=(), min_inputs=1)(b.done())
    left = after.parameters()[0].constant
    assert np.argwhere(left).tolist() == [[r, 2] for r in range(4)] + [[r, 5] for r in range(4, 8)]


@pytest.mark.parametrize("size", [4, 8, 16, 32])
def test_one_weight_of_every_run_survives_the_largest(size: int) -> None:
    graph = network()
    after = Sparsify(pattern=f"regular{size}", **ALL)(graph)
    old, new = graph.value(ValueRef("w.2")).constant, after.value(ValueRef("w.2")).constant
    assert after.value(ValueRef("w.2")).type.encoding == RegularBlock(sizes=(size,))
    runs = np.abs(old.transpose(0, 2, 3, 1).reshape(48, 3, 3, -1, size))
    left = new.transpose(0, 2, 3, 1).reshape(runs.shape)
    assert np.array_equal(np.count_nonzero(left, axis=-1), np.ones(runs.shape[:-1]))
    assert np.array_equal(np.abs(left).max(axis=-1), runs.max(axis=-1))
    assert after.value(ValueRef("w.8")).type.encoding == RegularBlock(1, 0, (size,))
    assert after.value(ValueRef("w")).type.encoding == RegularBlock(sizes=(size,))  # 3 inputs: one short run


def test_of_equal_weights_the_first_survives() -> None:
    b = Builder()
    data = np.tile(np.array([1, -1], np.float32), (3, 8))
    b.task("t", b.apply("Gemm", b.input("x", 1, 16), b.const(data), transB=1))
    after = Sparsify(pattern="regular4", **ALL)(b.done())
    assert np.argwhere(after.parameters()[0].constant[0]).ravel().tolist() == [0, 4, 8, 12]


def test_coarser_runs_are_nested_in_finer_ones() -> None:
    graph = network()
    masks = [Sparsify(pattern=f"regular{n}")(graph).value(ValueRef("w.6")).constant != 0 for n in (16, 8, 4)]
    assert all((fine | coarse == fine).all() for coarse, fine in itertools.pairwise(masks))


def test_darb_gives_dense_rows_short_runs() -> None:
    b = Builder()
    data = b.rng.normal(size=(64, 128)) * np.exp(b.rng.normal(size=(64, 1)))
    b.task("t", b.apply("Gemm", b.input("x", 1, 128), b.const(data.astype(np.float32)), transB=1))
    graph = b.done()
    after = Sparsify(pattern="darb", density=0.1, dense=())(graph)
    (weight,) = after.parameters()
    encoding = weight.type.encoding
    assert isinstance(encoding, RegularBlock)
    assert set(encoding.sizes) == {4, 8, 16, 32}
    assert abs(encoding.stored(weight.shape, weight.data) / weight.size - 0.1) < 0.005
    norm = np.linalg.norm(data, axis=1)
    assert all(
        norm[np.array(encoding.sizes) == n].mean() > norm[np.array(encoding.sizes) == 2 * n].mean()
        for n in (4, 8, 16)
    )
    uniform = Sparsify(pattern="regular8", dense=())(graph).parameters()[0].constant
    assert np.sum(weight.constant**2) > np.sum(uniform**2)  # and darb keeps fewer


def test_darb_over_all_layers_gives_the_larger_layer_more() -> None:
    b = Builder()
    h = b.apply("Gemm", b.input("x", 1, 64), b.weight(64, 64, scale=1.0), transB=1)
    b.task("t", b.apply("Gemm", h, b.weight(64, 64, scale=0.2), transB=1))
    after = Sparsify(pattern="darb", density=0.1, scope="global", dense=())(b.done())
    first, second = (v.type.encoding for v in after.parameters())
    assert isinstance(first, RegularBlock) and isinstance(second, RegularBlock)
    assert max(first.sizes) < min(second.sizes)


def test_unstructured_keeps_the_largest_weights() -> None:
    graph = network()
    after = Sparsify(pattern="unstructured", density=0.2)(graph)
    old, new = graph.value(ValueRef("w.6")).constant, after.value(ValueRef("w.6")).constant
    assert after.value(ValueRef("w.6")).type.encoding == Unstructured()
    assert np.count_nonzero(new) == round(0.2 * new.size)
    assert np.abs(old[new == 0]).max() <= np.abs(new[new != 0]).min()


def test_a_global_ranking_takes_from_weak_layers_and_leaves_a_floor() -> None:
    b = Builder()
    h = b.apply("Relu", b.conv(b.input("x", 1, 64, 4, 4), 64, 1))
    weak = b.weight(64, 64, 1, 1, scale=1e-3)
    b.task("t", b.apply("Conv", h, weak))
    graph = b.done()
    after = Sparsify(density=0.25, scope="global", dense=())(graph)
    strong, left = (BlockSparse().alive(after.value(r).constant) for r in (ValueRef("w"), weak))
    assert np.count_nonzero(left) == 256 // 64
    assert np.count_nonzero(strong) == 128 - 4
    assert np.count_nonzero(BlockSparse().alive(Sparsify(density=0.01, dense=())(graph).value(weak).constant)) == 3


def test_fewer_multiply_adds_and_a_round_trip() -> None:
    graph = network()
    for pass_ in (Sparsify(sparsity=0.75), Sparsify(pattern="darb", density=0.1)):
        after = pass_(graph)
        cost = totals(after)
        assert cost.macs < 0.5 * cost.macs_dense == 0.5 * totals(graph).macs
        assert digest(load(to_onnx(after))) == digest(after)


def test_density_one_changes_no_output() -> None:
    graph = network()
    after = Sparsify(density=1.0)(graph)
    feeds = random_feeds(graph, np.random.default_rng(0))
    assert np.array_equal(*(evaluate(g, feeds)[graph.outputs[0].ref.name] for g in (graph, after)))


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
    sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 30)), min_size=1, max_size=4),
    density=st.floats(0.01, 1),
    floor=st.sampled_from([0.0, 1 / 64, 0.2]),
    levels=st.integers(1, 50),
    seed=st.integers(0, 99),
)
def test_ranking(sizes: list[tuple[int, int]], density: float, floor: float, levels: int, seed: int) -> None:
    """As many as asked for, at least the floor, and nothing dropped is larger than what stays beyond the floor."""
    rng = np.random.default_rng(seed)
    norms = [rng.integers(0, levels, s).astype(float) for s in sizes]
    masks = patterns.ranked(norms, density, floor)
    sure = [max(1, int(np.ceil(floor * n.size))) for n in norms]
    assert sum(int(m.sum()) for m in masks) == max(round(density * sum(n.size for n in norms)), sum(sure))
    assert all(m.sum() >= count for m, count in zip(masks, sure, strict=True))
    beyond = [np.sort(n[m])[: m.sum() - c] for n, m, c in zip(norms, masks, sure, strict=True)]
    dropped = np.concatenate([n[~m] for n, m in zip(norms, masks, strict=True)])
    lowest = np.concatenate(beyond)
    assert not dropped.size or not lowest.size or dropped.max() <= lowest.min()
    for n, m in zip(norms, masks, strict=True):
        assert not (~m).any() or n[~m].max() <= n[m].min()


# ---------------------------------------------------------------------- what stays dense
def left_alone(pass_: Sparsify, graph: Graph, use: Resources | None = None) -> dict[str, str]:
    return {r.where: r.reason for r in pass_.run(graph, use).refusals}


def test_first_and_last_layers_by_default() -> None:
    assert left_alone(Sparsify(density=0.5), network()) == {
        "Conv 'conv'": "it reads the network's input, and first layers stay dense (option dense)",
        "Gemm 'gemm.1'": "it makes the network's output, and last layers stay dense (option dense)",
    }
    assert list(left_alone(Sparsify(density=0.5, dense=("last",), min_inputs=1), network())) == ["Gemm 'gemm.1'"]


def test_small_layers() -> None:
    assert left_alone(Sparsify(density=0.5, dense=()), network()) == {
        "Conv 'conv'": "it has 3 inputs, fewer than min_inputs=16",
        "Gemm 'gemm.1'": "it has 10 outputs, fewer than one block of 16",
    }
    assert left_alone(Sparsify(pattern="block8x1", density=0.5, **ALL), network()) == {}


def test_exclusions_by_the_pass_and_by_the_release() -> None:
    found = left_alone(Sparsify(density=0.5, exclude=("conv.*",), dense=()), network(), Resources(exclude=("w.6",)))
    assert {k: v for k, v in found.items() if "name" in v} == {
        "Conv 'conv.1'": "it is excluded by name",
        "Conv 'conv.2'": "it is excluded by name",
        "Gemm 'gemm'": "it is excluded by name",
    }


def test_layers_without_a_sparse_kernel() -> None:
    b = Builder()
    x = b.input("x", 1, 16, 8, 8)
    h = b.conv(b.conv(x, 16, 3, group=16), 16, 3, group=4)
    h = b.apply("ConvTranspose", h, b.weight(16, 16, 2, 2))
    flat = b.apply("Reshape", h, b.const(np.array([1, 1, -1])))
    y = b.apply("RNN", flat, b.weight(1, 16, 400), b.weight(1, 16, 16), hidden_size=16)
    rows = b.apply("Reshape", y, b.const(np.array([1, 16])))
    outer = b.apply("MatMul", b.apply("Transpose", rows, perm=(1, 0)), rows)
    b.task("t", b.apply("MatMul", outer, b.const(np.broadcast_to(np.float32(2), (16, 32)))))
    assert left_alone(Sparsify(density=0.5, **ALL), b.done()) == {
        "Conv 'conv'": "a depthwise convolution reads one input channel per output",
        "Conv 'conv.1'": "a convolution of 4 groups has no sparse kernel",
        "ConvTranspose 'convtranspose'": "a transposed convolution has no sparse kernel",
        "MatMul 'matmul'": "its second operand is computed, not a weight",
        "MatMul 'matmul.1'": "all elements of its weight are equal",
    }


def test_weights_with_other_readers() -> None:
    b = Builder()
    shared, output, stack = b.weight(32, 32), b.weight(32, 32), b.weight(4, 32, 32)
    h = b.apply("MatMul", b.input("x", 1, 32), shared)
    h = b.apply("MatMul", b.apply("Gemm", h, shared, transB=1), output)
    y = b.apply("MatMul", h, stack)
    b.task("t", y, output)
    assert left_alone(Sparsify(density=0.5, **ALL), b.done()) == {
        "MatMul 'matmul'": "its weight 'w' is also read by Gemm 'gemm'",
        "Gemm 'gemm'": "its weight 'w' is also read by MatMul 'matmul'",
        "MatMul 'matmul.1'": "its weight 'w.1' is an output of the network",
        "MatMul 'matmul.2'": "its weight has 3 axes; a matrix is expected",
    }


def test_a_weight_shared_by_like_layers_is_ranked_once() -> None:
    b = Builder()
    shared = b.weight(32, 32)
    h = b.apply("Relu", b.apply("MatMul", b.input("x", 1, 32), shared))
    b.task("t", b.apply("MatMul", h, shared))
    after = Sparsify(density=0.25, **ALL)(b.done())
    assert np.count_nonzero(BlockSparse(rows=1).alive(after.value(shared).constant)) == 16


def test_twice_changes_nothing_more() -> None:
    after = Sparsify(density=0.5, **ALL, pattern="block8x1")(network())
    again = Sparsify(pattern="regular8", **ALL).run(after)
    assert digest(again.graph) == digest(after)
    assert {r.reason for r in again.refusals} == {
        "its weight is stored as block8x1/0 already",
        "its weight is stored as block8x1/1 already",
    }


# ---------------------------------------------------------------------- options
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either density or sparsity"),
        ({"density": 0.5, "sparsity": 0.5}, "give either density or sparsity"),
        ({"density": 0.0}, "above 0 and at most 1, not 0"),
        ({"sparsity": 1.0}, "above 0 and at most 1, not 0"),
        ({"density": 1.5}, "above 0 and at most 1, not 1.5"),
        ({"pattern": "regular8", "density": 0.5}, "regular8 keeps one weight in 8; give no density"),
        ({"pattern": "darb", "density": 0.5}, "darb reaches densities from 1/32 to 1/4, not 0.5"),
        ({"density": 0.5, "dense": ("middle",)}, "dense is 'middle'; it can be first, last"),
        ({"density": 0.5, "min_inputs": 0}, "min_inputs is 0; it starts at 1"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sparsify(**options)(network())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "sparsify{sparsity=0.9}",
        "sparsify{pattern=darb,density=0.1,scope=global,dense=()}",
        "sparsify{pattern=regular16,dense=last,min_inputs=4,exclude=head*}",
    ],
)
def test_spec_strings_read_back(text: str) -> None:
    assert find("sparsify") is Sparsify
    assert str(parse(text)) == text
    with pytest.raises(ConfigError, match="'block3x1' is not one of block16x1, block8x1"):
        parse("sparsify{pattern=block3x1}")


def test_in_a_pipeline_the_drift_is_recorded() -> None:
    _, (record,) = Pipeline.parse(["sparsify{sparsity=0.5}"], numerics=True).run(network())
    assert record.drift is not None and record.drift["t"] > 0.01
    assert record.after.flops < record.before.flops
