"""Strategies by name and by family. Adding one: a module with a Strategy subclass, and a line here."""

from __future__ import annotations

from compiler.codegen.groups import Family
from compiler.codegen.strategies.base import Strategy
from compiler.codegen.strategies.block_sparse import BlockSparse
from compiler.codegen.strategies.depthwise import Depthwise
from compiler.codegen.strategies.direct import DirectConv
from compiler.codegen.strategies.generic import Generic
from compiler.codegen.strategies.grouped import GroupedConv
from compiler.codegen.strategies.matrix import Gemm
from compiler.codegen.strategies.recurrent import Recurrent
from compiler.codegen.strategies.regular_block import RegularBlock
from compiler.codegen.strategies.siblings import Siblings2x2, Siblings4x2, Siblings4x4
from compiler.codegen.strategies.transposed import Transposed
from compiler.codegen.strategies.winograd import (
    Winograd1x2,
    Winograd1x4,
    Winograd2x1,
    Winograd2x2,
    Winograd4x1,
    Winograd4x2,
    Winograd4x4,
)

STRATEGIES: dict[str, Strategy] = {
    s.name: s
    for s in (
        DirectConv(),
        Winograd2x2(),
        Winograd4x2(),
        Winograd4x4(),
        Winograd2x1(),
        Winograd4x1(),
        Winograd1x2(),
        Winograd1x4(),
        Siblings2x2(),
        Siblings4x2(),
        Siblings4x4(),
        BlockSparse(),
        RegularBlock(),
        Depthwise(),
        GroupedConv(),
        Transposed(),
        Gemm(),
        Recurrent(),
        Generic(),
    )
}


def strategies_for(family: Family) -> tuple[Strategy, ...]:
    """The strategies that can run groups of a family, in order of registration."""
    return tuple(s for s in STRATEGIES.values() if family in s.families)
