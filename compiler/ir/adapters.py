"""Input adapters: a list of declared steps becomes ordinary nodes in front of a network.

One step is a mapping with one of these keys; images are rank 4.

    {"cast": "float32"}                             element type
    {"layout": "NHWC"}                              transpose an image into that layout
    {"resize": [h, w], "mode": "linear"|"nearest"}  half-pixel centres (mode defaults to linear)
    {"gray": true | [r, g, b]}                      three channels to one; true: ITU-R BT.601 luma of RGB
    {"bgr": true}                                   reverse the channels
    {"scale": s, "offset": o}                       x * s + o, numbers or one per channel; either may be left out
    {"reshape": [n, ...]}                           same elements, another shape

A signal starts in the layout that its first `layout` step leaves. Without one it is NHWC where only its last axis
has the size of colours (1, 3 or 4), else NCHW.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import helper

import compiler.ir.ops as _ops  # noqa: F401  fills the registry
from compiler.errors import ConfigError, VerifyError
from compiler.ir.graph import Graph, Node, NodeRef, Operands, Value
from compiler.ir.onnx_nodes import defaults, schema
from compiler.ir.op import OPSET, operator
from compiler.ir.types import DType

Step = Mapping[str, Any]

_LUMA = (0.299, 0.587, 0.114)
_LAYOUTS = {"NCHW": ("NHWC", (0, 3, 1, 2)), "NHWC": ("NCHW", (0, 2, 3, 1))}
"""Layout -> the other one, and the permutation that makes it from the other."""


@dataclass(frozen=True, slots=True)
class _Signal:
    """A value on its way through an adapter."""

    value: Value
    layout: str = "NCHW"
    bgr: bool = False

    @property
    def channel_axis(self) -> int:
        return self.layout.index("C")


class Adapter:
    """Builds steps in `graph`. The same steps on the same value give the same nodes."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._built: dict[tuple[_Signal, str], _Signal] = {}

    def apply(self, source: Value, steps: Sequence[Step]) -> Value:
        """The value that `steps` make of `source`; ConfigError where a step is unknown or does not fit."""
        layouts = [s["layout"] for s in steps if s.get("layout") in tuple(_LAYOUTS)]
        signal = _Signal(source, _LAYOUTS[layouts[0]][0] if layouts else _natural(source.shape))
        for position, step in enumerate(steps):
            key = signal, json.dumps(step, sort_keys=True, default=_listed)
            if key not in self._built:
                self._built[key] = self._step(signal, step, f"step {position + 1} {dict(step)}")
            signal = self._built[key]
        return signal.value

    def _step(self, signal: _Signal, step: Step, where: str) -> _Signal:
        kind = next((k for k in _STEPS if k in step), None)
        if kind is None or set(step) - _OPTIONS[kind]:
            known = "; ".join(" + ".join(sorted(o)) for o in _OPTIONS.values())
            raise ConfigError(f"{where}: not a step; the keys of a step are: {known}")
        if kind in _IMAGES and signal.value.rank != 4:
            raise ConfigError(f"{where}: needs an image of rank 4, not {signal.value.type}")
        try:
            return _STEPS[kind](self, signal, step)
        except (VerifyError, ValueError, TypeError) as error:
            raise ConfigError(f"{where}: does not fit {signal.value.type}: {error}") from None

    # ------------------------------------------------------------------ building
    def _constant(self, hint: str, array: np.ndarray) -> Value:
        return self._graph.add_parameter(self._graph.fresh(hint), array)

    def _node(self, hint: str, name: str, attrs: Mapping[str, Any], *operands: Value | None) -> Value:
        op, known = operator(name), schema(name, OPSET)
        assert known is not None
        read = Operands(operands)
        complete = op.normalise({**defaults(known), **attrs}, read)
        label = self._graph.fresh(hint)
        absent = tuple(i for i, v in enumerate(operands) if v is None)
        node = Node(NodeRef(label), op, MappingProxyType(dict(complete)), absent)
        result = self._graph.add_value(label, op.infer(node, read, 1)[0])
        self._graph.add_node(
            label, op, complete, [None if v is None else v.ref for v in operands], [result.ref], ("adapter",)
        )
        return result

    # ------------------------------------------------------------------ steps
    def _cast(self, signal: _Signal, step: Step) -> _Signal:
        from_type = signal.value.dtype
        to = DType(step["cast"])
        if to == from_type:
            return signal
        code = int(helper.np_dtype_to_tensor_dtype(to.numpy))
        return replace(signal, value=self._node(_hint(signal, "cast"), "Cast", {"to": code}, signal.value))

    def _layout(self, signal: _Signal, step: Step) -> _Signal:
        other, permutation = _LAYOUTS[_one_of(step["layout"], _LAYOUTS)]
        if signal.layout != other:
            return signal
        value = self._node(_hint(signal, "layout"), "Transpose", {"perm": permutation}, signal.value)
        return replace(signal, value=value, layout=step["layout"])

    def _resize(self, signal: _Signal, step: Step) -> _Signal:
        sizes = _sizes(step["resize"])
        if len(sizes) != 2:
            raise ValueError("resize takes [height, width]")
        height, width = sizes
        attrs = {"mode": _one_of(step.get("mode", "linear"), ("linear", "nearest"))}
        shape = list(signal.value.shape)
        shape[signal.layout.index("H")], shape[signal.layout.index("W")] = height, width
        if tuple(shape) == signal.value.shape:
            return signal
        to = self._constant(_hint(signal, "resize_sizes"), np.asarray(shape, np.int64))
        return replace(
            signal, value=self._node(_hint(signal, "resize"), "Resize", attrs, signal.value, None, None, to)
        )

    def _gray(self, signal: _Signal, step: Step) -> _Signal:
        if not signal.value.dtype.is_float:
            raise ValueError("gray needs floating-point numbers; put a cast before")
        luma = _LUMA[::-1] if signal.bgr else _LUMA
        column = _numbers(luma if step["gray"] is True else step["gray"]).astype(signal.value.dtype.numpy)
        if column.ndim != 1:
            raise ValueError("gray takes true, or an array of one weight per channel")
        if len(column) != signal.value.shape[signal.channel_axis]:
            raise ValueError(f"{len(column)} weights for {signal.value.shape[signal.channel_axis]} channels")
        if signal.layout == "NHWC":
            weight = self._constant(_hint(signal, "gray_weight"), column.reshape(-1, 1))
            return replace(signal, value=self._node(_hint(signal, "gray"), "MatMul", {}, signal.value, weight))
        weight = self._constant(_hint(signal, "gray_weight"), column.reshape(1, -1, 1, 1))
        return replace(signal, value=self._node(_hint(signal, "gray"), "Conv", {}, signal.value, weight))

    def _bgr(self, signal: _Signal, step: Step) -> _Signal:
        if step["bgr"] is not True:
            raise ValueError("bgr takes true")
        axis = signal.channel_axis
        if signal.value.shape[axis] != 3:
            raise ValueError(
                f"bgr reverses three colours, and axis {axis}, of channels in {signal.layout}, has another size"
            )
        order = np.arange(signal.value.shape[axis], dtype=np.int64)[::-1].copy()
        indices = self._constant(_hint(signal, "bgr_order"), order)
        value = self._node(_hint(signal, "bgr"), "Gather", {"axis": axis}, signal.value, indices)
        return replace(signal, value=value, bgr=not signal.bgr)

    def _affine(self, signal: _Signal, step: Step) -> _Signal:
        if not signal.value.dtype.is_float:
            raise ValueError("scale and offset need floating-point numbers; put a cast before")
        value = signal.value
        for key, name in (("scale", "Mul"), ("offset", "Add")):
            if key in step:
                numbers = self._per_channel(signal, step[key])
                if not np.isfinite(numbers).all():
                    raise ValueError(f"{key} has to be finite in {signal.value.dtype.value}")
                if key == "scale" and not numbers.any():
                    raise ValueError("a scale of 0 leaves nothing of the input")
                factor = self._constant(_hint(signal, key + "_by"), numbers)
                value = self._node(_hint(signal, key), name, {}, value, factor)
        return replace(signal, value=value)

    def _per_channel(self, signal: _Signal, given: Any) -> np.ndarray:
        with np.errstate(over="ignore"):  # the caller refuses what is infinite
            values = _numbers(given).astype(signal.value.dtype.numpy)
        if values.ndim == 0:
            return values
        if signal.value.rank <= signal.channel_axis:
            raise ValueError("it has no axis of channels that each could have a number")
        shape = [1] * signal.value.rank
        shape[signal.channel_axis] = channels = signal.value.shape[signal.channel_axis]
        if values.shape != (channels,):
            raise ValueError(f"give one number, or one for each of the {channels} channels, not {values.size}")
        return values.reshape(shape)

    def _reshape(self, signal: _Signal, step: Step) -> _Signal:
        shape = self._constant(_hint(signal, "reshape_to"), np.asarray(_sizes(step["reshape"]), np.int64))
        return replace(signal, value=self._node(_hint(signal, "reshape"), "Reshape", {}, signal.value, shape))


