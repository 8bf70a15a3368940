"""A square of vectors turned in registers, by shuffles that every instruction set here has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.templates.common import Registers, vector

QUAD = 4
"""Lanes that instructions interleave among themselves: an ARM vector, a quarter or half of an x86 one."""
MOST = 8
"""Rows of the largest square: its vectors and those they become fit in sixteen registers."""


class Square:
    """Registers for squares of `side` vectors of `side` lanes; the side is 1, 2, 4 or 8."""

    def __init__(self, side: int) -> None:
        assert side in (1, 2, QUAD, MOST)
        self.side = side
        self._stages = [Registers(side, side) for _ in range(3)]

    def turn(self, rows: Sequence[Any]) -> list[Any]:
        """The vector of all lanes 0, that of all lanes 1, and so on."""
        lanes = range(self.side)
        if self.side == 1:
            return list(rows)
        singles, pairs, whole = self._stages
        for i, row in enumerate(rows):
            whole.put(i, row)
        if self.side == 2:
            return [self._mixed(whole, 0, 1, [k, self.side + k]) for k in lanes]
        quads = [q * QUAD for q in range(self.side // QUAD)]
        for first in quads:  # of four rows, in every quad of lanes
            for i, (one, other, low) in enumerate(((0, 1, 0), (2, 3, 0), (0, 1, 2), (2, 3, 2))):
                order = [q + low + k + o * self.side for q in quads for k in (0, 1) for o in (0, 1)]
                singles.put(first + i, self._mixed(whole, first + one, first + other, order))
            for i, (one, other, low) in enumerate(((0, 1, 0), (0, 1, 2), (2, 3, 0), (2, 3, 2))):
                order = [q + low + k + o * self.side for q in quads for o in (0, 1) for k in (0, 1)]
                pairs.put(first + i, self._mixed(singles, first + one, first + other, order))
        if len(quads) == 1:
            return [pairs.get(i) for i in lanes]
        order = [o * self.side + k for o in (0, 1) for k in range(QUAD)]
        return [self._mixed(pairs, i, QUAD + i, [q + k for k in order]) for q in quads for i in range(QUAD)]

    def _mixed(self, registers: Registers, one: int, other: int, order: Sequence[int]) -> Any:
        """Lanes of two vectors, those of the second counted behind those of the first."""
        both = [registers.get(one), registers.get(other)]
        return tirx.Shuffle(both, [tirx.IntImm("int32", n) for n in order])


def turned_into(square: Square, rows: Sequence[Any], buffer: Any, at: Sequence[Any], lane: Any) -> None:
    """Store the turned rows: lanes k of all of them at buffer[at[k], lane...]."""
    for place, value in zip(at, square.turn(rows), strict=True):
        T.buffer_store(buffer, value, [place, vector(lane, square.side)])
