"""Positions and lengths in the data that lie outside a tensor, or nowhere: kernels read what they are given."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.codegen.generic.run import run_site
from tests.ir.op_case import OpCase, site_of

IMAGE = np.arange(1, 13, dtype=np.float32).reshape(1, 1, 3, 4)
NOWHERE = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 3e38], np.float32)


def lowered(op: str, *operands: np.ndarray, **attrs: object) -> np.ndarray:
    """The first result of one operator, compiled for this machine."""
    case = OpCase(op, "", operands, attrs)
    return run_site(site_of(case), case.arrays())[0]


@pytest.mark.parametrize("length", [6, 100, 10**9, 2**62])
def test_a_sequence_is_reversed_up_to_its_end(length: int) -> None:
    x = np.arange(40, dtype=np.float32).reshape(2, 5, 4)
    got = lowered("ReverseSequence", x, np.array([length, -length]), batch_axis=0, time_axis=1)
    np.testing.assert_array_equal(got, [x[0, ::-1], x[1]])


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("padding", ["border", "reflection"])
def test_an_image_is_read_at_its_entries_wherever_a_grid_points(mode: str, padding: str) -> None:
    grid = np.stack(np.meshgrid(NOWHERE, NOWHERE), -1)[None]
    got = lowered("GridSample", IMAGE, grid, mode=mode, padding_mode=padding)
    if mode == "nearest":
        assert np.isin(got, IMAGE).all()
    else:  # weights of no number are none; the entries are those of the image
        held = np.isnan(got) | ((got > -3 * IMAGE.max()) & (got < 3 * IMAGE.max()))
        assert held.all(), got
