"""Gradients of gates, and the network that is trained between two narrowings, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")

from compiler.ir.graph import Graph  # noqa: E402
from compiler.ir.reference import evaluate  # noqa: E402
from compiler.ir.types import Axis, ValueRef  # noqa: E402
from compiler.training import fisher, supernet  # noqa: E402
from compiler.training.answers import Answer  # noqa: E402
from compiler.training.distilling import Material, Wanted  # noqa: E402
from compiler.training.fisher import gate_gradients  # noqa: E402
from compiler.training.loop import Stepping  # noqa: E402
from compiler.training.supernet import BATCH, DRAWN, Supernet  # noqa: E402
from tests.graphs import Builder  # noqa: E402

HIDDEN, INPUTS = 4, 3


def network(seed: int = 0, numbers: bool = False) -> Graph:
    """A hidden layer behind which task a tells of three classes, and b of two, or a number, by the same values."""
    b = Builder(seed=seed)
    x, first = b.input("x", 1, INPUTS), b.const(b.rng.normal(size=(HIDDEN, INPUTS)).astype(np.float32), "first")
    h = b.apply("Gemm", x, first, transB=1)
    for task, width in (("a", 3), ("b", 1 if numbers else 2)):
        last = b.const(b.rng.normal(size=(HIDDEN, width)).astype(np.float32), f"last_{task}")
        b.task(task, b.apply("Gemm", h, last))
    return b.done()


def feeds(count: int) -> list[dict[str, np.ndarray]]:
    return [{"x": x[None]} for x in np.random.default_rng(7).normal(size=(count, INPUTS)).astype(np.float32)]


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def expected_answers(graph: Graph, fed: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Task -> [samples, width]."""
    made = [evaluate(graph, f) for f in fed]
    return {t: np.concatenate([m[task.outputs[0].name] for m in made]) for t, task in graph.tasks.items()}


def of_outputs(answers: dict[str, np.ndarray], noise: float) -> dict[str, np.ndarray]:
    """Task -> gradient of the drawn targets' loss by its scores, if class 0, or `noise` more, is drawn always."""
    found = {}
    for task, y in answers.items():
        if y.shape[1] == 1:
            found[task] = np.full_like(y, -noise / y.var(0).mean())
        else:
            found[task] = (softmax(y / 2) - np.eye(y.shape[1])[0]) / 2
    return found


NOISE = 0.5


