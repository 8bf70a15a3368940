"""Sparsity patterns by magnitude: which weights of a layer survive. Plain numpy on one weight at a time.

A pattern belongs to an encoding. Blocks and single elements are ranked by their L2 norm; in regular runs the
largest element of each run survives, the first of equal ones (block-max weight masking, BMWM). DARB (Ren et al.,
AAAI 2020, arXiv 1911.08020; the choice of sizes is a reconstruction) gives every row a run length that fits its own
density under one magnitude threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from compiler.ir.encoding import BlockSparse, RegularBlock

DARB_SIZES = (4, 8, 16, 32)
"""Run lengths that DARB chooses from."""

FLOOR = 1 / 64
"""Share of every layer that survives a global ranking: an empty layer cuts the network."""

_STEPS = 60
_WIDEST = 16.0


def matrix(data: np.ndarray, rows: int) -> np.ndarray:
    """float64 [rows, inputs]: the weight with its output axis first and all other axes as one."""
    moved = np.moveaxis(data, rows, 0)
    return moved.reshape(len(moved), -1).astype(np.float64)


def ranked(norms: Sequence[np.ndarray], density: float, floor: float) -> list[np.ndarray]:
    """Which entries of each array survive when `density` of all of them do: those with the largest norms.

    At least `floor` of every array, and one entry, survive. Of equal norms the earlier one stays.
    """
    order = [np.argsort(-n, axis=None, kind="stable") for n in norms]
    sure = [max(1, math.ceil(floor * n.size)) for n in norms]
    kept = [np.zeros(n.size, bool) for n in norms]
    for mask, first, count in zip(kept, order, sure, strict=True):
        mask[first[:count]] = True
    layer = np.concatenate(
        [np.full(n.size - count, i) for i, (n, count) in enumerate(zip(norms, sure, strict=True))]
    )
    entry = np.concatenate([first[count:] for first, count in zip(order, sure, strict=True)])
    value = np.concatenate([n.reshape(-1)[f[c:]] for n, f, c in zip(norms, order, sure, strict=True)])
    more = max(0, round(density * sum(n.size for n in norms)) - sum(sure))
    for i in np.argsort(-value, kind="stable")[:more]:
        kept[layer[i]][entry[i]] = True
    return [mask.reshape(n.shape) for mask, n in zip(kept, norms, strict=True)]


def keep_blocks(data: np.ndarray, encoding: BlockSparse, alive: np.ndarray) -> np.ndarray:
    """`data` with every block that is not `alive` set to zero."""
    rows = data.shape[encoding.rows]
    return keep_elements(data, encoding.rows, np.repeat(alive, encoding.height, axis=0)[:rows])


def keep_elements(data: np.ndarray, rows: int, alive: np.ndarray) -> np.ndarray:
    """`data` with every element that is not `alive` ([rows, inputs]) set to zero."""
    moved = np.moveaxis(data, rows, 0)
    kept = np.where(alive.reshape(moved.shape), moved, np.zeros((), data.dtype))
    return np.ascontiguousarray(np.moveaxis(kept, 0, rows))


def keep_largest(data: np.ndarray, encoding: RegularBlock) -> np.ndarray:
    """`data` with only the largest element of every run left."""
    moved = np.moveaxis(data, (encoding.rows, encoding.inputs), (0, -1))
    kept, sizes = np.zeros_like(moved), encoding.row_sizes(len(moved))
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        kept[rows] = _largest(moved[rows], int(size))
    return np.ascontiguousarray(np.moveaxis(kept, (0, -1), (encoding.rows, encoding.inputs)))


def _largest(data: np.ndarray, size: int) -> np.ndarray:
    """The largest element of each run of `size` along the last axis; all others zero."""
    inputs = data.shape[-1]
    padded = np.full((*data.shape[:-1], -(-inputs // size) * size), -1.0)
    padded[..., :inputs] = np.abs(data)
    runs = padded.reshape(*data.shape[:-1], -1, size)
    chosen = runs.argmax(axis=-1) + np.arange(runs.shape[-2]) * size
    kept = np.zeros_like(data)
    np.put_along_axis(kept, chosen, np.take_along_axis(data, chosen, axis=-1), axis=-1)
    return kept


def darb_sizes(weights: Sequence[np.ndarray], density: float) -> list[np.ndarray]:
    """Run length of every row of each [rows, inputs] weight, int64 [rows], so that `density` of all survive.

    Rows take the power of two nearest to the inverse of their density under the common threshold, times one factor
    found by bisection; the mean of 1 / length, weighted with the inputs, comes as near to `density` as it can.
    """
    norms = [np.abs(w) for w in weights]
    alive = ranked(norms, density, floor=0.0)
    rates = np.concatenate([mask.mean(axis=1) for mask in alive])
    share = np.concatenate([np.full(len(w), float(w.shape[1])) for w in weights])
    low, high = -_WIDEST, _WIDEST
    for _ in range(_STEPS):
        middle = (low + high) / 2
        dense = _mean_density(_row_sizes(rates, middle), share) > density
        low, high = (middle, high) if dense else (low, middle)
    best = min((low, high), key=lambda s: abs(_mean_density(_row_sizes(rates, s), share) - density))
    return np.split(_row_sizes(rates, best), np.cumsum([len(w) for w in weights])[:-1])


def _row_sizes(rates: np.ndarray, shift: float) -> np.ndarray:
    steps = np.log2(1.0 / np.maximum(rates, 2.0**-_WIDEST)) + shift
    limits = math.log2(DARB_SIZES[0]), math.log2(DARB_SIZES[-1])
    return np.asarray(2 ** np.clip(np.round(steps), *limits), np.int64)


def _mean_density(sizes: np.ndarray, share: np.ndarray) -> float:
    return float(np.average(1.0 / sizes, weights=share))
