"""The training loop: the rate at every step, which weights stay, when it stops, what it says."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")

from compiler.ir.graph import Graph  # noqa: E402
from compiler.training import loop  # noqa: E402
from compiler.training.loop import Recipe, Stepping, Training, adam, held_out_loss, learning_rate, predict  # noqa: E402
from compiler.training.losses import Objective, squared  # noqa: E402
from compiler.training.module import TorchNet  # noqa: E402
from compiler.training.samples import Data  # noqa: E402
from tests.graphs import Builder  # noqa: E402

COUNT, WIDTH, BATCH = 22, 3, 4


def line(weight: float = 0.5) -> Graph:
    """y = w x without a bias."""
    b = Builder()
    matrix = b.const(np.full((1, WIDTH), weight, np.float32))
    b.task("t", b.apply("Gemm", b.input("x", 1, WIDTH), matrix, transB=1))
    return b.done()


def samples(count: int, seed: int = 0) -> Data:
    x = torch.randn(count, 1, WIDTH, generator=torch.Generator().manual_seed(seed))
    return Data({"x": x}, {("t", 0): x.sum(-1, keepdim=True)})


def training(recipe: Recipe, say=lambda text: None, file=None) -> tuple[Training, TorchNet]:
    net = TorchNet(line())
    objective = Objective({("t", 0): (net.graph.tasks["t"].outputs[0], 1.0, squared(1.0))}, {})
    return Training(net, objective, recipe, samples(COUNT), samples(8, seed=1), file, say), net


# ---------------------------------------------------------------------- rates
def test_the_rate_rises_in_the_first_twentieth_and_falls_along_half_a_cosine():
    found = [learning_rate(step, 100) for step in range(100)]
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[5:] == pytest.approx([(1 + math.cos(math.pi * k / 95)) / 2 for k in range(95)])
    assert learning_rate(0, 1) == 1 and [learning_rate(s, 2) for s in (0, 1)] == [1, 1]
    assert [learning_rate(s, 3) for s in range(3)] == pytest.approx([1, 1, 0.5])


def test_a_weight_takes_its_rate_in_proportion_to_its_size():
    sparse = np.zeros((2, 9), np.float32)
    sparse[:, 0] = (0.2, 0.1)  # of nine products each; what is left out does not count
    b = Builder()
    small, large = (
        b.const(np.full((2, 4), 0.1, np.float32), "small"),
        b.const(np.full((9, 2), 5, np.float32), "large"),
    )
    h = b.apply("Gemm", b.input("x", 1, 4), small, b.const(np.full(2, 0.1, np.float32), "bias"), transB=1)
    h = b.apply("Gemm", h, large, transB=1)
    nothing = b.const(np.zeros((1, 9), np.float32), "nothing")
    b.task("t", *(b.apply("Gemm", h, w, transB=1) for w in (b.const(sparse, "sparse"), nothing)))
    net, rates = TorchNet(b.done()), {}
    for group in adam(net, 0.5).param_groups:
        for weight in group["params"]:
            rates[next(r.name for r, w in net.weights.items() if w is weight)] = group["lr"]
    shares = {
        "small": 0.1 * 4**0.5,
        "sparse": math.sqrt(9 * (0.2**2 + 0.1**2) / 2),
        "large": 1,
        "bias": 1,
        "nothing": 1,
    }
    assert rates == {name: pytest.approx(0.5 * share) for name, share in shares.items()}


def test_a_first_step_moves_every_weight_by_its_share_of_the_rate():
    for factor, expected in ((1.0, 0.1), (0.25, 0.025)):
        net = TorchNet(line(5.0))  # larger than its inputs ask for: the whole rate
        objective = Objective({("t", 0): (net.graph.tasks["t"].outputs[0], 1.0, squared(1.0))}, {})
        Stepping(net, objective, 0.1).step(samples(9), factor)
        (moved,) = net.state().values()
        np.testing.assert_allclose((moved - 5).abs(), np.full((1, WIDTH), expected), rtol=1e-3)


# ---------------------------------------------------------------------- epochs
def test_every_epoch_has_all_samples_once_in_an_order_of_its_own(monkeypatch):
    seen, factors = [], []
    monkeypatch.setattr(Stepping, "step", lambda self, part, factor: (seen.append(part), factors.append(factor)))
    run, _ = training(Recipe(epochs=3, batch=BATCH, rate=0.01, patience=0, seed=5))
    run.run()
    sizes = [BATCH] * (COUNT // BATCH) + [COUNT % BATCH]
    assert [len(p) for p in seen] == 3 * sizes
    assert factors == [learning_rate(step, 3 * len(sizes)) for step in range(3 * len(sizes))]
    whole, orders = samples(COUNT).inputs["x"][:, 0, 0], []
    for epoch in range(3):
        parts = seen[epoch * len(sizes) :][: len(sizes)]
        found = torch.cat([p.inputs["x"] for p in parts])[:, 0, 0]
        assert torch.equal(found.sort().values, whole.sort().values)
        assert all(torch.equal(p.inputs["x"].sum(-1, keepdim=True), p.teacher["t", 0]) for p in parts)
        orders.append(tuple(found.tolist()))
    assert len({*orders, tuple(whole.tolist())}) == 4


LOSSES = (5.0, 4.0, 6.0, 3.0, 3.0, 8.0, 1.0)


@pytest.mark.parametrize(
    ("patience", "epochs", "best", "stopped"), [(0, 6, 6, False), (2, 5, 3, True), (1, 2, 1, True)]
)
def test_the_weights_of_the_best_epoch_stay_and_patience_ends_it(monkeypatch, patience, epochs, best, stopped):
    states, judged = [], iter(LOSSES)

    def judge(net, *rest):
        states.append(net.state())
        return next(judged)

    monkeypatch.setattr(loop, "held_out_loss", judge)
    ticks = iter(range(0, 1000, 10))
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(ticks)))
    said: list[str] = []
    run, net = training(Recipe(6, BATCH, 0.01, patience, 0), said.append)
    history = run.run()
    assert history == loop.History(LOSSES[: epochs + 1], best, stopped)
    assert all(torch.equal(w, states[best][n]) for n, w in net.state().items())
    assert len({float(s["p"][0, 0]) for s in states}) == len(states)
    so_far = [min(LOSSES[: k + 1]) for k in range(epochs + 1)]
    assert said == [
        f"distil: epoch {k} of 6, held-out loss {LOSSES[k]:g} (best {so_far[k]:g}), {10 * (6 - k)} s left"
        for k in range(1, epochs + 1)
    ]


@pytest.mark.parametrize("end", [math.nan, math.inf])
def test_training_ends_where_it_diverges_with_the_best_weights_so_far(monkeypatch, end):
    states, judged = [], iter((5.0, 4.0, end, 3.0))

    def judge(net, *rest):
        states.append(net.state())
        return next(judged)

    monkeypatch.setattr(loop, "held_out_loss", judge)
    run, net = training(Recipe(6, BATCH, 0.01, 0, 0))
    history = run.run()
    assert history.losses[:2] == (5.0, 4.0) and len(history.losses) == 3
    assert history.best == 1 and history.diverged and not history.stopped
    assert all(torch.equal(w, states[1][n]) for n, w in net.state().items())


def test_time_left_counts_from_where_it_went_on(monkeypatch, tmp_path):
    recipe = Recipe(4, BATCH, 0.01, 0, 0)

    def stop(text):
        if "epoch 2 of" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training(recipe, stop, tmp_path / "kept")[0].run()
    ticks, said = iter(range(0, 1000, 10)), []
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(ticks)))
    history = training(recipe, said.append, tmp_path / "kept")[0].run()
    assert [re.sub(r", held.*\)", "", s) for s in said] == [
        "distil: continues after epoch 2",
        "distil: epoch 3 of 4, 10 s left",
        "distil: epoch 4 of 4, 0 s left",
    ]
    assert len(history.losses) == 5 and history.best == 4


def test_answers_and_losses_do_not_depend_on_the_batch():
    run, net = training(Recipe(1, BATCH, 0.01, 0, 0))
    data = samples(10)
    (ref,) = net.graph.tasks["t"].outputs
    expected = 0.5 * data.teacher["t", 0]
    for batch in (1, 3, 10, 99):
        found = predict(net, data.inputs, batch)
        assert list(found) == [ref] and not found[ref].requires_grad
        assert torch.allclose(found[ref], expected)
        loss = held_out_loss(net, run._objective, data, batch)
        assert loss == pytest.approx(float((expected**2).mean()), rel=1e-5)


# ---------------------------------------------------------------------- samples
def test_samples_are_chosen_copied_and_overwritten_with_all_they_have():
    data = Data({"x": torch.arange(4.0)}, {("t", 0): torch.arange(4.0) + 10}, {"t": torch.arange(4)})
    assert len(data) == 4
    for part, rows in ((data.at(torch.tensor([3, 1])), [3, 1]), (data.at(slice(1, 3)), [1, 2])):
        assert part.inputs["x"].tolist() == rows and part.labels["t"].tolist() == rows
        assert part.teacher["t", 0].tolist() == [10 + r for r in rows]
    copied = data.copy()
    copied.take(Data({"x": torch.zeros(4)}, {("t", 0): torch.ones(4)}, {"t": torch.full((4,), 2)}))
    assert copied.inputs["x"].tolist() == [0] * 4 and copied.labels["t"].tolist() == [2] * 4
    assert copied.teacher["t", 0].tolist() == [1] * 4
    assert data.inputs["x"].tolist() == [0, 1, 2, 3] and data.labels["t"].tolist() == [0, 1, 2, 3]
    assert data.teacher["t", 0].tolist() == [10, 11, 12, 13]
