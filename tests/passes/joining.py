"""What both files of join-siblings tests look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from compiler import cost_report
from compiler.ir.graph import Graph
from compiler.ir.reference import difference, evaluate, random_feeds
from compiler.passes.join import JoinSiblings

AGREES = 1e-5

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def joined(graph: Graph, run: Callable[[Graph], Run] = lambda graph: partial(evaluate, graph)) -> Graph:
    """The graph after the pass: `run` computes of both the same, and every combination costs what it did."""
    made = JoinSiblings()(graph)
    before, after = run(graph), run(made)
    for seed in range(2):
        feeds = random_feeds(graph, np.random.default_rng(seed))
        expected, found = before(feeds), after(feeds)
        for a, b in zip(graph.outputs, made.outputs, strict=True):
            assert difference(found[b.ref.name], expected[a.ref.name]) < AGREES
    costs = [{frozenset(r.tasks): r.cost.macs for r in cost_report(g).combinations} for g in (graph, made)]
    assert costs[0] == costs[1]
    return made


def count(graph: Graph, *ops: str) -> int:
    return sum(n.op.name in ops for n in graph.nodes())


def layers(graph: Graph) -> int:
    return count(graph, "Conv", "ConvTranspose", "Gemm", "MatMul")
