"""Which weights a sparse kernel could read, and why the others stay dense."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from compiler.errors import plural
from compiler.ir.encoding import BlockSparse, Dense
from compiler.ir.graph import Graph, Node, Site, Value
from compiler.ir.types import NodeRef, ValueRef, splat_value
from compiler.passes.base import Refusal

PRODUCTS = ("Conv", "Gemm", "MatMul")
"""Operators whose constant operand 1 has sparse kernels."""

RECURRENT = ("LSTM", "GRU", "RNN")
"""Operators whose constant operands 1 (W, for inputs) and 2 (R, for the state) have sparse kernels."""

WITHOUT: Mapping[str, str] = {"ConvTranspose": "a transposed convolution has no sparse kernel"}
"""Layers whose weights nothing can make sparse, and why."""


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
    without: Mapping[str, str] = field(default_factory=lambda: WITHOUT)
    """Operators that are left alone, and why."""


def candidates(graph: Graph, limits: Limits) -> tuple[list[Candidate], list[Refusal]]:
    """Weights that can be made sparse, in order of their first reader, and a refusal per other layer."""
    chosen: dict[ValueRef, Candidate] = {}
    refusals = []
    first, last = first_layers(graph), last_layers(graph)
    for site in graph.sites():
        where, reason = f"{site.node.op.name} '{site.node.ref}'", limits.without.get(site.node.op.name)
        if reason is not None:
            refusals.append(Refusal(where, reason))
            continue
        for position in weights_of(site):
            reason = _against(graph, site, position, limits, first, last)
            if reason is not None:
                operand = f", {'WR'[position - 1]}" if site.node.op.name in RECURRENT else ""
                refusals.append(Refusal(where + operand, reason))
                continue
            rows, inputs = axes(site)
            weight = site.operands[position]
            readers = tuple(n.ref for n, _ in graph.uses(weight.ref))
            chosen.setdefault(weight.ref, Candidate(weight, rows, inputs, readers))
    return list(chosen.values()), refusals


def weights_of(site: Site) -> tuple[int, ...]:
    """Positions of the operands that sparse kernels can read."""
    return (1,) if site.node.op.name in PRODUCTS else (1, 2) if site.node.op.name in RECURRENT else ()


def _other_form(weight: Value, limits: Limits) -> bool:
    stored = weight.type.encoding
    return stored != Dense() and not (limits.blocks and isinstance(stored, BlockSparse))


def axes(site: Site) -> tuple[int, int]:
    """(axis of the outputs, axis of the inputs) of a layer's weights."""
    if site.node.op.name in RECURRENT:
        return 1, 2
    turned = site.node.op.name == "MatMul" or not site.attrs.get("transB", 1)
    return (1, 0) if turned else (0, 1)


def _against(
    graph: Graph,
    site: Site,
    position: int,
    limits: Limits,
    first: frozenset[NodeRef],
    last: frozenset[NodeRef],
) -> str | None:
    """Why a weight of this layer stays dense; None where it need not."""
    weight, name = site.operands[position], site.node.ref.name
    if weight.data is None:
        return f"its {'second' if position == 1 else 'third'} operand is computed, not a weight"
    if limits.excluded(name) or limits.excluded(weight.ref.name):
        return "it is excluded by name"
    if _other_form(weight, limits):
        return f"its weight is stored as {weight.type.encoding} already"
    return (
        _grouped(site)
        or _kept_dense(site, limits, first, last)
        or _too_small(site, weight, limits)
        or _other_readers(graph, site, weight)
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


def _too_small(site: Site, weight: Value, limits: Limits) -> str | None:
    if weight.rank < 2 or (weight.rank != 2 and site.node.op.name in ("Gemm", "MatMul")):
        return f"its weight has {weight.rank} axes; a matrix is expected"
    if splat_value(weight.constant) is not None:
        return "all elements of its weight are equal"
    rows, inputs = (weight.shape[a] for a in axes(site))
    if inputs < limits.min_inputs:
        return f"it has {plural(inputs, 'input')}, fewer than min_inputs={limits.min_inputs}"
    if rows < limits.height:
        return f"it has {plural(rows, 'output')}, fewer than one block of {limits.height}"
    return None


def _other_readers(graph: Graph, site: Site, weight: Value) -> str | None:
    if graph.is_output(weight.ref):
        return f"its weight '{weight.ref}' is an output of the network"
    for node, index in graph.uses(weight.ref):
        other = graph.site(node)
        if index not in weights_of(other) or axes(other) != axes(site) or _grouped(other):
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
        if node.op.name in (*PRODUCTS, *RECURRENT, *WITHOUT):
            met.add(node.ref)
        else:
            reached.update(far(graph, node))
    return frozenset(met)


def _read(graph: Graph, node: Node) -> Sequence[ValueRef]:
    return [v.ref for _, v in graph.operands(node).present()]


def _made(graph: Graph, node: Node) -> Sequence[ValueRef]:
    return [v.ref for v in graph.results(node)]
