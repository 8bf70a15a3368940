"""A network that is trained while some of its weights are being taken away.

Weights that are out are zero and stay zero. How much the answers depend on the others is read from gates on single
weights: with targets drawn from the network's own answers (`fisher`) the gradient of a gate that stands at 1 is the
weight times its gradient, and gates on groups of weights are sums of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from compiler.ir.graph import Graph
from compiler.ir.types import ValueRef
from compiler.training.answers import answer
from compiler.training.distilling import CHECKED, Material, Wanted, chosen_device, divided, outputs, prepared
from compiler.training.fisher import drawn, drawn_loss
from compiler.training.loop import Stepping, backward, predict
from compiler.training.losses import variance
from compiler.training.module import TorchNet, check_agrees
from compiler.training.recorded import Recorded
from compiler.training.samples import Data

BATCH = 64

DRAWN = 16
"""Samples whose drawn targets share a gradient: on average their mixed products are zero."""


class Supernet:
    """`graph` trained towards a teacher. Every call of `train` goes on where the last one ended in the data."""

    def __init__(self, graph: Graph, material: Material, wanted: Wanted, seed: int, device: str = "auto") -> None:
        self._net = TorchNet(graph, chosen_device(device))
        check_agrees(self._net, material.feeds[:CHECKED])
        data, self._objective = prepared(self._net, material, wanted, BATCH)
        self._train, self._held_out = divided(data)
        self._generator = torch.Generator(self._net.device).manual_seed(seed)
        self._order: list[Tensor] = []
        self._kinds = {r: answer(graph, r) for _, r in outputs(graph)}

    def go_on(self, graph: Graph) -> None:
        """Train `graph` from now on, which has the same answers; nothing is left out of it before `keep`."""
        self._net = TorchNet(graph, self._net.device)

    def keep(self, masks: Mapping[ValueRef, np.ndarray]) -> None:
        """See `TorchNet.keep`."""
        self._net.keep(masks)

    def train(self, epochs: float, rate: float) -> None:
        """Adam at a constant rate for a number of epochs, which may be a fraction."""
        stepping = Stepping(self._net, self._objective, rate)
        for _ in range(max(1, round(epochs * len(self._train) / BATCH))):
            stepping.step(self._train.at(self._next_rows()))

    def losses(self) -> dict[str, float]:
        """Task -> what its outputs lose on the samples that are not trained on."""
        made = predict(self._net, self._held_out.inputs, 4 * BATCH)
        found = dict.fromkeys(self._net.graph.tasks, 0.0)
        for output in self._objective.terms:
            found[output[0]] += float(self._objective.term(output, made, self._held_out.teacher))
        return found

    def gates(
        self, samples: int, axes: Mapping[ValueRef, tuple[int, int]]
    ) -> Iterator[Mapping[ValueRef, np.ndarray]]:
        """Gradients of gates on single weights, summed up over all but two axes, for `samples` inputs in small
        groups: weight -> array of its two `axes`, in the order in which the weight has them.
        """
        part = self._train.at(self._shuffled()[:samples])
        made = predict(self._net, part.inputs, BATCH)
        spreads = {r: variance(y) for r, y in made.items()}
        answered = list(outputs(self._net.graph))
        targets = {a: drawn(made[r], spreads[r], self._generator, self._kinds[r]) for a, r in answered}
        wanted = {r: dims for r, dims in axes.items() if r in self._net.weights}

        def gradients(group: Data) -> tuple[Tensor, ...]:
            for weight in self._net.weights.values():
                weight.grad = None
            answers = self._net.run(group.inputs)
            losses = [drawn_loss(answers[r], group.teacher[a], spreads[r], self._kinds[r]) for a, r in answered]
            backward(torch.stack(losses).sum(), self._net.graph)
            return (torch.cat([_gate(self._net.weights[r], dims).reshape(-1) for r, dims in wanted.items()]),)

        recorded, drawn_part = Recorded(gradients, self._net.device), Data(part.inputs, targets)
        shapes = [tuple(self._net.weights[r].shape[d] for d in sorted(dims)) for r, dims in wanted.items()]
        ends = np.cumsum([np.prod(s, dtype=int) for s in shapes])[:-1]
        for first in range(0, len(part), DRAWN):
            (found,) = recorded(drawn_part.at(slice(first, first + DRAWN)))
            parts = np.split(found.double().cpu().numpy(), ends)  # all at once: each transfer waits for the GPU
            yield {r: p.reshape(s) for r, p, s in zip(wanted, parts, shapes, strict=True)}

    def store(self, graph: Graph) -> None:
        """Write the weights into `graph`, which has them under the same names."""
        self._net.store(graph)

    def _next_rows(self) -> Tensor:
        if not self._order:
            self._order = list(self._shuffled().split(BATCH))
        return self._order.pop()

    def _shuffled(self) -> Tensor:
        return torch.randperm(len(self._train), generator=self._generator, device=self._net.device)


def _gate(weight: torch.nn.Parameter, axes: tuple[int, int]) -> Tensor:
    """Zeros where nothing that is answered depends on the weight."""
    gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
    product = weight.detach() * gradient
    others = [d for d in range(weight.ndim) if d not in axes]
    return product.sum(others) if others else product
