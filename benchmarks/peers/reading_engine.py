"""Not a contender but a yardstick: a loop that does nothing but read an array, built by the C compiler.

Eight independent sums of vectors: what a call takes is the time in which a core can bring the array in, from
whichever cache holds it, or several cores a part each.
"""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

import numpy as np

from benchmarks.peers.c_loop import built
from benchmarks.peers.engine import Arrays, Engine

_SOURCE = """
typedef float vector __attribute__((vector_size(4 * LANES)));
static float part(const vector *data, long begin, long end)
{
    asm volatile("" ::: "memory"); /* else readings after the first are taken for the same */
    vector sum[8] = {0};
    for (long i = begin; i < end; i += 8)
#pragma GCC unroll 8
        for (int k = 0; k < 8; ++k) sum[k] += data[i + k];
    float total = 0;
    for (int k = 0; k < 8; ++k) total += sum[k][0];
    return total;
}

float reading(const vector *data, long count, long times)
{
    float total = 0;
    for (long again = 0; again < times; ++again)
#pragma omp parallel for num_threads(THREADS) reduction(+ : total)
      for (int i = 0; i < THREADS; ++i)
        total += part(data, count / 8 * i / THREADS * 8, count / 8 * (i + 1) / THREADS * 8);
    return total;
}
"""
_ALIGNMENT = 4096
_TIMES = 16
"""Readings of one call, beside which the call itself is short."""


def load(model: str, feeds: Arrays, options: dict[str, Any]) -> Engine:
    """Build the loop for `lanes` float32 elements and the compiler's `-march` value `march`, over an array of
    `bytes` (whole turns of 8 vectors of them), divided among `threads`; needs no model."""
    size, lanes, threads = options["bytes"], options["lanes"], options["threads"]
    room = np.zeros(size + _ALIGNMENT, np.uint8)
    first = -room.ctypes.data % _ALIGNMENT
    room[first : first + size // 4 * 4].view(np.float32)[:] = 0.5
    library, version = built(_SOURCE, options["march"], parallel=threads > 1, LANES=lanes, THREADS=threads)
    function = library.reading
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_long, ctypes.c_long), ctypes.c_float
    call = partial(function, room.ctypes.data + first, size // (4 * lanes), _TIMES)
    return Engine(version, call, dict, inner=_TIMES, keep=room)
