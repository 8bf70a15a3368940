"""The weight pool: every constant once, aligned, addressed by offset."""

from __future__ import annotations

import hashlib

import numpy as np

from compiler.codegen.memory import ALIGNMENT, aligned
from compiler.codegen.program import PoolEntry


class Pool:
    """Collects packed constants; equal bytes share an offset."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._known: dict[bytes, int] = {}
        self._table: list[PoolEntry] = []

    def add(self, name: str, array: np.ndarray, layout: str) -> int:
        """The byte offset of `array` (row-major bytes) in the pool."""
        raw = np.ascontiguousarray(array).tobytes()
        key = hashlib.sha256(raw).digest()
        if key not in self._known:
            self._known[key] = len(self._data)
            self._data += raw + bytes(aligned(len(raw)) - len(raw))
        offset = self._known[key]
        self._table.append(PoolEntry(name, offset, len(raw), layout))
        return offset

    @property
    def data(self) -> bytes:
        """The pool's bytes; never empty, so that it has an address."""
        return bytes(self._data) or bytes(ALIGNMENT)

    @property
    def table(self) -> tuple[PoolEntry, ...]:
        return tuple(sorted(set(self._table), key=lambda e: (e.offset, e.name, e.layout)))
