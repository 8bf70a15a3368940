"""Biases of every sparsity level, so that means stay what they were: b += E[Y] - E[Y'].

Layer by layer, Y from the original network, Y' from the level with the layers before it corrected already. Biases
are all that may differ from level to level; weights are stored once. A quarter of the inputs is held out: a level
keeps the common biases unless its outputs come nearer to the original ones there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from compiler.calibration.tape import Feed, Tape
from compiler.ir.graph import Graph, Node, Site
from compiler.ir.levels import at_level, level_count
from compiler.ir.types import ValueRef
from compiler.passes.base import Refusal
from compiler.passes.linear import only_reader, per_output
from compiler.progress import counted

HELD_OUT = 4
"""One input in this many is held out."""

_TINY = 1e-12


def correct(graph: Graph, original: Graph, feeds: Sequence[Feed]) -> list[Refusal]:
    """Give the nested layers of `graph` biases by level, in place; returns what kept the common ones.

    `original`: the network whose means are wanted, of the same nodes. At least HELD_OUT feeds.
    """
    layers, refusals = _layers(graph)
    biases = {node.ref: _own_bias(graph, node) for node in layers}
    held, fitted = feeds[::HELD_OUT], [f for i, f in enumerate(feeds) if i % HELD_OUT]
    levels = [at_level(graph, k, alone=True) for k in range(level_count(graph))]
    corrected = [part.copy() for part in levels]
    walks = [_Walk(part, fitted) for part in corrected]
    wanted = _Walk(original, fitted)
    for node in counted("biases of levels: nodes", original.nodes()):
        wanted.step(node)
        for walk in walks:
            walk.step(node)
            if node.ref in biases:
                walk.shift(node, biases[node.ref], wanted)
        for walk in (wanted, *walks):
            walk.release(node)
    chosen = []
    for level, (old, new) in enumerate(zip(levels, corrected, strict=True)):
        before, after = (_output_error(original, part, held) for part in (old, new))
        chosen.append(new if after < before else old)
        if after >= before > 0:
            reason = f"held-out error would not fall ({before:.3g} to {after:.3g}); it keeps the common biases"
            refusals.append(Refusal(f"level {level}", reason))
    for ref in biases.values():
        data, *sparser = (part.value(ref).constant for part in chosen)
        graph.update(ref, data=data, sparser=sparser)
    return refusals


def _layers(graph: Graph) -> tuple[list[Node], list[Refusal]]:
    """Nested layers that can have a bias, and a refusal for each of the others."""
    found, refusals = [], []
    for site in graph.sites():
        if not any(v.sparser for _, v in site.operands.present()):
            continue
        if site.node.op.name in ("Conv", "Gemm") and site.attrs.get("beta", 1.0) and _can_be_vector(site):
            found.append(site.node)
        else:
            refusals.append(Refusal(f"{site.node.op.name} '{site.node.ref}'", "it has no bias vector of its own"))
    return found, refusals


def _can_be_vector(site: Site) -> bool:
    """Whether the bias of a layer is, or can be made, a number for each of its outputs."""
    bias = site.operands.optional(2)
    if bias is None:
        return True
    return bias.data is not None and (bias.size == 1 or per_output(bias, site.results[0].shape[1]))


def _own_bias(graph: Graph, node: Node) -> ValueRef:
    """A bias vector that only this layer reads; zeros where it had none."""
    site = graph.site(node)
    known, result = site.operands.optional(2), site.results[0]
    channels = result.shape[1]
    vector = known is not None and known.data is not None and known.shape == (channels,)
    if known is not None and vector and only_reader(graph, known.ref) is not None:
        return known.ref
    data = np.zeros(channels) if known is None else np.broadcast_to(known.constant.ravel(), (channels,))
    made = graph.add_parameter(graph.fresh(f"{node.ref}/bias"), np.ascontiguousarray(data, result.dtype.numpy))
    graph.set_operand(node.ref, 2, made.ref)
    return made.ref


class _Walk:
    """One graph on all inputs, node by node; values go when nobody reads them any more."""

    def __init__(self, graph: Graph, feeds: Sequence[Feed]) -> None:
        self._graph, self._tape = graph, Tape(graph, feeds)
        self._readers = Counter(v.ref for s in graph.sites() for _, v in s.operands.present() if v.data is None)

    def step(self, node: Node) -> None:
        """Evaluate a node as the graph has it now."""
        self._tape.run([self._graph.node(node.ref)])

    def means(self, node: Node) -> np.ndarray:
        """float64 [channels]: mean of the node's result over everything but axis 1."""
        result = self._graph.results(node)[0]
        values = self._tape.read(result.ref).astype(np.float64)
        return np.asarray(values.mean(axis=tuple(a for a in range(values.ndim) if a != 1)))

    def shift(self, node: Node, bias: ValueRef, wanted: _Walk) -> None:
        """Change the bias of a layer so that its means are the wanted ones, and evaluate it again."""
        old = self._graph.value(bias)
        beta = float(self._graph.node(node.ref).attrs.get("beta", 1.0))
        new = old.constant + (wanted.means(node) - self.means(node)) / beta
        self._graph.update(bias, data=new.astype(old.dtype.numpy))
        self.step(node)

    def release(self, node: Node) -> None:
        """Forget what was read for the last time."""
        for _, value in self._graph.operands(self._graph.node(node.ref)).present():
            if value.data is None:
                self._readers[value.ref] -= 1
                if not self._readers[value.ref]:
                    self._tape.drop(value.ref)

    def outputs(self) -> list[np.ndarray]:
        """All nodes at once: the values of the graph's outputs."""
        self._tape.run(self._graph.nodes())
        return [self._tape.read(v.ref).astype(np.float64) for v in self._graph.outputs]


def _output_error(original: Graph, part: Graph, feeds: Sequence[Feed]) -> float:
    """Mean over outputs of |y' - y|^2 / |y|^2."""
    pairs = zip(_Walk(original, feeds).outputs(), _Walk(part, feeds).outputs(), strict=True)
    return float(np.mean([np.sum((b - a) ** 2) / max(np.sum(a**2), _TINY) for a, b in pairs]))
