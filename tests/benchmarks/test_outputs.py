"""What counts as right."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.outputs import Expected, error_of
from benchmarks.peers.client import PeerError

SCALE = np.float32([100, -200])
EXACT = Expected.of({"y": SCALE}, {"y": SCALE})


def test_an_error_is_relative_to_the_outputs_scale():
    assert EXACT.check({"y": SCALE * (1 + 0.5e-4), "more": SCALE}) == pytest.approx(0.5e-4, rel=0.01)
    with pytest.raises(PeerError, match=r"output 'y' is 2\.0e-04 .* 1\.0e-04 is allowed"):
        EXACT.check({"y": SCALE * (1 + 2e-4)})


def test_what_onnxruntime_itself_does_not_know_is_allowed():
    loose = Expected.of({"y": SCALE}, {"y": SCALE * (1 + 1e-4)})
    assert loose.limits["y"] == pytest.approx(4e-4, rel=0.01)
    assert loose.check({"y": SCALE * (1 + 3e-4)}) == pytest.approx(3e-4, rel=0.01)
    with pytest.raises(PeerError):
        loose.check({"y": SCALE * (1 + 5e-4)})


@pytest.mark.parametrize("found", [{"z": SCALE}, {"y": SCALE * np.nan}, {"y": SCALE[:1]}])
def test_missing_undefined_and_short_outputs_are_wrong(found):
    with pytest.raises(PeerError, match="output"):
        EXACT.check(found)


def test_errors_by_type():
    assert error_of(np.zeros(3), np.zeros(4, np.float32)) == float("inf")
    assert error_of(np.array([[1, 2, 4, 4]]), np.array([1, 2, 3, 4])) == 0.25
    assert error_of(np.zeros((2, 0)), np.zeros((0, 2), np.int64)) == 0.0
