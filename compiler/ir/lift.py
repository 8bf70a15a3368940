"""From the nodes of a guarded ONNX model to a typed graph.

One walk in the model's order. Each node is converted to the pinned opset, checked by ONNX's inference and by the
operator's own, folded where every operand is constant and the result is small enough, and otherwise added. Shapes
are static, so shape arithmetic, `If` around it, functions and operators that only have a function body dissolve
on the way. Nothing is evaluated before its size is known and below the limit.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

import compiler.ir.ops as _ops  # noqa: F401  fills the registry
from compiler.errors import UnsafeInputError, UnsupportedModelError, VerifyError
from compiler.ir.convert import at_pinned_opset
from compiler.ir.encoding import Dense, Encoding
from compiler.ir.folding import fold
from compiler.ir.graph import Attrs, Graph, Node, Operands, Site, Value
from compiler.ir.onnx_nodes import (
    STANDARD,
    Application,
    BrokenNode,
    FunctionKey,
    UnsupportedNode,
    array_of,
    attribute_value,
    decode,
    function_body,
    onnx_types,
    schema,
)
from compiler.ir.op import OPSET, Emitter, Op, Tensor, Tie
from compiler.ir.safety import Limits, check_size, shown
from compiler.ir.types import DType, NodeRef, TensorType, ValueRef

ARITHMETIC = (ArithmeticError, LookupError, TypeError, ValueError)
"""What an operator's shape arithmetic and evaluation run into where ONNX's inference let a contradiction pass."""


@dataclass(slots=True)
class Problems:
    """What the walk could not take over: refused applications by reason, and contradictions."""

    refused: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    causes: list[Exception] = field(default_factory=list)

    def refuse(self, app: Application, reason: str) -> None:
        """Note that `app` cannot be compiled, and why."""
        name = f"{app.domain}::{app.op}" if app.domain else app.op
        self.refused.setdefault((name, reason), []).append(app.label)


class _Names:
    """A supply of names not used yet."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def reserve(self, names: Iterable[str]) -> None:
        self._taken.update(names)

    def fresh(self, hint: str) -> str:
        candidate, n = hint, 0
        while candidate in self._taken:
            n += 1
            candidate = f"{hint}.{n}"
        self._taken.add(candidate)
        return candidate


@dataclass(slots=True)
class _Frame:
    """A list of nodes being walked: the main graph, a branch, or a function body."""

    version: int
    names: MutableMapping[str, str]
    prefix: str = ""
    attrs: Attrs | None = None


class _Unlisted(Op):
    """An operator outside the registry. It may be folded while importing and never enters a graph."""

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]

    def flops(self, site: Site) -> int:
        raise VerifyError(f"{self.name} exists only while importing")

    def ties(self, site: Site) -> Iterator[Tie]:
        raise VerifyError(f"{self.name} exists only while importing")

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        raise VerifyError(f"{self.name} exists only while importing")


