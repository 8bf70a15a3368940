"""The meaning of one operator, in one place.

Adding an operator is adding one subclass of `Op` (see CONTRIBUTING.md): shapes, values, cost, ties and lowering.
`compiler.ir.ops` holds them; importing that package fills the registry. Nothing here knows TVM: lowering is
written against the `Emitter` protocol, which `compiler.codegen.generic.language` implements.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import onnx
from onnx import AttributeProto, helper, numpy_helper, shape_inference

from compiler.errors import VerifyError
from compiler.ir.graph import Attrs, Node, Operands, Site, Value
from compiler.ir.types import Axis, DType, NodeRef, TensorType, splat_value

OPSET = 21
IR_VERSION = 10

Expr = Any
"""A scalar expression of the lowering language; supports the usual Python arithmetic and comparison operators
(`+ - * / % // < <= > >= ==`), with `//` and `%` for non-negative integers only."""


Combine = Literal["sum", "prod", "max", "min", "maximum", "minimum"]
"""How a reduction combines. `max` and `min` may pass over NaN; `maximum` and `minimum` do not (IEEE 754-2019)."""


class Tensor(Protocol):
    """A tensor of the lowering language: index it to read an element."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> DType: ...
    def __call__(self, *indices: Expr) -> Expr: ...


class Emitter(Protocol):
    """What an operator's `lower` may use to say what it computes: pure element-wise definitions over indices."""

    def compute(self, shape: Sequence[int], dtype: DType, body: Callable[..., Expr]) -> Tensor:
        """A tensor whose element at `indices` is `body(*indices)`."""

    def reduce(
        self,
        shape: Sequence[int],
        dtype: DType,
        extents: Sequence[int],
        kind: Combine,
        body: Callable[..., Expr],
    ) -> Tensor:
        """Element at `outer` is the reduction of `body(*outer, *inner)` over inner indices below `extents`."""

    def constant(self, array: np.ndarray) -> Tensor:
        """A table known at compile time."""

    def const(self, value: bool | int | float, dtype: DType) -> Expr:
        """A scalar literal."""

    def cast(self, value: Expr, dtype: DType) -> Expr:
        """C-like conversion (towards zero for float to integer; != 0 for bool)."""

    def select(self, condition: Expr, yes: Expr, no: Expr) -> Expr:
        """`yes` where `condition`, else `no`; the branch not taken is not evaluated (guards out-of-range reads)."""

    def call(self, function: str, *arguments: Expr) -> Expr:
        """Scalar function: exp log sqrt tanh sigmoid erf sin cos tan asin acos atan sinh cosh asinh acosh atanh
        floor ceil round (half to even) trunc abs pow fmod isnan isinf; min max (the second argument where one is
        NaN), minimum maximum (NaN where one is); and or not xor on bools; bitand bitor bitxor bitnot shl shr and
        quotient (towards zero, of a divisor other than 0 and -1) on integers; div on floats (the divisor may be the
        number 0, unlike that of /); add sub mul (integers wrap around where + - * must not leave their type)."""

    def recurrent(self, site: Site, tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """The results of an LSTM, GRU or RNN site: the one form with state carried from step to step.

        `tensors` by formal position: X [S, N, I], W [D, G*H, I], R [D, G*H, H], B [D, 2*G*H] (input half, then
        recurrent half), sequence_lens [N], initial_h [D, N, H], initial_c [D, N, H] (LSTM), P [D, 3*H] (LSTM,
        order i, o, f); any after R may be None. G gates in ONNX order, gate-major rows: LSTM i, o, f, c; GRU
        z, r, h; RNN one. D is 2 for direction=bidirectional (forward, then reverse), else 1; reverse runs each
        sequence from its own last step. Results Y [S, D, N, H], Y_h [D, N, H], Y_c [D, N, H] (LSTM), as many as
        the site has. With layout=1, N is the first axis of X, Y and the states.
        """


class Kind(enum.Enum):
    """ENTRYWISE: entries are independent. MIXED: entries of the axis influence each other through a statistic."""

    ENTRYWISE = "entrywise"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True, eq=False)
class Tie:
    """Entry j of axis `b` exists iff entry index[j] of axis `a` exists; index[j] == -1 says nothing about j."""

    a: Axis
    b: Axis
    index: np.ndarray
    kind: Kind = Kind.ENTRYWISE


