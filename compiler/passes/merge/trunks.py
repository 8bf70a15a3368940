"""Blocks that are shared whole: which networks compute them for which others, and how far.

At the start every network computes its own. Attaching task t to task o at a cut means that everything of t behind
the cut goes on from o's value (see `stitch`), and what t had in front of it is not computed any more: the label of
o's blocks up to there grows by t. So the labels of successive blocks are nested, and every subset's network is what
its outputs reach.

An attachment is taken only if what a call is expected to cost falls, the value of the cut keeps all but `drift` of
its variance and every task all but its `loss` of its outputs', both on held-out inputs. Among these `grow` takes
the one that is cheapest in expectation, then measures everything anew; per pair of networks the depth is halved
back from the deepest. `trunk` takes one cut for all networks. Layers behind a cut are fitted to what they computed
before (see `behind`) where a task loses a little too much, and in the end wherever that loses less.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compiler.calibration.tape import Feed
from compiler.ir.dead import sweep
from compiler.ir.graph import Graph, NodeRef
from compiler.ir.types import ValueRef
from compiler.passes.base import Note, Refusal
from compiler.passes.merge.behind import fitted_behind
from compiler.passes.merge.cuts import Cut, Cuts
from compiler.passes.merge.labels import base_name
from compiler.passes.merge.lattice import ROUNDING, Limits, lost_share, lost_tasks
from compiler.passes.merge.match import Alignment, sorted_masks
from compiler.passes.merge.room import check_room
from compiler.passes.merge.rows import rows_bytes
from compiler.passes.merge.solve import Freedom
from compiler.passes.merge.stitch import Samples, Stitch, Stitcher, attach, readers
from compiler.progress import noted

CHEAPER = 1 - 1e-9
"""What is expected to be paid must fall at least to this share."""

NEAR = 3.0
"""Losses of at most this many times the limit are worth the fit of all layers behind a cut."""


@dataclass(frozen=True)
class Bill:
    """What networks cost. `runs(mask)`: probability that a call needs something of these tasks; `caps`: most
    multiply-adds of combinations.
    """

    runs: Callable[[int], float]
    caps: Mapping[frozenset[str], float]

    def expected(self, graph: Graph) -> float:
        """Multiply-adds of a call in expectation."""
        by_mask: dict[int, int] = {}
        for mask, macs in self._items(graph):
            by_mask[mask] = by_mask.get(mask, 0) + macs
        return math.fsum(macs * self.runs(mask) for mask, macs in by_mask.items())

    def over(self, graph: Graph) -> set[frozenset[str]]:
        """The combinations that cost more than their caps."""
        if not self.caps:
            return set()
        names, items = tuple(sorted(graph.tasks)), self._items(graph)
        found = set()
        for tasks, cap in self.caps.items():
            bits = sum(1 << names.index(t) for t in tasks)
            if sum(macs for mask, macs in items if mask & bits) > cap:
                found.add(tasks)
        return found

    def _items(self, graph: Graph) -> list[tuple[int, int]]:
        _, masks = sorted_masks(graph)
        needed = (s for s in graph.sites() if s.node.ref in masks)
        return [(masks[s.node.ref], s.node.op.macs(s)) for s in needed]


@dataclass(frozen=True, slots=True)
class Attachment:
    """Task `task` goes on from what `owner` computes, by a stitch."""

    task: str
    owner: str
    stitch: Stitch


@dataclass(frozen=True, slots=True)
class Trial:
    """A graph with one or more attachments more. `graph` is swept; `cost`: expected multiply-adds of a call."""

    cost: float
    graph: Graph
    added: tuple[Attachment, ...]

    @property
    def price(self) -> tuple[float, float]:
        """What is expected to be paid; among equals, what is lost at the cuts."""
        return self.cost, sum(a.stitch.residual for a in self.added)


class Trunks:
    """The search over one set of networks. `graph`: of the originals, frozen, with parameters of its own for every
    node; afterwards the attribute `graph` is the network with its blocks shared.
    """

    def __init__(
        self,
        graph: Graph,
        alignment: Alignment,
        cuts: Cuts,
        feeds: Sequence[Feed],
        limits: Limits,
        bill: Bill,
        freedom: Freedom,
        excluded: Callable[[str], bool],
    ) -> None:
        self.graph, self.attached = graph, list[Attachment]()
        self._original, self._alignment, self._cuts = graph, alignment, cuts
        self._feeds, self._limits, self._bill = feeds, limits, bill
        self._excluded, self._fits_behind = excluded, freedom is Freedom.WEIGHTS
        self._wanted = dict(self._measured_values(excluded))
        rows = sum(rows_bytes(graph.value(r), axis) for r, axis in self._wanted.items())
        check_room("merge", len(feeds), rows + 2 * sum(v.type.bytes for v in graph.outputs))
        samples = Samples(graph, graph.tasks, self._wanted, feeds)
        self.outputs: Mapping[ValueRef, np.ndarray] = samples.outputs
        """Task output -> what the original networks answer, [samples, ...]."""
        self._rows, self._now = dict(samples.rows), samples.outputs
        self._stitcher = Stitcher(graph, dict(samples.rows), len(feeds), freedom, excluded)
        self._why: dict[tuple[str, str, int], str] = {}
        self._fits: dict[Cut, list[Stitch]] = {}

    @property
    def depth(self) -> int:
        """Number of cuts that all networks have."""
        return max((len(self._common(o)) for o in self._alignment.tasks), default=0)

    def losses(self) -> dict[str, float]:
        """Task -> error of its outputs on held-out samples, as a share of their variance."""
        return self._losses(self._now)

    # ------------------------------------------------------------------ any set of tasks
    def grow(self) -> None:
        """Attach networks to each other, the most saving first, while that keeps the limits."""
        while True:
            noted("merge: blocks shared", len(self.attached))
            best: Trial | None = None
            for trials in sorted(self._offers(), key=lambda found: min(t[0].price for t in found)):
                if best is not None and min(t[0].price for t in trials) >= best.price:
                    break
                found = self._deepest(trials)
                if found is not None and (best is None or found.price < best.price):
                    best = found
            if best is None:
                return
            self._accept(best)

    def _offers(self) -> list[list[list[Trial]]]:
        """Per pair of networks, per cut from the inputs on, the ways to attach one to the other, cheaper first."""
        roots = [t for t in self._alignment.tasks if all(a.task != t for a in self.attached)]
        pairs = [(t, o) for t in roots for o in self._alignment.tasks if self._root(o) != t]
        offers = ([list(self._trials(t, o, cut)) for cut in self._cuts.between(t, o)] for t, o in pairs)
        return [kept for found in offers if (kept := [trials for trials in found if trials])]

    def _trials(self, task: str, owner: str, cut: Cut) -> Iterator[Trial]:
        """The ways within the drift that make calls cheaper."""
        masks = self.graph.needed_masks()
        bit = 1 << list(self.graph.tasks).index(owner)
        if not masks.get(cut.theirs, 0) & bit or cut.mine not in masks:
            return  # it is not computed by itself any more
        ways = self._ways(cut)
        near = [w for w in ways if w.residual <= max(self._limits.drift, ROUNDING)]
        if not near:
            self._why[task, owner, cut.position] = self._far(task, owner, ways)
            return
        before, over = self._bill.expected(self.graph), self._bill.over(self.graph)
        for stitch in near:
            trial = self._trial([Attachment(task, owner, stitch)])
            if trial.cost < before * CHEAPER and self._bill.over(trial.graph) <= over:
                yield trial
            else:
                self._why[task, owner, cut.position] = (
                    f"'{task}' would read what '{owner}' has {stitch.how}, which costs more than it saves"
                )

    def _far(self, task: str, owner: str, ways: Sequence[Stitch]) -> str:
        if not ways:
            return f"what '{task}' has there and what '{owner}' has cannot be compared channel by channel"
        lost = _share(min(w.residual for w in ways))
        limit = f"{self._limits.drift:.1%} may be lost"
        return f"{lost} of the variance of what '{task}' has there cannot be told from what '{owner}' has, {limit}"

    def _deepest(self, offers: Sequence[Sequence[Trial]]) -> Trial | None:
        """The deepest of the cuts at which no task loses too much, by halving."""
        best, low, high = None, 0, len(offers) - 1
        while low <= high:
            middle = high if best is None and high == len(offers) - 1 else (low + high) // 2
            found = next(filter(None, map(self._kept, offers[middle])), None)
            if found is None:
                high = middle - 1
            else:
                best, low = found, middle + 1
        return best

    # ------------------------------------------------------------------ one trunk
    def trunk(self, least: int, most: int) -> None:
        """Attach all networks to one, at the deepest of the first `most` common cuts that keeps the limits; at
        `least` whatever it loses (0: nothing has to be shared).
        """
        low, high = least, most
        best = self._at(least, forced=True) if least else None
        while low < high:
            middle = most if high == most else (low + high + 1) // 2
            found = self._at(middle, forced=False)
            if found is None:
                high = middle - 1
            else:
                best, low = found, middle
        if best is not None:
            self._accept(best)

    def _at(self, depth: int, forced: bool) -> Trial | None:
        """All networks attached to the one that tells most of the others at a cut."""
        ways: dict[str, list[list[Stitch]]] = {}
        for owner in self._alignment.tasks:
            found = self._common(owner)
            if depth <= len(found):
                ways[owner] = [self._ways(cut) for cut in found[depth - 1]]
        ways = {o: found for o, found in ways.items() if all(found)}
        if not ways:
            return None
        owner = min(ways, key=lambda o: (sum(min(w.residual for w in each) for each in ways[o]), o))
        tasks = [t for t in self._alignment.tasks if t != owner]
        drift = max(self._limits.drift, ROUNDING)
        near = [[w for w in each if w.residual <= drift] for each in ways[owner]]
        for task, cut, each, some in zip(tasks, self._common(owner)[depth - 1], ways[owner], near, strict=True):
            if not some:
                self._why[task, owner, cut.position] = self._far(task, owner, each)
        closest = [min(each, key=lambda w: w.residual) for each in ways[owner]]
        cheapest = [each[0] for each in near] if all(near) else closest
        for chosen in (cheapest, closest) if all(near) or forced else ():
            trial = self._trial([Attachment(t, owner, s) for t, s in zip(tasks, chosen, strict=True)])
            cheaper = trial.cost < self._bill.expected(self.graph) * CHEAPER
            kept = self._kept(trial) if cheaper else None
            if kept is not None or (forced and chosen is closest):
                return kept or trial
        return None

    def _common(self, owner: str) -> list[list[Cut]]:
        """The cuts at which all other networks, in order of names, can go on from one, from the inputs on."""
        others = [t for t in self._alignment.tasks if t != owner]
        by_task = [{c.position: c for c in self._cuts.between(t, owner)} for t in others]
        both = set.intersection(*(set(found) for found in by_task)) if by_task else set()
        return [[found[p] for found in by_task] for p in sorted(both)]

    # ------------------------------------------------------------------ what is behind
    def refit(self) -> None:
        """Fit the layers behind every cut at which a network goes on from another, where that loses less."""
        for one in self.attached if self._fits_behind else ():
            before = self.losses()
            if before[one.task] <= ROUNDING:
                continue
            graph = self._fitted(Trial(0.0, self.graph, (one,))).graph
            outputs = Samples(graph, graph.tasks, {}, self._feeds).outputs
            after = self._losses(outputs)
            if after[one.task] < before[one.task] and all(after[t] <= before[t] for t in after):
                self.graph, self._now = graph, outputs

    # ------------------------------------------------------------------ trials
    def _ways(self, cut: Cut) -> list[Stitch]:
        if cut not in self._fits:
            self._fits[cut] = self._stitcher.ways(cut, self._rows.get(cut.theirs))
        return self._fits[cut]

    def _trial(self, added: Sequence[Attachment]) -> Trial:
        graph = self.graph.copy()
        for one in added:
            maker = self._original.producer(one.stitch.cut.mine)
            name = base_name(maker.ref.name if maker else "", self._alignment.tasks)
            attach(graph, self._original, one.stitch, f"{name}[{one.task}]")
        sweep(graph)
        return Trial(self._bill.expected(graph), graph, tuple(added))

    def _kept(self, trial: Trial) -> Trial | None:
        """A trial, layers behind its cuts fitted where that is needed, if every task keeps all but its limit."""
        losses = self._losses(self._now | self._changed(trial, {}).outputs)
        lost, limits = lost_tasks(losses, self._limits), self._limits.loss
        if self._fits_behind and 0 < len(lost) == sum(losses[t] <= NEAR * limits[t] for t in lost):
            trial = self._fitted(trial)
            losses = self._losses(self._now | self._changed(trial, {}).outputs)
            lost = lost_tasks(losses, self._limits)
        for one in trial.added if lost else ():
            worst = max(lost, key=lambda t: losses[t] - limits[t])
            self._why[one.task, one.owner, one.stitch.cut.position] = (
                f"'{worst}' would lose {_share(losses[worst])} of its outputs' variance, "
                f"{limits[worst]:.1%} may be lost"
            )
        return None if lost else trial

    def _fitted(self, trial: Trial) -> Trial:
        graph = trial.graph
        others = _read(graph, (*self.attached, *trial.added))
        for one in trial.added:
            graph = fitted_behind(graph, self._original, one.stitch, others, self._feeds, self._excluded)
        return replace(trial, graph=graph)

    def _changed(self, trial: Trial, wanted: Mapping[ValueRef, int]) -> Samples:
        """What the tasks give that read the cuts of a trial."""
        masks, names = self.graph.needed_masks(), tuple(self.graph.tasks)
        mask = 0
        for one in trial.added:
            mask |= masks.get(one.stitch.cut.mine, 0)
        tasks = [t for i, t in enumerate(names) if mask >> i & 1]
        return Samples(trial.graph, tasks, wanted, self._feeds)

    def _accept(self, trial: Trial) -> None:
        changed = self._changed(trial, self._wanted)
        self._rows |= changed.rows
        self._fits = {cut: ways for cut, ways in self._fits.items() if cut.theirs not in changed.rows}
        self._now = self._now | changed.outputs
        self.graph = trial.graph
        self.attached += trial.added

    def _losses(self, outputs: Mapping[ValueRef, np.ndarray]) -> dict[str, float]:
        return {
            task: float(np.max([lost_share(self.outputs[r], outputs[r]) for r in one.outputs]))
            for task, one in sorted(self._original.tasks.items())
        }

    def _measured_values(self, excluded: Callable[[str], bool]) -> Iterator[tuple[ValueRef, int]]:
        """Values at cuts, and results of layers that read them, with the axis of their channels."""
        names = self._alignment.tasks
        for cut in (c for t in names for o in names if t != o for c in self._cuts.between(t, o)):
            if cut.axis is not None:
                yield from ((cut.mine, cut.axis), (cut.theirs, cut.axis))
                sites = readers(self._original, cut, excluded) or []
                yield from ((s.results[0].ref, s.results[0].rank - 1) for s in sites)

    # ------------------------------------------------------------------ what came out
    def _root(self, task: str) -> str:
        owner = next((a.owner for a in self.attached if a.task == task), None)
        return task if owner is None else self._root(owner)

    def _computes(self, task: str, position: int) -> str:
        """The network whose nodes compute a task's value at a cut."""
        one = next((a for a in self.attached if a.task == task), None)
        if one is None or position > one.stitch.cut.position:
            return task
        return self._computes(one.owner, position)

    def shared(self) -> set[NodeRef]:
        """The nodes of blocks that are computed for other networks too."""
        masks, found = self.graph.needed_masks(), set[NodeRef]()
        waiting = _read(self.graph, self.attached)
        while waiting:
            node = self.graph.producer(waiting.pop())
            if node is not None and node.ref not in found and masks[node.ref].bit_count() > 1:
                found.add(node.ref)
                waiting += [v.ref for _, v in self.graph.operands(node).present() if v.data is None]
        return found

    def facts(self) -> list[Refusal]:
        """Per block what is shared by which tasks, and why the rest is not."""
        told: list[Refusal] = []
        for position, tasks in sorted(self._positions().items()):
            groups: dict[str, list[str]] = {}
            for task in tasks:
                groups.setdefault(self._computes(task, position), []).append(task)
            told += [self._shared(position, o, found) for o, found in groups.items() if len(found) > 1]
            told += self._apart(position, groups)
        return told

    def _positions(self) -> dict[int, list[str]]:
        """Position of a cut -> the tasks that have it with some other."""
        found: dict[int, list[str]] = {}
        for task in self._alignment.tasks:
            others = [o for o in self._alignment.tasks if o != task]
            for position in {c.position for o in others for c in self._cuts.between(task, o)}:
                found.setdefault(position, []).append(task)
        return found

    def _where(self, position: int, task: str) -> str:
        bit = 1 << self._alignment.tasks.index(task)
        node = next(m.node for m in self._alignment.positions[position].members if m.mask & bit)
        return f"block up to {node.op.name} '{node.ref}'"

    def _shared(self, position: int, owner: str, tasks: Sequence[str]) -> Note:
        said = [f"shared by {' and '.join(tasks)}, computed by the nodes of '{owner}'"]
        for one in self.attached:
            if one.stitch.cut.position == position and one.task in tasks:
                lost = f", which loses {_share(one.stitch.residual)}" if one.stitch.residual > ROUNDING else ""
                said.append(f"'{one.task}' goes on from '{one.owner}' here {one.stitch.how}{lost}")
        return Note(self._where(position, owner), "; ".join(said))

    def _apart(self, position: int, groups: Mapping[str, Sequence[str]]) -> Iterator[Refusal]:
        """One reason per two groups of tasks, each by the network that computes for it."""
        for (one, tasks), (other, others) in itertools.combinations(groups.items(), 2):
            known = [self._why.get((t, o, position)) for t, o in ((one, other), (other, one))]
            why = next(filter(None, known), "sharing up to here would lose more than allowed")
            both = f"{' and '.join(tasks)} from {' and '.join(others)}"
            yield Refusal(self._where(position, other), f"apart, {both}: {why}")


def _read(graph: Graph, attached: Iterable[Attachment]) -> list[ValueRef]:
    """The values that tasks go on from; one is gone where its own network went on from another later."""
    return [a.stitch.cut.theirs for a in attached if a.stitch.cut.theirs in graph]


def _share(loss: float) -> str:
    return f"{loss:.1%}" if np.isfinite(loss) else "all"