class Lift:
    """The walk. `values` maps the name of every tensor seen to its value, None where a refused node made it.

    Constants enter the graph only when a node reads them. It also answers the questions of the conversion rules.
    """

    def __init__(self, graph: Graph, functions: Mapping[FunctionKey, onnx.FunctionProto], limits: Limits):
        self.graph = graph
        self.problems = Problems()
        self.values: dict[str, Value | None] = {}
        self._functions = functions
        self._limits = limits
        self._budget = limits.nodes
        self._tensor_names = _Names()
        self._node_names = _Names()
        self._named: set[str] = set()
        self._here = ""

    # ------------------------------------------------------------------ questions of conversion rules
    def type(self, name: str) -> TensorType:
        """Static type of a tensor already known."""
        return self._known(name).type

    def constant(self, name: str) -> np.ndarray | None:
        """Its value where it is constant."""
        return self._known(name).data

    def literal(self, array: np.ndarray, hint: str) -> str:
        """Name of a new constant."""
        name = self.temporary(hint)
        self.define(name, array)
        return name

    def temporary(self, hint: str) -> str:
        """A new name for a tensor between two nodes."""
        return self._tensor_names.fresh(f"{self._here}/{hint}")

    # ------------------------------------------------------------------ entry
    def main(self, body: onnx.GraphProto, version: int) -> None:
        """Walk the main graph; inputs and initializers are defined already."""
        self._tensor_names.reserve(self.values)
        self._tensor_names.reserve(o for n in body.node for o in n.output)
        self._node_names.reserve(n.name for n in body.node)
        names = {name: name for name in [*self.values, *(o for n in body.node for o in n.output)]}
        self._walk(body.node, _Frame(version, names))

    def define(
        self,
        name: str,
        array: np.ndarray,
        encoding: Encoding | None = None,
        sparser: tuple[np.ndarray, ...] = (),
        order: tuple[np.ndarray, ...] = (),
    ) -> None:
        """Let `name` be a constant, dense unless it has an encoding; ValueError where that does not fit."""
        type_ = TensorType(DType(array.dtype.name), tuple(array.shape), encoding or Dense())
        type_.encoding.check(type_.shape, array)
        self.values[name] = Value(ValueRef(name), type_, array, sparser, order)

    def keep(self, value: Value) -> ValueRef:
        """The value's reference, once it is in the graph."""
        if value.ref not in self.graph:
            self.graph.add_value(value.ref.name, value.type, value.data, value.sparser, value.order)
        return value.ref

    # ------------------------------------------------------------------ the walk
    def _known(self, name: str) -> Value:
        value = self.values.get(name)
        if value is None:
            raise _Unreached
        return value

    def _walk(self, nodes: Iterable[onnx.NodeProto], frame: _Frame) -> None:
        for node in nodes:
            self._budget -= 1
            if self._budget < 0:
                raise UnsafeInputError(
                    f"the model unfolds to more than {self._limits.nodes} nodes: functions call functions too often"
                )
            self._node(node, frame)

    def _node(self, node: onnx.NodeProto, frame: _Frame) -> None:
        app = decode(node, frame.version, frame.attrs)
        try:
            app = self._renamed(app, frame)
            self._here = app.label
            self._dispatch(app, frame)
            missing = [o for o in app.outputs if o and o not in self.values]
            if missing:
                raise BrokenNode(f"does not make '{missing[0]}'")
        except _Unreached:
            self._refuse_if_unknown(app)
        except (UnsupportedNode, UnsupportedModelError) as error:
            self.problems.refuse(app, str(error))
        except (BrokenNode, VerifyError) as error:
            where = f"{app.op} '{app.label}': "
            self.problems.broken.append(where + str(error).removeprefix(where))
        except ARITHMETIC as error:
            self.problems.broken.append(f"{app.op} '{app.label}': {type(error).__name__}: {error}")
            self.problems.causes.append(error)
        for output in app.outputs:
            self.values.setdefault(output, None)

    def _renamed(self, app: Application, frame: _Frame) -> Application:
        """The application with the names of the whole walk instead of those of its frame."""
        undefined = [i for i in app.inputs if i and i not in frame.names]
        if undefined:
            raise BrokenNode(f"reads '{undefined[0]}', which does not exist")
        inputs = tuple(frame.names[i] if i else "" for i in app.inputs)
        for output in app.outputs:
            if output and output not in frame.names:
                frame.names[output] = self._tensor_names.fresh(frame.prefix + output)
        outputs = tuple(frame.names[o] if o else "" for o in app.outputs)
        name = app.name and frame.prefix + app.name
        return replace(app, inputs=inputs, outputs=_trimmed(outputs), name=name)

    def _dispatch(self, app: Application, frame: _Frame) -> None:
        function = self._functions.get(app.function)
        if function is not None:
            self._call(app, function)
        elif app.op == "If" and not app.domain:
            self._branch(app, frame)
        elif schema(app.op, app.version, app.domain) is None:
            raise UnsupportedNode(_unknown(app))
        else:
            for part in at_pinned_opset(app, self):
                self._apply(part)

    def _refuse_if_unknown(self, app: Application) -> None:
        """Name operators behind a refused one as well, so that one message lists them all."""
        if app.function in self._functions or app.op in Op.registry:
            return
        known = schema(app.op, app.version, app.domain)
        if known is None or not (known.has_function or known.has_context_dependent_function):
            self.problems.refuse(app, _unknown(app))

    # ------------------------------------------------------------------ nested bodies
    def _branch(self, app: Application, frame: _Frame) -> None:
        condition = self.constant(app.inputs[0])
        if condition is None or condition.size != 1:
            raise UnsupportedNode("control flow: the condition is not constant")
        body = app.attrs["then_branch" if condition.item() else "else_branch"]
        inner = _Frame(frame.version, ChainMap({}, frame.names), app.label + "/", frame.attrs)
        self._initializers(body, inner)
        self._walk(body.node, inner)
        for outer, output in zip(app.outputs, body.output, strict=False):
            self.values[outer] = self.values[inner.names[output.name]]

    def _initializers(self, body: onnx.GraphProto, frame: _Frame) -> None:
        for tensor in body.initializer:
            frame.names[tensor.name] = self._tensor_names.fresh(frame.prefix + tensor.name)
            self.define(frame.names[tensor.name], array_of(tensor))

    def _call(self, app: Application, function: onnx.FunctionProto) -> None:
        defaults = {a.name: attribute_value(a) for a in function.attribute_proto}
        version = next((o.version for o in function.opset_import if o.domain in STANDARD), app.version)
        given = dict(zip(function.input, app.inputs, strict=False))
        names = {i: given.get(i, "") for i in function.input}
        inner = _Frame(version, names, app.label + "/", {**defaults, **app.attrs})
        self._walk(function.node, inner)
        for outer, output in zip(app.outputs, function.output, strict=False):
            if outer:
                self.values[outer] = self.values[inner.names[output]]

    # ------------------------------------------------------------------ one application
    def _apply(self, app: Application) -> None:
        if app.op in _SPECIAL:
            _SPECIAL[app.op](self, app)
            return
        operands = [self._known(i) if i else None for i in app.inputs]
        if app.op in Op.registry and app.version == OPSET:
            self._listed(app, operands)
        elif not self._folded_unlisted(app, operands):
            body = function_body(app, operands)
            if body is None:
                raise UnsupportedNode(_unknown(app))
            self._call(app, body)

    def _listed(self, app: Application, operands: Sequence[Value | None]) -> None:
        expected = onnx_types(app, operands)
        read, op = Operands(operands), Op.registry[app.op]
        attrs = op.normalise(app.attrs, read)
        absent = tuple(i for i, v in enumerate(operands) if v is None)
        node = Node(NodeRef(app.label), op, attrs, absent)
        types = op.infer(node, read, len(app.outputs))
        for i, (mine, theirs) in enumerate(zip(types, expected, strict=True)):
            if theirs is not None and mine != theirs and op.onnx_infers:
                raise BrokenNode(f"result {i} is {theirs} by ONNX's inference, {mine} by ours")
        self._emit(app, node, read, types)

    def _emit(self, app: Application, node: Node, read: Operands, types: Sequence[TensorType]) -> None:
        outputs = [o or self._tensor_names.fresh(f"{app.label}:{i}") for i, o in enumerate(app.outputs)]
        results = tuple(Value(ValueRef(o), self._bounded(o, t)) for o, t in zip(outputs, types, strict=True))
        levels = any(v.nested for _, v in read.present())  # a folded value would have one level only
        folded = None if levels else fold(Site(node, read, results), self._limits.folded_bytes)
        if folded is not None:
            for result, array in zip(results, folded, strict=True):
                self.values[result.ref.name] = replace(result, data=array)
            return
        sources = [None if v is None else self.keep(v) for v in map(read.optional, range(len(read)))]
        for result in results:
            self.values[result.ref.name] = self.graph.add_value(result.ref.name, result.type)
        name = self._node_names.fresh(app.label) if not app.name or app.name in self._named else app.name
        self._named.add(name)
        origin = (app.name,) if app.name else ()
        self.graph.add_node(name, node.op, node.attrs, sources, [r.ref for r in results], origin)

    def _bounded(self, name: str, type_: TensorType) -> TensorType:
        check_size(f"tensor {shown(name)}", type_, self._limits)
        return type_

    def _folded_unlisted(self, app: Application, operands: Sequence[Value | None]) -> bool:
        """Fold an application of an operator outside the registry; False where that cannot be done."""
        if app.op in _NEVER_FOLDED or any(v is not None and v.data is None for v in operands):
            return False
        types = onnx_types(app, operands)
        if any(t is None for t in types):
            return False
        results = tuple(
            Value(ValueRef(o), self._bounded(o, t))
            for o, t in zip(app.outputs, types, strict=True)
            if t is not None
        )
        node = Node(NodeRef(app.label), _Unlisted(app.op), app.attrs)
        folded = fold(Site(node, Operands(operands), results), min(self._limits.folded_bytes, _UNLISTED_BYTES))
        if folded is None:
            return False
        for result, array in zip(results, folded, strict=True):
            self.values[result.ref.name] = replace(result, data=array)
        return True

    # ------------------------------------------------------------------ applications that dissolve
    def _constant(self, app: Application) -> None:
        for name, dtype in (("int", np.int64), ("float", np.float32)):
            for key in (f"value_{name}", f"value_{name}s"):
                if key in app.attrs:
                    self.define(app.outputs[0], np.asarray(app.attrs[key], dtype))
                    return
        if "value" not in app.attrs:
            raise UnsupportedNode(f"constant given as {', '.join(sorted(app.attrs))}")
        self.define(app.outputs[0], array_of(app.attrs["value"]))

    def _constant_of_shape(self, app: Application) -> None:
        shape = self.constant(app.inputs[0])
        if shape is None:
            raise UnsupportedNode("its shape is not constant")
        if np.any(shape < 0):
            raise BrokenNode(f"negative size in shape {shape.tolist()}")
        tensor = app.attrs.get("value")
        element = np.zeros(1, np.float32) if tensor is None else array_of(tensor)
        type_ = TensorType(DType(element.dtype.name), tuple(map(int, shape)))
        self._bounded(app.outputs[0], type_)
        self.define(app.outputs[0], np.broadcast_to(element.reshape(()), type_.shape))

    def _identity(self, app: Application) -> None:
        self.values[app.outputs[0]] = self._known(app.inputs[0])

    def _dropout(self, app: Application) -> None:
        if not self._is_zero(app, 1) and not self._is_zero(app, 2):
            raise UnsupportedNode("random dropping (training mode)")
        data = self._known(app.inputs[0])
        self.values[app.outputs[0]] = data
        if len(app.outputs) > 1:
            self.define(app.outputs[1], np.broadcast_to(np.True_, data.shape))

    def _is_zero(self, app: Application, position: int) -> bool:
        """Whether the operand is known to be zero; one left out is, except Dropout's ratio."""
        if len(app.inputs) <= position or not app.inputs[position]:
            return position == 2
        value = self.constant(app.inputs[position])
        return value is not None and not value.any()

    def _non_zero(self, app: Application) -> None:
        data = self.constant(app.inputs[0])
        if data is None or data.nbytes > _UNLISTED_BYTES:
            raise UnsupportedNode("the shape of its result depends on data")
        self.define(app.outputs[0], np.asarray(np.nonzero(data), np.int64))

    def _shape(self, app: Application) -> None:
        shape = self.type(app.inputs[0]).shape
        self.define(app.outputs[0], np.asarray(shape[app.attrs["start"] : app.attrs.get("end")], np.int64))

    def _size(self, app: Application) -> None:
        self.define(app.outputs[0], np.asarray(self.type(app.inputs[0]).size, np.int64))


class _Unreached(Exception):
    """An operand comes from a refused node, so nothing can be said about this one."""


_SPECIAL: Mapping[str, Callable[[Lift, Application], None]] = {
    "Constant": Lift._constant,
    "ConstantOfShape": Lift._constant_of_shape,
    "Dropout": Lift._dropout,
    "Identity": Lift._identity,
    "NonZero": Lift._non_zero,
    "Shape": Lift._shape,
    "Size": Lift._size,
}
"""Operators that never reach the graph."""

_NEVER_FOLDED = frozenset(
    "Bernoulli Loop Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike Scan SequenceMap"
    "".split()
)
"""Without the registry's knowledge: unbounded work, or another value every time."""
_UNLISTED_BYTES = 1 << 20


def _unknown(app: Application) -> str:
    if app.domain:
        return "an operator of a foreign domain"
    if app.op in ("Loop", "Scan"):
        return "control flow"
    if schema(app.op, app.version) is None:
        return f"no operator of opset {app.version}"
    return "not among the operators taskgraft compiles"


def _trimmed(names: tuple[str, ...]) -> tuple[str, ...]:
    while names and not names[-1]:
        names = names[:-1]
    return names
