"""Linear layers with constant weights, and what scale, shift and order of channels do to those weights."""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace

import numpy as np

from compiler.ir.graph import Graph, Node, Site, Value
from compiler.ir.op import operator
from compiler.ir.ops.conv import Convolving
from compiler.ir.types import ValueRef


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """`x * scale + shift` per channel: two float64 vectors of equal length."""

    scale: np.ndarray
    shift: np.ndarray

    @classmethod
    def identity(cls, size: int) -> Affine:
        """Scale 1, shift 0."""
        return cls(np.ones(size), np.zeros(size))

    def then(self, after: Affine) -> Affine:
        """This one first, `after` behind it."""
        return Affine(self.scale * after.scale, self.shift * after.scale + after.shift)

    @property
    def shifts(self) -> bool:
        """Whether any channel has a shift."""
        return bool(self.shift.any())

    @property
    def scales(self) -> bool:
        """Whether any channel has a scale other than 1."""
        return bool((self.scale != 1).any())


def per_output(bias: Value, count: int) -> bool:
    """Whether a bias is a number for each of `count` outputs; as many of a Gemm may also be one for each row."""
    return bias.rank > 0 and bias.size == count == bias.shape[-1]


def lies_along(constant: Value, result: Value, axis: int) -> bool:
    """Whether a constant added to a result has a number for every entry of one axis, alike along the others."""
    shape = (1,) * (result.rank - constant.rank) + constant.shape
    wanted = tuple(n if d == axis else 1 for d, n in enumerate(result.shape))
    return shape == wanted


def only_reader(graph: Graph, ref: ValueRef) -> Node | None:
    """The node that alone reads a value, once, if no task returns the value."""
    uses = graph.uses(ref)
    return uses[0][0] if len(uses) == 1 and not graph.is_output(ref) else None


def channel_dim(site: Site, value: Value) -> int:
    """The axis along which a layer has the channels of what it reads or makes."""
    return 1 if isinstance(site.node.op, Convolving) else value.rank - 1


@dataclass(frozen=True, slots=True, eq=False)
class Layer(abc.ABC):
    """A node y = W x + b whose W, and b if there is one, are constant."""

    site: Site

    @property
    def result(self) -> Value:
        return self.site.results[0]

    @property
    def weight(self) -> np.ndarray:
        """The constant weight in float64."""
        return self.site.operands[1].constant.astype(np.float64)

    @property
    def groups(self) -> int:
        return self.site.int("group") if "group" in self.site.attrs else 1

    @property
    def output_axis(self) -> int:
        """Axis of the result that counts output channels."""
        return 1

    @property
    def input_axis(self) -> int:
        """Axis of operand 0 that counts input channels."""
        return 1

    def gains(self, total: Affine, nodes: int) -> bool:
        """Whether absorbing `nodes` affine nodes behind the layer leaves fewer nodes."""
        return True

    @abc.abstractmethod
    def takes_before(self, affine: Affine) -> bool:
        """Whether an affine node in front of the layer can be absorbed exactly."""

    def takes_order(self, axis: int) -> bool:
        """Whether a permutation along `axis` of the operand can be absorbed exactly."""
        return axis == self.input_axis and self.groups == 1

    @abc.abstractmethod
    def scaled_output(self, scale: np.ndarray) -> np.ndarray:
        """The weight with every output channel scaled."""

    @abc.abstractmethod
    def scaled_input(self, scale: np.ndarray) -> np.ndarray:
        """The weight with every input channel scaled."""

    @abc.abstractmethod
    def response(self, shift: np.ndarray) -> np.ndarray:
        """What a constant vector of input channels adds to every output channel."""

    @abc.abstractmethod
    def reordered(self, order: np.ndarray) -> np.ndarray:
        """The weight for inputs before the permutation `x[order]`."""

    def absorb_after(self, graph: Graph, affine: Affine, last: Value) -> None:
        """Fold an affine map of the result in; readers of `last` read the layer instead."""
        self._set(graph, 1, self.scaled_output(affine.scale))
        self._set_bias(graph, self._bias() * affine.scale + affine.shift)
        graph.replace_uses(last.ref, self.result.ref)

    def absorb_before(self, graph: Graph, affine: Affine, x: Value) -> None:
        """Fold an affine map of the operand in; the layer reads `x`, what the affine node read."""
        self._set(graph, 1, self.scaled_input(affine.scale))
        if affine.shifts:
            self._set_bias(graph, self._bias() + self.response(affine.shift))
        graph.set_operand(self.site.node.ref, 0, x.ref)

    def absorb_order(self, graph: Graph, order: np.ndarray, x: Value) -> None:
        """Fold the permutation `x[order]` of input channels in; the layer reads `x`."""
        self._set(graph, 1, self.reordered(order))
        graph.set_operand(self.site.node.ref, 0, x.ref)

    def _bias(self) -> np.ndarray:
        """The bias in float64; zero where there is none."""
        value = self.site.operands.optional(2)
        return np.zeros(()) if value is None else value.constant.astype(np.float64)

    def _set_bias(self, graph: Graph, bias: np.ndarray) -> None:
        if bias.any() or self.site.operands.optional(2) is not None:
            self._set(graph, 2, bias)

    def _set(self, graph: Graph, index: int, data: np.ndarray) -> None:
        old = self.site.operands.optional(index)
        array = data.astype(self.result.dtype.numpy)
        if old is not None and old.shape == array.shape and only_reader(graph, old.ref) is not None:
            graph.update(old.ref, data=array)
            return
        hint = old.ref.name if old is not None else f"{self.site.node.ref}_bias"
        name = graph.fresh(hint)
        if old is not None and old.shape == array.shape:
            encoding = old.type.encoding.adapted(old.constant, array)
            new = graph.add_value(name, replace(old.type, encoding=encoding), array)
        else:
            new = graph.add_parameter(name, array)
        graph.set_operand(self.site.node.ref, index, new.ref)


