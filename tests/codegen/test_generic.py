"""The generic route: kernels on random shapes and layouts, what their code looks like, other processors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from compiler.codegen.generate import generate
from compiler.codegen.generic.kernel import GenericKernel, copy_kernel, lower_group
from compiler.codegen.layout import Blocked, Layout, Plain, to_physical
from compiler.codegen.lower import compile_kernels
from compiler.codegen.target import find_target
from compiler.ir.graph import Graph, Value
from compiler.ir.reference import evaluate
from compiler.ir.types import DType, ValueRef
from tests.codegen.emulated import check_emulated, linkable
from tests.codegen.native import NativeLibrary, aligned, loaded
from tests.graphs import Builder

CLOSE = 1e-5
Layouts = Mapping[ValueRef, Layout]
Case = tuple[Graph, Layouts]


def outputs_of(graph: Graph, feeds: Mapping[ValueRef, np.ndarray]) -> list[np.ndarray]:
    known = {**feeds, **{p.ref: p.constant for p in graph.parameters()}}
    for site in graph.sites():
        arrays = [known[v.ref] if (v := site.operands.optional(i)) else None for i in range(len(site.operands))]
        known.update(zip((v.ref for v in site.results), site.node.op.evaluate(site, arrays), strict=True))
    return [known[v.ref] for v in graph.outputs]


def physical(array: np.ndarray, layout: Layout) -> np.ndarray:
    return to_physical(array, layout) if array.shape else array.reshape(1)


def run_kernels(
    kernels: Sequence[tuple[GenericKernel, Sequence[np.ndarray], Sequence[np.ndarray]]], folder: Path
) -> None:
    """Call each kernel, a divided one in two calls; outputs are written in place."""
    compiled = compile_kernels({f"k{i}": k.func for i, (k, _, _) in enumerate(kernels)}, find_target("host"))
    library = loaded(compiled.objects.values(), folder)
    for i, (kernel, feeds, outs) in enumerate(kernels):
        arrays = [np.ascontiguousarray(a) for a in (*feeds, *kernel.tables)]
        scratch = aligned(compiled.scratch[f"k{i}"] + 64)
        pointers = [*arrays, *outs, *([scratch] if compiled.scratch[f"k{i}"] else [])]
        arguments = [ctypes.c_void_p(a.ctypes.data) for a in pointers]
        cut = kernel.parts // 3
        for part in [(cut, kernel.parts), (0, cut)] if kernel.parts else [()]:
            assert library[f"k{i}"](*arguments, *part) == 0
        assert (scratch[compiled.scratch[f"k{i}"] :] == 0xFF).all()


def check(cases: Sequence[Case], folder: Path, lanes: int = 16) -> None:
    """Each graph as one kernel, its values in the given layouts, against the operators' own evaluation."""
    rng = np.random.default_rng(1)
    kernels, wanted = [], []
    for graph, layouts in cases:
        kernel = lower_group(list(graph.sites()), graph.outputs, layouts, lanes)
        feeds = {v.ref: rng.normal(size=v.shape).astype(v.dtype.numpy) for v in graph.inputs}
        expected = [
            physical(a, layouts.get(v.ref, Plain()))
            for v, a in zip(graph.outputs, outputs_of(graph, feeds), strict=True)
        ]
        outs = [aligned(a.nbytes).view(a.dtype).reshape(a.shape) for a in expected]
        kernels.append((kernel, [physical(feeds[r], layouts.get(r, Plain())) for r in kernel.inputs], outs))
        wanted.append(expected)
    run_kernels(kernels, folder)
    for number, ((_, _, outs), expected) in enumerate(zip(kernels, wanted, strict=True)):
        for got, want in zip(outs, expected, strict=True):
            scale = max(float(np.abs(want).max(initial=0)), 1e-6)
            error = np.abs(got.astype(np.float64) - want).max(initial=0)
            assert error <= CLOSE * scale, (number, str(cases[number][0]), error)


def blocked(rng: np.random.Generator, likely: float = 0.6) -> Layout:
    if rng.random() > likely:
        return Plain()
    border = tuple(map(int, rng.integers(0, 3, 4)))
    return Blocked(int(rng.choice([4, 8, 16])), border[:2], border[2:])


