"""A library with hand-written divided kernels, some with scratch, so that the thread pool is tested by itself.

All values are small integers, so every order of sums gives the same bits and every lost or doubled unit shows.

spread[N] = x * w                     64 units, needed by a and b
turned[N] = spread reversed           in one piece
a[N]      = windowed sums of turned   61 units, through scratch; each reads what others wrote
b[N]      = a kernel in one piece behind a divided one of spread
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np

from compiler.codegen.bundle import Bundle, write_bundle
from compiler.codegen.golden import Golden, Sample
from compiler.codegen.link import find_toolchain
from compiler.codegen.program import Argument, Call, Kernel, Library, PoolEntry, Port, Program, TaskIO
from compiler.codegen.target import Target
from compiler.ir.types import DType, TensorType

N, WINDOW = 4096, 100
UNITS, ODD_UNITS = 64, 61
SCRATCH = 4 * (N + WINDOW)

KERNELS = f"""
#include <stdint.h>
#include <string.h>
enum {{ N = {N}, WINDOW = {WINDOW}, UNITS = {UNITS}, ODD = {ODD_UNITS} }};
int32_t k_team_0(void *x_, void *w_, void *y_, int32_t begin, int32_t end) {{
  const float *x = x_, *w = w_; float *y = y_;
  for (int i = begin * (N / UNITS); i < end * (N / UNITS); i++) y[i] = x[i] * w[i];
  return 0;
}}
int32_t k_team_1(void *x_, void *y_) {{
  const float *x = x_; float *y = y_;
  for (int i = 0; i < N; i++) y[i] = x[N - 1 - i];
  return 0;
}}
int32_t k_team_2(void *x_, void *y_, void *scratch, int32_t begin, int32_t end) {{
  float *y = y_, *copy = scratch;
  memset(copy, 0, (N + WINDOW) * sizeof(float));
  memcpy(copy, x_, N * sizeof(float));
  for (int unit = begin; unit < end; unit++)
    for (int i = unit * N / ODD; i < (unit + 1) * N / ODD; i++) {{
      float sum = 0;
      for (int j = 0; j < WINDOW; j++) sum += copy[i + j];
      y[i] = sum;
    }}
  return EXIT;
}}
"""
WEIGHTS = (np.arange(N) % 7 - 3).astype(np.float32)


def x_of(seed: int) -> np.ndarray:
    """An input of small integers."""
    return np.random.default_rng(seed).integers(-9, 10, N).astype(np.float32)


def expected(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outputs of the tasks a and b."""
    spread = x * WEIGHTS

    def windowed(values: np.ndarray) -> np.ndarray:
        total = np.concatenate([[0], np.cumsum(np.concatenate([values, np.zeros(WINDOW)]))])
        return (total[WINDOW : WINDOW + N] - total[:N]).astype(np.float32)

    return windowed(spread[::-1]), np.ascontiguousarray(windowed(spread)[::-1])


def compile_kernels(target: Target, folder: Path, *flags: str, exit_code: int = 0) -> bytes:
    """The kernels as an object for `target`."""
    toolchain = find_toolchain(target)
    assert toolchain is not None
    (folder / "kernels.c").write_text(KERNELS)
    command = (*toolchain.cc, "-O2", "-fPIC", *flags, f"-DEXIT={exit_code}", "-c", "kernels.c", "-o", "kernels.o")
    subprocess.run(command, cwd=folder, check=True)
    return (folder / "kernels.o").read_bytes()


def team_library(object_code: bytes, listed: tuple[int, ...] = (1, 2, 3), *, shared: bool = True) -> Library:
    """The library; `listed` are the masks of the specialised subsets, `shared` whether any call is for threads."""
    spread, turned, sums, scratch = (Argument("workspace", i * 4 * N) for i in range(4))
    scratch = Argument("scratch", scratch.at)
    calls = (
        Call("k_team_0", (Argument("input", 0), Argument("pool", 0), spread), 0b11, ("mul",), UNITS, shared),
        Call("k_team_1", (spread, turned), 0b01, ("turn",)),
        Call("k_team_2", (turned, Argument("output", 0), scratch), 0b01, ("sum",), ODD_UNITS, shared),
        Call("k_team_2", (spread, sums, scratch), 0b10, ("sum_b",), ODD_UNITS, shared),
        Call("k_team_1", (sums, Argument("output", 1)), 0b10, ("turn_b",)),
    )
    kind, size = TensorType(DType.FLOAT32, (N,)), scratch.at + SCRATCH
    return Library(
        name="team",
        inputs=(Port("x", kind, "x"),),
        tasks=(TaskIO("a", (Port("a/y", kind, "y"),)), TaskIO("b", (Port("b/y", kind, "y"),))),
        kernels=(
            Kernel("k_team_0", 3, "c", UNITS),
            Kernel("k_team_1", 2, "c"),
            Kernel("k_team_2", 3, "c", ODD_UNITS),
        ),
        full=Program(3, calls, size),
        programs=tuple(Program(m, tuple(c for c in calls if c.mask & m), size) for m in listed),
        pool=WEIGHTS.tobytes(),
        pool_table=(PoolEntry("w", 0, WEIGHTS.nbytes, "plain"),),
        objects=(object_code,),
        scratch_bytes=SCRATCH,
    )


def team_bundle(library: Library, target: Target, root: Path, *, threads: bool = True) -> Bundle:
    """Write the library as a bundle in `root`."""
    return write_bundle(
        library,
        target,
        root,
        sources={},
        golden=Golden(0, tuple(Sample((x_of(s),), expected(x_of(s))) for s in (1, 2))),
        graph_onnx=b"graph",
        config_text="",
        threads=threads,
    )
