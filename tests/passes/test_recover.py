"""Least-squares recovery: the algebra, and that held-out error falls."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.networks import NETWORKS
from compiler import cost_report, parse_pass
from compiler.calibration import moments as moments_module
from compiler.calibration.moments import Moments, ridge
from compiler.ir.encoding import Dense
from compiler.ir.graph import Graph
from compiler.ir.onnx_in import load
from compiler.ir.op import Kept
from compiler.ir.reference import evaluate
from compiler.ir.types import DType, ValueRef
from compiler.passes.base import Resources
from compiler.passes.merge.channels import layer_axes
from compiler.passes.merge.refit import takes_constant
from compiler.passes.prune import recover
from compiler.passes.prune.channels import PruneChannels
from compiler.passes.prune.fit import gram, reader_of, sample
from compiler.passes.prune.recover import refit
from compiler.passes.prune.worth import Fitted, Readers
from tests.graphs import Builder


def inputs(graph: Graph, count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Correlated channels, as in real activations."""
    rng = np.random.default_rng(seed)
    (value,) = graph.inputs
    axis = 1 if value.rank == 4 else value.rank - 1
    mix = np.random.default_rng(99).standard_normal((value.shape[axis],) * 2)
    found = []
    for _ in range(count):
        raw = rng.standard_normal(value.shape)
        found.append({value.ref.name: np.moveaxis(np.moveaxis(raw, axis, -1) @ mix, -1, axis).astype(np.float32)})
    return found


def error(original: Graph, other: Graph, feeds: list[dict[str, np.ndarray]]) -> float:
    total = power = 0.0
    for feed in feeds:
        for name, y in evaluate(original, feed).items():
            total += float(np.sum((evaluate(other, feed)[name] - y) ** 2))
            power += float(np.sum(y**2))
    return total / power


def small() -> Graph:
    b = Builder(seed=4)
    h = b.apply("Relu", b.conv(b.input("x", 1, 3, 8, 8), 12, 3, pads=(1, 1, 1, 1)))
    h = b.apply("Relu", b.conv(h, 12, 3, strides=(2, 2), pads=(1, 1, 1, 1)))
    b.task("t", b.apply("Gemm", b.apply("Flatten", h), b.weight(12 * 16, 5), b.weight(5)))
    return b.done()


def normalised() -> Graph:
    """Batch normalisation behind one convolution (takes up its offset) and before another (statistics)."""
    b = Builder(seed=4)

    def norm(x: ValueRef, channels: int) -> ValueRef:
        parts = (b.const(b.rng.uniform(0.5, 1.5, channels).astype(np.float32)) for _ in range(4))
        return b.apply("BatchNormalization", x, *parts)  # type: ignore[no-any-return]

    h = b.apply("Relu", b.conv(b.input("x", 1, 3, 8, 8), 12, 3, pads=(1, 1, 1, 1)))
    h = norm(b.conv(h, 12, 3, bias=False, pads=(1, 1, 1, 1)), 12)
    h = norm(b.apply("Concat", b.apply("Relu", h), b.conv(h, 6, 1), axis=1), 18)
    b.task("t", b.conv(b.apply("Relu", h), 5, 3))
    return b.done()


@pytest.mark.parametrize("name", ["normalised", "mobilenet-v2", "shufflenet", "transformer"])
def test_held_out_error_falls_on_every_kind_of_network(name: str) -> None:
    graph = normalised() if name == "normalised" else load(NETWORKS[name]())
    data, unseen = inputs(graph, 16), inputs(graph, 2, seed=1)
    use = Resources(calibration=lambda: iter(data))
    options = {"flops": 0.8, "score": "l2"}
    plain = PruneChannels(**options)(graph, use)  # type: ignore[arg-type]
    fitted = PruneChannels(**options, recover="least-squares")(graph, use)  # type: ignore[arg-type]
    assert error(graph, fitted, unseen) < error(graph, plain, unseen)


def test_nothing_pruned_changes_nothing() -> None:
    graph = small()
    work = graph.copy()
    assert refit(graph, work, Kept(), inputs(graph, 8)) == []
    for value in graph.parameters():
        np.testing.assert_array_equal(work.value(value.ref).constant, value.constant)


