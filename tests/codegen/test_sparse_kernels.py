"""Kernels of sparse weights against the reference: every encoding, shapes of all kinds, several processors."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import get_args

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from compiler.codegen.generate import generate
from compiler.codegen.layouts import block_width
from compiler.codegen.planner import Sources
from compiler.codegen.strategies.base import Choice
from compiler.codegen.target import Arch, find_target
from compiler.codegen.templates import block_sparse, regular_block
from compiler.codegen.templates.blocked import Plane
from compiler.codegen.templates.permute import Permutation
from compiler.errors import ConfigError
from compiler.ir.encoding import BlockSparse, Encoding, RegularBlock, Unstructured
from compiler.ir.graph import Graph
from compiler.ir.types import ValueRef
from tests.codegen.emulated import check_emulated, linkable
from tests.codegen.native import NativeLibrary
from tests.codegen.test_generate import check, preferring
from tests.graphs import Builder
from tests.sparse import fitted, sparse_weight

BLOCKS = [BlockSparse(block=(r, 1)) for r in (4, 8, 16)]
RUNS = [RegularBlock(sizes=(b,)) for b in (4, 8, 16, 32)]
TARGETS = ["host", "x86-64-v3"]


def template_of(encoding: Encoding) -> str:
    return "block-sparse" if isinstance(encoding, BlockSparse) else "regular-block"


def runs_here(target: str) -> None:
    host, wanted = find_target("host"), find_target(target)
    if host.arch != wanted.arch or host.lanes < wanted.lanes:
        pytest.skip(f"this processor is {host.preset}")


def sparse_conv(
    b: Builder, x: ValueRef, encoding: Encoding, out: int, kernel: tuple[int, ...], **attrs: object
) -> ValueRef:
    weight = sparse_weight(b.graph, encoding, (out, b.graph.value(x).shape[1], *kernel))
    return b.apply("Conv", x, weight, b.weight(out, scale=0.5), **attrs)  # type: ignore[no-any-return]


CONVOLUTIONS = [
    # channels in, out, size, kernel, attributes
    (16, 32, (7, 7), (3, 3), {"pads": (1, 1, 1, 1)}),
    (64, 48, (13, 9), (3, 3), {"strides": (2, 1), "pads": (1, 0, 1, 2)}),
    (40, 40, (6, 11), (3, 2), {"dilations": (2, 3), "pads": (2, 1, 0, 3)}),
    (32, 64, (14, 14), (1, 1), {}),
    (32, 64, (9, 9), (1, 1), {"strides": (2, 2)}),
    (48, 16, (1, 1), (1, 1), {}),
    (16, 20, (30,), (5,), {"pads": (2, 2)}),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda c: f"{c[0]}-{c[1]}@{'x'.join(map(str, c[2]))}")
@pytest.mark.parametrize("encoding", [*BLOCKS, *RUNS], ids=str)
def test_convolution(encoding: Encoding, case: tuple, tmp_path: Path) -> None:
    channels, out, size, kernel, attrs = case
    b = Builder()
    batch = 2 if size[0] == 7 else 1
    b.task("t", sparse_conv(b, b.input("x", batch, channels, *size), encoding, out, kernel, **attrs))
    graph = b.done()
    for target, rank in (("host", 0), ("x86-64-v3", 1)):
        runs_here(target)
        folder = tmp_path / target
        folder.mkdir()
        used = check(graph, folder, target=target, algorithm=template_of(encoding), rank=rank)
        assert (template_of(encoding) in used) == _applies(encoding, channels, out, target)


def _applies(encoding: Encoding, channels: int, out: int, target: str) -> bool:
    """Whether a run fits four registers of the width that divides the blocks of both buffers."""
    machine = find_target(target).machine
    width = min(block_width(channels, machine), block_width(out, machine))
    return not isinstance(encoding, RegularBlock) or encoding.sizes[0] <= 4 * width


@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize("encoding", [*BLOCKS, *RUNS], ids=str)
@pytest.mark.parametrize(("inner", "columns"), [(64, 16), (96, 100), (32, 257)])
def test_matrix_product(encoding: Encoding, rows: int, inner: int, columns: int, tmp_path: Path) -> None:
    b = Builder()
    weight = sparse_weight(b.graph, encoding, (columns, inner))
    y = b.apply("Gemm", b.input("x", rows, inner), weight, b.weight(columns), transB=1, alpha=0.5)
    b.task("t", b.apply("Relu", b.apply("Add", y, b.input("r", rows, columns))))
    assert check(b.done(), tmp_path, algorithm=template_of(encoding)) == {template_of(encoding)}


@pytest.mark.parametrize("encoding", [BlockSparse(rows=1), RegularBlock(1, 0, (8,))], ids=str)
def test_weights_whose_columns_are_the_outputs(encoding: Encoding, tmp_path: Path) -> None:
    b = Builder()
    y = b.apply("MatMul", b.input("x", 2, 5, 48), sparse_weight(b.graph, encoding, (48, 40)))
    b.task("t", b.apply("Add", y, b.weight(40)))
    assert check(b.done(), tmp_path, algorithm=template_of(encoding)) == {template_of(encoding)}


@pytest.mark.parametrize("encoding", [Unstructured(), RegularBlock(sizes=(8,))], ids=str)
@pytest.mark.parametrize("rank", [0, 3])
def test_lists_for_weights_without_blocks(encoding: Encoding, rank: int, tmp_path: Path) -> None:
    b = Builder()
    y = sparse_conv(b, b.input("x", 1, 16, 7, 6), encoding, 24, (3, 3), pads=(1, 1, 1, 1), strides=(2, 1))
    flat = b.apply("Flatten", b.apply("Relu", y))
    weight = sparse_weight(b.graph, Unstructured(), (37, b.graph.value(flat).shape[1]), 0.05)
    b.task("t", b.apply("Gemm", flat, weight, b.weight(37), transB=1))
    used = check(b.done(), tmp_path, algorithm="block-sparse", rank=rank)
    assert "block-sparse" in used
    assert not used & {"conv", "gemm"}


def test_a_plan_that_wants_runs_where_there_are_none() -> None:
    b = Builder()
    b.task("t", sparse_conv(b, b.input("x", 1, 16, 7, 6), BlockSparse(), 16, (3, 3)))
    recorded = {"conv": Choice("regular-block", (4, 1, 1))}
    with pytest.raises(ConfigError, match="'regular-block 4x1x1' of the plan does not apply to it"):
        generate(b.done(), find_target("host"), sources=Sources(recorded))


def test_blocks_along_the_other_axis_run_densely(tmp_path: Path) -> None:
    b = Builder()
    b.task("t", b.apply("MatMul", b.input("x", 2, 48), sparse_weight(b.graph, BlockSparse(), (48, 40))))
    assert check(b.done(), tmp_path) == {"gemm"}


@pytest.mark.parametrize("target", TARGETS)
def test_rows_with_runs_of_their_own(target: str, tmp_path: Path) -> None:
    """DARB: rows are sorted by the length of their runs and stored one by one."""
    runs_here(target)
    sizes = tuple(int(s) for s in np.random.default_rng(3).choice([4, 8, 16, 32], 48))
    b = Builder()
    x = b.input("x", 1, 64, 9, 7)
    y = sparse_conv(b, x, RegularBlock(sizes=sizes), 48, (3, 3), pads=(1, 1, 1, 1))
    z = sparse_conv(b, b.apply("Relu", y), RegularBlock(sizes=sizes), 48, (1, 1))
    flat = b.apply("Flatten", b.apply("Relu", b.apply("Add", z, y)))
    long = tuple(int(s) for s in np.random.default_rng(4).choice([4, 16], 37))
    weight = sparse_weight(b.graph, RegularBlock(sizes=long), (37, 48 * 63))
    b.task("t", b.apply("Gemm", flat, weight, b.weight(37), transB=1), y)
    used = check(b.done(), tmp_path, target=target, algorithm="regular-block")
    assert "regular-block" in used
    assert not used & {"conv", "gemm", "winograd4x4"}


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize(
    ("target", "channels", "sizes"),
    [("host", 16, (4, 8) * 10), ("x86-64-v3", 16, (4, 8) * 10), ("x86-64-v3", 4, (4,))],
)
def test_lanes_that_are_no_channels_are_written(
    target: str, channels: int, sizes: tuple[int, ...], group: int, tmp_path: Path
) -> None:
    """Kernels that read whole blocks multiply them by zero, which is NaN where the memory held NaN."""
    runs_here(target)
    b = Builder()
    runs = RegularBlock(sizes=sizes)
    y = sparse_conv(b, b.input("x", 1, channels, 8, 8), runs, 20, (3, 3), pads=(1, 1, 1, 1))
    assert 20 % block_width(20, find_target(target).machine)
    b.task("t", b.conv(y, 2 if group == 1 else 20, 3, pads=(1, 1, 1, 1), group=group))
    used = check(b.done(), tmp_path, target=target, algorithm="regular-block")
    assert used == {"copy", "regular-block", "lane-sums" if group == 1 else "grouped"}


def test_long_activations_are_not_repeated_for_every_lane(tmp_path: Path) -> None:
    b = Builder()
    y = sparse_conv(b, b.input("x", 1, 32, 5, 5), RegularBlock(sizes=(4, 8) * 16), 32, (1, 1))
    b.task("t", b.apply("Mul", y, b.apply("HardSigmoid", b.apply("Tanh", y))))
    assert "regular-block" not in check(b.done(), tmp_path, algorithm="regular-block")


@pytest.mark.parametrize("encoding", [BlockSparse(), BlockSparse(block=(8, 1)), RegularBlock(sizes=(16,))], ids=str)
def test_concatenations_residuals_and_activations(encoding: Encoding, tmp_path: Path) -> None:
    b = Builder()
    x = b.input("x", 1, 32, 8, 8)
    parts = [b.apply("Relu", b.conv(x, n, 1)) for n in (16, 32, 48)]
    y = sparse_conv(b, b.apply("Concat", *parts, axis=1), encoding, 32, (3, 3), pads=(1, 1, 1, 1))
    z = b.apply("Sigmoid", b.apply("Add", y, x))
    b.task("t", b.apply("Mul", z, sparse_conv(b, z, encoding, 32, (1, 1))), y)
    assert template_of(encoding) in check(b.done(), tmp_path, algorithm=template_of(encoding))


def test_segments_that_do_not_hold_whole_runs_run_densely(tmp_path: Path) -> None:
    b = Builder()
    x = b.input("x", 1, 32, 8, 8)
    joined = b.apply("Concat", b.apply("Relu", b.conv(x, 20, 1)), b.apply("Relu", b.conv(x, 44, 1)), axis=1)
    b.task("t", sparse_conv(b, joined, RegularBlock(sizes=(16,)), 32, (1, 1)))
    assert "regular-block" not in check(b.done(), tmp_path, algorithm="regular-block")


def test_empty_lists_write_bias_and_activation(tmp_path: Path) -> None:
    b = Builder()
    weight = sparse_weight(b.graph, BlockSparse(), (48, 16, 3, 3))
    data = b.graph.value(weight).constant.copy()
    data[16:32] = 0
    b.graph.update(weight, data=data)
    y = b.apply("Conv", b.input("x", 1, 16, 5, 5), weight, b.weight(48, scale=1.0), pads=(1, 1, 1, 1))
    b.task("t", b.apply("Tanh", y))
    assert "block-sparse" in check(b.done(), tmp_path, algorithm="block-sparse")


@hypothesis.settings(
    max_examples=25, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(data=st.data())
def test_random_shapes(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    def pick(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    kernel, stride, dilation = [(pick(1, 3), pick(1, 3)) for _ in range(3)]
    channels, out, pads = pick(1, 70), pick(4, 70), tuple(pick(0, 2) for _ in range(4))
    least = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [pick(max(n - pads[i] - pads[i + 2], 1), n + 12) for i, n in enumerate(least)]
    encoding = data.draw(
        st.sampled_from([*BLOCKS, *RUNS, RegularBlock(sizes=tuple(np.resize([4, 8, 8, 32], out).tolist()))])
    )
    b = Builder(seed=pick(0, 99))
    x = b.input("x", pick(1, 2), channels, *size)
    y = sparse_conv(b, x, encoding, out, kernel, strides=stride, dilations=dilation, pads=pads)
    b.task("t", b.apply("Relu", y) if pick(0, 1) else y)
    graph, algorithm = b.done(), template_of(encoding)
    target = data.draw(st.sampled_from(TARGETS))
    runs_here(target)
    hypothesis.assume(preferring(graph, target, algorithm).recorded)  # few channels may not fill a register
    folder = tmp_path_factory.mktemp("random")
    assert algorithm in check(graph, folder, target=target, algorithm=algorithm, rank=pick(0, 3))


# ---------------------------------------------------------------------- packing
GEOMETRY = (Plane(20, 6, 5, 8, (2, 1), (1, 1)), Plane(12, 6, 5, 4, (1, 2), (0, 0)))


def test_lists_read_back() -> None:
    """Every stored block is in its group's list of its segment, at the cell its tap reads, in order of memory."""
    weight = fitted(BlockSparse(block=(8, 1)), (20, 32, 3, 2), 0.3, seed=1)
    pad, dilation = (1, 1), (2, 1)
    packed = block_sparse.pack([weight], 8, GEOMETRY, pad, dilation)
    back, first_channel = np.zeros((24, 32, 3, 2), np.float32), 0
    for s, plane in enumerate(GEOMETRY):
        shape = plane.physical(1)[1:]
        for group in range(3):
            taps = slice(packed.first[group, s], packed.last[0][group, s])
            assert (np.diff(packed.index[taps]) != 0).all()
            block, row, column, lane = np.unravel_index(packed.index[taps], shape)
            kh = (row - plane.before[0] + pad[0]) // dilation[0]
            kw = (column - plane.before[1] + pad[1]) // dilation[1]
            channel = first_channel + block * plane.block + lane
            back[group * 8 : group * 8 + 8, channel, kh, kw] = packed.values[taps].T
            assert (np.diff(block) >= 0).all()
        first_channel += plane.channels
    assert np.array_equal(back[:20], weight)
    assert packed.last[0][-1, -1] == len(packed.index) == len(packed.values)


