"""The order in which the blocks of a weight leave it, from its densest level to its sparsest."""

from __future__ import annotations

import numpy as np

from compiler.ir.encoding import BlockSparse
from compiler.ir.graph import Value


class Ladder:
    """The blocks of one weight in the order in which they leave.

    Every block has a place, and `count` blocks are those of the places below `count`. Blocks that have not left yet
    share the first place.
    """

    def __init__(self, value: Value) -> None:
        """`value`: a weight in blocks that has levels; the sparser ones drop out first."""
        assert isinstance(value.type.encoding, BlockSparse)
        self._form, self._shape = value.type.encoding, value.shape
        ranks = self._form.ranks((value.constant, *value.sparser)).astype(np.int64)
        self.counts = [int(np.count_nonzero(ranks > level)) for level in range(len(value.sparser) + 1)]
        """Blocks stored at every level."""
        self._places = np.full(ranks.shape, ranks.size, np.int64)
        for level, count in enumerate([*self.counts[1:], 0]):
            self._places[ranks == level + 1] = count

    def forget(self) -> None:
        """Take back the order: all blocks of level 0 are as if none had left."""
        self._places[self._places < self.counts[0]] = 0

    def shrink(self, data: np.ndarray, count: int) -> None:
        """Of the blocks that have not left, those of least norm leave, until `count` are there."""
        places = self._places.reshape(-1)
        standing = np.flatnonzero(places == 0)
        norms = self._form.norms(data).reshape(-1)[standing]
        order = standing[np.argsort(-norms, kind="stable")]
        places[order[count:]] = np.arange(count, len(order))

    def within(self, count: int, data: np.ndarray) -> np.ndarray:
        """`data` with positive zeros outside the `count` blocks that stay longest."""
        return self._form.of_rank(data, (self._places < count).astype(np.uint8), 1)

    def inside(self, count: int) -> np.ndarray:
        """bool [*shape of the weight]: the elements of the `count` blocks that stay longest."""
        return self.within(count, np.ones(self._shape, bool))

    def between(self, rounds: int, number: int) -> int:
        """Blocks after a round: from those of level 0 to those of the last level by equal ratios (to none by
        equal numbers).
        """
        first, last = self.counts[0], self.counts[-1]
        return round(first * (last / first) ** (number / rounds)) if last else first - first * number // rounds