def laid_out(rng: np.random.Generator, graph: Graph) -> Case:
    """Random layouts for the float activations of rank 4 that enter and leave."""
    values = [v for v in (*graph.inputs, *graph.outputs) if v.rank == 4 and v.dtype is DType.FLOAT32]
    return graph, {v.ref: blocked(rng) for v in values}


def pooling(rng: np.random.Generator) -> Graph:
    b = Builder()
    kernel = tuple(map(int, rng.integers(1, 5, 2)))
    attrs = {
        "kernel_shape": kernel,
        "strides": tuple(map(int, rng.integers(1, 4, 2))),
        "dilations": tuple(map(int, rng.integers(1, 3, 2))),
        "pads": tuple(int(rng.integers(0, kernel[i % 2])) for i in range(4)),
        "ceil_mode": int(rng.integers(0, 2)),
    }
    name = str(rng.choice(["MaxPool", "AveragePool", "LpPool"]))
    if name == "AveragePool":
        attrs["count_include_pad"] = int(rng.integers(0, 2))
    x = b.input("x", int(rng.integers(1, 3)), int(rng.integers(1, 40)), *map(int, rng.integers(9, 30, 2)))
    b.task("t", b.apply(name, x, **attrs))
    return b.done()


def convolution(rng: np.random.Generator) -> Graph:
    b = Builder(seed=int(rng.integers(100)))
    groups, each, out = (int(rng.integers(low, high)) for low, high in ((1, 5), (1, 6), (1, 7)))
    kernel, strides = tuple(map(int, rng.integers(1, 4, 2))), tuple(map(int, rng.integers(1, 3, 2)))
    attrs = {"group": groups, "strides": strides, "dilations": tuple(map(int, rng.integers(1, 3, 2)))}
    attrs["pads"] = tuple(int(rng.integers(0, kernel[i % 2])) for i in range(4))
    x = b.input("x", int(rng.integers(1, 3)), groups * each, *map(int, rng.integers(8, 20, 2)))
    if rng.random() < 0.5:
        attrs["output_padding"] = tuple(int(rng.integers(0, s)) for s in strides)
        y = b.apply("ConvTranspose", x, b.weight(groups * each, out, *kernel), b.weight(groups * out), **attrs)
    else:
        y = b.conv(x, groups * out, kernel, **attrs)
    b.task("t", y)
    return b.done()


def movement(rng: np.random.Generator) -> Graph:
    b = Builder()
    shape = (int(rng.integers(1, 3)), *map(int, rng.integers(4, 24, 3)))
    axis = int(rng.integers(0, 4))
    kind = str(
        rng.choice(["Concat", "Pad", "Slice", "Transpose", "Resize", "Split", "DepthToSpace", "Tile", "Gather"])
    )
    x = b.input("x", *shape)
    if kind == "Concat":
        others = [
            b.input(f"y{i}", *(int(rng.integers(1, 20)) if d == axis else n for d, n in enumerate(shape)))
            for i in (0, 1)
        ]
        y = b.apply("Concat", x, *others, axis=axis)
    elif kind == "Pad":
        pads = np.array([0, 0, *rng.integers(0, 4, 2), 0, 0, *rng.integers(0, 4, 2)], np.int64)
        y = b.apply("Pad", x, b.const(pads), mode=str(rng.choice(["constant", "reflect", "edge"])))
    elif kind == "Slice":
        begin, step = int(rng.integers(0, 3)), int(rng.choice([1, 2, 3]))
        y = b.apply(
            "Slice", x, *(b.const(np.array([v], np.int64)) for v in (min(begin, shape[axis] - 1), 99, axis, step))
        )
    elif kind == "Transpose":
        y = b.apply("Transpose", x, perm=tuple(map(int, rng.permutation(4))))
    elif kind == "Resize":
        mode, scale = str(rng.choice(["nearest", "linear"])), rng.choice([0.5, 1.5, 2.0, 3.0], 2)
        scales = b.const(np.array([1, 1, *scale], np.float32))
        y = b.apply(
            "Resize", x, None, scales, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor"
        )
    elif kind == "Split":
        left = int(rng.integers(1, shape[1]))
        y = b.apply("Split", x, b.const(np.array([left, shape[1] - left], np.int64)), axis=1, results=2)[1]
    elif kind == "DepthToSpace":
        x = b.apply("Concat", x, x, x, x, axis=1)
        y = b.apply("DepthToSpace", x, blocksize=2, mode=str(rng.choice(["DCR", "CRD"])))
    elif kind == "Tile":
        y = b.apply("Tile", x, b.const(np.array([1, *rng.integers(1, 3, 3)], np.int64)))
    else:
        y = b.apply("Gather", x, b.const(rng.integers(0, shape[axis], 7)), axis=axis)
    b.task("t", y)
    return b.done()


