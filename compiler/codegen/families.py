"""Which family of kernels fits a node; whether its lowering reduces. Pure Python, no TVM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from compiler.codegen.contractions import contraction
from compiler.ir.graph import Site
from compiler.ir.op import Expr, Tensor
from compiler.ir.types import DType, splat_value

Family = Literal[
    "conv",
    "siblings",
    "depthwise",
    "grouped",
    "transposed",
    "gemm",
    "contraction",
    "recurrent",
    "generic",
    "view",
]
"""What a group is; which algorithm runs it is chosen later among the strategies of its family."""

CONVOLUTIONS = ("conv", "siblings", "depthwise", "grouped", "transposed")
"""Families that read and write blocked activations with a halo."""

LEAST_GROUPED = 4
"""Input channels of a group from which on reading whole blocks of them wastes less than the generic route."""

_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


def fallback_family(site: Site) -> Family:
    """The family of a node that no template fits, or none is wanted for."""
    if site.node.op.name in _RECURRENT:
        return "recurrent"
    return "view" if site.node.op.reinterprets else "generic"


def family_of(site: Site) -> Family:
    """The family of templates that fits a node, else the generic route."""
    name = site.node.op.name
    if name in ("Conv", "ConvTranspose") and _weighted(site) and _constant_bias(site):
        return _conv_family(site) if name == "Conv" else _transposed_family(site)
    if name in ("Gemm", "MatMul") and _weighted(site) and _gemm_fits(site):
        return "gemm"
    return "contraction" if contraction(site) is not None else fallback_family(site)


def _conv_family(site: Site) -> Family:
    x, weight, group = site.operands[0], site.operands[1], site.int("group")
    if x.rank not in (3, 4) or min(x.shape) == 0 or any(p < 0 for p in site.ints("pads")):
        return "generic"
    if group == 1:
        return "conv"
    if group == x.shape[1] == weight.shape[0]:
        return "depthwise"
    return "grouped" if weight.shape[1] >= LEAST_GROUPED else "generic"


def _transposed_family(site: Site) -> Family:
    """Every output cell needs a tap, and taps that lie whole strides apart to be neighbours."""
    x, kernel, strides = site.operands[0], site.ints("kernel_shape"), site.ints("strides")
    if x.rank not in (3, 4) or min(x.shape) == 0 or site.int("group") != 1 or min(site.ints("pads")) < 0:
        return "generic"
    spread = zip(kernel, strides, site.ints("dilations"), strict=True)
    return "transposed" if all(k >= s and 1 in (s, d) for k, s, d in spread) else "generic"


def _gemm_fits(site: Site) -> bool:
    a, b, y = site.operands[0], site.operands[1], site.results[0]
    if b.rank != 2 or a.rank < 2 or y.size == 0 or a.size == 0:
        return False
    if site.node.op.name == "MatMul":
        return True
    bias = site.operands.optional(2)
    vector = bias is None or (
        bias.data is not None and bias.size in (1, y.shape[1]) and bias.shape[-1:] in ((), (1,), y.shape[1:])
    )
    if bias is not None and bias.rank == 2 and bias.shape[0] != 1:
        vector = False
    return vector and not site.int("transA")


def _weighted(site: Site) -> bool:
    """Whether float32 activations meet a constant worth packing; one of equal elements is better as a literal."""
    weight = site.operands[1].data
    float_result = site.operands[0].data is None and site.results[0].dtype is DType.FLOAT32
    return float_result and weight is not None and splat_value(weight) is None


def _constant_bias(site: Site) -> bool:
    """Whether there is no bias, or a constant one."""
    bias = site.operands.optional(2)
    return bias is None or bias.data is not None


# ---------------------------------------------------------------------- reductions
class _Probe:
    """An emitter that only notes whether an operator's lowering reduces; bodies are never called."""

    def __init__(self) -> None:
        self.reduces = False

    def compute(self, shape: Sequence[int], dtype: DType, body: Callable[..., Expr]) -> Tensor:
        return _Stub(tuple(shape), dtype)

    def reduce(
        self, shape: Sequence[int], dtype: DType, extents: Sequence[int], kind: str, body: Callable[..., Expr]
    ) -> Tensor:
        self.reduces = True
        return _Stub(tuple(shape), dtype)

    def constant(self, array: np.ndarray) -> Tensor:
        return _Stub(tuple(array.shape), DType(array.dtype.name))

    def const(self, value: bool | int | float, dtype: DType) -> Expr:
        return value

    def cast(self, value: Expr, dtype: DType) -> Expr:
        return value

    def select(self, condition: Expr, yes: Expr, no: Expr) -> Expr:
        return yes

    def call(self, function: str, *arguments: Expr) -> Expr:
        return arguments[0]

    def recurrent(self, site: Site, tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        self.reduces = True
        return tuple(_Stub(v.shape, v.dtype) for v in site.results)


@dataclass(frozen=True)
class _Stub:
    shape: tuple[int, ...]
    dtype: DType

    def __call__(self, *indices: Expr) -> Expr:
        return 0


def reduces(site: Site) -> bool:
    """Whether the generic lowering of this node contains a reduction."""
    probe: Any = _Probe()
    tensors = [
        None if (v := site.operands.optional(i)) is None else _Stub(v.shape, v.dtype)
        for i in range(len(site.operands))
    ]
    site.node.op.lower(probe, site, *tensors)
    return bool(probe.reduces)
