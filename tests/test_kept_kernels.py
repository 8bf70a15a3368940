"""Kernels kept between tests: what is kept stands for the same function and target alone."""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T

from compiler.codegen import lower
from compiler.codegen.target import find_target
from compiler.codegen.templates.common import kernel, view
from tests.kept_kernels import KeptKernels

HOST, ARM = (find_target(name).tvm for name in ("host", "aarch64-cortex-a72"))


def scaled(factor: float):
    """A PrimFunc (x, y): y = factor * x, of four elements."""
    with kernel(("x", "y")) as made:
        x, y = (view(made.pointers[p], (4,)) for p in "xy")
        with T.serial(4) as i:
            T.buffer_store(y, x[i] * T.float32(factor), [i])
    return made.func


def test_a_kernel_is_compiled_once_and_is_what_a_fresh_one_is(tmp_path, kept_kernels):
    asked = []

    def compile(func, target):
        asked.append((func, target))
        return kept_kernels.compile(func, target)

    kept = KeptKernels(compile, tmp_path)
    cases = [(factor, target) for factor in (2.0, 3.0) for target in (HOST, ARM)]
    first = [kept(scaled(factor), target) for factor, target in cases]
    assert len(asked) == 4 == len({code for code, _ in first})
    assert [KeptKernels(compile, tmp_path)(scaled(factor), target) for factor, target in cases] == first
    assert len(asked) == 4
    assert [kept_kernels.compile(scaled(factor), target) for factor, target in cases] == first


def test_the_tests_keep_kernels(kept_kernels):
    assert lower._compile is kept_kernels


def test_a_test_may_ask_for_fresh_ones(kept_kernels, fresh_kernels):
    assert lower._compile is kept_kernels.compile
