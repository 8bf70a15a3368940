"""The lowering language on torch tensors against numpy, and where torch's own functions take over from it."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")

from compiler.ir.graph import Site  # noqa: E402
from compiler.ir.types import DType  # noqa: E402
from compiler.training.emitter import Field, TorchEmitter, torch_dtype  # noqa: E402
from compiler.training.functions import FUNCTIONS  # noqa: E402
from tests.graphs import Builder  # noqa: E402

F32, I64, BOOL = DType.FLOAT32, DType.INT64, DType.BOOL
X = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def emit() -> TorchEmitter:
    return TorchEmitter(torch.device("cpu"))


@pytest.fixture
def x(emit) -> Field:
    return emit.constant(X)


# ---------------------------------------------------------------------- reading
BODIES = {
    "whole axes": ((3, 4), lambda x, i, j: x(i, j), X),
    "axes turned": ((4, 3), lambda x, i, j: x(j, i), X.T),
    "an axis between two": ((3, 5, 4), lambda x, i, j, k: x(i, k), np.repeat(X[:, None], 5, 1)),
    "turned around an axis": ((4, 2, 3), lambda x, i, j, k: x(k, i), np.repeat(X.T[:, None], 2, 1)),
    "a number": ((4, 2), lambda x, i, j: x(1, i), np.repeat(X[1][:, None], 2, 1)),
    "two numbers": ((2,), lambda x, i: x(2, 3), np.full(2, 11, np.float32)),
    "the diagonal": ((3,), lambda x, i: x(i, i), X.diagonal()),
    "the diagonal of whole axes": ((3, 3), lambda x, i, j: x(i, i), np.repeat(X.diagonal()[:, None], 3, 1)),
    "a part of an axis": ((2, 4), lambda x, i, j: x(i, j), X[:2]),
    "a shift": ((3, 3), lambda x, i, j: x(i, j + 1), X[:, 1:]),
    "numbers outside": ((3,), lambda x, i: x(-1, 7) + x(0, 0) * i, np.full(3, 3, np.float32)),
    "places outside": ((3, 6), lambda x, i, j: x(i, j - 1), X[:, [0, 0, 1, 2, 3, 3]]),
}


@pytest.mark.parametrize("name", BODIES)
def test_reads_are_those_of_numpy(emit, x, name):
    shape, body, expected = BODIES[name]
    found = emit.compute(shape, F32, lambda *indices: body(x, *indices))
    assert found.shape == shape and found.dtype is F32
    np.testing.assert_array_equal(found.data, expected)


def test_what_reads_whole_axes_is_a_view(emit, x):
    found = emit.compute((4, 3), F32, lambda i, j: x(j, i))
    assert found.data.data_ptr() == x.data.data_ptr()


def test_a_body_may_compute_others_and_go_on_with_its_own_axes(emit, x):
    def body(i, j):
        sums = emit.reduce((4,), F32, (3,), "sum", lambda k, r: x(r, k))
        return sums(j) + x(i, j)

    np.testing.assert_array_equal(emit.compute((3, 4), F32, body).data, X.sum(0) + X)


# ---------------------------------------------------------------------- reducing
@pytest.mark.parametrize(
    ("kind", "numpy"),
    [
        *(("sum", np.sum), ("prod", np.prod), ("max", np.max), ("maximum", np.max)),
        *(("min", np.min), ("minimum", np.min)),
    ],
)
def test_reductions_are_those_of_numpy(emit, kind, numpy):
    data = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    held = emit.constant(data)
    over_two = emit.reduce((3,), F32, (4, 2), kind, lambda i, r, s: held(s, i, r))
    np.testing.assert_allclose(over_two.data, numpy(data, axis=(0, 2)), rtol=1e-5)
    over_one = emit.reduce((2, 3), F32, (4,), kind, held)
    np.testing.assert_allclose(over_one.data, numpy(data, axis=2), rtol=1e-5)
    np.testing.assert_array_equal(emit.reduce((2, 3, 4), F32, (), kind, held).data, data)


NOTHING = {"sum": 0, "prod": 1, "max": -np.inf, "maximum": -np.inf, "min": np.inf, "minimum": np.inf}


@pytest.mark.parametrize("kind", NOTHING)
def test_a_reduction_of_nothing_changes_nothing(emit, x, kind):
    found = emit.reduce((2,), F32, (3, 0), kind, lambda i, r, s: x(r, s))
    assert found.data.tolist() == [NOTHING[kind]] * 2 and found.data.dtype == torch.float32
    low, high = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    whole = {-np.inf: low, np.inf: high}.get(NOTHING[kind], NOTHING[kind])
    assert emit.reduce((1,), I64, (0,), kind, lambda i, r: i).data.tolist() == [whole]


def test_sums_of_whole_numbers_and_of_conditions_have_the_type_that_was_asked_for(emit, x):
    counted = emit.reduce((3,), I64, (4,), "sum", lambda i, r: emit.cast(x(i, r) > 4, I64))
    assert counted.data.dtype == torch.int64 and counted.data.tolist() == [0, 3, 4]
    assert emit.reduce((1,), BOOL, (4,), "max", lambda i, r: x(0, r) > 2).data.tolist() == [True]


# ---------------------------------------------------------------------- scalars
def test_constants_are_kept_and_have_their_types(emit):
    assert emit.constant(X).data is emit.constant(X.copy()).data
    same_bytes = np.frombuffer(X.tobytes(), np.int32).reshape(X.shape)
    assert emit.constant(same_bytes).data.dtype == torch.int32 and emit.constant(same_bytes).dtype is DType.INT32
    assert emit.constant(X.reshape(4, 3)).shape == (4, 3)
    assert emit.const(2, DType.FLOAT64).dtype == torch.float64 and float(emit.const(2, F32)) == 2
    assert emit.cast(2.9, I64).item() == 2 and emit.cast(True, F32).dtype == torch.float32
    assert torch_dtype(DType.UINT8) == torch.uint8


def test_select_chooses_by_element_and_by_what_is_known_beforehand(emit):
    mine, yours = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    assert emit.select(True, mine, yours) is mine and emit.select(False, mine, yours) is yours
    assert emit.select(torch.tensor([False, True]), mine, yours).tolist() == [3, 2]


A, B_ = np.array([7, -7, 6, 5]), np.array([2, 2, 3, 1])
CALLS = {
    "pow": (np.power(A, B_), A, B_),
    "fmod": (np.fmod(A, B_), A, B_),
    "add": (A + B_, A, B_),
    "sub": (A - B_, A, B_),
    "mul": (A * B_, A, B_),
    "div": (A / B_, A, B_),
    "quotient": ([3, -3, 2, 5], A, B_),
    "min": (np.minimum(A, B_), A, B_),
    "max": (np.maximum(A, B_), A, B_),
    "minimum": ([np.nan, 1.0], np.array([np.nan, 1.0]), np.array([0.0, 2.0])),
    "maximum": ([np.nan, 2.0], np.array([np.nan, 1.0]), np.array([0.0, 2.0])),
    "and": ([True, False], np.array([True, True]), np.array([True, False])),
    "or": ([True, False], np.array([True, False]), np.array([False, False])),
    "xor": ([False, True], np.array([True, True]), np.array([True, False])),
    "not": ([False, True], np.array([True, False])),
    "bitand": (A & B_, A, B_),
    "bitor": (A | B_, A, B_),
    "bitxor": (A ^ B_, A, B_),
    "bitnot": (~A, A),
    "shl": (A << B_, A, B_),
    "shr": (A >> B_, A, B_),
    "round": ([0, 2, -2], np.array([0.5, 1.5, -2.5])),
    "trunc": ([1, -1], np.array([1.7, -1.7])),
}


@pytest.mark.parametrize("name", CALLS)
def test_functions_are_those_of_numpy(emit, name):
    expected, *given = CALLS[name]
    np.testing.assert_array_equal(emit.call(name, *map(torch.tensor, given)), expected)


# ---------------------------------------------------------------------- torch's own functions
def site_of(op: str, *shapes: tuple[int, ...], dtype: DType = F32, **attrs: object) -> Site:
    """An operator with a computed first operand and random weights for the others."""
    b = Builder(seed=3)
    operands = [b.input("x", *shapes[0], dtype=dtype), *(b.weight(*s, scale=1) for s in shapes[1:])]
    b.task("t", b.apply(op, *operands, **attrs))
    return next(b.done().sites())


POOL = {"kernel_shape": (3, 2), "strides": (2, 1)}
OWN = [
    ("Conv", [(1, 4, 9), (6, 2, 3), (6,)], {"group": 2, "pads": (1, 0), "dilations": (2,)}),
    ("Conv", [(1, 2, 7, 8), (3, 2, 3, 2)], {"pads": (1, 0, 2, 1), "strides": (2, 1)}),
    ("Conv", [(1, 2, 7, 8), (3, 2, 3, 3)], {"pads": (2, 1, 2, 1)}),
    ("Conv", [(1, 2, 4, 5, 6), (3, 2, 2, 2, 2)], {"pads": (0, 1, 0, 1, 0, 2)}),
    (
        "ConvTranspose",
        [(1, 4, 7), (4, 3, 3), (6,)],
        {"group": 2, "strides": (2,), "pads": (2, 0), "dilations": (2,)},
    ),
    ("ConvTranspose", [(1, 2, 5, 6), (2, 3, 2, 3), (3,)], {"strides": (3, 2), "output_padding": (2, 1)}),
    ("ConvTranspose", [(1, 2, 3, 4, 2), (2, 3, 2, 3, 2)], {"strides": (2, 1, 2), "pads": (1, 0, 0, 0, 2, 1)}),
    ("Gemm", [(3, 4), (5, 3), (5,)], {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 3.0}),
    ("Gemm", [(4, 3), (3, 5)], {"alpha": 2.0}),
    ("Gemm", [(4, 3), (3, 5), (1, 5)], {}),
    ("MaxPool", [(1, 2, 9)], {"kernel_shape": (3,), "dilations": (2,)}),
    ("MaxPool", [(1, 2, 7, 8)], {**POOL, "pads": (0, 1, 2, 0)}),
    ("MaxPool", [(1, 2, 7, 8)], {**POOL, "pads": (1, 1, 1, 1)}),
    ("MaxPool", [(1, 2, 4, 5, 6)], {"kernel_shape": (2, 3, 2), "strides": (1, 2, 2)}),
    ("AveragePool", [(1, 2, 9)], {"kernel_shape": (3,), "strides": (2,)}),
    ("AveragePool", [(1, 2, 7, 8)], {**POOL, "pads": (1, 1, 1, 1)}),
    ("AveragePool", [(1, 2, 7, 8)], {**POOL, "pads": (1, 0, 1, 0), "count_include_pad": 1}),
    ("AveragePool", [(1, 2, 4, 5, 6)], {"kernel_shape": (2, 3, 2)}),
    ("Concat", [(1, 2, 3), (1, 5, 3)], {"axis": 1}),
    ("MatMul", [(2, 3, 4), (4, 5)], {}),
]
LEFT = [
    ("Conv", [(1, 0, 7, 8), (3, 0, 3, 3), (3,)], {}),
    ("Conv", [(1, 1, 2, 3, 2, 3), (1, 1, 2, 2, 2, 2)], {}),
    ("ConvTranspose", [(1, 0, 7, 8), (0, 3, 3, 3), (3,)], {}),
    ("ConvTranspose", [(1, 1, 2, 3, 2, 3), (1, 1, 2, 2, 2, 2)], {}),
    ("MaxPool", [(1, 2, 7, 8)], {**POOL, "ceil_mode": 1}),
    ("MaxPool", [(1, 2, 7, 8)], {**POOL, "pads": (2, 1, 2, 1)}),
    ("AveragePool", [(1, 2, 7, 8)], {**POOL, "ceil_mode": 1}),
    ("AveragePool", [(1, 2, 7, 8)], {**POOL, "pads": (1, 0, 1, 1)}),
    ("AveragePool", [(1, 2, 7, 8)], {**POOL, "pads": (2, 1, 2, 1)}),
    ("AveragePool", [(1, 2, 7, 8)], {**POOL, "dilations": (1, 2)}),
]


def test_a_pool_of_whole_numbers_is_left_to_its_lowering():
    site = site_of("MaxPool", (1, 2, 7, 8), dtype=DType.INT8, **POOL)
    assert FUNCTIONS["MaxPool"](site, [torch.zeros((1, 2, 7, 8), dtype=torch.int8)]) is None


@pytest.mark.parametrize(("op", "shapes", "attrs"), [*OWN, *LEFT], ids=lambda v: v if isinstance(v, str) else "")
def test_a_function_of_torch_gives_what_the_operator_means_or_leaves_it_to_the_lowering(emit, op, shapes, attrs):
    site = site_of(op, *shapes, **attrs)
    first = np.random.default_rng(1).normal(size=shapes[0]).astype(np.float32) - 2  # zeros of pads would win
    arrays = [first, *(v.constant for _, v in site.operands.present() if v.data is not None)]
    found = FUNCTIONS[op](site, list(map(torch.tensor, arrays)))
    if (op, shapes, attrs) in LEFT:
        assert found is None
        fields = (emit.constant(a) for a in arrays)
        found = site.node.op.lower(emit, site, *fields)[0].data
    (expected,) = site.node.op.evaluate(site, arrays)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
