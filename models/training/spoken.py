"""Train the family ``spoken``: which digit is said, and by whom, from the same log-mel frames.

Usage: ``python -m models.training.spoken --data DATA --out models/spoken [--only digit] [--seed 20]``
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.training import nets
from models.training.export import Interface, export_onnx
from models.training.fit import Inputs, Schedule, fit, random_shift
from models.training.logmel import BANDS, FRAMES
from models.training.publish import (
    Holdout,
    Training,
    argument_parser,
    task_entry,
    update_manifest,
    write_data,
)
from models.training.spoken_data import DATA_CARD, SPEAKERS, Recordings, load_fsdd
from models.training.tasks import Labels, Task, identity_task

Masks = npt.NDArray[np.bool_]

MODULE = "models.training.spoken"
EPOCHS = 40
CALIBRATION_SAMPLES = 512
SHAPE = (1, 1, BANDS, FRAMES)

HEADER = {
    "family": "spoken",
    "description": "Two CNNs trained separately on the Free Spoken Digit Dataset: which digit is said, and by"
    " which of six speakers.",
    "input": {
        "name": "logmel",
        "shape": list(SHAPE),
        "dtype": "float32",
        "features": "40 mel bands x 48 frames: 8 kHz, peak scaled to 1, Hann window 256, hop 128, 60-4000 Hz,"
        " ln(power + 1e-7), zero mean and unit deviation per recording, centred, zero-padded,"
        " multiples of 1/64; see models/training/logmel.py",
    },
    "data": DATA_CARD,
    "augmentation": "shift by up to 6 frames, noise of deviation up to 0.2, one masked block of up to 6 bands"
    " and one of up to 6 frames",
    "selection": "the last epoch is kept; no choice was made on the test recordings",
}


@dataclass(frozen=True)
class Recipe:
    """A task with the widths of the network that learns it."""

    task: Task
    widths: tuple[int, ...]
    architecture: str
    keep_batch_norm: bool


RECIPES = (
    Recipe(
        identity_task("digit", tuple(map(str, range(10)))),
        (16, 32, 48, 64),
        "CNN, four 3x3 convolutions of 16, 32, 48 and 64 channels with max pooling between, global average"
        " pooling; batch normalization kept as nodes",
        True,
    ),
    Recipe(
        identity_task("speaker", SPEAKERS),
        (16, 24, 40, 64),
        "CNN, four 3x3 convolutions of 16, 24, 40 and 64 channels with max pooling between, global average"
        " pooling; batch normalization folded into the convolutions",
        False,
    ),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Train the requested tasks and write the family's files."""
    names = [recipe.task.name for recipe in RECIPES]
    arguments = argument_parser(MODULE, names, seed=20).parse_args(argv)
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    train_set, test_set = load_fsdd(arguments.data)
    write_spoken_data(arguments, train_set, test_set)
    for offset, recipe in enumerate(RECIPES):
        if not arguments.only or recipe.task.name in arguments.only:
            train(recipe, arguments.seed + offset, (train_set, test_set), arguments)


def train(recipe: Recipe, seed: int, data: tuple[Recordings, Recordings], arguments: argparse.Namespace) -> None:
    """Train, export and describe the network of one task on the training and test recordings."""
    torch.manual_seed(seed)
    task = recipe.task
    train_set, test_set = data
    net = nets.spectrogram_cnn(len(task.classes), recipe.widths)
    schedule = Schedule(arguments.epochs or EPOCHS, seed, batch=64, peak_rate=0.05)
    minutes = fit(net, train_set.frames, labels_of(task, train_set), schedule, distort)
    path = arguments.out / f"{task.name}.onnx"
    export_onnx(net, path, Interface("logmel", task.name, SHAPE), recipe.keep_batch_norm)
    test = Holdout(test_set.frames, labels_of(task, test_set), np.arange(len(test_set.frames)))
    training = Training(MODULE, recipe.architecture, seed, schedule.epochs, minutes, arguments)
    entry = task_entry(task, net, path, training, test)
    update_manifest(arguments.out / "manifest.json", HEADER, {task.name: entry})


def labels_of(task: Task, recordings: Recordings) -> Labels:
    """Return the labels [n] of one task."""
    return recordings.digits if task.name == "digit" else recordings.speakers


def distort(x: Inputs, rng: np.random.Generator) -> Inputs:
    """Shift frames x [b, 1, BANDS, FRAMES] in time, add noise and mask a block of bands and one of frames."""
    x = random_shift(x, 0, 6, rng)
    deviation = rng.uniform(0, 0.2, (len(x), 1, 1, 1))
    x = x + (deviation * rng.standard_normal(x.shape)).astype(np.float32)
    bands = _blocks(len(x), BANDS, 6, rng)[:, None, :, None]
    frames = _blocks(len(x), FRAMES, 6, rng)[:, None, None, :]
    return np.where(bands | frames, np.float32(0), x)


def write_spoken_data(arguments: argparse.Namespace, train_set: Recordings, test_set: Recordings) -> None:
    """Write the calibration, evaluation and sample arrays."""
    drawn = np.random.default_rng(0).choice(len(train_set.frames), CALIBRATION_SAMPLES, replace=False)
    evaluation: dict[str, npt.NDArray[Any]] = {
        "logmel": test_set.frames,
        "digit": test_set.digits,
        "speaker": test_set.speakers,
    }
    calibration = train_set.frames[np.sort(drawn)]
    write_data(arguments.out, "logmel", calibration, evaluation, test_set.frames[:1])


def _blocks(count: int, length: int, longest: int, rng: np.random.Generator) -> Masks:
    """Return masks [count, length], each true in one random block of up to ``longest``."""
    width = rng.integers(0, longest + 1, (count, 1))
    start = rng.integers(0, length - width + 1)
    position = np.arange(length)[None]
    return (position >= start) & (position < start + width)


if __name__ == "__main__":
    main()
