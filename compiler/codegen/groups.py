"""Fusion: the nodes of a graph as groups, each of which becomes one kernel call.

Made once, on the full graph: a group never crosses a change of owner set, and the only values read from outside
are its outputs, so every subset of tasks calls the same kernels. Pure Python, no TVM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from operator import methodcaller
from typing import Any

from compiler.codegen.contractions import Contraction, contraction
from compiler.codegen.epilogues import MAX_FUNCTIONS, find_epilogue, functions
from compiler.codegen.families import CONVOLUTIONS, Family, fallback_family, family_of, reduces
from compiler.codegen.transpositions import read_through, sole_reader, transposes, transpositions
from compiler.ir.graph import Graph, Node, Site, Value
from compiler.ir.levels import site_with
from compiler.ir.types import DType, NodeRef, ValueRef

MAX_SEGMENTS = 16
"""Buffers one convolution reads its channels from: each is a pointer, and code of its own."""

MAX_CHAIN = 8
"""Nodes in one generic group: operators may read an operand several times, so expressions grow with the chain."""


@dataclass(slots=True)
class Group:
    """Nodes computed by one kernel. `sites` in topological order; the last one's results leave the group."""

    family: Family
    sites: list[Site]
    mask: int
    reduces: bool
    bias: Value | None = None
    """A constant along the last axis that the first node after the anchor adds."""
    residual: Value | None = None
    """An activation of the result's type that one node after the anchor reads."""
    open: bool = True
    segments: tuple[Value, ...] = ()
    """Convolutions: the buffers whose channels, one after another, are the input. More than one where the graph
    concatenates them only for convolutions to read."""
    members: tuple[Group, ...] = ()
    """Siblings: the convolutions that one kernel computes, each with its own results, tasks and epilogue."""
    before: int = 0
    """Transpositions that the anchor reads through; they come first in `sites`."""
    behind: int = 0
    """Transpositions that the result is stored by, one at most; it is the last in `sites`."""

    @property
    def outputs(self) -> tuple[Value, ...]:
        return tuple(v for part in self.parts for v in part.sites[-1].results)

    @property
    def parts(self) -> tuple[Group, ...]:
        """The members, or the group itself."""
        return self.members or (self,)

    @property
    def levels(self) -> int:
        """Sparsity levels of the constants it reads."""
        return 1 + max((len(v.sparser) for v in self._operands()), default=0)

    @property
    def nested(self) -> bool:
        """Whether its constants have levels, or had some in the network that they were taken from."""
        return any(v.nested for v in self._operands())

    def ladder(self) -> Sequence[Group]:
        """The group with the constants of each level, the densest first, then of those that are there for the order
        of lists alone (`Value.order`)."""
        behind = max((len(v.order) for v in self._operands()), default=0)
        levels = [self._with(methodcaller("at", level)) for level in range(self.levels)]
        return [*levels, *(self._with(methodcaller("behind", step)) for step in range(behind))]

    def _operands(self) -> Iterable[Value]:
        return (v for s in self.sites for _, v in s.operands.present())

    def _with(self, change: Callable[[Value], Value]) -> Group:
        bias = None if self.bias is None else change(self.bias)
        return replace(self, sites=[site_with(s, change) for s in self.sites], bias=bias)

    @property
    def anchor(self) -> Site:
        """The node the group is about."""
        return self.sites[self.before]

    @property
    def after(self) -> Sequence[Site]:
        """The nodes that follow the anchor element by element."""
        return self.sites[self.before + 1 : len(self.sites) - self.behind]

    @property
    def moved(self) -> dict[ValueRef, Site]:
        """The transpositions before the anchor, by result."""
        return {s.results[0].ref: s for s in self.sites[: self.before]}

    def inputs(self) -> tuple[Value, ...]:
        """Values the group reads from outside (constants too), each once, in order of first use."""
        if self.members:
            return tuple({v.ref: v for part in self.members for v in part.inputs()}.values())
        inside = {v.ref for s in self.sites for v in s.results}
        found = {v.ref: v for v in self.segments}
        if self.segments:
            inside.add(self.anchor.operands[0].ref)
        found |= {v.ref: v for s in self.sites for _, v in s.operands.present() if v.ref not in inside}
        return tuple(found.values())


