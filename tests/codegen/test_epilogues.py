"""Element-wise nodes inside the kernels of products: which ones join, and that they compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler.codegen.epilogues import BINARY, UNARY
from compiler.codegen.generate import generate
from compiler.codegen.groups import Group, make_groups
from compiler.codegen.target import find_target
from compiler.ir.reference import evaluate
from compiler.ir.types import ValueRef
from tests.codegen.native import NativeLibrary
from tests.codegen.test_generate import check
from tests.graphs import Builder

ACTIVATIONS = {
    **{name: {} for name in UNARY - {"Clip", "PRelu", "Sqrt"}},
    "LeakyRelu": {"alpha": 0.3},
    "Gelu": {"approximate": "tanh"},
}


def number(b: Builder, value: float) -> ValueRef:
    return b.const(np.float32(value))


def swish(b: Builder, x: ValueRef) -> ValueRef:
    return b.apply("Mul", x, b.apply("Sigmoid", x))


def gelu(b: Builder, x: ValueRef) -> ValueRef:
    """As exported: x / sqrt(2), erf, + 1, times x, times 0.5."""
    inner = b.apply("Erf", b.apply("Div", x, number(b, 2**0.5)))
    return b.apply("Mul", b.apply("Mul", x, b.apply("Add", inner, number(b, 1))), number(b, 0.5))


def tanh_gelu(b: Builder, x: ValueRef) -> ValueRef:
    cubic = b.apply("Mul", b.apply("Pow", x, number(b, 3)), number(b, 0.044715))
    inner = b.apply("Tanh", b.apply("Mul", b.apply("Add", x, cubic), number(b, 0.79788456)))
    return b.apply("Mul", b.apply("Mul", x, number(b, 0.5)), b.apply("Add", inner, number(b, 1)))


def hard_swish(b: Builder, x: ValueRef) -> ValueRef:
    clipped = b.apply("Clip", b.apply("Add", x, number(b, 3)), number(b, 0), number(b, 6))
    return b.apply("Div", b.apply("Mul", x, clipped), number(b, 6))


COMPOSED = {"swish": swish, "gelu": gelu, "tanh-gelu": tanh_gelu, "hard-swish": hard_swish}


def product(b: Builder, rows: int = 3, inner: int = 9, columns: int = 21) -> ValueRef:
    return b.apply("Gemm", b.input("x", rows, inner), b.weight(inner, columns), b.weight(columns))


def groups(b: Builder) -> tuple[Group, ...]:
    return make_groups(b.done())


def names(group: Group) -> list[str]:
    return [s.node.op.name for s in group.sites]


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_every_activation_of_a_matrix_product(name: str, tmp_path: Path) -> None:
    b = Builder()
    b.task("t", b.apply(name, product(b), **ACTIVATIONS[name]))
    assert check(b.done(), tmp_path) == {"gemm"}


def test_activations_with_constant_operands(tmp_path: Path) -> None:
    b = Builder()
    y = b.apply("PRelu", product(b), number(b, 0.25))
    low = b.apply("Clip", y, number(b, -0.5))
    high = b.apply("Clip", low, None, number(b, 0.75))
    b.task("t", b.apply("Sqrt", b.apply("Abs", high)))
    assert check(b.done(), tmp_path) == {"gemm"}


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("name", ["PRelu", "Clip", "Mul", "Add", "Elu", "Selu"])
def test_infinite_numbers_do_what_they_do_elsewhere(name: str, value: float, tmp_path: Path) -> None:
    b = Builder()
    y = b.conv(b.input("x", 1, 5, 6, 6), 11, 3)
    y = b.apply(name, y, alpha=value) if name in ("Elu", "Selu") else b.apply(name, y, number(b, value))
    b.task("t", b.conv(b.apply("Clip", y, number(b, -1), number(b, 1)), 13, 1))
    graph = b.done()
    library = generate(graph, find_target("host"))
    feeds = {"x": np.random.default_rng(3).normal(size=(1, 5, 6, 6)).astype(np.float32)}
    ((found,),) = NativeLibrary(library, tmp_path).run(library.full, feeds).values()
    (expected,) = evaluate(graph, feeds).values()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", COMPOSED)
def test_composed_activations(name: str, tmp_path: Path) -> None:
    b = Builder()
    b.task("t", COMPOSED[name](b, product(b)))
    x = b.input("image", 1, 5, 7, 6)
    b.task("u", COMPOSED[name](b, b.conv(x, 18, 3, pads=(1, 1, 1, 1))))
    b.task("v", COMPOSED[name](b, b.conv(b.input("wide", 1, 32, 9, 7), 33, 3, pads=(1, 1, 1, 1))))
    used = check(b.done(), tmp_path)
    assert {"winograd" if u.startswith("winograd") else u for u in used} <= {"gemm", "conv", "winograd", "copy"}


@pytest.mark.parametrize("name", sorted(BINARY))
def test_residual_before_and_after_the_activation(name: str, tmp_path: Path) -> None:
    b = Builder()
    other = b.input("other", 3, 21)
    b.task("before", b.apply("Tanh", b.apply(name, product(b), other)))
    b.task("after", b.apply(name, other, b.apply("Tanh", b.apply("Gemm", b.input("z", 3, 4), b.weight(4, 21)))))
    assert check(b.done(), tmp_path) == {"gemm"}


def test_bias_along_the_last_axis(tmp_path: Path) -> None:
    b = Builder()
    y = b.apply("MatMul", b.input("x", 2, 5, 12), b.weight(12, 21))
    b.task("t", swish(b, b.apply("Add", b.weight(21), y)))
    assert check(b.done(), tmp_path) == {"gemm"}


def test_one_of_two_products_takes_the_sum(tmp_path: Path) -> None:
    b = Builder()
    first, second = (b.apply("Gemm", b.input(n, 2, 8), b.weight(8, 8)) for n in "xy")
    b.task("t", b.apply("Relu", b.apply("Add", first, second)))
    found = groups(b)
    assert sorted(names(g) for g in found) == [["Gemm"], ["Gemm", "Add", "Relu"]]
    assert check(b.graph, tmp_path) == {"gemm"}


def test_a_value_that_others_read_ends_the_epilogue() -> None:
    b = Builder()
    y = b.apply("Relu", product(b))
    b.task("t", b.apply("Softmax", y), b.apply("Tanh", y))
    assert names(groups(b)[0]) == ["Gemm", "Relu"]


def test_an_output_ends_the_epilogue() -> None:
    b = Builder()
    y = product(b)
    b.task("t", b.apply("Tanh", y), y)
    assert names(groups(b)[0]) == ["Gemm"]


def test_another_task_set_ends_the_epilogue() -> None:
    b = Builder()
    y = b.apply("Tanh", product(b))
    b.task("t", b.apply("Softmax", y))
    b.task("u", b.apply("Relu", y))
    assert names(groups(b)[0]) == ["Gemm", "Tanh"]


@pytest.mark.parametrize("case", ["zero", "broadcast", "wider", "second residual", "infinite at zero"])
def test_what_does_not_join(case: str) -> None:
    b = Builder()
    y = product(b, rows=1 if case == "wider" else 3)
    others = {
        "zero": lambda: b.apply("Div", y, number(b, 0)),
        "broadcast": lambda: b.apply("Mul", y, b.weight(3, 1)),
        "wider": lambda: b.apply("Mul", y, b.input("other", 4, 21)),
        "second residual": lambda: b.apply("Add", b.apply("Add", y, b.input("p", 3, 21)), b.input("q", 3, 21)),
        "infinite at zero": lambda: b.apply("Reciprocal", y),
    }
    b.task("t", others[case]())
    assert names(groups(b)[0]) == ["Gemm", *(["Add"] if case == "second residual" else [])]


def test_no_kernel_has_many_functions_of_functions() -> None:
    """TVM took ten seconds for five, three minutes for six."""
    b = Builder()
    x, y = product(b), b.input("y", 4, 12)
    for _ in range(6):
        x, y = b.apply("Exp", x), b.apply("Sigmoid", y)
    b.task("a", x)
    b.task("b", y)
    found = [[n for n in names(g) if n in ("Exp", "Sigmoid")] for g in groups(b)]
    assert sorted(map(len, found)) == [3, 3, 3, 3]
