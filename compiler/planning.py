"""Where the choices of a build come from: a recorded plan, a tuning database, measurements made now, or the rule.

Only `tuned` measures, and only when it was asked for: a build without it is a pure function of its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.codegen.planner import Sources
from compiler.codegen.plans import load_plans
from compiler.codegen.predict import choosing_by
from compiler.codegen.search import tune
from compiler.codegen.target import Target, runs_here
from compiler.codegen.tuning import NO_DATABASE, TuningDatabase, database_of
from compiler.errors import ConfigError, TargetError
from compiler.files import takes_files
from compiler.ir.graph import Graph
from compiler.release import Say, tuning_of
from compiler.settings import Config
from compiler.workers.jobs import Workers

DATABASE = "tuning.json"
"""Name of the file beside the output folder that measurements go to where none was named."""


@dataclass(frozen=True, slots=True)
class Planning:
    """What a build was asked to plan with. ConfigError where the parts contradict each other."""

    plans: tuple[Path, ...] = ()
    """Every choice as recorded there; see `codegen.plans.load_plans`."""
    tuning: Path | TuningDatabase | None = None
    """Measurements; None: those that come with taskgraft for each target; the path `none`: none at all."""
    tune: float | None = None
    """Seconds to measure for; None: measure nothing."""

    def __post_init__(self) -> None:
        if self.plans and (self.tuning is not None or self.tune is not None):
            raise ConfigError("a plan fixes every choice: give either a plan, or a tuning database and --tune")
        if self.tune is not None and not 0 < self.tune < float("inf"):
            raise ConfigError(f"--tune {self.tune:g}: give the seconds to measure for, more than 0")
        if self.tune is not None and self.tuning == Path(NO_DATABASE):
            raise ConfigError("--tune writes its measurements to a database, and the database given is 'none'")
        if self.tune is not None and isinstance(self.tuning, Path) and not takes_files(self.tuning.parent):
            raise ConfigError(f"tuning database {self.tuning}: cannot be written there; name another")

    def sources(self, targets: Sequence[Target]) -> dict[str, Sources]:
        """What code generation chooses from, by name of the target; nothing is measured.

        ConfigError where a file is not what it should be, or a target has no plan.
        """
        if self.plans:
            return {name: plan.sources for name, plan in load_plans(self.plans, targets).items()}
        return {t.name: choosing_by(self._database(t)) for t in targets}

    def _database(self, target: Target) -> TuningDatabase:
        if isinstance(self.tuning, TuningDatabase):
            return self.tuning
        return database_of(self.tuning, target)


def paths(names: str | Path | Sequence[str | Path] | None) -> tuple[Path, ...]:
    """One path or several, as paths."""
    return (Path(names),) if isinstance(names, (str, Path)) else tuple(map(Path, names or ()))


def planning_of(
    config: Config, plans: Sequence[Path] = (), tuning: Path | None = None, tune: float | None = None
) -> Planning:
    """What a release plans with; arguments stand in place of what its file says. ConfigError as for `Planning`."""
    if not plans and tuning is None:
        tuning = tuning_of(config)
        plans = [config.path(p) for p in config.planning.plan]
    return Planning(tuple(plans), tuning, tune)


def tuned(
    graph: Graph,
    targets: Sequence[Target],
    planning: Planning,
    root: Path,
    say: Say,
    workers: Workers | None = None,
) -> dict[str, Sources]:
    """Measure the layers of `graph` on those targets that run here, and choose by the result.

    The measurements are added to the database of `planning`, else to the file beside the output folder `root`,
    after every build: an interrupt says where they are. Other processes may add theirs at the same time.
    TargetError where no target runs here.
    """
    assert planning.tune is not None
    able = list({t.preset: t for t in targets if runs_here(t)}.values())
    if not able:
        names = ", ".join(t.name for t in targets)
        raise TargetError(f"--tune measures on this machine, which runs none of {names}; compile without it")
    file = planning.tuning if isinstance(planning.tuning, Path) else root.parent / DATABASE
    database = TuningDatabase.load(file) if file.exists() else TuningDatabase()
    try:
        for target in able:
            say(f"tune: {target.preset}, at most {planning.tune / len(able):.0f} s")
            database = tune(
                graph,
                target,
                database,
                seconds=planning.tune / len(able),
                workers=workers,
                keep=lambda found: found.merge_into(file),
                say=say,
            )
            database = database.merge_into(file)
    except KeyboardInterrupt as stop:
        stop.add_note(f"what was measured is in {file}; the same command measures the rest")
        raise
    say(f"tune: wrote {file}")
    for target in targets:
        if not runs_here(target):
            say(f"tune: {target.name} does not run here; planned without new measurements")
    return {t.name: choosing_by(database) for t in targets}
