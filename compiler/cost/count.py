"""What a graph costs, node by node: multiply-adds, FLOPs, parameters, bytes.

`macs` counts the products of Conv, ConvTranspose, Gemm, MatMul, Einsum, LSTM and GRU with stored weights, bias
excluded; `flops` is twice that plus a listed count for every other operator (each operator's `flops`). `macs_dense`
counts the products with every weight, stored or not: what a kernel executes that multiplies by zeros too.
Activation bytes are what a naive run moves: every node reads its operands and writes its results once; parameters
count as weight bytes, with the positions of what is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

from compiler.ir.graph import Graph, Ref, Site, Value
from compiler.ir.op import MacOp
from compiler.ir.types import splat_value


@dataclass(frozen=True, slots=True)
class Cost:
    """Adds up. Bytes are of stored elements."""

    macs: int = 0
    flops: int = 0
    parameters: int = 0
    weight_bytes: int = 0
    activation_bytes: int = 0
    macs_dense: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def node_cost(site: Site) -> Cost:
    """What running one node takes; its parameters are counted with their values, since nodes share them."""
    moved = [v for _, v in site.operands.present() if v.data is None and not _is_free(site)]
    written = [] if _is_free(site) else list(site.results)
    dense, left_out = site.node.op.macs(site), skipped_macs(site)
    return Cost(
        macs=dense - left_out,
        flops=site.node.op.flops(site) - 2 * left_out,
        activation_bytes=sum(v.type.bytes for v in (*moved, *written)),
        macs_dense=dense,
    )


def skipped_macs(site: Site) -> int:
    """Multiply-adds with elements that the encodings of constant operands leave out."""
    op = site.node.op
    if not isinstance(op, MacOp):
        return 0
    constants = [(i, v) for i, v in site.operands.present() if v.data is not None]
    missing = ((i, v.size - v.type.encoding.stored(v.shape, v.data)) for i, v in constants)
    return sum(gone * op.products(site, i) for i, gone in missing if gone)


def _is_free(site: Site) -> bool:
    """Whether the node only gives its operand another shape."""
    return site.node.op.reinterprets


def parameter_cost(value: Value) -> Cost:
    """Stored elements and bytes of a floating-point parameter; only bytes of the others (shapes, indices).

    A constant of equal elements is one number, whatever its shape.
    """
    encoding = value.type.encoding
    count, indices = encoding.stored(value.shape, value.data), encoding.index_bytes(value.shape, value.data)
    if splat_value(value.constant) is not None:
        count, indices = 1, 0
    elements = count if value.dtype.is_float else 0
    return Cost(parameters=elements, weight_bytes=count * value.dtype.bytes + indices)


def items(graph: Graph) -> Iterator[tuple[Ref, Cost]]:
    """Every node and parameter with its cost."""
    for site in graph.sites():
        yield site.node.ref, node_cost(site)
    for value in graph.parameters():
        yield value.ref, parameter_cost(value)


def totals(graph: Graph) -> Cost:
    """The whole graph, whether a task needs it or not."""
    return total(cost for _, cost in items(graph))


def total(costs: Iterable[Cost]) -> Cost:
    """The sum."""
    return sum(costs, Cost())
