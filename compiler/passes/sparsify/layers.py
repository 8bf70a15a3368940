"""Which weights a sparse kernel could read, and why the others stay dense."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from compiler.ir.encoding import BlockSparse, Dense
from compiler.ir.graph import Graph, Node, Site, Value
from compiler.ir.types import NodeRef, ValueRef, splat_value
from compiler.passes.base import Refusal

PRODUCTS = ("Conv", "Gemm", "MatMul")
"""Operators whose constant operand 1 has sparse kernels."""

_WITHOUT = {
    "ConvTranspose": "a transposed convolution has no sparse kernel",
    "LSTM": "recurrent weights have no sparse kernel",
    "GRU": "recurrent weights have no sparse kernel",
    "RNN": "recurrent weights have no sparse kernel",
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A weight with the axes of its outputs and of its inputs, and the layers that read it."""

    weight: Value
    rows: int
    inputs: int
    readers: tuple[NodeRef, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """What stays dense on purpose."""

    dense: tuple[str, ...]
    min_inputs: int
    height: int
    """Rows of a block; 1 for other patterns."""
    excluded: Callable[[str], bool]
    blocks: bool = False
    """Whether weights that are stored in blocks already are taken too."""


def candidates(graph: Graph, limits: Limits) -> tuple[list[Candidate], list[Refusal]]:
    """Weights that can be made sparse, in order of their first reader, and a refusal per other layer."""
    chosen: dict[ValueRef, Candidate] = {}
    refusals = []
    first, last = first_layers(graph), last_layers(graph)
    for site in graph.sites():
        reason = _WITHOUT.get(site.node.op.name)
        if reason is None and site.node.op.name in PRODUCTS:
            reason = _against(graph, site, limits, first, last)
            if reason is None:
                rows, inputs = axes(site)
                weight = site.operands[1]
                readers = tuple(n.ref for n, _ in graph.uses(weight.ref))
                chosen.setdefault(weight.ref, Candidate(weight, rows, inputs, readers))
        if reason is not None:
            refusals.append(Refusal(f"{site.node.op.name} '{site.node.ref}'", reason))
    return list(chosen.values()), refusals


def _other_form(weight: Value, limits: Limits) -> bool:
    stored = weight.type.encoding
    return stored != Dense() and not (limits.blocks and isinstance(stored, BlockSparse))


def axes(site: Site) -> tuple[int, int]:
    """(axis of the outputs, axis of the inputs) of a layer's weight."""
    turned = site.node.op.name == "MatMul" or not site.attrs.get("transB", 1)
    return (1, 0) if turned else (0, 1)


def _against(
    graph: Graph, site: Site, limits: Limits, first: frozenset[NodeRef], last: frozenset[NodeRef]
) -> str | None:
    """Why this layer stays dense; None where it need not."""
    weight, name = site.operands[1], site.node.ref.name
    if weight.data is None:
        return "its second operand is computed, not a weight"
    if limits.excluded(name) or limits.excluded(weight.ref.name):
        return "it is excluded by name"
    if _other_form(weight, limits):
        return f"its weight is stored as {weight.type.encoding} already"
    return (
        _grouped(site)
        or _kept_dense(site, limits, first, last)
        or _too_small(site, limits)
        or _other_readers(graph, site)
    )


def _grouped(site: Site) -> str | None:
    group = site.attrs.get("group", 1)
    if group == 1:
        return None
    if group == site.operands[0].shape[1]:
        return "a depthwise convolution reads one input channel per output"
    return f"a convolution of {group} groups has no sparse kernel"


def _kept_dense(site: Site, limits: Limits, first: frozenset[NodeRef], last: frozenset[NodeRef]) -> str | None:
    if "first" in limits.dense and site.node.ref in first:
        return "it reads the network's input, and first layers stay dense (option dense)"
    if "last" in limits.dense and site.node.ref in last:
        return "it makes the network's output, and last layers stay dense (option dense)"
    return None


def _too_small(site: Site, limits: Limits) -> str | None:
    weight = site.operands[1]
    if weight.rank < 2 or (weight.rank != 2 and site.node.op.name != "Conv"):
        return f"its weight has {weight.rank} axes; a matrix is expected"
    if splat_value(weight.constant) is not None:
        return "all elements of its weight are equal"
    rows, inputs = (weight.shape[a] for a in axes(site))
    if inputs < limits.min_inputs:
        return f"it has {inputs} inputs, fewer than min_inputs={limits.min_inputs}"
    if rows < limits.height:
        return f"it has {rows} outputs, fewer than one block of {limits.height}"
    return None


def _other_readers(graph: Graph, site: Site) -> str | None:
    weight = site.operands[1]
    if graph.is_output(weight.ref):
        return f"its weight '{weight.ref}' is an output of the network"
    for node, index in graph.uses(weight.ref):
        other = graph.site(node)
        if node.op.name not in PRODUCTS or index != 1 or axes(other) != axes(site) or _grouped(other):
            return f"its weight '{weight.ref}' is also read by {node.op.name} '{node.ref}'"
    return None


def first_layers(graph: Graph) -> frozenset[NodeRef]:
    """Layers that some input of the graph reaches without passing another layer."""
    reached = {v.ref for v in graph.inputs}
    return _walk(graph, graph.nodes(), reached, _read, _made)


def last_layers(graph: Graph) -> frozenset[NodeRef]:
    """Layers that reach some output of a task without passing another layer."""
    reached = {v.ref for v in graph.outputs}
    return _walk(graph, reversed(graph.nodes()), reached, _made, _read)


def _walk(
    graph: Graph,
    nodes: Iterable[Node],
    reached: set[ValueRef],
    near: Callable[[Graph, Node], Sequence[ValueRef]],
    far: Callable[[Graph, Node], Sequence[ValueRef]],
) -> frozenset[NodeRef]:
    """Layers met when walking from `reached` along `nodes`; the walk ends at each of them."""
    met = set()
    for node in nodes:
        if reached.isdisjoint(near(graph, node)):
            continue
        if node.op.name in PRODUCTS or node.op.name in _WITHOUT:
            met.add(node.ref)
        else:
            reached.update(far(graph, node))
    return frozenset(met)


def _read(graph: Graph, node: Node) -> Sequence[ValueRef]:
    return [v.ref for _, v in graph.operands(node).present()]


def _made(graph: Graph, node: Node) -> Sequence[ValueRef]:
    return [v.ref for v in graph.results(node)]
