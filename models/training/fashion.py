"""Train the family ``fashion``: three separately trained CNNs over Fashion-MNIST images.

Usage: ``python -m models.training.fashion --data DATA --out models/fashion [--only garment] [--seed 10]``
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.training import nets
from models.training.export import Interface, export_onnx
from models.training.fashion_data import (
    CLASS_NAMES,
    DATA_CARD,
    FashionMnist,
    balanced_indices,
    load_fashion_mnist,
)
from models.training.fit import Schedule, fit, shift_and_flip
from models.training.publish import (
    Holdout,
    Training,
    argument_parser,
    task_entry,
    update_manifest,
    write_data,
)
from models.training.tasks import Task, identity_task

MODULE = "models.training.fashion"
EPOCHS = 15
EVALUATION_PER_CLASS = 200
CALIBRATION_SAMPLES = 512

HEADER = {
    "family": "fashion",
    "description": "Three CNNs trained separately on Fashion-MNIST: what the garment is, of which kind it is,"
    " and for which season. Numbers after a class are the Fashion-MNIST labels that it groups.",
    "input": {"name": "image", "shape": [1, 1, 28, 28], "dtype": "float32", "range": "0..1 (pixel / 255)"},
    "data": DATA_CARD,
    "selection": "the last epoch is kept; no choice was made on the test images",
}


@dataclass(frozen=True)
class Recipe:
    """A task with the network that learns it."""

    task: Task
    build: Callable[[int], nn.Module]
    architecture: str
    keep_batch_norm: bool


RECIPES = (
    Recipe(
        identity_task("garment", CLASS_NAMES),
        nets.residual_cnn,
        "residual CNN, 3x3 stem and three basic blocks of 16, 32 and 64 channels, global average pooling;"
        " batch normalization kept as nodes",
        True,
    ),
    Recipe(
        Task(
            "kind",
            ("top", "trousers", "knitwear or coat", "dress", "shoes", "bag"),
            ((0, 6), (1,), (2, 4), (3,), (5, 7, 9), (8,)),
        ),
        nets.separable_cnn,
        "depthwise-separable CNN, 3x3 stem and five separable blocks of 32 to 128 channels,"
        " global average pooling; batch normalization kept as nodes",
        True,
    ),
    Recipe(
        Task("season", ("summer", "winter", "all year"), ((0, 3, 5), (2, 4, 9), (1, 6, 7, 8))),
        nets.plain_cnn,
        "VGG-like CNN, three stages of two 3x3 convolutions with 16, 32 and 64 channels and max pooling,"
        " two linear layers; batch normalization folded into the convolutions",
        False,
    ),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Train the requested tasks and write the family's files."""
    names = [recipe.task.name for recipe in RECIPES]
    arguments = argument_parser(MODULE, names, seed=10).parse_args(argv)
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = load_fashion_mnist(arguments.data)
    write_fashion_data(arguments, data, [recipe.task for recipe in RECIPES])
    for offset, recipe in enumerate(RECIPES):
        if not arguments.only or recipe.task.name in arguments.only:
            train(recipe, arguments.seed + offset, data, arguments)


def train(recipe: Recipe, seed: int, data: FashionMnist, arguments: argparse.Namespace) -> None:
    """Train, export and describe the network of one task."""
    torch.manual_seed(seed)
    task = recipe.task
    net = recipe.build(len(task.classes))
    schedule = Schedule(arguments.epochs or EPOCHS, seed)
    minutes = fit(net, data.train_images, task.relabel(data.train_labels), schedule, shift_and_flip)
    path = arguments.out / f"{task.name}.onnx"
    export_onnx(net, path, Interface("image", task.name, (1, 1, 28, 28)), recipe.keep_batch_norm)
    training = Training(MODULE, recipe.architecture, seed, schedule.epochs, minutes, arguments)
    entry = task_entry(task, net, path, training, holdout(task, data))
    update_manifest(arguments.out / "manifest.json", HEADER, {task.name: entry})


def holdout(task: Task, data: FashionMnist) -> Holdout:
    """Return the test images with the labels of one task."""
    chosen = balanced_indices(data.test_labels, EVALUATION_PER_CLASS)
    return Holdout(data.test_images, task.relabel(data.test_labels), chosen)


def write_fashion_data(arguments: argparse.Namespace, data: FashionMnist, tasks: Sequence[Task]) -> None:
    """Write the calibration, evaluation and sample arrays of a family over Fashion-MNIST."""
    drawn = np.random.default_rng(0).choice(len(data.train_images), CALIBRATION_SAMPLES, replace=False)
    chosen = balanced_indices(data.test_labels, EVALUATION_PER_CLASS)
    labels = {task.name: task.relabel(data.test_labels[chosen]) for task in tasks}
    evaluation: dict[str, npt.NDArray[Any]] = {"image": data.test_images[chosen], **labels}
    write_data(arguments.out, "image", data.train_images[np.sort(drawn)], evaluation, data.test_images[:1])


if __name__ == "__main__":
    main()
