"""Layers as rows of numbers: patches of what a layer reads and of what it makes, at sampled positions of all
samples.

A row is one output position of one sample. Column c * taps + t of a patch is tap t of input channel c.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from compiler.calibration.tape import Tape
from compiler.ir.graph import Site, Value
from compiler.ir.types import ValueRef
from compiler.passes.linear import channel_dim
from compiler.passes.prune.fit import POSITIONS, Pick, reader, spread

CHUNK = 32
"""Samples whose rows enter sums at a time: sums depend on it, to rounding."""

WORKED_ON = 64 << 20
"""Bytes of values that are read, and unfolded, at a time, where that is more than one sample."""

HELD_OUT = 4
"""One sample in this many is held out."""


def taps(site: Site) -> int:
    """Columns of a patch per input channel."""
    return reader(site).taps


def matrix(site: Site) -> np.ndarray:
    """The weight of a layer as [columns, outputs], float64."""
    return np.asarray(reader(site).matrix(site.operands[1].constant)[0])


def restored(site: Site, weights: np.ndarray) -> np.ndarray:
    """[columns, outputs] as a weight of the layer's form, however many columns and outputs there are."""
    weight = site.operands[1]
    if site.node.op.name == "ConvTranspose":
        tapped = weights.reshape(-1, taps(site), weights.shape[1]).swapaxes(1, 2)
        return np.ascontiguousarray(tapped.reshape(-1, weights.shape[1], *weight.shape[2:]))
    if site.node.op.name == "Conv":
        return np.asarray(weights.T.reshape(weights.shape[1], -1, *weight.shape[2:]))
    return np.ascontiguousarray(weights.T if site.attrs.get("transB") else weights)


def bias(site: Site) -> np.ndarray | None:
    """The bias of a layer, [outputs], float64; None where it has none."""
    value = site.operands.optional(2)
    return None if value is None else value.constant.astype(np.float64).reshape(-1)


# ---------------------------------------------------------------------- sampled positions
def positions(result: Value, channel: int) -> int:
    """Output positions per sample of a value with channels on axis `channel`."""
    return result.size // result.shape[channel]


def rows_bytes(value: Value, channel: int) -> int:
    """Bytes of the rows of a value per sample."""
    count = positions(value, channel)
    return value.type.bytes // count * min(count, POSITIONS)


def held_out(samples: int, count: int) -> np.ndarray:
    """For every row of all samples whether it is held out, where each has `count` positions."""
    rows = np.repeat(np.arange(samples), min(count, POSITIONS))
    return np.asarray(rows % HELD_OUT == HELD_OUT - 1)


def flat_rows(array: np.ndarray, channel: int, count: int, first: int, pick: Pick = spread) -> np.ndarray:
    """[rows, channels] of stacked samples at their chosen positions; `first` is the number of the first sample."""
    flat = np.moveaxis(array, channel, -1).reshape(-1, array.shape[channel])
    return np.asarray(flat[_picked(pick, count, first, len(flat) // count)])


def _picked(pick: Pick, count: int, first: int, samples: int) -> np.ndarray:
    """The chosen positions of samples that lie one behind the other, `count` positions each."""
    return np.concatenate([pick(count, first + i) + i * count for i in range(samples)])


def value_rows(tape: Tape, ref: ValueRef, channel: int, pick: Pick = spread) -> np.ndarray:
    """[rows, channels] of a value over all samples."""
    value = tape.graph.value(ref)
    count = positions(value, channel)
    parts = (flat_rows(tape.read(ref, i, j), channel, count, tape.first + i, pick) for i, j in runs(tape, [value]))
    return np.concatenate(list(parts))


def made_rows(tape: Tape, site: Site) -> np.ndarray:
    """[rows, channels] of what a layer makes over all samples, in the rows of `patch_rows`."""
    result = site.results[0]
    return value_rows(tape, result.ref, channel_dim(site, result), reader(site).pick)


def together(size: int) -> int:
    """Samples of `size` bytes that are worked on at a time: a power of two, so that they make up whole chunks."""
    count = CHUNK
    while count > 1 and count * size > WORKED_ON:
        count //= 2
    return count


def runs(tape: Tape, values: Sequence[Value]) -> Iterator[tuple[int, int]]:
    """First samples of the runs whose values are read at once, and those of the next ones."""
    step = together(sum(v.type.bytes for v in values))
    yield from ((i, min(i + step, tape.samples)) for i in range(0, tape.samples, step))


def patch_rows(tape: Tape, site: Site, read: Sequence[ValueRef]) -> Iterator[np.ndarray]:
    """Chunk by chunk, [groups, rows, columns] of a node like `site` that reads the given values side by side.

    `site` gives kernel, strides, padding and map size; channels come from the values.
    """
    channel, y, one = channel_dim(site, site.operands[0]), site.results[0], reader(site)
    count = positions(y, channel_dim(site, y))
    waiting: list[np.ndarray] = []
    for i, j in runs(tape, [tape.graph.value(r) for r in read]):
        x = np.concatenate(tape.together(read, i, j), axis=channel)
        at = _picked(one.pick, count, tape.first + i, j - i)
        stacked = Value(y.ref, replace(y.type, shape=((j - i) * y.shape[0], *y.shape[1:])))
        waiting.append(replace(one, y=stacked).patches(x, at))
        del x  # before the next one is read: it may be large
        if not j % CHUNK or j == tape.samples:
            yield waiting[0] if len(waiting) == 1 else np.concatenate(waiting, axis=1)
            waiting = []


# ---------------------------------------------------------------------- statistics of whole values
class Spread:
    """Mean and variance per channel on axis 1 of values that come sample by sample (Chan, Golub & LeVeque 1979)."""

    def __init__(self) -> None:
        self._rows = 0
        self._mean: np.ndarray = np.zeros(())
        self._squares: np.ndarray = np.zeros(())

    def add_all(self, tape: Tape, ref: ValueRef) -> Spread:
        """Add a value of all samples of a tape."""
        for sample in range(tape.samples):
            x = np.moveaxis(tape.read(ref, sample, sample + 1), 1, -1)
            self._add(x.reshape(-1, x.shape[-1]).astype(np.float64))
        return self

    def _add(self, x: np.ndarray) -> None:
        rows, mean = self._rows + len(x), x.mean(axis=0)
        step = mean - self._mean
        self._squares = self._squares + x.var(axis=0) * len(x) + step**2 * (self._rows * len(x) / rows)
        self._mean = self._mean + step * (len(x) / rows)
        self._rows = rows

    def result(self) -> np.ndarray:
        """[2, channels]: mean and variance."""
        return np.stack([self._mean, self._squares / self._rows])