@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
@pytest.mark.parametrize("sizes", [(4,), (16,), (4, 8, 8, 16) * 6])
def test_codes_read_back(sizes: tuple[int, ...], arch: str, vectors: int) -> None:
    """Survivors lie where their codes say, among the inputs of their step."""
    width = 8 if arch == "x86_64" else 4
    encoding = RegularBlock(sizes=sizes)
    weight = fitted(encoding, (24, 44, 2, 1), seed=2)
    rows = encoding.row_sizes(24)
    one = (1, 1)
    shape = regular_block.RegularShape(
        1,
        (Plane(16, 4, 4, width), Plane(28, 4, 4, width)),
        Plane(24, 3, 4, width),
        2,
        one,
        regular_block.row_classes(rows, width * vectors),
        arch,
        width,
        tile=(1, 1, vectors),
    )
    packed = regular_block.pack(weight, rows, shape, (0, 0), one)
    back = np.zeros_like(weight)
    assert np.array_equal(packed.index, first_inputs(shape))
    values, codes, lane_rows = packed.values, packed.codes, packed.rows
    for one_class in shape.classes:
        size, slots = one_class.size, shape.slots(one_class.size)
        permutation = shape.permutation(size)
        form = permutation.form(vectors)
        count = one_class.panels * slots * vectors * width
        part, values = values[:count].reshape(one_class.panels, slots, vectors, width), values[count:]
        stored = count if form == "byte" else count // 2 if form == "nibble" else 4 * count
        lanes, codes = lanes_of(permutation, form, codes[:stored], part.shape), codes[stored:]
        members = one_class.panels * vectors * width
        owner, lane_rows = lane_rows[:members].reshape(one_class.panels, vectors, width), lane_rows[members:]
        for panel, slot, o, lane in np.ndindex(part.shape):
            if owner[panel, o, lane] < 0:
                assert part[panel, slot, o, lane] == 0
                continue
            channel, kh = place(shape, size, slot, int(lanes[panel, slot, o, lane]))
            back[owner[panel, o, lane], channel, kh, 0] += part[panel, slot, o, lane]
    assert np.array_equal(back, weight)
    assert not len(values) and not len(codes) and not len(lane_rows)