def _natural(shape: Sequence[int]) -> str:
    """The layout of an image by its shape."""
    colours = (1, 3, 4)
    return "NHWC" if len(shape) == 4 and shape[3] in colours and shape[1] not in colours else "NCHW"


def _numbers(given: Any) -> np.ndarray:
    """A number or an array of them; ValueError for anything else, truth values included."""
    numbers = np.asarray(given)
    if numbers.dtype.kind not in "iuf":
        raise ValueError(f"{given!r} is neither a number nor an array of numbers")
    return numbers


def _listed(value: object) -> object:
    """Numbers of numpy as those of Python; ConfigError for what no step takes."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise ConfigError(f"{value!r} in an adapter: steps take numbers, strings, booleans and lists of them")


def _hint(signal: _Signal, step: str) -> str:
    return f"{signal.value.ref.name}/{step}"


def _one_of(value: object, known: Sequence[str] | Mapping[str, object]) -> str:
    if value not in known or not isinstance(value, str):
        raise ValueError(f"{value!r} is none of {', '.join(known)}")
    return value


def _sizes(given: object) -> list[int]:
    if not isinstance(given, Sequence | np.ndarray) or isinstance(given, str):
        raise ValueError(f"{given!r} is not an array of sizes")
    return [_size(n) for n in given]


def _size(value: object) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{value!r} is not a size")
    return int(value)


_STEPS: Mapping[str, Callable[[Adapter, _Signal, Step], _Signal]] = {
    "cast": Adapter._cast,
    "layout": Adapter._layout,
    "resize": Adapter._resize,
    "gray": Adapter._gray,
    "bgr": Adapter._bgr,
    "scale": Adapter._affine,
    "offset": Adapter._affine,
    "reshape": Adapter._reshape,
}
_OPTIONS: Mapping[str, frozenset[str]] = {
    **{k: frozenset((k,)) for k in _STEPS},
    "resize": frozenset(("resize", "mode")),
    "scale": frozenset(("scale", "offset")),
}
_IMAGES = frozenset(("layout", "resize", "gray", "bgr"))
