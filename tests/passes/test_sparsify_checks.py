"""What is checked after weights were left out: survivors keep their bits, and nothing larger than they are went."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.errors import VerifyError
from compiler.ir.encoding import Unstructured
from compiler.ir.types import DType, TensorType
from compiler.passes.sparsify.checks import Count, check_survivors
from tests.graphs import Builder

BEFORE = np.arange(1, 33, dtype=np.float32).reshape(4, 8)


def checked(after: np.ndarray) -> Count:
    graph = Builder().graph
    old = graph.add_value("w", TensorType(DType.FLOAT32, BEFORE.shape), BEFORE)
    new = graph.add_value("v", TensorType(DType.FLOAT32, BEFORE.shape, Unstructured(1)), after)
    return check_survivors(old, new)


def test_the_largest_half_may_stay() -> None:
    assert checked(np.where(BEFORE > 16, BEFORE, 0)) == Count("w", 32, 32, 16)


def test_what_is_larger_than_a_survivor_may_not_go() -> None:
    with pytest.raises(VerifyError, match="'w': something of norm 32 was dropped, 1 stayed"):
        checked(np.where(BEFORE < 32, BEFORE, 0))


def test_survivors_keep_their_values() -> None:
    with pytest.raises(VerifyError, match="'w': 16 blocks or weights that stay have other values"):
        checked(np.where(BEFORE > 16, BEFORE + 1, 0))
