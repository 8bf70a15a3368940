"""The training loop: one-cycle SGD, no validation-driven choices, the last epoch is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.training.tasks import Labels

Inputs = npt.NDArray[np.float32]
Augment = Callable[[Inputs, np.random.Generator], Inputs]


@dataclass(frozen=True)
class Schedule:
    """Hyperparameters of one training."""

    epochs: int
    seed: int
    batch: int = 128
    peak_rate: float = 0.1
    weight_decay: float = 5e-4
    label_smoothing: float = 0.05


def fit(net: nn.Module, inputs: Inputs, labels: Labels, schedule: Schedule, augment: Augment) -> float:
    """Train ``net`` in place on inputs [n, channels, h, w] and labels [n]; return the minutes it took."""
    start = time.monotonic()
    rng = np.random.default_rng(schedule.seed)
    net.to(memory_format=torch.channels_last)
    optimizer, scheduler = _optimizer(net, schedule, steps=schedule.epochs * (len(inputs) // schedule.batch))
    criterion = nn.CrossEntropyLoss(label_smoothing=schedule.label_smoothing)
    net.train()
    for epoch in range(schedule.epochs):
        total = 0.0
        for x, y in _batches(inputs, labels, schedule.batch, rng, augment):
            optimizer.zero_grad()
            loss = criterion(net(x), y)
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item() * len(y)
        progress = f"epoch {epoch + 1}/{schedule.epochs}: loss {total / len(inputs):.4f}"
        print(f"{progress}, {(time.monotonic() - start) / 60:.1f} min", flush=True)
    net.eval()
    return (time.monotonic() - start) / 60


def predict(net: nn.Module, inputs: Inputs) -> Labels:
    """Return the class that ``net`` predicts for each of the inputs [n, channels, h, w]."""
    with torch.no_grad():
        parts = [net(part).argmax(1) for part in torch.from_numpy(inputs).split(256)]
    predicted: Labels = torch.cat(parts).numpy()
    return predicted


def shift_and_flip(x: Inputs, rng: np.random.Generator) -> Inputs:
    """Shift images [b, channels, h, w] by up to two pixels either way and mirror half of them."""
    x = random_shift(x, 2, 2, rng)
    mirrored = rng.random(len(x)) < 0.5
    x[mirrored] = x[mirrored, :, :, ::-1]
    return x


def random_shift(x: Inputs, rows: int, columns: int, rng: np.random.Generator) -> Inputs:
    """Shift each of x [b, channels, h, w] by up to ``rows`` and ``columns``, filling with zeros."""
    count, _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (rows, rows), (columns, columns)))
    top = rng.integers(0, 2 * rows + 1, (count, 1, 1)) + np.arange(height)[None, :, None]
    left = rng.integers(0, 2 * columns + 1, (count, 1, 1)) + np.arange(width)[None, None, :]
    last: Inputs = padded[np.arange(count)[:, None, None], :, top, left]  # [b, h, w, channels]
    return np.ascontiguousarray(last.transpose(0, 3, 1, 2))


def _optimizer(
    net: nn.Module, schedule: Schedule, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return SGD over the trainable parameters with a one-cycle rate over ``steps``."""
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        trainable, schedule.peak_rate, momentum=0.9, weight_decay=schedule.weight_decay, nesterov=True
    )
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, schedule.peak_rate, total_steps=steps)


def _batches(
    inputs: Inputs, labels: Labels, size: int, rng: np.random.Generator, augment: Augment
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the full batches of one shuffled and augmented epoch."""
    order = rng.permutation(len(inputs))
    for start in range(0, len(order) - size + 1, size):
        chosen = order[start : start + size]
        x = torch.from_numpy(np.ascontiguousarray(augment(inputs[chosen], rng)))
        yield x.contiguous(memory_format=torch.channels_last), torch.from_numpy(labels[chosen])
