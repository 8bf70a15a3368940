"""Layers that read something else after a merge, and those behind a cut: against least squares by hand."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.ir.dead import sweep
from compiler.ir.graph import Graph
from compiler.ir.reference import evaluate
from compiler.ir.types import ValueRef
from compiler.passes.merge.behind import fitted_behind
from compiler.passes.merge.cuts import Cut
from compiler.passes.merge.refit import constant, store
from compiler.passes.merge.solve import Fit
from compiler.passes.merge.stitch import Stitch, attach
from tests.graphs import Builder

SAMPLES, STEPS = 60, 3


# ---------------------------------------------------------------------- behind a cut
@pytest.fixture(scope="module")
def attached() -> tuple[Graph, Graph, Stitch, list[dict[str, np.ndarray]]]:
    """Two networks of a layer in front of the cut and two behind it, the first of these with a constant; b's goes
    on from a's values.
    """
    b = Builder(seed=5)
    x = b.input("x", 1, STEPS, 4)
    first = b.rng.normal(size=(4, 6))
    cuts = []
    for task in "ab":
        moved = (first + 0.6 * b.rng.normal(size=first.shape)).astype(np.float32)
        cuts.append(b.apply("Tanh", b.apply("MatMul", x, b.const(moved))))
        product = b.apply("MatMul", cuts[-1], b.const(b.rng.normal(size=(6, 5)).astype(np.float32), f"{task}/w1"))
        inner = b.apply("Tanh", b.apply("Add", product, b.const(np.ones(5, np.float32), f"{task}/c1")))
        head = b.const(b.rng.normal(size=(5, 2)).astype(np.float32), f"{task}/w2")
        b.task(task, b.apply("MatMul", inner, head))
    original = b.done()
    feeds = [{"x": v} for v in b.rng.normal(size=(SAMPLES, 1, STEPS, 4)).astype(np.float32)]
    stitch = Stitch(Cut(0, cuts[1], cuts[0], 2), 0.1)
    graph = original.copy()
    attach(graph, original, stitch, "cut")
    sweep(graph)
    return graph, original, stitch, feeds


def weight(graph: Graph, name: str) -> np.ndarray:
    return graph.value(ValueRef(name)).constant


def values(graph: Graph, feeds: list[dict[str, np.ndarray]], *refs) -> list[np.ndarray]:
    """[rows, channels] of some values."""
    made = [evaluate(graph, feed, keep=[r.name for r in refs]) for feed in feeds]
    return [np.concatenate([m[r.name][0] for m in made]).astype(np.float64) for r in refs]


def least_squares(x: np.ndarray, y: np.ndarray, old: np.ndarray, central: bool) -> tuple[np.ndarray, np.ndarray]:
    """Weights and constant, with a ridge of 1e-4 towards `old`, of the samples that are not held out."""
    train = np.repeat(np.arange(SAMPLES) % 4 != 3, STEPS)
    mean_x, mean_y = (v[train].mean(axis=0) * central for v in (x, y))
    x, y = x[train] - mean_x, y[train] - mean_y
    g, c = x.T @ x / len(x), x.T @ y / len(x)
    w = old + np.linalg.solve(g + 1e-4 * np.trace(g) / len(g) * np.eye(len(g)), c - g @ old)
    return w, mean_y - mean_x @ w


def products(graph: Graph):
    """Task b's two products behind the cut, as (operand, result) each."""
    by_weight = {s.operands[1].ref.name: s for s in graph.sites() if s.node.op.name == "MatMul"}
    return [(by_weight[n].operands[0].ref, by_weight[n].results[0].ref) for n in ("b/w1", "b/w2")]


def test_layers_behind_a_cut_are_fitted_one_after_the_other_to_what_they_made_before(attached) -> None:
    graph, original, stitch, feeds = attached
    made = fitted_behind(graph, original, stitch, [stitch.cut.theirs], feeds, lambda name: False)
    (_, first), (_, output) = products(original)
    old = [weight(original, f"b/w{n}").astype(np.float64) for n in (1, 2)]
    read, wanted, answers = values(original, feeds, stitch.cut.theirs, first, output)
    w, moved = least_squares(read, wanted, old[0], central=True)
    np.testing.assert_allclose(weight(made, "b/w1"), w, atol=1e-5)
    np.testing.assert_allclose(weight(made, "b/c1"), 1 + moved, atol=1e-5)
    w, _ = least_squares(np.tanh(read @ w + moved + 1), answers, old[1], central=False)
    np.testing.assert_allclose(weight(made, "b/w2"), w, atol=1e-4)
    assert all(np.array_equal(weight(made, f"a/{n}"), weight(original, f"a/{n}")) for n in ("w1", "c1", "w2"))
    before, after = (values(g, feeds, *g.tasks["b"].outputs)[0] for g in (graph, made))
    assert np.sum((after - answers) ** 2) < np.sum((before - answers) ** 2)


@pytest.mark.parametrize("how", ["excluded", "read by others"])
def test_layers_behind_a_cut_that_stay(attached, how: str) -> None:
    """The first is excluded, or leads to what another network goes on from; the second is fitted all the same."""
    graph, original, stitch, feeds = attached
    (_, first), (read, _) = products(original)
    stays = original.producer(first).ref.name if how == "excluded" else ""
    others = [] if how == "excluded" else [read]
    made = fitted_behind(graph, original, stitch, others, feeds, lambda name: name == stays)
    changed = [n for n in ("w1", "c1", "w2") if not np.array_equal(weight(made, f"b/{n}"), weight(graph, f"b/{n}"))]
    assert changed == ["w2"]


# ---------------------------------------------------------------------- weights and constants of one layer
LAYERS = {
    "bias": lambda b, x: b.apply("Gemm", x, b.weight(4, 3), b.weight(3)),
    "no bias": lambda b, x: b.apply("Gemm", x, b.weight(3, 4), transB=1),
    "sum": lambda b, x: b.apply("Add", b.weight(3), b.apply("MatMul", x, b.weight(4, 3))),
    "product": lambda b, x: b.apply("MatMul", x, b.weight(4, 3)),
}


@pytest.mark.parametrize("form", LAYERS)
def test_a_constant_that_was_written_is_read_again(form: str) -> None:
    """What a layer makes moves by it; a bias is replaced, and what is added behind a product stays besides."""
    b = Builder(seed=2)
    b.task("t", b.apply("Relu", LAYERS[form](b, b.input("x", 2, 4))))
    original = b.done()
    site = next(s for s in original.sites() if s.node.op.name in ("Gemm", "MatMul"))
    known = constant(original, original, site)
    rng = np.random.default_rng(3)
    weights, offset = rng.normal(size=(1, 4, 3)), rng.normal(size=(1, 3))
    graph = original.copy()
    store(graph, original, site, Fit(weights, offset, np.zeros(1), np.ones(1), True))
    x = rng.normal(size=(2, 4)).astype(np.float32)
    expected = x @ weights[0]
    if form == "product":
        assert known is None and constant(graph, original, site) is None
    else:
        bias = original.operands(original.nodes()[0]).optional(2)
        assert known.tolist() == ([0] * 3 if bias is None else bias.constant.tolist())
        np.testing.assert_allclose(constant(graph, original, site), offset[0], atol=1e-6)
        added = next(
            (v for s in original.sites() if s.node.op.name == "Add" for v in s.operands[:] if v.data is not None),
            None,
        )
        expected = expected + offset[0] + (0 if added is None else added.constant)
    (found,) = evaluate(graph, {"x": x}).values()
    np.testing.assert_allclose(found, np.maximum(expected, 0), atol=1e-5)