def _times(a: np.ndarray, b: np.ndarray | float) -> np.ndarray:
    return np.asarray(a * b)


def _blocks(vector: np.ndarray, groups: int, rank: int) -> np.ndarray:
    """A vector of (group, member) as [groups, 1, members, 1 ...] or [groups, members, 1 ...] for broadcasting."""
    return vector.reshape(groups, -1, *(1,) * rank)


class ConvLayer(Layer):
    """Weight [O, C / group, taps...]; output channels number group * rows + row."""

    def takes_before(self, affine: Affine) -> bool:
        return not affine.shifts or not any(self.site.ints("pads"))

    def scaled_output(self, scale: np.ndarray) -> np.ndarray:
        return _times(self.weight, scale.reshape(-1, *(1,) * (self.weight.ndim - 1)))

    def scaled_input(self, scale: np.ndarray) -> np.ndarray:
        w = self.weight
        grouped = w.reshape(self.groups, -1, *w.shape[1:])
        return _times(grouped, _blocks(scale, self.groups, w.ndim - 2)[:, None]).reshape(w.shape)

    def response(self, shift: np.ndarray) -> np.ndarray:
        taps = self.scaled_input(shift)
        return np.asarray(taps.reshape(len(taps), -1).sum(axis=1))

    def reordered(self, order: np.ndarray) -> np.ndarray:
        return np.take(self.weight, np.argsort(order), axis=1)


class ConvTransposeLayer(Layer):
    """Weight [C, O / group, taps...]; input channels number group * columns + column."""

    def takes_before(self, affine: Affine) -> bool:
        return not affine.shifts  # taps overlap differently at the border

    def scaled_output(self, scale: np.ndarray) -> np.ndarray:
        w = self.weight
        grouped = w.reshape(self.groups, -1, *w.shape[1:])
        return _times(grouped, _blocks(scale, self.groups, w.ndim - 2)[:, None]).reshape(w.shape)

    def scaled_input(self, scale: np.ndarray) -> np.ndarray:
        return _times(self.weight, scale.reshape(-1, *(1,) * (self.weight.ndim - 1)))

    def response(self, shift: np.ndarray) -> np.ndarray:
        raise AssertionError("takes_before refuses a shift")

    def reordered(self, order: np.ndarray) -> np.ndarray:
        return np.take(self.weight, np.argsort(order), axis=0)


