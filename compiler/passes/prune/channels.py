"""prune-channels: structured pruning to a budget, along ties.

The pruned graph is always compared with the masked original (the same entries multiplied by zero) before any
recovery: sizes can be right where the meaning is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, get_args

import numpy as np

from compiler.errors import PassError, VerifyError, plural
from compiler.ir.graph import Graph
from compiler.ir.reference import difference, evaluate, random_feeds
from compiler.ir.ties import Atom, Closure, Group
from compiler.ir.types import Axis, ValueRef
from compiler.ir.verify import verify
from compiler.passes.base import CPU_ONLY, NewNames, Pass, Refusal, Resources, memory_for, rounding, torch_module
from compiler.passes.budget.accuracy import within_drop
from compiler.passes.budget.limits import Limit, check_drop, limit_of, problems_of
from compiler.passes.prune.budget import Ladder, Meter, Quantity, Scope, Selection, narrowed, select
from compiler.passes.prune.criteria import (
    CRITERIA,
    NEEDS_DATA,
    activation_scores,
    fisher_scores,
    gated_axes,
    scores,
)
from compiler.passes.prune.recover import refit
from compiler.passes.prune.surgery import (
    Mask,
    Removal,
    complement,
    join_shared,
    masked_difference,
    remove,
    split_shared,
)
from compiler.passes.prune.worth import Readers
from compiler.progress import counted

AUTO = "auto"

TRIES = 6
"""Selections that are made until one is within an absolute budget."""

LEAST = 1e-6

NEAR = 0.95
"""Share of a budget that is used, if steps allow it, before the search for a better use ends."""

Scorer = Callable[[Mapping[Axis, np.ndarray]], Sequence[np.ndarray]]

Chooser = Callable[[Graph, Closure, Sequence[Refusal]], Sequence[Atom]]
"""A graph, its closure, and why channels are frozen -> the atoms to remove."""


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove whole channels, hidden units and heads until a budget holds.

    The budget, one of: `flops` or `parameters`, a share of the original's products or parameters that stays, within
    one rounding step; `flops` or `weight_bytes` above 100, FLOPs of the expected call or bytes of all weights
    (`weight_bytes` up to 1 is a share too); `latency_us`, microseconds of the expected call as the planner of
    `target` predicts, for which widths become whole vectors. `accuracy_drop`: how much worse any task may become on
    the evaluation data; alone it asks for the fewest FLOPs.
    `score`: l1, l2, rms, obs, fisher (needs torch) or random; auto is obs with calibration inputs and l2 without.
    `scope`: rank all groups together (global) or shrink each by the same share (local). `multiple`: widths stay
    multiples of it; `floor`: share of every group that stays in any case. `exclude`: patterns of names to leave
    alone. `allow_mixed`: also shrink axes under a softmax or normalisation, which changes their statistics.
    `recover`: none, or least-squares from calibration inputs. `samples`: how many calibration batches are used.
    """

    name: ClassVar[str] = "prune-channels"
    exact: ClassVar[bool] = False
    new_names: ClassVar[NewNames] = NewNames.DERIVED

    flops: float | None = None
    parameters: float | None = None
    score: str = AUTO
    scope: str = "global"
    multiple: int = 1
    floor: float = 0.1
    exclude: tuple[str, ...] = ()
    allow_mixed: bool = False
    recover: str = "none"
    samples: int = 256
    weight_bytes: float | None = None
    latency_us: float | None = None
    target: str = "host"
    accuracy_drop: float | None = None

    def wrong(self, graph: Graph, use: Resources) -> list[str]:
        problems = []
        given = [v for v in (self.flops, self.parameters, self.weight_bytes, self.latency_us) if v is not None]
        if len(given) > 1 or (not given and self.accuracy_drop is None):
            problems.append("give either flops or parameters, for example prune-channels{flops=0.5}, or one budget")
        elif self.parameters is not None and not 0 < self.parameters <= 1:
            problems.append(f"parameters is a share, above 0 and at most 1, not {self.parameters}")
        problems += problems_of(self, use)
        for option, value, allowed in (
            ("score", self.score, (AUTO, *CRITERIA)),
            ("scope", self.scope, get_args(Scope)),
            ("recover", self.recover, ("none", "least-squares")),
        ):
            if value not in allowed:
                problems.append(f"{option} is '{value}'; it can be {', '.join(allowed)}")
        if self.multiple < 1 or not 0 <= self.floor < 1 or self.samples < 1:
            problems.append("multiple and samples start at 1, floor lies in [0, 1)")
        if use.calibration is None and (self.score in NEEDS_DATA or self.recover != "none"):
            problems.append("score rms, obs or fisher and recover need calibration inputs")
        return problems

    def rewrite(self, graph: Graph, use: Resources) -> Iterable[Refusal]:
        told = within_drop(self, graph, use) if self._only_drop else self._prune(graph, use)
        check_drop(self, graph, use)
        return told

    @property
    def _only_drop(self) -> bool:
        return all(v is None for v in (self.flops, self.parameters, self.weight_bytes, self.latency_us))

    def at_share(self, share: float) -> PruneChannels:
        """The same pass to a share of the FLOPs, whatever accuracy that costs."""
        return replace(self, flops=share, accuracy_drop=None)

    def _prune(self, graph: Graph, use: Resources) -> list[Refusal]:
        """To a budget that `graph` sets, not the one in which all readers of a vector have a copy of their own."""
        limit = None if self._is_share else limit_of(self, graph, use)
        if limit is not None and limit.cost(graph, use) <= limit.value:
            return self.cut(graph, use, lambda original, closure, told: ())

        before = graph.copy().freeze()

        def choose(original: Graph, closure: Closure, told: Sequence[Refusal]) -> Sequence[Atom]:
            found = self.select(original, closure, use, told, limit).atoms
            if self.parameters is None:
                return found
            whole, copied = (Meter(g, "parameters").total for g in (before, original))
            allowed = self.parameters * whole
            if whole == copied:
                return found
            if _parameters_left(before, closure, found) <= allowed:
                return found
            narrower = replace(self, parameters=allowed / copied)
            return narrower.select(original, closure, use, told).atoms

        return self.cut(graph, use, choose)

    def cut(self, graph: Graph, use: Resources, choose: Chooser) -> list[Refusal]:
        """Remove the atoms that `choose` names from `graph`, in place, and recover; says what stays and why."""
        origin = split_shared(graph)
        original = graph.copy().freeze()
        closure = self.closure(original, use)
        refusals = frozen(closure)
        atoms = choose(original, closure, refusals)
        removal = closure.removal(atoms)
        remove(graph, removal)
        verify(graph, stage=self.name)
        if any(a.mixed for a in atoms):
            refusals.append(Refusal(self.name, "statistics of mixed axes changed; not compared with the original"))
        else:
            check_masked(original, graph, removal)
        if self.recover != "none":
            refusals += refit(original, graph, complement(original, removal), self._batches(original, use))
        join_shared(graph, origin)
        return refusals

    def closure(self, graph: Graph, use: Resources) -> Closure:
        """Atoms of `graph` under the pass's exclusions."""
        return Closure(graph, exclude=partial(use.excluded, also=self.exclude), allow_mixed=self.allow_mixed)

    def select(
        self,
        graph: Graph,
        closure: Closure,
        use: Resources,
        refusals: Sequence[Refusal] = (),
        limit: Limit | None = None,
    ) -> Selection:
        """The atoms that the pass removes from `graph`; `limit`: the budget, where `graph` is not what sets it.

        PassError where the budget cannot be met.
        """
        if limit is None and not self._is_share:
            limit = limit_of(self, graph, use)
        if limit is None:
            quantity: Quantity = "flops" if self.parameters is None else "parameters"
            share = self.flops if self.parameters is None else self.parameters
            assert share is not None
            score = self.scorer(graph, closure.groups, use)
            return self._select(graph, closure, use, quantity, share, score, refusals)
        return self._within(graph, closure, use, limit, refusals)

    @property
    def _is_share(self) -> bool:
        """Whether the budget is a share of products or parameters, which the meter knows exactly."""
        return self.parameters is not None or (self.flops is not None and self.flops <= 1)

    def _within(
        self, graph: Graph, closure: Closure, use: Resources, limit: Limit, refusals: Sequence[Refusal]
    ) -> Selection:
        """A selection with which the whole graph costs no more than the limit.

        The meter sees products or weights alone; what it does not see is taken to stay, and the share it is given
        falls until the cost of the graph itself fits.
        """
        cost = limit.cost(graph, use)
        if cost <= limit.value:
            return Selection((), 1.0, 0.0)
        score = self.scorer(graph, closure.groups, use)
        seen = self.meter(graph, closure, use, limit.quantity).total
        seen *= 2 if limit.quantity == "flops" else 1
        share = max(1 - (cost - limit.value) / max(seen, 1e-30), LEAST)
        best: tuple[float, Selection] | None = None
        held, over = LEAST, 1.0
        for _ in counted("budget: selections tried, at most", range(TRIES)):
            try:
                selection = self._select(graph, closure, use, limit.quantity, share, score, refusals)
            except PassError as error:
                selection = self._narrowest(graph, closure, use, limit)
                cost = self._cost(graph, closure, selection, limit, use)
                if cost > limit.value:
                    raise limit.missed(cost, "when every removable channel is gone") from error
            else:
                cost = self._cost(graph, closure, selection, limit, use)
            if cost <= limit.value:
                best, held = max(best or (0.0, selection), (cost, selection), key=lambda b: b[0]), share
                if cost >= NEAR * limit.value:
                    break
            else:
                over = share
            share = (held + over) / 2 if best else max(share - 1.1 * (cost - limit.value) / max(seen, 1e-30), LEAST)
        if best is None:
            raise limit.missed(cost, f"after {TRIES} tries")
        return best[1]

    def _cost(self, graph: Graph, closure: Closure, selection: Selection, limit: Limit, use: Resources) -> float:
        trial = graph.copy()
        remove(trial, closure.removal(selection.atoms))
        return limit.cost(trial, use)

    def _narrowest(self, graph: Graph, closure: Closure, use: Resources, limit: Limit) -> Selection:
        """What goes when every group becomes as narrow as it may."""
        groups, multiple = closure.groups, self.step(limit.quantity, use)
        meter = self.meter(graph, closure, use, limit.quantity)
        ladders = [Ladder(g, np.zeros(len(g.atoms)), multiple, self.floor) for g in groups]
        gone = tuple(a for ladder in ladders for a in narrowed(ladder, meter))
        return Selection(gone, 0.0, 0.0)

    def step(self, quantity: Quantity, use: Resources) -> int:
        """What widths are multiples of. Time is a staircase in channels with the vector width as its step."""
        whole = quantity == "latency_us" and self.multiple == 1
        return use.timer(self.target).lanes if whole else self.multiple

    def meter(self, graph: Graph, closure: Closure, use: Resources, quantity: Quantity) -> Meter:
        """What the channels of `graph` cost."""
        axes = {axis: closure.size(axis) for group in closure.groups for axis in group.axes}
        timer = use.timer(self.target) if quantity == "latency_us" else None
        return Meter(graph, quantity, use.workload, axes, timer)

    def _select(
        self,
        graph: Graph,
        closure: Closure,
        use: Resources,
        quantity: Quantity,
        share: float,
        score: Scorer,
        refusals: Sequence[Refusal],
    ) -> Selection:
        groups, multiple = closure.groups, self.step(quantity, use)
        ladders = [Ladder(g, s, multiple, self.floor) for g, s in zip(groups, score({}), strict=True)]
        meter = self.meter(graph, closure, use, quantity)
        return select(meter, ladders, share, "local" if self.scope == "local" else "global", score, refusals)

    def scorer(self, graph: Graph, groups: Sequence[Group], use: Resources) -> Scorer:
        """Scores of all groups when some entries are gone; only `obs` depends on these."""
        kind = self.score
        if kind == AUTO:
            kind = "l2" if use.calibration is None else "obs"
        if kind == "obs":
            readers = Readers(graph, self._batches(graph, use))
            return lambda gone: activation_scores(graph, groups, True, readers, gone)
        if kind == "fisher":
            with memory_for(self.name, "fewer samples, or another score", CPU_ONLY):
                gradients = torch_module("fisher", self.name).gate_gradients(
                    graph, self._batches(graph, use), gated_axes(graph, groups), use.seed
                )
            fixed = fisher_scores(graph, groups, gradients)
        elif kind == "rms":
            fixed = activation_scores(graph, groups, False, Readers(graph, self._batches(graph, use)), {})
        else:
            fixed = scores(graph, groups, kind, use.rng(self))
        return lambda gone: fixed

    def _batches(self, graph: Graph, use: Resources) -> list[dict[str, np.ndarray]]:
        found = []
        for batch in use.batches(graph):
            found.append(dict(batch))
            if len(found) == self.samples:
                break
        if not found:
            raise PassError(f"{self.name}: the calibration data holds no complete batch")
        return found


