"""The generated selftest notices what it is there to notice; foreign libraries run under emulation."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from compiler.codegen import interface
from compiler.codegen.emulate import fastest_calls, run_bench, run_selftest
from compiler.codegen.golden import Golden, Sample
from compiler.codegen.target import Feature, find_target
from compiler.compile import build
from compiler.errors import TargetError
from compiler.ir.types import DType
from tests.codegen.emulated import linkable
from tests.codegen.handmade import KERNELS, X, compile_kernels, expected, golden, tiny_bundle, tiny_library
from tests.graphs import Builder

HOST = find_target("host")


def test_passes_natively(tmp_path: Path) -> None:
    bundle = tiny_bundle(tiny_library(compile_kernels(HOST, tmp_path), (1, 3)), HOST, tmp_path / "dist")
    full, quick = run_selftest(bundle, HOST), run_selftest(bundle, HOST, quick=True)
    assert (full.status, quick.status) == ("passed", "passed")
    assert "24 runs" in full.output, (
        "2 samples x (full, 3 subsets, 2 entries), 2 pools x (full, 3 subsets, 2 entries)"
    )
    assert "4 runs" in quick.output, "full, two single tasks, full with a pool"


BROKEN = {
    "wrong value": ("y[i] = s[i] + w[i]", "y[i] = s[i] + w[i] * 1.001f", "error"),
    "reads poison": ("y[i] = v > 0 ? v : 0;", "if (v > 0) y[i] = v;", "FAILED"),
    "workspace overrun": ("float sum = 0;", "float sum = 0; ((float *)s_)[16] = 1;", "beyond its workspace"),
    "output overrun": ("y[1] = (int32_t)s[0];", "y[1] = (int32_t)s[0]; y[2] = 0;", "wrote beyond b"),
    "needs aligned inputs": (
        "const float *x = x_,",
        "if ((uintptr_t)x_ % 8) return 1; const float *x = x_,",
        "code 7",
    ),
    "kernel error": ("return EXIT", "return 1", "code 7"),
}


@pytest.mark.parametrize("name", ["a,b", "a:b", "$ORIGIN", "a b"])
def test_the_shared_library_is_found_in_any_folder(tmp_path: Path, name: str) -> None:
    """What ends a run path, or stands for something else there, may be part of a folder's name."""
    bundle = tiny_bundle(tiny_library(compile_kernels(HOST, tmp_path)), HOST, tmp_path / name)
    result = run_selftest(bundle, HOST)
    assert result is not None and result.status == "passed", result


@pytest.mark.parametrize("case", sorted(BROKEN))
def test_broken_kernels_fail(tmp_path: Path, case: str) -> None:
    old, new, message = BROKEN[case]
    objects = compile_kernels(HOST, tmp_path, KERNELS.replace(old, new))
    assert KERNELS.replace(old, new) != KERNELS
    result = run_selftest(tiny_bundle(tiny_library(objects), HOST, tmp_path / "dist"), HOST)
    assert result.status == "failed"
    assert message in result.output
    assert result.output.strip().splitlines()[-1].startswith("FAILED")


def test_subset_that_differs_from_the_full_set_fails(tmp_path: Path) -> None:
    library = tiny_library(compile_kernels(HOST, tmp_path))
    shortened = tuple(dataclasses.replace(p, calls=p.calls[1:]) if p.mask == 1 else p for p in library.programs)
    result = run_selftest(
        tiny_bundle(dataclasses.replace(library, programs=shortened), HOST, tmp_path / "dist"), HOST
    )
    assert "subset 0x1: a differs from the full set's" in result.output
    assert result.status == "failed"


def test_subsets_that_share_the_table_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interface, "SPECIALISED_CALLS", 5)
    bundle = tiny_bundle(tiny_library(compile_kernels(HOST, tmp_path)), HOST, tmp_path / "dist")
    assert {row["entry"] for row in bundle.manifest["subsets"]} == {"table"}
    assert run_selftest(bundle, HOST).status == "passed"


def test_nan_equals_nan_and_integers_are_exact(tmp_path: Path) -> None:
    x = X.copy()
    x[1] = np.nan
    objects = compile_kernels(HOST, tmp_path, KERNELS.replace("v > 0 ? v : 0", "v").replace("(int32_t)sum", "3"))
    shared_bias = (x * np.array([1, -1, 2, -2, 3, -3, 4, -4], np.float32)) + np.arange(8, dtype=np.float32)
    good = Golden(0, (Sample((x,), (shared_bias, np.array([3, 1], np.int32))),))
    bad = Golden(0, (Sample((x,), (shared_bias, np.array([4, 1], np.int32))),))
    results = [
        run_selftest(tiny_bundle(tiny_library(objects), HOST, tmp_path / n, golden=g), HOST).status
        for n, g in (("good", good), ("bad", bad))
    ]
    assert results == ["passed", "failed"]


