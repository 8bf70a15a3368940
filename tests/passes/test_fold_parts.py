"""Linear layers, affine nodes and known elements by themselves, against onnx's own arithmetic."""

from __future__ import annotations

import itertools
import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from compiler.ir.dead import sweep
from compiler.ir.graph import Graph
from compiler.ir.reference import difference, evaluate, random_feeds
from compiler.ir.types import DType, ValueRef
from compiler.passes import linear
from compiler.passes.constants import known_elements
from compiler.passes.dead import RemoveDeadCode
from compiler.passes.dead_channels import DeadChannels
from compiler.passes.dedupe import Deduplicate, attribute_key
from compiler.passes.extract import ExtractTasks
from compiler.passes.fold import FoldConstants
from compiler.passes.fold_batch_norm import FoldBatchNorm, affine_of, along
from compiler.passes.linear import Affine, layer_of, only_reader, per_output
from tests.graphs import Builder


def drift(before: Graph, after: Graph) -> float:
    feeds = random_feeds(before, np.random.default_rng(5))
    expected, found = evaluate(before, feeds), evaluate(after, feeds)
    pairs = zip(before.outputs, after.outputs, strict=True)
    return max(difference(found[n.ref.name], expected[o.ref.name]) for o, n in pairs)


def kinds(graph: Graph) -> list[str]:
    return [n.op.name for n in graph.nodes()]


# ---------------------------------------------------------------------- affine nodes
def test_one_affine_map_behind_another() -> None:
    x = np.array([1.0, 2.0])
    first, second = (
        Affine(np.array([2.0, 1.0]), np.array([0.0, 3.0])),
        Affine(np.array([5.0, 7.0]), np.array([1.0, 0.0])),
    )
    both = first.then(second)
    np.testing.assert_array_equal(
        x * both.scale + both.shift, (x * first.scale + first.shift) * second.scale + second.shift
    )
    same = Affine.identity(2)
    assert not same.shifts and not same.scales and same.scale.tolist() == [1, 1] and same.shift.tolist() == [0, 0]
    assert first.shifts and first.scales
    assert not Affine(np.array([1.0, 2.0]), np.zeros(2)).shifts and not Affine(np.ones(2), np.ones(2)).scales


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("shape", [(), (3,), (1, 3), (2, 1, 1)])
def test_arithmetic_with_a_constant_is_an_affine_map_or_none(op: str, first: bool, shape: tuple[int, ...]) -> None:
    b = Builder(seed=1)
    x, c = b.input("x", 2, 2, 3), b.const(b.rng.uniform(1, 2, shape).astype(np.float32))
    y = b.apply(op, c, x) if first else b.apply(op, x, c)
    b.task("t", y)
    graph = b.done()
    (site,) = graph.sites()
    found = affine_of(site, 2)
    varies = shape == (2, 1, 1)
    assert (found is None) == (varies or (op == "Div" and first))
    if found is not None:
        data = np.random.default_rng(0).normal(size=(2, 2, 3)).astype(np.float32)
        (expected,) = evaluate(graph, {"x": data}).values()
        assert found[0].ref == x
        np.testing.assert_allclose(data * found[1].scale + found[1].shift, expected, rtol=1e-6)


def test_what_is_no_affine_node() -> None:
    def of(
        op: str, *shapes: tuple[int, ...], axis: int = 1, dtype: DType = DType.FLOAT32, data: object = None
    ) -> bool:
        b = Builder()
        x = b.input("x", *shapes[0], dtype=dtype)
        others = [b.const(np.full(s, 2 if data is None else data, dtype.numpy)) for s in shapes[1:]]
        b.task("t", b.apply(op, x, *others))
        return affine_of(next(iter(b.done().sites())), axis) is not None

    assert of("Mul", (2, 3), (3,)) and of("Div", (2, 3), (1, 3))
    assert not of("Div", (2, 3), (3,), data=0)
    assert not of("Mul", (2, 3), (3,), dtype=DType.INT64)
    assert not of("Mul", (3,), (3,)) and of("Mul", (3,), (3,), axis=0)
    assert not of("Pow", (2, 3), (3,))
    assert not of("Mul", (1, 3), (2, 3)), "the result has another shape"
    assert of("BatchNormalization", (2, 3, 4), *[(3,)] * 4) and not of(
        "BatchNormalization", (2, 3, 3), *[(3,)] * 4, axis=2
    )
    b = Builder()
    x = b.input("x", 2, 3)
    b.task("t", b.apply("Mul", x, x))
    assert affine_of(next(iter(b.done().sites())), 1) is None


