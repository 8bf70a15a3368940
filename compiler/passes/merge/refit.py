"""Layers that stay and read something else now: where their fitted weights and constants are written."""

from __future__ import annotations

import numpy as np

from compiler.ir.graph import Graph, Node, Site
from compiler.passes.linear import lies_along
from compiler.passes.merge.emit import set_parameter
from compiler.passes.merge.rows import bias, restored
from compiler.passes.merge.solve import Fit


def addend(original: Graph, site: Site) -> tuple[Node, int] | None:
    """The Add of a constant vector that alone reads a MatMul of `original`, and the constant's position: it can
    take up a constant.
    """
    result = site.results[0]
    uses = original.uses(result.ref)
    if len(uses) != 1 or uses[0][0].op.name != "Add" or original.is_output(result.ref):
        return None
    node, index = uses[0]
    other = original.operands(node)[1 - index]
    fits = other.data is not None and lies_along(other, result, result.rank - 1)
    return (node, 1 - index) if fits else None


def takes_constant(original: Graph, site: Site) -> bool:
    """Whether a layer of `original` has a place for a constant."""
    return site.node.op.name != "MatMul" or addend(original, site) is not None


def constant(graph: Graph, original: Graph, site: Site) -> np.ndarray | None:
    """The constant [outputs] that `store` has written for a layer of `original`, or its own; None where it takes
    none.
    """
    if not takes_constant(original, site):
        return None
    add = addend(original, site) if site.node.op.name == "MatMul" else None
    if add is None:
        own = bias(graph.site(graph.node(site.node.ref)))
        return np.zeros(site.results[0].shape[-1]) if own is None else own
    now = graph.operands(graph.node(add[0].ref))[add[1]].constant
    return np.asarray(now.astype(np.float64) - original.operands(add[0])[add[1]].constant).reshape(-1)


def store(graph: Graph, original: Graph, site: Site, solved: Fit) -> None:
    """Write weights and constant into a node of `original` that stays in `graph`."""
    node = site.node.ref
    set_parameter(graph, node, 1, restored(site, solved.weights[0]))
    if not solved.refitted or not takes_constant(original, site):
        return
    offset = solved.offset[0]
    add = addend(original, site) if site.node.op.name == "MatMul" else None
    if add is not None:
        value = original.operands(add[0])[add[1]]
        moved = value.constant + offset.reshape(value.shape)
        set_parameter(graph, add[0].ref, add[1], moved)
    else:
        old = site.operands.optional(2)
        set_parameter(graph, node, 2, offset if old is None else offset.reshape(old.shape))
