"""nest: several sparsity levels in one network, each stored within the one before it.

Levels by magnitude without training: the blocks of the sparsest level are those of largest norm, every denser one
adds the next. `distil` trains them, from the sparsest up (Qin et al., ICTAI 2022, arXiv 2112.10930).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import numpy as np

from compiler.errors import ConfigError, PassError, VerifyError
from compiler.ir.encoding import BlockSparse, Dense
from compiler.ir.graph import Graph
from compiler.ir.levels import MOST_LEVELS, level_count
from compiler.passes.base import Batch, NewNames, Pass, Refusal, Resources
from compiler.passes.budget.limits import Quantity
from compiler.passes.sparsify.goals import Goal
from compiler.passes.sparsify.layers import PRODUCTS, RECURRENT, Candidate, Limits, candidates
from compiler.passes.sparsify.level_biases import HELD_OUT, correct
from compiler.passes.sparsify.level_budgets import budget_problems, goals_of_levels
from compiler.passes.sparsify.magnitude import KEPT_DENSE, Scope
from compiler.passes.sparsify.patterns import FLOOR, ranked

Blocks = Literal["block16x1", "block8x1", "block4x1"]


@dataclass(frozen=True)
class Nest(Pass):
    """Give the network sparsity levels that a compiled library switches between from call to call.

    `levels`: the share of weights that each level leaves out, rising from level 0, the densest: 0+0.5+0.75. In
    place of that `flops`, `weight_bytes` or both: what each level may cost, falling, as shares of the original's or
    as FLOPs of the expected call and bytes of all weights. Layers then get densities of their own, by which little
    is lost on `samples` calibration inputs, or of the weights' squares where there are none. `pattern`: blocks of R
    outputs at one input that come and go together (R is best the target's vector width); weights that are stored in
    blocks already keep theirs, and level 0 has no more than is stored. `scope`: every layer alone, or all ranked
    together (global), where each keeps 1/64.
    `biases`: shared by all levels, or corrected for each on those inputs, so that the means of the layers stay
    those of the network. `dense`: first, last or both stay the same at all levels (`()` for neither). `min_inputs`:
    layers with fewer inputs stay the same. `exclude`: patterns of names to leave alone. Comes after every pass that
    changes weights.
    """

    name: ClassVar[str] = "nest"
    exact: ClassVar[bool] = False
    new_names: ClassVar[NewNames] = NewNames.DERIVED

    levels: tuple[float, ...] = ()
    flops: tuple[float, ...] = ()
    weight_bytes: tuple[float, ...] = ()
    pattern: Blocks = "block16x1"
    scope: Scope = "layer"
    biases: Literal["shared", "corrected"] = "shared"
    samples: int = 128
    dense: tuple[str, ...] = KEPT_DENSE
    min_inputs: int = 16
    exclude: tuple[str, ...] = ()

    def levels_after(self, count: int) -> int:
        return self._count

    @property
    def _count(self) -> int:
        return len(self.flops or self.weight_bytes or self.levels)

    @property
    def _budgets(self) -> dict[Quantity, tuple[float, ...]]:
        given: dict[Quantity, tuple[float, ...]] = {"flops": self.flops, "weight_bytes": self.weight_bytes}
        return {quantity: budgets for quantity, budgets in given.items() if budgets}

    def wrong(self, graph: Graph, use: Resources) -> list[str]:
        problems = self._level_problems()
        unknown = [d for d in self.dense if d not in KEPT_DENSE]
        if unknown:
            problems.append(f"dense is '{unknown[0]}'; it can be {', '.join(KEPT_DENSE)}")
        if self.biases == "corrected" and use.calibration is None:
            problems.append("biases=corrected needs calibration inputs; give [calibration] data")
        if self.samples < HELD_OUT:
            problems.append(f"samples is {self.samples}; corrections and budgets take at least {HELD_OUT} inputs")
        if self.min_inputs < 1:
            problems.append(f"min_inputs is {self.min_inputs}; it starts at 1")
        return problems

    def _level_problems(self) -> list[str]:
        """What is wrong with the levels that are asked for."""
        shares, problems = list(self.levels), []
        if budgets := self._budgets:
            if shares:
                problems.append(
                    f"levels and {' and '.join(budgets)} say how large the levels are; give one of them"
                )
            if len({len(values) for values in budgets.values()}) > 1:
                problems.append("give flops and weight_bytes for as many levels")
            if self.scope == "global":
                problems.append(f"{' and '.join(budgets)} give every layer a density of its own; leave scope out")
            return problems + [p for q, values in budgets.items() for p in budget_problems(q, values)]
        if not 2 <= len(shares) <= MOST_LEVELS or sorted(set(shares)) != shares:
            problems.append(f"give 2 to {MOST_LEVELS} rising shares, for example nest{{levels=0+0.5+0.75}}")
        if any(not 0 <= s < 1 for s in shares):
            problems.append("a level leaves out a share of the weights from 0 on and below 1")
        return problems

    def rewrite(self, graph: Graph, use: Resources) -> Iterable[Refusal]:
        chosen, refusals = self._candidates(graph, use)
        if not chosen:
            kinds = ", ".join((*PRODUCTS, *RECURRENT))
            reasons = "; ".join(f"{r}" for r in refusals[:3]) or f"there is none with constant weights ({kinds})"
            raise ConfigError(f"{self.name}: no layer can have levels, so there would be one only: {reasons}")
        original = graph.copy()
        forms = [self._form(c) for c in chosen]
        norms = [f.norms(c.weight.constant) for c, f in zip(chosen, forms, strict=True)]
        if self._budgets:
            feeds = self._feeds(graph, use) if use.calibration is not None else []
            goals, notes = goals_of_levels(graph, chosen, forms, self._budgets, use, feeds)
            refusals += notes
            kept = [[_largest(n, g) for n, g in zip(norms, level, strict=True)] for level in goals]
        else:
            kept = [self._of_share(norms, 1.0 - share) for share in self.levels]
        for layer, form, *levels in zip(chosen, forms, *kept, strict=True):
            data = layer.weight.constant
            ranks = np.sum(levels, axis=0, dtype=np.uint8) * form.alive(data)
            nested = [form.of_rank(data, ranks, least) for least in range(1, len(levels) + 1)]
            kind = replace(layer.weight.type, encoding=form)
            graph.update(layer.weight.ref, type=kind, data=nested[0], sparser=nested[1:])
        if self.biases == "corrected":
            refusals += correct(graph, original, self._feeds(graph, use))
        return refusals

    def _feeds(self, graph: Graph, use: Resources) -> list[Batch]:
        feeds = list(use.batches(graph, self.samples))
        if len(feeds) < HELD_OUT:
            why = " and ".join(self._budgets) or "biases=corrected"
            raise PassError(f"{self.name}: {len(feeds)} calibration inputs; {why} needs {HELD_OUT} or more")
        return feeds

    def _candidates(self, graph: Graph, use: Resources) -> tuple[list[Candidate], list[Refusal]]:
        excluded = partial(use.excluded, also=self.exclude)
        found, refusals = candidates(graph, Limits(self.dense, self.min_inputs, self._height, excluded, True))
        chosen = []
        for layer in found:
            across = self._across_gates(graph, layer)
            refusals += across
            chosen += [] if across else [layer]
        return chosen, refusals

    def _across_gates(self, graph: Graph, layer: Candidate) -> list[Refusal]:
        """A refusal per recurrent layer some of whose blocks would have rows of two gates: code has gates apart."""
        height = self._form(layer).height
        sites = [s for r in layer.readers if (s := graph.site(graph.node(r))).node.op.name in RECURRENT]
        return [
            Refusal(
                f"{s.node.op.name} '{s.node.ref}'",
                f"{s.int('hidden_size')} hidden units are no whole blocks of {height} rows; take a smaller pattern",
            )
            for s in sites
            if s.int("hidden_size") % height
        ]

    @property
    def _height(self) -> int:
        return int(self.pattern[5:-2])

    def _form(self, layer: Candidate) -> BlockSparse:
        stored = layer.weight.type.encoding
        return stored if isinstance(stored, BlockSparse) else BlockSparse(layer.rows, (self._height, 1))

    def _of_share(self, norms: Sequence[np.ndarray], share: float) -> list[np.ndarray]:
        """The blocks of every layer that a level with this share of them stores."""
        if self.scope == "global":
            return ranked(norms, share, FLOOR)
        return [mask for own in norms for mask in ranked([own], share, 0.0)]

    # ------------------------------------------------------------------ what is promised
    def ensures(self, before: Graph, after: Graph) -> None:
        """As many levels as were asked for; level 0 has the bits of the blocks it was made from, or zeros."""
        if level_count(after) != self._count:
            raise VerifyError(f"{self.name}: {level_count(after)} levels instead of {self._count}")
        for old in before.parameters():
            new = after.value(old.ref)
            if new.sparser and old.type.encoding in (Dense(), new.type.encoding):
                try:
                    new.type.encoding.check_level(old.constant, new.constant)
                except ValueError as error:
                    raise VerifyError(f"{self.name}: '{old.ref}', level 0: {error}") from None


def _largest(norms: np.ndarray, goal: Goal) -> np.ndarray:
    """The blocks that a goal lets survive."""
    (alive,) = ranked([norms], (goal.kept or 1) / norms.size, 0.0)
    return alive
