"""Index arithmetic of the generic route, by brute force; tables that become arithmetic."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from compiler.codegen.generic.index import Condition, Index, LoopVar
from compiler.codegen.generic.tables import piece


def evaluated(index: Index, values: Mapping[LoopVar, int]) -> int:
    total = index.const
    for atom, factor in index.terms.items():
        if isinstance(atom, LoopVar):
            total += factor * values[atom]
        else:
            inner = evaluated(atom.of, values)
            total += factor * (inner % atom.by if atom.remainder else inner // atom.by)
    return total


def test_arithmetic_is_that_of_integers():
    """Random expressions over two variables, evaluated as written and as simplified."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        a, b = (
            LoopVar(n, int(low), int(low + extent))
            for n, (low, extent) in zip("ab", rng.integers(0, 6, (2, 2)), strict=True)
        )
        steps = [
            (rng.choice(["+", "*", "//", "%", "-"]), int(rng.integers(1, 9)), rng.random() < 0.5) for _ in range(5)
        ]

        def build(x, y, steps=steps):
            for operator, number, other in steps:
                if operator == "+":
                    x = x + (y if other else number)
                elif operator == "-":
                    x = x + 40 - (y if other else number)
                elif operator == "*":
                    x = x * number
                else:
                    x = x // number if operator == "//" else x % number
            return x

        index = build(Index.of(a), Index.of(b))
        low, high = index.interval
        for i, j in itertools.product(range(a.low, a.high + 1), range(b.low, b.high + 1)):
            got = evaluated(index, {a: i, b: j})
            assert got == build(i, j)
            assert low <= got <= high


def test_blocks_of_channels_come_apart():
    block, lane = LoopVar("block", 0, 3), LoopVar("lane", 0, 7)
    channel = Index.of(block) * 16 + Index.of(lane)
    assert (channel // 16).key == Index.of(block).key
    assert (channel % 16).key == Index.of(lane).key
    assert ((channel - 24) // 16).key == (Index.of(block) - 2).key


def test_splitting_a_number_and_putting_it_together_changes_nothing():
    flat = LoopVar("f", 0, 104)
    i = Index.of(flat)
    assert (i // 35 * 35 + i // 7 % 5 * 7 + i % 7).key == i.key


def test_conditions_the_range_decides_are_truth_values():
    i = Index.of(LoopVar("i", 0, 9))
    assert (i < 10) is True and (i >= 10) is False and (i * 2 == 5) is False
    assert isinstance(i < 5, Condition)


@pytest.mark.parametrize(
    ("table", "first", "last", "wanted"),
    [
        (np.arange(3, 13), 2, 5, lambda i: i + 3),
        (np.repeat(np.arange(6), 2), 1, 8, lambda i: i // 2),
        (np.array([4, 4, 4, 9, 8, 7]), 3, 5, lambda i: 12 - i),
        (np.array([4, 1, 7]), 0, 2, None),
    ],
    ids=["line", "repeated", "falling", "scattered"],
)
def test_tables_become_arithmetic(table: np.ndarray, first: int, last: int, wanted: Callable | None):
    variable = LoopVar("i", first, last)
    found = piece(table.astype(np.int64), [Index.of(variable)], [])
    if wanted is None:
        assert found is None
        return
    assert [evaluated(found, {variable: i}) for i in range(first, last + 1)] == [
        wanted(i) for i in range(first, last + 1)
    ]


def test_tables_are_cut_where_their_line_changes():
    variable = LoopVar("i", 0, 8)
    breaks: list = []
    assert piece(np.array([-1, -1, -1, 5, 6, 7, -1, -1, -1]), [Index.of(variable)], breaks) is None
    for first, last in itertools.pairwise(sorted({0, *(p for _, p in breaks), 9})):
        assert (
            piece(np.array([-1, -1, -1, 5, 6, 7, -1, -1, -1]), [Index.of(LoopVar("j", first, last - 1))], [])
            is not None
        )