def test_missing_cpu_feature_is_skipped_with_its_name(tmp_path: Path) -> None:
    lacking = Feature("UNOBTAINIUM", "leaf7_ebx" if HOST.arch == "x86_64" else "hwcap", 1 << 2 | 1 << 31, "")
    target = dataclasses.replace(HOST, features=(lacking,))
    bundle = tiny_bundle(tiny_library(compile_kernels(HOST, tmp_path)), target, tmp_path / "dist")
    result = run_selftest(bundle, target)
    assert (result.status, result.reason) == ("skipped", "SKIPPED this CPU lacks UNOBTAINIUM")


def test_bench_prints_json(tmp_path: Path) -> None:
    bundle = tiny_bundle(tiny_library(compile_kernels(HOST, tmp_path), (1, 3)), HOST, tmp_path / "dist")
    record = json.loads(run_bench(bundle, HOST, seconds=0.02))
    assert record["build_id"] == bundle.manifest["build_id"]
    assert [row["tasks"] for row in record["subsets"]] == ["a", "a+b"]
    assert all(0 < row["seconds_min"] <= row["seconds_median"] for row in record["subsets"])
    assert set(fastest_calls(bundle, HOST, seconds=0.02)) == {frozenset("a"), frozenset("ab")}


def test_bench_refuses_a_foreign_target(tmp_path: Path) -> None:
    name = "armv7-neon" if HOST.arch != "armv7" else "x86-64-v3"
    bundle = tiny_bundle(tiny_library(compile_kernels(HOST, tmp_path)), HOST, tmp_path / "dist")
    with pytest.raises(TargetError, match="cannot be timed"):
        run_bench(bundle, find_target(name))


def emulated(name: str, folder: Path, cpu: str = "") -> tuple[str, str]:
    target = linkable(name)
    library = tiny_library(compile_kernels(target, folder), (1, 3))
    result = run_selftest(tiny_bundle(library, target, folder / "dist"), target, cpu=cpu)
    if "cannot run or emulate" in result.reason:
        pytest.skip(result.reason)
    return result.status, result.reason


@pytest.mark.cross
@pytest.mark.parametrize("name", ["aarch64-cortex-a53", "aarch64-cortex-a72", "aarch64-cortex-a76", "armv7-neon"])
def test_passes_under_emulation_of_the_exact_cpu(tmp_path: Path, name: str) -> None:
    assert emulated(name, tmp_path) == ("passed", "")


@pytest.mark.cross
def test_older_cpu_is_refused_without_a_fault(tmp_path: Path) -> None:
    status, reason = emulated("aarch64-cortex-a76", tmp_path, cpu="cortex-a72")
    assert status == "skipped"
    assert "ASIMDDP" in reason


def test_golden_helper_matches_the_kernels() -> None:
    assert [len(s.outputs) for s in golden().samples] == [2, 2]
    np.testing.assert_array_equal(expected()[1], [82, 1])


@pytest.mark.cross
def test_numbers_of_eight_bytes_on_32_bit_arm(tmp_path: Path) -> None:
    """Conversions and divisions are calls of the compiler's library, which has a calling convention of its own."""
    b = Builder()
    x = b.input("x", 5, dtype=DType.INT64)
    y = b.apply("Add", b.apply("Mul", x, x), b.const(np.array(3)))
    outputs = [b.apply("Cast", x, to=code) for code in (TensorProto.FLOAT, TensorProto.DOUBLE)]
    outputs += [b.apply("Cast", b.apply("Cast", y, to=TensorProto.FLOAT), to=TensorProto.INT64)]
    outputs += [b.apply("Div", y, b.apply("Add", x, b.const(np.array(2)))), b.apply("Mod", y, b.const(np.array(7)))]
    b.task("t", *outputs)
    target = find_target("armv7-neon")
    built = build(b.done(), target, tmp_path / "dist", name="eight", selftest=False, allow_unlinked=True)
    result = run_selftest(built, target)
    if result.status == "skipped":
        pytest.skip(result.reason)
    assert result.status == "passed", result.output
