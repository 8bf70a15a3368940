"""Strategies by name and by family. Adding one: a module with a Strategy subclass, and a line here."""

from __future__ import annotations

from compiler.codegen.families import Family
from compiler.codegen.strategies.base import Strategy
from compiler.codegen.strategies.block_sparse import BlockSparse
from compiler.codegen.strategies.contraction import ContractionProduct
from compiler.codegen.strategies.depthwise import Depthwise
from compiler.codegen.strategies.direct import DirectConv
from compiler.codegen.strategies.generic import Generic
from compiler.codegen.strategies.grouped import GroupedConv
from compiler.codegen.strategies.matrix import Gemm
from compiler.codegen.strategies.narrow import LaneSums, PlanarConv
from compiler.codegen.strategies.recurrent import Recurrent, SparseRecurrent
from compiler.codegen.strategies.regular_block import RegularBlock
from compiler.codegen.strategies.strassen import Strassen
from compiler.codegen.strategies.transposed import Transposed
from compiler.codegen.strategies.winograd import Winograd

_SQUARE = ((2, 2), (4, 2), (4, 4), (5, 5), (6, 6))

STRATEGIES: dict[str, Strategy] = {
    s.name: s
    for s in (
        DirectConv(),
        PlanarConv(),
        LaneSums(),
        Strassen(),
        *(Winograd(tile) for tile in (*_SQUARE, (2, 1), (4, 1), (1, 2), (1, 4))),
        *(Winograd(tile, "siblings") for tile in _SQUARE),
        BlockSparse(),
        RegularBlock(),
        Depthwise(),
        GroupedConv(),
        Transposed(),
        Gemm(),
        ContractionProduct(),
        Recurrent(),
        SparseRecurrent(),
        Generic(),
    )
}


def strategies_for(family: Family) -> tuple[Strategy, ...]:
    """The strategies that can run groups of a family, in order of registration."""
    return tuple(s for s in STRATEGIES.values() if family in s.families)
