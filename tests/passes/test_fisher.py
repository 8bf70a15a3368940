"""Fisher scores: gates that matter, gates that do not, and pruning by them."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.ir.graph import Graph
from compiler.ir.ties import Closure
from compiler.passes.base import Resources
from compiler.passes.prune.channels import PruneChannels
from compiler.passes.prune.criteria import fisher_scores, gated_axes
from tests.graphs import Builder

LIVE = (1, 4, 6)
"""Hidden units that the output reads."""


def network(outputs: int) -> Graph:
    """A hidden layer of eight units, of which three are read."""
    b = Builder(seed=4)
    h = b.apply("Relu", b.apply("Gemm", b.input("x", 1, 5), b.weight(8, 5), b.weight(8), transB=1))
    read = np.zeros((outputs, 8), np.float32)
    read[:, LIVE] = b.rng.normal(size=(outputs, len(LIVE)))
    b.task("t", b.apply("Gemm", h, b.const(read), b.weight(outputs), transB=1))
    return b.done()


def test_gates_stand_on_what_layers_read():
    graph = network(3)
    axes = gated_axes(graph, Closure(graph).groups)
    assert [a.dim for a in axes] == [1]
    assert graph.producer(axes[0].owner).op.name == "Relu"


def test_scores_are_root_mean_squares_over_the_samples():
    graph = network(3)
    groups = Closure(graph).groups
    (axis,) = gated_axes(graph, groups)
    gradients = np.zeros((2, 8))
    gradients[:, 0], gradients[:, 1] = (3.0, -3.0), (0.0, np.sqrt(2.0))
    (found,) = fisher_scores(graph, groups, {axis: gradients})
    assert found[:3] == pytest.approx([0.75, 0.25, 0.0])  # 3 and 1, as shares of their sum


@pytest.mark.parametrize("outputs", [1, 3])
def test_only_channels_that_are_read_have_a_score(outputs):
    pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")
    from compiler.training.fisher import gate_gradients

    graph = network(outputs)
    axes = gated_axes(graph, Closure(graph).groups)
    feeds = [{"x": x[None]} for x in np.random.default_rng(0).normal(size=(96, 5)).astype(np.float32)]
    found = gate_gradients(graph, feeds, axes, seed=0)[axes[0]]
    assert found.shape == (96, 8)
    assert tuple(np.flatnonzero(np.abs(found).sum(axis=0))) == LIVE
    assert np.abs(found.mean(axis=0)).max() < 0.5 * np.sqrt((found**2).mean(axis=0)).max()
    assert np.array_equal(found, gate_gradients(graph, feeds, axes, seed=0)[axes[0]])
    assert not np.array_equal(found, gate_gradients(graph, feeds, axes, seed=1)[axes[0]])


def test_pruning_by_fisher_keeps_what_is_read():
    pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")
    data = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    graph = network(3)
    pruned = PruneChannels(flops=0.4, score="fisher")(graph, Resources(calibration={"x": data}))
    weight = next(v for v in pruned.parameters() if v.shape == (3, 3))
    full = next(v for v in graph.parameters() if v.shape == (3, 8))
    assert np.array_equal(weight.constant, full.constant[:, LIVE])
