"""sparsify on recurrent layers: both weights, every gate and direction, by magnitude, by update and to budgets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compiler.cost.count import totals
from compiler.ir.encoding import BlockSparse, Dense, RegularBlock, Unstructured
from compiler.ir.graph import Graph, Value
from compiler.ir.onnx_in import load
from compiler.ir.onnx_out import to_onnx
from compiler.ir.reference import evaluate
from compiler.passes.base import Note, Resources
from compiler.passes.sparsify.goals import goals_of
from compiler.passes.sparsify.layers import Candidate
from compiler.passes.sparsify.magnitude import Sparsify
from compiler.passes.sparsify.nest import Nest
from compiler.passes.sparsify.problems import problems
from tests.graphs import Builder

STEPS, INPUTS, HIDDEN = 6, 32, 16
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
EVERYTHING: dict[str, Any] = {"dense": ()}


def network(op: str = "LSTM", **attrs: object) -> Graph:
    """A layer in both directions, and a classifier per step."""
    b = Builder(seed=3)
    rows = GATES[op] * HIDDEN
    weights = [b.weight(2, rows, n, scale=0.4) for n in (INPUTS, HIDDEN)]
    weights.append(b.weight(2, 2 * rows, scale=0.2))
    full = {"hidden_size": HIDDEN, "direction": "bidirectional", **attrs}
    x = b.input("x", STEPS, 1, INPUTS)
    y = b.apply(op, x, *weights, **full)
    flat = b.apply("Reshape", b.apply("Transpose", y, perm=(0, 2, 1, 3)), b.const(np.array([STEPS, 2 * HIDDEN])))
    b.task("t", b.apply("MatMul", flat, b.weight(2 * HIDDEN, 20)))
    return b.done()


def sequences(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs whose elements go together, and that change slowly from step to step."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(8, INPUTS))
    walk = np.cumsum(rng.normal(size=(count, STEPS, 8)), axis=1) @ mix / 4
    noise = rng.normal(size=(count, STEPS, INPUTS)) / 8
    return {"x": (walk + noise).astype(np.float32)[:, :, None]}


def weights(graph: Graph) -> list[Value]:
    """W and R."""
    (site,) = (s for s in graph.sites() if s.node.op.name in GATES)
    return [site.operands[1], site.operands[2]]


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize(
    ("options", "form", "kept"),
    [
        ({"pattern": "regular8"}, RegularBlock, 1 / 8),
        ({"pattern": "block8x1", "density": 0.25}, BlockSparse, 1 / 4),
        ({"pattern": "darb", "density": 0.1}, RegularBlock, 0.1),
        ({"pattern": "unstructured", "sparsity": 0.7}, Unstructured, 0.3),
    ],
    ids=lambda v: v.get("pattern") if isinstance(v, dict) else None,
)
def test_both_weights_take_the_pattern(op: str, options: dict[str, Any], form: type, kept: float) -> None:
    graph = network(op)
    after = Sparsify(**EVERYTHING, **options)(graph)
    for old, new in zip(weights(graph), weights(after), strict=True):
        assert isinstance(new.type.encoding, form)
        assert np.count_nonzero(new.constant) / new.size == pytest.approx(kept, abs=0.02)
        assert np.array_equal(new.constant[new.constant != 0], old.constant[new.constant != 0])
    back = load(to_onnx(after), task="t")
    assert [v.type.encoding for v in weights(back)] == [v.type.encoding for v in weights(after)]


def test_runs_lie_along_the_inputs_of_every_row() -> None:
    graph = network()
    for old, new in zip(weights(graph), weights(Sparsify(pattern="regular8", **EVERYTHING)(graph)), strict=True):
        runs = np.abs(old.constant).reshape(2, 4 * HIDDEN, -1, 8)
        assert np.array_equal(np.abs(new.constant).reshape(runs.shape).max(-1), runs.max(-1))
        assert (np.count_nonzero(new.constant.reshape(runs.shape), axis=-1) == 1).all()


def test_a_layer_between_input_and_output_stays_dense_by_default() -> None:
    b = Builder()
    weights_ = [b.weight(1, 64, 32), b.weight(1, 64, 16)]
    b.task("t", b.apply("LSTM", b.input("x", 3, 1, 32), *weights_, hidden_size=16))
    outcome = Sparsify(pattern="regular4").run(b.done())
    reason = "it reads the network's input, and first layers stay dense (option dense)"
    assert {r.where: r.reason for r in outcome.refusals} == {"LSTM 'lstm', W": reason, "LSTM 'lstm', R": reason}


def test_each_weight_has_its_own_reason() -> None:
    outcome = Sparsify(pattern="regular4", min_inputs=20, **EVERYTHING).run(network())
    assert {r.where: r.reason for r in outcome.refusals} == {
        "LSTM 'lstm', R": "it has 16 inputs, fewer than min_inputs=20"
    }
    w, r = weights(outcome.graph)
    assert isinstance(w.type.encoding, RegularBlock) and r.type.encoding == Dense()


def test_both_weights_have_levels_each_within_the_one_before() -> None:
    outcome = Nest(levels=(0.5, 0.75), dense=()).run(network())
    assert not any(r.where.startswith("LSTM") for r in outcome.refusals)
    for value in weights(outcome.graph):
        (sparser,) = value.sparser
        for data, kept in ((value.constant, 0.5), (sparser, 0.25)):
            assert np.count_nonzero(data) / data.size == pytest.approx(kept, abs=0.02)
        assert np.array_equal(sparser[sparser != 0], value.constant[sparser != 0])


# ---------------------------------------------------------------------- budgets
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_a_budget_counts_what_both_weights_cost(share: float) -> None:
    graph = network()
    after = Sparsify(flops=share, pattern="block8x1", **EVERYTHING)(graph)
    kept = totals(after).flops / totals(graph).flops
    assert 0.8 * share <= kept <= share


# ---------------------------------------------------------------------- second order
def error(before: Graph, after: Graph) -> float:
    """Squared error of the outputs on unseen inputs, relative."""
    wrong = power = 0.0
    for x in sequences(12, seed=7)["x"]:
        (a,), (b,) = (evaluate(g, {"x": x}).values() for g in (before, after))
        wrong, power = wrong + float(np.sum((a - b) ** 2)), power + float(np.sum(a**2))
    return wrong / power


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
@pytest.mark.parametrize(
    "options", [{"pattern": "regular4"}, {"pattern": "block8x1", "density": 0.4}], ids=lambda o: o["pattern"]
)
def test_outputs_move_less_than_by_magnitude(op: str, options: dict[str, Any]) -> None:
    graph, use = network(op), Resources(calibration=sequences(160))
    plain = Sparsify(**EVERYTHING, **options)(graph, use)
    outcome = Sparsify(**EVERYTHING, **options, update="obs").run(graph, use)
    assert error(graph, outcome.graph) < 0.7 * error(graph, plain)
    notes = [n for n in outcome.notes if isinstance(n, Note) and n.where.startswith(op)]
    assert len(notes) == 2 and all("fitted: held-out error" in n.reason for n in notes)


def test_each_direction_is_fitted_to_the_states_its_steps_start_from() -> None:
    graph = network()
    (site,) = (s for s in graph.sites() if s.node.op.name == "LSTM")
    layer = Candidate(site.operands[2], 1, 2, (site.node.ref,))
    forward, backward = problems(graph, site, layer)
    y = np.arange(STEPS * 2 * HIDDEN, dtype=np.float32).reshape(STEPS, 2, 1, HIDDEN)
    at = np.arange(forward.reader.positions)
    assert np.array_equal(forward.reader.patches(y, at)[0], y[:-1, 0, 0])
    assert np.array_equal(backward.reader.patches(y, at)[0], y[1:, 1, 0])
    want = y[1:, 1, 0].astype(np.float64) @ layer.weight.constant[1].T
    assert np.allclose(backward.reader.targets(y, at)[0], want)


def test_parts_of_a_goal_add_up() -> None:
    graph = network()
    (site,) = (s for s in graph.sites() if s.node.op.name == "LSTM")
    layer = Candidate(site.operands[1], 1, 2, (site.node.ref,))
    (goal,) = goals_of("block8x1", [layer], [layer.weight.constant], 0.3, 0.0)
    kept = [p.goal(goal, layer).kept for p in problems(graph, site, layer)]
    assert sum(k or 0 for k in kept) == goal.kept and min(k or 0 for k in kept) > 0


def test_what_is_lost_on_average_goes_into_the_biases() -> None:
    """Inputs with a mean: a constant makes up for most of what W loses; it lands in the input half of B."""
    graph = network()
    calibration = {"x": sequences(32)["x"] / 4 + 2}
    options: dict[str, Any] = {"pattern": "block16x1", "density": 0.1, "exclude": ("w.1", "matmul"), **EVERYTHING}
    outcome = Sparsify(**options, update="obs").run(graph, Resources(calibration=calibration))
    sites = [next(s for s in g.sites() if s.node.op.name == "LSTM") for g in (graph, outcome.graph)]
    before, after = (s.operands[3].constant for s in sites)
    half = 4 * HIDDEN
    assert np.array_equal(after[:, half:], before[:, half:])
    assert (np.abs(after[:, :half] - before[:, :half]).max(axis=1) > 0.1).all()
