"""Recovery without training: readers of removed channels are fitted anew, in closed form, from unlabelled inputs.

Layer by layer, with inputs from the already pruned and refitted network and targets from the original:

    W' = W + (G + lambda I)^-1 (C - G W),    G = E[x' x'^T],  C = E[x' y^T],  lambda = 1e-4 tr(G) / p

a ridge towards the old weights: lambda -> infinity leaves them alone. Where the layer has a bias (its own, that of
a following Add, or the mean of a following BatchNormalization) moments are central and the bias is unpenalised.
Everything is float64. A quarter of the inputs is held out; a layer keeps its old weights unless the held-out error
falls, and so does the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from compiler.calibration.moments import Moments
from compiler.ir.encoding import Dense
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.op import Kept
from compiler.ir.reference import evaluate
from compiler.ir.types import ValueRef
from compiler.passes.base import Refusal
from compiler.passes.linear import lies_along
from compiler.passes.prune.fit import Batches, Reader, Stream, reader_of, sample
from compiler.progress import counted

HELD_OUT = 4
"""One batch in this many is held out."""

EPSILON = 1e-12


@dataclass(frozen=True, slots=True)
class Sink:
    """A parameter that can take up a constant added to a layer's outputs; `sign` is -1 for a mean."""

    value: Value
    sign: int


def refit(original: Graph, pruned: Graph, kept: Kept, batches: Batches) -> list[Refusal]:
    """Refit the readers of `pruned`, in place; returns what was left alone.

    `kept`: which entries of `original` survive in `pruned`. Costs one evaluation of both graphs on all batches.
    """
    before = output_error(original, pruned, batches)
    fitting = Refit(original, pruned, kept, batches)
    refusals = fitting.run()
    after = output_error(original, pruned, batches)
    if not after <= before:  # nor where a fit has left what is no number
        fitting.undo()
        reason = f"held-out error would rise from {before:.3g} to {after:.3g}; the old weights stay"
        return [Refusal(f"recovery of '{pruned.name}'", reason)]
    return refusals


def held_out(batches: Batches) -> Batches:
    """The batches that no fit sees."""
    return list(batches[HELD_OUT - 1 :: HELD_OUT]) or list(batches[-1:])


def output_error(original: Graph, pruned: Graph, batches: Batches) -> float:
    """Mean over outputs of |y' - y|^2 / |y|^2 on the held-out batches."""
    errors = []
    for feeds in held_out(batches):
        expected, found = evaluate(original, feeds), evaluate(pruned, feeds)
        for name, y in expected.items():
            difference = found[name].astype(np.float64) - y
            errors.append(float(np.sum(difference**2) / max(np.sum(y.astype(np.float64) ** 2), EPSILON)))
    return float(np.mean(errors))


