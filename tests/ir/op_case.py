"""What a test case of one operator is, and how it becomes a site."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import compiler.ir.ops  # noqa: F401  (fills the registry)
from compiler.ir.graph import Graph, Site
from compiler.ir.onnx_nodes import defaults, schema
from compiler.ir.op import OPSET, operator
from compiler.ir.types import DType, TensorType, ValueRef


@dataclass(frozen=True)
class Constant:
    """An operand that is a parameter of the graph (weights, shapes), not an input."""

    array: np.ndarray


@dataclass(frozen=True)
class OpCase:
    """One application of one operator.

    `operands` by formal position, None where absent. `free` lists exactly the axes from which an entry can be
    removed ("i0.1" is operand 0 axis 1, "o0.1" result 0 axis 1), `mixed` those whose entries influence each
    other; None leaves that unchecked. `macs` and `flops` are formulas independent of the operator's own. `oracle`
    names what evaluate is compared with: onnxruntime, reference (onnx.reference), or a callable that gets the site
    and the operand arrays.
    """

    op: str
    id: str
    operands: Sequence[np.ndarray | Constant | None]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    results: int = 1
    free: str | None = None
    mixed: str | None = None
    macs: int = 0
    flops: int | None = None
    tolerance: float = 1e-5
    oracle: str | Callable[..., Sequence[np.ndarray]] = "onnxruntime"
    lowers: bool = True
    """False where another route compiles the operator (its own tests check that route)."""

    def arrays(self) -> list[np.ndarray | None]:
        """The operand values by formal position."""
        return [o.array if isinstance(o, Constant) else o for o in self.operands]


def make_site(
    op: str, operands: Sequence[np.ndarray | Constant | None], attrs: Mapping[str, Any], results: int
) -> Site:
    """A graph of one node, as import makes it: attributes complete, types inferred."""
    graph, node_op = Graph(), operator(op)
    attrs = {**_defaults(op, node_op.domain), **attrs}
    refs: list[ValueRef | None] = []
    for i, operand in enumerate(operands):
        if operand is None:
            refs.append(None)
        elif isinstance(operand, Constant):
            refs.append(graph.add_parameter(f"i{i}", operand.array).ref)
        else:
            type_ = TensorType(DType(operand.dtype.name), operand.shape)
            refs.append(graph.add_input(f"i{i}", type_).ref)
    probe = graph.copy()
    node = probe.add_node("node", node_op, attrs, refs, ())
    full = node_op.normalise(attrs, probe.operands(node))
    probe = graph.copy()
    node = probe.add_node("node", node_op, full, refs, ())
    types = node_op.infer(node, probe.operands(node), results)
    outs = [graph.add_value(f"o{i}", t).ref for i, t in enumerate(types)]
    return graph.site(graph.add_node("node", node_op, full, refs, outs))


def _defaults(op: str, domain: str) -> dict[str, Any]:
    """Attribute defaults of the pinned opset, which import fills in."""
    known = schema(op, OPSET, domain)
    return defaults(known) if known is not None else {}


def site_of(case: OpCase) -> Site:
    """The site of a case."""
    return make_site(case.op, case.operands, case.attrs, case.results)
