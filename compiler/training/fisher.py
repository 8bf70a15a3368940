"""How much a network's answers depend on each channel, by gradients of gates.

A gate multiplies one channel of one value and stands at 1. The gradient of a distillation loss there is zero as
long as student and teacher are the same, so it ranks nothing. The Fisher information does: targets are drawn from
the network's own answers, classes from the softened distribution, single scores with noise of the answers' own
variance. A gradient is then zero on average, and its mean square says how far the answers move with the gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from compiler.calibration.moments import UNSOUND
from compiler.errors import ConfigError, PassError
from compiler.ir.graph import Graph
from compiler.ir.types import Axis, ValueRef
from compiler.progress import counted
from compiler.training.answers import Answer, answer
from compiler.training.distilling import chosen_device, outputs
from compiler.training.loop import predict
from compiler.training.losses import scores, variance
from compiler.training.module import TorchNet

BATCH = 64
TEMPERATURE = 2.0


def gate_gradients(
    graph: Graph, feeds: Sequence[Mapping[str, np.ndarray]], axes: Sequence[Axis], seed: int
) -> dict[Axis, np.ndarray]:
    """Axis -> [samples, entries]: per sample the gradient of the drawn targets' loss by a gate on each entry.

    `axes`: of computed values, at most one per value. The loss adds up over all tasks.
    """
    if not axes:
        return {}
    net = TorchNet(graph, chosen_device("auto"))
    generator = torch.Generator(device=net.device).manual_seed(seed)
    arrays = net.feeds({n: np.stack([f[n] for f in feeds]) for n in feeds[0]})
    made = predict(net, arrays, BATCH)
    if not all(bool(torch.isfinite(made[r]).all()) for _, r in outputs(graph)):
        raise ConfigError(UNSOUND)
    spreads = {r: variance(y) for r, y in made.items()}
    parts: dict[Axis, list[np.ndarray]] = {a: [] for a in axes}
    for first in counted("gradients: batches", range(0, len(feeds), BATCH)):
        inputs = {n: x[first : first + BATCH] for n, x in arrays.items()}
        count = len(next(iter(inputs.values())))
        gates = {a: _gate(graph, a, count, net.device) for a in axes}
        made = net.run(
            inputs, {a.owner: (int(a.dim), g) for a, g in gates.items() if isinstance(a.owner, ValueRef)}
        )
        losses = []
        for _, ref in outputs(graph):
            kind = answer(graph, ref)
            targets = drawn(made[ref], spreads[ref], generator, kind)
            losses.append(drawn_loss(made[ref], targets, spreads[ref], kind))
        if not any(found.requires_grad for found in losses):
            raise PassError(f"score=fisher: no output of graph '{graph.name}' has a gradient; take another score")
        loss = torch.stack(losses).sum()
        gradients = torch.autograd.grad(loss, list(gates.values()), allow_unused=True)
        for axis, gate, gradient in zip(gates, gates.values(), gradients, strict=True):
            found = torch.zeros_like(gate) if gradient is None else gradient
            parts[axis].append(found.double().cpu().numpy())
    return {a: np.concatenate(p) for a, p in parts.items()}


def _gate(graph: Graph, axis: Axis, count: int, device: torch.device) -> Tensor:
    assert isinstance(axis.owner, ValueRef) and isinstance(axis.dim, int)
    return torch.ones((count, graph.value(axis.owner).shape[axis.dim]), device=device, requires_grad=True)


def drawn(answers: Tensor, spread: float, generator: torch.Generator, kind: Answer) -> Tensor:
    """Targets drawn from answers [samples, ...]: classes [samples, decisions]; of numbers the answers with
    noise of variance `spread`.
    """
    with torch.no_grad():
        if kind is Answer.NUMBER:
            return answers + torch.randn(answers.shape, generator=generator, device=answers.device) * spread**0.5
        chances = _softened(answers, kind).softmax(-1)
        return torch.multinomial(chances, 1, generator=generator).reshape(len(answers), -1)


def drawn_loss(answers: Tensor, targets: Tensor, spread: float, kind: Answer) -> Tensor:
    """Sum over the samples of the negative log likelihood of what `drawn` gave."""
    if kind is Answer.NUMBER:
        return ((answers - targets) ** 2).sum() / (2 * spread)
    return F.cross_entropy(_softened(answers, kind), targets.reshape(-1), reduction="sum")


def _softened(answers: Tensor, kind: Answer) -> Tensor:
    """Scores [decisions, classes]."""
    found = scores(kind, answers)
    return found.reshape(-1, found.shape[-1]) / TEMPERATURE
