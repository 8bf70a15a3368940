"""Generated kernels against onnx.reference, operator by operator evaluated; subsets against the full set."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tvm
from onnx import helper
from tvm import s_tir, tirx

from compiler.codegen import sharing
from compiler.codegen.elf import Elf
from compiler.codegen.generate import generate
from compiler.codegen.groups import make_groups
from compiler.codegen.lower import _without_conversions
from compiler.codegen.planner import Sources, candidates, situation
from compiler.codegen.strategies.winograd import LEAST_TAPS
from compiler.codegen.target import find_target
from compiler.codegen.templates import winograd_shape
from compiler.errors import ConfigError, LoweringError
from compiler.ir.graph import Graph
from compiler.ir.onnx_in import load
from compiler.ir.types import DType, ValueRef
from tests.codegen.native import Memory, NativeLibrary
from tests.graphs import Builder
from tests.small_models import model

KERNEL = 1e-4


def reference(graph: Graph, feeds: Mapping[str, np.ndarray]) -> dict[ValueRef, np.ndarray]:
    """Every value of the graph by the operators' own evaluation."""
    known = {ValueRef(n): a for n, a in feeds.items()} | {p.ref: p.constant for p in graph.parameters()}
    for site in graph.sites():
        arrays = [known[v.ref] if (v := site.operands.optional(i)) else None for i in range(len(site.operands))]
        known.update(zip((v.ref for v in site.results), site.node.op.evaluate(site, arrays), strict=True))
    return known


def preferring(graph: Graph, target: str, algorithm: str, rank: int = 0) -> Sources:
    """A recorded plan with one algorithm wherever it applies, its candidate number `rank`."""
    groups = make_groups(graph)
    known = situation(graph, groups, find_target(target))
    recorded = {}
    for group in groups:
        fitting = [c.choice for c in candidates(group, known) if c.choice.algorithm == algorithm]
        if fitting:
            recorded[group.anchor.node.ref.name] = fitting[min(rank, len(fitting) - 1)]
    return Sources(recorded)


def check(
    graph: Graph,
    folder: Path,
    *,
    templates: bool = True,
    target: str = "host",
    algorithm: str = "",
    rank: int = 0,
) -> set[str]:
    """Compile, run every subset, compare, hold units of work to their independence; returns the templates used."""
    sources = preferring(graph, target, algorithm, rank) if algorithm else None
    with mock.patch.object(sharing, "LEAST_SECONDS", 0):  # small as they are, calls are for threads to share
        library = generate(graph, find_target(target), templates=templates, sources=sources)
    native = NativeLibrary(library, folder)
    rng = np.random.default_rng(1)
    feeds = {v.ref.name: rng.normal(size=v.shape).astype(v.dtype.numpy) for v in graph.inputs}
    want = reference(graph, feeds)
    full = native.run(library.full, feeds)
    native.check_units(library.full, feeds)
    for name, arrays in full.items():
        for ref, got in zip(graph.tasks[name].outputs, arrays, strict=True):
            scale = max(np.abs(want[ref]).max(initial=0), 1e-6)
            assert np.abs(got - want[ref]).max(initial=0) <= KERNEL * scale, (name, ref)
    for program in library.programs:
        for name, arrays in native.run(program, feeds).items():
            for got, expected in zip(arrays, full[name], strict=True):
                np.testing.assert_array_equal(got, expected)
    kernels = {c.kernel for c in library.full.calls}
    assert kernels >= {c.kernel for p in library.programs for c in p.calls}
    return {k.template for k in library.kernels}


@pytest.mark.parametrize("shape", [(), (1,)])
def test_fused_clip_bounds_have_one_element(shape: tuple[int, ...], tmp_path: Path) -> None:
    b = Builder()
    y = b.conv(b.input("x", 1, 16, 5, 5), 16, 3, pads=(1, 1, 1, 1))
    low, high = (b.const(np.full(shape, v, np.float32)) for v in (-0.5, 0.5))
    b.task("t", b.apply("Clip", y, low, high))
    assert "conv" in check(b.done(), tmp_path, algorithm="conv")


