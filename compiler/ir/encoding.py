"""Storage forms of a tensor.

An encoding belongs to a tensor type, not to an operator: a `Gemm` with a sparse weight is still a `Gemm`, and
only cost and code generation look at how the weight is stored. Data stays dense in the IR, so slicing, solving
and the reference evaluator never care.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import numpy as np


class Encoding(abc.ABC):
    """How the elements of a tensor are stored."""

    @abc.abstractmethod
    def check(self, shape: tuple[int, ...], data: np.ndarray | None) -> None:
        """Raise ValueError if `data` (dense, or None for activations) cannot be stored this way."""

    @abc.abstractmethod
    def stored(self, shape: tuple[int, ...], data: np.ndarray | None) -> int:
        """Number of stored elements (padding and indices excluded)."""

    @abc.abstractmethod
    def take(self, data: np.ndarray, axis: int, kept: np.ndarray) -> tuple[Encoding, np.ndarray]:
        """Keep the entries `kept` (ascending positions) of `axis`; returns the encoding and data that remain."""


@dataclass(frozen=True, slots=True)
class Dense(Encoding):
    """Every element is stored, row-major."""

    def check(self, shape: tuple[int, ...], data: np.ndarray | None) -> None:
        if data is not None and tuple(data.shape) != shape:
            raise ValueError(f"data has shape {tuple(data.shape)}, the type says {shape}")

    def stored(self, shape: tuple[int, ...], data: np.ndarray | None) -> int:
        return int(np.prod(shape, dtype=np.int64))

    def take(self, data: np.ndarray, axis: int, kept: np.ndarray) -> tuple[Encoding, np.ndarray]:
        return self, np.take(data, kept, axis=axis)
