"""Sparse weights for tests."""

from __future__ import annotations

import numpy as np

from compiler.ir.encoding import BlockSparse, Encoding, RegularBlock, Unstructured
from compiler.ir.graph import Graph
from compiler.ir.types import DType, TensorType, ValueRef


def fitted(encoding: Encoding, shape: tuple[int, ...], density: float = 0.3, seed: int = 0) -> np.ndarray:
    """float32 data of `shape` that fit the encoding: `density` of the blocks or elements, one element per run."""
    rng = np.random.default_rng(seed)
    assert isinstance(encoding, (BlockSparse, RegularBlock, Unstructured))
    rows = encoding.rows
    if isinstance(encoding, RegularBlock):
        return _regular(encoding, shape, rng)
    height = encoding.height if isinstance(encoding, BlockSparse) else 1
    moved = (shape[rows], *(n for d, n in enumerate(shape) if d != rows))
    alive = rng.random((-(-moved[0] // height), *moved[1:])) < density
    data = rng.uniform(0.5, 1, moved) * np.repeat(alive, height, axis=0)[: moved[0]]
    signs = rng.choice([-1, 1], data.shape)
    return np.ascontiguousarray(np.moveaxis(data * signs, 0, rows), np.float32)


def _regular(encoding: RegularBlock, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    data = np.zeros(shape, np.float32)
    rows = np.moveaxis(data, (encoding.rows, encoding.inputs), (0, -1))
    for row, size in zip(rows, encoding.row_sizes(len(rows)), strict=True):
        for tap in np.ndindex(row.shape[:-1]):
            for start in range(0, row.shape[-1], int(size)):
                run = row[tap][start : start + int(size)]
                run[rng.integers(len(run))] = rng.choice([-1, 1]) * rng.uniform(0.5, 1)
    return data


def sparse_weight(
    graph: Graph, encoding: Encoding, shape: tuple[int, ...], density: float = 0.3, seed: int = 0
) -> ValueRef:
    """A parameter of `graph` with this encoding, scaled so that activations keep their size."""
    data = fitted(encoding, shape, density, seed)
    share = max(np.count_nonzero(data), 1) / shape[encoding.rows]  # type: ignore[attr-defined]
    data = np.asarray(data / np.sqrt(share), np.float32)
    return graph.add_value(graph.fresh("sparse"), TensorType(DType.FLOAT32, shape, encoding), data).ref