@pytest.mark.parametrize("op_type", ["Split", "TopK", "LSTM"])
def test_tasks_may_share_a_node_and_want_different_results_of_it(op_type: str, tmp_path: Path) -> None:
    """A call for one of them has no place for what the others want."""
    b = Builder()
    x = b.input("x", 4, 1, 8)
    operands = {"Split": [b.const(np.array([3, 5]))], "TopK": [b.const(np.array([3]))]}
    operands["LSTM"] = [b.weight(1, 24, 8), b.weight(1, 24, 6)]
    attrs = {"Split": {"axis": 2}, "TopK": {}, "LSTM": {"hidden_size": 6}}
    for number, result in enumerate(b.apply(op_type, x, *operands[op_type], results=2, **attrs[op_type])):
        b.task(f"t{number}", result)
    check(b.done(), tmp_path)


@pytest.mark.parametrize("algorithm", ["conv", "winograd2x2", "depthwise"])
@pytest.mark.parametrize(("channels", "extent", "axis"), [(32, 24, 2), (256, 4, 1)])
def test_calls_of_a_divided_kernel_share_its_halo(
    algorithm: str, channels: int, extent: int, axis: int, tmp_path: Path
) -> None:
    """A call clears the halo of its rows where threads divide the image, else that of its blocks of channels."""
    b, group = Builder(), channels if algorithm == "depthwise" else 1
    y = b.conv(b.input("x", 1, channels, extent, extent), channels, 3, pads=(1, 1, 1, 1), group=group)
    b.task("t", b.conv(y, channels, 3, pads=(1, 1, 1, 1), group=group))
    graph = b.done()
    library = generate(graph, find_target("host"), sources=preferring(graph, "host", algorithm))
    step = next(i for i, s in enumerate(library.plan["steps"]) if s["template"] == algorithm)  # type: ignore[arg-type]
    native, calls = NativeLibrary(library, tmp_path), library.full.calls
    memory = Memory(library, library.full, {"x": np.ones((1, channels, extent, extent), np.float32)})
    for i in range(step):
        native.run_units(library.full, i, memory, 0, calls[i].parts)
    at = [a.at for a in calls[step].arguments if a.kind == "workspace"][-1]
    cells = channels * (extent + 2) ** 2
    made = memory.workspace[at : at + 4 * cells].view(np.float32)  # of NaN so far
    made = made.reshape(1, -1, extent + 2, extent + 2, find_target("host").lanes)
    half = calls[step].parts // 2
    native.run_units(library.full, step, memory, 0, half)
    assert np.isnan(np.take(made, -1, axis)).all()
    assert (np.take(made, 0, axis)[..., 0, :] == 0).all()
    native.run_units(library.full, step, memory, half, calls[step].parts)
    image = made[:, :, 1:-1, 1:-1].copy()
    made[:, :, 1:-1, 1:-1] = 0
    assert not made.any()
    assert not np.isnan(image).any()


CONVOLUTIONS = [
    # channels in, out, size, kernel, attributes
    (3, 18, (20, 20), 3, {"pads": (1, 1, 1, 1)}),
    (1, 6, (28, 28), 5, {"pads": (2, 2, 2, 2)}),
    (6, 16, (14, 14), 5, {}),
    (16, 32, (13, 9), 3, {"strides": (2, 1), "pads": (1, 0, 1, 2)}),
    (5, 7, (6, 11), (3, 2), {"dilations": (2, 3), "pads": (2, 1, 0, 3)}),
    (32, 64, (2, 2), 1, {}),
    (64, 16, (1, 1), 1, {}),
    (20, 33, (4, 5), 3, {"pads": (1, 1, 1, 1)}),
    (8, 8, (30,), 5, {"pads": (2, 2)}),
    (3, 12, (17,), 4, {"strides": (3,), "pads": (0, 2)}),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda c: f"{c[0]}-{c[1]}@{'x'.join(map(str, c[2]))}")
@pytest.mark.parametrize("batch", [1, 2])
def test_direct_convolution(case: tuple, batch: int, tmp_path: Path) -> None:
    channels, out, size, kernel, attrs = case
    b = Builder()
    b.task("t", b.conv(b.input("x", batch, channels, *size), out, kernel, **attrs))
    assert "conv" in check(b.done(), tmp_path, algorithm="conv", rank=batch)