def test_large_ridge_returns_the_old_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((1, 50, 6)), rng.standard_normal((1, 50, 3))
    old = rng.standard_normal((1, 6, 3))
    moments = Moments()
    moments.add(x, y)
    assert np.abs(moments.solve(old, True)[0] - old).max() > 0.1
    monkeypatch.setattr(moments_module, "RIDGE", 1e12)
    np.testing.assert_allclose(moments.solve(old, True)[0], old, atol=1e-9)


def test_solution_is_the_ridge_minimum() -> None:
    """Against the normal equations of the augmented problem, bias unpenalised."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((1, 80, 5)) + 0.5, rng.standard_normal((1, 80, 2))
    old = rng.standard_normal((1, 5, 2))
    moments = Moments()
    moments.add(x, y)
    new, offset = moments.solve(old, True)
    centred = x - x.mean(axis=1, keepdims=True)
    lam = ridge(np.swapaxes(centred, 1, 2) @ centred / 80)[0, 0, 0]
    ones = np.concatenate([x[0], np.ones((80, 1))], axis=1)
    penalty = np.diag([lam * 80] * 5 + [0.0])
    right = ones.T @ y[0] + penalty @ np.vstack([old[0], np.zeros((1, 2))])
    expected = np.linalg.solve(ones.T @ ones + penalty, right)
    np.testing.assert_allclose(np.vstack([new[0], offset]), expected, atol=1e-8)


@pytest.mark.parametrize(
    ("group", "k", "stride", "dilation", "pads"),
    [
        (1, 3, 1, 1, (1, 1, 1, 1)),
        (1, 3, 2, 2, (0, 1, 2, 1)),
        (2, 3, 1, 1, (1, 0, 0, 1)),
        (4, 1, 2, 1, (0, 0, 0, 0)),
    ],
)
def test_patches_times_matrix_is_the_convolution(
    group: int, k: int, stride: int, dilation: int, pads: tuple[int, ...]
) -> None:
    b = Builder(seed=2)
    x = b.input("x", 1, 4, 9, 7)
    y = b.conv(x, 8, k, group=group, strides=(stride,) * 2, dilations=(dilation,) * 2, pads=pads)
    b.task("t", y)
    graph = b.done()
    (site,) = graph.sites()
    reader = reader_of(graph, site)
    assert reader is not None
    feeds = inputs(graph, 1)[0]
    at = sample(reader, 3)
    matrix = reader.matrix(reader.weight.constant)
    found = reader.patches(feeds["x"], at) @ matrix + site.operands[2].constant.reshape(group, 1, -1)
    expected = reader.targets(evaluate(graph, feeds)[y.name], at)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(reader.restore(matrix).astype(np.float32), reader.weight.constant)


@pytest.mark.parametrize("flip", [0, 1])
def test_patches_times_matrix_is_the_product(flip: int) -> None:
    b = Builder(seed=2)
    x = b.input("x", 3, 6)
    b.task("t", b.apply("Gemm", x, b.weight(4, 6) if flip else b.weight(6, 4), b.weight(4), transB=flip))
    graph = b.done()
    (site,) = graph.sites()
    reader = reader_of(graph, site)
    assert reader is not None
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)}
    at = np.arange(3)
    found = reader.patches(feeds["x"], at) @ reader.matrix(reader.weight.constant) + site.operands[2].constant
    (expected,) = evaluate(graph, feeds).values()
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 1), (4, 4), ()])
def test_an_addend_of_a_product_that_is_no_number_per_output_is_no_bias(shape: tuple[int, ...]) -> None:
    """With as many rows as outputs, a number per row has the size of a bias."""
    b = Builder(seed=2)
    b.task("t", b.apply("Gemm", b.input("x", 4, 6), b.weight(6, 4), b.weight(*shape)))
    (site,) = b.done().sites()
    assert reader_of(b.done(), site) is None
    assert layer_axes(site) is None


@pytest.mark.parametrize(
    ("kind", "shape", "fits"),
    [
        ("Conv", (4, 1, 1), True),
        ("Conv", (1, 4, 1, 1), True),
        ("Conv", (4,), False),
        ("Conv", (1, 4, 1), False),
        ("Conv", (), False),
        ("MatMul", (4,), True),
        ("MatMul", (1, 1, 4), True),
        ("MatMul", (4, 1), False),
        ("MatMul", (1, 1, 1, 4), False),
    ],
)
def test_what_takes_up_a_constant_has_a_number_per_output(kind: str, shape: tuple[int, ...], fits: bool) -> None:
    """With as many rows or columns as outputs, numbers for these have the size of a bias."""
    b = Builder(seed=2)
    if kind == "Conv":
        y = b.conv(b.input("x", 1, 3, 4, 4), 4, 1, bias=False)
    else:
        y = b.apply("MatMul", b.input("x", 2, 4, 6), b.weight(6, 4))
    b.task("t", b.apply("Relu", b.apply("Add", y, b.weight(*shape))))
    graph = b.done()
    site = next(graph.sites())
    reader = reader_of(graph, site)
    assert reader is not None
    assert (recover.sink_of(graph, reader) is not None) == fits
    if kind == "MatMul":
        assert takes_constant(graph, site) == fits


def test_a_normalisation_of_positions_takes_up_no_constant_of_outputs() -> None:
    b = Builder(seed=2)
    y = b.apply("MatMul", b.input("x", 2, 4, 6), b.weight(6, 4))
    b.task("t", b.apply("BatchNormalization", y, *(b.const(np.full(4, n, np.float32)) for n in (1, 0, 0, 1))))
    graph = b.done()
    reader = reader_of(graph, next(graph.sites()))
    assert reader is not None and recover.sink_of(graph, reader) is None


def test_obs_is_delete_and_refit() -> None:
    """The score of a channel is the rise of the ridge objective when it is deleted and the rest fitted anew."""
    b = Builder(seed=2)
    x = b.input("x", 1, 4, 6, 6)
    b.task("t", b.conv(x, 3, 3, bias=False, pads=(1, 1, 1, 1)))
    graph = b.done()
    feeds = inputs(graph, 40)
    (site,) = graph.sites()
    reader = reader_of(graph, site)
    assert reader is not None
    moments = gram(reader, (f["x"] for f in feeds))
    worth = next(iter(Readers(graph, feeds).contributions(True, {}).values()))
    g = (moments + ridge(moments))[0]
    matrix = reader.matrix(reader.weight.constant)[0]
    for channel in range(4):
        gone = np.arange(channel * 9, channel * 9 + 9)
        rest = np.setdiff1d(np.arange(36), gone)
        change = np.zeros_like(matrix)
        change[gone] = -matrix[gone]
        change[rest] = -np.linalg.solve(g[np.ix_(rest, rest)], g[np.ix_(rest, gone)] @ change[gone])
        expected = np.sum(change * (g @ change)) / np.sum(matrix * (moments[0] @ matrix))
        assert worth[channel] == pytest.approx(expected, rel=1e-6)


def test_channels_that_leave_one_after_another_leave_what_leaves_at_once() -> None:
    rng = np.random.default_rng(0)
    patches, taps = rng.normal(size=(400, 36)), 3
    moments, weights = patches.T @ patches / 400, rng.normal(size=(36, 5))
    stepwise, at_once = Fitted(moments, weights, taps), Fitted(moments, weights, taps)
    for gone in ([2], [2, 7, 8], [2, 7, 8], [0, 2, 3, 7, 8, 11]):
        assert stepwise.has_lost_only(np.array(gone))
        stepwise.lose(np.array(gone))
    at_once.lose(np.array(gone))
    stays = np.setdiff1d(np.arange(12), gone)
    rows = np.flatnonzero(np.isin(np.arange(36) // taps, stays))
    expected = np.linalg.lstsq(patches[:, rows], patches @ weights, rcond=None)[0]
    for fit_ in (stepwise, at_once):
        assert fit_.stays.tolist() == stays.tolist()
        np.testing.assert_allclose(fit_.weights, expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(fit_.inverse, np.linalg.inv(moments[np.ix_(rows, rows)]), rtol=1e-8)
    assert not stepwise.has_lost_only(np.array([2, 7]))


def test_channels_that_come_back_are_measured_anew() -> None:
    graph = small()
    readers = Readers(graph, inputs(graph, 16))
    axes = list(readers.contributions(True, {}))
    first = {a: w.copy() for a, w in readers.contributions(True, {axes[0]: np.array([1])}).items()}
    readers.contributions(True, {axes[0]: np.array([1, 2])})
    readers.contributions(True, {axes[0]: np.array([0])})
    other = Readers(graph, inputs(graph, 16))
    for axis, expected in other.contributions(True, {axes[0]: np.array([1])}).items():
        np.testing.assert_allclose(first[axis], expected, rtol=1e-9)
    mine, theirs = (r.contributions(True, {axes[0]: np.array([0, 3])}) for r in (readers, other))
    for axis, expected in theirs.items():
        np.testing.assert_allclose(mine[axis], expected, rtol=1e-8)


def test_a_fit_that_does_not_help_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = small()
    data = inputs(graph, 16)
    use = Resources(calibration=lambda: iter(data))
    plain = PruneChannels(flops=0.6, score="l2")(graph, use)
    errors = iter([0.1, 0.2])
    monkeypatch.setattr(recover, "output_error", lambda *args: next(errors))
    outcome = PruneChannels(flops=0.6, score="l2", recover="least-squares").run(graph, use)
    assert any("would rise from 0.1 to 0.2; the old weights stay" in str(r) for r in outcome.refusals)
    for value in plain.parameters():
        np.testing.assert_array_equal(outcome.graph.value(value.ref).constant, value.constant)


class Statistics(recover.Refit):
    """One normalisation, and what it reads with the pruned and the whole weights."""

    def __init__(self, graph: Graph, now: np.ndarray, was: np.ndarray) -> None:
        self.pruned, self._saved, self._read = graph, {}, [(now, was)]

    def _pairs(self, ref: ValueRef) -> list[tuple[np.ndarray, np.ndarray]]:  # type: ignore[override]
        return self._read


def test_statistics_move_with_what_is_read_and_variances_to_a_quarter_at_least_and_fourfold_at_most() -> None:
    b = Builder()
    scale, shift, mean, var = (np.array(v, np.float32) for v in ((1, 1, 1), (0, 0, 0), (1, 2, 3), (1, 2, 3)))
    made = b.apply("BatchNormalization", b.input("x", 5, 3, 8), *map(b.const, (scale, shift, mean, var)))
    b.task("t", made)
    was = np.random.default_rng(0).normal(size=(5, 3, 8))
    now = was * np.array([0.1, 1.5, 10])[:, None] + 7
    Statistics(b.graph, now, was)._statistics(b.graph.nodes()[0])
    _, _, _, moved, spread = b.graph.operands(b.graph.nodes()[0])
    np.testing.assert_allclose(moved.constant, mean + now.mean(axis=(0, 2)) - was.mean(axis=(0, 2)), rtol=1e-5)
    np.testing.assert_allclose(spread.constant, var * [0.25, 1.5**2, 4], rtol=1e-5)


def test_types_stay_float32() -> None:
    graph = small()
    data = inputs(graph, 12)
    after = PruneChannels(flops=0.6, recover="least-squares")(graph, Resources(calibration=lambda: iter(data)))
    assert {v.dtype for v in after.parameters()} == {DType.FLOAT32}
    assert after.value(ValueRef("gemm:0")).shape == (1, 5)


def test_inputs_beyond_numbers_leave_the_old_weights() -> None:
    """One infinite input makes every moment no number: no fit may come of it."""
    graph = small()
    feeds = inputs(graph, 16)
    feeds[0] = {"x": np.full((1, 3, 8, 8), np.inf, np.float32)}
    use = Resources(calibration=lambda: feeds)
    plain, fitted = (PruneChannels(flops=0.5, score="l2", recover=r)(graph, use) for r in ("none", "least-squares"))
    for value in plain.parameters():
        assert np.array_equal(fitted.value(value.ref).constant, value.constant)


@pytest.mark.parametrize("pattern", ["block4x1", "unstructured"])
def test_weights_that_are_stored_sparse_are_not_filled(pattern: str) -> None:
    graph = parse_pass(f"sparsify{{pattern={pattern},density=0.5,dense=last,min_inputs=1}}")(small())
    feeds = inputs(graph, 24)
    told = PruneChannels(flops=0.4, multiple=4, recover="least-squares").run(
        graph, Resources(calibration=lambda: feeds)
    )
    (second,) = (s.operands[1] for s in told.graph.sites() if s.node.ref.name == "conv.1")
    assert second.shape[1] < 12 and not isinstance(second.type.encoding, Dense)
    reason = "its weights are stored sparse, and a fit would fill them; the old weights stay"
    assert ("Conv 'conv.1'", reason) in [(r.where, r.reason) for r in told.refusals]
    before, after = (cost_report(g).combinations[0].cost for g in (graph, told.graph))
    assert after.weight_bytes < before.weight_bytes and after.macs < before.macs
