"""What no task needs, and its removal."""

from __future__ import annotations

from compiler.ir.graph import Graph


def sweep(graph: Graph) -> int:
    """Remove what no task needs from the mutable `graph`; inputs stay. Returns how many vertices went."""
    needed = graph.needed_masks()
    inputs = {v.ref for v in graph.inputs}
    dead = [n for n in reversed(graph.nodes()) if n.ref not in needed]
    for node in dead:
        graph.remove(node.ref)
    loose = [v for v in graph.values() if v.ref not in needed and v.ref not in inputs]
    orphans = [v for v in loose if graph.producer(v.ref) is None]
    for value in orphans:
        graph.remove(value.ref)
    return len(dead) + len(orphans)