@dataclass
class _Fusion:
    """State of the single sweep over the graph."""

    graph: Graph
    masks: dict[Any, int]
    templates: bool
    position: dict[NodeRef, int]
    groups: dict[NodeRef, Group] = field(default_factory=dict)
    joined: dict[ValueRef, tuple[Value, ...]] = field(default_factory=dict)
    """Concatenations that are never made, with the values in them."""

    def maker(self, value: Value) -> Group | None:
        """The group that makes `value`; None where nothing does, or no group yet."""
        node = self.graph.producer(value.ref)
        return None if node is None else self.groups.get(node.ref)

    def makes_image(self, value: Value) -> bool:
        """Whether a convolution makes `value`, in blocks of channels."""
        group = self.maker(value)
        return group is not None and group.family in CONVOLUTIONS

    def sole_producer(self, value: Value, mask: int) -> Group | None:
        """The open group that makes `value`, if its sole reader may join it: not an output, same owners."""
        node, group = self.graph.producer(value.ref), self.maker(value)
        if node is None or group is None or len(self.graph.uses(value.ref)) != 1 or self.graph.is_output(value.ref):
            return None
        fits = group.open and group.mask == mask and len(self.graph.results(node)) == 1
        return group if fits and group.sites[-1].node.ref == node.ref else None


def make_groups(graph: Graph, *, templates: bool = True) -> tuple[Group, ...]:
    """The groups of every needed node, in execution order (by last node). `templates=False`: generic route only."""
    position = {node.ref: index for index, node in enumerate(graph.nodes())}
    fusion = _Fusion(graph, graph.needed_masks(), templates, position)
    for node in graph.nodes():
        mask = fusion.masks.get(node.ref, 0)
        if mask and node.ref not in fusion.groups:
            _place(fusion, graph.site(node), mask)
    unique = {id(g): g for g in fusion.groups.values()}
    return tuple(sorted(unique.values(), key=lambda g: fusion.position[g.sites[-1].node.ref]))


def _place(fusion: _Fusion, site: Site, mask: int) -> None:
    """Put one node into an existing group or a new one."""
    family = family_of(site) if fusion.templates else fallback_family(site)
    if fusion.templates and _only_joins(fusion, site):
        fusion.joined[site.results[0].ref] = tuple(v for _, v in site.operands.present())
        return
    if fusion.templates and read_through(fusion.graph, site):
        return
    if family in (*CONVOLUTIONS, "gemm", "contraction"):
        _open_template(fusion, family, site, mask)
        return
    if family == "view" and (_channels_go_last(fusion, site) or _channels_come_first(fusion, site, mask)):
        family = "generic"
    opened = family == "generic" and len(site.results) == 1
    heavy = family != "generic" or reduces(site)
    if opened and not heavy and _join_generic(fusion, site, mask):
        return
    fusion.groups[site.node.ref] = Group(family, [site], mask, heavy, open=opened)


def _open_template(fusion: _Fusion, family: Family, site: Site, mask: int) -> None:
    """A group for a product with the element-wise nodes after it that nobody else waits for."""

    def joins(node: Node) -> bool:
        return fusion.masks.get(node.ref) == mask and node.ref not in fusion.groups

    bias = family == "gemm" and site.operands.optional(2) is None
    found = find_epilogue(fusion.graph, site, fusion.position, joins, bias=bias)
    group = Group(family, [site, *found.sites], mask, True, found.bias, found.residual, open=False)
    if family in CONVOLUTIONS:
        x = site.operands[0]
        group.segments = fusion.joined.get(x.ref, (x,))
    if family == "contraction":
        _take_transpositions(fusion, group, joins)
    for member in group.sites:
        fusion.groups[member.node.ref] = group


def _take_transpositions(fusion: _Fusion, group: Group, joins: Callable[[Node], bool]) -> None:
    """Let a product read through transpositions, and store by one, instead of kernels that move elements."""
    before = transpositions(fusion.graph, group.anchor)
    group.sites, group.before = [*before, *group.sites], len(before)
    last = group.outputs[0]
    reader = sole_reader(fusion.graph, last)
    if reader is None or not transposes(reader) or not joins(reader.node) or group.residual is not None:
        return
    if contraction(group.anchor, group.moved, reader) is not None:
        group.sites, group.behind = [*group.sites, reader], 1


