"""merge: networks that were trained apart become one graph in which channels are shared by sets of tasks.

See docs/merging.md for the method and its sources. The result is an ordinary graph, one node per label; which tasks
share what is what `needed_by` says about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np

from compiler.cost.combine import cost_report
from compiler.errors import PassError, VerifyError, plural
from compiler.ir.dead import sweep
from compiler.ir.graph import Graph
from compiler.ir.reference import difference
from compiler.ir.types import ValueRef
from compiler.passes.base import Note, Pass, Refusal, Resources, rounding
from compiler.passes.dedupe import Deduplicate
from compiler.passes.merge.assemble import Assembly, Decide
from compiler.passes.merge.channels import ChannelMap
from compiler.passes.merge.cuts import Cuts, has_blocks
from compiler.passes.merge.facts import facts
from compiler.passes.merge.labels import Labelling, check, check_closure, separate
from compiler.passes.merge.lattice import Lattice, Limits, Round, exceeds, task_losses
from compiler.passes.merge.layer import PriorOf, as_is
from compiler.passes.merge.match import Alignment, align
from compiler.passes.merge.originals import Originals, kept_bytes
from compiler.passes.merge.policies import Mtz, Pam, Policy, Prefix, Wide, Zipit
from compiler.passes.merge.relevance import Likeness, Prices, Runs, worth
from compiler.passes.merge.room import check_room
from compiler.passes.merge.solve import Freedom
from compiler.passes.merge.stages import Label, stages
from compiler.passes.merge.streams import Place, Stream, Streams
from compiler.passes.merge.trunks import Bill, Trunks
from compiler.passes.prune.surgery import join_shared, split_shared
from compiler.passes.spec import changed, named_numbers, task_numbers

STARTS = ("separate", "shared")

POLICIES = ("lattice", "exact", "prefix", "mtz", "pam", "zipit")

KINDS: Mapping[str, type[Policy]] = {"lattice": Wide, "prefix": Prefix, "mtz": Mtz, "zipit": Zipit, "pam": Pam}
"""Policy -> what labels its stages; lattice with start=shared."""

LIMITED = ("lattice", "prefix")

READ_BY: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("max_drift", "max_loss", "limits"), LIMITED),
    **dict.fromkeys(("fit", "samples", "exclude"), ("lattice", "shared", "prefix", "mtz", "pam", "zipit")),
    "depth": ("prefix", "mtz", "pam", "zipit", "shared"),
    "multiple": ("lattice",),
    "share": ("mtz",),
    "alpha": ("zipit",),
    "beta": ("zipit",),
    "threshold": ("pam",),
}
"""Option -> the policies that read it, `shared` being the lattice with that start. All read `caps`."""

MOST_ONE = ("alpha", "beta", "threshold")
"""Options that are shares, or factors that make a likeness less."""

WIRING = 2
"""Inputs on which the way channels are put together is checked."""

FEW = 100
"""Calibration inputs below which statistics are not worth having."""


class Networks(NamedTuple):
    """What is merged, and what is known of it: layers that correspond, channels, names that stay as they are."""

    graph: Graph
    alignment: Alignment
    channels: ChannelMap
    excluded: Callable[[str], bool]


@dataclass(frozen=True)
class Merge(Pass):
    """Let networks trained apart share channels, each with any subset of the tasks.

    `policy`: lattice (the cheapest labels in expectation, within the limits), exact (identical computations
    only), prefix (one trunk), or the grouping of a published method: mtz, pam, zipit. `max_drift`: what a layer's
    results may lose, `max_loss`: what a task's outputs may lose on held-out inputs, both as shares of their
    variance; lattice and prefix keep them, the published methods do not know limits. Transformer blocks, whose
    channels cannot be told apart, are shared whole by lattice and prefix; `max_drift` then bounds what a value
    between two layers of them loses, and prefix counts these values before other stages. `start`: where the lattice
    begins: separate (labels grow by joins, within the limits) or shared (all networks' channels side by side under
    one label, as deep as stages reach: loses nothing, costs more than the separate networks, and leaves it to
    pruning and training which channels go). `limits`: max_loss per task,
    `task:0.01`. `caps`: most multiply-adds of a combination, `a/b:1500000`; PassError where they are not met.
    `multiple`: shared widths are multiples of it. `depth`: stages from the input on that prefix, mtz, pam and
    zipit share (0: as deep as the limits allow for prefix, all for the others). `share`: mtz, share of channels
    that are paired. `alpha`, `beta`: zipit. `threshold`: pam, share of the labels' entropy that irrelevant
    channels may tell. `fit`: fit weights by least squares; else they are placed and averaged, and only constants
    are fitted. `samples`: how many calibration batches are used. `exclude`: patterns of names to leave alone.
    """

    name: ClassVar[str] = "merge"
    exact: ClassVar[bool] = False

    policy: str = "lattice"
    max_drift: float = 0.05
    max_loss: float = 0.05
    start: str = "separate"
    limits: tuple[str, ...] = ()
    caps: tuple[str, ...] = ()
    multiple: int = 1
    depth: int = 0
    share: float = 1.0
    alpha: float = 0.3
    beta: float = 0.125
    threshold: float = 0.5
    fit: bool = True
    samples: int = 512
    exclude: tuple[str, ...] = ()

    def wrong(self, graph: Graph, use: Resources) -> list[str]:
        problems = []
        if self.policy not in POLICIES:
            problems.append(f"policy is '{self.policy}'; it can be {', '.join(POLICIES)}")
        if self.start not in STARTS or (self.start != "separate" and self.policy != "lattice"):
            problems.append(
                f"start is '{self.start}'; it can be {' or '.join(STARTS)}, the latter for lattice only"
            )
        for name in ("max_drift", "max_loss", "beta", "alpha", "threshold"):
            if getattr(self, name) < 0:
                problems.append(f"{name} cannot be negative")
            elif name in MOST_ONE and getattr(self, name) > 1:
                problems.append(f"{name} cannot be above 1")
        if not 0 < self.share <= 1 or self.multiple < 1 or self.depth < 0 or self.samples < 1:
            problems.append("share lies in (0, 1], multiple and samples start at 1, depth at 0")
        if self.policy in POLICIES and self.policy != "exact" and use.calibration is None:
            problems.append(
                f"policy {self.policy} needs calibration inputs; give [calibration] data, or take policy=exact"
            )
        problems += self._idle()
        for read in (lambda: self._losses(graph), lambda: caps_of(self.caps, graph)):
            try:
                read()
            except ValueError as error:
                problems.append(str(error))
        return problems

    def _idle(self) -> list[str]:
        """Options that were given and that the policy does not read, with the policies that do."""
        kind = "shared" if self.start == "shared" else self.policy
        shown = {"shared": "lattice with start=shared"}
        if kind == "shared":
            shown["lattice"] = "lattice with start=separate"
        given = dict(changed(self))
        return [
            f"{option} says nothing to policy {shown.get(kind, kind)}, only to "
            f"{', '.join(shown.get(k, k) for k in kinds)}"
            for option, kinds in READ_BY.items()
            if option in given and self.policy in POLICIES and kind not in kinds
        ]

    def rewrite(self, graph: Graph, use: Resources) -> Iterable[Refusal]:
        told = list(Deduplicate().rewrite(graph, use))
        if self.policy == "exact" or len(graph.tasks) < 2:
            self._check_caps(graph)
            return told
        origin = split_shared(graph, matrices=True)
        networks = self._networks(graph, use)
        trunks, told = self._blocks(networks, use) if has_blocks(graph) else (None, [])
        if trunks is not None:
            graph.assign(trunks.graph)
            origin = _first_copies(graph, origin)
            networks = self._networks(graph, use)
        told += self._merge(graph, networks, use, trunks)
        sweep(graph)
        join_shared(graph, {c: o for c, o in origin.items() if c in graph and o in graph})
        self._check_caps(graph)
        return told

    def ensures(self, before: Graph, after: Graph) -> None:
        if list(before.tasks) != list(after.tasks):
            raise VerifyError(f"after {self.name}: the tasks are {', '.join(after.tasks)}")
        for task in before.tasks:
            pairs = zip(before.tasks[task].outputs, after.tasks[task].outputs, strict=True)
            if any(before.value(a).type != after.value(b).type for a, b in pairs):
                raise VerifyError(f"after {self.name}: outputs of task '{task}' have another type")

    # ------------------------------------------------------------------ one merge
    def _networks(self, graph: Graph, use: Resources) -> Networks:
        original, excluded = graph.copy().freeze(), partial(use.excluded, also=self.exclude)
        channels = ChannelMap(original, excluded, recurrent=self.start == "shared")
        return Networks(original, align(original), channels, excluded)

    def _merge(self, graph: Graph, networks: Networks, use: Resources, trunks: Trunks | None) -> list[Refusal]:
        original = networks.graph
        streams = Streams(original, networks.alignment, networks.channels)
        if not any(len(s.groups) > 1 for s in streams.streams):
            return facts(streams, None, trunks)
        feeds = self._feeds(original, use)
        check_room(self.name, len(feeds), kept_bytes(streams))
        check_wiring(streams, Originals(original, streams, feeds[:WIRING]))
        originals = Originals(original, streams, feeds, use.cache)
        if trunks is not None:
            originals.outputs |= trunks.outputs  # what sharing blocks has lost counts
        outcome = self._round(streams, originals, use, 0 if trunks is None else trunks.depth)
        check(streams, outcome.assembly.labelling)
        check_closure(streams, outcome.assembly.graph, outcome.assembly.made)
        if outcome.assembly.labelling:
            graph.assign(outcome.assembly.graph)
        told = facts(streams, outcome.assembly, trunks, outcome.losses)
        if len(feeds) < FEW:
            reason = f"{plural(len(feeds), 'calibration input')} say little; statistics want {FEW} or more"
            told.append(Note(self.name, reason))
        return told

    def _feeds(self, graph: Graph, use: Resources) -> list[dict[str, np.ndarray]]:
        feeds = [dict(b) for b in use.batches(graph, self.samples)]
        if not feeds:
            raise PassError(f"{self.name}: the calibration data holds no complete batch")
        return feeds

    def _blocks(self, networks: Networks, use: Resources) -> tuple[Trunks | None, list[Refusal]]:
        """Blocks shared whole; None where no networks have any that correspond, or the policy leaves them apart."""
        original, alignment, channels, excluded = networks
        cuts = Cuts(original, alignment, channels, excluded)
        if not cuts.found:
            return None, []
        if self.policy not in LIMITED or self.start == "shared":
            kind = f"policy {self.policy}{' with start=shared' * (self.start == 'shared')}"
            reason = f"stay apart: {kind} labels channels one by one, and blocks read theirs whole"
            return None, [Refusal("blocks", f"{reason}; prefix and lattice share them")]
        limits = Limits(self.max_drift, self._losses(original))
        bill = Bill(Runs(alignment.tasks, self._workload(original, use)), caps_of(self.caps, original))
        freedom = Freedom.WEIGHTS if self.fit else Freedom.CONSTANTS
        feeds = self._feeds(original, use)
        trunks = Trunks(original, alignment, cuts, feeds, limits, bill, freedom, excluded)
        if self.policy == "lattice":
            trunks.grow()
        else:
            least = min(self.depth, trunks.depth)
            trunks.trunk(least, least or trunks.depth)
        trunks.refit()
        return trunks, trunks.facts()

    def _round(self, streams: Streams, originals: Originals, use: Resources, blocks: int) -> Round:
        """`blocks`: stages in front of the streams."""

        def build(decide: Decide, prior_of: PriorOf = as_is) -> Assembly:
            graph = streams.graph.copy()
            freedom = Freedom.WEIGHTS if self.fit else Freedom.CONSTANTS
            assembly = Assembly(graph, streams, originals, decide, freedom=freedom, prior_of=prior_of)
            assembly.run()
            return assembly

        def finished(policy: Policy) -> Round:
            assembly = build(policy, policy.prior)
            return Round(assembly, assembly.findings, task_losses(streams, originals, assembly))

        limits = Limits(self.max_drift, self._losses(streams.graph))
        likeness, value = Likeness(streams, originals), worth(streams, originals)
        if self.policy == "lattice" and self.start == "separate":
            runs = Runs(streams.alignment.tasks, self._workload(streams.graph, use))
            return Lattice(streams, originals, Prices(streams, runs), limits, self.multiple, likeness, build).run()
        kind = KINDS[self.policy]

        def allowed(stream: Stream, groups: Label) -> bool:
            return kind.allows(streams, stream, groups) and bool(likeness.together(groups))

        found = stages(streams, allowed, complete=kind.complete)
        depth = min(max(self.depth - blocks, 0), len(found)) if self.depth else len(found)
        common = (streams, originals, likeness, value, found)
        if self.policy == "prefix":
            least = depth if self.depth else 0
            return _deepest(lambda d: finished(Prefix(*common, d)), least, depth, limits)
        policies: Mapping[str, Policy] = {
            "lattice": Wide(*common, depth),
            "mtz": Mtz(*common, depth, self.share),
            "zipit": Zipit(*common, depth, self.alpha, self.beta),
            "pam": Pam(*common, depth, self.threshold),
        }
        return finished(policies[self.policy])

    # ------------------------------------------------------------------ options
    def _losses(self, graph: Graph) -> dict[str, float]:
        """Task -> what its outputs may lose; ValueError names what cannot be read."""
        return task_numbers("limits", self.limits, graph.tasks, "SHARE", self.max_loss)

    def _workload(self, graph: Graph, use: Resources) -> Mapping[frozenset[str], float]:
        """The probabilities that labels are priced with: capped combinations count as much as all others
        together.
        """
        caps = caps_of(self.caps, graph)
        if not caps:
            return use.workload
        base = dict(use.workload) or _uniform(tuple(graph.tasks))
        total = sum(base.values())
        weights = {q: p / total / 2 for q, p in base.items()}
        for tasks in caps:
            weights[tasks] = weights.get(tasks, 0.0) + 0.5 / len(caps)
        return weights

    def _check_caps(self, graph: Graph) -> None:
        caps = caps_of(self.caps, graph)
        over = []
        for row in cost_report(graph).combinations if caps else ():
            cap = caps.get(frozenset(row.tasks), np.inf)
            if row.cost.macs > cap:
                over.append(f"{'/'.join(row.tasks)} takes {row.cost.macs:,} multiply-adds, its cap is {cap:,.0f}")
        if over:
            raise PassError(
                f"{self.name}: {'; '.join(over)}. Allow more loss (max_drift, max_loss), or prune behind the merge"
            )


def check_wiring(streams: Streams, originals: Originals) -> None:
    """VerifyError unless giving every channel a label of its own leaves the networks as they are, to rounding.

    Sizes can be right where the meaning is wrong, and a fit would hide it: so nothing is fitted here.
    """

    def decide(assembly: Assembly, place: Place, fresh: Sequence[Stream]) -> Labelling:
        return {s.index: separate(streams, s) for s in fresh}

    assembly = Assembly(streams.graph.copy(), streams, originals, decide, freedom=Freedom.NOTHING)
    assembly.run()
    limit = rounding(streams.graph)
    for task in streams.graph.tasks:
        pairs = zip(streams.graph.tasks[task].outputs, assembly.graph.tasks[task].outputs, strict=True)
        for before, after in pairs:
            worst = difference(assembly.outputs(after), originals.outputs[before])
            if worst > limit:
                raise VerifyError(
                    f"merge: with every channel on its own, task '{task}' differs by {worst:.1e} of scale "
                    f"(limit {limit:.0e}): channels were mixed up"
                )


def _first_copies(graph: Graph, origin: Mapping[ValueRef, ValueRef]) -> dict[ValueRef, ValueRef]:
    """Copy of a parameter -> the original, or the first of the copies where that is gone."""
    first: dict[ValueRef, ValueRef] = {o: o for o in origin.values() if o in graph}
    return {c: first[o] for c, o in origin.items() if c in graph and first.setdefault(o, c) != c}


def caps_of(texts: Sequence[str], graph: Graph) -> dict[frozenset[str], float]:
    """Combination -> most multiply-adds, from `a/b:1500000`; ValueError names what cannot be read."""

    def combination(names: str) -> frozenset[str] | None:
        found = frozenset(names.split("/"))
        return found if found <= set(graph.tasks) else None

    form = f"TASK/TASK:MACS with tasks of {', '.join(graph.tasks)}"
    return named_numbers("caps", texts, combination, form, least=1)


def _uniform(tasks: tuple[str, ...]) -> dict[frozenset[str], float]:
    subsets = (frozenset(t for i, t in enumerate(tasks) if m >> i & 1) for m in range(1, 1 << len(tasks)))
    return dict.fromkeys(subsets, 1.0)


def _deepest(build: Callable[[int], Round], least: int, most: int, limits: Limits) -> Round:
    """The deepest of the depths least..most whose merge stays within the limits; `least` is taken in any case."""
    best = build(least)
    low, high = least, most
    while low < high:
        middle = (low + high + 1) // 2
        trial = build(middle)
        if exceeds(trial, limits):
            high = middle - 1
        else:
            best, low = trial, middle
    return best
