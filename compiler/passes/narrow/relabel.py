"""A graph whose channels are for other tasks than before: one node per label, with the weights that are left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from compiler.errors import VerifyError
from compiler.ir.dead import sweep
from compiler.ir.graph import Graph
from compiler.ir.reference import difference, evaluate
from compiler.ir.types import ValueRef
from compiler.passes.base import Resources
from compiler.passes.join import JoinSiblings
from compiler.passes.merge.assemble import Assembly
from compiler.passes.merge.labels import Labelling, check, check_closure
from compiler.passes.merge.originals import Originals
from compiler.passes.merge.solve import Freedom
from compiler.passes.merge.streams import Place, Stream
from compiler.passes.narrow.bill import Bill
from compiler.passes.narrow.copies import Copies

AGREES = 1e-4
"""Largest difference from the network with zeros, relative to the tensor: sums in another order."""


def masks(bill: Bill, labels: np.ndarray) -> dict[ValueRef, np.ndarray]:
    """Weight -> which of its elements may stay, as an array that broadcasts to it."""
    return {layer.weight: layer.allowed(labels, bill.every) for layer in bill.layers}


def masked(graph: Graph, bill: Bill, labels: np.ndarray) -> Graph:
    """The graph with zeros for the weights that labels do not allow."""
    found = graph.copy()
    for ref, mask in masks(bill, labels).items():
        data = found.value(ref).constant
        found.update(ref, data=np.where(mask, data, np.zeros_like(data)))
    return found.freeze()


def relabelled(copies: Copies, labels: np.ndarray, feeds: Sequence[Mapping[str, np.ndarray]]) -> Graph:
    """The original graph of `copies` with other labels: a channel is computed for the tasks of its label.

    `feeds`: some inputs on which the result is compared with the masked original. VerifyError where they differ or
    a label has nothing to read.
    """
    labelling = copies.labelling(labels)

    def decide(assembly: Assembly, place: Place, fresh: Sequence[Stream]) -> Labelling:
        return {s.index: labelling[s.index] for s in fresh}

    originals = Originals(copies.graph, copies.streams, feeds)
    assembly = Assembly(copies.graph.copy(), copies.streams, originals, decide, freedom=Freedom.NOTHING)
    if assembly.run().unread:
        raise VerifyError("narrow: a label has nothing to read in a layer: its channels would be constants")
    check(copies.streams, assembly.labelling)
    check_closure(copies.streams, assembly.graph, assembly.made)
    made = assembly.graph
    sweep(made)
    tuple(JoinSiblings().rewrite(made, Resources()))
    check_same(masked(copies.original, Bill(copies), labels), made, feeds)
    return made


def check_same(expected: Graph, made: Graph, feeds: Sequence[Mapping[str, np.ndarray]]) -> None:
    """VerifyError where a graph does not compute on some inputs what the network with zeros does."""
    for feed in feeds:
        before, after = evaluate(expected, feed), evaluate(made, feed)
        for name, task in expected.tasks.items():
            for a, b in zip(task.outputs, made.tasks[name].outputs, strict=True):
                worst = difference(after[b.name], before[a.name])
                if worst > AGREES:
                    raise VerifyError(
                        f"narrow: with its new labels, task '{name}' differs by {worst:.1e} of scale from the same "
                        f"network with zeros (limit {AGREES:.0e}): channels were mixed up"
                    )
