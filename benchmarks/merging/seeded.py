"""One family at one seed: its single networks, the sweeps of every method, and the caps of ours.

The pieces stand alone, so that processes beside each other can fill one folder, a sweep each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.merging.families import Data, Family
from benchmarks.merging.kept import kept_accuracy, kept_sweep
from benchmarks.merging.methods import Setting, pipelines
from benchmarks.merging.record import OURS, Seeded, Swept, expected, least
from benchmarks.merging.rule import AtRule, Subset, at_rule
from benchmarks.merging.training import joined, singles


@dataclass(frozen=True, slots=True)
class Run:
    """What is common to all methods of a family at a seed. `kept`: a folder of what was trained before, in which
    everything is left; without `train` nothing is trained but single networks.
    """

    family: Family
    setting: Setting
    kept: Path
    train: bool = True

    def swept(self, method: str, caps: Mapping[Subset, float] | None = None) -> dict[str, Swept]:
        """Pipeline -> its sweep; without `train` those that are there."""
        chosen = pipelines(method, self.family.large)
        found = {p: kept_sweep(self.setting, p, caps, self.kept, self.train) for p in chosen}
        return {p: s for p, s in found.items() if s is not None}

    def at_rule(self, sweeps: Mapping[str, Swept]) -> AtRule | None:
        """Where the cheapest of some pipelines just keeps the rule."""
        single, _ = kept_accuracy(self.setting, self.kept)
        found = (at_rule(s.points, single) for s in sweeps.values())
        return min(found, key=expected, default=None)

    def caps(self, methods: Sequence[str]) -> dict[Subset, float] | None:
        """What some methods cost at the rule, the cheapest per subset: ours should not be above it."""
        return least({m: self.at_rule(self.swept(m)) for m in methods if m != OURS})


def prepared(
    family: Family, data: Data, quick: bool, seed: int, kept: Path, say: Callable[[str], None], train: bool = True
) -> Run:
    """The single networks, trained or kept, as the start of every method."""
    effort = family.effort(quick)
    originals = joined(singles(family, data.train, effort, seed, kept))
    return Run(family, Setting(originals, data, effort, family.shares, seed, say), kept, train)


def run_seed(run: Run, chosen: Sequence[str]) -> Seeded:
    """All methods; the lattice comes last, when the others' costs are its caps."""
    setting = run.setting
    name, say = f"{run.family.name}, seed {setting.seed}", setting.say
    sweeps: dict[str, dict[str, Swept]] = {}
    minutes = 0.0
    for method in sorted(chosen, key=lambda m: m == OURS):
        say(f"{name}: {method}")
        found = run.swept(method, run.caps(list(sweeps)) if method == OURS else None)
        if not found:
            say(f"  {method}: nothing is kept of it")
            continue
        minutes += sum(done.minutes for done in found.values())
        # networks that share nothing narrow alike, task by task or whole
        sweeps[method] = found | sweeps.get("separate", {}) if method == OURS else found
        say(f"  {method}: {_macs(run.at_rule(sweeps[method]))}")
    return Seeded(setting.seed, *kept_accuracy(setting, run.kept), sweeps, minutes)


def _macs(found: AtRule | None) -> str:
    if found is None:
        return "keeps the rule at none of its budgets"
    return ", ".join(f"{'+'.join(q)} {n:,.0f}" for q, n in found.macs.items())
