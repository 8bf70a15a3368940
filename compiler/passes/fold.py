"""fold-constants: evaluate once, at compile time, whatever does not depend on the network's inputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compiler.errors import VerifyError
from compiler.ir.dead import sweep
from compiler.ir.graph import Graph, Node, Operands, Site, Value
from compiler.ir.ops.elementwise import Broadcast
from compiler.ir.types import TensorType, splat_value
from compiler.passes.base import NewNames, Pass, Refusal, Resources

_REARRANGE = frozenset(
    "Identity Reshape Flatten Transpose Squeeze Unsqueeze Expand Tile Slice Split Gather GatherND Compress "
    "DepthToSpace SpaceToDepth ReverseSequence".split()
)
"""Operators whose results hold elements of operand 0 and nothing else."""


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace nodes whose operands are all constant by their results.

    `limit` bounds the bytes of one node's results; a result of equal elements is stored as one element whatever
    its shape, so it never counts. What exceeds the limit stays a node and is reported.
    """

    name: ClassVar[str] = "fold-constants"
    exact: ClassVar[bool] = True
    new_names: ClassVar[NewNames] = NewNames.DERIVED

    limit: int = 64 << 20

    def rewrite(self, graph: Graph, use: Resources) -> Iterable[Refusal]:
        refusals = []
        for node in graph.nodes():
            site = graph.site(node)
            if not _constant(site):
                continue
            results = self._evaluate(site)
            if results is None:
                refusals.append(self._too_large(site))
            else:
                _store(graph, site, results)
        sweep(graph)
        return refusals

    def ensures(self, before: Graph, after: Graph) -> None:
        for site in after.sites():
            if _constant(site) and self._evaluate(site) is not None:
                raise VerifyError(f"after fold-constants: {_where(site.node)} still has constant operands only")

    def _evaluate(self, site: Site) -> tuple[np.ndarray, ...] | None:
        element = _splat(site)
        if element is not None:
            return tuple(np.broadcast_to(element.astype(v.dtype.numpy), v.shape) for v in site.results)
        if sum(v.type.bytes for v in site.results) > self.limit:
            return None
        arrays = [None if (v := site.operands.optional(i)) is None else v.data for i in range(len(site.operands))]
        with np.errstate(all="ignore"):
            return site.node.op.evaluate(site, arrays)

    def _too_large(self, site: Site) -> Refusal:
        size = sum(v.type.bytes for v in site.results)
        return Refusal(
            _where(site.node), f"its results take {size} bytes; the limit of one folded node is {self.limit}"
        )


def _where(node: Node) -> str:
    return f"{node.op.name} '{node.ref}'"


def _constant(site: Site) -> bool:
    """Whether the results follow from constants, or from the operands' static types alone."""
    if site.node.op.name in ("Shape", "Size"):
        return True
    return all(v.data is not None for _, v in site.operands.present())


def _store(graph: Graph, site: Site, results: tuple[np.ndarray, ...]) -> None:
    for value, array in zip(site.results, results, strict=True):
        folded = graph.add_value(graph.fresh(value.ref.name), value.type, np.asarray(array, value.dtype.numpy))
        graph.replace_uses(value.ref, folded.ref)
    graph.remove(site.node.ref)


def _splat(site: Site) -> np.ndarray | None:
    """The one element all results consist of, where that follows without computing them."""
    name = site.node.op.name
    if site.results[0].size < 2:
        return None
    if name == "ConstantOfShape":
        return np.asarray(splat_value(site.node.op.evaluate(site, [site.operands[0].data])[0]))
    if name in _REARRANGE:
        return _element(site.operands[0])
    if not isinstance(site.node.op, Broadcast) or all(v.size == 1 for _, v in site.operands.present()):
        return None
    elements = {i: _element(v) for i, v in site.operands.present()}
    known = {i: e.reshape((1,) * site.operands[i].rank) for i, e in elements.items() if e is not None}
    if len(known) < len(elements):
        return None
    with np.errstate(all="ignore"):
        (result,) = site.node.op.evaluate(_shrunk(site, known), [known.get(i) for i in range(len(site.operands))])
    return np.asarray(result).reshape(())


def _element(value: Value) -> np.ndarray | None:
    data = value.constant
    if data.size == 1:
        return np.asarray(data.reshape(()))
    element = splat_value(data)
    return None if element is None else np.asarray(element)


def _shrunk(site: Site, arrays: dict[int, np.ndarray]) -> Site:
    """The same application to one-element operands."""
    operands = [
        Value(v.ref, TensorType(v.dtype, arrays[i].shape), arrays[i]) if (v := site.operands.optional(i)) else None
        for i in range(len(site.operands))
    ]
    results = tuple(Value(v.ref, TensorType(v.dtype, (1,) * v.rank)) for v in site.results)
    return Site(site.node, Operands(operands), results)
