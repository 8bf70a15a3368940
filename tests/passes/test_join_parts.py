"""join-siblings by its parts: which layers are siblings, what follows them, and rules of shapes by hand."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.ir.graph import Graph, Value
from compiler.ir.types import DType, TensorType
from compiler.passes import join_shapes
from compiler.passes.dead import RemoveDeadCode
from tests.graphs import Builder
from tests.passes.joining import count, joined, layers

F32 = DType.FLOAT32


def vector(b, *shape):
    return b.const(b.rng.normal(size=shape).astype(np.float32))


# ---------------------------------------------------------------------- layers that start a row
def ends(b, *parts, axis=-1):
    """A task of all parts, put together along the axis of channels."""
    b.task("t", b.apply("Relu", b.apply("Concat", *parts, axis=axis)))
    return RemoveDeadCode()(b.done())


def dense(*layers_, shape=(4, 6)):
    """Layers on one input: (operator, shape of the weight, shape of the bias or None, attributes)."""
    b = Builder()
    x, parts = b.input("x", *shape), []
    for op, weight, bias, attrs in layers_:
        operands = [x, vector(b, *weight)] + ([] if bias is None else [vector(b, *bias)])
        parts.append(b.apply(op, *operands, **attrs))
    return ends(b, *parts)


def convs(*layers_, shape=(1, 4, 6, 6)):
    """The same of convolutions: (shape of the weight, whether with a bias, attributes)."""
    b = Builder()
    x, parts = b.input("x", *shape), []
    for weight, bias, attrs in layers_:
        operands = [x, vector(b, *weight)] + ([vector(b, weight[0])] if bias else [])
        parts.append(b.apply("Conv", *operands, **attrs))
    return ends(b, *parts, axis=1)


TURNED = {"transB": 1}
ALIKE = {
    "gemm": lambda: dense(("Gemm", (6, 3), (3,), {}), ("Gemm", (6, 2), (2,), {})),
    "gemm without bias": lambda: dense(("Gemm", (6, 3), None, {}), ("Gemm", (6, 1), None, {})),
    "gemm turned": lambda: dense(("Gemm", (3, 6), (3,), TURNED), ("Gemm", (6, 6), (6,), TURNED)),
    "gemm of a turned input": lambda: dense(
        ("Gemm", (4, 3), (3,), {"transA": 1}), ("Gemm", (4, 2), (2,), {"transA": 1})
    ),
    "gemm scaled": lambda: dense(*(("Gemm", (6, n), (n,), {"alpha": 0.5, "beta": 2.0}) for n in (4, 3))),
    "biases of a row": lambda: dense(("Gemm", (6, 3), (1, 3), {}), ("Gemm", (6, 2), (1, 2), {})),
    "matmul": lambda: dense(("MatMul", (6, 3), None, {}), ("MatMul", (6, 2), None, {})),
    "matmul of three axes": lambda: dense(
        ("MatMul", (6, 3), None, {}), ("MatMul", (6, 2), None, {}), shape=(2, 3, 6)
    ),
    "conv of one axis": lambda: convs(((3, 4, 3), True, {}), ((2, 4, 3), True, {}), shape=(2, 4, 6)),
    "conv with all attributes": lambda: convs(
        *(((n, 4, 2, 3), False, {"pads": (1, 0, 2, 1), "strides": (2, 1), "dilations": (1, 2)}) for n in (2, 3))
    ),
}


@pytest.mark.parametrize("name", ALIKE)
def test_layers_that_differ_in_their_outputs_alone_are_one(name):
    graph = ALIKE[name]()
    assert layers(graph) == 2
    made = joined(graph)
    assert [n.op.name for n in made.nodes()] == [graph.nodes()[0].op.name, "Relu"]
    (layer, _) = made.sites()
    assert layer.attrs == next(graph.sites()).attrs
    assert len(layer.operands) == len(next(graph.sites()).operands)


APART = {
    "another operator": lambda: dense(("Gemm", (6, 3), None, {}), ("MatMul", (6, 2), None, {})),
    "one without bias": lambda: dense(("Gemm", (6, 3), (3,), {}), ("Gemm", (6, 2), None, {})),
    "another scale": lambda: dense(("Gemm", (6, 3), None, {}), ("Gemm", (6, 2), None, {"alpha": 0.5})),
    "one turned": lambda: dense(("Gemm", (6, 3), None, {}), ("Gemm", (2, 6), None, TURNED)),
    "a bias for all outputs": lambda: dense(("Gemm", (6, 3), (1,), {}), ("Gemm", (6, 2), (2,), {})),
    "a bias for each row": lambda: dense(("Gemm", (6, 4), (4, 1), {}), ("Gemm", (6, 4), (4, 1), {})),
    "a bias for each element": lambda: dense(("Gemm", (6, 4), (4, 4), {}), ("Gemm", (6, 4), (4, 4), {})),
    "matrices for each sample": lambda: dense(*(("MatMul", (2, 6, n), None, {}) for n in (3, 2)), shape=(2, 3, 6)),
    "a vector": lambda: dense(("MatMul", (6,), None, {}), ("MatMul", (6,), None, {}), shape=(4, 6)),
    "another kernel": lambda: convs(((2, 4, 3, 3), True, {"pads": (1,) * 4}), ((2, 4, 1, 1), True, {})),
    "another kernel of one size": lambda: convs(
        ((2, 4, 3, 1), True, {"pads": (1, 0, 1, 0)}), ((2, 4, 1, 3), True, {"pads": (0, 1, 0, 1)})
    ),
    "other pads": lambda: convs(
        ((2, 4, 2, 2), True, {"pads": (0, 0, 1, 1)}), ((2, 4, 2, 2), True, {"pads": (1, 1, 0, 0)})
    ),
    "groups": lambda: convs(((2, 2, 3, 3), True, {"group": 2}), ((4, 2, 3, 3), True, {"group": 2})),
}


@pytest.mark.parametrize("name", APART)
def test_layers_that_differ_in_more_stay_apart(name):
    graph = APART[name]()
    assert layers(graph) == 2
    assert [n.ref for n in joined(graph).nodes()] == [n.ref for n in graph.nodes()]


@pytest.mark.parametrize("which", ["weight", "bias", "input"])
def test_layers_whose_weights_are_computed_or_whose_input_is_constant_stay_apart(which):
    b = Builder()
    x, parts = b.input("x", 2, 2), []
    for _ in range(2):
        operands = [x, vector(b, 2, 2), vector(b, 2)]
        if which == "weight":
            operands = [x, x, operands[2]]
        elif which == "bias":
            operands[2] = b.apply("Squeeze", b.apply("ReduceMax", x, b.const([0])), b.const([0]))
        else:
            operands[0] = (
                b.const(np.ones((2, 2), np.float32))
                if not parts
                else b.graph.operands(b.graph.producer(parts[0]))[0].ref
            )
        parts.append(b.apply("Gemm", *operands))
    graph = ends(b, *parts, x)
    assert layers(joined(graph)) == 2


def test_layers_on_other_inputs_stay_apart():
    b = Builder()
    x = b.input("x", 1, 3)
    parts = [b.apply("MatMul", y, vector(b, 3, 2)) for y in (x, b.apply("Tanh", x))]
    assert layers(joined(ends(b, *parts))) == 2


def test_of_many_siblings_those_that_are_alike_are_joined_in_the_order_of_what_reads_them():
    b = Builder()
    x = b.input("x", 1, 3)
    widths, acts = (1, 2, 3, 4, 5), ("Relu", "Tanh", "Relu", "Tanh", "Relu")
    parts = [b.apply(act, b.apply("MatMul", x, vector(b, 3, n))) for act, n in zip(acts, widths, strict=True)]
    b.task("t", b.apply("MatMul", b.apply("Concat", *parts[::-1], axis=1), vector(b, 15, 2)))
    made = joined(b.done())
    assert sorted(v.shape[1] for s in made.sites() if s.node.op.name in ("Relu", "Tanh") for v in s.results) == [
        6,
        9,
    ]
    assert layers(made) == 3
    first = next(s for s in made.sites() if s.results[0].shape == (1, 9))
    given = [b.graph.operands(b.graph.producer(b.graph.operands(b.graph.producer(p))[0].ref))[1] for p in parts]
    expected = np.concatenate([given[n].constant for n in (4, 2, 0)], 1)
    np.testing.assert_array_equal(first.operands[1].constant, expected)
    assert first.results[0].ref.name.endswith("/joined") and first.node.ref.name.endswith("/joined")
    origins = [
        o for n in (4, 2, 0) for o in b.graph.producer(b.graph.operands(b.graph.producer(parts[n]))[0].ref).origin
    ]
    assert list(first.node.origin) == origins


# ---------------------------------------------------------------------- what goes on with a row
def pair(change, widths=(3, 5), shape=(1, 4, 6, 6)):
    """Two layers on one input, `change`d; a task of their Concat."""
    b = Builder()
    x = b.input("x", *shape)
    parts = [b.conv(x, n, 3, pads=(1,) * (2 * len(shape) - 4)) for n in widths]
    return ends(b, *change(b, x, parts), axis=1)


def each(op, **attrs):
    return lambda b, x, parts: [b.apply(op, p, **attrs) for p in parts]


def width(b, part):
    return b.graph.value(part).shape[1]


def with_constant(op, first=False, *rest):
    """An operator with a constant for each channel, as its first or second operand."""

    def change(b, x, parts):
        constants = [vector(b, width(b, p), *(rest or (1, 1))) for p in parts]
        pairs = [(c, p) if first else (p, c) for p, c in zip(parts, constants, strict=True)]
        return [b.apply(op, *operands) for operands in pairs]

    return change


def two_rows(op, turned=False):
    """An operator of two values that are both made of layers side by side."""

    def change(b, x, parts):
        others = [b.conv(x, width(b, p), 1) for p in parts]
        pairs = zip(parts, others[::-1] if turned else others, strict=True)
        return [b.apply(op, *operands) for operands in pairs]

    return change


FOLLOWS = {
    "max pool": each("MaxPool", kernel_shape=(2, 3), strides=(2, 1), pads=(0, 1, 1, 0)),
    "average pool": each("AveragePool", kernel_shape=(2, 2)),
    "global max": each("GlobalMaxPool"),
    "clip": lambda b, x, parts: [b.apply("Clip", p, b.const(np.float32(0)), b.const(np.float32(6))) for p in parts],
    "clip above": lambda b, x, parts: [b.apply("Clip", p, None, b.const(np.float32(0.1))) for p in parts],
    "leaky": each("LeakyRelu", alpha=0.2),
    "constants behind": with_constant("Sub"),
    "constants in front": with_constant("Sub", True),
    "constants of all axes": with_constant("Div", True, 6, 6),
    "squares": lambda b, x, parts: [b.apply("Mul", p, p) for p in parts],
    "two rows": two_rows("Sub"),
    "gated": lambda b, x, parts: [b.apply("Mul", b.apply("Sigmoid", p), p) for p in parts],
    "gated by another": lambda b, x, parts: [
        b.apply("Mul", b.apply("Tanh", p), b.apply("Sigmoid", p)) for p in parts
    ],
}


@pytest.mark.parametrize("name", FOLLOWS)
def test_what_does_the_same_to_each_channel_goes_on_with_a_row(name):
    graph = pair(FOLLOWS[name])
    made = joined(graph)
    assert not count(made, "Concat") and 2 * len(made.nodes()) == len(graph.nodes())


def test_each_task_goes_on_with_a_row_by_itself():
    b = Builder()
    x = b.input("x", 1, 4, 6, 6)
    parts = [b.conv(x, n, 3) for n in (3, 5)]
    for task in "ab":
        b.task(task, b.apply("Tanh", b.apply("Concat", *with_constant("Mul")(b, x, parts), axis=1)))
    made = joined(b.done())
    assert [count(made, op) for op in ("Conv", "Mul", "Tanh", "Concat")] == [1, 2, 2, 0]


def normalised(b, x, parts):
    each_ = [[b.const(b.rng.uniform(0.5, 1, width(b, p)).astype(np.float32)) for _ in range(4)] for p in parts]
    return [b.apply("BatchNormalization", p, *v) for p, v in zip(parts, each_, strict=True)]


def test_statistics_are_put_together_in_order():
    graph = pair(normalised)
    made = joined(graph)
    (norm,) = (s for s in made.sites() if s.node.op.name == "BatchNormalization")
    given = [s.operands for s in graph.sites() if s.node.op.name == "BatchNormalization"]
    for index in range(1, 5):
        expected = np.concatenate([o[index].constant for o in given])
        np.testing.assert_array_equal(norm.operands[index].constant, expected)


def one_clip(b, x, parts):
    return [b.apply("Clip", p, b.const(np.float32(n)), b.const(np.float32(6))) for n, p in enumerate(parts)]


def one_without(b, x, parts):
    low, high = b.const(np.float32(0)), b.const(np.float32(6))
    return [b.apply("Clip", parts[0], low, high), b.apply("Clip", parts[1], None, high)]


def softened(b, x, parts):
    return [b.apply("Softmax", p, axis=1) for p in parts]


def computed(b, x, parts):
    factor = b.apply("ReduceMean", x, b.const([1]), keepdims=1)
    return [b.apply("Mul", p, factor) for p in parts]


def other_computed(b, x, parts):
    means = (b.apply("GlobalAveragePool", p) for p in parts)
    return [b.apply("Mul", p, b.apply(op, m)) for op, p, m in zip(("Tanh", "Sigmoid"), parts, means, strict=True)]


def turned(b, x, parts):
    return [b.apply("Sub", parts[0], b.const(np.float32(1))), b.apply("Sub", b.const(np.float32(1)), parts[1])]


def of_each_other(b, x, parts):
    return [b.apply("Sub", parts[0], parts[1]), b.apply("Sub", parts[1], parts[0])]


def other_dilations(b, x, parts):
    return [b.conv(p, 3, 3, group=3, dilations=(n, n), pads=(n,) * 4) for n, p in enumerate(parts, 1)]


STAYS = {
    "other dilations of groups": (other_dilations, (3, 3)),
    "another bound": (one_clip, (3, 5)),
    "a bound of one alone": (one_without, (3, 5)),
    "a softmax of channels": (softened, (3, 5)),
    "other functions": (other_computed, (3, 5)),
    "the same from the other side": (turned, (3, 5)),
    "differences of each other": (of_each_other, (3, 3)),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_does_something_else_to_each_part_stays_apart(name):
    change, widths = STAYS[name]
    graph = pair(change, widths)
    made = joined(graph)
    assert layers(made) == layers(graph) and count(made, "Concat") == 1


@pytest.mark.parametrize("change", [computed, two_rows("Sub", True), with_constant("Mul", False, 1, 6)])
def test_what_is_the_same_or_can_be_put_in_order_goes_along(change):
    """One value that all read, rows the other way round, and a constant for each map of one channel."""
    made = joined(pair(change, (1, 1)))
    assert not count(made, "Concat") and count(made, "Mul", "Sub") == 1


def test_a_concat_that_has_a_value_twice_keeps_the_layers_apart():
    graph = pair(lambda b, x, parts: [parts[0], parts[1], parts[0]])
    assert layers(joined(graph)) == 2


def test_a_concat_along_another_axis_keeps_the_layers_apart():
    b = Builder()
    x = b.input("x", 1, 4, 6, 6)
    parts = [b.conv(x, 3, 1) for _ in range(2)]
    graph = ends(b, *parts, axis=2)
    assert layers(joined(graph)) == 2


def test_layers_that_two_tasks_read_apart_are_one_for_each_set_of_tasks():
    b = Builder()
    x = b.input("x", 1, 3)
    common = [b.apply("MatMul", x, vector(b, 3, n)) for n in (2, 4)]
    for task in "ab":
        own = [b.apply("MatMul", x, vector(b, 3, n)) for n in (1, 3)]
        b.task(task, b.apply("MatMul", b.apply("Concat", *common, *own, axis=1), vector(b, 10, 2)))
    made = joined(b.done())
    assert layers(made) == 3 + 2
    assert sorted(s.results[0].shape[1] for s in made.sites() if s.node.op.name == "MatMul") == [2, 2, 4, 4, 6]


# ---------------------------------------------------------------------- rules of shapes
def values(*shapes, dtype=F32) -> list[Value]:
    graph = Graph("values")
    return [graph.value(graph.add_input(f"v{n}", TensorType(dtype, s)).ref) for n, s in enumerate(shapes)]


def test_the_shape_of_values_one_after_the_other():
    assert join_shapes.wide(values((2, 3, 4), (2, 5, 4)), 1) == (2, 8, 4)
    assert join_shapes.wide(values((2, 3), (4, 3), (1, 3)), 0) == (7, 3)


def test_types_are_the_same_but_for_one_axis():
    same = join_shapes.same_but_for
    assert same(values((2, 3, 4), (2, 5, 4)), 1) and same(values((2, 3), (2, 3)), 0)
    assert not same(values((2, 3, 4), (2, 5, 4)), 0) and not same(values((2, 3, 4), (2, 5, 4)), 2)
    assert not same(values((2, 3), (2, 3, 1)), 2) and not same(values((3,), (3, 1)), 0)
    assert not same([*values((2, 3)), *values((2, 5), dtype=DType.FLOAT64)], 1)


def test_values_span_the_axis_of_their_results():
    spans = join_shapes.spans
    assert spans(values((1, 3, 1), (1, 5, 1)), values((1, 3, 6), (1, 5, 6)), 1)
    assert not spans(values((1, 3, 1), (1, 1, 1)), values((1, 3, 6), (1, 5, 6)), 1)
    assert not spans(values((1, 3, 1), (1, 5, 1)), values((1, 3, 6), (1, 5, 6)), 2)
    assert not spans(values((3, 1), (5, 1)), values((1, 3, 6), (1, 5, 6)), 1)


def test_constants_are_equal_by_value_and_computed_values_by_name():
    graph = Graph("constants")
    one, same, other, column = (
        graph.value(graph.add_parameter(f"p{n}", np.array(a, np.float32)).ref)
        for n, a in enumerate(([1, 2], [1, 2], [1, 3], [[1], [2]]))
    )
    x, y = values((2,), (2,))
    equal = join_shapes.equal
    assert equal([one, one]) and equal([one, same, one]) and equal([x, x])
    assert not equal([one, other]) and not equal([one, same, other]) and not equal([other, one, one])
    assert not equal([x, y]) and not equal([one, x]) and not equal([one, column])


def flat(shape, along, widths, op, *operands, **attrs):
    """Along which axis results lie where values of widths, along an axis of a shape, are given a new shape."""
    b = Builder()
    nodes, read = [], []
    for n, wide in enumerate(widths):
        own = tuple(wide if d == along else s for d, s in enumerate(shape))
        read.append(b.input(f"x{n}", *own))
        more = [b.const(o(wide) if callable(o) else o) for o in operands]
        nodes.append(b.graph.producer(b.apply(op, read[-1], *more, **attrs)))
    return join_shapes.joint_axis(b.graph, nodes, [b.graph.value(r) for r in read], along)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda: flat((1, 0, 2, 2), 1, (3, 5), "Flatten"), 1),
        (lambda: flat((2, 0, 2, 2), 1, (3, 5), "Flatten"), 1),
        (lambda: flat((1, 0, 2, 2), 1, (3, 5), "Flatten", axis=2), 0),
        (lambda: flat((2, 0, 2, 2), 1, (3, 5), "Flatten", axis=2), None),
        (lambda: flat((1, 0, 2, 2), 1, (3, 3), "Flatten", axis=3), 0),
        (lambda: flat((1, 0, 2, 2), 1, (3, 5), "Reshape", lambda n: [-1]), 0),
        (lambda: flat((1, 0, 2, 2), 1, (3, 5), "Reshape", lambda n: [n, 4]), 0),
        (lambda: flat((1, 0, 2, 2), 1, (3, 5), "Reshape", lambda n: [4, n]), None),
        (lambda: flat((1, 0, 2, 2), 1, (3, 5), "Reshape", lambda n: [1, n, 4]), 1),
        (lambda: flat((2, 0, 2, 2), 1, (3, 5), "Reshape", lambda n: [2, n, 4]), 1),
        (lambda: flat((2, 0, 2, 2), 1, (3, 5), "Reshape", lambda n: [2 * n, 4]), None),
        (lambda: flat((1, 0, 2), 1, (1, 1), "Reshape", lambda n: [1, 1, 2]), 1),
        (lambda: flat((1, 0, 1, 1), 1, (3, 5), "Squeeze", [2, 3]), 1),
        (lambda: flat((1, 0, 1, 1), 1, (3, 5), "Squeeze", [0, 3]), 0),
        (lambda: flat((1, 0, 1, 1), 1, (1, 1), "Squeeze", [1, 3]), None),
        (lambda: flat((1, 0, 2, 2), 1, (3, 5), "Unsqueeze", [4]), 1),
        (lambda: flat((2, 0, 2, 2), 1, (3, 5), "Unsqueeze", [0]), None),
        (lambda: flat((1, 0), 1, (3, 5), "Relu"), 1),
        (lambda: flat((2, 0, 4), 1, (3, 5), "Softmax", axis=2), None),
        (lambda: flat((1, 0, 4, 4), 1, (3, 5), "MaxPool", kernel_shape=(2, 2)), 1),
        (lambda: flat((1, 3, 0, 4), 2, (4, 5), "MaxPool", kernel_shape=(1, 2)), None),
        (lambda: flat((1, 0, 4, 4), 1, (3, 5), "GlobalAveragePool"), 1),
        (lambda: flat((0, 2, 4, 4), 0, (3, 5), "GlobalAveragePool"), None),
    ],
)
def test_results_lie_one_after_the_other_along_an_axis_of_their_own(made, expected):
    assert made() == expected