def statistics(rng: np.random.Generator) -> Graph:
    b = Builder()
    shape = (int(rng.integers(1, 3)), *map(int, rng.integers(2, 40, 3)))
    x, axis = b.input("x", *shape), int(rng.integers(1, 4))
    kind = str(
        rng.choice(["Softmax", "LogSoftmax", "LayerNormalization", "InstanceNormalization", "GlobalAveragePool"])
    )
    if kind == "LayerNormalization":
        y = b.apply(kind, x, b.weight(*shape[axis:]), b.weight(*shape[axis:]), axis=axis)
    elif kind == "InstanceNormalization":
        y = b.apply(kind, x, b.weight(shape[1]), b.weight(shape[1]))
    elif kind == "GlobalAveragePool":
        y = b.apply("Mul", x, b.apply("Sigmoid", b.apply(kind, x)))
    else:
        y = b.apply(kind, x, axis=axis)
    b.task("t", y)
    return b.done()


def reductions(rng: np.random.Generator) -> Graph:
    b = Builder()
    shape = tuple(map(int, rng.integers(1, 30, 4)))
    axes = np.sort(rng.choice(4, int(rng.integers(1, 4)), replace=False)).astype(np.int64)
    kind = str(rng.choice(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2", "ReduceMin"]))
    b.task("t", b.apply(kind, b.input("x", *shape), b.const(axes), keepdims=int(rng.integers(0, 2))))
    return b.done()


def chains(rng: np.random.Generator) -> Graph:
    """Element-wise operators with operands broadcast along any axes."""
    b = Builder()
    shape = (1, *map(int, rng.integers(2, 30, 3)))
    y = b.input("x", *shape)
    for i in range(int(rng.integers(1, 5))):
        kind = str(rng.choice(["Add", "Mul", "Tanh", "HardSwish", "Erf", "LeakyRelu"]))
        if kind in ("Add", "Mul"):
            other = tuple(1 if rng.random() < 0.4 else n for n in shape)
            y = b.apply(kind, y, b.input(f"y{i}", *other) if rng.random() < 0.5 else b.weight(*other))
        else:
            y = b.apply(kind, y)
    b.task("t", y)
    return b.done()


def products(rng: np.random.Generator) -> Graph:
    b = Builder()
    m, k, n = map(int, rng.integers(1, 40, 3))
    batch = int(rng.integers(1, 4))
    x, y = b.input("x", batch, m, k), b.input("y", batch, k, n)
    if rng.random() < 0.5:
        y = b.apply("Transpose", b.input("z", batch, n, k), perm=(0, 2, 1))
    b.task("t", b.apply("MatMul", x, y))
    return b.done()


KINDS = (pooling, convolution, movement, statistics, reductions, chains, products)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_random_kernels(kind: Callable[[np.random.Generator], Graph], lanes: int, tmp_path: Path):
    rng = np.random.default_rng(lanes)
    check([laid_out(rng, kind(rng)) for _ in range(8)], tmp_path, lanes)


def test_copies_between_layouts(tmp_path: Path):
    rng = np.random.default_rng(0)
    kernels, wanted = [], []
    for _ in range(20):
        b = Builder()
        shape = (int(rng.integers(1, 3)), *map(int, rng.integers(1, 40, 3)))
        value: Value = b.graph.value(b.input("x", *shape))
        source, target = blocked(rng), blocked(rng)
        array = rng.normal(size=shape).astype(np.float32)
        expected = to_physical(array, target)
        kernels.append(
            (
                copy_kernel(value, source, target, 16),
                [to_physical(array, source)],
                [aligned(expected.nbytes).view(np.float32).reshape(expected.shape)],
            )
        )
        wanted.append(expected)
    run_kernels(kernels, tmp_path)
    for (_, _, (got,)), expected in zip(kernels, wanted, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_rows_that_vectors_do_not_divide(tmp_path: Path):
    """TVM lets the quotients of a softmax lie where its powers do: the last vector must not be computed twice."""
    b = Builder()
    y = b.apply("Softmax", b.input("x", 2, 15, 27, 9), axis=3)
    b.task("t", y)
    check([(b.done(), {y: Blocked(4, (0, 2), (0, 2))})], tmp_path)


def test_a_table_may_be_read_only_where_operators_are_put_into_each_other(tmp_path: Path):
    """By itself a nearest resize reads its table of positions in pieces; behind positions of a grid it cannot."""
    b = Builder()
    sizes = b.const(np.array([1, 3, 14, 19]))
    x = b.apply("Resize", b.input("x", 1, 3, 16, 3), None, None, sizes, mode="nearest")
    b.task("t", b.apply("GridSample", x, b.weight(1, 5, 3, 2), mode="linear", padding_mode="reflection"))
    check([(b.done(), {})], tmp_path)


def test_tables_are_stored_along_all_axes_that_are_one_loop(tmp_path: Path):
    """Channels and rows are walked as one here, for every column of the updates."""
    b = Builder()
    first = b.const(np.array([[0]]))
    b.task("t", b.apply("ScatterND", b.input("x", 1, 3, 4, 2), first, b.weight(1, 3, 4, 2)))
    check([(b.done(), {})], tmp_path)


def test_a_comparison_with_nan_fails_and_so_does_its_opposite(tmp_path: Path):
    feeds = np.array([np.nan, -1, 0, 1] * 5, np.float32)
    kernels, wanted = [], []
    for name in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"):
        b = Builder()
        x = b.input("x", 20)
        found = b.apply(name, x, b.const(np.float32(0)))
        negated = b.apply("Not", found)
        either = b.apply("Or", found, b.apply("Less", x, b.const(np.float32(0))))
        b.task("t", negated, b.apply("Xor", either, negated), b.apply("Where", negated, x, b.const(np.float32(7))))
        graph = b.done()
        kernel = lower_group(list(graph.sites()), graph.outputs, {}, 16)
        wanted.append(outputs_of(graph, {x: feeds}))
        kernels.append((kernel, [feeds], [aligned(a.nbytes).view(a.dtype) for a in wanted[-1]]))
    run_kernels(kernels, tmp_path)
    for (_, _, outs), expected in zip(kernels, wanted, strict=True):
        for got, want in zip(outs, expected, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("size", [1, 20])
def test_a_value_equals_itself_unless_it_is_nan(size: int, tmp_path: Path):
    b = Builder()
    x = b.input("x", size)
    b.task("t", b.apply("Equal", x, x))
    graph, feeds = b.done(), np.array([np.nan, np.inf, 0, 1] * 5, np.float32)[:size]
    kernel, made = lower_group(list(graph.sites()), graph.outputs, {}, 16), aligned(size).view(bool)
    run_kernels([(kernel, [feeds], [made])], tmp_path)
    np.testing.assert_array_equal(made, ~np.isnan(feeds))


def lanewise(rng: np.random.Generator) -> Case:
    """A pooling and what follows it, on channels that do not fill the blocks that all of it lies in."""
    b = Builder()
    width, kernel = int(rng.choice([4, 8, 16])), int(rng.integers(1, 4))
    channels = int(rng.integers(4, 40))
    x = b.input("x", int(rng.integers(1, 3)), channels + (channels % width == 0), 9, 12)
    name = str(rng.choice(["MaxPool", "AveragePool"]))
    pads = tuple(int(rng.integers(0, kernel)) for _ in range(4))
    y = b.apply(name, x, kernel_shape=(kernel, kernel), strides=(1, 2), pads=pads)
    y = b.apply(str(rng.choice(["Relu", "Tanh", "Neg", "Exp"])), y)  # of these only Exp makes something of zeros
    y = b.apply("Mul", y, b.apply("Sub", y, b.apply("Abs", y)))
    b.task("t", y)
    border = tuple(map(int, rng.integers(0, 3, 4)))
    return b.done(), {x: Blocked(width, (0, 0), (0, 0)), y: Blocked(width, border[:2], border[2:])}


def test_channels_that_do_not_fill_their_blocks(tmp_path: Path):
    rng = np.random.default_rng(7)
    check([lanewise(rng) for _ in range(12)], tmp_path)


# ---------------------------------------------------------------------- code
def text_of(graph: Graph, layouts: Layouts | None = None) -> str:
    return str(lower_group(list(graph.sites()), graph.outputs, layouts or {}, 16).func)


def test_windows_inside_the_image_have_no_conditions():
    b = Builder()
    x = b.input("x", 1, 16, 20, 20)
    y = b.apply("MaxPool", x, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
    b.task("t", y)
    layout = Blocked(16, (0, 0), (0, 0))
    text = text_of(b.done(), {x: layout, y: layout})
    assert "if_then_else" not in text and "Select" not in text
    assert "T.vectorized(16)" in text


@pytest.mark.parametrize(("name", "whole"), [("Relu", True), ("Exp", False)])
def test_empty_lanes_are_computed_where_they_stay_zero(name: str, whole: bool):
    b = Builder()
    x = b.input("x", 1, 6, 20, 20)
    y = b.apply(name, b.apply("MaxPool", x, kernel_shape=(2, 2), strides=(2, 2)))
    b.task("t", y)
    layout = Blocked(8, (0, 0), (0, 0))
    text = text_of(b.done(), {x: layout, y: layout})
    assert ("T.vectorized(8)" in text and "T.vectorized(2)" not in text) == whole


def test_concatenated_blocks_are_copied_piece_by_piece():
    b = Builder()
    parts = [b.input(f"x{i}", 1, n, 5, 5) for i, n in enumerate((16, 8, 40))]
    y = b.apply("Concat", *parts, axis=1)
    b.task("t", y)
    text = text_of(b.done(), {v: Blocked(16, (0, 0), (0, 0)) for v in (*parts, y)})
    assert "if_then_else" not in text and "Select" not in text and "//" not in text


def test_channels_of_blocked_values_are_whole_vectors_in_row_major_results():
    b = Builder()
    x = b.input("x", 1, 32, 6, 6)
    b.task("t", b.apply("Tanh", x))
    text = text_of(b.done(), {x: Blocked(16, (0, 0), (0, 0))})
    assert "//" not in text and "%" not in text


def test_contiguous_axes_are_one_loop():
    b = Builder()
    b.task("t", b.apply("Tanh", b.input("x", 2, 3, 5, 7)))
    assert "T.grid" not in text_of(b.done())


def test_weights_are_stored_along_the_lanes():
    b = Builder()
    x = b.input("x", 1, 32, 8, 8)
    y = b.conv(x, 32, 3, group=2)
    b.task("t", y)
    graph = b.done()
    kernel = lower_group(list(graph.sites()), graph.outputs, {v: Blocked(16, (0, 0), (0, 0)) for v in (x, y)}, 16)
    assert (16, 3, 3, 32) in [t.shape for t in kernel.tables]


def test_large_kernels_are_divided():
    b = Builder()
    b.task("t", b.apply("Tanh", b.input("x", 4, 64, 40, 40)))
    graph = b.done()
    assert lower_group(list(graph.sites()), graph.outputs, {}, 16).parts >= 2


@pytest.mark.parametrize(("shape", "parts"), [((1, 64, 40, 40), 22), ((1, 512, 8, 8), 32), ((2, 64, 40, 40), 2)])
def test_threads_divide_the_rows_of_an_image_or_its_channels(shape: tuple[int, ...], parts: int) -> None:
    """As convolutions divide such images: rows of a large one, of which two belong to the halo."""
    b = Builder()
    x = b.input("x", *shape)
    y = b.apply("MaxPool", x, kernel_shape=(2, 2), strides=(2, 2))
    b.task("t", y)
    graph = b.done()
    layouts = {x: Blocked(16, (0, 0)), y: Blocked(16, (1, 1) if shape[1] == 64 else (0, 0))}
    assert lower_group(list(graph.sites()), graph.outputs, layouts, 16).parts == parts


# ---------------------------------------------------------------------- other processors
def mixture() -> Graph:
    """A network whose nodes are all of the generic route, each kind once."""
    b = Builder()
    x = b.input("x", 1, 20, 9, 11)
    y = b.apply("HardSwish", b.conv(x, 24, 3, group=4, pads=(1, 1, 1, 1)))
    y = b.apply("MaxPool", y, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
    up = b.apply("ConvTranspose", y, b.weight(24, 20, 2, 2), strides=(2, 2))
    up = b.apply(
        "Slice",
        up,
        b.const(np.array([0, 0], np.int64)),
        b.const(np.array([9, 11], np.int64)),
        b.const(np.array([2, 3], np.int64)),
    )
    y = b.apply("Concat", b.apply("Tanh", up), x, axis=1)
    gate = b.apply("Sigmoid", b.apply("GlobalAveragePool", y))
    y = b.apply("Softmax", b.apply("Mul", y, gate), axis=1)
    scales = b.const(np.array([1, 1, 2, 1.5], np.float32))
    y = b.apply("Resize", y, None, scales, mode="linear", coordinate_transformation_mode="half_pixel")
    y = b.apply("AveragePool", y, kernel_shape=(3, 2), strides=(2, 2), pads=(1, 0, 1, 1))
    y = b.apply("LayerNormalization", y, b.weight(8), b.weight(8))
    b.task("t", y)
    return b.done()


@pytest.mark.cross
@pytest.mark.parametrize("name", ["aarch64-cortex-a72", "armv7-neon", "x86-64-v3"])
def test_generic_kernels_under_emulation(name: str, tmp_path: Path):
    target, graph = linkable(name), mixture()
    library = generate(graph, target, templates=False)
    check_emulated(library, graph, target, tmp_path)


def test_the_sign_of_an_unsigned_product_with_zero(tmp_path: Path) -> None:
    b = Builder()
    x = b.input("x", 3, 7, dtype=DType.UINT64)
    b.task("t", b.apply("Sign", b.apply("Mul", x, b.const(np.uint64(0)))))
    library = generate(b.done(), find_target("host"))
    ((found,),) = NativeLibrary(library, tmp_path).run(library.full, {"x": np.arange(21).reshape(3, 7)}).values()
    np.testing.assert_array_equal(found, np.zeros((3, 7), np.uint64))


@pytest.mark.parametrize("dtype", [DType.INT32, DType.INT64], ids=str)
def test_what_wraps_around_is_not_taken_to_fit(dtype: DType, tmp_path: Path) -> None:
    """Nodes in one kernel: from a product that fits LLVM concludes its factors, from a sum how large it is."""
    b = Builder()
    low, high = np.iinfo(dtype.value).min, np.iinfo(dtype.value).max
    values = np.array([low, low + 1, low // 2, -1, 0, 1, high // 2 + 1, high - 1, high] * 2 + [low], dtype.numpy)
    x = b.input("x", len(values), dtype=dtype)
    two, one, zero = (b.const(np.array(n, dtype.numpy)) for n in (2, 1, 0))
    b.task("half", b.apply("Div", b.apply("Mul", x, two), two))
    b.task("opposite", b.apply("Less", b.apply("Neg", x), zero))
    b.task("size", b.apply("Less", b.apply("Abs", x), zero))
    b.task("next", b.apply("Greater", b.apply("Add", x, one), x))
    b.task("before", b.apply("Less", b.apply("Sub", x, one), x))
    b.task("pair", b.apply("Less", b.apply("ReduceSum", b.apply("Abs", x), b.const([0]), keepdims=0), zero))
    graph = b.done()
    library = generate(graph, find_target("host"))
    found = NativeLibrary(library, tmp_path).run(library.full, {"x": values})
    for task, expected in zip(graph.tasks, evaluate(graph, {"x": values}).values(), strict=True):
        np.testing.assert_array_equal(found[task][0], expected, task)
