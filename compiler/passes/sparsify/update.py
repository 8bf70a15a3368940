"""Second-order sparsification of a whole network from unlabelled inputs, one layer after another.

Inputs of a layer come from the network as far as it is sparse already, targets from the original, so later layers
make up for what earlier ones lost. A quarter of the inputs takes part in no fit: the ridge is chosen on it, and a
layer keeps its own values at the largest magnitudes where no fit does better there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compiler.calibration.moments import Moments
from compiler.calibration.tape import Feed, Tape
from compiler.ir.graph import Graph, Node
from compiler.ir.types import ValueRef
from compiler.passes.base import Note, Refusal
from compiler.passes.prune.fit import Reader, sample
from compiler.passes.prune.recover import HELD_OUT, bias_of, sink_of
from compiler.passes.sparsify.compensate import Quadratic, compensate
from compiler.passes.sparsify.goals import Goal, largest
from compiler.passes.sparsify.layers import RECURRENT, Candidate, weights_of
from compiler.passes.sparsify.problems import GateReader, Problem, base_of, problems
from compiler.progress import counted

RIDGES = (1e-4, 1e-2, 1e-1)
"""Ridges towards the old weights that are tried, as shares of the mean eigenvalue of the Gram matrix."""

TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Measured:
    """Moments of the rows that are fitted and of those that judge; `central` where a constant can be fitted too."""

    train: Moments
    test: Moments
    central: bool

    def quadratic(self, old: np.ndarray, ridge: float) -> Quadratic:
        """The error of weights [rows, p], with a ridge towards `old`."""
        train = self.train
        if self.central:
            g, c, _ = train.central()
        else:
            g, c = train.xx / train.rows, train.xy / train.rows
        weight = max(ridge * float(np.trace(g[0])) / len(g[0]), 1e-12)
        return Quadratic(g[0] + weight * np.eye(len(g[0])), c[0].T + weight * old)

    def loss(self, weights: np.ndarray, offset: np.ndarray) -> float:
        """Held-out error of weights [rows, p], as a share of the power of the outputs about their mean."""
        power = float(self.test.central()[2].sum())
        return float(self.test.error(weights.T[None], offset).sum()) / max(power, TINY)

    def offset(self, weights: np.ndarray, base: np.ndarray) -> np.ndarray:
        """[1, rows]: the constant that goes with weights; `base` where none can be fitted."""
        return self.train.best_offset(weights.T[None]) if self.central else base


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """New weights of a layer in the shape of the old ones, its constant [1, rows], and their held-out loss."""

    weights: np.ndarray
    offset: np.ndarray
    loss: float
    updated: bool


def fitted(problem: Problem, goal: Goal, measured: Measured) -> Fitted:
    """The best of several fits of one layer to a goal, and of its own values where magnitudes say what stays."""
    reader, layer, base = problem.reader, problem.layer, base_of(problem.reader)
    shape, old = layer.weight.shape, reader.matrix(reader.weight.constant)[0].T

    def shaped(rows: np.ndarray) -> np.ndarray:
        return np.asarray(reader.restore(rows.T[None])).reshape(shape)

    def flat(data: np.ndarray) -> np.ndarray:
        return np.asarray(reader.matrix(data)[0].T)

    plain = old * flat(goal.mask(layer.weight.constant).astype(np.float64))
    found = [Fitted(shaped(plain), base, measured.loss(plain, base), False)]
    stages = [lambda i, g=g: flat(g.mask(shaped(i)).astype(np.float64)) != 0 for g in goal.stages(shape)]
    for ridge in RIDGES:
        weights = compensate(measured.quadratic(old, ridge), stages, goal.height)
        offset = measured.offset(weights, base)
        found.append(Fitted(shaped(weights), offset, measured.loss(weights, offset), True))
    return min(found, key=lambda f: f.loss)


class Walk:
    """A graph through its sparsification beside the original, node by node, on all calibration inputs."""

    def __init__(self, graph: Graph, feeds: Sequence[Feed]) -> None:
        self.graph = graph
        self._before, self._after = Tape(graph.copy().freeze(), feeds), Tape(graph, feeds)
        self._left = {v.ref: len(graph.uses(v.ref)) for v in graph.values()}

    def __iter__(self) -> Iterator[Node]:
        """Every node; its operands are there, and its result in the original. What is done to the graph meanwhile
        shows in the values after it."""
        for node in counted("weights from moments: nodes", self.graph.nodes()):
            self._before.run([node])
            yield node
            self._after.run([self.graph.node(node.ref)])
            for _, value in self.graph.operands(node).present():
                self._left[value.ref] -= 1
                if not self._left[value.ref]:
                    self._before.drop(value.ref)
                    self._after.drop(value.ref)

    def measure(self, reader: Reader) -> Measured:
        """Moments of a layer: inputs as they are now (states as they were), targets of the original. ConfigError
        where inputs are no numbers.
        """
        train, test = Moments(), Moments()
        inputs = self._after if reader.x.ref in self._after else self._before
        for i in range(self._before.samples):
            at = sample(reader, i)
            x = reader.patches(inputs.read(reader.x.ref, i, i + 1), at)
            y = reader.targets(self._before.read(reader.y.ref, i, i + 1), at)
            (test if i % HELD_OUT == HELD_OUT - 1 else train).add(x, y)
        for moments in (train, test):
            moments.check_sound()
        gates = isinstance(reader, GateReader)
        shifts = reader.bias is not None if gates else sink_of(self.graph, reader) is not None
        return Measured(train, test, shifts)


def update(graph: Graph, goals: Mapping[ValueRef, tuple[Candidate, Goal]], feeds: Sequence[Feed]) -> list[Refusal]:
    """Sparsify the weights named in `goals`, in place; says what every layer lost, and which were not fitted.

    At least HELD_OUT feeds are needed.
    """
    told: list[Refusal] = []
    walk = Walk(graph, feeds)
    for node in walk:
        for position in weights_of(graph.site(node)):
            ref = graph.operands(node)[position].ref
            if ref in goals:
                told.append(_update_weight(walk, node, *goals[ref]))
    return told


def _update_weight(walk: Walk, node: Node, layer: Candidate, goal: Goal) -> Refusal:
    """Store what a weight becomes; says what the layer lost, or why it was not fitted."""
    graph, where = walk.graph, f"{node.op.name} '{node.ref}'"
    where += f", weight '{layer.weight.ref}'" if node.op.name in RECURRENT else ""
    parts = problems(graph, graph.site(node), layer)
    if not parts:
        _store(graph, layer, goal, largest(layer.weight.constant, goal))
        return Refusal(where, "its weights are shared or scaled; the largest magnitudes stay as they are")
    made = [fitted(p, p.goal(goal, layer), walk.measure(p.reader)) for p in parts]
    _store(graph, layer, goal, np.concatenate([m.weights for m in made]))
    for part, one in zip(parts, made, strict=True):
        if one.updated:
            shift(graph, part.reader, one.offset)
    return Note(where, _said(made, goal, layer))


def _said(made: Sequence[Fitted], goal: Goal, layer: Candidate) -> str:
    how = "fitted" if any(m.updated for m in made) else "largest magnitudes, no fit does better"
    share, loss = goal.density(layer.weight.shape), float(np.mean([m.loss for m in made]))
    return f"{goal.form} at {share:.3f}, {how}: held-out error {loss:.3g} of the outputs' variance"


def _store(graph: Graph, layer: Candidate, goal: Goal, data: np.ndarray) -> None:
    array = np.ascontiguousarray(data, layer.weight.dtype.numpy)
    graph.update(layer.weight.ref, type=replace(layer.weight.type, encoding=goal.form), data=array)


def shift(graph: Graph, reader: Reader, offset: np.ndarray) -> None:
    """Put the change of a layer's constant where it can be taken up."""
    if isinstance(reader, GateReader):
        if reader.bias is not None:
            bias = graph.value(reader.bias.ref)
            data = reader.shifted(bias.constant, offset)
            graph.update(bias.ref, data=np.ascontiguousarray(data, bias.dtype.numpy))
        return
    sink = sink_of(graph, reader)
    if sink is not None:
        change = (offset - bias_of(reader)).reshape(sink.value.shape)
        data = sink.value.constant + sink.sign * change
        graph.update(sink.value.ref, data=np.ascontiguousarray(data, sink.value.dtype.numpy))
