"""ONNX model -> Graph: guard, check, bind free axes, lift, name the tasks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
from onnx import checker, defs

from compiler.errors import ConfigError, UnsafeInputError, UnsupportedModelError, VerifyError, plural
from compiler.ir.dead import sweep
from compiler.ir.encoding import Dense, Encoding
from compiler.ir.encoding import parse as parse_encoding
from compiler.ir.graph import Graph, Value
from compiler.ir.levels import LEVELS_KEY, ORDER_KEY, read_order
from compiler.ir.levels import read as read_levels
from compiler.ir.lift import ARITHMETIC, Lift, Problems
from compiler.ir.names import c_name
from compiler.ir.onnx_nodes import (
    STANDARD,
    UnsupportedNode,
    array_of,
    declared_shape,
    dtype_of,
    schema,
    type_name,
)
from compiler.ir.op import OPSET, operator
from compiler.ir.safety import DEFAULT_LIMITS, Limits, check_size, guard, read_model, shown
from compiler.ir.types import NodeRef, TensorType, ValueRef
from compiler.ir.verify import verify

TASKS_KEY = "taskgraft.tasks"
"""Metadata entry of an exported model: [[task, [output value, ...], [label, ...]], ...]. The row of a task of a
portfolio has a fourth entry: its outputs at levels 1, 2 ..., [[output value, ...], ...].
"""

ENCODINGS_KEY = "taskgraft.encodings"
"""Metadata entry of an exported model with sparse weights: {initializer: text of its encoding}."""

_MISREAD = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""What reading JSON that is not of the expected form raises; the last of lists within lists without end."""

Source: TypeAlias = str | os.PathLike[str] | onnx.ModelProto


