"""Geometry of windows: what hangs over the end, and what a mean divides by there."""

from __future__ import annotations

from compiler.ir.ops.pool import AveragePool
from compiler.ir.ops.windows import Windows
from tests.graphs import Builder


def test_cells_beyond_the_end() -> None:
    assert Windows((5, 4), (3, 2), (5, 2), (2, 2), (1, 1), (2, 0)).high() == (2, 0)


def test_a_window_over_the_end_pad_stays_and_counts_what_is_inside_the_pad() -> None:
    b = Builder()
    options = {
        "kernel_shape": (3, 1),
        "strides": (2, 1),
        "pads": (1, 0, 1, 0),
        "ceil_mode": 1,
        "count_include_pad": 1,
    }
    b.task("t", b.apply("AveragePool", b.input("x", 1, 1, 4, 1), **options))
    (site,) = b.done().sites()
    assert site.results[0].shape == (1, 1, 3, 1)  # the last window starts at the last cell
    op = site.node.op
    assert isinstance(op, AveragePool)
    assert op.divisors(site).tolist() == [[3], [3], [2]]
