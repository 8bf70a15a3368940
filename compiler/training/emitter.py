"""The lowering language of operators on torch tensors: every operator that lowers can be differentiated.

`compute` evaluates a body once on arrays of indices, one axis each, instead of looping over elements. A read whose
indices are whole axes is a view; any other one gathers. Both branches of `select` are evaluated, so reads outside a
tensor are moved inside: what they return is never chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from compiler.ir.graph import Site
from compiler.ir.op import Combine, Tensor
from compiler.ir.ops.elementwise import limits
from compiler.ir.types import DType
from compiler.training.recurrent import recurrent

Expr = Any

_UNARY: dict[str, Callable[..., Any]] = {
    name: getattr(torch, name)
    for name in (
        "exp log sqrt tanh sigmoid erf sin cos tan asin acos atan sinh cosh asinh acosh atanh floor ceil round "
        "trunc abs isnan isinf"
    ).split()
}
_BINARY: dict[str, Callable[..., Any]] = {
    "pow": torch.pow,
    "fmod": torch.fmod,
    "min": lambda a, b: torch.where(a < b, a, b),  # NaN in `a` limits nothing, NaN in `b` stays
    "max": lambda a, b: torch.where(a > b, a, b),
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "quotient": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "and": torch.logical_and,
    "or": torch.logical_or,
    "xor": torch.logical_xor,
    "bitand": torch.bitwise_and,
    "bitor": torch.bitwise_or,
    "bitxor": torch.bitwise_xor,
    "shl": torch.bitwise_left_shift,
    "shr": torch.bitwise_right_shift,
}
_FUNCTIONS = {**_UNARY, **_BINARY, "not": torch.logical_not, "bitnot": torch.bitwise_not}

_REDUCTIONS: dict[str, Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor]] = {
    "sum": lambda x, dims: x.sum(dims),
    "max": lambda x, dims: x.amax(dims),
    "min": lambda x, dims: x.amin(dims),
    "maximum": lambda x, dims: x.amax(dims),
    "minimum": lambda x, dims: x.amin(dims),
    "prod": lambda x, dims: _product(x, dims),
}


def _identity(kind: Combine, dtype: DType) -> bool | int | float:
    """What a reduction of nothing gives."""
    low, high = limits(dtype)
    return {"sum": 0, "prod": 1, "max": low, "maximum": low, "min": high, "minimum": high}[kind]


def torch_dtype(dtype: DType) -> torch.dtype:
    """The torch element type of the same name."""
    found = getattr(torch, dtype.value)
    assert isinstance(found, torch.dtype)
    return found


Axes = dict[int, tuple[torch.Tensor, int]]
"""Identity of an index array that runs over a whole axis of the body being evaluated -> the array, the axis."""


class Field:
    """A tensor of the lowering language that holds its elements. `axes`: those of the body that may read it."""

    def __init__(self, data: torch.Tensor, dtype: DType, axes: Axes) -> None:
        self.data, self._dtype, self._axes = data, dtype, axes

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, as the graph has them."""
        return tuple(self.data.shape)

    @property
    def dtype(self) -> DType:
        """Element type, as the graph has it."""
        return self._dtype

    def __call__(self, *indices: Expr) -> Expr:
        """The elements at `indices`: numbers, whole axes, or arrays of positions that broadcast."""
        places = [self._place(index, size) for index, size in zip(indices, self.shape, strict=True)]
        known = [p for p in places if p is not None]
        if len(known) == len(places) and len({p for p in known if p >= 0}) == sum(p >= 0 for p in known):
            return self._view(indices, known)
        return self.data[tuple(_inside(i, n) for i, n in zip(indices, self.shape, strict=True))]

    def _place(self, index: Expr, size: int) -> int | None:
        """Which axis of the body an index runs over in full; -1 for a number, None for anything else."""
        if isinstance(index, int):
            return -1
        held = self._axes.get(id(index))
        return held[1] if held is not None and held[0].numel() == size else None

    def _view(self, indices: Sequence[Expr], places: Sequence[int]) -> torch.Tensor:
        """The elements with every whole axis where the body has it."""
        chosen = tuple(
            _number(i, n) if p < 0 else slice(None) for i, p, n in zip(indices, places, self.shape, strict=True)
        )
        data = self.data[chosen]
        axes = [p for p in places if p >= 0]
        if not axes:
            return data
        order = sorted(range(len(axes)), key=lambda k: axes[k])
        rank = next(self._axes[id(i)][0].dim() for i, p in zip(indices, places, strict=True) if p >= 0)
        sizes = [1] * rank
        for k in order:
            sizes[axes[k]] = data.shape[k]
        return data.permute(order).reshape(sizes)


