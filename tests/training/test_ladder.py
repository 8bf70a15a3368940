"""The order in which blocks leave a weight, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.ir.encoding import BlockSparse
from compiler.ir.graph import Graph, Value
from compiler.ir.types import DType, TensorType
from compiler.training.ladder import Ladder

FORM = BlockSparse(0, (2, 1))
FULL = np.array([[8, 1, 0, 3], [8, 1, 0, 4], [5, 0, 2, 7], [6, 0, 2, 7]], np.float32)
"""Two rows of four blocks, of which six are stored."""


def weight(*levels: np.ndarray) -> Value:
    graph = Graph("one")
    ref = graph.add_parameter("w", FULL).ref
    graph.update(ref, type=TensorType(DType.FLOAT32, FULL.shape, FORM), data=levels[0], sparser=levels[1:])
    return graph.value(ref)


def without(data: np.ndarray, *blocks: tuple[int, int]) -> np.ndarray:
    made = data.copy()
    for row, column in blocks:
        made[2 * row : 2 * row + 2, column] = 0
    return made


MIDDLE = without(FULL, (0, 1), (1, 2))
LAST = without(MIDDLE, (0, 3))


def stored(ladder: Ladder, count: int) -> list[tuple[int, int]]:
    return [(int(r), int(c)) for r, c in np.argwhere(FORM.alive(ladder.inside(count)))]


def test_blocks_leave_as_the_levels_say():
    ladder = Ladder(weight(FULL, MIDDLE, LAST))
    assert ladder.counts == [6, 4, 3]
    for count, level in zip(ladder.counts, (FULL, MIDDLE, LAST), strict=True):
        assert ladder.within(count, FULL).tobytes() == level.tobytes()
        assert ladder.inside(count).dtype == bool and np.array_equal(ladder.inside(count), level != 0)
    assert not ladder.inside(0).any()


def test_a_forgotten_order_is_made_anew_by_norm():
    ladder = Ladder(weight(FULL, MIDDLE, LAST))
    ladder.forget()
    every = [(0, 0), (0, 1), (0, 3), (1, 0), (1, 2), (1, 3)]
    assert stored(ladder, 1) == stored(ladder, 6) == every  # none has left yet
    ladder.shrink(FULL, 4)
    assert stored(ladder, 4) == stored(ladder, 1) == [(0, 0), (0, 3), (1, 0), (1, 3)]
    assert stored(ladder, 5) == [(0, 0), (0, 3), (1, 0), (1, 2), (1, 3)]  # the smallest left first
    ladder.shrink(-without(FULL, (0, 0)), 2)  # now its norm is the least
    assert [stored(ladder, n) for n in (1, 2, 3, 4)] == [
        [(1, 0), (1, 3)],
        [(1, 0), (1, 3)],
        [(0, 3), (1, 0), (1, 3)],
        [(0, 0), (0, 3), (1, 0), (1, 3)],
    ]
    assert stored(ladder, 6) == every and (0, 2) not in stored(ladder, 8)


def test_blocks_of_equal_norm_leave_from_the_last_on():
    level = np.ones((4, 2), np.float32)
    graph = Graph("one")
    ref = graph.add_parameter("w", level).ref
    sparser = level * np.array([[1, 0]], np.float32)
    graph.update(ref, type=TensorType(DType.FLOAT32, level.shape, FORM), data=level, sparser=[sparser])
    ladder = Ladder(graph.value(ref))
    ladder.forget()
    ladder.shrink(level, 1)
    assert [stored(ladder, n)[-1] for n in (1, 2, 3, 4)] == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(
    ("last", "rounds", "expected"),
    [(LAST, 1, [3]), (LAST, 2, [round(18**0.5), 3]), (LAST, 3, [5, 4, 3]), (np.zeros_like(FULL), 4, [5, 3, 2, 0])],
)
def test_rounds_go_down_by_equal_ratios_and_to_none_by_equal_numbers(last, rounds, expected):
    ladder = Ladder(weight(FULL, last))
    assert [ladder.between(rounds, n) for n in range(1, rounds + 1)] == expected
    assert ladder.between(rounds, 0) == 6
