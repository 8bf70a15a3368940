"""Small graphs for tests, built node by node; defaults of attributes come from the ONNX schemas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

import compiler.ir.ops  # noqa: F401  (fills the registry)
from compiler.ir.graph import Graph, Node, NodeRef, Operands
from compiler.ir.op import OPSET, operator
from compiler.ir.types import DType, TensorType, ValueRef


def defaults(op_type: str) -> dict[str, Any]:
    """The attribute defaults of the operator's schema at the pinned opset."""
    found: dict[str, Any] = {}
    for name, attribute in onnx.defs.get_schema(op_type, OPSET).attributes.items():
        if attribute.default_value.type:
            value = helper.get_attribute_value(attribute.default_value)
            value = value.decode() if isinstance(value, bytes) else value
            found[name] = tuple(value) if isinstance(value, list) else value
    return found


class Builder:
    """Adds nodes to a graph; names are generated."""

    def __init__(self, name: str = "net", seed: int = 0) -> None:
        self.graph = Graph(name)
        self.rng = np.random.default_rng(seed)

    def input(self, name: str, *shape: int, dtype: DType = DType.FLOAT32) -> ValueRef:
        """A graph input."""
        return self.graph.add_input(name, TensorType(dtype, shape)).ref

    def const(self, array: Any, name: str = "p") -> ValueRef:
        """A parameter."""
        return self.graph.add_parameter(self.graph.fresh(name), np.asarray(array)).ref

    def weight(self, *shape: int, scale: float | None = None) -> ValueRef:
        """A random float32 parameter, scaled so that activations keep their size."""
        fan = max(1, int(np.prod(shape[1:])))
        values = self.rng.normal(0, scale or fan**-0.5, shape)
        return self.const(values.astype(np.float32), "w")

    def apply(self, op_type: str, *operands: ValueRef | None, results: int = 1, **attrs: Any) -> Any:
        """A node; returns the result, or the tuple of results where there are several."""
        op = operator(op_type)
        values = Operands([None if o is None else self.graph.value(o) for o in operands])
        complete = op.normalise({**defaults(op_type), **attrs}, values)
        name = self.graph.fresh(op_type.lower())
        types = op.infer(Node(NodeRef(name), op, complete), values, results)
        made = [self.graph.add_value(self.graph.fresh(f"{name}:{i}"), t).ref for i, t in enumerate(types)]
        self.graph.add_node(name, op, complete, operands, made)
        return made[0] if results == 1 else tuple(made)

    def conv(
        self, x: ValueRef, channels: int, kernel: int | Sequence[int], *, bias: bool = True, **attrs: Any
    ) -> ValueRef:
        """A convolution with random weights over the spatial axes of `x`."""
        shape = self.graph.value(x).shape
        taps = (kernel,) * (len(shape) - 2) if isinstance(kernel, int) else tuple(kernel)
        weight = self.weight(channels, shape[1] // attrs.get("group", 1), *taps)
        operands = [x, weight, self.weight(channels, scale=0.5)] if bias else [x, weight]
        return self.apply("Conv", *operands, **attrs)  # type: ignore[no-any-return]

    def task(self, name: str, *outputs: ValueRef) -> None:
        """Declare a task."""
        self.graph.set_task(name, outputs)

    def done(self) -> Graph:
        """The finished graph."""
        return self.graph.freeze()


def half_network() -> Graph:
    """Tasks that are float16, float32 made of it, and float32 alone."""
    b = Builder()

    def half(*shape: int) -> ValueRef:
        return b.const((b.rng.normal(size=shape) * 0.2).astype(np.float16))

    h = b.apply("Relu", b.apply("Conv", b.input("x", 1, 3, 8, 8, dtype=DType.FLOAT16), half(16, 3, 3, 3), half(16)))
    scores = b.apply("Gemm", b.apply("Flatten", h), half(576, 10), half(10))
    b.task("half", scores)
    b.task("widened", b.apply("Cast", b.apply("Tanh", scores), to=1))
    b.task("single", b.apply("Gemm", b.input("z", 1, 8), b.weight(8, 4)))
    return b.done()