@pytest.fixture
def first_class(monkeypatch):
    """Targets are class 0, or a little more than the answer."""

    def drawn(answers, spread, generator, kind):
        if kind is Answer.NUMBER:
            return answers.detach() + NOISE
        return torch.zeros((len(answers), answers[0].numel() // answers.shape[-1]), dtype=torch.int64)

    monkeypatch.setattr(fisher, "drawn", drawn)
    monkeypatch.setattr(supernet, "drawn", drawn)


@pytest.mark.parametrize("numbers", [False, True])
def test_gradients_of_gates_add_up_over_tasks_for_every_sample(first_class, numbers):
    graph, fed = network(numbers=numbers), feeds(fisher.BATCH + 5)
    hidden = next(v for v in graph.values() if v.shape == (1, HIDDEN))
    axis, at_input = Axis(hidden.ref, 1), Axis(graph.inputs[0].ref, 1)
    found = gate_gradients(graph, fed, [axis, at_input], seed=0)
    by_score = of_outputs(expected_answers(graph, fed), NOISE)
    wanted = sum(g @ graph.value(ValueRef(f"last_{t}")).constant.T for t, g in by_score.items())
    x, first = np.concatenate([f["x"] for f in fed]), graph.value(ValueRef("first")).constant
    assert found.keys() == {axis, at_input} and found[axis].dtype == np.float64
    np.testing.assert_allclose(found[axis], wanted * (x @ first.T), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found[at_input], (wanted @ first) * x, rtol=1e-3, atol=1e-5)
    assert gate_gradients(graph, fed, [], seed=0) == {}


def test_a_gate_that_no_answer_depends_on_has_no_gradient():
    b = Builder()
    x = b.input("x", 1, INPUTS)
    h = b.apply("Relu", x)
    b.apply("Neg", h)
    b.task("t", b.apply("Gemm", x, b.weight(INPUTS, 2)))
    found = gate_gradients(b.done(), feeds(3), [Axis(h, 1)], seed=0)
    assert found[Axis(h, 1)].tolist() == [[0] * INPUTS] * 3


# ---------------------------------------------------------------------- the supernet
def made(count: int = 50, numbers: bool = False, seed: int = 0) -> tuple[Supernet, Graph, Material]:
    graph = network(numbers=numbers)
    material = Material(network(1, numbers), feeds(count), {})
    return (
        Supernet(graph, material, Wanted({"a": 1.0, "b": 3.0}, frozenset(), 2.0, 0.0), seed, "cpu"),
        graph,
        material,
    )


def test_losses_are_of_the_samples_that_are_held_out():
    net, graph, material = made()
    own, others = (expected_answers(g, material.feeds) for g in (graph, material.teacher))
    for task, found in net.losses().items():
        error = ((own[task] - others[task])[4::5] ** 2).mean() / others[task].var(0).mean()
        assert found == pytest.approx({"a": 1, "b": 3}[task] * error, rel=1e-3)


@pytest.mark.parametrize("numbers", [False, True])
def test_gates_are_weights_times_their_gradients_summed_over_small_groups(first_class, numbers):
    net, graph, material = made(numbers=numbers)
    first, last = ValueRef("first"), ValueRef("last_a")
    groups = list(net.gates(DRAWN + 9, {first: (0, 1), last: (1, 0), ValueRef("gone"): (0, 1)}))
    assert [g.keys() for g in groups] == [{first, last}] * 2
    train = [f for n, f in enumerate(material.feeds) if n % 5 != 4]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: DRAWN + 9].tolist()
    spreads = expected_answers(graph, [train[n] for n in order])
    for group, rows in zip(groups, (order[:DRAWN], order[DRAWN:]), strict=True):
        fed = [train[n] for n in rows]
        answers = expected_answers(graph, fed)
        by_score = of_outputs(answers, NOISE)
        if numbers:
            by_score["b"] = np.full_like(answers["b"], -NOISE / spreads["b"].var(0).mean())
        x, w = np.concatenate([f["x"] for f in fed]), graph.value(first).constant
        lasts = {t: graph.value(ValueRef(f"last_{t}")).constant for t in graph.tasks}
        back = sum(by_score[t] @ lasts[t].T for t in lasts)
        np.testing.assert_allclose(group[first], w * (back.T @ x), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(group[last], lasts["a"] * ((x @ w.T).T @ by_score["a"]), rtol=1e-3, atol=1e-4)


def test_gates_on_kernels_are_summed_over_their_taps():
    b = Builder(seed=2)
    y = b.conv(b.input("x", 1, 2, 5, 5), 3, 2)
    b.task("t", b.apply("Flatten", b.apply("GlobalAveragePool", y)))
    graph = b.done()
    kernel = next(v for v in graph.parameters() if v.rank == 4)
    data = [{"x": x} for x in np.random.default_rng(0).normal(size=(20, 1, 2, 5, 5)).astype(np.float32)]
    net = Supernet(graph, Material(graph, data, {}), Wanted({"t": 1.0}, frozenset(), 2.0, 0.0), 0, "cpu")
    (group,) = net.gates(9, {kernel.ref: (0, 1)})
    gradient = net._net.weights[kernel.ref].grad.numpy()
    np.testing.assert_allclose(group[kernel.ref], (kernel.constant * gradient).sum((2, 3)), rtol=1e-5)
    (group,) = net.gates(9, {kernel.ref: (1, 2)})
    assert group[kernel.ref].shape == (2, 2)


@pytest.mark.parametrize(("epochs", "steps"), [(0.0, 1), (0.2, 1), (0.5, 1), (1.0, 2), (2.0, 4), (2.2, 4)])
def test_training_goes_on_in_the_data_where_it_ended(monkeypatch, epochs, steps):
    seen = []
    monkeypatch.setattr(Stepping, "step", lambda self, part: seen.append(part.inputs["x"][:, 0, 0].tolist()))
    net, _, material = made(150)  # 120 of them are trained on
    for _ in range(3):
        net.train(epochs, 0.01)
    assert len(seen) == 3 * steps and {len(part) for part in seen} <= {BATCH, 120 - BATCH}
    train = sorted(float(f["x"][0, 0]) for n, f in enumerate(material.feeds) if n % 5 != 4)
    for first in range(0, len(seen) - 1, 2):
        assert sorted(seen[first] + seen[first + 1]) == train
    assert len({tuple(part) for part in seen}) == len(seen)


def test_training_comes_nearer_at_the_rate_and_keeps_zeros():
    net, graph, _ = made(150)
    mask = np.ones((HIDDEN, INPUTS), bool)
    mask[:, 0] = False
    net.keep({ValueRef("first"): mask})
    before = net.losses()
    net.train(1 / 120, 0.01)
    moved, start = graph.copy(), {n: graph.value(ValueRef(n)).constant for n in ("first", "last_a")}
    net.store(moved)
    changes = {n: np.abs(moved.value(ValueRef(n)).constant - w) for n, w in start.items()}
    assert changes["last_a"].max() == pytest.approx(0.01, rel=1e-3)
    net.train(30, 0.01)
    net.store(moved)
    assert not moved.value(ValueRef("first")).constant[:, 0].any()
    assert all(net.losses()[t] < 0.9 * before[t] for t in before)


def test_another_graph_of_the_same_answers_goes_on():
    net, graph, _ = made()
    smaller = graph.copy()
    smaller.update(ValueRef("first"), data=2 * graph.value(ValueRef("first")).constant)
    net.keep({ValueRef("first"): np.zeros((HIDDEN, INPUTS), bool)})
    before = net.losses()
    net.go_on(smaller.freeze())
    assert net.losses() != before
    stored = graph.copy()
    net.store(stored)
    assert np.array_equal(stored.value(ValueRef("first")).constant, smaller.value(ValueRef("first")).constant)
