"""narrow: channels are taken from tasks step by step, and the network is trained between the steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from compiler.errors import BudgetError, PassError, VerifyError, plural
from compiler.ir.graph import Graph
from compiler.ir.types import TaskSet
from compiler.passes.base import CPU_ONLY, Note, Pass, Refusal, Resources, memory_for, torch_module
from compiler.passes.distil import (
    COLDEST,
    FEW,
    MOST,
    decision_problems,
    number_problems,
    refuse_half,
    teacher_problems,
)
from compiler.passes.merge.merging import caps_of
from compiler.passes.narrow.bill import Bill
from compiler.passes.narrow.compact import compacted
from compiler.passes.narrow.copies import Copies
from compiler.passes.narrow.feeding import LEAST
from compiler.passes.narrow.relabel import check_same, masks, relabelled
from compiler.passes.narrow.steps import Sensitivity, Taking, losses
from compiler.passes.prune.surgery import split_shared
from compiler.progress import noted

LEAST_STEP = 1e-9
"""Share below which a step would save nothing."""

MOST_BETWEEN = 1000
"""Epochs after a step, of which there are dozens, beyond which training has no end."""

MOST_TASKS = 12
"""More have too many sets: what costs depend on is a table of all pairs of sets."""

PUSH = 6
"""How strongly combinations that are dear for their cap count in what is saved, when costs have come down to the
caps. As long as all costs are far above them, channels for few tasks are no help to anybody.
"""

SPARE = 0.03
"""Loss of a task that hardly counts: of the variance of its answers, or divergence from them; 1 to 3 is chance."""

CLOSER = 0.99
"""Factor of the priced aim while the workload's own is not met."""

COMPACT = 0.7
"""Channels that nobody has are taken out of the trained graph once the cost has come down to this share."""

CHECKED = 2
"""Inputs on which the narrowed graph is compared with the one that was trained."""


