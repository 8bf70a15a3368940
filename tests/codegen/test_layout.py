"""Layouts as index maps: physical form, halo, pad lanes."""

import numpy as np
import pytest

from compiler.codegen.layout import Blocked, Plain, to_physical
from compiler.codegen.layouts import block_width
from compiler.machine import CORTEX_A72, X86_64_V3, X86_64_V4, Machine


@pytest.mark.parametrize("shape", [(1, 3, 5, 4), (2, 16, 3, 3), (1, 18, 7), (1, 5, 2, 3, 2)])
@pytest.mark.parametrize("width", [3, 4, 8, 16])
@pytest.mark.parametrize("halo", [0, 2])
def test_blocked_is_a_padded_channel_split(shape: tuple[int, ...], width: int, halo: int) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    layout = Blocked(width, (halo,) * (len(shape) - 2))
    blocks = -(-shape[1] // width)
    pads = [(0, 0), (0, blocks * width - shape[1]), *[(halo, halo)] * (len(shape) - 2)]
    padded = np.pad(array, pads)
    split = padded.reshape(shape[0], blocks, width, *padded.shape[2:])
    expected = np.moveaxis(split, 2, -1)
    assert layout.physical(shape) == expected.shape
    np.testing.assert_array_equal(to_physical(array, layout), expected)


@pytest.mark.parametrize("shape", [(1, 3, 5, 4), (2, 18, 7)])
def test_reading_through_the_index_map_gives_the_tensor_back(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(size=shape)
    for layout in (Plain(), Blocked(8, (1,) * (len(shape) - 2))):
        stored = to_physical(array, layout)
        np.testing.assert_array_equal(stored[layout.index(tuple(np.indices(shape)))], array)


@pytest.mark.parametrize(
    ("channels", "machine", "width"),
    [
        (3, X86_64_V4, 3),
        (6, X86_64_V4, 8),
        (10, X86_64_V4, 16),
        (24, X86_64_V4, 8),  # three narrow vectors in the time of one and a half wide ones
        (40, X86_64_V4, 8),
        (144, X86_64_V4, 16),
        (88, X86_64_V4, 16),  # eleven narrow ones cannot share a register tile
        (24, X86_64_V3, 8),
        (12, X86_64_V3, 8),  # narrow vectors are no faster
        (24, CORTEX_A72, 4),
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_block_width_wastes_no_time(channels: int, machine: Machine, width: int) -> None:
    assert block_width(channels, machine) == width
