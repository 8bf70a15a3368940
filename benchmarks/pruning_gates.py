"""Do limits on accuracy hold? Random budgets, each with a drop that is allowed, on the trained networks of models/.

Every case draws a pass (`prune-channels` and `sparsify` with their fits, `compress`), a quantity, a share of what
the release costs, and how much worse any task may become. What comes back is priced and evaluated here, by a judge
of its own: it is within both, or the pass refused. A refusal names the task, what it loses and what is allowed, or
the quantity and what remains (`python -m benchmarks pruning` says when that counts).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.families import MODELS
from benchmarks.ours import PASSES, through
from benchmarks.pruning import TARGET, Row, Study, judged
from compiler import load_config
from compiler.errors import PassError
from compiler.ir.graph import Graph
from compiler.passes.base import Judge, Pass, Resources
from compiler.passes.budget.limits import QUANTITIES, Limit
from compiler.passes.compress.compress import Compress
from compiler.passes.prune.channels import PruneChannels
from compiler.passes.sparsify.magnitude import Sparsify
from compiler.release import judge_of, load_release, resources

CHOSEN = ("fashion", "spoken", "shared-backbone")
BUDGETS = 8
LEAST, MOST = 0.4, 0.95
"""Shares of the cost that are drawn: in this range both verdicts happen."""
DROP = 0.06
"""No larger drop is allowed."""
KINDS: tuple[tuple[type[Pass], dict[str, str]], ...] = (
    (PruneChannels, {"recover": "least-squares"}),
    (Sparsify, {"update": "obs"}),
    (Compress, {}),
)


@dataclass(frozen=True)
class Gated(Row):
    """A budget with a limit on accuracy: the drop that is allowed, and the largest that was found or stated."""

    allowed_drop: float = 0.0
    drop: float | None = None


def rows(name: str, count: int, seed: int) -> Iterator[Gated]:
    """Random budgets on one release."""
    config = load_config(MODELS / name / "release.toml")
    release = load_release(config)
    use, judge = resources(config, release.graph), judge_of(config, release.graph)
    assert judge is not None, "the releases of models/ name a metric"
    graph = through(release.graph, PASSES)
    draw = np.random.default_rng([seed, CHOSEN.index(name)])
    for _ in range(count):
        quantity = QUANTITIES[draw.integers(len(QUANTITIES))]
        original = Limit(quantity, 0.0, TARGET).cost(graph, use)
        limit = Limit(quantity, float(draw.uniform(LEAST, MOST)) * original, TARGET)
        kind, options = KINDS[draw.integers(len(KINDS))]
        allowed = round(float(draw.uniform(0.0, DROP)), 4)
        made = {**options, quantity: limit.value, "target": TARGET, "accuracy_drop": allowed}
        pass_ = kind(**made)  # type: ignore[arg-type]
        start = time.monotonic()
        verdict, found, drop, message = gated(pass_, graph, limit, allowed, use, judge)
        seconds = time.monotonic() - start
        yield Gated(name, str(pass_), original, limit.value, found, verdict, seconds, message, allowed, drop)


def gated(
    pass_: Pass, graph: Graph, limit: Limit, allowed: float, use: Resources, judge: Judge
) -> tuple[str, float | None, float | None, str]:
    """Verdict, the cost and the drop that were reached or stated, and what a refusal says."""
    try:
        made = pass_(graph, use)
    except PassError as error:
        message = str(error).partition("\n")[0]
        stated = re.match(r"accuracy_drop: task '\S+' loses (\S+) where (\S+) is allowed", message)
        if stated is None:
            verdict, found, message = judged(type(pass_), graph, limit, use)
            return verdict, found, None, message
        right = float(stated[1]) > float(stated[2]) == allowed
        return ("refused" if right else "unexplained"), None, float(stated[1]), message
    found, drop = limit.cost(made, use), max(judge(made).values())
    return ("held" if found <= limit.value and drop <= allowed else "exceeded"), found, drop, ""


def main(arguments: list[str]) -> int:
    """Print a row per budget; 1 where a limit was exceeded, or refused without the reason."""
    study = Study("pruning-gates", "pruning-gates", __doc__, CHOSEN, (BUDGETS, 2), rows, line)
    return study.run(arguments)


def line(row: Gated) -> str:
    """A row for a terminal."""
    cost = "" if row.found is None else f"{row.found:.6g}"
    drop = "" if row.drop is None else f"{row.drop:.4f}"
    reached = f"{cost:>12} of {row.allowed:.6g}, drop {drop or '-'} of {row.allowed_drop}"
    return f"{row.network:16} {row.verdict:11} {reached}  {row.spec}"
