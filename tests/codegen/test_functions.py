"""Vector activation functions against float64, over the whole range of float32."""

from __future__ import annotations

import ctypes
import subprocess

import numpy as np
import pytest
from tvm.script.ir_builder import tirx as T

from compiler.codegen.lower import compile_kernels
from compiler.codegen.target import find_target
from compiler.codegen.templates.common import kernel, vector, view
from compiler.codegen.templates.functions import Functions
from tests.codegen.native import aligned

COUNT, WIDTH = 4096, 4
EXACT = {
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Tanh": np.tanh,
    "Relu": lambda x: np.maximum(x, 0),
}


def elementwise(name: str):
    """A PrimFunc (x, y) that applies the function to COUNT elements."""
    with kernel(("x", "y")) as made:
        x, y = (view(made.pointers[p], (COUNT,)) for p in "xy")
        functions = Functions(WIDTH)
        with T.serial(COUNT // WIDTH) as i:
            at = vector(i * WIDTH, WIDTH)
            T.buffer_store(y, functions.apply(name, x[at]), [at])
    return made.func


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("functions")
    compiled = compile_kernels({n.lower(): elementwise(n) for n in EXACT}, find_target("host"))
    (folder / "k.o").write_bytes(compiled.object_code)
    subprocess.run(["gcc", "-shared", "-o", folder / "k.so", folder / "k.o", "-lm"], check=True)
    return ctypes.CDLL(str(folder / "k.so"))


def call(library, name: str, values: np.ndarray) -> np.ndarray:
    x, y = (aligned(4 * COUNT).view(np.float32) for _ in range(2))
    x[:] = values
    assert getattr(library, name.lower())(*(ctypes.c_void_p(a.ctypes.data) for a in (x, y))) == 0
    return y.copy()


@pytest.mark.parametrize("name", EXACT)
def test_relative_error(library, name: str):
    magnitudes = np.logspace(-30, 1.9, COUNT // 2)
    values = np.concatenate([magnitudes, -magnitudes]).astype(np.float32)
    want = EXACT[name](values.astype(np.float64))
    assert (np.abs(call(library, name, values) - want) <= 5e-7 * np.abs(want) + 1e-37).all()


@pytest.mark.parametrize("name", EXACT)
def test_infinities_and_nan(library, name: str):
    values = np.zeros(COUNT, np.float32)
    values[:4] = [np.inf, -np.inf, np.nan, -0.0]
    got = call(library, name, values)
    limits = {"Sigmoid": (1, 0, 0.5), "Tanh": (1, -1, 0), "Relu": (np.inf, 0, 0)}[name]
    np.testing.assert_allclose(got[[0, 1, 3]], limits, atol=1e-37, rtol=1e-6)
    assert np.isnan(got[2])
