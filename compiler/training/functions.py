"""Operators that torch has a fast function for; every other one runs by its own lowering.

A function returns None where its site has something that torch's does not: then the lowering runs too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from compiler.ir.graph import Site

Function = Callable[[Site, Sequence[Tensor | None]], Tensor | None]

FUNCTIONS: dict[str, Function] = {}
"""Operator name -> its first result from its operands by formal position, for sites with one result."""


def _of(name: str) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        FUNCTIONS[name] = function
        return function

    return register


def _given(tensors: Sequence[Tensor | None], index: int) -> Tensor:
    found = tensors[index]
    assert found is not None
    return found


def _optional(tensors: Sequence[Tensor | None], index: int) -> Tensor | None:
    return tensors[index] if index < len(tensors) else None


def _padded(site: Site, x: Tensor, fill: float) -> tuple[Tensor, tuple[int, ...]]:
    """x, and the pads that are left for torch: equal ones on both sides; unequal ones are applied here."""
    pads = site.ints("pads")
    half = len(pads) // 2
    low, high = pads[:half], pads[half:]
    if low == high:
        return x, low
    edges = [edge for pair in zip(reversed(low), reversed(high), strict=True) for edge in pair]
    return F.pad(x, edges, value=fill), (0,) * half


@_of("Conv")
def _conv(site: Site, tensors: Sequence[Tensor | None]) -> Tensor | None:
    x, weight, bias = _given(tensors, 0), _given(tensors, 1), _optional(tensors, 2)
    by_rank = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
    if x.dim() not in by_rank or not x.numel():  # of no input channels torch makes no outputs
        return None
    x, pads = _padded(site, x, 0.0)
    found: Tensor = by_rank[x.dim()](
        x, weight, bias, site.ints("strides"), pads, site.ints("dilations"), site.int("group")
    )
    return found


@_of("ConvTranspose")
def _conv_transpose(site: Site, tensors: Sequence[Tensor | None]) -> Tensor | None:
    x, weight, bias = _given(tensors, 0), _given(tensors, 1), _optional(tensors, 2)
    by_rank = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}
    if x.dim() not in by_rank or not x.numel():
        return None
    strides, dilations = site.ints("strides"), site.ints("dilations")
    found: Tensor = by_rank[x.dim()](x, weight, None, strides, 0, 0, site.int("group"), dilations)
    lows = site.ints("pads")[: x.dim() - 2]
    edges: list[int] = []
    for low, made, wanted in reversed(list(zip(lows, found.shape[2:], site.results[0].shape[2:], strict=True))):
        edges += [-low, wanted + low - made]  # cut away, or added where no tap reaches
    found = F.pad(found, edges)
    return found if bias is None else found + bias.reshape(-1, *(1,) * (x.dim() - 2))


@_of("Gemm")
def _gemm(site: Site, tensors: Sequence[Tensor | None]) -> Tensor:
    a, b, addend = _given(tensors, 0), _given(tensors, 1), _optional(tensors, 2)
    product = (a.T if site.int("transA") else a) @ (b.T if site.int("transB") else b)
    alpha, beta = site.float("alpha"), site.float("beta")
    product = product if alpha == 1 else product * alpha
    if addend is None:
        return product
    return product + (addend if beta == 1 else addend * beta)


@_of("MatMul")
def _matmul(site: Site, tensors: Sequence[Tensor | None]) -> Tensor:
    return torch.matmul(_given(tensors, 0), _given(tensors, 1))


@_of("Concat")
def _concat(site: Site, tensors: Sequence[Tensor | None]) -> Tensor:
    return torch.cat([t for t in tensors if t is not None], site.int("axis"))


@_of("Add")
def _add(site: Site, tensors: Sequence[Tensor | None]) -> Tensor:
    return _given(tensors, 0) + _given(tensors, 1)


@_of("Relu")
def _relu(site: Site, tensors: Sequence[Tensor | None]) -> Tensor:
    return torch.relu(_given(tensors, 0))


@_of("MaxPool")
def _max_pool(site: Site, tensors: Sequence[Tensor | None]) -> Tensor | None:
    x = _given(tensors, 0)
    by_rank = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}
    if x.dim() not in by_rank or site.int("ceil_mode") or not x.is_floating_point():
        return None
    x, pads = _padded(site, x, -torch.inf)
    if any(2 * p > k for p, k in zip(pads, site.ints("kernel_shape"), strict=True)):
        return None
    # on a CPU torch pools several times faster where channels are innermost
    x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    found: Tensor = by_rank[x.dim()](
        x, site.ints("kernel_shape"), site.ints("strides"), pads, site.ints("dilations")
    )
    return found


@_of("AveragePool")
def _average_pool(site: Site, tensors: Sequence[Tensor | None]) -> Tensor | None:
    x = _given(tensors, 0)
    by_rank = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}
    pads, kernel = site.ints("pads"), site.ints("kernel_shape")
    half = len(pads) // 2
    even = pads[:half] == pads[half:] and all(2 * p <= k for p, k in zip(pads, kernel, strict=False))
    if x.dim() not in by_rank or site.int("ceil_mode") or set(site.ints("dilations")) != {1} or not even:
        return None
    counted = bool(site.int("count_include_pad"))
    found: Tensor = by_rank[x.dim()](
        x, kernel, site.ints("strides"), pads[:half], ceil_mode=False, count_include_pad=counted
    )
    return found
