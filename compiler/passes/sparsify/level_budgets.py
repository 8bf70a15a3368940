"""How much of every layer each level stores, where it is levels' costs that are given.

The densest level comes first: of the layers' densities those are taken that lose least within its cost, by the
losses that `sparsify` counts for its budgets. The next level takes the least loss again, with no layer denser than
it is in the one before. So a layer whose weights are cheap to run, or hard to do without, stays denser in all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from compiler.errors import PassError
from compiler.ir.encoding import BlockSparse
from compiler.ir.graph import Graph
from compiler.passes.base import Note, Resources
from compiler.passes.budget.limits import OverBudget, amount_of, amount_problem
from compiler.passes.sparsify.assign import choice_of, ranked_ways
from compiler.passes.sparsify.goals import Goal
from compiler.passes.sparsify.layers import Candidate

DENSITIES = tuple(2 ** (-step / 4) for step in range(1, 25))
"""Shares of its blocks that a layer may have in a level, down to 1/64. Steps are finer than those of `sparsify`:
what one leaves unused of a level's FLOPs is lost to it.
"""


def budget_problems(budgets: Sequence[float]) -> list[str]:
    """What is wrong with FLOPs given for levels."""
    found = [problem for value in budgets if (problem := amount_problem("flops", value))]
    if sorted(set(budgets), reverse=True) != list(budgets):
        found.append("the FLOPs of levels fall from level 0 on, for example nest{flops=0.5+0.25+0.1}")
    if len({value <= 1 for value in budgets}) > 1:
        found.append("give FLOPs as shares, up to 1, or all as amounts")
    return found


def goals_of_levels(
    graph: Graph,
    layers: Sequence[Candidate],
    forms: Sequence[BlockSparse],
    budgets: Sequence[float],
    use: Resources,
    feeds: Sequence[Mapping[str, np.ndarray]],
) -> tuple[list[list[Goal | None]], list[Note]]:
    """Per level the goal of every layer (None: all that it stores), and a note on each.

    `budgets`: FLOPs of the expected call, or shares of `graph`'s, falling. `feeds`: calibration inputs, or none.
    PassError names the level that cannot be had.
    """
    limits = [amount_of("flops", value, graph, use) for value in budgets]
    ways = [(None, *ranked_ways(form, layer, DENSITIES)) for form, layer in zip(forms, layers, strict=True)]
    choice = choice_of(graph, layers, ways, limits[0], use, feeds)
    goals: list[Goal | None] = [None] * len(layers)
    found, notes = [], []
    for level, limit in enumerate(limits):
        if limit.value < limit.cost(graph, use):  # otherwise nothing has to leave
            try:
                goals, note = choice.sparser(goals).within(limit, use)
            except OverBudget as error:
                raise PassError(f"nest, level {level}: {error}") from error
            notes.append(Note(f"level {level}", note.reason))
        found.append(goals)
    return found, notes
