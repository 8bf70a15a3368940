"""Evaluation of one node whose operands are all constant, within a size limit decided before anything is built."""

from __future__ import annotations

import numpy as np

from compiler.ir.graph import Site
from compiler.ir.types import splat_value

FOLDED_BYTES = 64 << 20
"""Operands and results of a folded node together, in bytes; beyond it the node stays in the graph."""
_SLOW_BYTES = 1 << 18
_SLOW = frozenset(
    "AveragePool Conv ConvTranspose DFT Einsum GridSample GRU LpPool LSTM MaxPool NonMaxSuppression Resize RNN"
    " RoiAlign STFT".split()
)
"""Operators whose evaluation takes far longer than their operands and results are large."""
_MOVES = frozenset("Cast Expand Flatten Identity Reshape Squeeze Tile Transpose Unsqueeze".split())
"""Operators that give a splat for a splat: nothing needs to be written out."""


def fold(site: Site, limit: int = FOLDED_BYTES) -> tuple[np.ndarray, ...] | None:
    """Read-only values of the results, or None where an operand is not constant or the sizes pass `limit` bytes.

    A splat (see `splat_value`) that is only moved or converted stays a splat of any size.
    """
    given = [v for _, v in site.operands.present()]
    if any(v.data is None for v in given):
        return None
    moved = _moved_splat(site)
    if moved is not None:
        return (moved,)
    total = sum(v.type.bytes for v in (*given, *site.results))
    if total > min(limit, _SLOW_BYTES if site.node.op.name in _SLOW else limit):
        return None
    arrays = [None if v is None else v.data for v in map(site.operands.optional, range(len(site.operands)))]
    with np.errstate(all="ignore"):
        values = site.node.op.evaluate(site, arrays)
    return tuple(_sealed(a, v.dtype.numpy) for a, v in zip(values, site.results, strict=True))


def _moved_splat(site: Site) -> np.ndarray | None:
    if site.node.op.name not in _MOVES:
        return None
    data = site.operands[0].data
    element = None if data is None else splat_value(data)
    if element is None:
        return None
    result = site.results[0]
    return np.broadcast_to(np.asarray(element).astype(result.dtype.numpy), result.shape)


def _sealed(array: np.ndarray, dtype: np.dtype[np.generic]) -> np.ndarray:
    sealed = np.asarray(array, dtype)
    if splat_value(sealed) is None:
        sealed = np.ascontiguousarray(sealed).reshape(sealed.shape)
    sealed.flags.writeable = False
    return sealed
