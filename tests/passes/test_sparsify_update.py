"""sparsify{update=obs}: the algebra of one matrix, and that networks lose less than by magnitude alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from compiler.errors import ConfigError, PassError
from compiler.ir.encoding import BlockSparse, RegularBlock, Sparse
from compiler.ir.graph import Graph, Value
from compiler.ir.reference import evaluate
from compiler.ir.text import digest
from compiler.passes.base import Note, Resources
from compiler.passes.sparsify.compensate import Quadratic, compensate, solve
from compiler.passes.sparsify.goals import Goal
from compiler.passes.sparsify.magnitude import Sparsify
from compiler.pipeline import parse
from tests.graphs import Builder
from tests.passes.test_sparsify import network


def problem(rows: int, p: int, seed: int = 0) -> tuple[Quadratic, np.ndarray]:
    """The error of `rows` outputs of p correlated inputs, and the best weights."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(p, p))
    hessian = mix @ mix.T / p + 0.05 * np.eye(p)
    best = rng.normal(size=(rows, p))
    return Quadratic(hessian, best @ hessian), best


def cost(quadratic: Quadratic, best: np.ndarray, weights: np.ndarray) -> float:
    return float(np.sum((weights - best) * ((weights - best) @ quadratic.hessian)))


def test_weights_are_the_best_for_their_support() -> None:
    quadratic, _ = problem(4, 10)
    alive = np.random.default_rng(1).random((4, 10)) < 0.5
    alive[2] = False
    weights = solve(quadratic, alive, 1).weights
    slope = weights @ quadratic.hessian - quadratic.product
    assert np.array_equal(weights != 0, alive)
    assert np.abs(slope[alive]).max() < 1e-9 < np.abs(slope[~alive]).max()


def test_importance_is_what_a_removal_costs_after_the_others_make_up_for_it() -> None:
    quadratic, best = problem(3, 8)
    whole = solve(quadratic, np.ones((3, 8), bool), 1)
    for row, column in itertools.product(range(3), range(8)):
        alive = np.ones((3, 8), bool)
        alive[row, column] = False
        rise = cost(quadratic, best, solve(quadratic, alive, 1).weights)
        assert rise == pytest.approx(whole.importance[row, column] ** 2)


def test_rows_of_a_block_go_together_and_the_last_block_may_be_lower() -> None:
    quadratic, best = problem(7, 9)
    form = BlockSparse(0, (4, 1))
    goal = Goal(form, 5)
    stages = [lambda i, g=g: g.mask(i) for g in goal.stages((7, 9))]
    weights = compensate(quadratic, stages, 4)
    assert np.count_nonzero(form.alive(weights)) == 5
    others = cost(quadratic, best, np.where(goal.mask(best), best, 0.0))
    assert cost(quadratic, best, weights) < 0.8 * others


def test_stages_shrink_and_end_in_the_goal() -> None:
    sizes = Goal(RegularBlock(0, 1, (4, 16, 8)))
    assert [s.form.sizes for s in sizes.stages((3, 32)) if isinstance(s.form, RegularBlock)] == [
        (2,),
        (4,),
        (4, 8, 8),
        (4, 16, 8),
    ]
    kept = [s.kept for s in Goal(BlockSparse(0, (4, 1)), 7).stages((8, 20))]
    assert kept[-1] == 7 and all(b < a for a, b in itertools.pairwise(kept)) and kept[0] == 28


# ---------------------------------------------------------------------- whole networks
def images(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Neighbouring pixels and channels that go together."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(count, 3, 10, 10)) @ np.eye(10)
    smooth = sum(raw[:, :, i : i + 8, j : j + 8] for i in range(3) for j in range(3))
    return {"x": (smooth + smooth.sum(axis=1, keepdims=True)).astype(np.float32) / 6}


def error(before: Graph, after: Graph) -> float:
    """Squared error of the outputs on unseen inputs, relative."""
    wrong = power = 0.0
    for x in images(12, seed=7)["x"]:
        (a,), (b,) = (evaluate(g, {"x": x[None]}).values() for g in (before, after))
        wrong, power = wrong + float(np.sum((a - b) ** 2)), power + float(np.sum(a**2))
    return wrong / power


def units(value: Value) -> int:
    """Stored blocks or elements."""
    encoding = value.type.encoding
    if isinstance(encoding, BlockSparse):
        return int(np.count_nonzero(encoding.alive(value.constant)))
    return encoding.stored(value.shape, value.data)


@pytest.mark.parametrize(
    "options",
    [
        {"pattern": "block16x1", "density": 0.5},
        {"pattern": "regular4"},
        {"pattern": "darb", "density": 0.2},
        {"pattern": "unstructured", "density": 0.3, "scope": "global"},
    ],
    ids=lambda o: o["pattern"],
)
def test_outputs_move_less_than_by_magnitude(options: dict[str, object]) -> None:
    graph, use = network(), Resources(calibration=images(32))
    plain = Sparsify(**options)(graph, use)  # type: ignore[arg-type]
    outcome = Sparsify(**options, update="obs").run(graph, use)  # type: ignore[arg-type]
    assert error(graph, outcome.graph) < 0.75 * error(graph, plain)
    for old, new in zip(plain.parameters(), outcome.graph.parameters(), strict=True):
        assert isinstance(new.type.encoding, Sparse) == isinstance(old.type.encoding, Sparse)
        if isinstance(new.type.encoding, Sparse) and options.get("scope") != "global":
            assert units(old) == units(new)
    assert len(outcome.notes) == 4 and all("held-out error" in n.reason for n in outcome.notes)


def test_nothing_removed_changes_nothing_much() -> None:
    graph = network()
    after = Sparsify(pattern="unstructured", density=1.0, update="obs")(graph, Resources(calibration=images(16)))
    assert error(graph, after) < 1e-6


def test_the_same_inputs_give_the_same_graph() -> None:
    graph, use = network(), Resources(calibration=images(16))
    pass_ = Sparsify(density=0.5, update="obs")
    assert digest(pass_(graph, use)) == digest(pass_(graph, use))


def test_shared_weights_stay_as_they_are() -> None:
    b = Builder()
    shared = b.weight(32, 32)
    h = b.apply("Relu", b.apply("MatMul", b.input("x", 1, 32), shared))
    b.task("t", b.apply("MatMul", h, shared))
    graph = b.done()
    use = Resources(calibration={"x": np.random.default_rng(0).normal(size=(8, 32)).astype(np.float32)})
    options = {"density": 0.25, "dense": (), "min_inputs": 1}
    outcome = Sparsify(**options, update="obs").run(graph, use)  # type: ignore[arg-type]
    told = [r for r in outcome.refusals if not isinstance(r, Note)]
    assert digest(outcome.graph) == digest(Sparsify(**options)(graph))  # type: ignore[arg-type]
    assert told[-1].reason == "its weights are shared or scaled; the largest magnitudes stay as they are"


def test_calibration_inputs_are_needed() -> None:
    pass_ = parse("sparsify{density=0.5,update=obs}")
    assert str(pass_) == "sparsify{density=0.5,update=obs}"
    with pytest.raises(ConfigError, match="update=obs needs calibration inputs"):
        pass_(network())
    with pytest.raises(PassError, match="3 calibration batches; update=obs and budgets need 4 at least"):
        pass_(network(), Resources(calibration=images(3)))
    with pytest.raises(ConfigError, match="samples is 0"):
        Sparsify(density=0.5, update="obs", samples=0)(network(), Resources(calibration=images(4)))
