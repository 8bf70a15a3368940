"""CIFAR-10 images for studies, and networks trained on them: read where they lie, never kept with the project.

The archive holds `train/CLASS/NNNN.jpg` and `test/CLASS/NNNN.jpg`, 32 x 32 JPEG copies of the images (Krizhevsky,
2009), so accuracies are to be compared with each other and not with those on the lossless set. Training data are
the first 4,500 images of every class, selection data the last 500, report data the test images. Needs the extras
`train` and `images`.
"""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.cifar_networks import CLASSES, NETWORKS
from benchmarks.merging.families import Data, Part
from models.training.export import Interface, export_onnx
from models.training.fit import Schedule, fit, fit_resident, shift_and_flip

TASK = "object"
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
        part = kept.with_suffix(f".{os.getpid()}.npz")  # processes that train beside each other share the folder
        np.savez(part, **found)  # type: ignore[arg-type]
        part.replace(kept)
    return found


def _decoded(archive: zipfile.ZipFile, part: str) -> np.ndarray:
    from PIL import Image

    names = sorted(n for n in archive.namelist() if n.startswith(f"{part}/") and n.endswith(".jpg"))
    images = [np.asarray(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n in names]
    return np.stack(images).reshape(CLASSES, -1, *INTERFACE.shape[2:], 3).transpose(0, 1, 4, 2, 3)


# ---------------------------------------------------------------------- dense networks
@dataclass(frozen=True, slots=True)
class Effort:
    """How a dense network is trained."""

    epochs: int
    seed: int
    batch: int = 128
    peak_rate: float = 0.2
    reach: int = 2
    """Pixels that images are shifted by at most."""


class Mixed(nn.Module):
    """A network whose products are of bfloat16 numbers, which takes half the time on processors that have them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            made: Tensor = self.net(x)
        return made.float()


def trained(network: str, part: Part, effort: Effort, kept: Path) -> Path:
    """The dense network as ONNX, trained once and then read from the folder `kept`; normalisations are folded.

    It is trained on a GPU where torch sees one.
    """
    file = kept / f"{network}-{_told(effort)}-{len(part.inputs)}.onnx"
    if file.exists():
        return file
    torch.manual_seed(effort.seed)
    net = NETWORKS[network]()
    schedule = Schedule(effort.epochs, effort.seed, effort.batch, effort.peak_rate)
    if torch.cuda.is_available():
        fit_resident(Mixed(net), part.inputs, part.labels[TASK], schedule, torch.device("cuda"), effort.reach)
    else:
        fit(Mixed(net), part.inputs, part.labels[TASK], schedule, partial(shift_and_flip, reach=effort.reach))
    kept.mkdir(parents=True, exist_ok=True)
    export_onnx(net.cpu(), file, INTERFACE, keep_batch_norm=False)
    return file


def _told(effort: Effort) -> str:
    """What a file is told by: epochs and seed, and by name what is not as in an `Effort` of these alone."""
    usual = asdict(Effort(effort.epochs, effort.seed))
    others = [f"{name}{value:g}" for name, value in asdict(effort).items() if value != usual[name]]
    return "-".join([str(effort.epochs), str(effort.seed), *others])


def accuracy(scores: np.ndarray, part: Part) -> float:
    """Share of the samples whose largest score [samples, CLASSES] is that of their class."""
    return float(np.mean(scores.reshape(len(part.inputs), -1).argmax(1) == part.labels[TASK]))
