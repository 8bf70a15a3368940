"""CIFAR-10 images for studies, and networks trained on them: read where they lie, never kept with the project.

The archive holds `train/CLASS/NNNN.jpg` and `test/CLASS/NNNN.jpg`, 32 x 32 JPEG copies of the images (Krizhevsky,
2009), so accuracies are to be compared with each other and not with those on the lossless set. Training data are
the first 4,500 images of every class, selection data the last 500, report data the test images. Needs the extras
`train` and `images`.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.merging.families import Data, Part
from models.training.export import Interface, export_onnx
from models.training.fit import Schedule, fit, shift_and_flip

TASK = "object"
CLASSES = 10
INTERFACE = Interface("image", TASK, (1, 3, 32, 32))
ARCHIVE = Path("cifar10_jpg", "cifar10_jpg.zip")
SELECTION = 500
"""The last training images of every class, which are not trained on."""
MIDDLE, SPREAD = 0.5, 0.25
"""What is taken from and divided out of brightness between 0 and 1."""


def normalised(pixels: np.ndarray) -> np.ndarray:
    """uint8 [n, 3, 32, 32] as the networks read it: float32, about zero mean and unit variance."""
    return ((pixels.astype(np.float32) / 255.0 - MIDDLE) / SPREAD).astype(np.float32)


def load_cifar(data: Path, cache: Path | None = None, selection: int = SELECTION) -> Data:
    """Images [n, 3, 32, 32] as `normalised` gives them, in a seeded order, and class numbers by the task's name.

    `data`: the folder with `cifar10_jpg/`; FileNotFoundError where it is not there. `cache`: a folder outside the
    project where the decoded pixels are kept. `selection`: images of every class that are not trained on.
    """
    pixels = _pixels(data / ARCHIVE, cache)
    train = pixels["train"]
    return Data(
        train=_shuffled(train[:, :-selection]),
        selection=_shuffled(train[:, -selection:]),
        report=_shuffled(pixels["test"]),
    )


def _shuffled(images: np.ndarray) -> Part:
    """The images of every class, uint8 [classes, n, 3, 32, 32], as one part."""
    classes = np.repeat(np.arange(len(images)), images.shape[1])
    order = np.random.default_rng(0).permutation(len(classes))
    return Part(normalised(images.reshape(-1, *images.shape[2:])[order]), {TASK: classes[order].astype(np.int64)})


def _pixels(archive: Path, cache: Path | None) -> dict[str, np.ndarray]:
    """uint8 [classes, images, 3, 32, 32] of `train` and `test`."""
    kept = None if cache is None else cache / "cifar10.npz"
    if kept is not None and kept.exists():
        with np.load(kept) as held:
            return {part: held[part] for part in held.files}
    with zipfile.ZipFile(archive) as held_images:
        found = {part: _decoded(held_images, part) for part in ("train", "test")}
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(kept, **found)
    return found


def _decoded(archive: zipfile.ZipFile, part: str) -> np.ndarray:
    from PIL import Image

    names = sorted(n for n in archive.namelist() if n.startswith(f"{part}/") and n.endswith(".jpg"))
    images = [np.asarray(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n in names]
    return np.stack(images).reshape(CLASSES, -1, *INTERFACE.shape[2:], 3).transpose(0, 1, 4, 2, 3)


# ---------------------------------------------------------------------- networks
def vgg_like() -> nn.Module:
    """Seven 3x3 convolutions and a linear layer, 25.6 million multiply-adds: [n, 3, 32, 32] to [n, 10]."""
    return nn.Sequential(
        *_convolution(3, 32),
        nn.MaxPool2d(2),
        *_convolution(32, 48),
        *_convolution(48, 48),
        nn.MaxPool2d(2),
        *_convolution(48, 96),
        *_convolution(96, 96),
        nn.MaxPool2d(2),
        *_convolution(96, 192),
        *_convolution(192, 192),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(192, CLASSES),
    )


def _convolution(channels: int, wanted: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, wanted, 3, padding=1, bias=False), nn.BatchNorm2d(wanted), nn.ReLU()


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {"vgg-cifar10": vgg_like}


@dataclass(frozen=True, slots=True)
class Effort:
    """How a dense network is trained."""

    epochs: int
    seed: int
    batch: int = 128
    peak_rate: float = 0.2


class Mixed(nn.Module):
    """A network whose products are of bfloat16 numbers, which takes half the time on processors that have them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            made: Tensor = self.net(x)
        return made.float()


def trained(network: str, part: Part, effort: Effort, kept: Path) -> Path:
    """The dense network as ONNX, trained once and then read from the folder `kept`; normalisations are folded."""
    file = kept / f"{network}-{effort.epochs}-{effort.seed}-{len(part.inputs)}.onnx"
    if file.exists():
        return file
    torch.manual_seed(effort.seed)
    net = NETWORKS[network]()
    schedule = Schedule(effort.epochs, effort.seed, effort.batch, effort.peak_rate)
    fit(Mixed(net), part.inputs, part.labels[TASK], schedule, shift_and_flip)
    kept.mkdir(parents=True, exist_ok=True)
    export_onnx(net, file, INTERFACE, keep_batch_norm=False)
    return file


def accuracy(scores: np.ndarray, part: Part) -> float:
    """Share of the samples whose largest score [samples, CLASSES] is that of their class."""
    return float(np.mean(scores.reshape(len(part.inputs), -1).argmax(1) == part.labels[TASK]))
