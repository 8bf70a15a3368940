"""Which channels matter: one score per atom, higher is worth more.

A score is a share: of the weights of its layer, or of the output power of the layers that read it. So layers of
different scale can be compared. Exotic criteria are left out on purpose: after fine-tuning the choice between the
usual ones hardly matters (PruningBench, arXiv 2406.12315); without fine-tuning the activations do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from compiler.ir.graph import Graph, Value
from compiler.ir.op import MacOp
from compiler.ir.ties import Group
from compiler.ir.types import Axis, ValueRef
from compiler.passes.prune.worth import Readers

CRITERIA = ("l1", "l2", "rms", "obs", "fisher", "random")
NEEDS_DATA = ("rms", "obs", "fisher")

Vector = Callable[[Axis], np.ndarray | None]
"""Contribution of every entry of an axis, or None where the axis has none."""


def scores(graph: Graph, groups: Sequence[Group], kind: str, draw: np.random.Generator) -> list[np.ndarray]:
    """Data-free scores per group: `l1`, `l2` over all weights an atom touches, or `random`."""
    if kind == "random":
        return [_normalised(draw.uniform(0.5, 1.5, len(g.atoms))) for g in groups]
    vector = _norms(graph, 1 if kind == "l1" else 2)
    return [_normalised(_summed(g, vector) ** (1.0 if kind == "l1" else 0.5)) for g in groups]


def activation_scores(
    graph: Graph, groups: Sequence[Group], refit: bool, readers: Readers, gone: Mapping[Axis, np.ndarray]
) -> list[np.ndarray]:
    """Scores from calibration data, when the entries in `gone` have left already.

    Without `refit` (`rms`): what the atom contributes to its readers, E[x_u^2] * |W_u|^2, as if inputs were
    independent. With it (`obs`): the rise of the readers' error after their least-squares re-fit (optimal brain
    surgeon on blocks, Hassibi & Stork 1993). Groups without such readers get their l2 scores at the mean level.
    """
    found = readers.contributions(refit, gone)
    measured = [_summed(g, found.get) for g in groups]
    level = float(np.mean([m.sum() for m in measured if m.any()] or [1.0]))
    plain = _norms(graph, 2)
    return [m if m.any() else level * _normalised(_summed(g, plain)) for m, g in zip(measured, groups, strict=True)]


def gated_axes(graph: Graph, groups: Sequence[Group]) -> list[Axis]:
    """Where gates of channels stand: the axes of groups on values that product operators read, one per value."""
    read = {s.operands[0].ref for s in graph.sites() if isinstance(s.node.op, MacOp)}
    found: dict[ValueRef, Axis] = {}
    for axis in (a for g in groups for a in g.axes):
        owner = axis.owner
        if isinstance(owner, ValueRef) and owner in read and graph.value(owner).data is None:
            found.setdefault(owner, axis)
    return list(found.values())


def fisher_scores(graph: Graph, groups: Sequence[Group], gradients: Mapping[Axis, np.ndarray]) -> list[np.ndarray]:
    """The root mean square over the samples of the gradient by a gate on each atom, as a share of its group's sum.

    `gradients`: axis -> [samples, entries]. The root ranks better than the square, which empties the last layers,
    and shares keep layers of different depth comparable. Groups that no gate belongs to get their l2 scores.
    """
    plain = _norms(graph, 2)
    found = []
    for group in groups:
        parts = [
            np.stack([gradients[a][:, atom.entries[a]].sum(axis=1) for atom in group.atoms], axis=1)
            for a in group.axes
            if a in gradients
        ]
        measured = np.sqrt(np.mean(np.sum(parts, axis=0) ** 2, axis=0)) if parts else _summed(group, plain) ** 0.5
        found.append(_normalised(measured))
    return found


def _summed(group: Group, vector: Vector) -> np.ndarray:
    """The contributions of every entry of every axis, added up per atom."""
    total = np.zeros(len(group.atoms))
    for axis in group.axes:
        values = vector(axis)
        if values is not None:
            total += [values[atom.entries[axis]].sum() for atom in group.atoms]
    return total


def _normalised(values: np.ndarray) -> np.ndarray:
    total = values.sum()
    return np.asarray(values / total if total > 0 else np.full(len(values), 1 / len(values)))


def _norms(graph: Graph, order: int) -> Vector:
    """Sum of |w|^order over everything but one axis, for parameters that are matrices or kernels."""
    known: dict[Axis, np.ndarray | None] = {}

    def vector(axis: Axis) -> np.ndarray | None:
        if axis not in known:
            known[axis] = _axis_norm(graph, axis, order)
        return known[axis]

    return vector


def _axis_norm(graph: Graph, axis: Axis, order: int) -> np.ndarray | None:
    if not isinstance(axis.owner, ValueRef) or not isinstance(axis.dim, int):
        return None
    value = graph.value(axis.owner)
    if value.data is None or not value.dtype.is_float or not _is_weight(value):
        return None
    others = tuple(d for d in range(value.rank) if d != axis.dim)
    return np.asarray((np.abs(value.constant.astype(np.float64)) ** order).sum(axis=others))


def _is_weight(value: Value) -> bool:
    return sum(n > 1 for n in value.shape) > 1
