"""Grouped convolution: which blocks of input channels a panel of output channels reads.

Channels come in equal groups, and outputs read the inputs of their own group only. A panel of outputs may lie in
several groups, and groups may begin inside a block: the panel then reads every block that holds one of its inputs,
with zero weights in between. All panels read equally many blocks, so that one loop serves them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Grouping:
    """Channels of one group, and how they are stored: input blocks, and panels of so many outputs."""

    inputs: int
    outputs: int
    groups: int
    block: int
    """Lanes of a block of input channels."""
    lanes: int
    """Outputs of a panel."""

    @property
    def blocks(self) -> int:
        """Blocks of input channels of all groups."""
        return -(-self.inputs * self.groups // self.block)

    @property
    def span(self) -> int:
        """Blocks that every panel reads: as many as the panel that needs most."""
        last = self.outputs * self.groups - 1
        panels = range(0, last + 1, self.lanes)
        ends = (self._end(min(first + self.lanes - 1, last)) for first in panels)
        return max(int(end - self._start(first)) for first, end in zip(panels, ends, strict=True))

    @property
    def channels(self) -> int:
        """Input channels that every panel reads."""
        return self.span * self.block

    def first_block(self, panel: Any, smaller: Callable[[Any, int], Any] = min) -> Any:
        """First block that a panel reads; `panel` may be an expression, with its own minimum as `smaller`."""
        return smaller(self._start(panel * self.lanes), self.blocks - self.span)

    def _start(self, output: Any) -> Any:
        """Block with the first input of an output's group."""
        return output // self.outputs * self.inputs // self.block

    def _end(self, output: int) -> int:
        """The block behind the last input of an output's group."""
        return -(-(output // self.outputs + 1) * self.inputs // self.block)
