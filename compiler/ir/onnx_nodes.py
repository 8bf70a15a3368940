"""One node of an ONNX model, decoded: complete attributes, schema questions, ONNX's own type inference."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    NodeProto,
    TensorProto,
    TypeProto,
    checker,
    defs,
    helper,
    numpy_helper,
    shape_inference,
)

from compiler.ir.graph import Attrs, Value
from compiler.ir.op import IR_VERSION, make_node
from compiler.ir.types import DType, TensorType

STANDARD = ("", "ai.onnx")
FunctionKey = tuple[str, str, str]
"""Domain, name and overload: what one function of a model is told from the others by."""
_SMALL = 4096  # larger constants never decide a shape


class BrokenNode(Exception):
    """A node contradicts the ONNX specification. Private to the import: `load` turns it into a user message."""


class UnsupportedNode(Exception):
    """A node is sound but cannot be expressed here. Private to the import."""


@dataclass(frozen=True, slots=True)
class Application:
    """One application of an operator as a model states it, under opset `version` of its domain.

    `attrs` holds int, float, str, tuples of these, and protos (tensors, graphs) where ONNX has them. An empty
    name in `inputs` or `outputs` is an optional tensor left out.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Attrs = field(default_factory=dict)
    version: int = 0
    name: str = ""
    domain: str = ""
    overload: str = ""
    """Which of the functions of this name in the model."""

    @property
    def label(self) -> str:
        """Name for messages and for the node: the given one, or operator and first result."""
        return self.name or f"{self.op}_{next((o for o in self.outputs if o), '')}"

    @property
    def function(self) -> FunctionKey:
        """What a function of the model would have to be called for the application to be a call of it."""
        return self.domain, self.op, self.overload

    def proto(self) -> NodeProto:
        """The node as ONNX."""
        return make_node(self.op, self.inputs, self.outputs, self.attrs, self.name, self.domain)


def schema(op: str, version: int, domain: str = "") -> defs.OpSchema | None:
    """The operator's schema in opset `version` of the standard domain, or None."""
    if domain not in STANDARD or not defs.has(op, ""):
        return None
    try:
        return defs.get_schema(op, version, "")
    except defs.SchemaError:
        return None


def decode(node: NodeProto, version: int, outer: Attrs | None = None) -> Application:
    """The application `node` states, with attributes it omits filled from the schema.

    `outer` gives the values that attribute references inside a function body stand for.
    """
    attrs: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            if outer is not None and attribute.ref_attr_name in outer:
                attrs[attribute.name] = outer[attribute.ref_attr_name]
        else:
            attrs[attribute.name] = attribute_value(attribute)
    domain = "" if node.domain in STANDARD else node.domain
    known = schema(node.op_type, version, domain)
    if known is not None:
        attrs = {**defaults(known), **attrs}
    ports = tuple(node.input), tuple(node.output)
    return Application(node.op_type, *ports, attrs, version, node.name, domain, node.overload)


def defaults(known: defs.OpSchema) -> dict[str, Any]:
    """Default values of the attributes that have one."""
    return {
        name: attribute_value(a.default_value)
        for name, a in known.attributes.items()
        if a.default_value.type != AttributeProto.UNDEFINED
    }


def attribute_value(attribute: AttributeProto) -> Any:
    """int, float, str, tuples of these, or a proto (tensor, graph, type)."""
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return _text(value)
    if attribute.type == AttributeProto.STRINGS:
        return tuple(_text(v) for v in value)
    if isinstance(value, (str, int, float, onnx.TensorProto, onnx.GraphProto, onnx.TypeProto)):
        return value
    return value if isinstance(value, onnx.SparseTensorProto) else tuple(value)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


# ---------------------------------------------------------------------- types and tensors
def dtype_of(code: int) -> DType | None:
    """The element type of an ONNX code, or None where there is none here (strings, complex, bfloat16...)."""
    try:
        return DType(helper.tensor_dtype_to_np_dtype(code).name)
    except (KeyError, ValueError, TypeError):
        return None


def type_name(code: int) -> str:
    """ONNX's name of an element type."""
    try:
        return str(TensorProto.DataType.Name(code))
    except ValueError:
        return f"type {code}"


def declared_shape(proto: TypeProto) -> tuple[int | None, ...] | None:
    """The sizes of a tensor's axes, None for those that are free; None where the file states no shape."""
    tensor = proto.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None for d in tensor.shape.dim)


def static_type(proto: TypeProto) -> TensorType | None:
    """The tensor type when element type and every size are known, else None."""
    tensor = proto.tensor_type
    dtype = dtype_of(tensor.elem_type) if proto.HasField("tensor_type") else None
    if dtype is None or not tensor.HasField("shape"):
        return None
    if any(not d.HasField("dim_value") for d in tensor.shape.dim):
        return None
    return TensorType(dtype, tuple(d.dim_value for d in tensor.shape.dim))


def type_proto(type_: TensorType) -> TypeProto:
    """The ONNX form of a tensor type."""
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(type_.dtype.numpy), type_.shape)


def array_of(tensor: TensorProto) -> np.ndarray:
    """The read-only array of a tensor; UnsupportedNode for element types there are none of here."""
    if dtype_of(tensor.data_type) is None:
        raise UnsupportedNode(f"tensor '{tensor.name}' holds {type_name(tensor.data_type)} elements")
    array = np.asarray(numpy_helper.to_array(tensor))
    array.flags.writeable = False
    return array


