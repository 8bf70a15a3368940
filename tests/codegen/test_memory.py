"""The workspace planner."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from compiler.codegen.memory import ALIGNMENT, Interval, aligned, place

intervals = st.lists(
    st.tuples(st.integers(1, 5000), st.integers(0, 20), st.integers(0, 10)), min_size=1, max_size=25
).map(lambda rows: [Interval(f"b{i}", n, first, first + more) for i, (n, first, more) in enumerate(rows)])


@given(intervals)
def test_buffers_alive_together_never_overlap(buffers: list[Interval]) -> None:
    placement = place(buffers)
    steps = max(b.last for b in buffers) + 1
    for step in range(steps):
        cells = np.zeros(placement.bytes, int)
        for b in buffers:
            if b.first <= step <= b.last:
                at = placement.offsets[b.name]
                assert at % ALIGNMENT == 0
                assert at + b.bytes <= placement.bytes
                cells[at : at + b.bytes] += 1
        assert cells.max(initial=0) <= 1


@given(intervals)
def test_lower_bound_is_the_largest_live_sum(buffers: list[Interval]) -> None:
    placement = place(buffers)
    steps = range(max(b.last for b in buffers) + 1)
    live = [sum(aligned(b.bytes) for b in buffers if b.first <= s <= b.last) for s in steps]
    assert placement.lower_bound == max(live) <= placement.bytes


def test_a_chain_reuses_memory() -> None:
    chain = [Interval(f"b{i}", 1000, i, i + 1) for i in range(10)]
    assert place(chain).bytes == 2 * aligned(1000)


def test_nothing_to_place() -> None:
    assert place([]).bytes == 0
