"""compress: one budget for channels and sparse weights together.

What it adds to `prune-channels` and `sparsify` is the choice. Channels are removed, checked against the masked
original and recovered by the one; what then stays of the budget is spent on patterns and fitted by the other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from compiler.errors import PassError, plural
from compiler.ir.graph import Graph, Ref
from compiler.ir.ties import Atom, Closure
from compiler.passes.base import Batch, NewNames, Note, Pass, Refusal, Resources
from compiler.passes.budget.accuracy import within_drop
from compiler.passes.budget.limits import Limit, OverBudget, check_drop, limit_of, problems_of
from compiler.passes.budget.sensitivity import Sensitivity
from compiler.passes.compress.search import Choice, Layer, Space, Steps, Widths, choices, narrowest
from compiler.passes.compress.widths import cuts_of, width_losses
from compiler.passes.prune.channels import PruneChannels
from compiler.passes.prune.recover import HELD_OUT, output_error
from compiler.passes.prune.surgery import split_shared
from compiler.passes.sparsify.assign import costs_of, losses_of, ways_of
from compiler.passes.sparsify.layers import Candidate
from compiler.passes.sparsify.magnitude import KEPT_DENSE, Pattern, Sparsify

FINALISTS = 2
"""Choices of channels and patterns that are made in full; what prune-channels alone would do is another."""

CLOSE = 1.5
"""Times the least expected loss up to which another choice is made in full."""

PATTERNS: tuple[Pattern, ...] = ("block16x1", "regular4", "regular8")


@dataclass(frozen=True)
class Compress(Pass):
    """Remove channels and zero weights in patterns, whichever loses least, until one budget holds.

    For every group of channels a width and for every layer dense or a pattern at a density are chosen together: the
    loss of each is measured on calibration inputs (without them lost weight energy), and the sum of losses becomes
    as small as the budget allows. The budget, one of: `flops` or `weight_bytes`, a share of the original's up to 1,
    else FLOPs of the expected call or bytes of all weights; `latency_us`, microseconds of the expected call as the
    planner of `target` predicts. `accuracy_drop`: how much worse any task may become on the evaluation data; alone
    it asks for the fewest FLOPs. `among`: patterns to choose from, `()` for channels alone. `update`: obs fits what
    stays to make up for what goes, from calibration inputs; none leaves it; auto is obs where there are such
    inputs. `score`: how channels are ranked within their layer, as in prune-channels. `multiple`, `floor`,
    `allow_mixed`: widths, as there. `dense`, `min_inputs`: layers that stay dense, as in sparsify; `exclude`:
    patterns of names to leave alone. `samples`: how many calibration batches are used.
    """

    name: ClassVar[str] = "compress"
    exact: ClassVar[bool] = False
    new_names: ClassVar[NewNames] = NewNames.DERIVED

    flops: float | None = None
    weight_bytes: float | None = None
    latency_us: float | None = None
    target: str = "host"
    accuracy_drop: float | None = None
    among: tuple[Pattern, ...] = PATTERNS
    update: Literal["auto", "none", "obs"] = "auto"
    score: str = "auto"
    multiple: int = 1
    floor: float = 0.1
    allow_mixed: bool = False
    dense: tuple[str, ...] = KEPT_DENSE
    min_inputs: int = 16
    exclude: tuple[str, ...] = ()
    samples: int = 256

    def wrong(self, graph: Graph, use: Resources) -> list[str]:
        problems = problems_of(self, use)
        if self._only_drop and self.accuracy_drop is None:
            problems.append("give a budget, for example compress{latency_us=100}, or accuracy_drop")
        if self.update == "obs" and use.calibration is None:
            problems.append("update=obs needs calibration inputs")
        problems += self._channels(use).wrong(graph, use)
        if self.among:
            problems += self._patterns(Limit("flops", 1.0), use).wrong(graph, use)
        return list(dict.fromkeys(problems))  # all of them look at the same target

    def rewrite(self, graph: Graph, use: Resources) -> Iterable[Refusal]:
        told = within_drop(self, graph, use) if self._only_drop else self._compress(graph, use)
        check_drop(self, graph, use)
        return told

    @property
    def _only_drop(self) -> bool:
        return all(v is None for v in (self.flops, self.weight_bytes, self.latency_us))

    def at_share(self, share: float) -> Compress:
        """The same pass to a share of the FLOPs, whatever accuracy that costs."""
        return replace(self, flops=share, accuracy_drop=None)

    # ------------------------------------------------------------------ the passes that do the work
    def _fits(self, use: Resources) -> bool:
        return self.update == "obs" or (self.update == "auto" and use.calibration is not None)

    def _channels(self, use: Resources) -> PruneChannels:
        return PruneChannels(
            flops=1.0,
            score=self.score,
            multiple=self.multiple,
            floor=self.floor,
            exclude=self.exclude,
            allow_mixed=self.allow_mixed,
            recover="least-squares" if self._fits(use) else "none",
            samples=self.samples,
            target=self.target,
        )

    def _patterns(self, limit: Limit, use: Resources) -> Sparsify:
        return Sparsify(
            among=self.among,
            update="obs" if self._fits(use) else "none",
            dense=self.dense,
            min_inputs=self.min_inputs,
            exclude=self.exclude,
            samples=self.samples,
            target=self.target,
            **_given(limit),
        )

    # ------------------------------------------------------------------ the search
    def _compress(self, graph: Graph, use: Resources) -> list[Refusal]:
        limit = limit_of(self, graph, use)
        assert limit is not None
        cost = limit.cost(graph, use)
        if cost <= limit.value:
            held = f"{limit.quantity} are {cost:.6g} already, at most {limit.value:.6g} are allowed"
            return [Note("budget", held)]
        original = graph.copy()
        split_shared(original)
        original.freeze()
        feeds = list(use.batches(original, self.samples)) if use.calibration is not None else []
        if self._fits(use) and len(feeds) < HELD_OUT:
            raise PassError(
                f"{self.name}: {plural(len(feeds), 'calibration batch')}; update=obs needs {HELD_OUT} at least, "
                f"one in {HELD_OUT} to judge by"
            )
        space, closure = self._space(original, limit, use, feeds if self._fits(use) else [])
        priced = sum(space.cost(n, space.original) for n in range(len(space.layers)))
        found = choices(space, limit.value - (cost - priced))
        use.say(f"compress: {len(found)} of the widths tried can meet the budget")
        finalists: list[Sequence[Atom]] = [space.gone(w) for w in _finalists(found)]
        finalists += self._channels_alone(original, closure, limit, use)
        made, told = self._best(graph, limit, use, finalists, space.gone(narrowest(space)), feeds)
        graph.assign(made)
        return [*told, *_said(closure, made)]

    def _channels_alone(self, graph: Graph, closure: Closure, limit: Limit, use: Resources) -> list[Sequence[Atom]]:
        """What prune-channels would remove for this budget; nothing where it cannot meet it."""
        alone = replace(self._channels(use), **{"flops": None, **_given(limit)})
        try:
            return [alone.select(graph, closure, use).atoms]
        except OverBudget:
            return []

    def _space(self, graph: Graph, limit: Limit, use: Resources, feeds: Sequence[Batch]) -> tuple[Space, Closure]:
        """Everything that can be chosen, and what it loses and costs."""
        channels = self._channels(use)
        closure = channels.closure(graph, use)
        groups = closure.groups
        step = channels.step(limit.quantity, use)
        scores = channels.scorer(graph, groups, use)({})
        cuts = [cuts_of(g, s, step, self.floor) for g, s in zip(groups, scores, strict=True)]
        lost = width_losses(graph, closure, groups, cuts, scores, feeds)
        meter = channels.meter(graph, closure, use, limit.quantity)
        steps = [Steps(c, tuple(np.maximum.accumulate(w))) for c, w in zip(cuts, lost, strict=True) if len(c) > 1]
        layers = self._layers(graph, limit, use, feeds, set(meter.refs))
        return Space(meter, layers, steps, 2.0 if limit.quantity == "flops" else 1.0), closure

    def _layers(
        self, graph: Graph, limit: Limit, use: Resources, feeds: Sequence[Batch], priced: Collection[Ref]
    ) -> list[Layer]:
        if not self.among:
            return []
        sparse = self._patterns(limit, use)
        able, _ = sparse.able(graph, use)
        goals = [ways_of(c, self.among) for c in able]
        losses = losses_of(graph, able, goals, feeds, Sensitivity(graph, feeds) if feeds else None)
        costs = costs_of(graph, able, goals, limit, use)
        # of a node with several sparse weights the search knows the price of the node alone, and takes it as dense
        readers = Counter(r for c in able for r in c.readers)
        return [
            Layer(refs, own, tuple(c / max(row[0], 1e-30) for c in row))
            for layer, own, row in zip(able, losses, costs, strict=True)
            if (refs := _priced(layer, priced)) and all(readers[r] == 1 for r in layer.readers)
        ]

    def _best(
        self,
        graph: Graph,
        limit: Limit,
        use: Resources,
        finalists: Sequence[Sequence[Atom]],
        last: Sequence[Atom],
        feeds: Sequence[Batch],
    ) -> tuple[Graph, list[Refusal]]:
        """The network of least held-out error that keeps the budget; the first one without inputs to judge by.
        PassError where the errors of all are no numbers.

        `finalists`: the channels that go in each; `last`: what is tried where none of them can keep the budget.
        """
        made: list[tuple[float, Graph, list[Refusal]]] = []
        missed: list[OverBudget] = []
        judged = len(feeds) >= HELD_OUT
        for number, gone in enumerate((*finalists, last)):
            if made and (not judged or number == len(finalists)):
                break
            try:
                small, told = self._made(graph, limit, use, gone)
            except OverBudget as over:
                missed.append(over)
                continue
            error = output_error(graph, small, feeds) if judged else 0.0
            use.say(f"compress: network {number + 1} of {len(finalists)}: held-out error {error:.4g}")
            made.append((error, small, told))
        if not made:
            why = "when every removable channel is gone and every layer is as sparse as it can be"
            raise limit.missed(min(e.found for e in missed), why)
        error, best, told = min(made, key=lambda m: (math.isnan(m[0]), m[0]))
        if math.isnan(error):
            raise PassError(
                f"{self.name}: every network that was made gives no numbers on held-out inputs; allow more, or "
                "look for calibration inputs far from those the networks were trained on"
            )
        return best, told

    def _made(
        self, graph: Graph, limit: Limit, use: Resources, gone: Sequence[Atom]
    ) -> tuple[Graph, list[Refusal]]:
        """The network without these channels, its layers sparse so that the budget holds."""
        made, told = graph.copy(), list[Refusal]()
        if gone:
            told += self._channels(use).cut(made, use, lambda original, closure, frozen: gone)
        if self.among:
            told += self._patterns(limit, use).rewrite(made, use)
        elif (cost := limit.cost(made, use)) > limit.value:
            raise limit.missed(cost, "when every removable channel is gone")
        return made, told


def _given(limit: Limit) -> dict[str, Any]:
    """The option of a pass that sets a limit."""
    return {limit.quantity: limit.value}


def _priced(layer: Candidate, priced: Collection[Ref]) -> tuple[Ref, ...]:
    refs: tuple[Ref, ...] = (*layer.readers, layer.weight.ref)
    return tuple(r for r in refs if r in priced)


def _finalists(found: Sequence[Choice]) -> list[Widths]:
    """The widths of least expected loss, and others that are nearly as good."""
    return [c.widths for c in found[:FINALISTS] if c.loss <= CLOSE * found[0].loss]


def _said(closure: Closure, made: Graph) -> list[Refusal]:
    """Notes on the widths that changed."""
    notes: list[Refusal] = []
    for value in closure.graph.parameters():
        new = made.value(value.ref) if value.ref in made else value
        if new.shape != value.shape and value.rank > 1:
            notes.append(Note(f"'{value.ref}'", f"shape {list(value.shape)} became {list(new.shape)}"))
    return notes
