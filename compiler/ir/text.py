"""Deterministic printing, digests and structural signatures of graphs.

The printed form depends on names, structure, attributes and data, never on the order in which a graph was built.
Floating-point attributes are printed as float32, the precision ONNX stores, so a model that went through a file
keeps its digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np

from compiler.ir.encoding import Dense
from compiler.ir.graph import Attrs, Graph, Node, Site, Value
from compiler.ir.types import Task, TensorType, splat_value

_SHORT = 12


def text(graph: Graph, *, full_digests: bool = False) -> str:
    """The graph as lines: inputs, parameters (as digests), nodes in topological order, tasks."""
    return "\n".join(_lines(graph, 64 if full_digests else _SHORT)) + "\n"


def digest(graph: Graph) -> str:
    """SHA-256 (hex) over names, structure, attributes, types, tasks and all data; not over `graph.name`."""
    return hashlib.sha256(text(graph, full_digests=True).encode()).hexdigest()


def parameter_digest(value: Value) -> str:
    """SHA-256 (hex) over type and data of a parameter, at every level, and its order.

    A tensor of equal elements has one digest, whether it is stored in full or as a splat of one element, and a
    splat is never written out.
    """
    data = value.constant
    state = hashlib.sha256(f"{type_text(value.type)};".encode())
    element = _only_element(data)
    state.update(b"all" if element is not None else b"each")
    state.update(np.ascontiguousarray(data if element is None else element).data)
    for name, arrays in ((b"level", value.sparser), (b"order", value.order)):
        for array in arrays:
            state.update(name)
            state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def signature(site: Site) -> Hashable:
    """What a node computes from what: operator, attributes, operand types and constants, names left out.

    Two nodes with equal signatures compute the same function of their non-constant operands.
    """
    operands = [site.operands.optional(i) for i in range(len(site.operands))]
    return (
        site.node.op.domain,
        site.node.op.name,
        tuple((k, _attribute(v)) for k, v in sorted(site.attrs.items())),
        tuple(None if v is None else operand_signature(v) for v in operands),
        len(site.results),
    )


def operand_signature(value: Value) -> Hashable:
    """The type of a value, with the digest of its data where it is a parameter."""
    return (type_text(value.type), None if value.data is None else parameter_digest(value))


def node_text(graph: Graph, node: Node) -> str:
    """One node as a line: results = operator(operands) {attributes} "name"."""
    operands = graph.operands(node)
    reads = [operands.optional(i) for i in range(len(operands))]
    results = ", ".join(f"{_name(v.ref.name)}: {type_text(v.type)}" for v in graph.results(node))
    arguments = ", ".join("_" if v is None else _name(v.ref.name) for v in reads)
    parts = (f"{results} = {node.op.name}({arguments})", attributes_text(node.attrs), json.dumps(node.ref.name))
    return " ".join(p for p in parts if p)


# ---------------------------------------------------------------------- pieces
def _lines(graph: Graph, digits: int) -> Iterator[str]:
    for value in graph.inputs:
        yield f"input {_name(value.ref.name)}: {type_text(value.type)}"
    for value in graph.parameters():
        levels = f" in {len(value.sparser) + 1} levels" if value.sparser else ""
        data = f"{parameter_digest(value)[:digits]}{levels}"
        yield f"parameter {_name(value.ref.name)}: {type_text(value.type)} = {data}"
    for node in graph.nodes():
        yield node_text(graph, node)
    for task in graph.tasks.values():
        yield f"task {json.dumps(task.name)}: {_outputs(task)}"


def _outputs(task: Task) -> str:
    pairs = zip(task.outputs, task.labels, strict=True)
    first = ", ".join(f"{_name(r.name)} as {json.dumps(label)}" for r, label in pairs)
    further = (", ".join(_name(r.name) for r in outputs) for outputs in task.variants)
    return "; ".join([first, *(f"level {n}: {names}" for n, names in enumerate(further, 1))])


def _name(name: str) -> str:
    return "%" + json.dumps(name)


def type_text(type_: TensorType) -> str:
    """The type with its encoding, unless it is dense."""
    return str(type_) if type_.encoding == Dense() else f"{type_} {type_.encoding}"


def attributes_text(attrs: Attrs) -> str:
    """Attributes in order of their names, in braces; empty without any."""
    shown = [f"{k}={json.dumps(_attribute(v))}" for k, v in sorted(attrs.items())]
    return f"{{{', '.join(shown)}}}" if shown else ""


def _attribute(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_attribute(v) for v in value)
    return float(np.float32(value)) if isinstance(value, float) else value


def _only_element(data: np.ndarray) -> np.ndarray | None:
    """The element all others equal bit by bit, else None."""
    if data.size == 0:
        return None
    first = np.ascontiguousarray(data[(0,) * data.ndim])
    if splat_value(data) is not None:
        return first
    patterns = np.ascontiguousarray(data).reshape(-1).view(f"u{data.itemsize}")
    return first if (patterns == patterns[0]).all() else None