def load(
    source: Source,
    *,
    inputs: Mapping[str, Sequence[int]] | None = None,
    task: str | None = None,
    allow_external_data: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> Graph:
    """Import a model as a frozen graph with static shapes at the pinned opset.

    `inputs` gives the shape of every input with free axes. All outputs belong to one task called `task` (default:
    the file's stem as a C name), unless the model was exported from a multitask graph and names its tasks itself.

    Raises ConfigError (no such file, wrong binding), UnsafeInputError (damaged, contradictory, over a limit),
    UnsupportedModelError (free axes, operators that are not compiled: all are listed).
    """
    model, where = _guarded(source, allow_external_data, limits)
    version = _opset(model, where)
    _check(model, version, where)
    name = task or _name(source, model)
    graph = Graph(name)
    lift = Lift(graph, {(f.domain, f.name, f.overload): f for f in model.functions}, limits)
    _constants(model, lift, where)
    try:
        for input_name, type_ in _bound(model.graph, inputs or {}, limits, where):
            lift.values[input_name] = graph.add_input(input_name, type_)
        lift.main(model.graph, version)
    except UnsafeInputError as error:
        raise UnsafeInputError(f"{where}: {error}") from error
    _raise(lift.problems, where)
    _outputs(model, lift, task, name, where)
    sweep(graph)
    try:
        verify(graph)
    except (VerifyError, *ARITHMETIC) as error:
        raise UnsafeInputError(f"{where}: the model contradicts itself: {error}") from error
    return graph.freeze()


def _guarded(source: Source, allow_external_data: bool, limits: Limits) -> tuple[onnx.ModelProto, str]:
    if not isinstance(source, onnx.ModelProto):
        return read_model(source, allow_external_data=allow_external_data, limits=limits), str(source)
    where = f"model {shown(source.graph.name)}"
    guard(source, where=where, limits=limits)
    return source, where


def _name(source: Source, model: onnx.ModelProto) -> str:
    """What a network is called that nobody named: after its file, or after the graph in it."""
    called = model.graph.name if isinstance(source, onnx.ModelProto) else Path(source).stem
    return c_name(called, "model")


# ---------------------------------------------------------------------- soundness
def _opset(model: onnx.ModelProto, where: str) -> int:
    stated = [
        [o.version for o in opsets if o.domain in STANDARD]
        for opsets in (model.opset_import, *(f.opset_import for f in model.functions))
    ]
    every, newest = [v for versions in stated for v in versions], defs.onnx_opset_version()
    if min(every, default=1) < 1:
        raise UnsafeInputError(f"{where}: opset {min(every)} does not exist; export the model again")
    version = max(every, default=1)
    if version > newest:
        raise UnsupportedModelError(
            f"{where}: opset {version} is newer than the installed onnx knows ({newest}); update onnx or export "
            f"with opset {OPSET}"
        )
    return max(stated[0], default=1)


def _check(model: onnx.ModelProto, version: int, where: str) -> None:
    """ONNX's checker: cycles, names defined twice, missing attributes.

    It stops at an operator that is unknown, which here is to be listed with all others, or deprecated, which here
    has a rule: it sees those under a foreign domain, which it skips. It also wants a shape of every port:
    those of inputs can be bound and those of outputs are inferred, so that it sees a scalar where there is none.
    """
    known = {(f.domain, f.name) for f in model.functions}
    hidden = [
        i
        for i, n in enumerate(model.graph.node)
        if n.domain in STANDARD and (n.domain, n.op_type) not in known and _stops_checker(n.op_type, version)
    ]
    if hidden or any(map(_untyped, _ports(model))):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        copy.opset_import.add(domain="hidden", version=1)
        for i in hidden:
            copy.graph.node[i].domain = "hidden"
        for port in filter(_untyped, _ports(copy)):
            port.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
            port.type.tensor_type.shape.SetInParent()
        model = copy
    try:
        checker.check_model(model)
    except (checker.ValidationError, ValueError) as error:
        reason = " ".join(str(error).split("==>")[0].split())
        raise UnsafeInputError(f"{where}: not a valid ONNX model: {reason}") from None


def _ports(model: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    yield from model.graph.input
    yield from model.graph.output


def _untyped(port: onnx.ValueInfoProto) -> bool:
    """Whether it says nothing of its shape, or nothing at all."""
    kind, tensor = port.type.WhichOneof("value"), port.type.tensor_type
    return kind is None or (kind == "tensor_type" and not tensor.HasField("shape"))


def _stops_checker(op: str, version: int) -> bool:
    known = schema(op, version)
    return known is None or known.deprecated


def _raise(problems: Problems, where: str) -> None:
    if problems.broken:
        cause = problems.causes[0] if problems.causes else None
        listed = "\n  ".join(problems.broken)
        raise UnsafeInputError(f"{where}: the model contradicts itself:\n  {listed}") from cause
    if not problems.refused:
        return
    lines = [
        f"{name} x{len(labels)}, first at {shown(labels[0])}: {reason}"
        for (name, reason), labels in problems.refused.items()
    ]
    raise UnsupportedModelError(
        f"{where}: {plural(len(lines), 'kind of nodes', 'kinds of nodes')} cannot be compiled:\n  "
        + "\n  ".join(lines)
        + "\n`taskgraft ops` lists the operators; export the model without these, or cut it before them"
    )


# ---------------------------------------------------------------------- inputs and constants
def _constants(model: onnx.ModelProto, lift: Lift, where: str) -> None:
    body, unsupported = model.graph, []
    encodings = _encodings(model, where)
    levels = _levels(model, encodings, where)
    order = _order(model, encodings, where)
    for tensor in body.initializer:
        try:
            name, encoding = tensor.name, encodings.get(tensor.name, Dense())
            lift.define(name, array_of(tensor), encoding, levels.get(name, ()), order.get(name, ()))
        except UnsupportedNode as error:
            unsupported.append(str(error))
        except ValueError as error:
            raise UnsafeInputError(f"{where}: metadata '{ENCODINGS_KEY}', {shown(tensor.name)}: {error}") from None
    unsupported += [f"tensor {shown(s.values.name)} is sparse" for s in body.sparse_initializer]
    if unsupported:
        raise UnsupportedModelError(f"{where}: tensors that cannot be compiled:\n  " + "\n  ".join(unsupported))


def _encodings(model: onnx.ModelProto, where: str) -> dict[str, Encoding]:
    """The encodings that the metadata give initializers; UnsafeInputError where they do not read or fit."""
    recorded = {p.key: p.value for p in model.metadata_props}.get(ENCODINGS_KEY)
    if recorded is None:
        return {}
    names = {t.name for t in model.graph.initializer}
    found = {}
    try:
        for name, text in json.loads(recorded).items():
            if name not in names:
                raise ValueError(f"there is no initializer {shown(str(name))}")
            found[name] = parse_encoding(text)
    except _MISREAD as error:
        raise UnsafeInputError(
            f"{where}: metadata '{ENCODINGS_KEY}' cannot be used: {error}; remove it to load all weights dense"
        ) from None
    return found


_Reader = Callable[[str, Callable[[str], np.ndarray], Mapping[str, Encoding]], dict[str, tuple[np.ndarray, ...]]]


def _levels(
    model: onnx.ModelProto, encodings: Mapping[str, Encoding], where: str
) -> dict[str, tuple[np.ndarray, ...]]:
    """The data of sparser levels by initializer; UnsafeInputError where the metadata do not read or fit."""
    return _arrays_named(model, encodings, LEVELS_KEY, read_levels, where, "remove it to load level 0 alone")


def _order(
    model: onnx.ModelProto, encodings: Mapping[str, Encoding], where: str
) -> dict[str, tuple[np.ndarray, ...]]:
    """`Value.order` by initializer; UnsafeInputError where the metadata do not read or fit."""
    return _arrays_named(model, encodings, ORDER_KEY, read_order, where, "without it sums may be in another order")


def _arrays_named(
    model: onnx.ModelProto, encodings: Mapping[str, Encoding], key: str, read: _Reader, where: str, advice: str
) -> dict[str, tuple[np.ndarray, ...]]:
    """Arrays by initializer that metadata name; nothing where there are none."""
    recorded = {p.key: p.value for p in model.metadata_props}.get(key)
    if recorded is None:
        return {}
    try:
        tensors = {t.name: t for t in model.graph.initializer}
        return read(recorded, lambda name: array_of(tensors[name]), encodings)
    except _MISREAD as error:
        raise UnsafeInputError(f"{where}: metadata '{key}' cannot be used: {error}; {advice}") from None


def _bound(
    body: onnx.GraphProto, given: Mapping[str, Sequence[int]], limits: Limits, where: str
) -> Iterator[tuple[str, TensorType]]:
    """Name and static type of every input; all free axes and all wrong bindings are reported together."""
    constant = {t.name for t in body.initializer}
    infos = [i for i in body.input if i.name not in constant]
    strange = sorted(set(given) - {i.name for i in infos})
    wrong = [f"there is no input {shown(n)}" for n in strange]
    free, types = [], []
    for info in infos:
        try:
            types.append((info.name, _input_type(info, given.get(info.name), limits)))
        except ConfigError as error:
            wrong.append(str(error))
        except UnsupportedModelError as error:
            free.append(str(error))
    if wrong:
        names = ", ".join(shown(i.name) for i in infos)
        raise ConfigError(f"{where}: wrong input shapes (inputs are {names}):\n  " + "\n  ".join(wrong))
    if free:
        raise UnsupportedModelError(f"{where}: inputs without a static type:\n  " + "\n  ".join(free))
    yield from types


def _input_type(info: onnx.ValueInfoProto, shape: Sequence[int] | None, limits: Limits) -> TensorType:
    name, tensor = shown(info.name), info.type.tensor_type
    dtype = dtype_of(tensor.elem_type) if info.type.HasField("tensor_type") else None
    if info.type.WhichOneof("value") is None:
        raise UnsupportedModelError(f"input {name} has no type; export the model with types of its inputs")
    if dtype is None:
        kind = type_name(tensor.elem_type) if info.type.HasField("tensor_type") else info.type.WhichOneof("value")
        raise UnsupportedModelError(f"input {name} is a {kind}; only tensors of numbers and bools are compiled")
    axes = list(tensor.shape.dim) if tensor.HasField("shape") else None
    if shape is None:
        stated = declared_shape(info.type)
        if stated is None or None in stated:
            raise UnsupportedModelError(_how_to_bind(info, axes))
        shape = [n for n in stated if n is not None]
    for position, size in enumerate(shape):
        if size < 0 or (axes is not None and len(axes) == len(shape) and _contradicts(axes[position], size)):
            raise ConfigError(
                f"input {name}: axis {position} cannot have size {size}; the model says {_axes(axes)}"
            )
    if axes is not None and len(axes) != len(shape):
        raise ConfigError(f"input {name} has {len(axes)} axes {_axes(axes)}, {list(shape)} gives {len(shape)}")
    type_ = TensorType(dtype, tuple(int(n) for n in shape))
    check_size(f"input {name}", type_, limits)
    return type_


def _contradicts(axis: onnx.TensorShapeProto.Dimension, size: int) -> bool:
    return bool(axis.HasField("dim_value") and axis.dim_value > 0 and axis.dim_value != size)


def _axes(axes: Sequence[onnx.TensorShapeProto.Dimension] | None) -> str:
    if axes is None:
        return "nothing about its axes"
    return "[" + ", ".join(str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in axes) + "]"


def _how_to_bind(info: onnx.ValueInfoProto, axes: Sequence[onnx.TensorShapeProto.Dimension] | None) -> str:
    example = "1,..." if axes is None else ",".join(str(max(d.dim_value, 1)) for d in axes)
    has = "has no shape" if axes is None else f"has shape {_axes(axes)}"
    return (
        f"input {shown(info.name)} {has}; bind its free axes, as in --input {info.name}:{example}, or in `shapes` "
        "of a task of a release"
    )


# ---------------------------------------------------------------------- tasks
def _outputs(model: onnx.ModelProto, lift: Lift, task: str | None, name: str, where: str) -> None:
    made = {o.name: _output(lift, o.name, where) for o in model.graph.output}
    if not made:
        raise UnsafeInputError(f"{where}: the model has no outputs")
    recorded = {p.key: p.value for p in model.metadata_props}.get(TASKS_KEY)
    if recorded is None or task is not None:
        lift.graph.set_task(name, list(made.values()), list(made))
        return
    for task_name, outputs, labels, variants in _recorded(recorded, made, where):
        further = [[made[o] for o in level] for level in variants]
        lift.graph.set_task(task_name, [made[o] for o in outputs], labels, further)


def output_names(recorded: str | None) -> dict[tuple[str, str], str]:
    """(task, label) -> output of a loaded model that names its tasks; `recorded` is its metadata entry TASKS_KEY.

    Empty without one: then labels are the outputs' own names.
    """
    rows = json.loads(recorded) if recorded is not None else ()
    return {(t, label): o for t, outputs, labels, *_ in rows for o, label in zip(outputs, labels, strict=True)}


_Row = tuple[str, list[str], list[str], list[list[str]]]


def _recorded(text: str, made: Mapping[str, ValueRef], where: str) -> Iterator[_Row]:
    try:
        for task, outputs, labels, *more in json.loads(text):
            (variants,) = more or ([],)
            ladder = [outputs, *variants]
            if not outputs or any(len(o) != len(labels) for o in ladder):
                raise ValueError(task)
            if not all(isinstance(s, str) for s in (task, *labels)):
                raise TypeError(task)
            if not all(isinstance(o, str) and o in made for level in ladder for o in level):
                raise ValueError(task)
            yield task, outputs, labels, variants
    except _MISREAD:
        raise UnsafeInputError(
            f"{where}: metadata '{TASKS_KEY}' does not fit the model's outputs; give the task a name to ignore it"
        ) from None


def _output(lift: Lift, name: str, where: str) -> ValueRef:
    """The value behind an output. Inputs and constants get an Identity: every output is made by a node."""
    value = lift.values.get(name)
    if value is None:
        raise UnsafeInputError(f"{where}: output {shown(name)} is made by no node")
    graph = lift.graph
    if value.data is None and value not in graph.inputs:
        return value.ref
    source = lift.keep(_renamed(value, name) if value.ref not in graph else value)
    result = name if ValueRef(name) not in graph else graph.fresh(f"{name}.output")
    graph.add_value(result, TensorType(value.dtype, value.shape))
    node = f"Identity_{result}"
    node = node if NodeRef(node) not in graph else graph.fresh(node)
    graph.add_node(node, operator("Identity"), {}, [source], [ValueRef(result)])
    return ValueRef(result)


def _renamed(value: Value, taken: str) -> Value:
    if value.ref.name != taken:
        return value
    return replace(value, ref=ValueRef(f"{taken}.constant"))
