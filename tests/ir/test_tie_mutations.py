"""Broken ties are noticed: every tie of every case that lists its axes, broken in three ways."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compiler.errors import CompilerError
from compiler.ir.op import Kind, Tie
from compiler.ir.types import NodeRef
from tests.ir.op_case import OpCase, site_of
from tests.ir.op_cases import CASES as ALL
from tests.ir.removal import check_axes, check_removal

YES_OR_NO = ("And", "Or", "Xor", "Not", "IsNaN", "IsInf")
"""Their few bools may be equal where a tie is wrong; their ties are those of the arithmetic operators."""

LISTED = [c for c in ALL if c.free and c.op not in YES_OR_NO]
PER_OPERATOR = 4
CASES = [c for i, c in enumerate(LISTED) if sum(b.op == c.op for b in LISTED[:i]) < PER_OPERATOR]


def shifted(tie: Tie) -> Tie:
    """Every entry tied to its neighbour's partner."""
    return replace(tie, index=np.roll(tie.index, 1))


def silent(tie: Tie) -> Tie:
    """The tie says nothing."""
    return replace(tie, index=np.full_like(tie.index, -1))


def tiled(tie: Tie) -> Tie:
    """Many-to-one the wrong way round: blocks of equal entries become a repeating pattern, and the reverse."""
    count = len(np.unique(tie.index))
    each = len(tie.index) // count
    repeated = np.arange(len(tie.index)) % count
    blocks = np.arange(len(tie.index)) // each
    return replace(tie, index=blocks if np.array_equal(tie.index, repeated) else repeated)


def mutations(tie: Tie, ties: list[Tie]) -> list[Tie]:
    """The tie broken in every way that changes what it means.

    Left out: ties of axes that mix (removal is never exact there), entries of a virtual axis that nothing else is
    tied to (their numbers are arbitrary), and virtual axes that fall silent (fewer entries can go, none wrongly).
    """
    mixing = {axis for t in ties if t.kind is Kind.MIXED for axis in (t.a, t.b)}
    if tie.a in mixing or tie.b in mixing or len(tie.index) < 2:
        return []
    virtual = isinstance(tie.a.owner, NodeRef)
    found = [] if virtual else [silent(tie)]
    if not virtual or sum(t.a == tie.a for t in ties) > 1:
        found.append(shifted(tie))
        if 1 < len(np.unique(tie.index)) < len(tie.index) and tie.index.min() >= 0:
            found.append(tiled(tie))
    return [m for m in found if not np.array_equal(m.index, tie.index)]


def noticed(case: OpCase, number: int, broken: Tie, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a check fails when tie `number` is replaced."""
    site = site_of(case)
    op, ties = site.node.op, list(site.node.op.ties(site))

    def mutated(asked) -> list[Tie]:
        return [*ties[:number], broken, *ties[number + 1 :]] if asked is site else list(type(op).ties(op, asked))

    with monkeypatch.context() as patch:
        patch.setattr(op, "ties", mutated, raising=False)
        try:
            check_axes(case, site)
            check_removal(site, case.arrays(), every=True)
        except (AssertionError, CompilerError, ValueError, IndexError):
            return True
    return False


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.op}-{c.id}")
def test_every_broken_tie_is_noticed(case: OpCase, monkeypatch: pytest.MonkeyPatch):
    site = site_of(case)
    unnoticed = []
    ties = list(site.node.op.ties(site))
    for number, tie in enumerate(ties):
        for broken in mutations(tie, ties):
            if not noticed(case, number, broken, monkeypatch):
                unnoticed.append(f"{tie.a} -> {tie.b}: {tie.index} became {broken.index}")
    assert not unnoticed, "\n".join(unnoticed)
