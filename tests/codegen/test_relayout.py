"""Copies between planes and blocks whose squares are turned in registers."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from compiler.codegen import kernels
from compiler.codegen.generate import generate
from compiler.codegen.generic.kernel import GenericKernel
from compiler.codegen.kernels import plane
from compiler.codegen.layout import Blocked, Layout, Plain, to_physical
from compiler.codegen.templates.relayout import RelayoutShape, relayout_kernel, relayout_shape
from tests.codegen.emulated import check_emulated, linkable
from tests.codegen.native import aligned
from tests.codegen.test_generate import check
from tests.codegen.test_generic import run_kernels
from tests.graphs import Builder

CASES: dict[str, tuple[tuple[int, ...], Blocked]] = {
    "rows as one": ((2, 32, 5, 9), Blocked(16, (0, 0))),
    "several runs and a rest": ((1, 16, 15, 13), Blocked(16, (0, 0))),
    "rows within a border": ((1, 48, 7, 70), Blocked(16, (1, 1))),
    "other borders behind": ((2, 24, 6, 8), Blocked(8, (0, 2), (3, 0))),
    "narrow blocks": ((1, 12, 9, 5), Blocked(4, (1, 0))),
    "one axis": ((3, 16, 37), Blocked(8, (2,))),
}


def shape_of(dims: tuple[int, ...], layout: Blocked, blocking: bool, lanes: int) -> RelayoutShape | None:
    b = Builder()
    value = b.graph.value(b.input("x", *dims))
    return relayout_shape(dims[0], plane(value, layout), blocking, lanes)


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_every_bit_arrives_and_cells_outside_are_zero(lanes: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(lanes)
    calls, wanted = [], []
    for dims, blocked in CASES.values():
        array = rng.integers(0, 2**32, dims, dtype=np.uint32).view(np.float32)  # also those of NaN
        layouts: tuple[Layout, Layout] = (Plain(), blocked)
        for source, target in (layouts, layouts[::-1]):
            shape = shape_of(dims, blocked, target is blocked, lanes)
            assert shape is not None
            expected = to_physical(array, target)
            made = GenericKernel(relayout_kernel(shape), (), (), shape.units.count)
            out = aligned(expected.nbytes).view(np.float32).reshape(expected.shape)
            calls.append((made, [to_physical(array, source)], [out]))
            wanted.append(expected)
    run_kernels(calls, tmp_path)
    for (_, _, (got,)), expected in zip(calls, wanted, strict=True):
        np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize(
    ("dims", "layout"),
    [
        ((1, 20, 8, 8), Blocked(16, (0, 0))),
        ((1, 16, 9, 3), Blocked(16, (1, 1))),
        ((1, 3, 8, 8), Blocked(3, (1, 1))),
    ],
    ids=["a block in part", "rows that are too short", "few channels"],
)
def test_where_no_square_fits_it_is_left_to_the_generic_route(dims: tuple[int, ...], layout: Blocked) -> None:
    assert shape_of(dims, layout, True, 16) is None


def wide_ends() -> Builder:
    """A network whose input and output are copied by squares."""
    b = Builder(seed=3)
    b.task("t", b.apply("Relu", b.conv(b.input("x", 2, 32, 9, 12), 32, 3, pads=(1, 1, 1, 1))))
    return b


def test_a_network_of_wide_ends(tmp_path: Path) -> None:
    with mock.patch.object(kernels, "relayout_kernel", wraps=relayout_kernel) as made:
        check(wide_ends().done(), tmp_path)
    assert [call.args[0].blocking for call in made.call_args_list] == [True, False]


@pytest.mark.cross
@pytest.mark.parametrize("name", ["aarch64-cortex-a53", "armv7-neon"])
def test_under_emulation(name: str, tmp_path: Path) -> None:
    graph, target = wide_ends().done(), linkable(name)
    check_emulated(generate(graph, target), graph, target, tmp_path)
