"""Convolutions that are normalised over the batch while they train, and are plain ones again after.

Inference folds batch normalisation into weights, and deep networks without it learn slowly and stand only small
steps. So while a network trains its convolutions get it back (Ioffe and Szegedy 2015, arXiv 1502.03167): scales and
statistics are such that nothing changes at first, the statistics of a trained network are measured anew on training
samples rather than averaged on the way, and all of it folds into weights and biases in the end.

Weights of which a part may not change (`TorchNet.free`), such as what a sparser level has trained, may not be
scaled either: their convolutions stay plain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compiler.ir.graph import Graph, Site
from compiler.ir.types import ValueRef
from compiler.training.functions import FUNCTIONS

EPS = 1e-5
"""Added to variances: what is nearly constant is not blown up."""
RANKS = (3, 4, 5)
"""Ranks of what torch's convolutions read."""


class Phase(Enum):
    """What a normalised convolution does with its results: normalise them by their batch; by what was measured
    before; nothing. The last two are not trained in.
    """

    BATCH = auto()
    HELD = auto()
    PLAIN = auto()


@dataclass
class Moments:
    """Mean and mean square per channel, summed up over batches."""

    batches: int = 0
    mean: Tensor | float = 0.0
    square: Tensor | float = 0.0

    def add(self, results: Tensor) -> None:
        """One more batch [samples, channels, ...]."""
        dims = [d for d in range(results.dim()) if d != 1]
        variance, mean = torch.var_mean(results.double(), dims, correction=0)
        self.batches += 1
        self.mean, self.square = self.mean + mean, self.square + variance + mean * mean

    def found(self) -> tuple[Tensor, Tensor]:
        """Mean and variance over all batches."""
        assert isinstance(self.mean, Tensor) and isinstance(self.square, Tensor)
        mean = self.mean / self.batches
        return mean.float(), (self.square / self.batches - mean * mean).clamp(min=0).float()


@dataclass
class Normal:
    """The normalisation of one convolution."""

    weight: torch.nn.Parameter
    bias: torch.nn.Parameter
    scale: torch.nn.Parameter
    mean: Tensor
    variance: Tensor
    phase: Phase = Phase.HELD
    moments: Moments | None = None

    @classmethod
    def of(cls, weight: torch.nn.Parameter, bias: torch.nn.Parameter) -> Normal:
        """One whose statistics have not been measured."""
        one = torch.ones_like(bias.detach())
        return cls(weight, bias, torch.nn.Parameter(one.clone()), torch.zeros_like(one), one)

    def begin(self) -> None:
        """Take what was measured; scale and bias are such that results stay."""
        self.measured()
        with torch.no_grad():
            self.scale.copy_((self.variance + EPS).sqrt())
            self.bias += self.mean

    def measured(self) -> None:
        """Take what was measured."""
        assert self.moments is not None
        mean, variance = self.moments.found()
        self.mean.copy_(mean)
        self.variance.copy_(variance)
        self.moments = None

    def factor(self) -> Tensor:
        """What results are multiplied by outside training."""
        return self.scale / (self.variance + EPS).sqrt()

    def results(self, convolved: Tensor) -> Tensor:
        """From what the convolution makes of one sample without its bias."""
        if self.phase is not Phase.HELD:
            made: Tensor = _OverBatch.apply(convolved, self)
            return made
        factor = self.factor()
        return convolved * _over(factor, convolved) + _over(self.bias - self.mean * factor, convolved)

    def over_batch(self, results: Tensor) -> Tensor:
        """Results [samples, channels, ...] of a whole batch by its own statistics, or as they are in `PLAIN`."""
        if self.moments is not None:
            self.moments.add(results)
        if self.phase is Phase.PLAIN:
            return results + _over(self.bias, results)
        return F.batch_norm(results, None, None, self.scale, self.bias, training=True, eps=EPS)

    def fold(self) -> None:
        """Into the weight and the bias."""
        with torch.no_grad():
            factor = self.factor()
            self.weight *= factor.reshape(-1, *[1] * (self.weight.dim() - 1))
            self.bias -= self.mean * factor

    def state(self) -> dict[str, Tensor]:
        """What it is besides weight and bias; not copied."""
        return {"scale": self.scale.detach(), "mean": self.mean, "variance": self.variance}


