"""A tiny library with hand-written C kernels, so that everything after code generation is tested without it.

shared[8] = relu(x * scale)          needed by a and b
a[8]      = shared + bias_a
b[2]      = (sum, first) of shared   int32
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from compiler.codegen.bundle import Bundle, write_bundle
from compiler.codegen.golden import Golden, Sample
from compiler.codegen.link import find_toolchain
from compiler.codegen.program import Argument, Call, Kernel, Library, PoolEntry, Port, Program, TaskIO
from compiler.codegen.target import Target
from compiler.ir.types import DType, TensorType

KERNELS = """
#include <stdint.h>
int32_t k_tiny_0(void *x_, void *w_, void *y_) {
  const float *x = x_, *w = w_; float *y = y_;
  for (int i = 0; i < 8; i++) { float v = x[i] * w[i]; y[i] = v > 0 ? v : 0; }
  return 0;
}
int32_t k_tiny_1(void *s_, void *w_, void *y_) {
  const float *s = s_, *w = w_; float *y = y_;
  for (int i = 0; i < 8; i++) y[i] = s[i] + w[i];
  return 0;
}
int32_t k_tiny_2(void *s_, void *y_) {
  const float *s = s_; int32_t *y = y_; float sum = 0;
  for (int i = 0; i < 8; i++) sum += s[i];
  y[0] = (int32_t)sum; y[1] = (int32_t)s[0];
  return EXIT;
}
"""
SCALE = np.array([1, -1, 2, -2, 3, -3, 4, -4], np.float32)
BIAS = np.arange(8, dtype=np.float32)
X = np.array([1, 2, 3, 4, 5, 6, 7, -8], np.float32)


def compile_kernels(target: Target, folder: Path, source: str = KERNELS, exit_code: int = 0) -> bytes:
    """The kernels as an object for `target`."""
    toolchain = find_toolchain(target)
    assert toolchain is not None
    (folder / "kernels.c").write_text(source)
    command = (*toolchain.cc, "-O1", "-fPIC", f"-DEXIT={exit_code}", "-c", "kernels.c", "-o", "kernels.o")
    subprocess.run(command, cwd=folder, check=True)
    return (folder / "kernels.o").read_bytes()


def golden() -> Golden:
    """Two samples."""
    other = np.ascontiguousarray(X[::-1])
    return Golden(7, (Sample((X,), expected()), Sample((other,), expected(other))))


def tiny_bundle(library: Library, target: Target, root: Path, **options: Any) -> Bundle:
    """Write the library as a bundle in `root`."""
    facts: dict[str, Any] = {
        "sources": {"a.onnx": "0" * 64},
        "golden": golden(),
        "graph_onnx": b"graph",
        "config_text": "schema = 1\n",
        "passes": [{"spec": "fold-constants", "exact": True}],
        "costs": [{"tasks": ["a", "b"], "level": 0, "macs": 8, "flops": 16}],
    }
    return write_bundle(library, target, root, **{**facts, **options})


def expected(x: np.ndarray = X) -> tuple[np.ndarray, np.ndarray]:
    """Outputs of the tasks a and b."""
    shared = np.maximum(x * SCALE, 0)
    return shared + BIAS, np.array([shared.sum(), shared[0]], np.int32)


def tiny_library(
    object_code: bytes, listed: tuple[int, ...] = (1, 2, 3), names: tuple[str, str] = ("a", "b"), name: str = "tiny"
) -> Library:
    """The library; `listed` are the masks of the specialised subsets."""
    source, pool = Argument("input", 0), lambda at: Argument("pool", at)
    buffer = Argument("workspace", 64)
    calls = (
        Call("k_tiny_0", (source, pool(0), buffer), 0b11, ("scale", "relu")),
        Call("k_tiny_1", (buffer, pool(64), Argument("output", 0)), 0b01, ("bias",)),
        Call("k_tiny_2", (buffer, Argument("output", 1)), 0b10, ("sum",)),
    )
    floats, integers = TensorType(DType.FLOAT32, (8,)), TensorType(DType.INT32, (2,))
    return Library(
        name=name,
        inputs=(Port("x", floats, "x"),),
        tasks=(
            TaskIO(names[0], (Port("a/y", floats, "y"),)),
            TaskIO(names[1], (Port("b/n", integers, "n"),)),
        ),
        kernels=(Kernel("k_tiny_0", 3, "c"), Kernel("k_tiny_1", 3, "c"), Kernel("k_tiny_2", 2, "c")),
        full=Program(3, calls, 96, 32),
        programs=tuple(Program(m, tuple(c for c in calls if c.mask & m), 96, 32) for m in listed),
        pool=SCALE.tobytes() + bytes(32) + BIAS.tobytes(),
        pool_table=(PoolEntry("scale", 0, 32, "plain"), PoolEntry("bias", 64, 32, "plain")),
        objects=(object_code,),
        plan={"groups": 3},
    )


def check_conversions(folder: Path) -> None:
    """gcc warns of nothing in the C files of a bundle, of conversions that change a value or a sign included."""
    sources = sorted(folder.rglob("*.c"))
    assert {"selftest.c", "bench.c", "main.c"} < {s.name for s in sources}
    command = ["gcc", "-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-fsyntax-only", "-I."]
    done = subprocess.run([*command, *sources], cwd=folder, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
