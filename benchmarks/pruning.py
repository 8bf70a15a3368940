"""Do budgets hold? Random budgets on five networks: never exceeded, or refused with the constraint and by how much.

Every case draws a pass (`prune-channels`, `sparsify`, `compress`), a quantity (FLOPs, bytes of weights, predicted
time) and a share of what the network costs. The finished graph is priced; a refusal has to name the quantity, the
least cost that it states has to exceed the budget, and a budget of just that cost has to be met: otherwise less was
possible, or less was promised than there is. No accuracy is measured here: weights are random.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from benchmarks.host import facts
from benchmarks.networks import NETWORKS
from benchmarks.results import keep
from compiler.codegen.predict import planner_clock
from compiler.errors import PassError
from compiler.ir.graph import Graph
from compiler.ir.onnx_in import load
from compiler.passes.base import Pass, Resources
from compiler.passes.budget.limits import QUANTITIES, Limit
from compiler.passes.compress.compress import Compress
from compiler.passes.prune.channels import PruneChannels
from compiler.passes.sparsify.magnitude import Sparsify

CHOSEN = ("resnet-folded", "mobilenet-v2", "densenet", "vgg-flatten", "lstm")
TARGET = "x86-64-v3"
BUDGETS = 20
ROUNDED = 1e-5
"""Share by which a cost that is told in six digits may be off."""
KINDS: tuple[type[Pass], ...] = (PruneChannels, Sparsify, Compress)


@dataclass(frozen=True)
class Row:
    """One budget. `verdict`: held, refused, exceeded, or unexplained (a refusal that does not say enough)."""

    network: str
    spec: str
    original: float
    allowed: float
    found: float | None
    verdict: str
    seconds: float
    message: str = ""

    @property
    def good(self) -> bool:
        """Whether the budget held or was refused with the reason."""
        return self.verdict in ("held", "refused")


R = TypeVar("R", bound=Row)


def rows(name: str, count: int, seed: int) -> Iterator[Row]:
    """Random budgets on one network."""
    graph, use = load(NETWORKS[name]()), Resources(clock=planner_clock)
    draw = np.random.default_rng([seed, CHOSEN.index(name)])
    for _ in range(count):
        quantity = QUANTITIES[draw.integers(len(QUANTITIES))]
        original = Limit(quantity, 0.0, TARGET).cost(graph, use)
        limit = Limit(quantity, float(draw.uniform(0.02, 1.05)) * original, TARGET)
        kind = KINDS[draw.integers(len(KINDS))]
        start = time.monotonic()
        verdict, found, message = judged(kind, graph, limit, use)
        seconds = time.monotonic() - start
        yield Row(name, str(within(kind, limit)), original, limit.value, found, verdict, seconds, message)


def within(kind: type[Pass], limit: Limit) -> Pass:
    """The pass with a limit as its budget."""
    return kind(**{limit.quantity: limit.value}, target=TARGET)  # type: ignore[call-arg]


def judged(kind: type[Pass], graph: Graph, limit: Limit, use: Resources) -> tuple[str, float | None, str]:
    """Verdict, the cost that was reached or stated, and what a refusal says."""
    try:
        found = limit.cost(within(kind, limit)(graph, use), use)
    except PassError as error:
        message = str(error).partition("\n")[0]
        stated = re.match(rf"{limit.quantity}: at most \S+ .* are allowed and (\S+) remain", message)
        least = float(stated[1]) if stated else None
        over = least is not None and least > limit.value
        right = over and _reached(kind, graph, replace(limit, value=least), use)
        return ("refused" if right else "unexplained"), least, message
    return ("held" if found <= limit.value else "exceeded"), found, ""


def _reached(kind: type[Pass], graph: Graph, least: Limit, use: Resources) -> bool:
    """Whether the cost that a refusal states, in six digits, can be had."""
    limit = replace(least, value=least.value * (1 + ROUNDED))
    try:
        return limit.cost(within(kind, limit)(graph, use), use) <= limit.value
    except PassError:
        return False


def main(arguments: list[str]) -> int:
    """Print a row per budget; 1 where one was exceeded or refused without the reason."""
    study = Study("pruning", "pruning-budgets", __doc__, CHOSEN, (BUDGETS, 4), rows, line)
    return study.run(arguments)


def line(row: Row) -> str:
    """A row for a terminal."""
    reached = "" if row.found is None else f"{row.found:.6g}"
    return f"{row.network:14} {row.verdict:11} {reached:>12} of {row.allowed:.6g}  {row.spec}"


@dataclass(frozen=True)
class Study(Generic[R]):
    """Random budgets, judged and told: its name on the command line, its file, and what it is about.

    `counts`: budgets of each of `cases`, and those with `--quick`. `rows`: (case, budgets, seed) -> one by one.
    """

    name: str
    file: str
    about: str | None
    cases: Sequence[str]
    counts: tuple[int, int]
    rows: Callable[[str, int, int], Iterator[R]]
    line: Callable[[R], str]

    def run(self, arguments: list[str]) -> int:
        """Print a row per budget; 1 where one was exceeded or refused without the reason."""
        command = f"python -m benchmarks {self.name}"
        many, few = self.counts
        parser = argparse.ArgumentParser(prog=command, description=self.about)
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--only", nargs="+", default=list(self.cases), choices=self.cases, help="cases")
        parser.add_argument("--quick", action="store_true", help=f"{few} budgets per case in place of {many}")
        parser.add_argument("--json", action="store_true", help="print the record as JSON")
        parser.add_argument("--save", type=Path, help=f"folder for {self.file}.json")
        given = parser.parse_args(arguments)
        found = []
        for name in given.only:
            for row in self.rows(name, few if given.quick else many, given.seed):
                found.append(row)
                if not given.json:
                    print(self.line(row), flush=True)
        only = "" if given.only == list(self.cases) else f" --only {' '.join(given.only)}"
        record = {
            "command": f"{command} --seed {given.seed}{only}" + " --quick" * given.quick,
            "seeds": [given.seed],
            "versions": facts()["versions"],
            **{verdict: sum(r.verdict == verdict for r in found) for verdict in ("held", "refused")},
            "failed": sum(not r.good for r in found),
            "rows": [asdict(r) for r in found],
        }
        if given.json:
            print(json.dumps(record, indent=1))
        else:
            print(f"{record['held']} held, {record['refused']} refused with the reason, {record['failed']} failed")
        if given.save:
            keep(given.save, self.file, record)
        return int(any(not r.good for r in found))
