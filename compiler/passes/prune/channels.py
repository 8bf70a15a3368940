"""prune-channels: structured pruning to a budget, along ties.

The pruned graph is always compared with the masked original (the same entries multiplied by zero) before any
recovery: sizes can be right where the meaning is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, get_args

import numpy as np

from compiler.errors import ConfigError, VerifyError
from compiler.ir.graph import Graph
from compiler.ir.reference import difference, evaluate, random_feeds
from compiler.ir.ties import Atom, Closure, Group
from compiler.ir.types import Axis, ValueRef
from compiler.ir.verify import verify
from compiler.passes.base import Pass, Refusal, Resources, torch_module
from compiler.passes.prune.budget import Ladder, Meter, Quantity, Scope, Selection, select
from compiler.passes.prune.criteria import (
    CRITERIA,
    NEEDS_DATA,
    activation_scores,
    fisher_scores,
    gated_axes,
    scores,
)
from compiler.passes.prune.fit import Readers
from compiler.passes.prune.recover import refit
from compiler.passes.prune.surgery import (
    ROUNDING,
    Mask,
    Removal,
    complement,
    join_shared,
    masked_difference,
    remove,
    split_shared,
)

AUTO = "auto"

Scorer = Callable[[Mapping[Axis, np.ndarray]], Sequence[np.ndarray]]


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove whole channels, hidden units and heads until a share of the original cost remains.

    `flops` or `parameters`: that share, 0 < share <= 1; what remains is at most the share and within one rounding
    step below it. `score`: l1, l2, rms, obs, fisher (needs torch) or random; auto is obs with calibration inputs
    and l2 without. `scope`: rank all groups together (global) or shrink each by the same share (local). `multiple`:
    widths stay multiples of it; `floor`: share of every group that stays in any case. `exclude`: patterns of names
    to leave alone. `allow_mixed`: also shrink axes under a softmax or normalisation (their statistics change).
    `recover`: none, or least-squares from calibration inputs. `samples`: how many calibration batches are used.
    """

    name: ClassVar[str] = "prune-channels"
    exact: ClassVar[bool] = False

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

    def requires(self, graph: Graph, use: Resources) -> None:
        problems = []
        share = self.flops if self.parameters is None else self.parameters
        if (self.flops is None) == (self.parameters is None):
            problems.append("give either flops or parameters, for example prune-channels{flops=0.5}")
        elif share is None or not 0 < share <= 1:
            problems.append(f"the share must be above 0 and at most 1, not {share}")
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
        if problems:
            raise ConfigError(f"{self.name}: {'; '.join(problems)}")

    def rewrite(self, graph: Graph, use: Resources) -> Iterable[Refusal]:
        origin = split_shared(graph)
        original = graph.copy().freeze()
        closure = self.closure(original, use)
        refusals = frozen(closure)
        selection = self.select(original, closure, use, refusals)
        removal = closure.removal(selection.atoms)
        remove(graph, removal)
        verify(graph, stage=self.name)
        if any(a.mixed for a in selection.atoms):
            refusals.append(Refusal(self.name, "statistics of mixed axes changed; not compared with the original"))
        else:
            check_masked(original, graph, removal)
        if self.recover != "none":
            refusals += refit(original, graph, complement(original, removal), self._batches(original, use))
        join_shared(graph, origin)
        return refusals

    def closure(self, graph: Graph, use: Resources) -> Closure:
        """Atoms of `graph` under the pass's exclusions."""

        def excluded(name: str) -> bool:
            return use.excluded(name) or any(fnmatchcase(name, p) for p in self.exclude)

        return Closure(graph, exclude=excluded, allow_mixed=self.allow_mixed)

    def select(self, graph: Graph, closure: Closure, use: Resources, refusals: Sequence[Refusal] = ()) -> Selection:
        """The atoms that the pass removes from `graph`."""
        quantity: Quantity = "flops" if self.flops is not None else "parameters"
        target = self.flops if self.flops is not None else self.parameters
        assert target is not None
        groups = closure.groups
        score = self._scorer(graph, groups, use)
        ladders = [Ladder(g, s, self.multiple, self.floor) for g, s in zip(groups, score({}), strict=True)]
        axes = {axis: closure.size(axis) for group in groups for axis in group.axes}
        meter = Meter(graph, quantity, use.workload, axes)
        return select(meter, ladders, target, "local" if self.scope == "local" else "global", score, refusals)

    def _scorer(self, graph: Graph, groups: Sequence[Group], use: Resources) -> Scorer:
        """Scores of all groups when some entries are gone; only `obs` depends on these."""
        kind = self.score
        if kind == AUTO:
            kind = "l2" if use.calibration is None else "obs"
        if kind == "obs":
            readers = Readers(graph, self._batches(graph, use))
            return lambda gone: activation_scores(graph, groups, True, readers, gone)
        if kind == "fisher":
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
        return found


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
        refusals.append(Refusal(f"{len(atoms)} channels of {axis}", reason))
    return refusals


def check_masked(before: Graph, after: Graph, removal: Removal, limit: float = ROUNDING) -> None:
    """VerifyError unless `after` equals `before` with the removed entries zeroed, to rounding."""
    worst = masked_difference(before, after, removal)
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
