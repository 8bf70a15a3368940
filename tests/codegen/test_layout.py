"""Layouts as index maps: physical form, halo, pad lanes."""

import numpy as np
import pytest

from compiler.codegen.layout import Blocked, Plain, to_physical
from compiler.codegen.layouts import block_width


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
    ("channels", "vector", "width"), [(3, 16, 3), (6, 16, 8), (10, 16, 16), (16, 8, 8), (20, 16, 16), (24, 4, 4)]
)
def test_block_width_wastes_no_vectors(channels: int, vector: int, width: int) -> None:
    assert block_width(channels, vector) == width
