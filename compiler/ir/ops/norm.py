"""Normalisation by stored statistics, by statistics of the input, and by norms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.errors import UnsupportedModelError
from compiler.ir.graph import Attrs, Node, Operands, Site
from compiler.ir.op import Emitter, Expr, Op, Tensor, Tie, identity, mixed
from compiler.ir.ops.elementwise import aligned, broadcast_ties, required
from compiler.ir.ops.softmax import mixing_ties
from compiler.ir.types import Axis, DType, TensorType


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
        if operands[0].rank < 2:
            raise UnsupportedModelError(
                "BatchNormalization of a tensor without channels (one axis); give it the shape [N, 1]"
            )
        return {"epsilon": 1e-5, "momentum": 0.9, "training_mode": 0, **attrs}

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x = required(arrays)
        shape = (-1, *(1,) * (x.ndim - 2))
        scale, bias, mean, variance = (a.reshape(shape) for a in arrays[1:] if a is not None)
        factor = scale / np.sqrt(variance + np.asarray(site.float("epsilon"), variance.dtype))
        return (((x - mean) * factor + bias).astype(x.dtype),)

    def ties(self, site: Site) -> Iterator[Tie]:
        x, y = site.operands[0], site.results[0]
        yield from (identity(x, dim, y, dim) for dim in range(x.rank))
        yield from (identity(p, 0, y, 1) for p in site.operands[1:])

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, scale, bias, mean, variance = (required(tensors, i) for i in range(5))
        y, epsilon = site.results[0], emit.const(site.float("epsilon"), variance.dtype)
        if all(v.data is not None for v in site.operands[1:]):
            return (self._affine(emit, site, x),)

        def element(n: Expr, c: Expr, *at: Expr) -> Expr:
            factor = scale(c) / emit.call("sqrt", variance(c) + epsilon)
            return emit.cast((x(n, c, *at) - mean(c)) * factor + bias(c), y.dtype)

        return (emit.compute(y.shape, y.dtype, element),)

    def _affine(self, emit: Emitter, site: Site, x: Tensor) -> Tensor:
        """x factor + shift, with constants known here."""
        scale, bias, mean, variance = (v.constant.astype(np.float64) for v in site.operands[1:5])
        factor, y = scale / np.sqrt(variance + site.float("epsilon")), site.results[0]
        kind = site.operands[4].dtype
        tables = [emit.constant(a.astype(kind.numpy)) for a in (factor, bias - mean * factor)]

        def element(n: Expr, c: Expr, *at: Expr) -> Expr:
            return emit.cast(x(n, c, *at) * tables[0](c) + tables[1](c), y.dtype)

        return emit.compute(y.shape, y.dtype, element)


# ---------------------------------------------------------------------- statistics of the input
@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and variance of blocks of x; both tensors are indexed by the block."""

    mean: Tensor
    variance: Tensor

    @classmethod
    def of(
        cls,
        emit: Emitter,
        blocks: Sequence[int],
        inner: Sequence[int],
        dtype: DType,
        element: Callable[[Sequence[Expr], Sequence[Expr]], Expr],
    ) -> Moments:
        """Moments over `inner` of `element(block, within)`, the variance in a second sweep (no cancellation)."""
        count, rank = emit.const(math.prod(inner), dtype), len(blocks)
        total = emit.reduce(blocks, dtype, inner, "sum", lambda *at: element(at[:rank], at[rank:]))
        mean = emit.compute(blocks, dtype, lambda *at: total(*at) / count)

        def square(*at: Expr) -> Expr:
            deviation = element(at[:rank], at[rank:]) - mean(*at[:rank])
            return deviation * deviation

        squares = emit.reduce(blocks, dtype, inner, "sum", square)
        return cls(mean, emit.compute(blocks, dtype, lambda *at: squares(*at) / count))


def wide(dtype: DType) -> DType:
    """The type statistics are computed in: float32 for float16."""
    return DType.FLOAT32 if dtype is DType.FLOAT16 else dtype


class Standardised(Normalisation):
    """(x - mean) / sqrt(variance + epsilon) with moments of blocks of x, then an optional scale and bias."""

    cost = 7

    def standardise(
        self,
        emit: Emitter,
        site: Site,
        x: Tensor,
        moments: Moments,
        block: Callable[[Sequence[Expr]], Sequence[Expr]],
        affine: Callable[[Expr, Sequence[Expr]], Expr],
    ) -> Tensor:
        """Result 0; `block` maps an index of x to its block, `affine` applies scale and bias at an index."""
        y, kind = site.results[0], wide(x.dtype)
        epsilon = emit.const(site.float("epsilon"), kind)

        def element(*at: Expr) -> Expr:
            own = block(at)
            deviation = emit.cast(x(*at), kind) - moments.mean(*own)
            scaled = deviation / emit.call("sqrt", moments.variance(*own) + epsilon)
            return emit.cast(affine(scaled, at), y.dtype)

        return emit.compute(y.shape, y.dtype, element)


