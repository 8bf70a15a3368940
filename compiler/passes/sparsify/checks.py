"""What must hold of sparse weights beside the dense ones they were made from, seen without knowing how."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compiler.errors import VerifyError
from compiler.ir.encoding import BlockSparse, RegularBlock, Sparse
from compiler.ir.graph import Value


@dataclass(frozen=True, slots=True)
class Count:
    """Blocks or elements of one weight: all, those that were not zero before, those that are not now."""

    name: str
    total: int
    before: int
    kept: int


def check_survivors(old: Value, new: Value) -> Count:
    """VerifyError unless survivors keep their bits and no unit that was dropped is larger than one that stayed."""
    encoding = new.type.encoding
    assert isinstance(encoding, Sparse)
    if isinstance(encoding, RegularBlock):
        _check_runs(old, new, encoding)
        return count_survivors(old, new)
    before, after = (_units(v.constant, encoding) for v in (old, new))
    wrong = np.flatnonzero((before != after) & (after != 0))
    if len(wrong):
        raise VerifyError(f"sparsify: '{old.ref}': {len(wrong)} blocks or weights that stay have other values")
    dropped, stayed = before[(after == 0) & (before != 0)], after[after != 0]
    if dropped.size and stayed.size and dropped.max() > stayed.min():
        raise VerifyError(
            f"sparsify: '{old.ref}': something of norm {dropped.max():.4g} was dropped, {stayed.min():.4g} stayed"
        )
    return count_survivors(old, new)


def count_survivors(old: Value, new: Value) -> Count:
    """What stays of a weight whose survivors may have new values."""
    encoding = new.type.encoding
    assert isinstance(encoding, Sparse)
    if isinstance(encoding, RegularBlock):
        return _count(old.ref.name, old.constant, new.constant)
    return _count(old.ref.name, *(_units(v.constant, encoding) for v in (old, new)))


def _count(name: str, before: np.ndarray, after: np.ndarray) -> Count:
    return Count(name, before.size, int(np.count_nonzero(before)), int(np.count_nonzero(after)))


def check_density(counts: Sequence[Count], density: float, floor: float) -> None:
    """VerifyError unless `density` of all units of these weights stay, or `floor` of each where that is more."""
    total = sum(c.total for c in counts)
    sure = sum(max(1, math.ceil(floor * c.total)) for c in counts)
    wanted, kept = max(round(density * total), sure), sum(c.kept for c in counts)
    zeros = total - sum(c.before for c in counts)
    if not wanted - zeros <= kept <= wanted:
        names = ", ".join(c.name for c in counts[:3]) + (" ..." if len(counts) > 3 else "")
        raise VerifyError(f"sparsify: {kept} of {total} blocks or weights stay in {names}; {wanted} were asked for")


def _units(data: np.ndarray, encoding: Sparse) -> np.ndarray:
    """The norm of every block, or of every element: [row blocks, inputs]."""
    moved = np.moveaxis(data, encoding.rows, 0).astype(np.float64)
    height = encoding.height if isinstance(encoding, BlockSparse) else 1
    return np.asarray(np.sqrt(np.add.reduceat(moved**2, np.arange(0, len(moved), height), axis=0)))


def _check_runs(old: Value, new: Value, encoding: RegularBlock) -> None:
    before, after = np.abs(encoding.runs(old.constant)), np.abs(encoding.runs(new.constant))
    changed = (encoding.runs(new.constant) != encoding.runs(old.constant)) & (after != 0)
    if changed.any():
        raise VerifyError(f"sparsify: '{old.ref}': {int(changed.sum())} weights that stay have other values")
    sizes = encoding.row_sizes(len(before))
    for size in np.unique(sizes):
        rows, starts = np.flatnonzero(sizes == size), np.arange(0, before.shape[-1], int(size))
        largest, left = (np.maximum.reduceat(a[rows], starts, axis=-1) for a in (before, after))
        if not np.array_equal(largest, left):
            raise VerifyError(f"sparsify: '{old.ref}': a run of row {rows[0]} or later lost its largest weight")