class Narrowing:
    """A network between its first width and ever smaller ones."""

    def __init__(self, options: Narrow, graph: Graph, use: Resources) -> None:
        self._options, self._use = options, use
        whole = graph.copy()
        split_shared(whole, matrices=True)
        copies = Copies(whole.copy().freeze(), use.excluded)
        if not copies.count:
            raise PassError(f"narrow: no channels can be taken from a task{copies.obstacle()}{copies.used_up()}")
        self._look_at(whole, copies, copies.full())
        self._feeds = [dict(b) for b in use.batches(graph, options.samples)]
        if len(self._feeds) < FEW:
            raise PassError(
                f"narrow: {plural(len(self._feeds), 'calibration batch')}, too few to train on; give {FEW} or more"
            )
        self._supernet = self._trainable()
        self.first = self._compacted = self.cost()

    def _look_at(self, graph: Graph, copies: Copies, labels: np.ndarray) -> None:
        """Everything that is counted on one graph."""
        self._graph, self._copies, self.labels = graph, copies, labels
        self._bill = Bill(copies)
        self._runs = self._bill.runs(self._use.workload)
        self._streams = [copies.numbers(s) for s in copies.streams.streams]
        self._taking = Taking(self._bill, self._options.whole)

    def _trainable(self) -> Any:
        training, supernet = torch_module("distilling", "narrow"), torch_module("supernet", "narrow")
        tasks = self._graph.tasks
        classes = frozenset(tasks if self._options.loss == "kl" else ())
        wanted = training.Wanted(dict.fromkeys(tasks, 1.0), classes, self._options.temperature, 0.0)
        material = training.Material(self._use.teacher, self._feeds, {})
        found = supernet.Supernet(self._graph, material, wanted, self._use.seed)
        found.keep(masks(self._bill, self.labels))
        return found

    # ------------------------------------------------------------------ what it costs
    def cost(self) -> float:
        """Multiply-adds of the expected call under the workload."""
        return self._expected(self.labels, self._runs)

    def _expected(self, labels: np.ndarray, runs: np.ndarray) -> float:
        return float(self._bill.by_label(labels) @ runs)

    # ------------------------------------------------------------------ steps
    def down_to(self, share: float, caps: Mapping[TaskSet, float]) -> None:
        """Take channels until the expected call costs at most this share of the first cost; PassError if it cannot.

        `caps`: what combinations should cost at most.
        """
        wanted = share * self.first
        steps = math.ceil(math.log(max(self.cost() / wanted, 1)) / -math.log(1 - self._options.step))
        done = 0
        while self.cost() > wanted:
            noted("narrow: steps", done, max(steps, done + 1))
            self._step(max(wanted, (1 - self._options.step) * self.cost()), caps)
            if self.cost() < COMPACT * self._compacted:
                self._compact()
            if self._options.between:
                self._supernet.train(self._options.between, self._options.rate)
            done += 1

    def _step(self, aim: float, caps: Mapping[TaskSet, float]) -> None:
        weights = self._weights()
        sensitivity = Sensitivity(self._bill, self.labels)
        gates = self._supernet.gates(self._options.drawn, {layer.weight: layer.dims for layer in self._bill.layers})
        loss = losses(sensitivity.add(gates), self.labels, self._streams, weights)
        runs = pushed(self._bill, self._bill.subsets(self.labels), caps) if caps else self._runs
        found = self._taken(loss, runs, aim)
        if found is None and caps:  # what the capped combinations can do without is not enough
            found = self._taken(loss, self._runs, aim)
        if found is None:
            raise BudgetError(
                f"narrow: {aim / self.first:.1%} of the first cost cannot be reached: every task keeps "
                f"at least {LEAST} channels to read in every layer; allow more{self._copies.used_up()}"
            )
        self.labels = self._bill.read(found)
        self._supernet.keep(masks(self._bill, self.labels))

    def _compact(self) -> None:
        """Go on without the channels that nobody has."""
        self._compacted = before = self.cost()
        trained = self._trained()
        self._look_at(*compacted(trained, self._copies, self.labels, self._use.excluded))
        check_same(trained, self._graph, self._feeds[:CHECKED])
        if not math.isclose(self.cost(), before):
            raise VerifyError(
                f"narrow: without channels that no task has, the cost is {self.cost():,.0f}, not {before:,.0f}"
            )
        self._supernet.go_on(self._graph)
        self._supernet.keep(masks(self._bill, self.labels))

    def _trained(self) -> Graph:
        """The graph with the weights trained so far."""
        trained = self._graph.copy()
        self._supernet.store(trained)
        return trained

    def _taken(self, loss: np.ndarray, runs: np.ndarray, aim: float) -> np.ndarray | None:
        """Labels that cost at most `aim` under the workload, with savings priced by `runs`, which may be others."""
        wanted = self._expected(self.labels, runs) * aim / self.cost()
        while True:
            found = self._taking.down_to(self.labels, loss, runs, wanted)
            if found is None or self._expected(found, self._runs) <= aim:
                return found
            wanted *= CLOSER

    def _weights(self) -> np.ndarray:
        """[tasks]: how dear a task's channels are. PassError where training has gone astray."""
        lost = self._supernet.losses()
        found = np.array([lost[t] for t in self._copies.tasks])
        if not np.isfinite(found).all():
            raise PassError(
                f"narrow: training between the steps diverged at {self.cost() / self.first:.1%} of the first cost: "
                f"answers are no numbers any more; lower rate, which is {self._options.rate:g}"
            )
        return dearness(found)

    def graph(self) -> Graph:
        """The narrowed graph: one node per label, with the weights trained so far, which did not diverge."""
        self._weights()  # refuses what the last training left, if that diverged
        return relabelled(Copies(self._trained().freeze(), self._use.excluded), self.labels, self._feeds[:CHECKED])


