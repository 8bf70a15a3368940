"""A graph without the channels that no task has any more: as zeros they would take as long to train as others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from compiler.errors import VerifyError
from compiler.ir.graph import Graph
from compiler.ir.ties import Atom, Closure
from compiler.ir.types import Axis
from compiler.passes.narrow.copies import Copies
from compiler.passes.prune.surgery import complement, remove

FEWEST = 2
"""Channels that stay in every stream: an axis of one entry counts no channels any more."""


def compacted(
    graph: Graph, copies: Copies, labels: np.ndarray, exclude: Callable[[str], bool]
) -> tuple[Graph, Copies, np.ndarray]:
    """`graph`, built like the original of `copies`, without channels of the empty label; its copies and its labels.

    Nothing reads such a channel: the weights that would are zero. VerifyError where a channel with tasks is lost.
    """
    closure = Closure(graph.copy().freeze(), exclude=exclude)
    held = _channels(copies)
    gone = _nobodys(copies, labels)
    dead = [a for group in closure.groups for a in group.atoms if _all_gone(a, held, gone)]
    if not dead:
        return graph, copies, labels
    removal = closure.removal(dead)
    kept = complement(graph, removal)
    made = graph.copy()
    remove(made, removal)
    smaller = Copies(made.copy().freeze(), exclude)
    found = np.zeros(smaller.count, np.int64)
    for axis, numbers in _channels(smaller).items():
        before = held[axis][kept.entries.get(axis, np.arange(len(held[axis])))]
        are = numbers >= 0
        found[numbers[are]] = labels[before[are]]
    if np.count_nonzero(found) != np.count_nonzero(labels):
        raise VerifyError("narrow: channels were lost with those that no task has")
    return made, smaller, found


def _channels(copies: Copies) -> dict[Axis, np.ndarray]:
    """Axis of every computed value that has channels -> which one each of its entries is, -1 for none."""
    found = {}
    for site in copies.original.sites():
        mask = copies.owners(site.node.ref)
        for value in site.results if mask else ():
            axis, numbers = copies.axis(value), copies.on(value, mask)
            if axis is not None and numbers is not None:
                found[axis] = numbers
    return found


def _nobodys(copies: Copies, labels: np.ndarray) -> np.ndarray:
    """Per channel whether it can go: no task has it, and its stream has enough others."""
    gone = labels == 0
    for stream in copies.streams.streams:
        numbers = copies.numbers(stream)
        if np.count_nonzero(labels[numbers]) < FEWEST:
            gone[numbers] = False
    return np.asarray(gone)


def _all_gone(atom: Atom, held: dict[Axis, np.ndarray], gone: np.ndarray) -> bool:
    numbers = [held[axis][entries] for axis, entries in atom.entries.items() if axis in held]
    return bool(numbers) and bool(gone[np.concatenate(numbers)].all())
