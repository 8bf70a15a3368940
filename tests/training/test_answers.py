"""What outputs hold, and that distributions are compared and drawn alike whichever way a network ends."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.errors import ConfigError, PassError
from compiler.ir.graph import Graph
from compiler.ir.ties import Closure
from compiler.passes.base import Resources
from compiler.passes.distil import Distil
from compiler.passes.narrow.narrowing import Narrow
from compiler.passes.prune.criteria import gated_axes
from compiler.training.answers import Answer, answer
from tests.graphs import Builder


def network(width: int, *ends: tuple[str, dict[str, object]], seed: int = 4) -> Graph:
    """A hidden layer and an output of some width, behind it the operators of `ends`."""
    b = Builder(seed=seed)
    h = b.apply("Relu", b.apply("Gemm", b.input("x", 1, 5), b.weight(8, 5), b.weight(8), transB=1))
    y = b.apply("Gemm", h, b.weight(width, 8), b.weight(width), transB=1)
    for op, attrs in ends:
        y = b.apply(op, y, **attrs)
    b.task("t", y)
    return b.done()


LAST: tuple[str, dict[str, object]] = ("Softmax", {"axis": -1})


@pytest.mark.parametrize(
    ("width", "ends", "kind"),
    [
        (3, (), Answer.SCORES),
        (1, (), Answer.NUMBER),
        (3, (LAST,), Answer.PROBABILITIES),
        (3, (LAST, ("Identity", {})), Answer.PROBABILITIES),
        (3, (("Softmax", {"axis": 0}),), Answer.SCORES),
        (3, (LAST, ("Relu", {})), Answer.SCORES),
        (1, (("Sigmoid", {}),), Answer.CHANCES),
        (4, (("Sigmoid", {}),), Answer.CHANCES),
        (4, (LAST, ("Flatten", {"axis": 0})), Answer.PROBABILITIES),
        (1, (LAST, ("Tanh", {})), Answer.NUMBER),
    ],
)
def test_what_an_output_holds(width, ends, kind):
    graph = network(width, *ends)
    assert answer(graph, graph.tasks["t"].outputs[0]) is kind


def test_single_numbers_are_no_distributions():
    graph = network(1)
    use = Resources(calibration={"x": np.zeros((20, 5), np.float32)}, teacher=graph)
    for pass_ in (Distil(loss="kl"), Distil(classes=("t",)), Narrow(loss="kl")):
        with pytest.raises(ConfigError, match=r"task 't' answers a single number.*take loss=mse"):
            pass_.run(graph, use)


# ---------------------------------------------------------------------- with torch
@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_divergence_does_not_depend_on_how_a_network_ends(torch, temperature):
    from compiler.training.losses import divergence

    a, b = (3 * torch.randn(40, 5, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    expected = divergence(temperature)(a, b)
    found = divergence(temperature, Answer.PROBABILITIES)(a.softmax(-1), b.softmax(-1))
    assert float(found) == pytest.approx(float(expected), rel=1e-3)
    pairs = [torch.stack([torch.zeros_like(x), x], -1) for x in (a, b)]
    expected = divergence(temperature)(*pairs)
    found = divergence(temperature, Answer.CHANCES)(a.sigmoid(), b.sigmoid())
    assert float(found) == pytest.approx(float(expected), rel=1e-3)


def test_labels_mean_the_same_however_a_network_ends(torch):
    from compiler.training.losses import decisions

    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    for kind, values in ((Answer.PROBABILITIES, x.softmax(-1)), (Answer.CHANCES, x.sigmoid())):
        assert torch.equal(decisions(kind, values).argmax(-1), x.argmax(-1))
    one = x[:, :1]
    pairs = ((Answer.NUMBER, one), (Answer.CHANCES, one.sigmoid()))
    for kind, values in (*pairs, *((k, v[:, 0]) for k, v in pairs)):
        found = decisions(kind, values)
        assert found.shape == (30, 2)
        assert torch.equal(found.argmax(-1), (one[:, 0] > 0).long())
        assert torch.allclose(found.softmax(-1)[:, 1], one[:, 0].sigmoid(), atol=1e-5)


def test_what_decides_without_scores_has_no_gates(torch):
    from compiler.training.fisher import gate_gradients

    for ends in ([("ArgMax", {"axis": 1})], [("ArgMax", {"axis": 1}), ("Cast", {"to": 1})]):
        graph = network(3, *ends)
        axes = gated_axes(graph, Closure(graph).groups)
        with pytest.raises(PassError, match="no output of graph 'net' has a gradient; take another score"):
            gate_gradients(graph, [{"x": np.zeros((1, 5), np.float32)}], axes, seed=0)


@pytest.mark.parametrize("width", [2, 4])
def test_gates_are_ranked_alike_however_a_network_ends(torch, width):
    from compiler.training.fisher import gate_gradients

    feeds = [{"x": x[None]} for x in np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)]
    found = []
    for graph in (network(width), network(width, LAST)):
        axes = gated_axes(graph, Closure(graph).groups)
        found.append(gate_gradients(graph, feeds, axes, seed=0)[axes[0]])
    assert np.allclose(*found, rtol=1e-3, atol=1e-4)