def first_inputs(shape: regular_block.RegularShape) -> list[int]:
    """Offset of channel 0 of each step, one cell further down for the second tap."""
    found = []
    for one_class in shape.classes:
        step = max(one_class.size, shape.width)
        for x in shape.x:
            for channel, tap in itertools.product(range(0, x.channels, step), (0, 1)):
                cell = (channel // x.block, tap, 0, channel % x.block)
                found.append(int(np.ravel_multi_index(cell, x.physical(1)[1:])))
    return found


def lanes_of(permutation: Permutation, form: str, stored: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Lane numbers out of stored codes."""
    if form == "byte":
        return stored.reshape(shape)
    if form == "table":
        quads = stored.reshape(*shape, 4)
        assert np.array_equal(quads % 4, np.broadcast_to(np.arange(4), quads.shape))
        return quads[..., 0] // 4
    pairs = stored.reshape(*shape[:2], shape[2] // 2, shape[3])
    return np.stack([pairs & 15, pairs >> 4], axis=3).reshape(shape)


def place(shape: regular_block.RegularShape, size: int, slot: int, lane: int) -> tuple[int, int]:
    """(channel, kernel row) that a lane of a slot's step reads."""
    first, step, runs = 0, max(size, shape.width), shape.runs(size)
    for x in shape.x:
        steps = -(-x.channels // step)
        if slot < 2 * steps * runs:
            at, kh = divmod(slot // runs, 2)
            return first + at * step + lane, kh
        slot -= 2 * steps * runs
        first += x.channels
    raise AssertionError(slot)


# ---------------------------------------------------------------------- sharing
def test_layers_of_one_geometry_share_a_kernel_whatever_their_lists() -> None:
    b = Builder()
    x = b.input("x", 1, 32, 8, 8)
    outs = [
        b.apply("Conv", x, sparse_weight(b.graph, BlockSparse(), (32, 32, k, k), d), pads=(k // 2,) * 4)
        for k, d in ((3, 0.1), (3, 0.2), (1, 0.5))
    ]
    b.task("t", *outs)
    graph = b.done()
    recorded = {n.ref.name: Choice("block-sparse", (8, 1, 1, 16)) for n in graph.nodes()}
    library = generate(graph, find_target("host"), sources=Sources(recorded))
    kernels = [c.kernel for c in library.full.calls if c.nodes[0].startswith("conv")]
    assert len(kernels) == 3
    assert len(set(kernels)) == 1


def test_a_list_that_ends_early_is_a_sparser_layer(tmp_path: Path) -> None:
    """Nested levels: the same kernel, values and offsets with other ends."""
    b = Builder()
    weight = fitted(BlockSparse(), (32, 16, 3, 3), 0.5)
    encoded = sparse_weight(b.graph, BlockSparse(), (32, 16, 3, 3), 0.5)
    b.graph.update(encoded, data=weight)
    b.task("t", b.apply("Conv", b.input("x", 1, 16, 6, 6), encoded))
    graph = b.done()
    library = generate(graph, find_target("host"), sources=preferring(graph, "host", "block-sparse"))
    ends = next(e for e in library.pool_table if e.layout.endswith("-last"))
    pool = bytearray(library.pool)
    last = np.frombuffer(pool, np.int32, 2, ends.offset)
    packed = block_sparse.pack([weight], 16, (Plane(16, 6, 6, 16),), (0, 0), (1, 1))
    assert np.array_equal(last, packed.last[0].ravel())
    last[:] = [packed.first[0, 0] + 5, packed.first[1, 0]]
    thinner = np.zeros_like(weight)
    for tap in range(5):
        block, kh, kw, lane = np.unravel_index(packed.index[tap], (1, 6, 6, 16))
        thinner[:16, block * 16 + lane, kh, kw] = packed.values[tap]
    native = NativeLibrary(dataclasses.replace(library, pool=bytes(pool)), tmp_path)
    x = np.random.default_rng(0).normal(size=(1, 16, 6, 6)).astype(np.float32)
    (site,) = graph.sites()
    (want,) = site.node.op.evaluate(site, [x, thinner])
    (got,) = native.run(library.full, {"x": x})["t"]
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


# ---------------------------------------------------------------------- the planner's choice
def steps(graph: Graph, target: str = "x86-64-v4") -> dict[str, dict[str, object]]:
    library = generate(graph, find_target(target))
    recorded = library.plan["steps"]
    assert isinstance(recorded, list)
    return {s["nodes"][0]: s for s in recorded}


@pytest.mark.parametrize(("density", "zeros"), [(0.05, "left out"), (0.6, "multiplied")])
def test_the_planner_multiplies_with_zeros_where_that_is_faster_and_says_so(density: float, zeros: str) -> None:
    b = Builder()
    weight = sparse_weight(b.graph, BlockSparse(), (64, 64, 3, 3), density)
    b.task("t", b.apply("Conv", b.input("x", 1, 64, 28, 28), weight, pads=(1, 1, 1, 1)))
    step = steps(b.done())["conv"]
    assert step["zeros"] == zeros
    assert str(step["weights"]).startswith("block16x1@")
    assert (step["algorithm"] == "block-sparse") == (zeros == "left out")


def test_dense_layers_have_no_word_about_zeros() -> None:
    b = Builder()
    b.task("t", b.conv(b.input("x", 1, 16, 8, 8), 16, 3))
    assert "zeros" not in steps(b.done())["conv"]


def test_same_weights_give_the_same_bytes(fresh_kernels: None) -> None:
    def net() -> Graph:
        b = Builder()
        y = sparse_conv(b, b.input("x", 1, 32, 8, 8), RegularBlock(sizes=(4, 8) * 16), 32, (3, 3))
        b.task("t", sparse_conv(b, y, BlockSparse(), 32, (1, 1)))
        return b.done()

    first, second = (generate(net(), find_target("host")) for _ in range(2))
    assert first == second


# ---------------------------------------------------------------------- other processors
def every_encoding() -> Graph:
    b = Builder()
    h = b.input("x", 1, 32, 6, 5)
    for encoding in (*BLOCKS, *RUNS[:3], RegularBlock(sizes=(4, 8) * 16), Unstructured()):
        h = b.apply("Relu", sparse_conv(b, h, encoding, 32, (3, 3), pads=(1, 1, 1, 1)))
    h = b.apply("Flatten", h)
    h = b.apply("Relu", b.apply("Gemm", h, sparse_weight(b.graph, BlockSparse(), (48, 960)), transB=1))
    h = b.apply("Gemm", h, sparse_weight(b.graph, RegularBlock(sizes=(16,)), (19, 48)), b.weight(19), transB=1)
    b.task("t", h)
    return b.done()


@pytest.mark.cross
@pytest.mark.parametrize("name", ["aarch64-cortex-a53", "aarch64-cortex-a76", "armv7-neon"])
def test_every_encoding_under_emulation(name: str, tmp_path: Path) -> None:
    target, graph = linkable(name), every_encoding()
    known = preferring(graph, name, "block-sparse").recorded | preferring(graph, name, "regular-block").recorded
    library = generate(graph, target, sources=Sources(known))
    used = {k.template for k in library.kernels}
    assert {"regular-block", "block-sparse"} <= used
    assert not used & {"conv", "gemm"}
    check_emulated(library, graph, target, tmp_path)


def test_every_permutation_has_an_instruction_or_is_refused() -> None:
    found = {
        (arch, lanes, sources)
        for arch, lanes, sources in itertools.product(get_args(Arch), (4, 8, 16), (1, 2, 4, 8))
        if Permutation(arch, lanes, sources).supported
    }
    x86 = {("x86_64", lanes, sources) for lanes in (4, 8, 16) for sources in (1, 2, 4)}
    assert found == x86 | {(arch, 4, sources) for arch in ("aarch64", "armv7") for sources in (1, 2, 4)}