def test_a_splat_is_the_same_along_every_axis() -> None:
    b = Builder()
    splat = b.graph.add_parameter("s", np.broadcast_to(np.float32(3), (2, 4, 5)))
    full = b.graph.add_parameter("f", np.full((2, 4, 5), 3, np.float32))
    x = b.graph.value(b.input("x", 2, 4, 5))
    assert along(splat, x, 1).tolist() == [3.0] * 4 and along(full, x, 1) is None


@pytest.mark.parametrize("order", list(itertools.permutations(("Mul", "Add", "BatchNormalization"))))
@pytest.mark.parametrize("layer", ["Conv", "grouped", "ConvTranspose", "grouped turned"])
def test_chains_in_any_order_fold_behind_any_layer(order: tuple[str, ...], layer: str) -> None:
    b = Builder(seed=4)
    x, group = b.input("x", 1, 4, 5, 5), 2 if "grouped" in layer else 1
    if layer in ("Conv", "grouped"):
        y = b.conv(x, 6, 3, group=group, bias=False)
    else:
        y = b.apply("ConvTranspose", x, b.weight(4, 6 // group, 3, 3), b.weight(6), group=group)
    for op in order:
        if op == "BatchNormalization":
            parts = [b.const(b.rng.uniform(0.5, 1.5, 6).astype(np.float32)) for _ in range(4)]
            y = b.apply(op, y, *parts, epsilon=0.1)
        else:
            y = b.apply(op, y, b.const(b.rng.uniform(0.5, 2, (6, 1, 1)).astype(np.float32)))
    b.task("t", y)
    graph = b.done()
    after = FoldBatchNorm()(graph)
    assert len(kinds(after)) == 1 and drift(graph, after) < 1e-5
    assert all(v.dtype == DType.FLOAT32 for v in after.parameters())


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("beta", [1.0, 3.0])
@pytest.mark.parametrize("bias", [False, True])
def test_scale_and_shift_fold_into_a_product_behind(transposed: int, alpha: float, beta: float, bias: bool) -> None:
    b = Builder(seed=4)
    y = b.apply("Add", b.apply("Mul", b.input("x", 2, 4), b.weight(4, scale=1.0)), b.weight(4, scale=1.0))
    weight = b.weight(3, 4) if transposed else b.weight(4, 3)
    b.task(
        "t", b.apply("Gemm", y, weight, *([b.weight(3)] if bias else []), transB=transposed, alpha=alpha, beta=beta)
    )
    graph = b.done()
    after = FoldBatchNorm()(graph)
    assert kinds(after) == ["Gemm"] and drift(graph, after) < 1e-5


@pytest.mark.parametrize("op", ["Gemm", "Gemm turned", "MatMul", "Conv", "ConvTranspose"])
def test_an_order_of_channels_folds_into_what_reads_it(op: str) -> None:
    b = Builder(seed=4)
    shape = (1, 4, 3, 3) if "Conv" in op else (2, 4)
    h = b.apply("Gather", b.input("x", *shape), b.const(np.array([2, -4, 3, 1])), axis=1)
    weights = {
        "Gemm": (4, 3),
        "Gemm turned": (3, 4),
        "MatMul": (4, 3),
        "Conv": (3, 4, 2, 2),
        "ConvTranspose": (4, 3, 2, 2),
    }
    attrs = {"transB": 1} if "turned" in op else {}
    b.task("t", b.apply(op.split()[0], h, b.weight(*weights[op]), **attrs))
    graph = b.done()
    after = FoldBatchNorm()(graph)
    assert kinds(after) == [op.split()[0]] and drift(graph, after) < 1e-6


@pytest.mark.parametrize(
    ("index", "axis", "group"), [([0, 1, 1, 3], 1, 1), ([0, 1, 2], 1, 1), ([1, 0, 2], 2, 1), ([1, 0, 2, 3], 1, 2)]
)
def test_what_is_no_order_of_channels_stays(index: list[int], axis: int, group: int) -> None:
    b = Builder(seed=4)
    h = b.apply("Gather", b.input("x", 1, 4, 3, 3), b.const(np.array(index)), axis=axis)
    channels = b.graph.value(h).shape[1]
    b.task("t", b.apply("Conv", h, b.weight(4, channels // group, 2, 2), group=group))
    graph = b.done()
    after = FoldBatchNorm()(graph)
    assert kinds(after) == ["Gather", "Conv"] and drift(graph, after) < 1e-6


def test_a_product_without_a_bias_keeps_one_add_and_gains_by_it_or_stays() -> None:
    def after(*ops: str) -> list[str]:
        b = Builder(seed=4)
        y = b.apply("MatMul", b.input("x", 2, 4), b.weight(4, 3))
        for op in ops:
            y = b.apply(op, y, b.weight(3, scale=1.0))
        b.task("t", y)
        graph = b.done()
        made = FoldBatchNorm()(graph)
        assert drift(graph, made) < 1e-5
        return kinds(made)

    assert after("Add") == after("Add", "Add") == after("Mul", "Add") == after("Add", "Mul") == ["MatMul", "Add"]
    assert after("Mul") == after("Mul", "Div") == ["MatMul"]


def test_what_is_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(op: str, *operands: tuple[int, ...], constant: int = 1, dtype: DType = DType.FLOAT32) -> bool:
        b = Builder()
        made = [
            b.input(f"x{i}", *s, dtype=dtype) if i < constant else b.const(np.ones(s, dtype.numpy))
            for i, s in enumerate(operands)
        ]
        b.task("t", b.apply(op, *made))
        return layer_of(b.graph, b.done().nodes()[0]) is not None

    assert taken("MatMul", (2, 3), (3, 4)) and taken("MatMul", (5, 2, 3), (3, 4))
    assert not taken("MatMul", (3,), (3, 4)) and not taken("MatMul", (2, 2, 3), (2, 3, 4))
    assert not taken("MatMul", (2, 3), (3, 4), constant=2) and not taken("MatMul", (2, 3), (3, 4), constant=0)
    assert not taken("MatMul", (2, 3), (3, 4), dtype=DType.INT32)
    assert taken("Gemm", (2, 3), (3, 4), (4,)) and not taken("Add", (2, 3), (3,))
    monkeypatch.setattr(linear, "LARGEST", 4 * 12)
    assert taken("MatMul", (2, 3), (3, 4)) and not taken("MatMul", (2, 3), (3, 5))


def test_a_bias_is_a_number_per_output() -> None:
    b = Builder()
    shapes = {(4,): True, (1, 4): True, (4, 1): False, (): False, (1,): False, (2, 4): False}
    for shape, expected in shapes.items():
        assert per_output(b.graph.value(b.weight(*shape)), 4) == expected, shape


def test_the_only_reader_reads_once_and_no_task_returns_the_value() -> None:
    b = Builder()
    x = b.input("x", 2)
    once, twice, given = (b.apply("Relu", x) for _ in range(3))
    outer = b.apply("Add", b.apply("Neg", once), b.apply("Mul", twice, twice))
    b.task("t", b.apply("Add", outer, b.apply("Exp", given)), given)
    assert only_reader(b.graph, once).op.name == "Neg"
    assert only_reader(b.graph, twice) is None and only_reader(b.graph, given) is None


def test_why_a_normalisation_stays() -> None:
    b = Builder(seed=2)
    x = b.input("x", 1, 3, 4, 4)

    def norm(y: ValueRef, scale: ValueRef | None = None) -> ValueRef:
        parts = [b.weight(3), b.weight(3), b.weight(3), b.const(np.ones(3, np.float32))]
        return b.apply("BatchNormalization", y, scale or parts[0], *parts[1:])

    made = b.conv(x, 3, 1)
    b.task("a", norm(made), made)
    b.task("b", norm(b.apply("Relu", x), b.input("scale", 3)))
    b.task("c", b.apply("Relu", norm(x)))
    b.task("d", b.conv(norm(x), 2, 3, pads=(1, 0, 0, 0)))
    reasons = [r.reason for r in FoldBatchNorm().run(b.done()).refusals]
    assert sorted(reasons) == [
        "'conv.1' behind it pads with zeros, which are not shifted",
        "Conv 'conv' in front of it has other readers or is a task output",
        "its parameters are not constant",
        "neither what it reads nor everything that reads it is a linear layer with constant weights",
    ]


# ---------------------------------------------------------------------- what is known for every input
def known_by_trying(graph: Graph, ref: ValueRef, tries: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Elements that are the same on several inputs, and what they are."""
    draw, found = np.random.default_rng(3), []
    for _ in range(tries):
        feeds = {v.ref.name: draw.normal(0, 5, v.shape).astype(np.float32) for v in graph.inputs}
        found.append(evaluate(graph, feeds, keep=[ref.name])[ref.name])
    return np.all([f == found[0] for f in found], axis=0), found[0]


def mix(b: Builder) -> ValueRef:
    """[1, 4, 6, 6]: channels 1 and 3 are 2 and 0 whatever the input."""
    weight = b.weight(4, 3, 1, 1)
    data = b.graph.value(weight).constant.copy()
    data[[1, 3]] = 0
    b.graph.update(weight, data=data)
    bias = b.const(np.array([0.5, 2, -1, 0], np.float32))
    return b.apply("Conv", b.input("x", 1, 3, 6, 6), weight, bias)


STEPS = {
    "Relu": lambda b, y: b.apply("Relu", y),
    "Mul by zero": lambda b, y: b.apply("Mul", y, b.const(np.array([0, 1, 0, 1], np.float32).reshape(4, 1, 1))),
    "Add": lambda b, y: b.apply("Add", y, b.apply("Transpose", y, perm=(0, 1, 3, 2))),
    "Concat": lambda b, y: b.apply("Concat", b.apply("Neg", y), y, axis=1),
    "Gather": lambda b, y: b.apply("Gather", y, b.const(np.array([3, 0, 1])), axis=1),
    "MaxPool": lambda b, y: b.apply("MaxPool", y, kernel_shape=(2, 2), strides=(2, 2)),
    "AveragePool": lambda b, y: b.apply(
        "AveragePool", y, kernel_shape=(3, 3), pads=(1, 1, 1, 1), count_include_pad=1
    ),
    "ReduceMean": lambda b, y: b.apply("ReduceMean", y, b.const(np.array([2, 3]))),
    "ReduceSum over channels": lambda b, y: b.apply("ReduceSum", y, b.const(np.array([1]))),
    "depthwise": lambda b, y: b.conv(y, 4, 3, group=4, pads=(1, 1, 1, 1)),
    "grouped": lambda b, y: b.conv(y, 4, 1, group=2),
    "Reshape": lambda b, y: b.apply("Reshape", y, b.const(np.array([2, 2, 36]))),
    "Div": lambda b, y: b.apply("Div", y, b.const(np.full((4, 1, 1), 4, np.float32))),
}


@pytest.mark.parametrize("name", STEPS)
def test_what_is_known_is_the_same_for_every_input(name: str) -> None:
    """And what is the same for every input is known; but for sums of a value and its own negative."""
    b = Builder(seed=6)
    y = STEPS[name](b, mix(b))
    b.task("t", y)
    graph = b.done()
    fact = known_elements(graph)[y]
    same, value = known_by_trying(graph, y)
    np.testing.assert_array_equal(fact.known, same)
    np.testing.assert_allclose(fact.data[fact.known], value[same], atol=1e-6)
    assert not fact.data[~fact.known].any() and fact.complete == bool(same.all())
    assert fact.known.any() != (name in ("grouped", "ReduceSum over channels"))


def test_infinite_and_several_results_are_not_known() -> None:
    b = Builder()
    zero = b.apply("Mul", b.input("x", 1, 2), b.const(np.zeros((1, 2), np.float32)))
    log, (first, second) = (
        b.apply("Log", zero),
        b.apply("Split", zero, b.const(np.array([1, 1])), axis=1, results=2),
    )
    b.task("t", log, first, second)
    facts = known_elements(b.done())
    assert facts[zero].complete
    assert not facts[log].known.any() and not facts[first].known.any() and not facts[second].known.any()


def test_what_is_moved_by_computed_numbers_is_not_known() -> None:
    b = Builder()
    zero = b.apply("Mul", b.input("x", 2, 3), b.const(np.zeros((2, 3), np.float32)))
    picked = b.apply("Gather", zero, b.input("at", 2, dtype=DType.INT64), axis=1)
    made = [b.apply("BatchNormalization", zero, *(b.input(f"s{i}", 3) for i in range(4))), picked]
    b.task("t", *made)
    facts = known_elements(b.done())
    assert facts[zero].complete and not any(facts[m].known.any() for m in made)


@pytest.mark.parametrize("scales", [(0.0, 1.0, 0.0), (1.0, 1.0, 1.0)])
def test_a_normalisation_of_scale_zero_is_its_shift(scales: tuple[float, ...]) -> None:
    b = Builder()
    parts = [b.const(np.array(p, np.float32)) for p in (scales, (3, 4, 5), (1, 1, 1), (2, 2, 2))]
    y = b.apply("BatchNormalization", b.input("x", 2, 3, 2), *parts)
    b.task("t", y)
    fact = known_elements(b.done())[y]
    assert [bool(k.all()) for k in np.moveaxis(fact.known, 1, 0)] == [s == 0 for s in scales]
    if not scales[0]:
        assert (fact.data[:, 0] == 3).all() and (fact.data[:, 2] == 5).all()


# ---------------------------------------------------------------------- dead channels
@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    dead=st.sets(st.integers(0, 5), max_size=6),
    kernel=st.sampled_from([1, 3]),
    pad=st.integers(0, 1),
    readers=st.integers(1, 2),
    negative=st.booleans(),
    seed=st.integers(0, 20),
)
def test_dead_channels_go_and_outputs_stay(
    dead: set[int], kernel: int, pad: int, readers: int, negative: bool, seed: int
) -> None:
    """Some constants are below zero, which the Relu takes to zero: these need nobody to stand in."""
    b = Builder(seed=seed)
    weight = b.weight(6, 2, 3, 3)
    data = b.graph.value(weight).constant.copy()
    data[sorted(dead)] = 0
    b.graph.update(weight, data=data)
    bias = b.rng.uniform(0.5, 2, 6).astype(np.float32)
    if negative:
        bias[:3] *= -1
    h = b.apply("Relu", b.apply("Conv", b.input("x", 1, 2, 6, 6), weight, b.const(bias)))
    pads = (pad,) * 4
    outputs = [b.conv(h, 8, kernel, pads=pads, bias=seed % 2 == 0) for _ in range(readers)]
    b.task("t", *outputs)
    graph = b.done()
    outcome = DeadChannels().run(graph)
    assert drift(graph, outcome.graph) < 1e-5
    width = outcome.graph.value(ValueRef("conv:0")).shape[1]
    zero = {c for c in dead if bias[c] < 0}
    if len(dead) == 6:
        return  # the whole network is constant
    if not pad or dead == zero:
        assert width == 6 - len(dead)
    else:
        assert 6 - len(dead) < width <= 6 - len(zero)
    assert DeadChannels()(outcome.graph).value(ValueRef("conv:0")).shape[1] == width


# ---------------------------------------------------------------------- sweeping, equal nodes, tasks
def test_a_sweep_counts_what_goes_and_leaves_inputs() -> None:
    b = Builder()
    x, unused = b.input("x", 2), b.input("unused", 2)
    b.apply("Relu", b.apply("Add", b.apply("Neg", x), b.weight(2)))
    lonely = b.weight(3)
    b.task("t", b.apply("Exp", x))
    assert sweep(b.graph) == 3 + 2
    assert kinds(b.graph) == ["Exp"] and unused in b.graph and lonely not in b.graph
    assert sweep(b.graph) == 0
    assert kinds(RemoveDeadCode()(b.done())) == ["Exp"]


def test_attributes_are_equal_bit_by_bit() -> None:
    same = [attribute_key({"a": 1, "b": (1.0, 2.0), "c": "x"}) for _ in range(2)]
    assert same[0] == same[1] and hash(same[0]) == hash(same[1])
    others = ({"a": 1.0}, {"a": 1}, {"a": True}, {"a": "1"}, {"a": (1,)}, {"a": 0.0}, {"a": -0.0}, {"b": 1})
    assert len({attribute_key(o) for o in others}) == len(others)


def pair(change: str) -> Graph:
    """Two tasks with equal layers but for one thing in the second one."""
    b = Builder(seed=1)
    x = b.input("x", 1, 4)
    first = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    second = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    for task in "ab":
        own = task == "b"
        data, attrs, kind = second.copy(), {"alpha": 1.0}, "Gemm"
        if own and change == "elements":
            data[0, :2] += 1
        if own and change == "shape":
            data = np.ascontiguousarray(data[:, :2])
        if own and change == "attribute":
            attrs = {"alpha": 0.5}
        if own and change == "operator":
            kind, attrs = "MatMul", {}
        h = b.apply("Relu", b.apply("Gemm", x, b.const(first)))
        operands = [b.const(data)]
        if change == "left out" and not own:
            operands.append(b.const(np.ones(3, np.float32)))
        if own and change == "operand":
            operands.append(b.const(np.ones(3, np.float32)))
        b.task(task, b.apply(kind, h, *operands, **attrs))
    return b.done()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("elements", "operand 1 'p.3' differs from 'p.1' in 2 of 12 elements"),
        ("shape", r"operand 1 'p.3' is float32\[4, ?2\].*, 'p.1' is float32\[4, ?3\]"),
        ("attribute", "attribute alpha is 0.5, at Gemm 'gemm.1' it is 1.0"),
        ("operator", "the other network continues with Gemm 'gemm.1'"),
        ("operand", "operand 2 'p.4' has no counterpart"),
        ("left out", "Gemm 'gemm.1' has other operands"),
    ],
)
def test_where_networks_first_differ(change: str, reason: str) -> None:
    outcome = Deduplicate().run(pair(change))
    assert kinds(outcome.graph)[:2] == ["Gemm", "Relu"] and len(kinds(outcome.graph)) == 4
    (refusal,) = outcome.refusals
    assert refusal.where == "tasks 'a' and 'b'"
    kind = "MatMul 'matmul'" if change == "operator" else "Gemm 'gemm.3'"
    prefix = f"first differ at {kind}: "
    assert refusal.reason.startswith(prefix)
    assert re.fullmatch(reason, refusal.reason.removeprefix(prefix)), refusal.reason


def test_equal_networks_become_one_and_nothing_is_told() -> None:
    outcome = Deduplicate().run(pair(""))
    assert kinds(outcome.graph) == ["Gemm", "Relu", "Gemm"] and not outcome.refusals
    assert len(outcome.graph.parameters()) == 2


def test_extraction_keeps_what_the_tasks_need() -> None:
    b = Builder()
    x, y = b.input("x", 2), b.input("y", 2)
    common = b.apply("Relu", x)
    b.task("a", b.apply("Neg", common))
    b.task("b", b.apply("Add", common, y))
    b.task("c", x)
    graph = b.done()
    for tasks, inputs, nodes in (
        (("a",), ["x"], ["Relu", "Neg"]),
        (("b",), ["x", "y"], ["Relu", "Add"]),
        (("c",), ["x"], []),
        (("b", "a"), ["x", "y"], ["Relu", "Neg", "Add"]),
    ):
        made = ExtractTasks(tasks=tasks)(graph)
        assert [v.ref.name for v in made.inputs] == inputs and sorted(kinds(made)) == sorted(nodes)
        assert set(made.tasks) == set(tasks)


def test_folding_keeps_what_depends_on_an_input() -> None:
    b = Builder()
    x = b.input("x", 2, 3)
    constant = b.apply("Exp", b.weight(2, 3))
    b.task("t", b.apply("Add", x, constant), constant)
    graph = b.done()
    after = FoldConstants()(graph)
    assert kinds(after) == ["Add"] and drift(graph, after) == 0
    assert sorted(kinds(FoldConstants(limit=23)(graph))) == ["Add", "Exp"]
    assert kinds(FoldConstants(limit=24)(graph)) == ["Add"]