def _parameters_left(graph: Graph, closure: Closure, atoms: Sequence[Atom]) -> float:
    """What `graph` has without `atoms`, where copies of a shared vector that stay equal are one again."""
    trial = graph.copy()
    origin = split_shared(trial)
    remove(trial, closure.removal(atoms))
    join_shared(trial, origin)
    return Meter(trial, "parameters").total


def frozen(closure: Closure) -> list[Refusal]:
    """Why frozen channels stay, one refusal for all that span the same axes."""
    spans: dict[tuple[object, ...], list[Atom]] = {}
    for atom in closure.atoms:
        if atom.frozen:
            spans.setdefault(tuple(atom.entries), []).append(atom)
    refusals = []
    for atoms in spans.values():
        axis = closure.shown(atoms[0])
        reason = closure.why(axis, int(atoms[0].entries[axis][0]))
        refusals.append(Refusal(f"{plural(len(atoms), 'channel')} of {axis}", reason))
    return refusals


def check_masked(before: Graph, after: Graph, removal: Removal) -> None:
    """VerifyError unless `after` equals `before` with the removed entries zeroed, to rounding."""
    worst, limit = masked_difference(before, after, removal), rounding(before)
    if worst > limit:
        raise VerifyError(
            f"graph '{after.name}': after removal outputs differ by {worst:.1e} of scale from the masked original "
            f"(limit {limit:.0e}), first at '{first_difference(before, after, removal, limit)}'"
        )


def first_difference(before: Graph, after: Graph, removal: Removal, limit: float) -> ValueRef:
    """The first value, in topological order, whose kept entries differ from the masked original."""
    feeds = random_feeds(before, np.random.default_rng([0, 0]))
    made = [v for n in before.nodes() for v in before.results(n) if v.ref in after]
    names = [v.ref.name for v in made]
    expected = evaluate(before, feeds, keep=names, edit=Mask(before, removal))
    found = evaluate(after, feeds, keep=names)
    kept = complement(before, removal)
    for value in made:
        part = expected[value.ref.name]
        for dim in range(value.rank):
            part = np.take(part, kept.of(value, dim), axis=dim)
        if difference(found[value.ref.name], part) > limit:
            return value.ref
    return made[-1].ref