def _number(index: int, size: int) -> int:
    return min(max(index, 0), size - 1)


def _inside(index: Expr, size: int) -> Expr:
    if isinstance(index, int):
        return _number(index, size)
    return index.long().clamp(0, size - 1)


def _product(x: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    for dim in sorted(dims, reverse=True):
        x = x.prod(dim)
    return x


class TorchEmitter:
    """An `Emitter` (compiler.ir.op) whose tensors are torch tensors on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._axes: Axes = {}
        self._constants: dict[tuple[Any, ...], torch.Tensor] = {}

    def field(self, data: torch.Tensor, dtype: DType) -> Field:
        """A tensor with its elements."""
        return Field(data, dtype, self._axes)

    # ------------------------------------------------------------------ Emitter
    def compute(self, shape: Sequence[int], dtype: DType, body: Callable[..., Expr]) -> Field:
        """See `Emitter.compute`."""
        return self.field(self._evaluated(shape, dtype, body), dtype)

    def reduce(
        self,
        shape: Sequence[int],
        dtype: DType,
        extents: Sequence[int],
        kind: Combine,
        body: Callable[..., Expr],
    ) -> Field:
        """See `Emitter.reduce`."""
        if not extents:
            return self.compute(shape, dtype, body)
        if math.prod(extents) == 0:
            empty = torch.full(tuple(shape), _identity(kind, dtype), dtype=torch_dtype(dtype), device=self._device)
            return self.field(empty, dtype)
        whole = self._evaluated((*shape, *extents), dtype, body)
        dims = tuple(range(len(shape), len(shape) + len(extents)))
        return self.field(_REDUCTIONS[kind](whole, dims).to(torch_dtype(dtype)), dtype)

    def constant(self, array: np.ndarray) -> Field:
        """See `Emitter.constant`."""
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:  # made once: what comes from the host cannot be part of a recorded step
            self._constants[key] = torch.from_numpy(np.array(array)).to(self._device)
        return self.field(self._constants[key], DType(array.dtype.name))

    def const(self, value: bool | int | float, dtype: DType) -> Expr:
        """See `Emitter.const`."""
        return torch.full((), value, dtype=torch_dtype(dtype), device=self._device)

    def cast(self, value: Expr, dtype: DType) -> Expr:
        """See `Emitter.cast`."""
        return torch.as_tensor(value, device=self._device).to(torch_dtype(dtype))

    def select(self, condition: Expr, yes: Expr, no: Expr) -> Expr:
        """See `Emitter.select`; both branches are evaluated."""
        if isinstance(condition, bool):
            return yes if condition else no
        return torch.where(condition, yes, no)

    def call(self, function: str, *arguments: Expr) -> Expr:
        """See `Emitter.call`."""
        return _FUNCTIONS[function](*(torch.as_tensor(a, device=self._device) for a in arguments))

    def recurrent(self, site: Site, tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """See `Emitter.recurrent`."""
        given = [t.data if isinstance(t, Field) else None for t in tensors]
        made = zip(recurrent(site, given), site.results, strict=True)
        return tuple(self.field(data, value.dtype) for data, value in made)

    # ------------------------------------------------------------------ bodies
    def _evaluated(self, shape: Sequence[int], dtype: DType, body: Callable[..., Expr]) -> torch.Tensor:
        """[*shape]: the body on index arrays of every axis at once."""
        rank = len(shape)
        indices = [
            torch.arange(n, device=self._device).reshape([n if d == axis else 1 for d in range(rank)])
            for axis, n in enumerate(shape)
        ]
        outer = dict(self._axes)
        self._axes.clear()
        self._axes.update({id(index): (index, axis) for axis, index in enumerate(indices)})
        try:
            value = torch.as_tensor(body(*indices), device=self._device)
        finally:
            self._axes.clear()
            self._axes.update(outer)
        return value.to(torch_dtype(dtype)).expand(tuple(shape))
