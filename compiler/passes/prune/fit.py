"""Readers: nodes that multiply their input with a constant matrix, seen as least-squares problems.

Convolutions and transposed ones (plain, grouped, depthwise), Gemm and MatMul with constant weights are rows of
patches times a weight matrix. Everything here is float64 and reads activations from the reference evaluator.
"""

from __future__ import annotations

import abc
import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.calibration.moments import UNSOUND
from compiler.calibration.tape import part_of
from compiler.errors import ConfigError, UnsupportedModelError
from compiler.ir.graph import Graph, Node, Site, Value
from compiler.ir.types import Axis, ValueRef
from compiler.passes.linear import channel_dim, per_output

Batches = Sequence[Mapping[str, np.ndarray]]

POSITIONS = 32
"""Positions per image that enter a Gram matrix; neighbouring patches say nearly the same."""

TURN = 7919
"""Positions from one turn to the next: a prime, so that no size of an image repeats them soon."""

GOLDEN = 0.618
"""Multiples of this share of a circle lie far apart, however many there are."""


def spread(count: int, turn: int) -> np.ndarray:
    """POSITIONS of `count` positions, evenly spread and shifted from turn to turn; all where there are fewer."""
    if count <= POSITIONS:
        return np.arange(count)
    return np.sort((np.arange(POSITIONS) * count // POSITIONS + turn * TURN) % count)


def scattered(count: int, turn: int) -> np.ndarray:
    """As `spread`, but by a step without a divisor in common with `count`: of an image that is made by several
    turns of taps, positions of all of them.
    """
    if count <= POSITIONS:
        return np.arange(count)
    step = next(s for s in range(int(count * GOLDEN), 0, -1) if math.gcd(s, count) == 1)
    return np.sort((np.arange(POSITIONS) + turn * TURN) * step % count)


Pick = Callable[[int, int], np.ndarray]
"""Some of so many positions, others from turn to turn."""


@dataclass(frozen=True, slots=True)
class Reader(abc.ABC):
    """A linear map with constant weights: [groups, rows, p] patches times [groups, p, outputs]."""

    node: Node
    x: Value
    weight: Value
    y: Value
    bias: Value | None

    @property
    def depthwise(self) -> bool:
        """Whether outputs vanish with their input, so that no output is left to be wrong."""
        return False

    @property
    @abc.abstractmethod
    def channel(self) -> Axis:
        """The axis of `x` that the weight contracts."""

    @property
    @abc.abstractmethod
    def output(self) -> Axis:
        """The axis of `y` along which the weight has its outputs."""

    @abc.abstractmethod
    def patches(self, x: np.ndarray, at: np.ndarray) -> np.ndarray:
        """[groups, rows, p]: the inputs of output positions `at` (flat numbers)."""

    @abc.abstractmethod
    def targets(self, y: np.ndarray, at: np.ndarray) -> np.ndarray:
        """[groups, rows, outputs] of the same positions."""

    @abc.abstractmethod
    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """The weight as [groups, p, outputs]."""

    @abc.abstractmethod
    def restore(self, matrix: np.ndarray) -> np.ndarray:
        """The inverse of `matrix`."""

    @property
    @abc.abstractmethod
    def taps(self) -> int:
        """Columns of a patch per input channel, consecutive."""

    @property
    @abc.abstractmethod
    def positions(self) -> int:
        """Number of output positions."""

    @staticmethod
    def pick(count: int, turn: int) -> np.ndarray:
        """Which of `count` output positions enter statistics."""
        return spread(count, turn)


class ConvReader(Reader):
    """A convolution of any rank."""

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.weight.shape[1] == 1

    @property
    def channel(self) -> Axis:
        return self.x.axis(1)

    @property
    def output(self) -> Axis:
        return self.y.axis(1)

    @property
    def groups(self) -> int:
        return int(self.node.attrs["group"])

    @property
    def taps(self) -> int:
        return int(np.prod(self.weight.shape[2:]))

    @property
    def positions(self) -> int:
        return self.y.shape[0] * int(np.prod(self.y.shape[2:]))

    def patches(self, x: np.ndarray, at: np.ndarray) -> np.ndarray:
        attrs, rank = self.node.attrs, x.ndim - 2
        pads, steps, gaps = attrs["pads"], attrs["strides"], attrs["dilations"]
        padded = np.pad(x, [(0, 0), (0, 0), *((pads[i], pads[i + rank]) for i in range(rank))])
        n, *where = np.unravel_index(at, (self.y.shape[0], *self.y.shape[2:]))
        index = [
            (w * s)[(slice(None), *(None,) * rank)] + (np.arange(k) * d).reshape(-1, *(1,) * (rank - 1 - i))
            for i, (w, s, d, k) in enumerate(zip(where, steps, gaps, self.weight.shape[2:], strict=True))
        ]
        picked = np.moveaxis(padded, 1, -1)[(n[(slice(None), *(None,) * rank)], *index)]
        columns = np.moveaxis(picked, -1, 1).astype(np.float64)
        return np.moveaxis(columns.reshape(len(at), self.groups, -1), 1, 0)

    def targets(self, y: np.ndarray, at: np.ndarray) -> np.ndarray:
        flat = np.moveaxis(y, 1, -1).reshape(-1, y.shape[1])[at].astype(np.float64)
        return np.moveaxis(flat.reshape(len(at), self.groups, -1), 1, 0)

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        rows = weight.astype(np.float64).reshape(self.groups, weight.shape[0] // self.groups, -1)
        return np.swapaxes(rows, 1, 2)

    def restore(self, matrix: np.ndarray) -> np.ndarray:
        return np.swapaxes(matrix, 1, 2).reshape(self.weight.shape)


class TransposedReader(ConvReader):
    """A transposed convolution of any rank: where a tap meets no element of x, its column is zero."""

    @staticmethod
    def pick(count: int, turn: int) -> np.ndarray:
        return scattered(count, turn)

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.weight.shape[0] == self.groups

    def patches(self, x: np.ndarray, at: np.ndarray) -> np.ndarray:
        attrs, rank = self.node.attrs, x.ndim - 2
        pads, steps, gaps = attrs["pads"], attrs["strides"], attrs["dilations"]
        n, *where = np.unravel_index(at, (self.y.shape[0], *self.y.shape[2:]))
        index, met = [], np.ones((len(at), *(1,) * rank), bool)
        for i, (w, s, d, k) in enumerate(zip(where, steps, gaps, self.weight.shape[2:], strict=True)):
            lifted = (w + pads[i])[(slice(None), *(None,) * rank)] - (np.arange(k) * d).reshape(
                -1, *(1,) * (rank - 1 - i)
            )
            inside = (lifted % s == 0) & (lifted >= 0) & (lifted // s < x.shape[2 + i])
            index.append(np.where(inside, lifted // s, 0))
            met = met & inside
        picked = np.moveaxis(x, 1, -1)[(n[(slice(None), *(None,) * rank)], *index)] * met[..., None]
        columns = np.moveaxis(picked, -1, 1).astype(np.float64)
        return np.moveaxis(columns.reshape(len(at), self.groups, -1), 1, 0)

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        outputs = weight.shape[1]
        columns = weight.astype(np.float64).reshape(self.groups, -1, outputs, self.taps)
        return np.swapaxes(columns, 2, 3).reshape(self.groups, -1, outputs)

    def restore(self, matrix: np.ndarray) -> np.ndarray:
        columns = matrix.reshape(self.groups, -1, self.taps, matrix.shape[-1])
        return np.swapaxes(columns, 2, 3).reshape(self.weight.shape)


class MatrixReader(Reader):
    """A Gemm or MatMul with a constant right operand of rank 2."""

    @property
    def channel(self) -> Axis:
        return self.x.axis(0 if self._flag("transA") else -1)

    @property
    def output(self) -> Axis:
        return self.y.axis(-1)

    @property
    def taps(self) -> int:
        return 1

    @property
    def positions(self) -> int:
        return self.y.size // self.y.shape[-1]

    def _flag(self, name: str) -> bool:
        return bool(self.node.attrs.get(name, 0))

    def patches(self, x: np.ndarray, at: np.ndarray) -> np.ndarray:
        rows = x.T if self._flag("transA") else x
        picked: np.ndarray = rows.reshape(-1, rows.shape[-1])[at].astype(np.float64)
        return picked[None]

    def targets(self, y: np.ndarray, at: np.ndarray) -> np.ndarray:
        picked: np.ndarray = y.reshape(-1, y.shape[-1])[at].astype(np.float64)
        return picked[None]

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        columns: np.ndarray = (weight.T if self._flag("transB") else weight).astype(np.float64)
        return columns[None]

    def restore(self, matrix: np.ndarray) -> np.ndarray:
        return np.transpose(matrix[0]) if self._flag("transB") else np.asarray(matrix[0])


def reader(site: Site) -> Reader:
    """A layer as a least-squares problem, whoever else reads its weights."""
    kind = _READERS.get(site.node.op.name, MatrixReader)
    return kind(site.node, site.operands[0], site.operands[1], site.results[0], site.operands.optional(2))


_READERS: Mapping[str, type[Reader]] = {"Conv": ConvReader, "ConvTranspose": TransposedReader}


def reader_of(graph: Graph, site: Site) -> Reader | None:
    """The node as a least-squares problem, or None where it is none (other operators, shared weights)."""
    name, attrs = site.node.op.name, site.attrs
    plain = name == "MatMul" or (name == "Gemm" and attrs["alpha"] == 1 and attrs["beta"] == 1)
    if not plain and name not in _READERS:
        return None
    x, weight, bias = site.operands[0], site.operands[1], site.operands.optional(2)
    own = [v for v in (weight, bias) if v is not None]
    if x.data is not None or any(v.data is None or len(graph.uses(v.ref)) > 1 for v in own):
        return None
    if plain and (weight.rank != 2 or x.rank < 2):
        return None
    result = site.results[0]
    if bias is not None and not per_output(bias, result.shape[channel_dim(site, result)]):
        return None
    return reader(site)


def sample(reader: Reader, batch: int) -> np.ndarray:
    """Output positions of batch number `batch` that enter the statistics."""
    return reader.pick(reader.positions, batch)


LARGE = 1 << 23
"""Multiply-adds of a node on all batches from which onnxruntime takes less time, which has to open it first."""


class Stream:
    """All batches through a graph, one node at a time; arrays nobody reads any more are dropped."""

    def __init__(self, graph: Graph, batches: Batches) -> None:
        self.graph = graph
        self._arrays = [{v.ref: b[v.ref.name] for v in graph.inputs} for b in batches]
        self._left = {v.ref: len(graph.uses(v.ref)) for v in graph.values()}

    def __len__(self) -> int:
        return len(self._arrays)

    def read(self, ref: ValueRef) -> Iterator[np.ndarray]:
        """The value in every batch."""
        return (a[ref] for a in self._arrays)

    def step(self, node: Node) -> None:
        """Evaluate `node`, as the graph has it now, on every batch."""
        site = self.graph.site(self.graph.node(node.ref))
        evaluate = self._evaluation(site)
        for arrays in self._arrays:
            arrays |= evaluate(arrays)

    def _evaluation(self, site: Site) -> Callable[[Mapping[ValueRef, np.ndarray]], dict[ValueRef, np.ndarray]]:
        """From what a node reads to what it makes; by onnxruntime where it has the operator and that is much."""
        if site.node.op.macs(site) * len(self) >= LARGE:
            with contextlib.suppress(UnsupportedModelError):
                return part_of([site]).run

        def plainly(arrays: Mapping[ValueRef, np.ndarray]) -> dict[ValueRef, np.ndarray]:
            operands: list[np.ndarray | None] = [None] * len(site.operands)
            for i, value in site.operands.present():
                operands[i] = arrays[value.ref] if value.data is None else value.data
            with np.errstate(all="ignore"):
                results = site.node.op.evaluate(site, operands)
            return {v.ref: r for v, r in zip(site.results, results, strict=True)}

        return plainly

    def release(self, node: Node) -> None:
        """Drop the operands of `node` that have no reader left."""
        for _, value in self.graph.operands(node).present():
            self._left[value.ref] -= 1
            if not self._left[value.ref] and not self.graph.is_output(value.ref):
                for arrays in self._arrays:
                    arrays.pop(value.ref, None)


GATHERED = 256
"""Fewest rows that are gathered before they are multiplied, and half as many as a row is wide: one row at a time, a
wide product only moves memory.
"""


def gram(reader: Reader, inputs: Iterator[np.ndarray]) -> np.ndarray:
    """Second moments [groups, p, p] of the patches; ConfigError where some are no numbers."""
    total: np.ndarray | float = 0.0
    rows = 0
    waiting: list[np.ndarray] = []
    for i, x in enumerate(inputs):
        waiting.append(reader.patches(x, sample(reader, i)))
        rows += waiting[-1].shape[1]
        if sum(p.shape[1] for p in waiting) >= max(GATHERED, waiting[0].shape[2] // 2):
            total, waiting = _product(waiting, total), []
    found = _product(waiting, total) if waiting else np.asarray(total)
    found /= rows
    if not np.isfinite(np.diagonal(found, axis1=1, axis2=2)).all():
        raise ConfigError(UNSOUND)
    return found


def _product(patches: Sequence[np.ndarray], before: np.ndarray | float) -> np.ndarray:
    """Added to what was there before, without a copy of either: both may be large."""
    gathered = np.concatenate(patches, axis=1)
    found = np.asarray(np.swapaxes(gathered, 1, 2) @ gathered)
    found += before
    return found
