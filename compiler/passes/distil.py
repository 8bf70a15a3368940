"""distil: train a graph towards what the original networks answer, without labels.

Torch is loaded when the pass runs, not before. Only values of weights change, so training cannot undo what merging
and pruning decided: which channels there are, who may read them, and which elements a sparse encoding leaves out.
Sparsity levels are trained one after another, the sparsest first, and stay nested.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from compiler.calibration.moments import content_key, data_key
from compiler.errors import ConfigError, PassError, VerifyError, plural
from compiler.ir.graph import Graph, Value
from compiler.ir.levels import is_portfolio, level_count
from compiler.ir.text import digest
from compiler.ir.types import DType
from compiler.passes.base import NewNames, Note, Pass, Refusal, Resources, memory_for, torch_module
from compiler.passes.spec import task_numbers
from compiler.training.answers import measured, numbers

if TYPE_CHECKING:
    from compiler.training.loop import History
    from compiler.training.nesting import Stage

METHOD = "7"
"""Number of what a checkpoint holds; another one cannot be continued from."""

FEW = 10
"""Samples below which there is nothing to train on and to judge by."""

MOST = 1_000_000
"""Of any count and any factor of a training: what is asked beyond that has no end, or no number."""

COLDEST = 1e-6
"""Temperature below which softened scores need not be numbers any more."""


@dataclass(frozen=True)
class Distil(Pass):
    """Train the weights so that every task answers as its original network does, on unlabelled inputs.

    `epochs`, `batch`, `rate`: of Adam with a cosine schedule. `loss`: mse (of the outputs, over their variance) or
    kl (of class distributions softened by `temperature`, from scores over the last axis, or from the probabilities
    of a network that ends in Softmax or Sigmoid), for all tasks; `classes`: tasks that use kl in any case.
    `weights`: of tasks, `task:2.0` (1 by default). `labels`: weight of the cross entropy with class labels, where
    the calibration data has them. `patience`: epochs without a better loss on held-out inputs after which it stops
    (0: never). `samples`: how many calibration batches are used (0: all). `device`: auto is a GPU where torch sees
    one, else cpu. `mixed`: products of bfloat16 numbers while training, which GPUs and some processors make several
    times as fast; weights, and what is told of the result, stay in float32. `normalise`: results of convolutions
    are normalised over every batch while training, and scales folded into the weights after, as if the batch
    normalisation that networks lose on their way to ONNX were still there; meant for deep ones.

    A network with sparsity levels is trained from the sparsest level up, `epochs` for each: what a level stores
    stays as it is while the next one trains what it adds. `rounds`: before that blocks leave level 0 in so many
    rounds of `settle` epochs until those of the sparsest level are there, so that training decides which these
    are (0: levels keep their blocks). `climb`: levels above the sparsest train at so many times the rate; below 1
    where the sparsest is normalised, as the others are not and stand smaller steps.
    """

    name: ClassVar[str] = "distil"
    exact: ClassVar[bool] = False
    new_names: ClassVar[NewNames] = NewNames.NONE
    keeps_levels: ClassVar[bool] = True

    epochs: int = 10
    batch: int = 64
    rate: float = 1e-3
    loss: str = "mse"
    classes: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    temperature: float = 2.0
    labels: float = 0.0
    patience: int = 0
    samples: int = 0
    device: str = "auto"
    mixed: bool = False
    normalise: bool = False
    rounds: int = 0
    settle: int = 1
    climb: float = 1.0

    def wrong(self, graph: Graph, use: Resources) -> list[str]:
        problems = []
        if self.epochs < 1 or self.batch < 1 or self.samples < 0 or self.patience < 0:
            problems.append("epochs and batch start at 1, samples and patience at 0")
        if self.normalise and self.batch == 1:
            problems.append("normalise is over the samples of a batch; give a batch of 2 or more")
        if self.rounds < 0 or self.settle < 1:
            problems.append("settle starts at 1, rounds at 0")
        if min(self.rate, self.temperature, self.climb) <= 0 or self.labels < 0:
            problems.append("rate, temperature and climb must be above 0, labels cannot be negative")
        if max(self.epochs, self.batch, self.patience, self.rounds, self.settle) > MOST:
            problems.append(f"epochs, batch, patience, rounds and settle go up to {MOST:,}")
        if max(self.rate, self.temperature, self.climb, self.labels) > MOST:
            problems.append(f"rate, temperature, climb and labels go up to {MOST:,}")
        if 0 < self.temperature < COLDEST:
            problems.append(f"temperature starts at {COLDEST:g}")
        if self.loss not in ("mse", "kl"):
            problems.append(f"loss is '{self.loss}'; it can be mse or kl")
        unknown = [t for t in self.classes if t not in graph.tasks]
        if unknown:
            problems.append(f"classes names {', '.join(unknown)}; the tasks are {', '.join(graph.tasks)}")
        problems += decision_problems(graph)
        problems += number_problems(graph, graph.tasks if self.loss == "kl" else self.classes)
        try:
            given = self._weights(graph).values()
            if max(given, default=0) > MOST or not any(given):
                problems.append(f"weights go up to {MOST:,}, and one at least is above 0")
        except ValueError as error:
            problems.append(str(error))
        if use.calibration is None:
            problems.append("it needs calibration inputs; give [calibration] data")
        if self.labels and not use.labels:
            problems.append("labels asks for class labels; the calibration data has no array named as a task")
        problems += teacher_problems(graph, use.teacher)
        if not problems:
            try:
                torch_module("distilling", self.name).chosen_device(self.device)
            except ConfigError as error:
                problems.append(str(error))
        return problems

    def levels_problem(self, count: int) -> str:
        if count > 1 or (self.rounds <= 0 and self.climb == 1):
            return ""
        lost = "rounds are" if self.rounds > 0 else "climb is"
        return f"{lost} for networks with sparsity levels; run nest before"

    def requires(self, graph: Graph, use: Resources) -> None:
        if is_portfolio(graph):
            raise PassError(f"{self.name}: train the networks of a portfolio one by one, before they become one")
        refuse_half(self.name, graph)

    def rewrite(self, graph: Graph, use: Resources) -> Iterable[Refusal]:
        assert use.teacher is not None
        feeds = [dict(b) for b in use.batches(graph, self.samples)]
        if len(feeds) < FEW:
            raise PassError(
                f"{self.name}: {plural(len(feeds), 'calibration batch')}, too few to train on; give {FEW} or more"
            )
        training, loop = torch_module("distilling", self.name), torch_module("loop", self.name)
        nesting = torch_module("nesting", self.name)
        recipe = loop.Recipe(
            self.epochs, self.batch, self.rate, self.patience, use.seed, self.mixed, self.normalise
        )
        classes = frozenset(graph.tasks if self.loss == "kl" else self.classes)
        labels = {t: a for t, a in use.labels.items() if t in graph.tasks} if self.labels else {}
        checkpoint = self._checkpoint(graph, use, feeds)
        material = training.Material(use.teacher, feeds, labels)
        wanted = training.Wanted(self._weights(graph), classes, self.temperature, self.labels)
        rest = (self.device, checkpoint, use.say)
        less = f"a smaller batch than {self.batch}, or fewer samples than {len(feeds)}"
        try:
            with memory_for(self.name, less, "device=cpu"):
                if level_count(graph) == 1:
                    notes = [_told(training.distil(graph, material, wanted, recipe, *rest))]
                else:
                    schedule = nesting.Schedule(self.rounds, self.settle, self.climb)
                    found = nesting.distil_levels(graph, material, wanted, recipe, schedule, *rest)
                    notes = [f"{s.name}: {_told(s.history)}{_moved(s)}" for s in found]
        except KeyboardInterrupt as stop:
            stop.add_note(_goes_on(checkpoint, level_count(graph) > 1))
            raise
        return [Note(self.name, note) for note in notes]

    def ensures(self, before: Graph, after: Graph) -> None:
        same = [v.ref for v in before.values()] == [v.ref for v in after.values()]
        if not same or any(before.value(v.ref).type != v.type for v in after.values()):
            raise VerifyError(f"after {self.name}: something other than the values of weights has changed")
        for level in range(level_count(before)):
            for old in before.parameters():
                if _stored(after.value(old.ref).at(level)) > _stored(old.at(level)):
                    raise VerifyError(f"after {self.name}: level {level} of '{old.ref}' stores more than before")

    def _weights(self, graph: Graph) -> dict[str, float]:
        """Task -> weight; ValueError names what cannot be read."""
        return task_numbers("weights", self.weights, graph.tasks, "WEIGHT", 1.0)

    def _checkpoint(self, graph: Graph, use: Resources, feeds: list[dict[str, np.ndarray]]) -> Path | None:
        """The file of this training: another network, other data or options are another file."""
        if use.cache is None:
            return None
        assert use.teacher is not None
        labels = data_key([use.labels]) if self.labels else ""
        key = content_key(
            METHOD, str(self), str(use.seed), digest(graph), digest(use.teacher), data_key(feeds), labels
        )
        return use.cache / f"distil-{key}.pt"


def _stored(value: Value) -> int:
    return value.type.encoding.stored(value.shape, value.data)


def _goes_on(checkpoint: Path | None, in_stages: bool) -> str:
    """What becomes of an interrupted training; that of levels has a file for every stage."""
    if checkpoint is None:
        return "training starts anew; with a folder as [calibration] cache it would go on from its last epoch"
    file = checkpoint.with_stem(f"{checkpoint.stem}-*") if in_stages else checkpoint
    return f"training goes on from the last epoch that {file} holds"


def refuse_half(name: str, graph: Graph) -> None:
    """PassError where something is computed in float16, in which steps of training vanish."""
    made = [v.ref for s in graph.sites() if s.node.op.name != "Cast" for v in s.results]
    half = [r for r in made if graph.value(r).dtype is DType.FLOAT16]
    if half:
        raise PassError(f"{name}: '{half[0]}' is computed in float16; convert the network to float32 to train it")


def decision_problems(graph: Graph) -> list[str]:
    """Why some tasks cannot be trained at all."""
    kinds = {name: {graph.value(r).dtype.value for r in task.outputs} for name, task in graph.tasks.items()}
    return [
        f"task '{t}' answers {', '.join(sorted(kinds[t]))} only, towards which nothing can be trained; give the "
        f"network with the scores that this is made of"
        for t in graph.tasks
        if not measured(graph, t)
    ]


def number_problems(graph: Graph, tasks: Iterable[str]) -> list[str]:
    """Why some tasks cannot be compared as distributions over classes."""
    return [
        f"task '{t}' answers a single number, of which loss=kl compares nothing; take loss=mse"
        for t in numbers(graph, (t for t in tasks if t in graph.tasks))
    ]


def teacher_problems(graph: Graph, teacher: Graph | None) -> list[str]:
    """Why a graph cannot be trained towards another one."""
    if teacher is None:
        return ["it needs the original networks; pass Resources(teacher=graph)"]
    missing = [t for t in graph.tasks if t not in teacher.tasks]
    if missing:
        return [f"the original networks lack task {', '.join(missing)}"]
    if [(v.ref, v.type) for v in graph.inputs] != [(v.ref, v.type) for v in teacher.inputs]:
        return ["the original networks have other inputs"]
    counts = {n: (len(task.outputs), len(teacher.tasks[n].outputs)) for n, task in graph.tasks.items()}
    if differ := [f"{n} ({own} and {other})" for n, (own, other) in counts.items() if own != other]:
        return [f"the original networks have other numbers of outputs for task {', '.join(differ)}"]
    return [
        f"output '{a}' has not the type of the original network's '{b}'"
        for name, task in graph.tasks.items()
        for a, b in zip(task.outputs, teacher.tasks[name].outputs, strict=True)
        if graph.value(a).type != teacher.value(b).type
    ]


def _told(history: History) -> str:
    losses, best, epochs = history.losses, history.best, len(history.losses) - 1
    kept = f"the weights of epoch {best}" if best else "the weights it started with, since no epoch was better"
    end = f"stopped after epoch {epochs}" if history.stopped else f"{epochs} epochs"
    if history.diverged:
        end = f"training diverged in epoch {epochs} and was stopped: lower rate"
    return f"{end}; loss on held-out inputs {losses[0]:.4g} before, {losses[best]:.4g} with {kept}"


def _moved(stage: Stage) -> str:
    """That a level is worse than it came, where it is."""
    if not stage.worse:
        return ""
    reason = "what it shares with sparser levels was trained for them"
    return f"; worse than the {stage.came:.4g} it came with: {reason}"
