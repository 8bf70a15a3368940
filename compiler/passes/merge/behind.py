"""Layers behind a cut at which a network goes on from another one's value: fitted to what they computed before.

Layer by layer, on the merged network's own values, as everywhere else in a merge; `solve` keeps the weights where
held-out samples are told no better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from compiler.calibration.tape import Feed, Tape
from compiler.ir.graph import Graph, Node, NodeRef, Site
from compiler.ir.ops.conv import Convolving
from compiler.ir.types import ValueRef
from compiler.passes.merge.channels import layer_axes
from compiler.passes.merge.refit import constant, store
from compiler.passes.merge.room import bounded_tape
from compiler.passes.merge.rows import held_out, matrix, positions, value_rows
from compiler.passes.merge.solve import measure, solve
from compiler.passes.merge.stitch import Samples, Stitch


def fitted_behind(
    graph: Graph,
    original: Graph,
    stitch: Stitch,
    others: Iterable[ValueRef],
    feeds: Sequence[Feed],
    excluded: Callable[[str], bool],
) -> Graph:
    """`graph` with new weights for the layers behind `stitch`, which is in it already.

    What leads to the values `others`, from which further networks go on, stays.
    """
    made = graph.copy()
    layers = _layers(made, original, stitch, others, excluded)
    wanted = {s.results[0].ref: s.results[0].rank - 1 for s in layers.values()}
    targets = Samples(original, original.tasks, wanted, feeds).rows
    tape = bounded_tape(made, feeds)
    ahead = _above(made, [made.operands(made.node(r))[0].ref for r in layers]) | set(layers)
    waiting: list[Node] = []
    for node in made.nodes():
        site = layers.get(node.ref)
        if site is not None:
            tape.run(waiting)
            ahead -= {n.ref for n in waiting}
            _forget(tape, made, waiting, ahead)
            waiting = []
            _fit(tape, made, original, site, targets[site.results[0].ref])
        if node.ref in ahead:
            waiting.append(node)
    return made


def _layers(
    graph: Graph, original: Graph, stitch: Stitch, others: Iterable[ValueRef], excluded: Callable[[str], bool]
) -> dict[NodeRef, Site]:
    """Linear layers of the original behind a stitch."""
    behind = set[NodeRef]()
    waiting = [n.ref for n, _ in original.uses(stitch.cut.mine)]
    while waiting:
        ref = waiting.pop()
        if ref not in behind and ref in graph:
            behind.add(ref)
            waiting += [n.ref for v in graph.results(graph.node(ref)) for n, _ in graph.uses(v.ref)]
    behind -= _above(graph, others)
    sites = {r: original.site(original.node(r)) for r in behind if r in original}
    return {
        r: s
        for r, s in sites.items()
        if not isinstance(s.node.op, Convolving) and layer_axes(s) is not None and not excluded(r.name)
    }


def _above(graph: Graph, values: Iterable[ValueRef]) -> set[NodeRef]:
    """The nodes that some values are computed from."""
    found, waiting = set[NodeRef](), list(values)
    while waiting:
        node = graph.producer(waiting.pop())
        if node is not None and node.ref not in found:
            found.add(node.ref)
            waiting += [v.ref for _, v in graph.operands(node).present() if v.data is None]
    return found


def _fit(tape: Tape, graph: Graph, original: Graph, site: Site, targets: np.ndarray) -> None:
    """New weights of one layer, from what it reads now."""
    now = graph.site(graph.node(site.node.ref))
    read = now.operands[0]
    rows = value_rows(tape, read.ref, read.rank - 1)
    held = held_out(tape.samples, positions(read, read.rank - 1))
    offset = constant(graph, original, site)
    measured = measure([rows[None]], targets[None], held)
    solved = solve(measured, matrix(now)[None], None if offset is None else offset[None])
    if solved.refitted:
        store(graph, original, site, solved)


def _forget(tape: Tape, graph: Graph, run: Sequence[Node], ahead: set[NodeRef]) -> None:
    """Drop values that no node reads that is still ahead."""
    values = (v.ref for n in run for v in (*graph.results(n), *(o for _, o in graph.operands(n).present())))
    tape.drop(*(r for r in values if not any(n.ref in ahead for n, _ in graph.uses(r))))
