"""Gradual magnitude pruning of single weights: one trained network that is sparse without a pattern.

The smallest weights of every layer leave in steps, the same share of each, with training in between; the first and
the last layer stay whole (Zhu and Gupta, 2017, arXiv 1710.01878). Masks are those of `torch.nn.utils.prune`.
Channels whose weights are all gone stay in the network: taking them away is what the study of portfolios is about.
Needs the extra `train`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from benchmarks.cifar import INTERFACE, NETWORKS, TASK, Mixed
from benchmarks.merging.families import Part
from compiler import Graph, load
from models.training.export import export_onnx
from models.training.fit import Schedule, fit, shift_and_flip

CALIBRATED = 1024
"""Images that normalisations are put back by."""


@dataclass(frozen=True, slots=True)
class Steps:
    """What share of the weights stays after each step, and how many epochs follow it."""

    kept: tuple[float, ...]
    epochs: tuple[int, ...]
    seed: int
    batch: int = 128
    peak_rate: float = 0.05

    def name(self, count: int) -> str:
        """What a file with the result of the first steps is told by."""
        return "-".join([f"{1 / self.kept[count - 1]:g}", *map(str, self.epochs[:count]), str(self.seed)])


@dataclass(frozen=True, slots=True)
class Trained:
    """The sparse network as ONNX, and what its training took of a processor, without that of the dense network."""

    file: Path
    seconds: float


def gradual(network: str, dense: Path, part: Part, steps: Steps, kept: Path) -> Trained:
    """The sparse network made from the file `dense`. What every step made is kept in the folder `kept`, and made
    once."""
    kept.mkdir(parents=True, exist_ok=True)
    file, seconds = dense, 0.0
    for count in range(1, len(steps.kept) + 1):
        made = kept / f"{network}-sparse-{steps.name(count)}-{len(part.inputs)}.onnx"
        spent = made.with_suffix(".seconds")
        if not spent.exists():
            start = time.process_time()
            export_onnx(_step(network, file, part, steps, count - 1), made, INTERFACE, keep_batch_norm=False)
            spent.write_text(f"{time.process_time() - start}\n")
        file, seconds = made, seconds + float(spent.read_text())
    return Trained(file, seconds)


def _step(network: str, file: Path, part: Part, steps: Steps, index: int) -> nn.Module:
    """Take weights of the network in a file away, the absent ones first, then train it."""
    net = restored(network, load(file), part.inputs[:CALIBRATED])
    for layer in _layers(net):
        prune.l1_unstructured(layer, "weight", 1.0 - steps.kept[index])
    schedule = Schedule(steps.epochs[index], steps.seed + index, steps.batch, steps.peak_rate)
    fit(Mixed(net), part.inputs, part.labels[TASK], schedule, shift_and_flip)
    net.to(memory_format=torch.contiguous_format)
    for layer in _layers(net):
        prune.remove(layer, "weight")
    return net


def _layers(net: nn.Module) -> list[nn.Module]:
    """What is pruned: all convolutions and products but the first and the last."""
    return [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)][1:-1]


# ---------------------------------------------------------------------- from ONNX to a network that can be trained
def restored(network: str, graph: Graph, inputs: np.ndarray) -> nn.Module:
    """The network with the weights of `graph`, in which normalisations were folded: each is put back with the mean
    and variance that `inputs` [n, channels, h, w] give it, and undoes them, so that the function is the same."""
    net = NETWORKS[network]()
    held = weights(graph)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for conv, norm, (weight, bias) in zip(convolutions, norms, held[:-1], strict=True):
            conv.weight.copy_(weight)
            norm.bias.copy_(bias)  # until its statistics are known
        (last,) = (m for m in net.modules() if isinstance(m, nn.Linear))
        last.weight.copy_(held[-1][0])
        last.bias.copy_(held[-1][1])
        _calibrate(net, torch.from_numpy(inputs))
    return net


def _calibrate(net: nn.Module, x: Tensor) -> None:
    """Walk through the layers of a sequence, setting every normalisation from what reaches it."""
    net.eval()
    for layer in net.children():
        if isinstance(layer, nn.BatchNorm2d):
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            layer.running_mean.copy_(mean)  # type: ignore[union-attr]
            layer.running_var.copy_(variance)  # type: ignore[union-attr]
            layer.weight.copy_((variance + layer.eps).sqrt())
            layer.bias.add_(mean)
        x = layer(x)


def weights(graph: Graph) -> Sequence[tuple[Tensor, Tensor]]:
    """(weight, bias) of every convolution and product, in order."""
    found = []
    for site in graph.sites():
        if site.node.op.name in ("Conv", "Gemm"):
            values = [site.operands[i].constant for i in (1, 2)]
            found.append((torch.from_numpy(values[0].copy()), torch.from_numpy(values[1].reshape(-1).copy())))
    return found
