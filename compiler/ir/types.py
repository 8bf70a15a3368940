"""Element types, tensor types, references, axes and tasks: the plain vocabulary of the IR."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from compiler.ir.encoding import Dense, Encoding


class DType(enum.Enum):
    """Element type; the value is the numpy (and TVM) name."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    UINT8 = "uint8"
    UINT16 = "uint16"
    UINT32 = "uint32"
    UINT64 = "uint64"
    BOOL = "bool"

    @classmethod
    def _missing_(cls, value: object) -> DType:
        raise ValueError(f"{value!r} is no element type; there are {', '.join(t.value for t in cls)}")

    @property
    def numpy(self) -> np.dtype[np.generic]:
        return np.dtype(self.value)

    @property
    def bytes(self) -> int:
        return self.numpy.itemsize

    @property
    def is_float(self) -> bool:
        return self.numpy.kind == "f"

    @property
    def is_integer(self) -> bool:
        return self.numpy.kind in "iu"


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type, static logical shape, and storage form (the shape is the same for every encoding)."""

    dtype: DType
    shape: tuple[int, ...]
    encoding: Encoding = field(default_factory=Dense)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * self.dtype.bytes

    def __str__(self) -> str:
        return f"{self.dtype.value}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True, order=True)
class ValueRef:
    """Name of a tensor in one graph."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, order=True)
class NodeRef:
    """Name of one application of an operator in one graph (a node and a value may share a name)."""

    name: str

    def __str__(self) -> str:
        return self.name


class Axis(NamedTuple):
    """A dimension of a value, or a virtual axis of a node (heads, hidden units, group slots)."""

    owner: ValueRef | NodeRef
    dim: int | str

    def __str__(self) -> str:
        return f"'{self.owner}' axis {self.dim}"


@dataclass(frozen=True, slots=True)
class Task:
    """A named tuple of graph values; `labels` are the outputs' names in the source model.

    `variants`: of a portfolio, what the task's outputs are at levels 1, 2 ..., where other networks make them.
    """

    name: str
    outputs: tuple[ValueRef, ...]
    labels: tuple[str, ...]
    variants: tuple[tuple[ValueRef, ...], ...] = ()

    @property
    def ladder(self) -> tuple[tuple[ValueRef, ...], ...]:
        """The outputs at every level of a portfolio; one entry where there is none."""
        return (self.outputs, *self.variants)

    @property
    def returned(self) -> tuple[ValueRef, ...]:
        """The outputs of all levels."""
        return tuple(r for outputs in self.ladder for r in outputs)


TaskSet = frozenset[str]


def splat_value(data: np.ndarray) -> np.generic | None:
    """The one element of a broadcast scalar (every stride zero), else None.

    Huge constant tensors are kept as `np.broadcast_to(scalar, shape)`: no memory, no special class.
    """
    if data.size > 1 and not any(s for s, n in zip(data.strides, data.shape, strict=True) if n > 1):
        element: np.generic = data[(0,) * data.ndim]
        return element
    return None