@pytest.mark.parametrize(("channels", "side", "kernel"), [(3, 160, 3), (16, 70, 1), (72, 61, 3)])
def test_large_results_are_asked_for_before_they_are_written(
    channels: int, side: int, kernel: int, tmp_path: Path
) -> None:
    """In shares for one, two and more blocks of input; the residual's lines too."""
    b = Builder()
    x = b.input("x", 1, channels, side, side)
    y = b.conv(x, channels, kernel, pads=(kernel // 2,) * 4)
    b.task("t", b.apply("Clip", b.apply("Add", b.apply("Sigmoid", y), x), b.const(np.float32(0.5))))
    assert "conv" in check(b.done(), tmp_path, algorithm="conv")


def alternating(cases: Sequence[tuple], algorithms: Sequence[str], forms: Sequence[Any]) -> list[Any]:
    """Every case by every algorithm, in one of the forms: each case and each algorithm meets every form."""
    numbered = itertools.product(enumerate(cases), enumerate(algorithms))
    return [pytest.param(case, name, forms[(i + j) % len(forms)]) for (i, case), (j, name) in numbered]


WINOGRAD = [
    # channels in, out, size, pads
    (32, 32, (4, 4), (1, 1, 1, 1)),
    (36, 48, (7, 9), (1, 1, 1, 1)),
    (64, 128, (28, 27), (1, 1, 1, 1)),
    (40, 33, (10, 13), (0, 0, 0, 0)),
    (32, 64, (9, 8), (0, 1, 2, 1)),
    (48, 32, (6, 6), (2, 2, 2, 2)),
]


@pytest.mark.parametrize(
    ("case", "algorithm", "batch"),
    alternating(WINOGRAD, ["winograd2x2", "winograd4x4", "winograd5x5", "winograd6x6"], [1, 2]),
    ids=str,
)
def test_winograd_convolution(case: tuple, algorithm: str, batch: int, tmp_path: Path) -> None:
    channels, out, size, pads = case
    b = Builder()
    y = b.conv(b.input("x", batch, channels, *size), out, 3, pads=pads)
    z = b.conv(b.apply("Relu", y), out, 3, pads=(1, 1, 1, 1))
    b.task("t", b.apply("Clip", b.apply("Add", z, y), b.const(np.float32(-1)), b.const(np.float32(2))))
    b.task("u", b.conv(z, 8, 5, pads=(2, 2, 2, 2)), y)
    assert algorithm in check(b.done(), tmp_path, algorithm=algorithm, rank=2 * batch)


@pytest.mark.parametrize("algorithm", ["winograd2x2", "winograd4x4"])
def test_winograd_indices_of_a_large_plane_fit_their_type(algorithm: str) -> None:
    b = Builder()
    b.task("t", b.conv(b.input("x", 1, 64, 224, 224), 64, 3, pads=(1, 1, 1, 1)))
    graph = b.done()
    library = generate(graph, find_target("host"), sources=preferring(graph, "host", algorithm))
    assert algorithm in {k.template for k in library.kernels}


@pytest.mark.parametrize(("target", "vector"), [("x86-64-v4", 64), ("x86-64-v3", 32)])
def test_frames_are_aligned_to_the_vectors_they_hold(target: str, vector: int) -> None:
    """`and rsp, -vector`: registers that a transform spills must not straddle cache lines."""
    b = Builder()
    b.task("t", b.conv(b.input("x", 1, 64, 8, 8), 64, 3, pads=(1, 1, 1, 1)))
    graph = b.done()
    library = generate(graph, find_target(target), sources=preferring(graph, target, "winograd4x4"))
    assert bytes((0x48, 0x83, 0xE4, 256 - vector)) in b"".join(library.objects)


def test_objects_hold_their_kernel_alone() -> None:
    """Neither descriptions for debuggers nor TVM's conversions of float16, which it puts into every module."""
    b = Builder()
    b.task("t", b.apply("Relu", b.input("x", 3, 5)))
    library = generate(b.done(), find_target("x86-64-v3"))
    for kernel, code in zip(library.kernels, library.objects, strict=True):
        assert [s.name for s in Elf(code).symbols() if s.defined and not s.local] == [kernel.symbol]
        assert b".debug_" not in code


@pytest.mark.parametrize(("element", "stays"), [("float", False), ("half", True)])
def test_conversions_of_float16_stay_where_there_is_some(element: str, stays: bool) -> None:
    """Machine code may call what the text does not name."""
    kernel = f"define i32 @kernel(ptr %x) {{\n  %0 = load {element}, ptr %x\n}}\n"
    conversion = "define weak half @__truncsfhf2(float %a) {\nentry:\n  ret half 0xH0000\n}\n"
    declared = "declare half @llvm.fabs.f16(half) #3\n"
    left = _without_conversions(kernel + conversion + declared)
    assert left == kernel + conversion * stays + declared


STRIDED = [
    # channels in, out, size, kernel, strides, pads
    (32, 32, (8, 8), 3, (2, 2), (1, 1, 1, 1)),
    (20, 40, (15, 13), 3, (2, 2), (1, 1, 1, 1)),
    (18, 33, (12, 17), 3, (1, 2), (0, 1, 0, 1)),
    (3, 32, (31, 30), 7, (2, 2), (3, 3, 3, 3)),
    (8, 32, (11, 14), (5, 3), (2, 1), (2, 1, 2, 1)),
    (6, 32, (14, 14), 4, (2, 2), (0, 0, 1, 1)),
]


@pytest.mark.parametrize(
    ("case", "algorithm", "joined"),
    alternating(STRIDED, ["winograd2x2", "winograd4x2", "winograd4x4", "winograd5x5"], [False, True]),
    ids=str,
)
def test_winograd_with_strides_and_other_kernels(case: tuple, algorithm: str, joined: bool, tmp_path: Path) -> None:
    """Even and odd inputs meet their own taps; two inputs of a concatenation are read as one."""
    channels, out, size, kernel, strides, pads = case
    b = Builder()
    x = b.input("x", 1, channels, *size)
    few = channels * int(np.prod(np.broadcast_to(kernel, 2))) < LEAST_TAPS  # alone it would not be proposed
    read = b.apply("Concat", x, b.apply("Abs", x), axis=1) if joined or few else x
    y = b.conv(read, out, kernel, strides=strides, pads=pads)
    b.task("t", b.apply("Relu", y))
    assert algorithm in check(b.done(), tmp_path, algorithm=algorithm, rank=1)


@pytest.mark.parametrize("taps", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("outputs", [2, 4])
@pytest.mark.parametrize("axis", [0, 1])
def test_winograd_along_one_axis(taps: int, stride: int, outputs: int, axis: int, tmp_path: Path) -> None:
    """Filters of one column or one row, and convolutions with one spatial axis."""

    def along(this: int, other: int) -> tuple[int, int]:
        return (other, this) if axis else (this, other)

    b = Builder()
    x = b.input("x", 2, 50, *along(17, 4))
    b.task("t", b.apply("Relu", b.conv(x, 34, along(taps, 1), strides=along(stride, 1), pads=along(1, 0) * 2)))
    if axis:
        b.task("u", b.conv(b.input("y", 1, 64, 23), 32, taps, strides=(stride,), pads=(1, 2)))
    algorithm = "winograd" + "x".join(map(str, along(outputs, 1)))
    assert algorithm in check(b.done(), tmp_path, algorithm=algorithm, rank=1)


def test_winograd_weights_are_those_of_the_paper() -> None:
    """G g G^T of a kernel with one tap is that tap's outer product; the sign of the first row is ours."""
    weight = np.zeros((1, 1, 3, 3), np.float32)
    weight[0, 0, 2, 0] = 4
    axes = winograd_shape.tile_axes((2, 2), (3, 3), (1, 1))
    transformed = winograd_shape.pack(weight, axes, 1).reshape(4, 4)
    np.testing.assert_array_equal(transformed, 4 * np.outer([0, 0.5, 0.5, 1], [-1, 0.5, 0.5, 0]))


@pytest.mark.parametrize("channels", [3, 16, 24])
@pytest.mark.parametrize(
    "attrs",
    [
        {"pads": (1, 1, 1, 1)},
        {"pads": (0, 1, 1, 0), "strides": (2, 2)},
        {"dilations": (2, 2), "pads": (2, 2, 2, 2)},
    ],
    ids=["same", "strided", "dilated"],
)
def test_depthwise_convolution(channels: int, attrs: dict, tmp_path: Path) -> None:
    b = Builder()
    b.task("t", b.conv(b.input("x", 1, channels, 11, 9), channels, 3, group=channels, **attrs))
    assert "depthwise" in check(b.done(), tmp_path)


@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize(("inner", "columns"), [(7, 5), (64, 10), (120, 84), (33, 100), (16, 256)])
def test_matrix_product(rows: int, inner: int, columns: int, tmp_path: Path) -> None:
    b = Builder()
    y = b.apply("Gemm", b.input("x", rows, inner), b.weight(columns, inner), b.weight(columns), transB=1, alpha=0.5)
    b.task("t", b.apply("Relu", y))
    assert check(b.done(), tmp_path) == {"gemm"}


def test_batched_product_with_a_constant_matrix(tmp_path: Path) -> None:
    b = Builder()
    b.task("t", b.apply("MatMul", b.input("x", 2, 5, 12), b.weight(12, 20)))
    assert check(b.done(), tmp_path) == {"gemm"}


def multitask() -> Graph:
    """A residual trunk with a depthwise layer; three tasks, two of which share a neck."""
    b = Builder("trio")
    x = b.apply("Relu", b.conv(b.input("image", 1, 3, 16, 16), 18, 3, pads=(1,) * 4))
    y = b.apply("Relu", b.apply("Add", b.conv(x, 18, 3, pads=(1,) * 4), x))
    y = b.apply("Clip", b.conv(y, 18, 5, group=18, pads=(2,) * 4), b.const(np.float32(0)), b.const(np.float32(6)))
    neck = b.apply("Relu", b.conv(y, 24, 1))

    def head(of: ValueRef, classes: int) -> ValueRef:
        z = b.apply("Flatten", b.apply("GlobalAveragePool", b.apply("Mul", of, b.apply("Sigmoid", of))))
        return b.apply("Gemm", z, b.weight(b.graph.value(z).shape[1], classes))

    b.task("a", head(neck, 10))
    b.task("b", head(neck, 5), neck)
    b.task("c", head(y, 3))
    return b.done()


@pytest.mark.parametrize("templates", [True, False], ids=["templates", "generic"])
def test_every_subset_is_right_and_equal_to_the_full_set(templates: bool, tmp_path: Path) -> None:
    used = check(multitask(), tmp_path, templates=templates)
    assert ({"conv", "depthwise", "gemm"} <= used) is templates


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4"])
def test_narrower_and_wider_vectors(target: str, tmp_path: Path) -> None:
    host, wanted = find_target("host"), find_target(target)
    if host.arch != wanted.arch or host.lanes < wanted.lanes:
        pytest.skip(f"this processor is {host.preset}")
    check(multitask(), tmp_path, target=target)


def test_a_subset_runs_only_what_its_tasks_need() -> None:
    graph = multitask()
    library = generate(graph, find_target("host"))
    masks = graph.needed_masks()
    needed = {n.ref.name: masks[n.ref] for n in graph.nodes()}
    for program in library.programs:
        computed = set(itertools.chain.from_iterable(c.nodes for c in program.calls)) & set(needed)
        views = {n.ref.name for n in graph.nodes() if n.op.reinterprets}
        assert computed - views == {n for n, m in needed.items() if m & program.mask} - views


def test_outputs_that_are_inputs_constants_or_shared(tmp_path: Path) -> None:
    b = Builder()
    x = b.input("x", 1, 4)
    y = b.apply("Relu", x)
    b.task("a", y, b.const(np.arange(3, dtype=np.float32)))
    b.task("b", y, x, b.apply("Reshape", y, b.const(np.array([2, 2]))))
    check(b.done(), tmp_path)


@pytest.mark.parametrize("name", ["h plain", "plain h", "scratch 000001", "000001 scratch"])
def test_a_value_may_be_called_like_a_buffer_of_another(name: str, tmp_path: Path) -> None:
    """Both are alive while the product reads the row-major form of `h`."""
    rng = np.random.default_rng(4)
    shapes = {"w": (16, 3, 3, 3), "v": (24, 16, 3, 3), "u": (7, 24, 3, 3), "m": (16 * 81, 5)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["h", "v"], [name], strides=[2, 2]),
        helper.make_node("Flatten", ["h"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["q"]),
        helper.make_node("Conv", [name, "u"], ["z"]),
    ]
    data = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    check(load(model(nodes, {"x": (1, 3, 9, 9)}, {"q": (1, 5), "z": (1, 7, 2, 2)}, data), task="t"), tmp_path)


def test_same_graph_gives_the_same_bytes(fresh_kernels: None) -> None:
    first, second = (generate(multitask(), find_target("host")) for _ in range(2))
    assert first == second


def with_borders() -> Graph:
    """Conditions to move out of loops, and statements to simplify."""
    b = Builder()
    y = b.apply("Relu", b.conv(b.input("x", 1, 3, 13, 11), 16, 3, strides=(2, 2), pads=(1, 1, 1, 1)))
    y = b.apply("MaxPool", b.conv(y, 16, 3, group=16, pads=(1, 1, 1, 1)), kernel_shape=(3, 3), pads=(1, 1, 1, 1))
    b.task("t", b.apply("Concat", y, b.apply("Tanh", y), axis=3))
    return b.done()


def with_statements_without_effect(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("compiler.codegen.lower.LEFT_OUT", ("s_tir.StmtSimplify",))


def with_divisions_in_normal_form(patch: pytest.MonkeyPatch) -> None:
    simplified = tirx.transform.StmtSimplify()
    both = tvm.ir.transform.Sequential([s_tir.transform.RenormalizeSplitPattern(), simplified])
    patch.setattr(tirx.transform, "StmtSimplify", lambda: both)


@pytest.mark.parametrize("target", ["host", "aarch64-cortex-a72", "armv7-neon"])
@pytest.mark.parametrize("lowered", [with_statements_without_effect, with_divisions_in_normal_form])
def test_passes_of_tvm_that_are_left_out_change_no_machine_code(
    lowered: Callable[[pytest.MonkeyPatch], None],
    target: str,
    fresh_kernels: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = with_borders()
    found = generate(graph, find_target(target))
    lowered(monkeypatch)
    assert generate(graph, find_target(target)).objects == found.objects


@pytest.mark.parametrize("before", ["CanonicalizeLoop", "HoistIfThenElse"])
def test_simplifying_once_changes_no_result(
    before: str, tmp_path: Path, fresh_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TVM simplifies before buffers are flat, and before loops are unrolled, too."""
    graph = with_borders()
    feeds = {v.ref.name: np.random.default_rng(1).normal(size=v.shape).astype(np.float32) for v in graph.inputs}
    found = []
    for again in (False, True):
        if again:
            monkeypatch.setattr("compiler.codegen.lower.LEFT_OUT", ("tirx.RemoveNoOp",))
            made = getattr(s_tir.transform, before)
            both = tvm.ir.transform.Sequential([made(), s_tir.transform.StmtSimplify()])
            monkeypatch.setattr(s_tir.transform, before, lambda both=both: both)
        library = generate(graph, find_target("host"))
        folder = tmp_path / str(again)
        folder.mkdir()
        (outputs,) = NativeLibrary(library, folder).run(library.full, feeds).values()
        found.append((library.objects, outputs))
    (once, first), (twice, second) = found
    assert once != twice  # what is compared was compiled differently
    np.testing.assert_array_equal(first, second)


def test_addresses_are_named_where_all_that_use_them_see_the_names(tmp_path: Path):
    """The results of a small map with a residual: TVM's names for repeated addresses were out of reach there."""
    b = Builder()
    x = b.input("x", 1, 4, 5, 5)
    y = b.apply("Tanh", b.conv(x, 8, 2, pads=(0, 0, 1, 1)))
    b.task("t", b.apply("Add", b.conv(y, 4, 3, pads=(1, 1, 1, 1)), x))
    check(b.done(), tmp_path)


def test_values_chosen_by_a_comparison_may_be_bound_to_names(tmp_path: Path):
    b = Builder()
    x = b.input("x", 2, 1, 19)
    small = b.apply("Less", x, b.const(np.float32(-0.1)))
    b.task("t", b.apply("Tanh", b.apply("Mul", x, b.apply("CastLike", small, x))))
    check(b.done(), tmp_path)


def wide_image(channels: int, taps: int) -> Graph:
    """A convolution of one row, as wide as an axis may be, with a border above and below."""
    b = Builder()
    x = b.apply("Relu", b.input("x", 1, channels, 1, 2**24))
    b.task("t", b.apply("Conv", x, b.weight(channels, channels, taps, 1), pads=(taps // 2, 0, taps // 2, 0)))
    return b.done()


def test_a_buffer_has_no_more_elements_than_kernels_count() -> None:
    with pytest.raises(LoweringError, match="buffer of 2,281,701,376 elements"):
        generate(wide_image(5, 17), find_target("host"))


def test_a_workspace_has_an_address_on_the_target() -> None:
    with pytest.raises(LoweringError, match="armv7-neon has addresses for 4,294,967,295"):
        generate(wide_image(17, 3), find_target("armv7-neon"))


def test_unknown_task_in_a_subset() -> None:
    with pytest.raises(ConfigError, match="unknown tasks z; the graph has a, b, c"):
        generate(multitask(), find_target("host"), subsets=[frozenset({"z"})])


def test_remainders_of_loop_indices_survive_optimisation(tmp_path: Path) -> None:
    """LLVM's loop vectoriser took `i % 4` for `i` here (docs/decisions/0006)."""
    b = Builder()
    b.task("t", b.apply("Tile", b.input("x", 2, 3, 4, 5), b.const(np.array([7, 6, 4, 2]))))
    check(b.done(), tmp_path)


@pytest.mark.parametrize("width", [5, 16, 21, 64])
def test_rows_that_are_no_multiple_of_the_vector(width: int, tmp_path: Path) -> None:
    b = Builder()
    x, y = b.input("x", 3, width), b.input("y", 3, width)
    b.task("sum", b.apply("Add", x, b.apply("Exp", y)))
    b.task("soft", b.apply("Softmax", x, axis=1))
    b.task("column", b.apply("ReduceMean", y, b.const(np.array([0])), keepdims=0))
    check(b.done(), tmp_path)


# ---------------------------------------------------------------------- images and tokens
def tokens(batch: int, channels: int, size: tuple[int, int], residual: bool) -> Graph:
    """A convolution's image becomes tokens, with whose product another convolution's image is made."""
    b = Builder()
    count = size[0] * size[1]
    image = b.apply("Relu", b.conv(b.input("x", batch, 3, *size), channels, 3, pads=(1, 1, 1, 1)))
    if residual:
        image = b.apply("Add", image, b.conv(image, channels, 1))
    flat = b.apply("Reshape", image, b.const(np.array([batch, channels, count])))
    y = b.apply("MatMul", b.apply("Transpose", flat, perm=(0, 2, 1)), b.weight(channels, 24))
    back = b.apply("Transpose", y, perm=(0, 2, 1))
    y = b.conv(b.apply("Reshape", back, b.const(np.array([batch, 24, *size]))), 8, 3, pads=(1, 1, 1, 1))
    b.task("t", b.apply("Add", y, b.conv(image, 8, 1)) if residual else y)
    return b.done()


@pytest.mark.parametrize("channels", [16, 20, 6, 64])
@pytest.mark.parametrize("residual", [False, True])
def test_images_become_tokens_and_tokens_images(channels: int, residual: bool, tmp_path: Path) -> None:
    graph = tokens(2, channels, (5, 7), residual)
    together = [{s.node.op.name for s in g.sites} for g in make_groups(graph) if g.family == "generic"]
    assert sum({"Reshape", "Transpose"} <= names for names in together) == 2
    for target in ("host", "x86-64-v3"):
        (tmp_path / target).mkdir()
        check(graph, tmp_path / target, target=target)
    plan = generate(graph, find_target("host")).plan
    copied = [str(s) for s in plan["steps"] if "unpack" in str(s)]
    assert not copied, copied


def test_an_image_that_is_read_plain_is_not_moved_twice() -> None:
    b = Builder()
    x = b.input("x", 1, 8, 4, 4)
    y = b.apply("Transpose", b.apply("Reshape", x, b.const(np.array([1, 8, 16]))), perm=(0, 2, 1))
    b.task("t", b.apply("MatMul", y, b.weight(8, 4)))
    assert "view" in {g.family for g in make_groups(b.done())}


def erf(dtype: DType) -> Graph:
    b = Builder()
    b.task("t", b.apply("Erf", b.input("x", 300, 256, dtype=dtype)))
    return b.done()


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT64])
def test_erf_of_every_type(dtype: DType, tmp_path: Path) -> None:
    check(erf(dtype), tmp_path)


@pytest.mark.skipif(find_target("host").arch != "x86_64" or not shutil.which("objdump"), reason="reads x86 code")
def test_erf_is_computed_in_vectors(tmp_path: Path) -> None:
    (made,) = generate(erf(DType.FLOAT32), find_target("x86-64-v4")).objects
    (tmp_path / "erf.o").write_bytes(made)
    code = subprocess.run(["objdump", "-d", tmp_path / "erf.o"], capture_output=True, text=True, check=True).stdout
    assert "vfmadd213ps" in code and "vfmadd213ss" not in code
