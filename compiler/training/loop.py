"""The training loop of distillation: seeded batches, held-out loss, early stop, checkpoints.

The best weights by held-out loss are kept, the ones it started with among them: a graph never comes back worse on
held-out inputs than it went in.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compiler.errors import PassError
from compiler.ir.graph import Graph
from compiler.ir.types import ValueRef
from compiler.progress import counted
from compiler.training.losses import Objective
from compiler.training.module import TorchNet
from compiler.training.recorded import Recorded
from compiler.training.samples import Data
from compiler.workers.store import Store

Say = Callable[[str], None]

MEASURED = 4096
"""Training samples on which statistics are measured."""

WARM_UP = 0.05
"""Share of all steps in which the learning rate rises from zero."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train. `patience`: epochs without a better held-out loss after which it stops (0: never); `mixed`: see
    `TorchNet`; `normalise`: see `compiler.training.normal`.
    """

    epochs: int
    batch: int
    rate: float
    patience: int
    seed: int
    mixed: bool = False
    normalise: bool = False


@dataclass(frozen=True, slots=True)
class History:
    """Held-out loss before training and after every epoch that ran; `best` is the epoch whose weights stay (0: the
    first ones).
    """

    losses: tuple[float, ...]
    best: int
    stopped: bool

    @property
    def diverged(self) -> bool:
        """Whether the last epoch left a loss that is no number, behind which no other one comes."""
        return not math.isfinite(self.losses[-1])


def predict(net: TorchNet, inputs: Mapping[str, Tensor], batch: int) -> dict[ValueRef, Tensor]:
    """Every task output [samples, ...] without gradients."""
    parts: dict[ValueRef, list[Tensor]] = {}
    count = len(next(iter(inputs.values())))
    with torch.no_grad():
        for first in range(0, count, batch):
            made = net.run({n: x[first : first + batch] for n, x in inputs.items()})
            for ref, values in made.items():
                parts.setdefault(ref, []).append(values)
    return {ref: torch.cat(values) for ref, values in parts.items()}


def held_out_loss(net: TorchNet, objective: Objective, data: Data, batch: int) -> float:
    """The objective on all of `data`."""
    return float(objective(predict(net, data.inputs, batch), data.teacher, data.labels))


class Training:
    """One training of `net` on `train`, judged on `held_out`. `checkpoint`: a file that every epoch is written to
    and that a later call with the same file continues from; a damaged one counts as none. ConfigError where it
    cannot be written.
    """

    def __init__(
        self,
        net: TorchNet,
        objective: Objective,
        recipe: Recipe,
        train: Data,
        held_out: Data,
        checkpoint: Path | None = None,
        say: Say = lambda line: None,
    ) -> None:
        self._net, self._objective, self._recipe = net, objective, recipe
        net.mixed = recipe.mixed
        self._train, self._held_out = train, held_out
        self._file, self._say = checkpoint, say
        if recipe.normalise:
            net.normalise(self._measured())
        self._steps = max(1, -(-len(train) // recipe.batch))
        if recipe.normalise and len(train) % recipe.batch == 1:
            self._steps -= 1  # one sample varies in nothing: its batch is left out
        self._stepping = Stepping(net, objective, recipe.rate)
        self._losses: list[float] = []
        self._best, self._best_state = 0, net.state()

    def run(self) -> History:
        """Train, load the best weights into the net, and tell how it went. PassError where there is no loss to
        begin with.
        """
        self._resume()
        if not self._losses:
            self._judge()
        if not math.isfinite(self._losses[0]):
            raise PassError(
                f"graph '{self._net.graph.name}' loses {self._losses[0]} on held-out inputs before training: its "
                f"answers, or the weights of its tasks, are too large"
            )
        started, done = time.monotonic(), len(self._losses) - 1
        while len(self._losses) <= self._recipe.epochs and not self._ended():
            self._epoch(len(self._losses))
            self._net.measure(self._measured())
            self._judge()
            self._save()
            self._tell(started, done)
        self._net.load(self._best_state)
        self._net.fold()
        return History(tuple(self._losses), self._best, self._stalled())

    def _epoch(self, number: int) -> None:
        done, every = (number - 1) * self._steps, self._recipe.epochs * self._steps
        batches = counted(f"distil: batches of epoch {number}", self._batches(number), self._steps)
        for step, rows in enumerate(batches, done):
            self._stepping.step(self._train.at(rows), learning_rate(step, every))

    def _batches(self, number: int) -> Iterator[Tensor]:
        """Rows of every batch of an epoch; the order depends on the seed and the epoch alone."""
        generator = torch.Generator().manual_seed(self._recipe.seed * 1_000_003 + number)
        order = torch.randperm(len(self._train), generator=generator).to(self._net.device)
        return iter(order.split(self._recipe.batch)[: self._steps])

    def _measured(self) -> list[Mapping[str, Tensor]]:
        """Inputs of the batches that statistics are measured on, all as large as those of training."""
        size = min(self._recipe.batch, len(self._train))
        most = max(size, min(MEASURED, len(self._train)))
        return [self._train.at(slice(n, n + size)).inputs for n in range(0, most - size + 1, size)]

    def _judge(self) -> None:
        loss = held_out_loss(self._net, self._objective, self._held_out, self._recipe.batch)
        self._losses.append(loss)
        if len(self._losses) == 1 or loss < self._losses[self._best]:
            self._best, self._best_state = len(self._losses) - 1, self._net.state()

    def _ended(self) -> bool:
        return self._stalled() or not math.isfinite(self._losses[-1])

    def _stalled(self) -> bool:
        patience = self._recipe.patience
        return bool(patience) and len(self._losses) - 1 - self._best >= patience

    def _tell(self, started: float, done: int) -> None:
        epoch, total = len(self._losses) - 1, self._recipe.epochs
        left = (time.monotonic() - started) / (epoch - done) * (total - epoch)
        self._say(
            f"distil: epoch {epoch} of {total}, held-out loss {self._losses[-1]:.4g} "
            f"(best {self._losses[self._best]:.4g}), {left:.0f} s left"
        )

    # ------------------------------------------------------------------ checkpoints
    def _save(self) -> None:
        if self._file is None:
            return
        held: dict[str, Any] = {
            "losses": self._losses,
            "best": self._best,
            "best_state": self._best_state,
            "state": self._net.state(),
            "optimizer": self._stepping.state(),
        }
        content = io.BytesIO()
        torch.save(held, content)
        Store(self._file.parent).save(self._file.name, content.getvalue())

    def _resume(self) -> None:
        content = None if self._file is None else Store(self._file.parent).load(self._file.name)
        if content is None:
            return
        held = torch.load(io.BytesIO(content), map_location=self._net.device, weights_only=True)
        self._losses, self._best, self._best_state = held["losses"], held["best"], held["best_state"]
        self._net.load(held["state"])
        self._stepping.load(held["optimizer"])
        self._say(f"distil: continues after epoch {len(self._losses) - 1}")


class Stepping:
    """Steps of Adam on `net` towards an objective; zeros that are left out stay (`TorchNet.keep_zeros`)."""

    def __init__(self, net: TorchNet, objective: Objective, rate: float) -> None:
        optimizer = adam(net, rate)

        def one(part: Data) -> tuple[Tensor, ...]:
            optimizer.zero_grad()
            with net.over_batches():
                backward(objective(net.run(part.inputs), part.teacher, part.labels), net.graph)
            net.keep_zeros()
            optimizer.step()
            return ()

        self._optimizer = optimizer
        self._full = [float(group["lr"]) for group in optimizer.param_groups]
        # of no part of this object: what a GPU keeps for a recorded step is free as soon as nobody holds it
        self._one = Recorded(one, net.device)

    def step(self, part: Data, factor: float = 1.0) -> None:
        """One step on some samples, at a share of the rate."""
        for group, full in zip(self._optimizer.param_groups, self._full, strict=True):
            if isinstance(group["lr"], Tensor):  # a recorded step reads it where it is
                group["lr"].fill_(full * factor)
            else:
                group["lr"] = full * factor
        self._one(part)

    def state(self) -> dict[int, Any]:
        """What the optimizer remembers of every weight."""
        found: dict[int, Any] = self._optimizer.state_dict()["state"]
        return found

    def load(self, state: Mapping[int, Any]) -> None:
        """Take what `state` gave, before the first step."""
        own = self._optimizer.state_dict()
        self._optimizer.load_state_dict({**own, "state": dict(state)})


def backward(loss: Tensor, graph: Graph) -> None:
    """The gradients of a loss of `graph`; PassError where it has none."""
    if not loss.requires_grad:
        raise PassError(
            f"no output of graph '{graph.name}' changes gradually with weights that can be trained; give the "
            f"network with the scores that its decisions are made of"
        )
    loss.backward()


def adam(net: TorchNet, rate: float) -> torch.optim.Adam:
    """Adam whose steps stay small beside the weights.

    A step of Adam has the size of its rate whatever the weights are. What reads values of 0..255 has weights of a
    few thousandths, and the step that trains the other layers would leave nothing of them. So a tensor takes its
    rate in proportion to its own size where that is below what inputs of unit size ask for, as relative step sizes
    do (Shazeer & Stern 2018, arXiv 1804.04235, section 8).
    """
    if not net.weights:
        raise PassError(f"graph '{net.graph.name}' has no weights that can be trained")
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for weight, terms in net.trained():
        groups.setdefault(_share_of_rate(weight, terms), []).append(weight)
    recorded = net.device.type == "cuda"
    rates = [rate * share for share in groups]
    return torch.optim.Adam(
        [
            {"params": group, "lr": torch.tensor(own, device=net.device) if recorded else own}
            for own, group in zip(rates, groups.values(), strict=True)
        ],
        capturable=recorded,
    )


def _share_of_rate(weight: Tensor, terms: float) -> float:
    """Root mean square over 1 / sqrt(terms), at most 1; elements that are left out do not count."""
    there = weight.detach()[weight.detach() != 0]
    if not terms or not len(there):
        return 1.0
    return min(1.0, float((there.double().square().mean() * terms).sqrt()))


def learning_rate(step: int, steps: int) -> float:
    """The factor of the learning rate at a step: a linear rise, then a half cosine down to zero."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