def onnx_types(app: Application, operands: Sequence[Value | None]) -> list[TensorType | None]:
    """Types of the results by ONNX's inference of this one node; None where they stay open.

    Raises BrokenNode with ONNX's reason where the operands contradict the operator. Only shapes and small
    constants are shown to ONNX, so nothing large can be built.
    """
    known = schema(app.op, app.version)
    assert known is not None
    _check_attributes(app, operands)
    names = ["" if v is None else f"i{i}" for i, v in enumerate(operands)]
    outputs = [f"o{i}" if o else "" for i, o in enumerate(app.outputs)]
    node = Application(app.op, tuple(names), tuple(outputs), app.attrs).proto()
    given = [(n, v) for n, v in zip(names, operands, strict=True) if v is not None]
    data = {n: _tensor(v.data) for n, v in given if v.data is not None and _decides_shapes(v.data)}
    opsets = [helper.make_opsetid("", app.version)]
    try:
        found = shape_inference.infer_node_outputs(
            known, node, {n: type_proto(v.type) for n, v in given}, data, None, opsets, IR_VERSION
        )
    except (shape_inference.InferenceError, ValueError) as error:
        raise BrokenNode(str(error).strip().splitlines()[-1]) from None
    except checker.ValidationError as error:  # wider element types of a newer opset
        raise UnsupportedNode(str(error).strip().splitlines()[0]) from None
    return [static_type(found[o]) if o and o in found else None for o in outputs]


_AXIS_END = {"Flatten": 1, "OneHot": 1, "DequantizeLinear": 2, "QuantizeLinear": 2}
"""How far beyond the rank of the first operand an axis may point."""


_TERM = r"[A-Za-z ]*(\.\.\.[A-Za-z ]*)?"
_EQUATION = re.compile(rf"{_TERM}(,{_TERM})*(->{_TERM})?")
"""Of Einsum."""


def _check_attributes(app: Application, operands: Sequence[Value | None]) -> None:
    """Refuse what ONNX's own inference does not check: at some of these it reads or writes out of bounds, or never
    ends.
    """
    if app.op == "Einsum" and not _EQUATION.fullmatch(str(app.attrs.get("equation", ""))):
        raise BrokenNode(f"{app.attrs['equation']!a:.60} is no equation: a term is letters, with ... at most once")
    if not operands or operands[0] is None:
        return
    parts = app.attrs.get("num_outputs", len(app.outputs)) if app.op == "Split" else len(app.outputs)
    sizes = operands[1] if app.op == "Split" and len(operands) > 1 else None
    if parts != len(app.outputs) or (sizes is not None and sizes.size != len(app.outputs)):
        raise BrokenNode(f"has {len(app.outputs)} outputs, its operands and attributes speak of another number")
    group = app.attrs.get("group", 1)
    if group < 1 or (group > 1 and (operands[0].rank < 2 or operands[0].shape[1] % group)):
        raise BrokenNode(f"cannot divide {operands[0].type} into {group} groups")
    if app.attrs.get("batch_dims", 0) < 0:
        raise BrokenNode(f"attribute batch_dims={app.attrs['batch_dims']} is negative")
    rank, spare = operands[0].rank, _AXIS_END.get(app.op, 0)
    for name in ("axis", "axes", "batch_axis", "time_axis", "batch_dims"):
        check_axes(app, name, rank, spare)


def check_axes(app: Application, name: str, rank: int, spare: int = 0) -> None:
    """BrokenNode where the attribute `name`, an axis or several, points outside of the `rank` axes of an operand,
    or more than `spare` beyond them; fine where it is not given."""
    given = app.attrs.get(name, ())
    for axis in given if isinstance(given, tuple) else (given,):
        if not -rank - spare <= axis < max(rank + spare, 1):
            raise BrokenNode(f"attribute {name}={given} is out of range for an operand of rank {rank}")


def _decides_shapes(data: np.ndarray) -> bool:
    return data.size <= _SMALL


def _tensor(data: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(data).reshape(data.shape))


def function_body(app: Application, operands: Sequence[Value | None]) -> onnx.FunctionProto | None:
    """The operator's own definition by simpler ones, or None where the standard gives none."""
    known = schema(app.op, app.version)
    if known is None:
        return None
    if known.has_context_dependent_function:
        version = max(v for v in known.context_dependent_function_opset_versions if v <= app.version)
        types = [b"" if v is None else type_proto(v.type).SerializeToString() for v in operands]
        text = known.get_context_dependent_function_with_opset_version(
            version, app.proto().SerializeToString(), types
        )
    elif known.has_function:
        version = max(v for v in known.function_opset_versions if v <= app.version)
        text = known.get_function_with_opset_version(version)
    else:
        return None
    body = onnx.FunctionProto()
    body.ParseFromString(text)
    return body


# ---------------------------------------------------------------------- schema comparison
def differences(app: Application, old: defs.OpSchema, new: defs.OpSchema) -> Iterator[str]:
    """Why an application valid under schema `old` may mean something else under `new`; type constraints aside.

    An attribute that `new` lacks is fine at its default, one that `old` lacks is fine where it is optional.
    """
    if new.deprecated:
        yield "it is deprecated there"
    for name in sorted(set(old.attributes) & set(new.attributes)):
        if old.attributes[name].type != new.attributes[name].type:
            yield f"attribute {name} changed its type"
    ignored = defaults(old)
    for name in sorted(set(app.attrs) - set(new.attributes)):
        if name not in ignored or ignored[name] != app.attrs[name]:
            yield f"attribute {name}={app.attrs[name]!r} does not exist there"
    for name, attribute in sorted(new.attributes.items()):
        if attribute.required and name not in app.attrs:
            yield f"attribute {name} is required there"
    for kind, count, low, high in (
        ("inputs", len(app.inputs), new.min_input, new.max_input),
        ("outputs", len(app.outputs), new.min_output, new.max_output),
    ):
        if not low <= count <= high:
            yield f"it has {count} {kind}, {low} to {high} are allowed there"
