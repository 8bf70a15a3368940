"""Conversion of any opset to the pinned one, node by node.

Import converts a node the moment its operands are known, so shapes are static and small operands constant: most
rules are a few lines, work inside control flow and functions, and no unconverted node is ever evaluated. What no
rule mentions must have the same schema in both opsets, type constraints aside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from onnx import TensorProto, helper

from compiler.ir.onnx_nodes import (
    Application,
    BrokenNode,
    UnsupportedNode,
    check_axes,
    defaults,
    differences,
    schema,
)
from compiler.ir.op import OPSET
from compiler.ir.types import TensorType


class Scope(Protocol):
    """What a rule may ask about the place it rewrites."""

    def type(self, name: str) -> TensorType:
        """Static type of a tensor already known."""

    def constant(self, name: str) -> np.ndarray | None:
        """Its value where it is constant."""

    def literal(self, array: np.ndarray, hint: str) -> str:
        """Name of a new constant."""

    def temporary(self, hint: str) -> str:
        """A new name for a tensor between two nodes."""


Rule = Callable[[Application, Scope], Iterator[Application]]
RULES: dict[str, list[tuple[int, Rule]]] = {}
"""Operator -> (before, rule) ascending: the rule lifts an application below opset `before` to it."""


def rule(before: int, *operators: str) -> Callable[[Rule], Rule]:
    """Register a rule for `operators` below opset `before`."""

    def register(function: Rule) -> Rule:
        for operator in operators:
            RULES.setdefault(operator, []).append((before, function))
            RULES[operator].sort(key=lambda entry: entry[0])
        return function

    return register


def at_pinned_opset(app: Application, scope: Scope) -> Iterator[Application]:
    """The application as one or more of the pinned opset; UnsupportedNode where there is no rule, BrokenNode where
    its attributes contradict its operands."""
    for before, lift in RULES.get(app.op, []):
        if app.version < before:
            for part in lift(app, scope):
                known = schema(part.op, before)
                filled = {**defaults(known), **part.attrs} if known else part.attrs
                yield from at_pinned_opset(replace(part, version=before, attrs=filled), scope)
            return
    yield _canonical(_relabelled(app), scope)


def _canonical(app: Application, scope: Scope) -> Application:
    """One form per meaning where ONNX allows two."""
    form = _FORMS.get(app.op)
    return app if form is None else form(app, scope)


def _relabelled(app: Application) -> Application:
    old, new = schema(app.op, app.version), schema(app.op, OPSET)
    if old is None or new is None or app.version == OPSET or old.since_version == new.since_version:
        return replace(app, version=OPSET) if new is not None else app
    app = replace(app, attrs={k: v for k, v in app.attrs.items() if k != "consumed_inputs"})
    reasons = list(differences(app, old, new))
    if reasons:
        raise UnsupportedNode(f"opset {app.version} to {OPSET}: {'; '.join(reasons)}")
    attrs = {k: v for k, v in app.attrs.items() if k in new.attributes}
    return replace(app, version=OPSET, attrs={**defaults(new), **attrs})


# ---------------------------------------------------------------------- helpers
def _ints(scope: Scope, values: Sequence[int], hint: str) -> str:
    return scope.literal(np.asarray(values, np.int64), hint)


def _without(app: Application, *names: str, **changed: Any) -> dict[str, Any]:
    return {**{k: v for k, v in app.attrs.items() if k not in names}, **changed}


def _like(scope: Scope, app: Application, value: float, hint: str) -> str:
    return scope.literal(np.asarray(value, scope.type(app.inputs[0]).dtype.numpy), hint)


def _reshaped(scope: Scope, name: str, shape: Sequence[int], hint: str) -> tuple[str, Application]:
    result = scope.temporary(hint)
    return result, Application("Reshape", (name, _ints(scope, shape, hint + "_shape")), (result,))


# ---------------------------------------------------------------------- attributes that became operands
@rule(13, "Squeeze", "Unsqueeze", "ReduceSum")
@rule(
    18,
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
    *("ReduceProd", "ReduceSumSquare"),
)
def _axes(app: Application, scope: Scope) -> Iterator[Application]:
    inputs = app.inputs
    if app.attrs.get("axes") is not None and len(inputs) == 1:
        inputs = (*inputs, _ints(scope, app.attrs["axes"], "axes"))
    yield replace(app, inputs=inputs, attrs=_without(app, "axes"))


@rule(11, "Clip")
def _clip(app: Application, scope: Scope) -> Iterator[Application]:
    inputs = [app.inputs[0]]
    for name, everything in (("min", -3.4e38), ("max", 3.4e38)):
        bound = app.attrs.get(name, everything)
        inputs.append(_like(scope, app, bound, name) if abs(bound) < 3.4e38 else "")
    yield replace(app, inputs=tuple(inputs), attrs=_without(app, "min", "max"))


@rule(11, "Pad")
def _pad(app: Application, scope: Scope) -> Iterator[Application]:
    amounts = app.attrs.get("pads", app.attrs.get("paddings", ()))
    value = _like(scope, app, app.attrs.get("value", 0.0), "value")
    inputs = (app.inputs[0], _ints(scope, amounts, "pads"), value)
    yield replace(app, inputs=inputs, attrs=_without(app, "pads", "paddings", "value"))


@rule(10, "Slice")
def _slice(app: Application, scope: Scope) -> Iterator[Application]:
    starts, ends = app.attrs["starts"], app.attrs["ends"]
    axes = app.attrs.get("axes", tuple(range(len(starts))))
    bounds = [_ints(scope, v, hint) for v, hint in ((starts, "starts"), (ends, "ends"), (axes, "axes"))]
    yield replace(app, inputs=(app.inputs[0], *bounds), attrs=_without(app, "starts", "ends", "axes"))


@rule(13, "Split")
def _split(app: Application, scope: Scope) -> Iterator[Application]:
    inputs = app.inputs
    if app.attrs.get("split") is not None and len(inputs) == 1:
        inputs = (*inputs, _ints(scope, app.attrs["split"], "split"))
    yield replace(app, inputs=inputs, attrs=_without(app, "split", axis=app.attrs.get("axis", 0)))


@rule(18, "Split")
def _split_evenly(app: Application, scope: Scope) -> Iterator[Application]:
    if len(app.inputs) > 1 and app.inputs[1]:
        yield app
        return
    size, parts = scope.type(app.inputs[0]).shape[app.attrs["axis"]], len(app.outputs)
    if size % parts:
        raise UnsupportedNode(f"splits {size} entries into {parts} equal parts")
    yield replace(app, inputs=(app.inputs[0], _ints(scope, [size // parts] * parts, "split")))


@rule(10, "TopK")
def _top_k(app: Application, scope: Scope) -> Iterator[Application]:
    inputs = (app.inputs[0], _ints(scope, [app.attrs["k"]], "k"))
    yield replace(app, inputs=inputs, attrs=_without(app, "k"))


@rule(5, "Reshape")
def _reshape(app: Application, scope: Scope) -> Iterator[Application]:
    shape = _ints(scope, app.attrs.get("shape", ()), "shape")
    yield replace(app, inputs=(app.inputs[0], shape), attrs=_without(app, "shape", "consumed_inputs"))


@rule(20, "DFT")
def _dft(app: Application, scope: Scope) -> Iterator[Application]:
    axis = scope.literal(np.asarray(app.attrs["axis"], np.int64), "axis")
    length = app.inputs[1] if len(app.inputs) > 1 else ""
    yield replace(app, inputs=(app.inputs[0], length, axis), attrs=_without(app, "axis"))


@rule(6, "Tile")
def _tile(app: Application, scope: Scope) -> Iterator[Application]:
    tiles, axis = (scope.constant(n) for n in app.inputs[1:3])
    if tiles is None or axis is None:
        raise UnsupportedNode("tiles and axis are not constant")
    repeats = [1] * scope.type(app.inputs[0]).rank
    repeats[int(axis.item())] = int(tiles.item())
    yield replace(app, inputs=(app.inputs[0], _ints(scope, repeats, "repeats")))


# ---------------------------------------------------------------------- broadcasting before opset 7
@rule(7, "Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less")
def _broadcast(app: Application, scope: Scope) -> Iterator[Application]:
    axis, (a, b) = app.attrs.get("axis"), app.inputs
    after = replace(app, attrs=_without(app, "axis", "broadcast", "consumed_inputs"))
    rank, shape = scope.type(a).rank, scope.type(b).shape
    if app.attrs.get("broadcast") and axis is not None:
        check_axes(app, "axis", rank)
        trailing = rank - axis % max(rank, 1) - len(shape)
        if trailing < 0:
            raise BrokenNode(
                f"operand 1 of rank {len(shape)} does not fit an operand of rank {rank} from axis {axis} on"
            )
        b, aligned = _reshaped(scope, b, (*shape, *(1,) * trailing), "aligned")
        yield aligned
    yield replace(after, inputs=(a, b))


@rule(7, "PRelu")
def _prelu(app: Application, scope: Scope) -> Iterator[Application]:
    x, slope = app.inputs
    if scope.type(slope).size > 1 and scope.type(slope).rank == 1:
        shape = (-1, *(1,) * (scope.type(x).rank - 2))
        slope, aligned = _reshaped(scope, slope, shape, "slope")
        yield aligned
    yield replace(app, inputs=(x, slope), attrs=_without(app, "consumed_inputs"))


@rule(7, "Gemm")
def _gemm(app: Application, scope: Scope) -> Iterator[Application]:
    yield replace(app, attrs=_without(app, "broadcast"))


# ---------------------------------------------------------------------- renamed attributes, changed meanings
@rule(4, "Concat")
def _concat(app: Application, scope: Scope) -> Iterator[Application]:
    yield replace(app, attrs={"axis": app.attrs.get("axis", 1)})


@rule(6, "Cast")
def _cast(app: Application, scope: Scope) -> Iterator[Application]:
    yield replace(app, attrs={"to": TensorProto.DataType.Value(app.attrs["to"])})


@rule(2, "LpPool", "GlobalLpPool")
def _integer_p(app: Application, scope: Scope) -> Iterator[Application]:
    yield replace(app, attrs=_without(app, p=int(app.attrs.get("p", 2))))


@rule(7, "LSTM", "GRU", "RNN")
def _recurrent(app: Application, scope: Scope) -> Iterator[Application]:
    direction = app.attrs.get("direction", "forward")
    direction = {"foward": "forward"}.get(direction, direction)  # the specification's own misspelling
    yield replace(app, attrs=_without(app, "output_sequence", direction=direction))


@rule(14, "BatchNormalization")
def _batch_norm(app: Application, scope: Scope) -> Iterator[Application]:
    if len([o for o in app.outputs if o]) > 1 or (app.version < 7 and not app.attrs.get("is_test", 1)):
        raise UnsupportedNode("batch statistics (training mode)")
    if not app.attrs.get("spatial", 1):
        raise UnsupportedNode("statistics per position (spatial=0)")
    attrs = _without(app, "spatial", "is_test", "consumed_inputs")
    yield replace(app, outputs=app.outputs[:1], attrs=attrs)


@rule(12, "Dropout")
def _dropout(app: Application, scope: Scope) -> Iterator[Application]:
    if app.version < 7 and not app.attrs.get("is_test"):
        raise UnsupportedNode("random dropping (is_test=0)")
    plain = replace(app, inputs=app.inputs[:1], attrs={})
    if app.version >= 10 or len(app.outputs) < 2:
        yield plain
        return
    kept = scope.temporary("kept")  # before 10 the mask has the type of the data
    yield replace(plain, outputs=(app.outputs[0], kept))
    code = helper.np_dtype_to_tensor_dtype(scope.type(app.inputs[0]).dtype.numpy)
    yield Application("Cast", (kept,), app.outputs[1:], {"to": code})


@rule(13, "Softmax", "LogSoftmax", "Hardmax")
def _flattened_softmax(app: Application, scope: Scope) -> Iterator[Application]:
    """Before 13 the operand is seen as a matrix, split before `axis`."""
    shape = scope.type(app.inputs[0]).shape
    check_axes(app, "axis", len(shape))
    axis = app.attrs["axis"] % max(len(shape), 1)
    long = [d for d in range(axis, len(shape)) if shape[d] != 1]
    if len(long) <= 1:
        yield replace(app, attrs={"axis": long[0] if long else axis})
        return
    matrix = (math.prod(shape[:axis]), math.prod(shape[axis:]))
    rows, flatten = _reshaped(scope, app.inputs[0], matrix, "rows")
    made = scope.temporary("made")
    yield flatten
    yield replace(app, inputs=(rows,), outputs=(made,), attrs={"axis": 1})
    back = (made, _ints(scope, shape, "shape"))
    yield Application("Reshape", back, app.outputs)


@rule(20, "GridSample")
def _grid_sample(app: Application, scope: Scope) -> Iterator[Application]:
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(app.attrs["mode"], app.attrs["mode"])
    yield replace(app, attrs=_without(app, mode=mode))


@rule(21, "GroupNormalization")
def _group_norm(app: Application, scope: Scope) -> Iterator[Application]:
    """Before 21 scale and bias have one entry per group instead of one per channel."""
    groups, channels = app.attrs["num_groups"], scope.type(app.inputs[0]).shape[1]
    spread = []
    for name in app.inputs[1:3]:
        column, unsqueezed = _reshaped(scope, name, (groups, 1), "column")
        wide, flat = scope.temporary("wide"), scope.temporary("flat")
        yield unsqueezed
        yield Application("Expand", (column, _ints(scope, (groups, channels // groups), "shape")), (wide,))
        yield Application("Reshape", (wide, _ints(scope, (channels,), "shape")), (flat,))
        spread.append(flat)
    yield replace(app, inputs=(app.inputs[0], *spread))


@rule(16, "RoiAlign")
def _roi_align(app: Application, scope: Scope) -> Iterator[Application]:
    yield replace(app, attrs=_without(app, coordinate_transformation_mode="output_half_pixel"))


# ---------------------------------------------------------------------- retired operators
@rule(11, "Scatter")
def _scatter(app: Application, scope: Scope) -> Iterator[Application]:
    yield replace(app, op="ScatterElements")


@rule(10, "Upsample")
def _upsample(app: Application, scope: Scope) -> Iterator[Application]:
    inputs = app.inputs[:1]
    if "height_scale" in app.attrs:
        scales: Sequence[float] = (1.0, 1.0, app.attrs["height_scale"], app.attrs["width_scale"])
        inputs = (*inputs, scope.literal(np.asarray(scales, np.float32), "scales"))
    elif "scales" in app.attrs:
        inputs = (*inputs, scope.literal(np.asarray(app.attrs["scales"], np.float32), "scales"))
    else:
        inputs = app.inputs
    mode = {"bilinear": "linear"}.get(app.attrs["mode"], app.attrs["mode"])
    yield replace(app, op="Resize", inputs=inputs, attrs={"mode": mode})


@rule(11, "Resize")
def _resize(app: Application, scope: Scope) -> Iterator[Application]:
    """Before 11 onnxruntime takes the nearest entry below where an axis grows, and above where it shrinks."""
    attrs = _without(app, coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    x, scales = app.inputs
    known = scope.constant(scales)
    shrinks = app.attrs["mode"] == "nearest" and known is not None and bool((known < 1).any())
    if shrinks and known is not None and (known > 1).any():
        grown = scope.temporary("grown")
        yield replace(
            app, inputs=(x, "", scope.literal(np.maximum(known, 1), "growing")), outputs=(grown,), attrs=attrs
        )
        x, scales = grown, scope.literal(np.minimum(known, 1), "shrinking")
    if shrinks:
        attrs = {**attrs, "nearest_mode": "ceil"}
    yield replace(app, inputs=(x, "", scales), attrs=attrs)


# ---------------------------------------------------------------------- one form per meaning
def _one_rnn(app: Application, scope: Scope) -> Application:
    """One activation per direction, though the default names two."""
    if app.attrs["direction"] == "bidirectional":
        return app
    return replace(app, attrs=_without(app, activations=app.attrs["activations"][:1]))


def _one_range(app: Application, scope: Scope) -> Application:
    """Bounds of one entry are scalars."""
    bounds = [(n, scope.constant(n)) for n in app.inputs]
    inputs = [n if v is None or v.shape != (1,) else scope.literal(v[0], "bound") for n, v in bounds]
    return replace(app, inputs=tuple(inputs))


def _one_split(app: Application, scope: Scope) -> Application:
    """Sizes, which pruning can make unequal, instead of a number of parts.

    The last part is smaller where the axis does not divide (ONNX Split-18); sizes that do not add up, as the last
    would be below 0, are refused when types are inferred.
    """
    parts, axis, shape = len(app.outputs), app.attrs["axis"], scope.type(app.inputs[0]).shape
    if app.attrs.get("num_outputs") != parts or not -len(shape) <= axis < len(shape):
        return app  # refused when its type is inferred, with the reason
    size = shape[axis]
    chunk = -(-size // parts)
    sizes = [min(chunk, size - i * chunk) for i in range(parts)]
    return replace(app, inputs=(app.inputs[0], _ints(scope, sizes, "split")), attrs=_without(app, "num_outputs"))


def _one_squeeze(app: Application, scope: Scope) -> Application:
    """Axes by number: of all that have one entry, one that pruning leaves with one would be another."""
    if len(app.inputs) > 1 and app.inputs[1]:
        return app
    axes = [d for d, size in enumerate(scope.type(app.inputs[0]).shape) if size == 1]
    if not axes:
        return replace(app, op="Identity", inputs=app.inputs[:1], attrs={})
    return replace(app, inputs=(app.inputs[0], _ints(scope, axes, "axes")))


def _one_resize(app: Application, scope: Scope) -> Application:
    """An empty region or empty scales stand for an operand left out.

    tf_half_pixel_for_nn (dropped in opset 13, still written by exporters) rounded down is half_pixel rounded to
    nearest: floor((x + 1/2) / s) either way.
    """
    inputs = [app.inputs[0], *(n if n and scope.type(n).size else "" for n in app.inputs[1:])]
    while not inputs[-1]:
        inputs.pop()
    app = replace(app, inputs=_counted(inputs, app.attrs.get("axes"), scope))
    if app.attrs["coordinate_transformation_mode"] != "tf_half_pixel_for_nn":
        return app
    if app.attrs["mode"] != "nearest" or app.attrs["nearest_mode"] != "floor":
        raise UnsupportedNode("tf_half_pixel_for_nn other than nearest, rounded down")
    attrs = _without(app, coordinate_transformation_mode="half_pixel", nearest_mode="round_prefer_ceil")
    return replace(app, attrs=attrs)


def _counted(inputs: Sequence[str], axes: Sequence[int] | None, scope: Scope) -> tuple[str, ...]:
    """The operands of Resize, such that float64 counts as many entries as float32.

    onnxruntime makes 7 entries of 10 at a scale of 0.7, which is 0.69999999 in float32; ONNX's inference makes 6.
    Sizes stand for such scales where they mean the same, else the least larger scales that give 7 either way.
    """
    scales, shape = scope.constant(inputs[2]) if len(inputs) == 3 else None, scope.type(inputs[0]).shape
    dims = range(len(shape)) if axes is None else axes
    if scales is None or scales.size != len(dims) or not all(-len(shape) <= d < len(shape) for d in dims):
        return tuple(inputs)
    sizes = np.array([shape[d] for d in dims], np.float32)
    entries, larger = np.floor(sizes * scales), scales
    while (short := np.floor(sizes * larger.astype(np.float64)) < entries).any():
        if np.array_equal(entries / sizes, scales):
            return (*inputs[:2], "", _ints(scope, entries.astype(int).tolist(), "sizes"))
        larger = np.where(short, np.nextafter(larger, np.float32(np.inf)), larger)
    return tuple(inputs) if larger is scales else (*inputs[:2], scope.literal(larger, "scales"))


_FORMS: dict[str, Callable[[Application, Scope], Application]] = {
    "RNN": _one_rnn,
    "Range": _one_range,
    "Resize": _one_resize,
    "Split": _one_split,
    "Squeeze": _one_squeeze,
}
