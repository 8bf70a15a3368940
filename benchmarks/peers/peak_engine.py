"""Not a contender but a yardstick: a loop of independent fused multiply-adds in registers, built by the C compiler.

What it reaches is the peak of the core as it runs at that moment: clock, throttling and neighbours included.
"""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

from benchmarks.peers.c_loop import built
from benchmarks.peers.engine import Arrays, Engine

FLOPS = 98_304_000
"""Operations of one call, for every vector width."""
_ACCUMULATORS = {16: 24, 8: 12, 4: 24}
"""Lanes -> independent sums: enough to hide the latency, few enough to stay in registers."""

_SOURCE = """
typedef float vector __attribute__((vector_size(4 * LANES)));
float peak(long steps, float start)
{
    vector sum[SUMS], scale, shift;
    for (int lane = 0; lane < LANES; ++lane) { scale[lane] = 0.999f; shift[lane] = start; }
    for (int i = 0; i < SUMS; ++i) sum[i] = shift + (float)i;
    for (long step = 0; step < steps; ++step)
#pragma GCC unroll 32
        for (int i = 0; i < SUMS; ++i) sum[i] = sum[i] * scale + shift;
    float total = 0;
    for (int i = 0; i < SUMS; ++i) total += sum[i][0];
    return total;
}
"""


def load(model: str, feeds: Arrays, options: dict[str, Any]) -> Engine:
    """Build the loop for `lanes` float32 elements and the compiler's `-march` value `march`; needs no model."""
    lanes, sums = options["lanes"], _ACCUMULATORS[options["lanes"]]
    library, version = built(_SOURCE, options["march"], LANES=lanes, SUMS=sums)
    function = library.peak
    function.argtypes, function.restype = (ctypes.c_long, ctypes.c_float), ctypes.c_float
    steps = FLOPS // (2 * lanes * sums)
    return Engine(version, partial(function, steps, 0.001), dict)