class _OverBatch(torch.autograd.Function):  # type: ignore[misc]
    """`Normal.over_batch` of results that are one sample each: the batch is the dimension they are mapped over."""

    @staticmethod
    def forward(results: Tensor, normal: Normal) -> Tensor:
        raise NotImplementedError("only what is mapped over a batch can be normalised over it")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, dims: tuple[int, None], results: Tensor, normal: Normal) -> tuple[Tensor, int]:
        batch = results.movedim(dims[0], 0)
        return normal.over_batch(batch.flatten(0, 1)).unflatten(0, batch.shape[:2]), 0


class Normals:
    """Normalised convolutions by their nodes' names.

    `weights`, `masks`: those of a `TorchNet`, which asks for the `results` of every convolution that is `in` here.
    """

    def __init__(
        self, graph: Graph, weights: Mapping[ValueRef, torch.nn.Parameter], masks: Mapping[ValueRef, Tensor]
    ) -> None:
        self._of = {
            site.node.ref.name: Normal.of(*(weights[site.operands[i].ref] for i in (1, 2)))
            for site in _normalised(graph, weights, masks)
        }

    def __contains__(self, site: Site) -> bool:
        return site.node.ref.name in self._of

    def results(self, site: Site, given: Sequence[Tensor | None]) -> Tensor:
        """Results of one sample."""
        convolved = FUNCTIONS[site.node.op.name](site, (*given[:2], None))
        assert convolved is not None
        return self._of[site.node.ref.name].results(convolved)

    @property
    def scales(self) -> Iterator[torch.nn.Parameter]:
        """What is trained besides the network's weights."""
        return (n.scale for n in self._of.values())

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """For a while."""
        for normal in self._of.values():
            normal.phase = phase
        try:
            yield
        finally:
            for normal in self._of.values():
                normal.phase = Phase.HELD

    def measure(self, phase: Phase, batches: Iterable[Callable[[], object]]) -> None:
        """Statistics of some batches, of which each is a run of the network."""
        for normal in self._of.values():
            normal.moments = Moments()
        with self.phase(phase), torch.no_grad():
            for run in batches:
                run()
        for normal in self._of.values():
            normal.begin() if phase is Phase.PLAIN else normal.measured()

    def fold(self) -> None:
        """Into weights and biases."""
        for normal in self._of.values():
            normal.fold()

    def state(self) -> dict[str, Tensor]:
        """By node and kind; not copied."""
        return {f"{n}/{kind}": t for n, normal in self._of.items() for kind, t in normal.state().items()}


def _over(channels: Tensor, results: Tensor) -> Tensor:
    return channels.reshape(-1, *[1] * (results.dim() - 2))


def _normalised(
    graph: Graph, weights: Mapping[ValueRef, torch.nn.Parameter], masks: Mapping[ValueRef, Tensor]
) -> Iterator[Site]:
    """Convolutions whose weight and bias are trained whole, and read by no other node."""
    depends = {v.ref for v in graph.inputs}
    for site in graph.sites():
        if not any(v.ref in depends for _, v in site.operands.present()):
            continue  # the same for every sample
        depends.update(v.ref for v in site.results)
        if site.node.op.name != "Conv" or site.operands.optional(2) is None or not site.operands[0].size:
            continue
        x, *own = (site.operands[i] for i in range(3))
        alone = own[0].ref != own[1].ref and all(len(graph.uses(v.ref)) == 1 for v in own)
        if alone and x.rank in RANKS and all(v.ref in weights and _whole(v.ref, weights, masks) for v in own):
            yield site


def _whole(ref: ValueRef, weights: Mapping[ValueRef, torch.nn.Parameter], masks: Mapping[ValueRef, Tensor]) -> bool:
    """Whether all that is there of a weight changes, and of a vector every element."""
    if ref not in masks:
        return True
    held, fixed = weights[ref].detach(), ~masks[ref]
    return not bool(fixed.any() if held.dim() == 1 else (held * fixed).any())