def entrywise(a: Axis, b: Axis, index: np.ndarray) -> Tie:
    """A tie between independent entries; pass the index map explicitly."""
    return Tie(a, b, np.asarray(index, np.int64), Kind.ENTRYWISE)


def mixed(a: Axis, b: Axis, index: np.ndarray) -> Tie:
    """A tie along an axis whose entries influence each other (softmax, normalisation)."""
    return Tie(a, b, np.asarray(index, np.int64), Kind.MIXED)


def identity(a: Value, a_dim: int, b: Value, b_dim: int) -> Tie:
    """Entry j of one axis exists iff entry j of the other does (axes of equal size)."""
    return entrywise(a.axis(a_dim), b.axis(b_dim), np.arange(b.shape[b_dim]))


@dataclass(frozen=True, slots=True)
class Kept:
    """Which entries of each axis survive surgery; axes that are not listed keep all."""

    entries: Mapping[Axis, np.ndarray] = field(default_factory=dict)

    def of(self, value: Value, dim: int) -> np.ndarray:
        """Ascending positions of the surviving entries of `value`'s axis `dim`."""
        found = self.entries.get(value.axis(dim))
        return np.arange(value.shape[dim]) if found is None else found

    def virtual(self, node: NodeRef, dim: str, size: int) -> np.ndarray:
        """The same for a virtual axis of a node."""
        found = self.entries.get(Axis(node, dim))
        return np.arange(size) if found is None else found

    def shape(self, value: Value) -> tuple[int, ...]:
        """The shape that remains of `value`."""
        return tuple(len(self.of(value, d)) for d in range(value.rank))


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What surgery writes back at a node: all attributes, and new data of constant operands by position."""

    attrs: Attrs
    constants: Mapping[int, np.ndarray] = field(default_factory=dict)


class Op(abc.ABC):
    """The meaning of one operator at the pinned opset. Instances are registered singletons.

    A subclass must define `flops`, `ties` and `lower`. The defaults of `infer` and `evaluate` ask ONNX about a
    model of this one node.
    """

    name: ClassVar[str]
    """ONNX op_type, also the registry key."""

    domain: ClassVar[str] = ""

    reinterprets: ClassVar[bool] = False
    """Whether the first result is the first operand's row-major data under another shape (no kernel needed)."""

    onnx_infers: ClassVar[bool] = True
    """False where ONNX's shape inference is known to err and `infer` alone decides."""

    registry: ClassVar[dict[str, Op]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            if cls.name in Op.registry:
                raise TypeError(f"operator {cls.name} is registered twice")
            Op.registry[cls.name] = cls()

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        """Complete attributes from those of a model (ONNX defaults are filled already): pads, kernel shape..."""
        return attrs

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        """Types of the `count` results. VerifyError where the operands do not fit."""
        types = infer_by_onnx(node, operands, count)
        if self.reinterprets and types[0].size != operands[0].size:  # ONNX's inference lets it pass
            raise VerifyError(f"{self.name} '{node.ref}': {operands[0].type} has not the elements of {types[0]}")
        return types

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        """Values of the results, in numpy; `arrays` by formal operand position."""
        return evaluate_by_onnx(site, arrays)

    def macs(self, site: Site) -> int:
        """Multiply-adds of a product operator (bias excluded); 0 for every other operator."""
        return 0

    @abc.abstractmethod
    def flops(self, site: Site) -> int:
        """Floating-point operations: 2 * macs for product operators, else the count listed in docs/cost.md."""

    @abc.abstractmethod
    def ties(self, site: Site) -> Iterator[Tie]:
        """How entries of operand, result and virtual axes depend on each other."""

    def rebuild(self, site: Site, kept: Kept) -> Rebuilt:
        """Attributes and constant operands after entries were removed (data on tied axes is sliced already)."""
        return Rebuilt(site.attrs)

    @abc.abstractmethod
    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """Generic lowering of the results; `tensors` by formal operand position, constants included."""


class MacOp(Op):
    """An operator whose cost is its multiply-adds."""

    @abc.abstractmethod
    def macs(self, site: Site) -> int:
        """Multiply-adds, bias excluded."""

    def products(self, site: Site, index: int) -> int:
        """Multiply-adds that every element of matrix operand `index` takes part in; 0 for other operands.

        The default is that of two factors. An element that is not stored saves as many.
        """
        return self.macs(site) // max(site.operands[index].size, 1) if index < 2 else 0

    def flops(self, site: Site) -> int:
        return 2 * self.macs(site)


def operator(name: str) -> Op:
    """The registered operator called `name`; VerifyError if there is none."""
    try:
        return Op.registry[name]
    except KeyError:
        raise VerifyError(f"operator {name} is not registered") from None


# ---------------------------------------------------------------------- one-node ONNX models
def to_onnx_node(node: Node, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.NodeProto:
    """The ONNX form of a node with the given tensor names."""
    return make_node(node.op.name, inputs, outputs, node.attrs, domain=node.op.domain)


def make_node(
    op: str, inputs: Sequence[str], outputs: Sequence[str], attrs: Attrs, name: str = "", domain: str = ""
) -> onnx.NodeProto:
    """An ONNX node; attributes have their natural type, and an empty tuple is a list of integers."""
    node = helper.make_node(op, inputs, outputs, name=name, domain=domain)
    for key, value in attrs.items():
        kind = AttributeProto.INTS if isinstance(value, tuple) and not value else None
        node.attribute.append(helper.make_attribute(key, value, attr_type=kind))
    return node


def _names(operands: Operands) -> list[str]:
    return ["" if operands.optional(i) is None else f"i{i}" for i in range(len(operands))]


_SMALL = 4096  # larger constants are inputs of the one-node model: shapes do not depend on their values


def _one_node(node: Node, operands: Operands, count: int) -> onnx.ModelProto:
    outputs = [f"o{i}" for i in range(count)]
    infos, constants = [], []
    for i, value in operands.present():
        code = helper.np_dtype_to_tensor_dtype(value.dtype.numpy)
        if value.data is not None and value.size <= _SMALL and splat_value(value.data) is None:
            constants.append(numpy_helper.from_array(np.asarray(value.data, order="C"), f"i{i}"))
        else:
            infos.append(helper.make_tensor_value_info(f"i{i}", code, value.shape))
    body = helper.make_graph(
        [to_onnx_node(node, _names(operands), outputs)],
        "one",
        infos,
        [onnx.ValueInfoProto(name=o) for o in outputs],
        constants,
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def infer_by_onnx(node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
    """Result types by ONNX shape inference of this one node; VerifyError where it fails or stays open."""
    where = f"{node.op.name} '{node.ref}'"
    try:
        # no data_prop: one node needs none, and it allocates per element of a long vector
        model = shape_inference.infer_shapes(_one_node(node, operands, count), check_type=True, strict_mode=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1]
        raise VerifyError(f"{where}: {reason}") from None
    found = []
    for info in model.graph.output:
        tensor = info.type.tensor_type
        dims = tensor.shape.dim
        known = tensor.elem_type and tensor.HasField("shape")
        if not known or any(not d.HasField("dim_value") for d in dims):
            raise VerifyError(f"{where}: the shape of result '{info.name}' cannot be inferred statically")
        dtype = DType(helper.tensor_dtype_to_np_dtype(tensor.elem_type).name)
        found.append(TensorType(dtype, tuple(d.dim_value for d in dims)))
    return tuple(found)


@lru_cache(maxsize=4096)
def _evaluator(
    key: tuple[str, str], attrs: tuple[tuple[str, Any], ...], present: tuple[bool, ...], count: int
) -> Any:
    """The ONNX reference implementation of one node; building it costs more than running it."""
    from onnx.reference import ReferenceEvaluator

    names = [f"i{i}" if there else "" for i, there in enumerate(present)]
    outputs = [f"o{i}" for i in range(count)]
    node = make_node(key[1], names, outputs, dict(attrs), domain=key[0])
    infos = [onnx.ValueInfoProto(name=n) for n in names if n]
    body = helper.make_graph([node], "one", infos, [onnx.ValueInfoProto(name=o) for o in outputs])
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return ReferenceEvaluator(model)


def evaluate_by_onnx(site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
    """Result values by the ONNX reference implementation of this one node."""
    op = site.node.op
    attrs = tuple(sorted(site.attrs.items()))
    evaluator = _evaluator((op.domain, op.name), attrs, tuple(a is not None for a in arrays), len(site.results))
    results = evaluator.run(None, {f"i{i}": a for i, a in enumerate(arrays) if a is not None})
    return tuple(np.asarray(r, v.dtype.numpy).reshape(v.shape) for r, v in zip(results, site.results, strict=True))