class InstanceNormalization(Standardised):
    """Moments of each plane of x [N, C, ...]; scale [C] and bias [C]."""

    name = "InstanceNormalization"

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        return {"epsilon": 1e-5, **attrs}

    def ties(self, site: Site) -> Iterator[Tie]:
        yield from mixing_ties(site, range(2, site.operands[0].rank))
        yield from (identity(p, 0, site.results[0], 1) for p in site.operands[1:])

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, scale, bias = (required(tensors, i) for i in range(3))
        kind = wide(x.dtype)
        moments = Moments.of(
            emit, x.shape[:2], x.shape[2:], kind, lambda block, at: emit.cast(x(*block, *at), kind)
        )

        def affine(value: Expr, at: Sequence[Expr]) -> Expr:
            return value * emit.cast(scale(at[1]), kind) + emit.cast(bias(at[1]), kind)

        return (self.standardise(emit, site, x, moments, lambda at: at[:2], affine),)


class GroupNormalization(Standardised):
    """Moments of each run of C / num_groups channels of x [N, C, ...]; scale [C] and bias [C]."""

    name = "GroupNormalization"

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        return {"epsilon": 1e-5, "stash_type": 1, **attrs}

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        return (TensorType(operands[0].dtype, operands[0].shape),)  # ONNX has no inference for it

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x, scale, bias = arrays
        assert x is not None and scale is not None and bias is not None
        kind, shape = wide(site.results[0].dtype).numpy, (-1, *(1,) * (x.ndim - 2))
        rows = x.astype(kind).reshape(x.shape[0], site.int("num_groups"), -1)
        deviation = rows - rows.mean(axis=2, keepdims=True)
        spread = np.sqrt((deviation**2).mean(axis=2, keepdims=True) + np.asarray(site.float("epsilon"), kind))
        unit = (deviation / spread).reshape(x.shape)
        return ((unit * scale.astype(kind).reshape(shape) + bias.astype(kind).reshape(shape)).astype(x.dtype),)

    def ties(self, site: Site) -> Iterator[Tie]:
        x = site.operands[0]
        each = x.shape[1] // site.int("num_groups")
        yield from mixing_ties(site, range(1, x.rank))
        yield mixed(Axis(site.node.ref, "slot"), x.axis(1), np.arange(x.shape[1]) % each)  # equal count per group
        yield from (identity(p, 0, site.results[0], 1) for p in site.operands[1:])

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, scale, bias = (required(tensors, i) for i in range(3))
        groups, kind = site.int("num_groups"), wide(x.dtype)
        each = x.shape[1] // groups

        def element(block: Sequence[Expr], at: Sequence[Expr]) -> Expr:
            return emit.cast(x(block[0], block[1] * each + at[0], *at[1:]), kind)

        moments = Moments.of(emit, (x.shape[0], groups), (each, *x.shape[2:]), kind, element)

        def affine(value: Expr, at: Sequence[Expr]) -> Expr:
            return value * emit.cast(scale(at[1]), kind) + emit.cast(bias(at[1]), kind)

        return (self.standardise(emit, site, x, moments, lambda at: (at[0], at[1] // each), affine),)


class LayerNormalization(Standardised):
    """Moments over the axes from `axis` on; scale and optional bias broadcast to them.

    Results: y, and on request mean and 1 / sqrt(variance + epsilon), of size 1 along the normalised axes.
    """

    name = "LayerNormalization"

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        axis = attrs.get("axis", -1) % operands[0].rank
        return {"epsilon": 1e-5, "stash_type": 1, **attrs, "axis": axis}

    def ties(self, site: Site) -> Iterator[Tie]:
        x, axis = site.operands[0], site.int("axis")
        yield from mixing_ties(site, range(axis, x.rank))
        for parameter in site.operands[1:]:
            yield from broadcast_ties(parameter, site.results[0])
        for statistic in site.results[1:]:
            yield from (identity(x, dim, statistic, dim) for dim in range(axis))

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, scale, axis = required(tensors), required(tensors, 1), site.int("axis")
        bias, kind = (tensors[2] if len(tensors) > 2 else None), wide(x.dtype)
        moments = Moments.of(
            emit, x.shape[:axis], x.shape[axis:], kind, lambda block, at: emit.cast(x(*block, *at), kind)
        )

        def affine(value: Expr, at: Sequence[Expr]) -> Expr:
            value = value * emit.cast(aligned(scale, at), kind)
            return value if bias is None else value + emit.cast(aligned(bias, at), kind)

        y = self.standardise(emit, site, x, moments, lambda at: at[:axis], affine)
        return (y, *self._statistics(emit, site, moments))[: len(site.results)]

    def _statistics(self, emit: Emitter, site: Site, moments: Moments) -> Iterator[Tensor]:
        axis, kind = site.int("axis"), moments.mean.dtype
        epsilon, one = emit.const(site.float("epsilon"), kind), emit.const(1, kind)
        mean, variance = moments.mean, moments.variance
        for result, body in zip(
            site.results[1:],
            (
                lambda *at: mean(*at[:axis]),
                lambda *at: one / emit.call("sqrt", variance(*at[:axis]) + epsilon),
            ),
            strict=False,
        ):
            yield emit.compute(result.shape, result.dtype, body)


class MeanVarianceNormalization(Normalisation):
    """(x - mean) / (standard deviation + 1e-9) with moments over `axes`."""

    name = "MeanVarianceNormalization"
    cost = 5

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        rank = operands[0].rank
        return {"axes": tuple(sorted(a % rank for a in attrs.get("axes") or (0, 2, 3)))}

    def ties(self, site: Site) -> Iterator[Tie]:
        return mixing_ties(site, site.ints("axes"))

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x, axes = required(arrays), site.ints("axes")
        deviation = x - x.mean(axis=axes, keepdims=True)
        spread = np.sqrt((deviation**2).mean(axis=axes, keepdims=True))
        return ((deviation / (spread + np.asarray(1e-9, x.dtype))).astype(x.dtype),)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y, axes = required(tensors), site.results[0], site.ints("axes")
        outer = [dim for dim in range(len(x.shape)) if dim not in axes]

        def element(block: Sequence[Expr], at: Sequence[Expr]) -> Expr:
            index = dict(zip([*outer, *axes], [*block, *at], strict=True))
            return x(*(index[dim] for dim in range(len(x.shape))))

        inner = [x.shape[dim] for dim in axes]
        moments = Moments.of(emit, [x.shape[dim] for dim in outer], inner, y.dtype, element)
        tiny = emit.const(1e-9, y.dtype)

        def standard(*at: Expr) -> Expr:
            own = [at[dim] for dim in outer]
            return (x(*at) - moments.mean(*own)) / (emit.call("sqrt", moments.variance(*own)) + tiny)

        return (emit.compute(y.shape, y.dtype, standard),)


# ---------------------------------------------------------------------- norms
class LRN(Normalisation):
    """x / (bias + alpha / size * sum of squares over `size` neighbouring channels) ** beta (AlexNet, 2012)."""

    name = "LRN"
    cost = 5

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        return {"alpha": 1e-4, "beta": 0.75, "bias": 1.0, **attrs}

    def flops(self, site: Site) -> int:
        return (self.cost + 2 * site.int("size")) * site.results[0].size

    def ties(self, site: Site) -> Iterator[Tie]:
        return mixing_ties(site, [1])

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x, size = required(arrays), site.int("size")
        before = (size - 1) // 2
        edges = [(0, 0), (before, size - 1 - before)] + [(0, 0)] * (x.ndim - 2)
        squares = np.pad(x * x, edges)
        total = np.sum([squares[:, i : i + x.shape[1]] for i in range(size)], axis=0)
        scale = site.float("bias") + site.float("alpha") / size * total
        return ((x / scale ** site.float("beta")).astype(x.dtype),)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y, size = required(tensors), site.results[0], site.int("size")
        before, zero = (size - 1) // 2, emit.const(0, y.dtype)

        def square(n: Expr, c: Expr, *rest: Expr) -> Expr:
            at, where = rest[:-1], c + rest[-1] - before
            value = x(n, where, *at)
            inside = emit.call("and", where >= 0, where < x.shape[1])
            return emit.select(inside, value * value, zero)

        total = emit.reduce(y.shape, y.dtype, (size,), "sum", square)
        factor = emit.const(site.float("alpha") / size, y.dtype)
        bias, beta = emit.const(site.float("bias"), y.dtype), emit.const(site.float("beta"), y.dtype)

        def element(*at: Expr) -> Expr:
            return x(*at) / emit.call("pow", bias + factor * total(*at), beta)

        return (emit.compute(y.shape, y.dtype, element),)


class LpNormalization(Normalisation):
    """x / (sum |x| ** p along the axis) ** (1 / p) for p 1 or 2; zero where the norm is zero."""

    name = "LpNormalization"
    cost = 3

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        return {"p": 2, **attrs, "axis": attrs.get("axis", -1) % operands[0].rank}

    def ties(self, site: Site) -> Iterator[Tie]:
        return mixing_ties(site, [site.int("axis")])

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x, axis = required(arrays), site.int("axis")
        norm = np.linalg.norm(x, site.int("p"), axis=axis, keepdims=True).astype(x.dtype)
        return (np.divide(x, norm, out=np.zeros_like(x), where=norm != 0),)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y, axis, p = required(tensors), site.results[0], site.int("axis"), site.int("p")
        zero = emit.const(0, y.dtype)

        def term(*at: Expr) -> Expr:
            value = x(*at[:axis], at[-1], *at[axis:-1])
            return value * value if p == 2 else emit.call("abs", value)

        lead = (*y.shape[:axis], *y.shape[axis + 1 :])
        total = emit.reduce(lead, y.dtype, (x.shape[axis],), "sum", term)

        def element(*at: Expr) -> Expr:
            sum_ = total(*at[:axis], *at[axis + 1 :])
            norm = emit.call("sqrt", sum_) if p == 2 else sum_
            return emit.select(norm > zero, x(*at) / norm, zero)

        return (emit.compute(y.shape, y.dtype, element),)
