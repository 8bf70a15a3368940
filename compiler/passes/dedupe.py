"""deduplicate: identical computations of several networks become one.

Value numbering in topological order: the key of a node is its operator, its attributes and the numbers of its
operands; a parameter's number is the digest of its type and bytes. Equal keys compute equal bits, so the first
node serves all. Linear time, exact, no data.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx

from compiler.errors import VerifyError
from compiler.ir.dead import sweep
from compiler.ir.graph import Attrs, Graph, Node, Ref, Site, Value
from compiler.ir.text import parameter_digest
from compiler.ir.types import ValueRef
from compiler.passes.base import NewNames, Pass, Refusal, Resources


def attribute_key(attrs: Attrs) -> Hashable:
    """Attributes as a hashable value; floats by their bits, so 0.0 and -0.0 differ."""
    return tuple((k, tuple(map(_bits, v)) if isinstance(v, tuple) else _bits(v)) for k, v in attrs.items())


def _bits(value: object) -> Hashable:
    if isinstance(value, float):
        return ("float", value.hex())
    if isinstance(value, onnx.TensorProto):
        return ("tensor", value.SerializeToString(deterministic=True))
    return (type(value).__name__, str(value))


@dataclass(frozen=True)
class Deduplicate(Pass):
    """Merge nodes that compute the same bits, within a network and across networks.

    A refusal per pair of tasks says where their networks first differ: fine-tuned statistics or one unfrozen
    layer are the usual reason for a lost trunk.
    """

    name: ClassVar[str] = "deduplicate"
    exact: ClassVar[bool] = True
    new_names: ClassVar[NewNames] = NewNames.NONE
    keeps_levels: ClassVar[bool] = True

    def rewrite(self, graph: Graph, use: Resources) -> Iterable[Refusal]:
        _share_parameters(graph)
        seen: dict[Hashable, Node] = {}
        for node in graph.nodes():
            first = seen.setdefault(_node_key(graph, node), node)
            if first is not node:
                _replace(graph, node, first)
        sweep(graph)
        return tuple(first_differences(graph))

    def ensures(self, before: Graph, after: Graph) -> None:
        keys = [_node_key(after, n) for n in after.nodes()]
        if len(set(keys)) < len(keys):
            raise VerifyError("after deduplicate: two nodes still compute the same value")


def _share_parameters(graph: Graph) -> None:
    first: dict[str, ValueRef] = {}
    for value in graph.parameters():
        kept = first.setdefault(parameter_digest(value), value.ref)
        if kept != value.ref:
            graph.replace_uses(value.ref, kept)
            graph.remove(value.ref)


def _node_key(graph: Graph, node: Node) -> Hashable:
    operands = tuple((i, v.ref) for i, v in graph.operands(node).present())
    return (node.op.name, attribute_key(node.attrs), node.absent, operands, len(graph.results(node)))


def _replace(graph: Graph, node: Node, first: Node) -> None:
    for old, new in zip(graph.results(node), graph.results(first), strict=True):
        graph.replace_uses(old.ref, new.ref)
    graph.remove(node.ref)


# ---------------------------------------------------------------------- where networks part
def first_differences(graph: Graph) -> Iterator[Refusal]:
    """For every pair of tasks, the first node of the second that the first one does not share, and why."""
    masks = graph.needed_masks()
    private = _frontiers(graph, masks)
    for (i, a), (j, b) in itertools.combinations(enumerate(graph.tasks), 2):
        both = 1 << i | 1 << j
        mine = [s for s, mask in private if mask & both == 1 << i and _reads_shared(s, masks, both)]
        other = [s for s, mask in private if mask & both == 1 << j and _reads_shared(s, masks, both)]
        if mine and other:
            where, reason = _closest(mine, other)
            yield Refusal(f"tasks '{a}' and '{b}'", f"first differ at {where}: {reason}")


def _frontiers(graph: Graph, masks: Mapping[Ref, int]) -> list[tuple[Site, int]]:
    return [(s, masks[s.node.ref]) for s in graph.sites() if s.node.ref in masks]


def _reads_shared(site: Site, masks: Mapping[Ref, int], both: int) -> bool:
    """Whether all data the node reads is common to both tasks: nothing above it differs."""
    return all(masks.get(v.ref, 0) & both == both for _, v in site.operands.present() if v.data is None)


def _closest(mine: list[Site], other: list[Site]) -> tuple[str, str]:
    """The pair with the most in common and the first fact that differs."""
    pairs = ((a, b) for b in other for a in mine)
    a, b = max(pairs, key=lambda p: _likeness(*p))
    return f"{b.node.op.name} '{b.node.ref}'", _reason(a, b)


def _likeness(a: Site, b: Site) -> tuple[bool, bool, bool]:
    return (_data(a) == _data(b), a.node.op is b.node.op, attribute_key(a.attrs) == attribute_key(b.attrs))


def _data(site: Site) -> list[tuple[int, ValueRef]]:
    return [(i, v.ref) for i, v in site.operands.present() if v.data is None]


def _reason(a: Site, b: Site) -> str:
    peer = f"{a.node.op.name} '{a.node.ref}'"
    if a.node.op is not b.node.op or _data(a) != _data(b):
        return f"the other network continues with {peer}"
    changed = [k for k in b.attrs if a.attrs.get(k) != b.attrs[k]]
    if changed:
        return f"attribute {changed[0]} is {b.attrs[changed[0]]}, at {peer} it is {a.attrs[changed[0]]}"
    for i, value in b.operands.present():
        twin = a.operands.optional(i)
        if twin is None or twin.ref != value.ref:
            return f"operand {i} '{value.ref}' {_parameter_difference(twin, value)}"
    return f"{peer} has other operands"


def _parameter_difference(a: Value | None, b: Value) -> str:
    if a is None:
        return "has no counterpart"
    if a.type != b.type:
        return f"is {b.type}, '{a.ref}' is {a.type}"
    apart = int(np.count_nonzero(a.constant != b.constant))
    return f"differs from '{a.ref}' in {apart} of {b.size} elements"
