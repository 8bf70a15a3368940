"""Weights as least-squares problems: one for an ordinary layer, one per direction of W and R of a recurrent one.

The rows of W are fitted to their products with the inputs of all steps, those of R to their products with the
states that steps start from, which are the layer's own results (a given initial state takes no part; where a GRU's
reset gate comes first, the candidate's rows are judged by the state before it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from compiler.ir.encoding import BlockSparse, RegularBlock
from compiler.ir.graph import Graph, Site
from compiler.ir.types import Axis
from compiler.passes.prune.fit import Reader, reader_of
from compiler.passes.prune.recover import bias_of
from compiler.passes.sparsify.goals import Goal
from compiler.passes.sparsify.layers import RECURRENT, Candidate

STATE, BIAS = 2, 3
"""Operand positions of R, and of both halves of the bias: [D, 2*G*H], of inputs, then of the state."""


@dataclass(frozen=True, slots=True)
class GateReader(Reader):
    """W or R of one direction, `weight` [1, G*H, K]. `x` and `y`: the value its inputs are read from, X or Y.

    `bias`: B, where it can take up a constant.
    """

    direction: int
    state: bool
    reverse: bool
    samples_first: bool

    @property
    def channel(self) -> Axis:
        return self.x.axis(-1)

    @property
    def output(self) -> Axis:
        return self.weight.axis(1)

    @property
    def taps(self) -> int:
        return 1

    @property
    def positions(self) -> int:
        steps, samples = self._steps_and_samples
        return (steps - self.state) * samples

    def shifted(self, bias: np.ndarray, change: np.ndarray) -> np.ndarray:
        """B with `change` [1, G*H] added to the half that belongs to this weight, in this direction."""
        made, rows = bias.astype(np.float64), self.weight.shape[1]
        made[self.direction, self.state * rows : (self.state + 1) * rows] += change.ravel()
        return made

    @property
    def _steps_and_samples(self) -> tuple[int, int]:
        shape = self.x.shape
        if self.samples_first:
            return shape[1], shape[0]
        return shape[0], shape[2] if self.state else shape[1]

    def patches(self, x: np.ndarray, at: np.ndarray) -> np.ndarray:
        steps = np.swapaxes(x, 0, 1) if self.samples_first else x
        if self.state:
            one = steps[:, :, self.direction] if self.samples_first else steps[:, self.direction]
            steps = one[1:] if self.reverse else one[:-1]  # the last state starts no step
        picked: np.ndarray = steps.reshape(-1, steps.shape[-1])[at].astype(np.float64)
        return picked[None]

    def targets(self, y: np.ndarray, at: np.ndarray) -> np.ndarray:
        return np.asarray(self.patches(y, at) @ self.matrix(self.weight.constant))

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        return np.swapaxes(weight.astype(np.float64), 1, 2)

    def restore(self, matrix: np.ndarray) -> np.ndarray:
        return np.swapaxes(matrix, 1, 2)


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """A weight, or one direction of it, that can be fitted."""

    reader: Reader
    layer: Candidate
    direction: int | None = None

    def goal(self, whole: Goal, layer: Candidate) -> Goal:
        """What this part is to become, where all of `layer` becomes `whole`."""
        if self.direction is None or isinstance(whole.form, RegularBlock):
            return whole
        mask = whole.mask(layer.weight.constant)[self.direction : self.direction + 1]
        units = whole.form.alive(mask) if isinstance(whole.form, BlockSparse) else mask
        return replace(whole, kept=max(1, int(np.count_nonzero(units))))


def problems(graph: Graph, site: Site, layer: Candidate) -> Sequence[Problem]:
    """The parts of a layer's weight in the order of its directions; none where it cannot be fitted."""
    if site.node.op.name in RECURRENT:
        return _gates(graph, site, layer)
    reader = reader_of(graph, site)
    return [] if reader is None else [Problem(reader, layer)]


def base_of(reader: Reader) -> np.ndarray:
    """[1, rows]: the constant that belongs to a reader's targets; gates are seen without their biases."""
    return np.zeros((1, reader.weight.shape[1])) if isinstance(reader, GateReader) else bias_of(reader)


def put(graph: Graph, reader: Reader, weights: np.ndarray) -> None:
    """Store weights [rows, p] in `graph` in the place of the reader's."""
    value = graph.value(reader.weight.ref)
    data = np.asarray(reader.restore(weights.T[None])).reshape(reader.weight.shape)
    if isinstance(reader, GateReader):
        whole = value.constant.copy()
        whole[reader.direction] = data[0]
        data = whole
    graph.update(value.ref, data=np.ascontiguousarray(data, value.dtype.numpy))


def _gates(graph: Graph, site: Site, layer: Candidate) -> list[Problem]:
    weight = layer.weight
    state = site.operands[STATE].ref == weight.ref
    seen = site.results[0] if state else site.operands[0]
    if len(graph.uses(weight.ref)) > 1 or seen.data is not None:
        return []
    bias = site.operands.optional(BIAS)
    if bias is not None and (bias.data is None or len(graph.uses(bias.ref)) > 1):
        bias = None
    found = []
    for d in range(weight.shape[0]):
        part = replace(
            weight, type=replace(weight.type, shape=(1, *weight.shape[1:])), data=weight.constant[d : d + 1]
        )
        reverse = d == 1 or site.str("direction") == "reverse"
        reader = GateReader(site.node, seen, part, seen, bias, d, state, reverse, bool(site.int("layout")))
        if not reader.positions:
            return []
        found.append(Problem(reader, replace(layer, weight=part), d))
    return found
