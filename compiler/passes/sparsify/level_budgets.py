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
from compiler.ir.levels import MOST_LEVELS
from compiler.passes.base import Note, Resources
from compiler.passes.budget.limits import OverBudget, Quantity, amount_of, amount_problem
from compiler.passes.sparsify.assign import choice_of, ranked_ways
from compiler.passes.sparsify.goals import Goal
from compiler.passes.sparsify.layers import Candidate

DENSITIES = tuple(2 ** (-step / 4) for step in range(25))
"""Shares of its blocks that a layer may have in a level, down to 1/64. Steps are finer than those of `sparsify`:
what one leaves unused of a level's FLOPs is lost to it.
"""


def budget_problems(name: Quantity, budgets: Sequence[float]) -> list[str]:
    """What is wrong with the budgets given for levels in one quantity."""
    found = [problem for value in budgets if (problem := amount_problem(name, value))]
    if not 2 <= len(budgets) <= MOST_LEVELS:
        found.append(f"give 2 to {MOST_LEVELS} budgets, for example nest{{{name}=1+0.5+0.25}}")
    if sorted(set(budgets), reverse=True) != list(budgets):
        found.append(f"budgets of levels fall from level 0 on, for example nest{{{name}=0.5+0.25+0.1}}")
    if len({value <= 1 for value in budgets}) > 1:
        found.append(f"give {name} as shares, up to 1, or all as amounts")
    return found


def goals_of_levels(
    graph: Graph,
    layers: Sequence[Candidate],
    forms: Sequence[BlockSparse],
    budgets: Mapping[Quantity, Sequence[float]],
    use: Resources,
    feeds: Sequence[Mapping[str, np.ndarray]],
) -> tuple[list[list[Goal]], list[Note]]:
    """Per level the goal of every layer, and a note on each that is not the network as it is.

    `budgets`: amounts, or shares of what `graph` costs, falling, as many in each quantity; all of a level's hold.
    `feeds`: calibration inputs, or none. PassError names the level that cannot be had.
    """
    levels = [
        [amount_of(quantity, value, graph, use) for quantity, value in zip(budgets, values, strict=True)]
        for values in zip(*budgets.values(), strict=True)
    ]
    own = [ranked_ways(form, layer, DENSITIES) for form, layer in zip(forms, layers, strict=True)]
    choice = choice_of(graph, layers, [(None, *goals) for goals in own], levels[0], use, feeds)
    goals = [every for every, *_ in own]  # all blocks: nothing is gone, but positions are stored besides
    found: list[list[Goal]] = []
    notes = []
    for level, limits in enumerate(levels):
        if any(cost > limit.value for limit, cost in choice.costs(goals, limits, use)):
            try:
                chosen, note = choice.sparser(goals).within(limits, use)
                goals = [goal for goal in chosen if goal]
            except OverBudget as error:
                raise PassError(f"nest, level {level}: {error}") from error
            notes.append(Note(f"level {level}", note.reason))
        found.append([*goals])
    return found, notes
