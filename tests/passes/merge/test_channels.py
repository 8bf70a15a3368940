"""What every kind of node does with channels, which axes they lie on, and why some are read whole."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.ir.graph import Graph, Site
from compiler.ir.types import DType
from compiler.passes.merge.channels import (
    ChannelMap,
    Matrix,
    Role,
    layer_axes,
    made_axis,
    maker_axes,
    matrices,
    one_label,
    recurrent_problem,
    table_axis,
)
from compiler.passes.merge.cuts import has_blocks
from tests.graphs import Builder

LAYER, EACH, ROUTE, WHOLE = Role.LAYER, Role.EACH, Role.ROUTE, Role.WHOLE


def site_of(op: str, *shapes: tuple[int, ...] | None, computed: tuple[int, ...] = (0,), **attrs: object) -> Site:
    """One node whose operands have these shapes; those at the places `computed` are inputs, the rest constants."""
    b = Builder()
    operands = [
        None if s is None else b.input(f"x{n}", *s) if n in computed else b.weight(*s) for n, s in enumerate(shapes)
    ]
    results = {"LSTM": 3, "GRU": 2, "RNN": 2}.get(op, 1)
    made = b.apply(op, *operands, results=results, **attrs)
    b.task("t", made if results == 1 else made[0])
    return next(b.done().sites())


# ---------------------------------------------------------------------- layers
LAYERS = {
    "conv": (site_of("Conv", (2, 3, 5, 5), (4, 3, 3, 3), (4,)), 1, 1, (1, 0)),
    "transposed conv": (site_of("ConvTranspose", (2, 3, 5, 5), (3, 4, 3, 3), (4,)), 1, 1, (0, 1)),
    "conv of one axis": (site_of("Conv", (2, 3, 5), (4, 3, 3)), 1, 1, (1, 0)),
    "gemm": (site_of("Gemm", (2, 3), (3, 4), (4,)), 1, 1, (0, 1)),
    "gemm turned": (site_of("Gemm", (2, 3), (4, 3), (1, 4), transB=1), 1, 1, (1, 0)),
    "matmul": (site_of("MatMul", (5, 2, 3), (3, 4)), 2, 2, (0, 1)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_read_and_make_channels_along_these_axes(name: str) -> None:
    site, inward, outward, dims = LAYERS[name]
    axes = site.operands[0].axis(inward), site.results[0].axis(outward)
    assert layer_axes(site) == maker_axes(site) == axes and made_axis(site) == axes[1]
    assert matrices(site) == (Matrix(1, site.operands[0], dims),)


NO_LAYERS = {
    "groups": lambda: site_of("Conv", (1, 4, 5, 5), (4, 2, 3, 3), group=2),
    "computed weights": lambda: site_of("MatMul", (2, 3), (3, 4), computed=(0, 1)),
    "a computed bias": lambda: site_of("Gemm", (2, 3), (3, 4), (4,), computed=(0, 2)),
    "constant input": lambda: site_of("MatMul", (2, 3), (3, 4), computed=(1,)),
    "one matrix for each sample": lambda: site_of("MatMul", (5, 2, 3), (5, 3, 4)),
    "a vector times a matrix": lambda: site_of("MatMul", (3,), (3, 4)),
    "a matrix times a vector": lambda: site_of("MatMul", (2, 3), (3,)),
    "alpha": lambda: site_of("Gemm", (2, 3), (3, 4), alpha=0.5),
    "beta": lambda: site_of("Gemm", (2, 3), (3, 4), (4,), beta=0.5),
    "a turned input": lambda: site_of("Gemm", (3, 2), (3, 4), transA=1),
    "a bias for each row": lambda: site_of("Gemm", (4, 3), (3, 4), (4, 1)),
    "a bias for all outputs": lambda: site_of("Gemm", (2, 3), (3, 4), (1,)),
    "a sum": lambda: site_of("Add", (2, 3), (3,)),
    "a transposed convolution by groups": lambda: site_of("ConvTranspose", (1, 4, 5, 5), (4, 2, 3, 3), group=2),
}


@pytest.mark.parametrize("name", NO_LAYERS)
def test_other_nodes_are_no_layers(name: str) -> None:
    site = NO_LAYERS[name]()
    assert layer_axes(site) is maker_axes(site) is made_axis(site) is None


def lookup(table: tuple[int, ...] = (7, 4), axis: int = 0, constant: bool = False, whole: bool = False) -> Site:
    b = Builder()
    held = b.const(np.zeros(table, np.int64 if whole else np.float32))
    at = b.const(np.array([1, 2])) if constant else b.input("at", 3, dtype=DType.INT64)
    y = b.apply("Gather", held, at, axis=axis)
    b.task("t", y)
    return next(b.done().sites())


def test_tables_are_looked_up_by_row() -> None:
    site = lookup()
    assert table_axis(site) == made_axis(site) == site.results[0].axis(1) and maker_axes(site) is None
    b = Builder()
    b.task("t", b.apply("Gather", b.input("x", 7, 4), b.input("at", 3, dtype=DType.INT64), axis=0))
    others = [lookup(axis=1), lookup(constant=True), lookup((7, 4, 2)), lookup((7,)), lookup(whole=True)]
    for other in (*others, next(b.done().sites()), site_of("Add", (2, 3), (3,))):
        assert table_axis(other) is None


def recurrent(
    op: str, gates: int, *states: tuple[int, ...], computed: tuple[int, ...] = (0,), **attrs: int
) -> Site:
    shapes = [(3, 2, 4), (1, 5 * gates, 4), (1, 5 * gates, 5), (1, 10 * gates), None, *states]
    if attrs.get("layout"):
        shapes[0] = (2, 3, 4)
    return site_of(op, *shapes, computed=computed, hidden_size=5, **attrs)


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_read_inputs_and_their_own_states(op: str, gates: int) -> None:
    site = recurrent(op, gates)
    x, y = site.operands[0], site.results[0]
    assert layer_axes(site) is None and maker_axes(site) == (x.axis(2), y.axis(3)) and made_axis(site) == y.axis(3)
    assert matrices(site) == (Matrix(1, x, (2, 1), gates), Matrix(2, y, (2, 1), gates))
    assert recurrent_problem(site) == "" and bool(one_label(site)) == (op == "GRU")
    state = (1, 2, 5)
    assert recurrent_problem(recurrent(op, gates, state)) == ""
    for at in (1, 2, 3, 5):
        assert "its weights or initial states are computed" in recurrent_problem(
            recurrent(op, gates, state, computed=(0, at))
        )
    assert "samples first (layout 1)" in recurrent_problem(recurrent(op, gates, layout=1))


def test_lengths_and_computed_parts_of_an_lstm_keep_its_units_together() -> None:
    b = Builder()
    x, lengths = b.input("x", 3, 2, 4), b.const(np.array([3, 2], np.int32))
    y = b.apply("LSTM", x, b.weight(1, 20, 4), b.weight(1, 20, 5), None, lengths, hidden_size=5, results=3)
    b.task("t", y[0])
    assert "sequences end where their own lengths say" in recurrent_problem(next(b.done().sites()))
    state, peepholes = (1, 2, 5), (1, 15)
    assert recurrent_problem(recurrent("LSTM", 4, state, state, peepholes)) == ""
    for at in (6, 7):
        assert "are computed" in recurrent_problem(recurrent("LSTM", 4, state, state, peepholes, computed=(0, at)))


# ---------------------------------------------------------------------- roles
def behind(make, last: bool = True, **options: bool) -> tuple[ChannelMap, Graph, list]:
    """Two layers of six channels, what `make` does with them, and a layer behind it; the map and what was made."""
    b = Builder()
    x = b.input("x", 1, 3, 6, 6)
    made = make(b, x, *(b.conv(x, 6, 3, pads=(1, 1, 1, 1)) for _ in range(2)))
    y = made if isinstance(made, tuple) else (made,)
    b.task("t", *(b.conv(v, 2, 1) if last else v for v in y))
    graph = b.done()
    return ChannelMap(graph, **options), graph, list(y)


def cut(b, y, low, high, axis=1):
    return b.apply("Slice", y, b.const([low]), b.const([high]), b.const([axis]))


def turned(b, y):
    return b.apply("Gather", y, b.const([5, 4, 3, 2, 1, 0]), axis=1)


ROLES = {
    "relu": (lambda b, x, y, z: b.apply("Relu", y), EACH),
    "pool": (lambda b, x, y, z: b.apply("MaxPool", y, kernel_shape=(2, 2)), EACH),
    "depthwise": (lambda b, x, y, z: b.conv(y, 6, 3, group=6), EACH),
    "two of one group": (lambda b, x, y, z: b.apply("Add", y, z), EACH),
    "constants for each channel": (lambda b, x, y, z: b.apply("Mul", y, b.weight(6, 1, 1)), EACH),
    "a cut of the map": (lambda b, x, y, z: cut(b, y, 0, 2, axis=2), EACH),
    "side by side": (lambda b, x, y, z: b.apply("Concat", y, z, axis=1), ROUTE),
    "side by side in space": (lambda b, x, y, z: b.apply("Concat", y, z, axis=2), EACH),
    "a half of two": (lambda b, x, y, z: cut(b, b.apply("Concat", y, z, axis=1), 0, 6), ROUTE),
    "split": (
        lambda b, x, y, z: b.apply("Split", b.apply("Concat", y, z, axis=1), b.const([6, 6]), axis=1, results=2),
        ROUTE,
    ),
    "a part": (lambda b, x, y, z: cut(b, y, 0, 4), ROUTE),
    "turned round": (lambda b, x, y, z: turned(b, y), EACH),
    "side by side with itself": (lambda b, x, y, z: b.apply("Concat", y, y, axis=1), EACH),
    "softmax": (lambda b, x, y, z: b.apply("Softmax", y, axis=1), WHOLE),
    "running sums of the map": (lambda b, x, y, z: b.apply("CumSum", y, b.const(2)), EACH),
    "running sums of channels": (lambda b, x, y, z: b.apply("CumSum", y, b.const([-3])), WHOLE),
    "with an input": (lambda b, x, y, z: b.apply("Add", y, b.apply("Concat", x, x, axis=1)), WHOLE),
    "beside an input": (lambda b, x, y, z: b.apply("Concat", y, x, axis=1), WHOLE),
    "groups": (lambda b, x, y, z: b.conv(y, 6, 3, group=3), WHOLE),
    "channels as positions": (
        lambda b, x, y, z: b.apply("MatMul", b.apply("Transpose", y, perm=(0, 2, 3, 1)), b.weight(6, 4)),
        LAYER,
    ),
}


@pytest.mark.parametrize("name", ROLES)
def test_what_a_node_does_with_channels(name: str) -> None:
    make, role = ROLES[name]
    found, graph, made = behind(make, last="positions" not in name)
    assert found.roles[graph.producer(made[0]).ref] is role
    dims = {found.channel_dim(graph.value(v)) for v in made}
    assert (dims == {None}) == (role is WHOLE or "positions" in name)


def of_positions(b, x, y, z):
    product = b.apply("MatMul", b.apply("Reshape", y, b.const([6, 36])), b.weight(36, 4))
    return b.apply("Reshape", product, b.const([1, 6, 2, 2]))


def summed(b, x, y, z):
    return b.apply("ReduceSum", y, b.const([1]), keepdims=1)


REASONS = [
    (summed, "ReduceSum 'reducesum' combines them with values that are read whole"),
    (lambda b, x, y, z: b.apply("CumSum", y, b.const(1)), "CumSum 'cumsum' adds up channels in their order"),
    (of_positions, "MatMul 'matmul' counts them as positions"),
    (lambda b, x, y, z: b.conv(y, 6, 3, group=3), "Conv 'conv.2' mixes channels"),
]


@pytest.mark.parametrize(("make", "reason"), REASONS)
def test_why_channels_are_read_whole(make, reason: str) -> None:
    found, _, _ = behind(make)
    assert [g.reason for g in found.groups if not g.split and g.reason == reason]


def test_a_channel_that_is_taken_twice_keeps_its_group_together() -> None:
    found, _, _ = behind(lambda b, x, y, z: b.apply("Gather", y, b.const([0, 0, 1, 2, 3, 4, 5]), axis=1))
    assert any("its channels have different numbers of entries on" in g.reason for g in found.groups if not g.split)


def test_groups_say_where_their_channels_lie() -> None:
    """Two groups side by side, in the order of their entries; pieces of six channels with four entries each."""
    b = Builder()
    x = b.input("x", 1, 3, 4, 4)
    first, second = b.apply("Relu", b.conv(x, 6, 3)), b.conv(x, 5, 3)
    both = b.apply("Concat", second, first, axis=1)
    flat = b.apply("Flatten", both)
    b.task("t", b.apply("Gemm", flat, b.weight(44, 2)))
    graph = b.done()
    found = ChannelMap(graph)
    value = graph.value
    one, two = (found.parts(value(v))[0] for v in (first, second))
    assert found.parts(value(both)) == found.parts(value(flat)) == (two, one)
    assert [found.groups[g].width for g in (one, two)] == [6, 5] and all(g.split for g in found.groups)
    assert [found.channel_dim(value(v)) for v in (x, first, both, flat)] == [None, 1, 1, 1]
    axis = value(flat).axis(1)
    assert found.groups[two].entries(axis).tolist() == [list(range(4 * c, 4 * c + 4)) for c in range(5)]
    assert found.groups[one].entries(axis)[0].tolist() == [20, 21, 22, 23]
    weight = graph.operands(graph.producer(graph.tasks["t"].outputs[0]))[1]
    assert found.counts(weight.axis(0)) and not found.counts(weight.axis(1))
    assert found.parts(value(graph.tasks["t"].outputs[0])) == () and axis in found.groups[one].axes


def test_excluded_channels_stay() -> None:
    b = Builder()
    x = b.input("x", 1, 3, 6, 6)
    first, second = b.conv(x, 6, 3), b.conv(x, 5, 3)
    b.task("t", b.conv(first, 2, 1), b.conv(second, 2, 1))
    graph = b.done()
    found = ChannelMap(graph, lambda name: name == first.name)
    assert found.channel_dim(graph.value(first)) is None and found.channel_dim(graph.value(second)) == 1


BESIDE = {
    "an input": (lambda b, x, y, z: b.apply("Concat", y, x, z, axis=1), True),
    "an input twice": (lambda b, x, y, z: b.apply("Concat", x, y, x, axis=1), False),
    "channels twice": (lambda b, x, y, z: b.apply("Concat", y, x, y, axis=1), False),
    "a constant": (lambda b, x, y, z: b.apply("Concat", y, b.weight(1, 2, 6, 6), axis=1), False),
}


@pytest.mark.parametrize("name", BESIDE)
def test_layers_may_read_channels_beside_what_is_read_whole_where_that_is_allowed(name: str) -> None:
    make, allowed = BESIDE[name]

    def sized(b, x, y, z):
        return make(b, b.apply("Tanh", x), y, z)

    for beside in (False, True):
        found, graph, (made,) = behind(sized, beside=beside)
        assert (found.roles[graph.producer(made).ref] is ROUTE) == (beside and allowed)
        assert (found.channel_dim(graph.value(made)) == 1) == (beside and allowed)


@pytest.mark.parametrize("read", ["by an activation", "as an output"])
def test_only_layers_read_channels_beside_what_is_read_whole(read: str) -> None:
    def make(b, x, y, z):
        both = b.apply("Concat", y, x, axis=1)
        if read == "as an output":
            b.task("u", both)
            return both
        return b.apply("Relu", both)

    found, graph, (made,) = behind(make, beside=True)
    assert found.channel_dim(graph.value(made)) is None


# ---------------------------------------------------------------------- blocks
def attention(b: Builder, x):
    return b.apply("MatMul", x, b.apply("Transpose", x, perm=(1, 0)))


def centred(b: Builder, x):
    return b.apply("Sub", x, b.apply("ReduceMean", x, b.const([1]), keepdims=1))


def normalised(b: Builder, x):
    return b.apply("LayerNormalization", x, b.weight(4), b.weight(4))


NO_BLOCKS = [
    lambda b, x: b.apply("MatMul", x, b.weight(4, 4)),
    lambda b, x: b.apply("Sub", x, b.apply("ReduceMax", x, b.const([1]), keepdims=1)),
    lambda b, x: b.apply("Sub", x, b.apply("ReduceMean", b.apply("Relu", x), b.const([1]), keepdims=1)),
    lambda b, x: b.apply("Sub", b.apply("ReduceMean", x, b.const([1]), keepdims=1), x),
    lambda b, x: b.apply("Sub", x, b.weight(4)),
    lambda b, x: b.apply("Add", x, b.apply("ReduceMean", x, b.const([1]), keepdims=1)),
    lambda b, x: b.apply("Sub", x, b.input("y", 4, 4)),
]


@pytest.mark.parametrize("make", [attention, centred, normalised, *NO_BLOCKS])
def test_products_of_activations_and_statistics_over_channels_make_blocks(make) -> None:
    b = Builder()
    b.task("t", b.apply("Relu", make(b, b.input("x", 4, 4))))
    assert has_blocks(b.done()) == (make not in NO_BLOCKS)
