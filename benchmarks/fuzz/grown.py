"""What generated networks are made with: seeded choices, and a network whose shapes ONNX infers.

`Pick` decides the structure, `Grown.rng` the weights, so that two networks can have equal structure with equal or
with other weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from onnx import TensorProto, defs, helper, numpy_helper, shape_inference

from benchmarks.networks import Net

T = TypeVar("T")
OPSET = 17


class Pick:
    """Seeded choices of structure."""

    def __init__(self, *seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def one(self, options: Sequence[T]) -> T:
        """Any of the options."""
        return options[int(self._rng.integers(len(options)))]

    def chance(self, share: float) -> bool:
        """True in `share` of all cases."""
        return bool(self._rng.random() < share)

    def whole(self, low: int, high: int) -> int:
        """From `low` to `high`, both included."""
        return int(self._rng.integers(low, high + 1))

    def some(self, options: Sequence[T]) -> list[T]:
        """A random subset that is not empty, in order."""
        kept = [o for o in options if self.chance(0.5)]
        return kept or [self.one(options)]


class Grown(Net):
    """A network whose shapes and types ONNX infers, node by node. `kinds`: types of tensors, where not float32."""

    def __init__(self, name: str, shape: tuple[int, ...], seed: int = 0) -> None:
        super().__init__(name, shape, seed)
        self.kinds: dict[str, int] = {}

    def add(self, op: str, *inputs: str, results: int = 1, **attrs: Any) -> Any:
        """A node of any operator; returns the name of its result, or the list of `results` names."""
        reads = [i for i in inputs if i]
        types = {i: helper.make_tensor_type_proto(self.kind(i), self.shapes.get(i, self._dims(i))) for i in reads}
        data = {t.name: t for t in self._weights if t.name in reads}
        node = helper.make_node(op, list(inputs), [f"r{i}" for i in range(results)], **attrs)
        made = shape_inference.infer_node_outputs(defs.get_schema(op, OPSET), node, types, data)
        assert all(made[o].tensor_type.HasField("shape") for o in node.output), f"{op} has a shape of its own"
        shapes = [tuple(d.dim_value for d in made[o].tensor_type.shape.dim) for o in node.output]
        names = self.apply(op, inputs, shapes if results > 1 else shapes[0], **attrs)
        for name, output in zip(names if results > 1 else [names], node.output, strict=True):
            self.kinds[name] = made[output].tensor_type.elem_type
        return names

    def _weight_named(self, name: str) -> TensorProto:
        return next(t for t in self._weights if t.name == name)

    def kind(self, name: str) -> int:
        """The type of a tensor, as ONNX counts them."""
        if name in self.shapes:
            return self.kinds.get(name, TensorProto.FLOAT)
        return self._weight_named(name).data_type

    def _dims(self, name: str) -> tuple[int, ...]:
        return () if name in self.shapes else tuple(self._weight_named(name).dims)

    def number(self, *values: float) -> str:
        """A float32 scalar, or a vector of several values."""
        return self.const(np.array(values if len(values) > 1 else values[0], np.float32))

    def whole(self, *values: int) -> str:
        """An int64 vector."""
        return self.const(np.array(values, np.int64))

    def tensor(self, array: np.ndarray) -> TensorProto:
        """A tensor that is an attribute."""
        return numpy_helper.from_array(array)


Block = Callable[[Grown, Pick, str], str]
