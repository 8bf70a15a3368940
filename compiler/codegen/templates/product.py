"""The register tile that matrix products share: rows x vectors sums that run along one reduction together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tvm.script.ir_builder import tirx as T

from compiler.codegen.target import REACH
from compiler.codegen.templates.common import Registers, splat

ReadRow = Callable[[int, Any, int], Any]
"""(row of the tile, reduction step, count) -> that many consecutive elements of the row."""
ReadVector = Callable[[Any, int], Any]
"""(reduction step, vector of the tile) -> the other operand's vector."""


class ProductTile:
    """Accumulators for up to `rows` x `vectors` vectors of `width` lanes.

    `chains` independent sums per vector hide the latency of a multiply-add where the tile is small. `lanes` > 1
    reads that many consecutive elements of a row as one vector and multiplies by element (ARM has the instruction),
    two or four such vectors per turn of the loop; 1 broadcasts single elements (x86 does so while it loads).
    """

    def __init__(self, rows: int, vectors: int, width: int, chains: int = 1, lanes: int = 1) -> None:
        self._vectors, self._width, self._chains, self._lanes = vectors, width, chains, lanes
        self._step = max(chains, 2 * lanes if lanes > 1 else 1)
        self._sums = Registers(rows * vectors * chains, width)
        self._groups = self._step // lanes
        self._unrolled = 2 if lanes > 1 and 2 * self._step * vectors * width * 4 <= REACH else 1
        self._inputs = Registers(rows * self._groups, lanes) if lanes > 1 else None

    def place(self, row: int, vector: int, chain: int = 0) -> int:
        """Register number of a sum."""
        return (row * self._vectors + vector) * self._chains + chain

    @property
    def sums(self) -> Registers:
        """The accumulators; after `multiply`, chain 0 holds the total."""
        return self._sums

    def multiply(
        self, extent: tuple[int, int], inner: int, first: Callable[[int, int], Any], x: ReadRow, w: ReadVector
    ) -> None:
        """sums[m, o] = first(m, o) + sum over k < inner of x(m, k) * w(k, o) for m, o below `extent`."""
        self.start(extent, first)
        self.accumulate(extent, inner, x, w)
        self.finish(extent)

    def start(self, extent: tuple[int, int], first: Callable[[int, int], Any]) -> None:
        """sums[m, o] = first(m, o); products that follow are added."""
        for m, o in cells(extent):
            self._sums.put(self.place(m, o), first(m, o))
            for q in range(1, self._chains):
                self._sums.put(self.place(m, o, q), splat(0.0, self._width))

    def accumulate(self, extent: tuple[int, int], inner: int, x: ReadRow, w: ReadVector) -> None:
        """sums[m, o] += sum over k < inner of x(m, k) * w(k, o)."""
        full, rest = divmod(inner, self._step)
        turns = full // self._unrolled
        if turns:
            with T.serial(turns) as i:
                for part in range(self._unrolled):
                    self._several(extent, (i * self._unrolled + part) * self._step, self._step, x, w)
        for part in range(turns * self._unrolled, full):
            self._several(extent, part * self._step, self._step, x, w)
        single = rest % self._lanes
        if rest - single:
            self._several(extent, inner - rest, rest - single, x, w)
        if single:
            with T.serial(single) as i:
                at = inner - single + i
                self._add(extent, at, 0, lambda m: x(m, at, 1), w)

    def finish(self, extent: tuple[int, int]) -> None:
        """Bring the totals into chain 0."""
        for m, o in cells(extent):
            for q in range(1, self._chains):
                total = self._sums.get(self.place(m, o)) + self._sums.get(self.place(m, o, q))
                self._sums.put(self.place(m, o), total)

    def _several(self, extent: tuple[int, int], base: Any, count: int, x: ReadRow, w: ReadVector) -> None:
        """`count` steps from `base`, a multiple of the lanes of an input vector."""
        inputs, lanes = self._inputs, self._lanes
        if inputs is not None:
            for m in range(extent[0]):
                for g in range(count // lanes):
                    inputs.put(m * self._groups + g, x(m, base + g * lanes, lanes))
        for c in range(count):

            def element(m: int, c: int = c) -> Any:
                if inputs is None:
                    return x(m, base + c, 1)
                return inputs.lane(m * self._groups + c // lanes, c % lanes)

            self._add(extent, base + c, c % self._chains, element, w)

    def _add(
        self, extent: tuple[int, int], at: Any, chain: int, element: Callable[[int], Any], w: ReadVector
    ) -> None:
        for m, o in cells(extent):
            k = self.place(m, o, chain)
            self._sums.put(k, self._sums.get(k) + splat(element(m), self._width) * w(at, o))


def cells(extent: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """(row, vector) of every sum of a tile."""
    return ((m, o) for m in range(extent[0]) for o in range(extent[1]))


def balanced(extent: int, most: int) -> tuple[int, int, int]:
    """(tiles, rows of a tile, how many of the first tiles have one row more) for tiles of at most `most` rows.

    No rows make no tiles.
    """
    tiles = -(-extent // most)
    if not tiles:
        return 0, 0, 0
    return tiles, extent // tiles, extent % tiles


def pieces(count: int, width: int) -> tuple[tuple[int, int], ...]:
    """(start, width) of the powers of two that make up `count` <= width lanes, the widest first."""
    found, start = [], 0
    while start < count:
        while width > count - start:
            width //= 2
        found.append((start, width))
        start += width
    return tuple(found)


def heights(tile: Any, base: int, longer: int) -> Iterator[tuple[int, Any]]:
    """Emits what the loop body emits once or twice: (rows, first row) of a tile of `balanced`, whose first `longer`
    tiles have one more than `base`."""
    if not longer:
        yield base, tile * base
        return
    for rows in either(tile < longer, base + 1, base):
        yield rows, tile * base + (tile if rows > base else longer)


def either(condition: Any, yes: int, no: int) -> Iterator[int]:
    """Emits what the loop body emits twice: for `yes` where the condition holds, else for `no`; 0 means never."""
    if not yes or (isinstance(condition, bool) and not condition):
        yield no
    elif isinstance(condition, bool):
        yield yes
    else:
        with T.If(condition):
            with T.Then():
                yield yes
            with T.Else():
                yield no
