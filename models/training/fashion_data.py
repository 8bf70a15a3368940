"""Fashion-MNIST: loading, its class names and the evaluation subset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.training.tasks import Labels

Images = npt.NDArray[np.float32]

CLASS_NAMES = (
    "t-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

DATA_CARD = {
    "name": "Fashion-MNIST",
    "source": "https://github.com/zalandoresearch/fashion-mnist",
    "licence": "MIT, see LICENSE-DATA",
    "train": "the 60,000 training images",
    "test": "the 10,000 test images",
}


@dataclass(frozen=True)
class FashionMnist:
    """Images [n, 1, 28, 28] in 0..1 and source labels [n] of both splits."""

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels


def load_fashion_mnist(data: Path) -> FashionMnist:
    """Load ``fashion_mnist/fashion_mnist.npz`` below the folder ``data``."""
    with np.load(data / "fashion_mnist" / "fashion_mnist.npz") as arrays:
        return FashionMnist(
            _to_unit_range(arrays["x_train"]),
            arrays["y_train"].astype(np.int64),
            _to_unit_range(arrays["x_test"]),
            arrays["y_test"].astype(np.int64),
        )


def balanced_indices(labels: Labels, per_class: int) -> npt.NDArray[np.intp]:
    """Return the sorted indices of the first ``per_class`` samples of each label [n]."""
    picks = [np.flatnonzero(labels == label)[:per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(picks))


def _to_unit_range(pixels: npt.NDArray[np.uint8]) -> Images:
    """Turn bytes [n, 28, 28] into float32 [n, 1, 28, 28] in 0..1."""
    return (pixels.astype(np.float32) / np.float32(255))[:, None]
