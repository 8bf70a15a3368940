"""The outline of a graph: chains of nodes folded into stages, and the stages as a tree of series and branches.

Only what the graph says: operators, types, who needs what, counted multiply-adds. A stage lies under the last stage
that every path to it passes (its immediate dominator); stages that branches of it join in again follow it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from compiler.cost.count import node_cost
from compiler.ir.graph import Graph, NodeRef, Ref, Site
from compiler.ir.levels import level_suffix
from compiler.ir.types import ValueRef

ROOT = 0
"""Number of what is in front of all stages: the inputs."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Nodes of which each is the only reader of the one before it, with the same owners.

    `number` counts from 1 in topological order. `reads`: names of network inputs, and `after`: numbers of stages
    that the first node reads. `types`: of the last node's results. `gives`: tasks whose output it makes.
    """

    number: int
    nodes: tuple[str, ...]
    operators: Mapping[str, int]
    tasks: tuple[str, ...]
    reads: tuple[str, ...]
    after: tuple[int, ...]
    types: tuple[str, ...]
    macs: int
    gives: tuple[str, ...]

    def record(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "stage": self.number,
            "nodes": list(self.nodes),
            "operators": dict(self.operators),
            "tasks": list(self.tasks),
            "reads": list(self.reads),
            "after": list(self.after),
            "results": list(self.types),
            "macs": self.macs,
            "gives": list(self.gives),
        }


@dataclass(frozen=True, slots=True)
class Part:
    """A stage with what branches off it. Parts of one list come one after the other unless they are `branches`."""

    stage: Stage
    branches: tuple[tuple[Part, ...], ...]
    """In parallel: each a series. What they join in again follows this part in its own series."""


@dataclass
class _Chain:
    """A stage while it grows."""

    sites: list[Site]
    mask: int
    reads: tuple[str, ...]
    after: tuple[int, ...]


@dataclass
class _Folding:
    """Assigns nodes to chains in topological order."""

    graph: Graph
    masks: Mapping[Ref, int]
    chains: list[_Chain] = field(default_factory=list)
    chain_of: dict[NodeRef, int] = field(default_factory=dict)

    def add(self, site: Site) -> None:
        """Continue the chain of the only node read, or begin one."""
        makers: dict[NodeRef, None] = {}
        reads: dict[str, None] = {}
        for _, value in site.operands.present():
            maker = self.graph.producer(value.ref)
            if maker is not None:
                makers[maker.ref] = None
            elif value.data is None:
                reads[value.ref.name] = None
        mask = self.masks.get(site.node.ref, 0)
        if len(makers) == 1 and not reads:
            number = self.chain_of[next(iter(makers))]
            if self._ends_open(self.chains[number - 1], next(iter(makers)), mask):
                self.chains[number - 1].sites.append(site)
                self.chain_of[site.node.ref] = number
                return
        after = tuple(sorted({self.chain_of[ref] for ref in makers}))
        self.chains.append(_Chain([site], mask, tuple(reads), after))
        self.chain_of[site.node.ref] = len(self.chains)

    def _ends_open(self, chain: _Chain, maker: NodeRef, mask: int) -> bool:
        """Whether `maker` is the chain's last node and leads to one node alone, for the same tasks."""
        last = chain.sites[-1]
        readers = {node.ref for value in last.results for node, _ in self.graph.uses(value.ref)}
        given = any(self.graph.is_output(value.ref) for value in last.results)
        return last.node.ref == maker and chain.mask == mask and len(readers) == 1 and not given


def stages(graph: Graph) -> tuple[Stage, ...]:
    """The stages of a graph in topological order."""
    folding = _Folding(graph, graph.needed_masks())
    for site in graph.sites():
        folding.add(site)
    givers: dict[ValueRef, list[str]] = {}
    for task in graph.tasks.values():
        for level, outputs in enumerate(task.ladder):
            for ref in dict.fromkeys(outputs):
                givers.setdefault(ref, []).append(f"{task.name}{level_suffix(level)}")
    return tuple(_stage(n, chain, list(graph.tasks), givers) for n, chain in enumerate(folding.chains, 1))


def _stage(number: int, chain: _Chain, tasks: Sequence[str], givers: Mapping[ValueRef, list[str]]) -> Stage:
    results = [value for site in chain.sites for value in site.results]
    return Stage(
        number=number,
        nodes=tuple(site.node.ref.name for site in chain.sites),
        operators=Counter(site.node.op.name for site in chain.sites),
        tasks=tuple(t for i, t in enumerate(tasks) if chain.mask >> i & 1),
        reads=chain.reads,
        after=chain.after,
        types=tuple(str(value.type) for value in chain.sites[-1].results),
        macs=sum(node_cost(site).macs for site in chain.sites),
        gives=tuple(dict.fromkeys(t for value in results for t in givers.get(value.ref, ()))),
    )


def arranged(found: Sequence[Stage]) -> tuple[tuple[Part, ...], ...]:
    """The stages as parallel series behind the inputs; every stage is in it once."""
    return _Arrangement(found).below(ROOT)


class _Arrangement:
    """The tree of dominators of a list of stages, and the joins in it."""

    def __init__(self, found: Sequence[Stage]) -> None:
        self._stages = {stage.number: stage for stage in found}
        self._above = {ROOT: ROOT}
        self._depth = {ROOT: 0}
        self._below: dict[int, list[int]] = {ROOT: []}
        self._readers: dict[int, list[int]] = {number: [] for number in (ROOT, *self._stages)}
        for stage in found:  # in topological order: dominators of what is read are known
            above = self._common([*stage.after, *([ROOT] if stage.reads or not stage.after else [])])
            self._above[stage.number] = above
            self._depth[stage.number] = self._depth[above] + 1
            self._below[stage.number] = []
            self._below[above].append(stage.number)
            for number in stage.after:
                self._readers[number].append(stage.number)

    def below(self, number: int) -> tuple[tuple[Part, ...], ...]:
        """What branches off a stage: all stages directly under it, besides the one that all branches join in."""
        join = self._join(number)
        return tuple(tuple(self._series(n)) for n in self._below[number] if n != join)

    def _series(self, number: int) -> Iterator[Part]:
        """A stage, what its branches join in, what the branches of that join in, and so on."""
        following: int | None = number
        while following is not None:
            yield Part(self._stages[following], self.below(following))
            following = self._join(following)

    def _common(self, numbers: Sequence[int]) -> int:
        """The deepest stage that is over all of these, or one of them."""
        first, *rest = numbers
        for other in rest:
            while first != other:
                if self._depth[first] < self._depth[other]:
                    other = self._above[other]
                else:
                    first = self._above[first]
        return first

    def _join(self, number: int) -> int | None:
        """The stage directly under this one that every path from here passes, if there is one."""
        if number == ROOT or not self._below[number]:
            return None
        *branches, last = self._below[number]
        waiting = [number, *branches]
        while waiting:
            inner = waiting.pop()
            waiting += self._below[inner] if inner != number else []
            readers = self._readers[inner]
            if self._stages[inner].gives or not readers or any(self._outside(r, number, last) for r in readers):
                return None
        return last

    def _outside(self, reader: int, number: int, join: int) -> bool:
        """Whether a reader is neither the join nor under `number` beside it."""
        while self._depth[reader] > self._depth[number] + 1:
            reader = self._above[reader]
        return False if reader == join else self._above[reader] != number