class Refit:
    """One walk through both graphs."""

    def __init__(self, original: Graph, pruned: Graph, kept: Kept, batches: Batches) -> None:
        self.original, self.pruned, self.kept = original, pruned, kept
        self._before = Stream(original, batches)
        self._after = Stream(pruned, batches)
        self._fitted: set[ValueRef] = set()
        self._saved: dict[ValueRef, np.ndarray] = {}

    def run(self) -> list[Refusal]:
        """Walk, fit, and say which layers kept their weights."""
        refusals = []
        for node in counted("recovery: nodes", self.original.nodes()):
            self._before.step(node)
            site = self.pruned.site(self.pruned.node(node.ref))
            reader = reader_of(self.pruned, site)
            if reader is not None and self._changed(reader.x.ref) and (reason := self._refitted(reader)):
                refusals.append(Refusal(f"{node.op.name} '{node.ref}'", f"{reason}; the old weights stay"))
            if node.op.name == "BatchNormalization" and site.operands[0].ref not in self._fitted:
                self._statistics(node)
            self._after.step(node)
            self._before.release(node)
            self._after.release(node)
        return refusals

    def undo(self) -> None:
        """Put every weight back."""
        for ref, data in self._saved.items():
            self.pruned.update(ref, data=data)

    def _pairs(self, ref: ValueRef) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(pruned, original at kept entries) of a value in every batch."""
        value = self.original.value(ref)
        for a, b in zip(self._after.read(ref), self._before.read(ref), strict=True):
            yield a, self._cut(value, b)

    def _cut(self, value: Value, array: np.ndarray) -> np.ndarray:
        for dim in range(value.rank):
            if value.axis(dim) in self.kept.entries:
                array = np.take(array, self.kept.of(value, dim), axis=dim)
        return array

    def _changed(self, ref: ValueRef) -> bool:
        """Whether a value differs from the original in shape or content."""
        if self.original.value(ref).shape != self.pruned.value(ref).shape:
            return True
        return any(not np.array_equal(a, b) for a, b in islice(self._pairs(ref), 2))

    def _refitted(self, reader: Reader) -> str:
        """Fit one reader; why not, as a phrase, where it is left as it is."""
        if not isinstance(reader.weight.type.encoding, Dense):
            return "its weights are stored sparse, and a fit would fill them"
        return "" if self._fit(reader) else "held-out error does not fall"

    def _fit(self, reader: Reader) -> bool:
        """Fit one reader; False where that does not help on held-out rows."""
        moments, test = Moments(), list[tuple[np.ndarray, np.ndarray]]()
        target = self.original.value(reader.y.ref)
        inputs = zip(self._after.read(reader.x.ref), self._before.read(reader.y.ref), strict=True)
        for i, (x, y) in enumerate(inputs):
            at = sample(reader, i)
            rows = reader.patches(x, at), reader.targets(self._cut(target, y), at)
            if i % HELD_OUT == HELD_OUT - 1:
                test.append(rows)
            else:
                moments.add(*rows)
        if not test or not moments.rows:
            return False
        sink = sink_of(self.pruned, reader)
        old, base = reader.matrix(reader.weight.constant), bias_of(reader)
        new, offset = moments.solve(old, sink is not None)
        if not _error(test, new, offset) < _error(test, old, base):
            return False
        self._store(reader.weight, reader.restore(new))
        if sink is not None:
            change = offset.reshape(-1) - base.reshape(-1)
            self._store(sink.value, sink.value.constant + sink.sign * change.reshape(sink.value.shape))
        self._fitted.add(reader.y.ref)
        return True

    def _statistics(self, node: Node) -> None:
        """Shift and scale the moments of a BatchNormalization by what its input's moments changed."""
        site = self.pruned.site(self.pruned.node(node.ref))
        mean, var = site.operands[3], site.operands[4]
        if any(v.data is None or len(self.pruned.uses(v.ref)) > 1 for v in (mean, var)):
            return
        pairs = [p for i, p in enumerate(self._pairs(site.operands[0].ref)) if i % HELD_OUT != HELD_OUT - 1]
        if not pairs or all(np.array_equal(a, b) for a, b in pairs):
            return
        now, was = ([_columns(p[i]) for p in pairs] for i in (0, 1))
        a, b = np.concatenate(now), np.concatenate(was)
        self._store(mean, mean.constant + a.mean(axis=0) - b.mean(axis=0))
        spread = np.maximum(b.var(axis=0), EPSILON)
        self._store(var, var.constant * np.clip(a.var(axis=0) / spread, 0.25, 4.0))

    def _store(self, value: Value, data: np.ndarray) -> None:
        self._saved.setdefault(value.ref, self.pruned.value(value.ref).constant)
        self.pruned.update(value.ref, data=np.ascontiguousarray(data, value.dtype.numpy))


def _columns(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, 1, -1).reshape(-1, array.shape[1]).astype(np.float64)


def bias_of(reader: Reader) -> np.ndarray:
    """The layer's own bias as [groups, outputs]; what a following node adds is not part of its targets."""
    groups = len(reader.matrix(reader.weight.constant))
    if reader.bias is None:
        axis = reader.output.dim
        assert isinstance(axis, int)
        return np.zeros((groups, reader.y.shape[axis] // groups))
    return reader.bias.constant.astype(np.float64).reshape(groups, -1)


def _error(rows: list[tuple[np.ndarray, np.ndarray]], weights: np.ndarray, offset: np.ndarray) -> float:
    return float(sum(np.sum((x @ weights + offset[:, None, :] - y) ** 2) for x, y in rows))


def sink_of(graph: Graph, reader: Reader) -> Sink | None:
    """Where a constant offset of the reader's outputs can go."""
    if reader.bias is not None:
        return Sink(reader.bias, 1)
    uses = graph.uses(reader.y.ref)
    if len(uses) != 1 or graph.is_output(reader.y.ref):
        return None
    node, index = uses[0]
    operands, axis = graph.operands(node), reader.output.dim
    assert isinstance(axis, int)
    if node.op.name == "BatchNormalization" and index == 0 and axis == 1:
        return _own(graph, operands[3], -1)
    if node.op.name == "Add" and lies_along(operands[1 - index], reader.y, axis):
        return _own(graph, operands[1 - index], 1)
    return None


def _own(graph: Graph, value: Value, sign: int) -> Sink | None:
    return Sink(value, sign) if value.data is not None and len(graph.uses(value.ref)) == 1 else None
