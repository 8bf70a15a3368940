"""Normalisation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from compiler.errors import UnsupportedModelError
from compiler.ir.graph import Attrs, Operands, Site
from compiler.ir.op import Emitter, Expr, Op, Tensor, Tie, identity
from compiler.ir.ops.elementwise import required


class Normalisation(Op):
    """x with its result of the same shape."""

    cost = 1
    """Scalar operations per element (docs/cost.md)."""

    def flops(self, site: Site) -> int:
        return self.cost * site.results[0].size


class BatchNormalization(Normalisation):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias per channel, with stored statistics."""

    name = "BatchNormalization"
    cost = 2

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        if attrs.get("training_mode", 0):
            raise UnsupportedModelError(
                "BatchNormalization with training_mode=1 computes statistics of the batch; export the model for "
                "inference (in PyTorch: model.eval() before export)"
            )
        return {"epsilon": 1e-5, "momentum": 0.9, "training_mode": 0, **attrs}

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x = arrays[0]
        assert x is not None
        shape = (-1, *(1,) * (x.ndim - 2))
        scale, bias, mean, variance = (a.reshape(shape) for a in arrays[1:] if a is not None)
        factor = scale / np.sqrt(variance + np.asarray(site.float("epsilon"), x.dtype))
        return ((x - mean) * factor + bias,)

    def ties(self, site: Site) -> Iterator[Tie]:
        x, y = site.operands[0], site.results[0]
        yield from (identity(x, dim, y, dim) for dim in range(x.rank))
        yield from (identity(p, 0, y, 1) for p in site.operands[1:])

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, scale, bias, mean, variance = (required(tensors, i) for i in range(5))
        y, epsilon = site.results[0], emit.const(site.float("epsilon"), variance.dtype)

        def element(n: Expr, c: Expr, *at: Expr) -> Expr:
            factor = scale(c) / emit.call("sqrt", variance(c) + epsilon)
            return (x(n, c, *at) - mean(c)) * factor + bias(c)

        return (emit.compute(y.shape, y.dtype, element),)