def dearness(lost: np.ndarray) -> np.ndarray:
    """[tasks]: what a task has lost over the mean, with `SPARE` added to each: a task that has lost nothing yet, to
    rounding, still has everything to lose.
    """
    found = np.maximum(lost, 0) + SPARE
    return np.asarray(found / found.mean())


def pushed(bill: Bill, now: Mapping[TaskSet, float], caps: Mapping[TaskSet, float]) -> np.ndarray:
    """Weights of labels when combinations count the more the farther they are over their caps."""
    near = min(1.0, sum(caps.values()) / sum(now[q] for q in caps))
    return bill.runs({q: (now[q] / cap) ** (PUSH * near) / cap for q, cap in caps.items()})


@dataclass(frozen=True)
class Narrow(Pass):
    """Take channels from tasks step by step until the expected call costs a share of what it does now.

    A channel that a task loses is read by the others only; one that all lose goes. `flops`: the share. `step`: what
    a step saves of what is left. `between`: epochs of training after each step, at a constant `rate`. `whole`: take
    channels from all of their tasks at once, so that labels stay as they are. `loss`: mse or kl, with
    `temperature`, towards the original networks. `drawn`: samples that sensitivities are measured on. `caps`:
    combinations that should not cost more, `a/b:1500000`; they count the more the farther they are over, once costs
    are near them. `samples`: how many calibration batches are used (0: all).
    """

    name: ClassVar[str] = "narrow"
    exact: ClassVar[bool] = False

    flops: float = 0.5
    step: float = 0.08
    between: float = 0.2
    rate: float = 1e-3
    whole: bool = False
    loss: str = "mse"
    temperature: float = 2.0
    drawn: int = 1024
    caps: tuple[str, ...] = ()
    samples: int = 0

    def wrong(self, graph: Graph, use: Resources) -> list[str]:
        problems = []
        if not 0 < self.flops <= 1 or not LEAST_STEP <= self.step < 1:
            problems.append(f"flops lies in (0, 1], step in [{LEAST_STEP:g}, 1)")
        if self.between > MOST_BETWEEN:
            problems.append(f"between goes up to {MOST_BETWEEN:,} epochs after every step; distil trains longer")
        if max(self.rate, self.temperature) > MOST:
            problems.append(f"rate and temperature go up to {MOST:,}")
        if 0 < self.temperature < COLDEST:
            problems.append(f"temperature starts at {COLDEST:g}")
        if self.between < 0 or self.rate <= 0 or self.temperature <= 0 or self.drawn < 1 or self.samples < 0:
            problems.append("rate and temperature must be above 0, drawn starts at 1, between and samples at 0")
        if self.loss not in ("mse", "kl"):
            problems.append(f"loss is '{self.loss}'; it can be mse or kl")
        if len(graph.tasks) > MOST_TASKS:
            problems.append(
                f"{len(graph.tasks)} tasks have 4^{len(graph.tasks)} pairs of sets, all of which are priced; it "
                f"takes up to {MOST_TASKS} tasks"
            )
        problems += decision_problems(graph)
        problems += number_problems(graph, graph.tasks if self.loss == "kl" else ())
        if use.calibration is None:
            problems.append("it needs calibration inputs; give [calibration] data")
        problems += teacher_problems(graph, use.teacher)
        try:
            caps_of(self.caps, graph)
        except ValueError as error:
            problems.append(str(error))
        if not problems:
            torch_module("supernet", self.name)
        return problems

    def requires(self, graph: Graph, use: Resources) -> None:
        refuse_half(self.name, graph)

    def rewrite(self, graph: Graph, use: Resources) -> Iterable[Refusal]:
        with memory_for(self.name, "fewer samples or a smaller drawn", CPU_ONLY):
            narrowing = Narrowing(self, graph, use)
            narrowing.down_to(self.flops, caps_of(self.caps, graph))
        graph.assign(narrowing.graph())
        return [
            Note(
                self.name,
                f"{narrowing.cost():,.0f} multiply-adds of the expected call, {narrowing.first:,.0f} before",
            )
        ]