class GemmLayer(Layer):
    """alpha * A B + beta * C; B is [K, N], or [N, K] with transB."""

    def _along(self, vector: np.ndarray, output: bool) -> np.ndarray:
        return vector[:, None] if output == bool(self.site.int("transB")) else vector[None, :]

    def takes_before(self, affine: Affine) -> bool:
        return not self.site.int("transA")

    def takes_order(self, axis: int) -> bool:
        return super().takes_order(axis) and not self.site.int("transA")

    def scaled_output(self, scale: np.ndarray) -> np.ndarray:
        return _times(self.weight, self._along(scale, output=True))

    def scaled_input(self, scale: np.ndarray) -> np.ndarray:
        return _times(self.weight, self._along(scale, output=False))

    def response(self, shift: np.ndarray) -> np.ndarray:
        total = self.scaled_input(shift).sum(axis=1 if self.site.int("transB") else 0)
        return _times(total, self.site.float("alpha"))

    def reordered(self, order: np.ndarray) -> np.ndarray:
        return np.take(self.weight, np.argsort(order), axis=1 if self.site.int("transB") else 0)

    def _bias(self) -> np.ndarray:
        return _times(super()._bias(), self.site.float("beta"))

    def _set_bias(self, graph: Graph, bias: np.ndarray) -> None:
        graph.update(self.site.node.ref, attrs={**self.site.attrs, "beta": 1.0})
        super()._set_bias(graph, bias)


class MatMulLayer(Layer):
    """x [..., K] times W [K, N]; there is no bias, so a shift stays an Add behind the product."""

    @property
    def output_axis(self) -> int:
        return self.result.rank - 1

    @property
    def input_axis(self) -> int:
        return self.site.operands[0].rank - 1

    def gains(self, total: Affine, nodes: int) -> bool:
        return nodes > 1 or total.scales

    def takes_before(self, affine: Affine) -> bool:
        return not affine.shifts

    def scaled_output(self, scale: np.ndarray) -> np.ndarray:
        return _times(self.weight, scale)

    def scaled_input(self, scale: np.ndarray) -> np.ndarray:
        return _times(self.weight, scale[:, None])

    def response(self, shift: np.ndarray) -> np.ndarray:
        raise AssertionError("takes_before refuses a shift")

    def reordered(self, order: np.ndarray) -> np.ndarray:
        return np.take(self.weight, np.argsort(order), axis=0)

    def absorb_after(self, graph: Graph, affine: Affine, last: Value) -> None:
        """Scale the weight; the shift becomes one Add."""
        self._set(graph, 1, self.scaled_output(affine.scale))
        end = self.result.ref
        if affine.shifts:
            end = _shifted(graph, self.site.node, self.result, affine.shift)
        graph.replace_uses(last.ref, end)


def _shifted(graph: Graph, node: Node, x: Value, shift: np.ndarray) -> ValueRef:
    constant = graph.add_parameter(graph.fresh(f"{node.ref}_shift"), shift.astype(x.dtype.numpy))
    result = graph.add_value(graph.fresh(f"{node.ref}_shifted"), x.type)
    graph.add_node(graph.fresh(f"{node.ref}_add"), operator("Add"), {}, [x.ref, constant.ref], [result.ref])
    return result.ref


_LAYERS: dict[str, type[Layer]] = {
    "Conv": ConvLayer,
    "ConvTranspose": ConvTransposeLayer,
    "Gemm": GemmLayer,
    "MatMul": MatMulLayer,
}

LARGEST = 1 << 30
"""Bytes of a weight beyond which it is left alone: a splat of that size would be written out."""


def layer_of(graph: Graph, node: Node) -> Layer | None:
    """The node as a linear layer, if it is one with constant float weights."""
    kind = _LAYERS.get(node.op.name)
    if kind is None:
        return None
    site = graph.site(node)
    data = site.operands[0].data is None
    constant = all(v.data is not None for _, v in site.operands.present()[1:])
    weight = site.operands[1].type
    plain = kind is not MatMulLayer or (weight.rank == 2 and site.operands[0].rank > 1)
    fits = weight.dtype.is_float and weight.bytes <= LARGEST
    return kind(site) if data and constant and plain and fits else None
