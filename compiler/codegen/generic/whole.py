"""Whole blocks: channels that do not fill their blocks, computed with the empty lanes as if those were channels.

Vectors over the channels alone would overlap or be short, and what reads the result in whole vectors would wait for
several stores to become one load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from compiler.codegen.layout import Blocked, Layout
from compiler.ir.graph import Site, Value
from compiler.ir.payload import Operands
from compiler.ir.types import DType, ValueRef

_LANEWISE = frozenset("Abs Add AveragePool Identity LeakyRelu Max MaxPool Min Mul Neg Relu Sub Tanh".split())
"""Operators that compute every channel alone and make zero of zeros, so that empty lanes stay zero."""


@dataclass(frozen=True)
class _Whole:
    """Values of `channels` channels as values of `filled`, the channels of whole blocks."""

    channels: int
    filled: int

    def value(self, value: Value) -> Value:
        batch, _, *spatial = value.shape
        return replace(value, type=replace(value.type, shape=(batch, self.filled, *spatial)))

    def site(self, site: Site) -> Site:
        operands = [site.operands.optional(i) for i in range(len(site.operands))]
        read = Operands([None if v is None else self.value(v) for v in operands])
        return Site(site.node, read, tuple(map(self.value, site.results)))


def whole_blocks(
    sites: Sequence[Site], outputs: Sequence[Value], layouts: Mapping[ValueRef, Layout]
) -> tuple[Sequence[Site], Sequence[Value]]:
    """(`sites`, `outputs`) with as many channels as their blocks have lanes; unchanged where all lanes are filled,
    or empty ones would not stay zero or do not exist in everything that is read and stored.
    """
    if not all(s.node.op.name in _LANEWISE for s in sites):
        return sites, outputs
    inside = {v.ref for s in sites for v in s.results}
    values = [*(v for s in sites for _, v in s.operands.present()), *(v for s in sites for v in s.results)]
    lying = [layouts.get(v.ref) for v in [*(v for v in values if v.ref not in inside), *outputs]]
    width = next((p.width for p in lying if isinstance(p, Blocked)), 0)
    channels = outputs[0].shape[1] if outputs[0].rank > 2 else 0
    if not width or channels % width == 0 or not all(isinstance(p, Blocked) and p.width == width for p in lying):
        return sites, outputs
    if not all(_like(v, outputs[0].rank, channels) for v in values):
        return sites, outputs
    whole = _Whole(channels, -(-channels // width) * width)
    return [whole.site(s) for s in sites], [whole.value(v) for v in outputs]


def _like(value: Value, rank: int, channels: int) -> bool:
    """Whether a value is an activation with these channels; constants would need lanes of their own."""
    return value.data is None and value.dtype is DType.FLOAT32 and value.rank == rank and value.shape[1] == channels
