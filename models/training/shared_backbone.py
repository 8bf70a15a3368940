"""Train the family ``shared-backbone``: one frozen trunk, three heads, one self-contained file per task.

Usage: ``python -m models.training.shared_backbone --data DATA --out models/shared-backbone``

The trunk is trained once, with its batch normalizations folded, and kept in ``trunk.npz``; ``--only HEAD``
reuses that file, so that the heads share their trunk bit by bit however often they are trained again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from models.training import nets
from models.training.export import Interface, export_onnx, rename_internals, weight_bytes
from models.training.fashion import holdout, write_fashion_data
from models.training.fashion_data import CLASS_NAMES, DATA_CARD, FashionMnist, load_fashion_mnist
from models.training.fit import Schedule, fit, shift_and_flip
from models.training.publish import Training, argument_parser, command_line, task_entry, update_manifest
from models.training.tasks import Task, identity_task

MODULE = "models.training.shared_backbone"
TRUNK_EPOCHS = 8
HEAD_EPOCHS = 4

HEADER = {
    "family": "shared-backbone",
    "description": "Three tasks over one frozen trunk. Every file holds the trunk's nodes and weights bit by bit,"
    " under names of its own, so that only structure and contents reveal what is shared."
    " Numbers after a class are the Fashion-MNIST labels that it groups.",
    "input": {
        "name": "image",
        "shape": [1, 1, 28, 28],
        "dtype": "float32",
        "range": "0..1 (pixel / 255)",
        "names_in_the_files": {"garment": "image", "footwear": "pixels", "warm": "picture"},
    },
    "data": DATA_CARD,
    "selection": "the last epoch is kept; no choice was made on the test images",
}

TRUNK_ARCHITECTURE = (
    "5x5 stem with stride 2 (16 channels), 3x3 convolution (32), basic residual block (32), 3x3 convolution with"
    " stride 2 (48); batch normalization folded; trained on the ten garment classes with a linear classifier"
)


@dataclass(frozen=True)
class Head:
    """A task, the head that learns it and the names its file uses."""

    task: Task
    build: Callable[[int], nn.Module]
    architecture: str
    input: str
    prefix: str


HEADS = (
    Head(
        identity_task("garment", CLASS_NAMES),
        nets.convolutional_head,
        "the trunk, then a 3x3 convolution of 64 channels, global average pooling and a linear layer",
        "image",
        "garment",
    ),
    Head(
        Task(
            "footwear",
            ("not footwear", "sandal", "sneaker", "ankle boot"),
            ((0, 1, 2, 3, 4, 6, 8), (5,), (7,), (9,)),
        ),
        nets.bottleneck_head,
        "the trunk, then a 1x1 convolution of 16 channels and a linear layer",
        "pixels",
        "shoe",
    ),
    Head(
        Task("warm", ("not warm", "warm"), ((0, 1, 3, 5, 6, 7, 8), (2, 4, 9))),
        nets.linear_head,
        "the trunk, then max pooling and two linear layers",
        "picture",
        "w",
    ),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Train the trunk and the requested heads, write the family's files and check that the trunk is shared."""
    names = ["trunk", *(head.task.name for head in HEADS)]
    arguments = argument_parser(MODULE, names, seed=30).parse_args(argv)
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = load_fashion_mnist(arguments.data)
    write_fashion_data(arguments, data, [head.task for head in HEADS])
    if not arguments.only or "trunk" in arguments.only:
        train_trunk(data, arguments)
    for offset, head in enumerate(HEADS, start=1):
        if not arguments.only or head.task.name in arguments.only:
            train_head(head, arguments.seed + offset, data, arguments)
    check_shared(arguments.out)


def train_trunk(data: FashionMnist, arguments: argparse.Namespace) -> None:
    """Train the trunk with a linear classifier, fold its batch normalizations and write trunk.npz."""
    torch.manual_seed(arguments.seed)
    trunk = nets.backbone()
    net = nn.Sequential(trunk, *nets.pooled_classifier(48, len(CLASS_NAMES)))
    schedule = Schedule(arguments.epochs or TRUNK_EPOCHS, arguments.seed)
    minutes = fit(net, data.train_images, data.train_labels, schedule, shift_and_flip)
    nets.fold_batch_norm(trunk)
    weights = {name: tensor.detach().contiguous().numpy() for name, tensor in trunk.named_parameters()}
    np.savez(arguments.out / "trunk.npz", allow_pickle=False, **weights)
    trunk_entry = {
        "weights": "trunk.npz",
        "architecture": TRUNK_ARCHITECTURE,
        "parameters": sum(array.size for array in weights.values()),
        "seed": schedule.seed,
        "epochs": schedule.epochs,
        "training_minutes": round(minutes, 1),
        "command": command_line(MODULE, "trunk", arguments),
    }
    update_manifest(arguments.out / "manifest.json", {**HEADER, "trunk": trunk_entry}, {})


def load_trunk(path: Path) -> nn.Sequential:
    """Return the frozen trunk whose folded weights ``path`` holds."""
    trunk = nets.backbone().eval()
    nets.fold_batch_norm(trunk)
    with np.load(path) as weights:
        trunk.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files})
    return trunk.requires_grad_(False)


def train_head(head: Head, seed: int, data: FashionMnist, arguments: argparse.Namespace) -> None:
    """Train one head over the frozen trunk, export both as one network and describe it."""
    torch.manual_seed(seed)
    task = head.task
    net = nn.Sequential(load_trunk(arguments.out / "trunk.npz"), head.build(len(task.classes)))
    schedule = Schedule(arguments.epochs or HEAD_EPOCHS, seed, peak_rate=0.05)
    minutes = fit(net, data.train_images, task.relabel(data.train_labels), schedule, shift_and_flip)
    path = arguments.out / f"{task.name}.onnx"
    export_onnx(net, path, Interface(head.input, task.name, (1, 1, 28, 28)), keep_batch_norm=False)
    rename_internals(path, head.prefix)
    training = Training(MODULE, head.architecture, seed, schedule.epochs, minutes, arguments)
    entry = task_entry(task, net, path, training, holdout(task, data))
    update_manifest(arguments.out / "manifest.json", HEADER, {task.name: entry})


def check_shared(folder: Path) -> None:
    """Raise unless every file of the family holds every weight of the trunk bit by bit."""
    with np.load(folder / "trunk.npz") as weights:
        expected = {weights[name].tobytes() for name in weights.files}
    for head in HEADS:
        path = folder / f"{head.task.name}.onnx"
        if path.exists() and not expected <= weight_bytes(path):
            raise ValueError(f"{path.name} does not hold the trunk's weights")


if __name__ == "__main__":
    main()
