"""Readers as least-squares problems, and fits that must be exact because what was removed can be made up for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from compiler.calibration import tape
from compiler.calibration.tape import Part
from compiler.errors import UnsupportedModelError
from compiler.ir.graph import Graph, Site
from compiler.ir.op import Kept
from compiler.ir.reference import evaluate
from compiler.ir.ties import Closure
from compiler.ir.types import Axis, ValueRef
from compiler.passes.base import Refusal
from compiler.passes.prune import fit
from compiler.passes.prune.fit import GATHERED, POSITIONS, Reader, Stream, gram, reader_of, sample, scattered
from compiler.passes.prune.recover import HELD_OUT, held_out, output_error, refit, sink_of
from compiler.passes.prune.surgery import complement, remove
from tests.graphs import Builder

Feeds = list[dict[str, np.ndarray]]


def first_reader(graph: Graph) -> Reader | None:
    return reader_of(graph, next(iter(graph.sites())))


# ---------------------------------------------------------------------- patches and targets
CONVOLUTIONS = {
    "1d": ((2, 4, 9), {"kernel": 3, "strides": (2,), "pads": (2, 0), "dilations": (2,)}),
    "3d": (
        (1, 3, 4, 5, 6),
        {"kernel": (2, 3, 2), "strides": (1, 2, 2), "pads": (1, 0, 2, 0, 2, 1), "dilations": (1, 1, 2)},
    ),
    "uneven": (
        (2, 4, 5, 8),
        {"kernel": (3, 2), "strides": (1, 3), "pads": (0, 1, 2, 0), "dilations": (2, 3), "group": 2},
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_patches_of_all_positions_times_the_matrix_are_the_convolution(name: str, bias: bool) -> None:
    shape, attrs = CONVOLUTIONS[name]
    b = Builder(seed=2)
    b.task("t", b.conv(b.input("x", *shape), 6, bias=bias, **attrs))
    graph = b.done()
    reader = first_reader(graph)
    assert reader is not None
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    (y,) = evaluate(graph, {"x": x}).values()
    at, groups = np.arange(reader.positions), attrs.get("group", 1)
    assert reader.positions * 6 == y.size
    matrix = reader.matrix(reader.weight.constant)
    assert matrix.shape == (groups, reader.weight.shape[1] * reader.taps, 6 // groups)
    product = reader.patches(x, at) @ matrix
    if bias:
        product = product + reader.bias.constant.reshape(groups, 1, -1)
    assert product.dtype == reader.targets(y, at).dtype == np.float64
    np.testing.assert_allclose(product, reader.targets(y, at), atol=1e-5)
    assert reader.channel == Axis(ValueRef("x"), 1) and reader.output == Axis(ValueRef("conv:0"), 1)
    np.testing.assert_array_equal(reader.restore(matrix), reader.weight.constant)


TRANSPOSED = {
    "1d": ((2, 4, 7), (4, 6, 3), {"strides": (2,), "pads": (2, 0), "dilations": (2,), "output_padding": (1,)}),
    "3d": ((1, 3, 2, 3, 2), (3, 4, 2, 3, 2), {"strides": (2, 1, 3), "pads": (1, 0, 2, 0, 1, 1)}),
    "uneven groups": ((2, 6, 4, 5), (6, 2, 3, 2), {"strides": (3, 1), "dilations": (1, 2), "group": 3}),
    "depthwise": ((1, 4, 3, 3), (4, 1, 2, 2), {"strides": (2, 2), "group": 4}),
}


@pytest.mark.parametrize("name", TRANSPOSED)
@pytest.mark.parametrize("bias", [False, True])
def test_patches_times_the_matrix_are_the_transposed_convolution(name: str, bias: bool) -> None:
    shape, weight, attrs = TRANSPOSED[name]
    groups = attrs.get("group", 1)
    b = Builder(seed=2)
    given = [b.weight(*weight), *([b.weight(weight[1] * groups)] if bias else [])]
    b.task("t", b.apply("ConvTranspose", b.input("x", *shape), *given, **attrs))
    graph = b.done()
    reader = first_reader(graph)
    assert reader is not None and reader.depthwise == (name == "depthwise")
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    (y,) = evaluate(graph, {"x": x}).values()
    matrix = reader.matrix(reader.weight.constant)
    assert matrix.shape == (groups, weight[0] // groups * reader.taps, weight[1])
    for at in (np.arange(reader.positions), np.array([3, 0])):
        product = reader.patches(x, at) @ matrix
        if bias:
            product = product + reader.bias.constant.reshape(groups, 1, -1)
        np.testing.assert_allclose(product, reader.targets(y, at), atol=1e-5)
    assert reader.channel == Axis(ValueRef("x"), 1) and reader.output.dim == 1
    np.testing.assert_array_equal(reader.restore(matrix), reader.weight.constant)


@pytest.mark.parametrize("side", [16, 24, 36, 63])
@pytest.mark.parametrize("stride", [2, 3, 4])
def test_of_an_image_made_by_turns_of_taps_positions_of_all_turns_are_chosen(side: int, stride: int) -> None:
    size = side * stride
    for turns in ([0], [1], [3, 7, 11]):  # every fourth sample is held out, and should see all of them too
        at = np.concatenate([scattered(size * size, t) for t in turns])
        assert len(set(at % size % stride)) == stride, turns
        assert all(len(set(scattered(size * size, t))) == POSITIONS for t in turns)
    phases = {(p // size % stride, p % size % stride) for t in range(3, 80, 4) for p in scattered(size * size, t)}
    assert len(phases) == stride**2
    assert scattered(20, 3).tolist() == list(range(20))


PRODUCTS: dict[str, tuple[str, tuple[int, ...], tuple[int, int], dict[str, int], int]] = {
    "matmul of rank 3": ("MatMul", (2, 3, 5), (5, 4), {}, 2),
    "gemm": ("Gemm", (3, 5), (5, 4), {}, 1),
    "turned weight": ("Gemm", (3, 5), (4, 5), {"transB": 1}, 1),
    "turned input": ("Gemm", (5, 3), (5, 4), {"transA": 1}, 0),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_rows_times_the_matrix_are_the_product(name: str) -> None:
    op, shape, weight, attrs, channel = PRODUCTS[name]
    b = Builder(seed=2)
    b.task("t", b.apply(op, b.input("x", *shape), b.weight(*weight), **attrs))
    graph = b.done()
    reader = first_reader(graph)
    assert reader is not None and reader.taps == 1
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    (y,) = evaluate(graph, {"x": x}).values()
    assert reader.positions == y.size // 4
    matrix = reader.matrix(reader.weight.constant)
    for at in (np.arange(reader.positions), np.array([2, 0])):
        product = reader.patches(x, at) @ matrix
        np.testing.assert_allclose(product, reader.targets(y, at), atol=1e-6)
    assert reader.channel == Axis(ValueRef("x"), channel) and reader.output.dim == y.ndim - 1
    np.testing.assert_array_equal(reader.restore(matrix), reader.weight.constant)


def gemm(**attrs: float) -> Callable[[Builder], ValueRef]:
    return lambda b: b.apply("Gemm", b.input("x", 2, 3), b.weight(3, 4), b.weight(4), **attrs)


def shared(b: Builder) -> ValueRef:
    w = b.weight(3, 3)
    return b.apply("MatMul", b.apply("MatMul", b.input("x", 2, 3), w), w)


def shared_bias(b: Builder) -> ValueRef:
    bias = b.weight(3)
    y = b.apply("Gemm", b.input("x", 2, 3), b.weight(3, 3), bias)
    return b.apply("Add", y, bias)


@pytest.mark.parametrize(
    ("make", "taken"),
    [
        (gemm(), True),
        (gemm(alpha=2.0), False),
        (gemm(beta=0.5), False),
        (shared, False),
        (shared_bias, False),
        (lambda b: b.apply("MatMul", b.input("x", 2, 3), b.input("w", 3, 4)), False),
        (lambda b: b.apply("MatMul", b.weight(2, 3), b.weight(3, 4)), False),
        (lambda b: b.apply("MatMul", b.input("x", 2, 2, 3), b.weight(2, 3, 4)), False),
        (lambda b: b.apply("MatMul", b.input("x", 3), b.weight(3, 4)), False),
        (lambda b: b.apply("Add", b.input("x", 2, 3), b.weight(2, 3)), False),
    ],
)
def test_what_is_a_reader(make: Callable[[Builder], ValueRef], taken: bool) -> None:
    b = Builder()
    b.task("t", make(b))
    assert (first_reader(b.done()) is not None) == taken


def test_positions_are_spread_evenly_and_shifted_from_batch_to_batch() -> None:
    b = Builder()
    b.task("t", b.conv(b.input("x", 1, 2, 9, 9), 3, 2))
    reader = first_reader(b.done())
    assert reader is not None and reader.positions == 64 == 2 * POSITIONS
    assert sample(reader, 0).tolist() == list(range(0, 64, 2))
    assert sample(reader, 1).tolist() == list(range(1, 64, 2))  # 7919 is odd
    for width, count in ((5, 32), (6, 40)):
        b = Builder()
        b.task("t", b.conv(b.input("x", 1, 2, width, 9), 3, 2))
        reader = first_reader(b.done())
        assert reader is not None and reader.positions == count
        assert len(set(sample(reader, 3).tolist())) == min(count, POSITIONS)
        if count > POSITIONS:
            gaps = np.diff(sample(reader, 3))
            assert gaps.min() >= 1 and gaps.max() <= 2


@pytest.mark.parametrize("inputs", [3, 2 * GATHERED + 80])
@pytest.mark.parametrize("batches", [1, 5, 70])
def test_second_moments_are_the_mean_over_all_rows(inputs: int, batches: int) -> None:
    """However rows are gathered before they are multiplied."""
    b = Builder()
    b.task("t", b.apply("MatMul", b.input("x", 9, inputs), b.weight(inputs, 2)))
    reader = first_reader(b.done())
    assert reader is not None
    rows = np.random.default_rng(0).normal(size=(batches, 9, inputs)).astype(np.float32)
    flat = rows.reshape(-1, inputs).astype(np.float64)
    found = gram(reader, iter(rows))
    np.testing.assert_allclose(found[0], flat.T @ flat / len(flat), atol=1e-10)


def test_a_stream_evaluates_nodes_and_forgets_what_nobody_reads() -> None:
    b = Builder()
    x = b.input("x", 1, 3)
    h = b.apply("Relu", x)
    y = b.apply("Add", b.apply("MatMul", h, b.weight(3, 3)), h)
    b.task("t", y, h)
    graph = b.done()
    feeds = [{"x": a[None]} for a in np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)]
    stream = Stream(graph, feeds)
    assert len(stream) == 2
    for node in graph.nodes():
        stream.step(node)
        if node.op.name != "Relu":
            list(stream.read(h))  # an operand of the last two, and an output
        stream.release(node)
        (made,) = graph.results(node)
        for found, feed in zip(stream.read(made.ref), feeds, strict=True):
            np.testing.assert_array_equal(found, evaluate(graph, feed, keep=[made.ref.name])[made.ref.name])
    list(stream.read(h))
    for gone in (x, ValueRef("matmul:0")):
        with pytest.raises(KeyError):
            list(stream.read(gone))


# ---------------------------------------------------------------------- errors on held-out inputs
def test_one_batch_in_four_is_held_out() -> None:
    feeds: Feeds = [{"x": np.full((1, 1), n, np.float32)} for n in range(9)]
    assert [int(f["x"][0, 0]) for f in held_out(feeds)] == [3, 7]
    assert [int(f["x"][0, 0]) for f in held_out(feeds[:4])] == [3]
    assert [int(f["x"][0, 0]) for f in held_out(feeds[:3])] == [2]


def test_the_error_is_the_mean_over_outputs_of_lost_power() -> None:
    def scaled(first: float, second: float) -> Graph:
        b = Builder()
        x = b.input("x", 1, 2)
        b.task("t", b.apply("Mul", x, b.const(np.float32(first))), b.apply("Mul", x, b.const(np.float32(second))))
        return b.done()

    feeds: Feeds = [{"x": np.array([[3, -4]], np.float32)}] * HELD_OUT
    assert output_error(scaled(1, 10), scaled(1.5, 10), feeds) == pytest.approx(0.25 / 2)
    assert output_error(scaled(1, 10), scaled(1.5, -10), feeds) == pytest.approx((0.25 + 4) / 2)
    assert output_error(scaled(0, 1), scaled(0, 1), feeds) == 0


# ---------------------------------------------------------------------- fits
def redundant(after: str) -> tuple[Graph, Kept, Graph]:
    """Hidden units of which one is the sum of two others and one is constant; both are removed.

    `after` says what is behind the layer that reads them, which is what takes up the constant.
    """
    b = Builder(seed=7)
    first = b.rng.normal(size=(6, 5)).astype(np.float32)
    first[:, 3], first[:, 4] = first[:, 0] + first[:, 1], 0
    shift = np.array([0, 0, 0, 0, 2], np.float32)
    h = b.apply("Gemm", b.input("x", 1, 6), b.const(first, "w"), b.const(shift, "shift"))
    y = b.apply("Gemm", h, b.weight(5, 4), b.weight(4)) if after == "own" else b.apply("MatMul", h, b.weight(5, 4))
    if after == "Add":
        y = b.apply("Add", y, b.weight(4))
    elif after == "Add in front":
        y = b.apply("Add", b.weight(1, 4), y)
    elif after == "BatchNormalization":
        parts = [b.const(b.rng.uniform(0.5, 1.5, 4).astype(np.float32)) for _ in range(4)]
        y = b.apply("BatchNormalization", y, *parts)
    b.task("t", y)
    graph = b.done()
    closure = Closure(graph)
    (group,) = closure.groups
    axis = Axis(ValueRef("gemm:0"), 1)
    removal = closure.removal([a for a in group.atoms if int(a.entries[axis][0]) >= 3])
    pruned = graph.copy()
    remove(pruned, removal)
    return graph, complement(graph, removal), pruned


def drawn(count: int, seed: int = 0) -> Feeds:
    return [{"x": x[None]} for x in np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)]


@pytest.mark.parametrize("after", ["own", "Add", "Add in front", "BatchNormalization"])
def test_what_others_can_make_up_for_is_not_lost(after: str) -> None:
    """Sums by weights, constants by whatever takes up a constant; also on inputs that were never seen."""
    graph, kept, pruned = redundant(after)
    feeds, unseen = drawn(40), drawn(12, seed=1)
    assert output_error(graph, pruned, unseen) > 0.05
    assert refit(graph, pruned, kept, feeds) == []
    assert output_error(graph, pruned, unseen) < 1e-6
    others = [v for v in graph.parameters() if v.ref.name in ("w", "shift")]
    for value in others:
        np.testing.assert_array_equal(pruned.value(value.ref).constant, value.constant[..., :3])


def test_without_a_place_for_a_constant_there_is_none() -> None:
    graph, kept, pruned = redundant("")
    refit(graph, pruned, kept, drawn(40))
    names = {v.ref.name for v in pruned.parameters()}
    assert names == {"w", "shift", "w.1"} and output_error(graph, pruned, drawn(12, seed=1)) > 1e-3


def test_too_few_inputs_leave_the_old_weights() -> None:
    graph, kept, pruned = redundant("own")
    before = {v.ref: v.constant for v in pruned.parameters()}
    told = refit(graph, pruned, kept, drawn(HELD_OUT - 1))
    assert told == [Refusal("Gemm 'gemm.1'", "held-out error does not fall; the old weights stay")]
    assert all(np.array_equal(pruned.value(r).constant, data) for r, data in before.items())


def test_a_fit_that_does_worse_on_held_out_inputs_is_not_taken() -> None:
    """Inputs of the fit say that two units go together, those held out say the opposite."""
    b = Builder(seed=7)
    h = b.apply("MatMul", b.input("x", 1, 2), b.const(np.eye(2, dtype=np.float32)))
    b.task("t", b.apply("MatMul", h, b.const(np.array([[1.0], [0.5]], np.float32))))
    graph = b.done()
    closure = Closure(graph)
    removal = closure.removal([closure.groups[0].atoms[1]])
    pruned = graph.copy()
    remove(pruned, removal)
    draw = np.random.default_rng(0)
    feeds = []
    for n in range(32):
        a = float(draw.normal())
        feeds.append({"x": np.array([[a, -a if n % HELD_OUT == HELD_OUT - 1 else a]], np.float32)})
    told = refit(graph, pruned, complement(graph, removal), feeds)
    assert [t.where for t in told] == ["MatMul 'matmul.1'"]
    assert pruned.value(ValueRef("p.1")).constant.tolist() == [[1.0]]


def sink(make: Callable[[Builder, ValueRef], Sequence[ValueRef]]) -> tuple[str, int] | None:
    """Name and sign of what takes up a constant of a product with 4 outputs."""
    b = Builder()
    y = b.apply("MatMul", b.input("x", 2, 3), b.weight(3, 4))
    b.task("t", *make(b, y))
    reader = first_reader(b.done())
    assert reader is not None
    found = sink_of(b.graph, reader)
    return None if found is None else (found.value.ref.name, found.sign)


def test_where_a_constant_can_go() -> None:
    def normalised(b: Builder, y: ValueRef) -> list[ValueRef]:
        return [b.apply("BatchNormalization", y, *(b.const(np.ones(4, np.float32), n) for n in "abmv"))]

    def twice(b: Builder, y: ValueRef) -> list[ValueRef]:
        c = b.weight(4)
        return [b.apply("Add", b.apply("Add", y, c), c)]

    assert sink(lambda b, y: [b.apply("Add", y, b.const(np.ones(4, np.float32)))]) == ("p", 1)
    assert sink(lambda b, y: [b.apply("Add", b.const(np.ones((1, 4), np.float32)), y)]) == ("p", 1)
    assert sink(normalised) == ("m", -1)
    assert sink(lambda b, y: [b.apply("Add", y, b.const(np.float32(1)))]) is None
    assert sink(lambda b, y: [b.apply("Add", y, b.const(np.ones((2, 4), np.float32)))]) is None
    assert sink(lambda b, y: [b.apply("Add", y, b.input("z", 4))]) is None
    assert sink(twice) is None
    assert sink(lambda b, y: [b.apply("Sub", y, b.weight(4))]) is None
    assert sink(lambda b, y: [b.apply("Add", y, b.weight(4)), y]) is None
    assert sink(lambda b, y: [b.apply("Add", y, b.weight(4)), b.apply("Relu", y)]) is None
    assert sink(lambda b, y: [y]) is None


def test_statistics_behind_a_layer_that_was_not_fitted_follow_its_moments() -> None:
    """The mean moves with the mean, the variance by the ratio of variances, at most four times."""
    b = Builder(seed=8)
    h = b.apply("Relu", b.conv(b.input("x", 2, 3, 6, 6), 8, 1))
    h = b.apply("Relu", b.conv(h, 5, 3))
    parts = [b.const(b.rng.uniform(0.5, 1.5, 5).astype(np.float32), n) for n in ("scale", "shift", "mean", "var")]
    b.task("t", b.conv(b.apply("BatchNormalization", h, *parts), 2, 1))
    graph = b.done()
    closure = Closure(graph)
    (group,) = (g for g in closure.groups if any(a.owner == ValueRef("conv:0") for a in g.axes))
    removal = closure.removal(group.atoms[:5])
    pruned = graph.copy()
    remove(pruned, removal)
    draw = np.random.default_rng(3)
    feeds = [{"x": draw.normal(size=(2, 3, 6, 6)).astype(np.float32)} for _ in range(12)]
    refit(graph, pruned, complement(graph, removal), feeds)
    seen = [f for i, f in enumerate(feeds) if i % HELD_OUT != HELD_OUT - 1]

    def channels(of: Graph) -> np.ndarray:
        found = [evaluate(of, f, keep=["relu.1:0"])["relu.1:0"].astype(np.float64) for f in seen]
        return np.moveaxis(np.concatenate(found), 1, -1).reshape(-1, 5)

    was, now = channels(graph), channels(pruned)
    moved = now.mean(axis=0) - was.mean(axis=0)
    assert np.abs(moved).min() > 1e-3
    np.testing.assert_allclose(
        pruned.value(ValueRef("mean")).constant, graph.value(ValueRef("mean")).constant + moved, rtol=1e-4
    )
    ratio = np.clip(now.var(axis=0) / was.var(axis=0), 0.25, 4)
    np.testing.assert_allclose(
        pruned.value(ValueRef("var")).constant, graph.value(ValueRef("var")).constant * ratio, rtol=1e-4
    )


# ---------------------------------------------------------------------- who evaluates
def network() -> Graph:
    b = Builder(seed=4)
    x = b.input("x", 1, 3, 8, 8)
    y = b.apply("Relu", b.apply("Conv", x, b.weight(8, 3, 3, 3), pads=[1, 1, 1, 1]))
    y = b.apply("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    b.task("t", b.apply("Gemm", b.apply("Flatten", y), b.weight(5, 128), transB=1))
    return b.done()


def streamed(graph: Graph, feeds: Sequence[Mapping[str, np.ndarray]]) -> list[np.ndarray]:
    stream = Stream(graph, feeds)
    for site in graph.sites():
        stream.step(site.node)
    return list(stream.read(graph.tasks["t"].outputs[0]))


@pytest.mark.parametrize("opens", [True, False])
def test_much_work_is_onnxruntimes_where_it_has_the_operator(monkeypatch, opens):
    graph = network()
    feeds = [{"x": np.random.default_rng(i).normal(size=(1, 3, 8, 8)).astype(np.float32)} for i in range(2)]
    wanted = streamed(graph, feeds)
    asked = []

    def part_of(sites: Sequence[Site]) -> Part:
        asked.extend(s.node.op.name for s in sites)
        if not opens:
            raise UnsupportedModelError("no kernel")
        return tape.part_of(sites)

    monkeypatch.setattr(fit, "part_of", part_of)
    monkeypatch.setattr(fit, "LARGE", 2 * 5 * 128)
    found = streamed(graph, feeds)
    assert asked == ["Conv", "Gemm"], "the rest multiplies nothing"
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True))
    monkeypatch.setattr(fit, "LARGE", 2 * 5 * 128 + 1)
    streamed(graph, feeds)
    assert asked == ["Conv", "Gemm", "Conv"]
