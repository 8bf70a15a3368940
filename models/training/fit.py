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
Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]
"""Inputs and labels of the batches of one epoch."""


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
    rng = np.random.default_rng(schedule.seed)
    return _trained(net, len(inputs), schedule, lambda: _batches(inputs, labels, schedule.batch, rng, augment))


def fit_resident(
    net: nn.Module, inputs: Inputs, labels: Labels, schedule: Schedule, device: torch.device, reach: int
) -> float:
    """Train ``net`` in place on ``device``, where inputs [n, channels, h, w] and labels [n] lie all the time.

    Images are shifted by up to ``reach`` pixels either way and half of them mirrored. Return the minutes it took.
    """
    net.to(device)
    x, y = torch.from_numpy(inputs).to(device), torch.from_numpy(labels).to(device)
    generator = torch.Generator(device).manual_seed(schedule.seed)
    return _trained(net, len(inputs), schedule, lambda: _resident_batches(x, y, schedule.batch, generator, reach))


def _trained(net: nn.Module, count: int, schedule: Schedule, batches: Batches) -> float:
    """Train on the ``count`` samples that every call of ``batches`` yields anew."""
    start = time.monotonic()
    net.to(memory_format=torch.channels_last)
    optimizer, scheduler = _optimizer(net, schedule, steps=schedule.epochs * (count // schedule.batch))
    criterion = nn.CrossEntropyLoss(label_smoothing=schedule.label_smoothing)
    net.train()
    for epoch in range(schedule.epochs):
        losses = []
        for x, y in batches():
            optimizer.zero_grad()
            loss = criterion(net(x), y)
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.detach())  # not read here: a device would have to be waited for
        progress = f"epoch {epoch + 1}/{schedule.epochs}: loss {float(torch.stack(losses).mean()):.4f}"
        print(f"{progress}, {(time.monotonic() - start) / 60:.1f} min", flush=True)
    net.eval()
    return (time.monotonic() - start) / 60


def predict(net: nn.Module, inputs: Inputs) -> Labels:
    """Return the class that ``net`` predicts for each of the inputs [n, channels, h, w]."""
    with torch.no_grad():
        parts = [net(part).argmax(1) for part in torch.from_numpy(inputs).split(256)]
    predicted: Labels = torch.cat(parts).numpy()
    return predicted


def shift_and_flip(x: Inputs, rng: np.random.Generator, reach: int = 2) -> Inputs:
    """Shift images [b, channels, h, w] by up to ``reach`` pixels either way and mirror half of them."""
    x = random_shift(x, reach, reach, rng)
    mirrored = rng.random(len(x)) < 0.5
    x[mirrored] = x[mirrored, :, :, ::-1]
    return x


def random_shift(x: Inputs, rows: int, columns: int, rng: np.random.Generator) -> Inputs:
    """Shift each of x [b, channels, h, w] by up to ``rows`` and ``columns``, filling with zeros."""
    count, _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (rows, rows), (columns, columns)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), (2, 3))
    top = rng.integers(0, 2 * rows + 1, (count, 1, 1)).ravel()
    left = rng.integers(0, 2 * columns + 1, (count, 1, 1)).ravel()
    moved: Inputs = windows[np.arange(count), :, top, left]
    return np.ascontiguousarray(moved)


def shifted_windows(padded: Tensor, rows: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """What `shift_and_flip` makes of the images ``rows``, on the device where they lie.

    ``padded`` has images [n, channels, h, w] with ``reach`` zeros on every side; ``generator`` is of its device.
    """
    height, width = (n - 2 * reach for n in padded.shape[2:])

    def drawn(end: int) -> Tensor:
        return torch.randint(end, (len(rows), 1, 1), generator=generator, device=padded.device)

    top = drawn(2 * reach + 1) + torch.arange(height, device=padded.device)[:, None]
    left, steps = drawn(2 * reach + 1), torch.arange(width, device=padded.device)
    column = left + torch.where(drawn(2) == 1, width - 1 - steps, steps)
    return padded[rows[:, None, None], :, top, column].permute(0, 3, 1, 2)  # channels lie innermost


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


def _resident_batches(
    inputs: Tensor, labels: Tensor, size: int, generator: torch.Generator, reach: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the full batches of one epoch, shuffled and augmented where the data lie."""
    padded = nn.functional.pad(inputs, (reach,) * 4)
    order = torch.randperm(len(inputs), generator=generator, device=inputs.device)
    for rows in order.split(size):
        if len(rows) == size:
            x = shifted_windows(padded, rows, reach, generator)
            yield x.contiguous(memory_format=torch.channels_last), labels[rows]
