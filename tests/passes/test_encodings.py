"""Passes that rewrite weights keep encodings that still fit, and change them by rule where they do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from compiler.ir.encoding import BlockSparse, Dense, Encoding, RegularBlock, Unstructured
from compiler.ir.graph import Graph
from compiler.ir.reference import difference, evaluate, random_feeds
from compiler.ir.ties import Closure
from compiler.ir.types import Axis, ValueRef
from compiler.ir.union import union
from compiler.ir.verify import verify
from compiler.passes.dead_channels import DeadChannels
from compiler.passes.dedupe import Deduplicate
from compiler.passes.extract import ExtractTasks
from compiler.passes.fold import FoldConstants
from compiler.passes.fold_batch_norm import FoldBatchNorm
from compiler.passes.prune.channels import PruneChannels
from compiler.passes.prune.surgery import remove
from tests.graphs import Builder
from tests.sparse import sparse_weight

FORMS = [BlockSparse(block=(4, 1)), RegularBlock(sizes=(4,)), RegularBlock(sizes=(4, 8) * 4), Unstructured()]


def encodings(graph: Graph) -> list[Encoding]:
    return [v.type.encoding for v in graph.parameters() if v.type.encoding != Dense()]


def conv(b: Builder, x: ValueRef, encoding: Encoding, rows: int = 8, taps: int = 3) -> ValueRef:
    weight = sparse_weight(b.graph, encoding, (rows, b.graph.value(x).shape[1], taps, taps))
    return b.apply("Conv", x, weight, b.weight(rows))  # type: ignore[no-any-return]


def drift(before: Graph, after: Graph) -> float:
    feeds = random_feeds(before, np.random.default_rng(5))
    a, b = evaluate(before, feeds), evaluate(after, feeds)
    return max(difference(y, x) for x, y in zip(a.values(), b.values(), strict=True))


@pytest.mark.parametrize("encoding", FORMS, ids=str)
def test_folding_a_scale_keeps_the_encoding(encoding: Encoding) -> None:
    b = Builder()
    h = b.apply("Mul", b.input("x", 1, 8, 6, 6), b.weight(8, 1, 1, scale=1.0))
    y = conv(b, h, encoding)
    vectors = [b.const(b.rng.uniform(0.5, 2, 8).astype(np.float32)) for _ in range(4)]
    b.task("t", b.apply("BatchNormalization", y, *vectors))
    graph = b.done()
    after = FoldBatchNorm()(graph)
    assert [n.op.name for n in after.nodes()] == ["Conv"]
    assert encodings(after) == [encoding]
    assert drift(graph, after) < 1e-5


def test_folding_a_scale_into_a_shared_weight_keeps_the_encoding() -> None:
    b = Builder()
    weight = sparse_weight(b.graph, BlockSparse(rows=1), (32, 32))
    h = b.apply("MatMul", b.input("x", 4, 32), weight)
    scaled = b.apply("Mul", b.apply("MatMul", b.apply("Tanh", h), weight), b.weight(32, scale=1.0))
    b.task("t", scaled)
    graph = b.done()
    after = FoldBatchNorm()(graph)
    assert encodings(after) == [BlockSparse(rows=1)] * 2
    assert drift(graph, after) < 1e-5


def test_a_permutation_of_inputs_changes_regular_runs_by_rule() -> None:
    b = Builder()
    order = b.const(np.random.default_rng(1).permutation(32))
    h = b.apply("Gather", b.input("x", 1, 32, 6, 6), order, axis=1)
    b.task("t", conv(b, h, RegularBlock(sizes=(16,))))
    graph = b.done()
    after = FoldBatchNorm()(graph)
    assert [n.op.name for n in after.nodes()] == ["Conv"]
    (found,) = encodings(after)
    assert found != RegularBlock(sizes=(16,))
    assert isinstance(found, (RegularBlock, Unstructured))
    assert drift(graph, after) < 1e-5


def test_folding_an_encoded_constant_gives_a_dense_one() -> None:
    b = Builder()
    turned = b.apply("Transpose", sparse_weight(b.graph, BlockSparse(), (32, 16)), perm=(1, 0))
    b.task("t", b.apply("MatMul", b.input("x", 2, 16), turned))
    graph = b.done()
    after = FoldConstants()(graph)
    assert [n.op.name for n in after.nodes()] == ["MatMul"]
    assert encodings(after) == []
    assert drift(graph, after) == 0


@pytest.mark.parametrize("encoding", FORMS, ids=str)
@pytest.mark.parametrize("gone", [(0, 1, 2, 3), (5,), (2, 3, 7)])
def test_surgery_on_both_axes_of_encoded_weights(encoding: Encoding, gone: tuple[int, ...]) -> None:
    b = Builder()
    h = conv(b, b.input("x", 1, 8, 8, 8), encoding)
    b.task("t", conv(b, b.apply("Relu", h), encoding))
    before = b.done()
    closure = Closure(before)
    axis = Axis(ValueRef("conv:0"), 1)
    atoms = [a for a in closure.atoms if any(g in a.entries.get(axis, ()) for g in gone)]
    assert len(atoms) == len(gone)
    after = before.copy()
    remove(after, closure.removal(atoms))
    verify(after)
    assert after.value(ValueRef("conv:0")).shape[1] == 8 - len(gone)


def test_surgery_on_a_splat_leaves_it_dense() -> None:
    b = Builder()
    x = b.input("x", 1, 8, 8, 8)
    zeros = np.broadcast_to(np.float32(0), (8, 8, 3, 3))
    weight = b.const(zeros)
    b.graph.update(weight, type=replace(b.graph.value(weight).type, encoding=FORMS[2]))
    h = b.apply("Conv", x, weight, b.weight(8))
    b.task("t", b.conv(h, 4, 1))
    graph = b.done()
    assert encodings(graph) == [FORMS[2]]
    after = PruneChannels(parameters=0.6)(graph)
    assert encodings(after) == []


def test_pruning_with_recovery_leaves_encodings_that_fit() -> None:
    b = Builder()
    h = b.apply("Relu", conv(b, b.input("x", 1, 8, 8, 8), Unstructured(), 16))
    b.task("t", conv(b, h, RegularBlock(sizes=(8,))))
    graph = b.done()
    after = PruneChannels(parameters=0.6)(graph)
    verify(after)
    assert after.value(ValueRef("conv:0")).shape[1] < 16


@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 1, 1, 1)])
def test_dead_channels_of_encoded_weights(pads: tuple[int, ...]) -> None:
    """A stand-in takes over the weights of others: runs may become crowded."""
    b = Builder(seed=3)
    weight = sparse_weight(b.graph, BlockSparse(block=(4, 1)), (16, 8, 1, 1))
    data = b.graph.value(weight).constant.copy()
    data[4:12] = 0
    b.graph.update(weight, data=data)
    h = b.apply("Conv", b.input("x", 1, 8, 6, 6), weight, b.const(np.full(16, 0.7, np.float32)))
    reader = sparse_weight(b.graph, RegularBlock(sizes=(8,)), (8, 16, 3, 3))
    b.task("t", b.apply("Conv", b.apply("Relu", h), reader, pads=pads))
    graph = b.done()
    after = DeadChannels()(graph)
    assert after.value(ValueRef("conv:0")).shape[1] < 16
    assert BlockSparse(block=(4, 1)) in encodings(after)
    assert drift(graph, after) < 1e-5


def two_nets(encode: Callable[[str], Encoding]) -> Graph:
    graphs = {}
    for task in "ab":
        b = Builder(task, seed=7)
        weight = sparse_weight(b.graph, BlockSparse(), (16, 8, 3, 3))
        b.graph.update(weight, type=replace(b.graph.value(weight).type, encoding=encode(task)))
        b.task(task, b.apply("Conv", b.input("x", 1, 8, 6, 6), weight))
        graphs[task] = b.done()
    return union(graphs)


def test_union_and_extraction_keep_encodings() -> None:
    graph = two_nets(lambda task: BlockSparse() if task == "a" else Dense())
    assert encodings(graph) == [BlockSparse()]
    assert encodings(ExtractTasks(tasks=("a",))(graph)) == [BlockSparse()]
    assert encodings(ExtractTasks(tasks=("b",))(graph)) == []


def test_equal_weights_are_shared_where_they_are_stored_alike() -> None:
    """Kernels of different forms add in different orders, so their results are not the same bits."""
    alike = Deduplicate()(two_nets(lambda task: BlockSparse()))
    assert len(alike.nodes()) == 1
    assert encodings(alike) == [BlockSparse()]
    apart = Deduplicate()(two_nets(lambda task: BlockSparse() if task == "a" else Unstructured()))
    assert len(apart.nodes()) == 2