def _only_joins(fusion: _Fusion, site: Site) -> bool:
    """Whether a node concatenates channels that only dense convolutions read."""
    if (
        site.node.op.name != "Concat"
        or site.results[0].rank not in (3, 4)
        or site.int("axis") % site.results[0].rank != 1
    ):
        return False
    values, made = [v for _, v in site.operands.present()], site.results[0]
    if any(v.data is not None or v.dtype is not DType.FLOAT32 or not v.size for v in values):
        return False
    if len(values) > MAX_SEGMENTS or fusion.graph.is_output(made.ref):
        return False
    readers = [fusion.graph.site(node) for node, _ in fusion.graph.uses(made.ref)]
    return bool(readers) and all(_reads_segments(r, made) for r in readers)


def _reads_segments(site: Site, value: Value) -> bool:
    """Whether a reader takes `value` as the input of a dense convolution, and nowhere else."""
    places = [i for i, v in site.operands.present() if v.ref == value.ref]
    return places == [0] and family_of(site) in ("conv", "transposed")


def _join_generic(fusion: _Fusion, site: Site, mask: int) -> bool:
    """Fuse a node without reduction into the generic groups that make its operands, at most one with reductions."""
    found: list[Group] = []
    for _, value in site.operands.present():
        group = fusion.sole_producer(value, mask)
        if group is None or group.family != "generic" or any(group is g for g in found):
            continue
        if site.results[0].size > 2 * value.size or (group.reduces and any(g.reduces for g in found)):
            continue
        found.append(group)
    if not found or sum(len(g.sites) for g in found) >= MAX_CHAIN:
        return False
    merged = [s for g in found for s in g.sites]
    merged.sort(key=lambda s: fusion.position[s.node.ref])
    if functions([*merged, site]) > MAX_FUNCTIONS:
        return False
    joint = Group("generic", [*merged, site], mask, any(g.reduces for g in found))
    for member in joint.sites:
        fusion.groups[member.node.ref] = joint
    return True


def _channels_go_last(fusion: _Fusion, site: Site) -> bool:
    """Whether a change of shape stands between an image in blocks of channels and a transposition, as where images
    become tokens: together they read the blocks as they lie.
    """
    reader, image = sole_reader(fusion.graph, site.results[0]), site.operands[0]
    if reader is None or not transposes(reader) or image.rank < 3:
        return False
    group = fusion.maker(image)
    if group is not None and group.family == "generic":
        return any(fusion.makes_image(v) for v in group.inputs() if v.rank == image.rank)
    return fusion.makes_image(image)


def _channels_come_first(fusion: _Fusion, site: Site, mask: int) -> bool:
    """The other way round: tokens become an image that a convolution reads."""
    node = fusion.graph.producer(site.operands[0].ref)
    if node is None or not transposes(fusion.graph.site(node)):
        return False
    readers = (family_of(fusion.graph.site(n)) for n, _ in fusion.graph.uses(site.results[0].ref))
    return fusion.sole_producer(site.operands[0], mask) is not None and any(f in CONVOLUTIONS for f in readers)


def joint(members: Sequence[Group]) -> Group:
    """Siblings as one group."""
    mask = 0
    for member in members:
        mask |= member.mask
    segments = {v.ref: v for member in members for v in member.segments}
    sites = [site for member in members for site in member.sites]
    group = Group("siblings", sites, mask, True, open=False, members=tuple(members))
    group.segments = tuple(segments.values())
    return group


def describe(group: Group) -> tuple[str, ...]:
    """Names of the group's nodes, that of the anchor first."""
    others = (s for s in group.sites if s is not group.anchor)
    return tuple(s.node.ref.name for s in (group.anchor, *others))


def loops_of(group: Group) -> Contraction:
    """The loops of a product of two computed operands, between the buffers that it reads and writes."""
    found = contraction(group.anchor, group.moved, group.sites[-1] if group.behind else None)
    assert found is not None, "the family was decided by it"
    return found
