"""Transpositions that a product reads through, instead of kernels that move elements. Pure Python, no TVM."""

from __future__ import annotations

from compiler.codegen.contractions import contraction
from compiler.codegen.families import family_of
from compiler.ir.graph import Graph, Site, Value


def read_through(graph: Graph, site: Site) -> bool:
    """Whether a transposition is part of the product that reads it."""
    reader: Site | None = site
    while reader is not None and transposes(reader):
        reader = sole_reader(graph, reader.results[0])
    if reader is None or family_of(reader) != "contraction":
        return False
    return any(s.node.ref == site.node.ref for s in transpositions(graph, reader))


def transpositions(graph: Graph, site: Site) -> list[Site]:
    """The transpositions that a product reads through, first to last: those that nobody else reads."""
    found: list[Site] = []
    for value in dict.fromkeys(site.operands[:2]):
        chain: list[Site] = []
        node = graph.producer(value.ref)
        while node is not None and transposes(graph.site(node)) and sole_reader(graph, value) is not None:
            chain.insert(0, graph.site(node))
            value = chain[0].operands[0]
            node = graph.producer(value.ref)
        found += chain
    moved = {s.results[0].ref: s for s in found}
    return found if contraction(site, moved) is not None else []


def transposes(site: Site) -> bool:
    """Whether a node only changes the order of axes."""
    return site.node.op.name == "Transpose"


def sole_reader(graph: Graph, value: Value) -> Site | None:
    """The one node that reads a value, once; None where there are others, or the value is an output."""
    uses = graph.uses(value.ref)
    return graph.site(uses[0][0]) if len(uses) == 1 and not graph.is_output(value.ref) else None
