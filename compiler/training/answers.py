"""What the last axis of a task's output says about classes, told from the operators that end the network.

Distributions are compared, softened and drawn from as scores, so where a network ends in its own Softmax or Sigmoid
the scores have to be found again. This module needs no torch.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from compiler.ir.graph import Graph, Site
from compiler.ir.types import ValueRef

SHAPED = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")
"""Operators behind which the values are the same ones, in another shape."""


class Answer(enum.Enum):
    """A kind of output."""

    SCORES = "scores of classes"
    PROBABILITIES = "probabilities of classes, which sum to one"
    CHANCES = "chances, each on its own"
    NUMBER = "a single number"


def answer(graph: Graph, output: ValueRef) -> Answer:
    """What an output of a task holds."""
    width = graph.value(output).shape[-1:]
    node = graph.producer(output)
    while node is not None and node.op.name in SHAPED:
        before = graph.operands(node)[0]
        if before.shape[-1:] != width:
            break
        node = graph.producer(before.ref)
    if node is not None and node.op.name == "Softmax" and _along_last(graph.site(node)):
        return Answer.PROBABILITIES
    if node is not None and node.op.name == "Sigmoid":
        return Answer.CHANCES
    return Answer.NUMBER if width in ((), (1,)) else Answer.SCORES


def _along_last(site: Site) -> bool:
    return site.int("axis") % site.results[0].rank == site.results[0].rank - 1


def measured(graph: Graph, task: str) -> list[tuple[int, ValueRef]]:
    """The outputs of a task, with their numbers, that can be nearer to others or farther from them: a decision made
    of scores, such as the number of a class, has no gradient.
    """
    return [(n, r) for n, r in enumerate(graph.tasks[task].outputs) if graph.value(r).dtype.is_float]


def numbers(graph: Graph, tasks: Iterable[str]) -> list[str]:
    """Those of some tasks that answer single numbers, which no distribution over classes can be made of."""
    return [t for t in tasks if any(answer(graph, r) is Answer.NUMBER for _, r in measured(graph, t))]
