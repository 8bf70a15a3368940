"""Arithmetic forms of mathematical functions against float64, over the whole range of float32."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.functions import arithmetic, expand
from compiler.codegen.lower import compile_kernels
from compiler.codegen.target import find_target
from compiler.codegen.templates.common import kernel, splat, vector, view
from tests.codegen.native import aligned, loaded

COUNT = 4096
EXACT = {
    "exp": np.exp,
    "log": np.log,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "erf": np.vectorize(math.erf, otypes=[float]),
}
SMALLEST = 2e-38
"""Results below this may be zero."""


def elementwise(name: str, width: int):
    """A PrimFunc (x, y) that applies the function to COUNT elements."""
    with kernel(("x", "y")) as made:
        x, y = (view(made.pointers[p], (COUNT,)) for p in "xy")
        with T.serial(COUNT // width) as i:
            at = vector(i * width, width)
            T.buffer_store(y, getattr(tirx, name)(x[at]), [at])
    return made.func


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("functions")
    kernels = {f"{n}{w}": elementwise(n, w) for n in EXACT for w in (1, 4)}
    # without undefined symbols: nothing comes from libm
    return loaded(compile_kernels(kernels, find_target("host")).objects.values(), folder, "-Wl,-z,defs")


def call(library, symbol: str, values: np.ndarray) -> np.ndarray:
    x, y = (aligned(4 * COUNT).view(np.float32) for _ in range(2))
    x[:] = values
    assert getattr(library, symbol)(*(ctypes.c_void_p(a.ctypes.data) for a in (x, y))) == 0
    return y.copy()


def magnitudes(low: float, high: float) -> np.ndarray:
    """COUNT positive numbers, evenly spaced in the exponent and then in the value."""
    wide = np.logspace(low, high, COUNT // 2)
    return np.concatenate([wide, np.linspace(0.01, min(10**high, 100), COUNT // 2)]).astype(np.float32)


@pytest.mark.parametrize(("name", "sign"), [(n, s) for n in EXACT for s in (1, -1) if (n, s) != ("log", -1)])
def test_relative_error(library, name: str, sign: int):
    values = sign * magnitudes(-44 if name == "log" else -37, 38 if name == "log" else 2)
    with np.errstate(over="ignore"):
        want = EXACT[name](values.astype(np.float64))
    got = call(library, f"{name}4", values)
    finite = want <= np.finfo(np.float32).max
    assert (np.abs(got - want) <= 4e-7 * np.abs(want) + SMALLEST)[finite].all()
    assert np.isposinf(got[~finite]).all()


@pytest.mark.parametrize("name", EXACT)
def test_vectors_and_scalars_agree(library, name: str):
    values = magnitudes(-3, 2)
    np.testing.assert_array_equal(call(library, f"{name}4", values), call(library, f"{name}1", values))


@pytest.mark.parametrize("name", ["tanh", "erf"])
def test_never_beyond_one(library, name: str):
    assert np.abs(call(library, f"{name}4", np.linspace(-12, 12, COUNT))).max() == 1


LIMITS = {
    "exp": (np.inf, 0, 1, 1),
    "log": (np.inf, np.nan, -np.inf, -np.inf),
    "sigmoid": (1, 0, 0.5, 0.5),
    "tanh": (1, -1, 0, -0.0),
    "erf": (1, -1, 0, -0.0),
}


@pytest.mark.parametrize("name", EXACT)
def test_infinities_zeros_and_nan(library, name: str):
    values = np.zeros(COUNT, np.float32)
    values[:5] = [np.inf, -np.inf, 0.0, -0.0, np.nan]
    got = call(library, f"{name}4", values)
    np.testing.assert_array_equal(got[:5], [*LIMITS[name], np.nan])
    np.testing.assert_array_equal(np.signbit(got[2:4]), np.signbit(LIMITS[name][2:]))


@pytest.mark.parametrize("exponent", [1, 2, 3])
def test_small_powers_become_products(exponent: int):
    x = tirx.Var("x", "float32x4")
    made = arithmetic(tirx.power(x, splat(float(exponent), 4)))
    assert "pow" not in str(made)
    assert str(made).count("t * t") == exponent - 1 if exponent < 3 else "t * t * t" in str(made)


def test_other_calls_are_left_alone():
    x = tirx.Var("x", "float32x4")
    double = tirx.Var("d", "float64")
    for call_ in (tirx.power(x, splat(2.5, 4)), tirx.sin(x), tirx.exp(double)):
        assert arithmetic(call_).same_as(call_)


def test_a_branch_not_taken_is_not_evaluated():
    """The second half of x lies outside its buffer; reading it would be a fault."""
    with kernel(("x", "y")) as made:
        x, y = (view(made.pointers[p], (COUNT,)) for p in "xy")
        with T.serial(COUNT) as i:
            value = tirx.if_then_else(i < COUNT // 2, tirx.exp(x[i]), tirx.tanh(tirx.Cast("float32", i)))
            T.buffer_store(y, value, [i])
    text = str(expand(made.func.body))
    condition, _, branches = text.partition("T.if_then_else(")
    assert "T.Let" in branches
    assert "T.Let" not in condition
