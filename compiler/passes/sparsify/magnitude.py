"""sparsify: weights of small magnitude become zeros in a pattern that kernels are fast at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

from compiler.errors import PassError, plural
from compiler.ir.graph import Graph
from compiler.passes.base import Batch, NewNames, Pass, Refusal, Resources
from compiler.passes.budget.accuracy import within_drop
from compiler.passes.budget.limits import check_drop, limit_of, problems_of
from compiler.passes.prune.recover import HELD_OUT
from compiler.passes.sparsify.assign import assign
from compiler.passes.sparsify.checks import check_density, check_survivors, count_survivors
from compiler.passes.sparsify.goals import Goal, goals_of, largest
from compiler.passes.sparsify.layers import Candidate, Limits, candidates
from compiler.passes.sparsify.patterns import DARB_SIZES, FLOOR
from compiler.passes.sparsify.update import update

Pattern = Literal[
    "block16x1", "block8x1", "block4x1", "regular4", "regular8", "regular16", "regular32", "darb", "unstructured"
]
Scope = Literal["layer", "global"]
Update = Literal["none", "obs"]
KEPT_DENSE = ("first", "last")


@dataclass(frozen=True)
class Sparsify(Pass):
    """Zero the weights of small magnitude in a pattern with fast kernels, and store what is left.

    Weights of convolutions and matrix products, and of LSTM, GRU and RNN those of inputs and of the state.
    `pattern`: blocks of R outputs at one input (block16x1, block8x1, block4x1; R is best the target's vector
    width), one weight in each run of b inputs (regular4 to regular32; darb chooses b per output), or unstructured.
    `density` or `sparsity`: the share that stays or goes, 0 < density <= 1; regular patterns have it in their name.
    `scope`: every layer alone, or all ranked together (global), where each keeps 1/64. `dense`: first, last or both
    stay dense (`()` for neither). `min_inputs`: layers with fewer inputs stay dense. `exclude`: patterns of names
    to leave alone. A budget in place of a density, one of: `flops` or `weight_bytes`, a share of the original's up
    to 1, else FLOPs of the expected call or bytes of all weights; `latency_us`, microseconds of the expected call
    as the planner of `target` predicts. Then every layer stays dense or takes one of the densities of `pattern` or
    of the patterns `among`, so that little is lost. `accuracy_drop`: how much worse any task may become on the
    evaluation data; alone it asks for the fewest FLOPs. `update`: none keeps the largest magnitudes as they are;
    obs chooses by what a loss costs the layer's outputs on calibration inputs, and fits what stays to make up for
    it. `samples`: how many calibration batches are used.
    """

    name: ClassVar[str] = "sparsify"
    exact: ClassVar[bool] = False
    new_names: ClassVar[NewNames] = NewNames.DERIVED

    pattern: Pattern = "block16x1"
    density: float | None = None
    sparsity: float | None = None
    scope: Scope = "layer"
    dense: tuple[str, ...] = KEPT_DENSE
    min_inputs: int = 16
    exclude: tuple[str, ...] = ()
    update: Update = "none"
    samples: int = 256
    flops: float | None = None
    weight_bytes: float | None = None
    latency_us: float | None = None
    target: str = "host"
    accuracy_drop: float | None = None
    among: tuple[Pattern, ...] = ()

    def wrong(self, graph: Graph, use: Resources) -> list[str]:
        problems = problems_of(self, use)
        given = [v for v in (self.density, self.sparsity) if v is not None]
        if self._budgeted:
            if given:
                problems.append("a budget chooses the densities; give no density or sparsity with it")
        elif self.among:
            problems.append("among is for budgets; give flops, weight_bytes, latency_us or accuracy_drop")
        elif self.pattern.startswith("regular"):
            if given:
                problems.append(f"{self.pattern} keeps one weight in {self.pattern[7:]}; give no density")
        elif len(given) != 1:
            problems.append("give either density or sparsity, for example sparsify{pattern=block16x1,sparsity=0.9}")
        else:
            problems += self._density_problems()
        unknown = [d for d in self.dense if d not in KEPT_DENSE]
        if unknown:
            problems.append(f"dense is '{unknown[0]}'; it can be {', '.join(KEPT_DENSE)}")
        if self.min_inputs < 1:
            problems.append(f"min_inputs is {self.min_inputs}; it starts at 1")
        if self.samples < 1:
            problems.append(f"samples is {self.samples}; it starts at 1")
        if self.update == "obs" and use.calibration is None:
            problems.append("update=obs needs calibration inputs")
        return problems

    def _density_problems(self) -> list[str]:
        low, high = (1 / DARB_SIZES[-1], 1 / DARB_SIZES[0]) if self.pattern == "darb" else (0.0, 1.0)
        density = self.share
        if self.pattern == "darb" and not low <= density <= high:
            return [f"darb reaches densities from 1/{DARB_SIZES[-1]} to 1/{DARB_SIZES[0]}, not {density:.4g}"]
        return [] if 0 < density <= 1 else [f"the density must be above 0 and at most 1, not {density:.4g}"]

    @property
    def share(self) -> float:
        """The share of weights that stays; 1 for a regular pattern, which has its own."""
        if self.density is not None:
            return self.density
        return 1.0 if self.sparsity is None else 1.0 - self.sparsity

    def rewrite(self, graph: Graph, use: Resources) -> Iterable[Refusal]:
        told = within_drop(self, graph, use) if self._only_drop else self._sparsify(graph, use)
        check_drop(self, graph, use)
        return told

    @property
    def _budgeted(self) -> bool:
        return any(v is not None for v in (self.flops, self.weight_bytes, self.latency_us)) or self._only_drop

    @property
    def _only_drop(self) -> bool:
        others = (self.flops, self.weight_bytes, self.latency_us, self.density, self.sparsity)
        return self.accuracy_drop is not None and all(v is None for v in others) and self._share_is_free

    @property
    def _share_is_free(self) -> bool:
        return bool(self.among) or not self.pattern.startswith("regular")

    def at_share(self, share: float) -> Sparsify:
        """The same pass to a share of the FLOPs, whatever accuracy that costs."""
        return replace(self, flops=share, accuracy_drop=None)

    def _sparsify(self, graph: Graph, use: Resources) -> list[Refusal]:
        chosen, refusals = self.able(graph, use)
        limit = limit_of(self, graph, use)
        if limit is None:
            goals = {c.weight.ref: g for c, g in zip(chosen, self._goals(chosen), strict=True)}
        else:
            feeds = self._feeds(graph, use) if use.calibration is not None else []
            goals, notes = assign(graph, chosen, self.among or (self.pattern,), limit, use, feeds)
            refusals += notes
        named = {c.weight.ref: (c, goals[c.weight.ref]) for c in chosen if c.weight.ref in goals}
        if self.update == "obs":
            refusals += update(graph, named, self._feeds(graph, use))
        else:
            for layer, goal in named.values():
                type_ = replace(layer.weight.type, encoding=goal.form)
                graph.update(layer.weight.ref, type=type_, data=largest(layer.weight.constant, goal))
        if limit is not None and (cost := limit.cost(graph, use)) > limit.value:
            raise limit.missed(cost, "after the update of weights")
        return refusals

    def _goals(self, layers: Sequence[Candidate]) -> list[Goal]:
        """What the layers become, ranked alone or together."""
        groups = [layers] if self.scope == "global" and layers else [[c] for c in layers]
        return [
            goal
            for group in groups
            for goal in goals_of(self.pattern, group, [c.weight.constant for c in group], self.share, self._floor)
        ]

    def _feeds(self, graph: Graph, use: Resources) -> list[Batch]:
        found = list(use.batches(graph, self.samples))
        if len(found) < HELD_OUT:
            raise PassError(
                f"{self.name}: {plural(len(found), 'calibration batch')}; update=obs and budgets need {HELD_OUT} "
                f"at least, one in {HELD_OUT} to judge by"
            )
        return found

    def able(self, graph: Graph, use: Resources) -> tuple[list[Candidate], list[Refusal]]:
        """The layers that can become sparse, and why the others stay dense."""
        excluded = partial(use.excluded, also=self.exclude)
        return candidates(graph, Limits(self.dense, self.min_inputs, self._height, excluded))

    @property
    def _height(self) -> int:
        return max(int(p[5:-2]) if p.startswith("block") else 1 for p in self.among or (self.pattern,))

    # ------------------------------------------------------------------ what is promised
    def ensures(self, before: Graph, after: Graph) -> None:
        """As much stays as asked for; without update survivors keep their bits and nothing larger was dropped."""
        counts = []
        for old in before.parameters():
            new = after.value(old.ref)
            if self.update == "none" and new.data is not old.data:
                counts.append(check_survivors(old, new))
            elif new.type.encoding != old.type.encoding:
                counts.append(count_survivors(old, new))
        if self._budgeted or not self.pattern.startswith(("block", "unstructured")):
            return
        for group in [counts] if self.scope == "global" and counts else [[c] for c in counts]:
            check_density(group, self.share, self._floor)

    @property
    def _floor(self) -> float:
        return FLOOR if self.scope == "global" else 0.0
