"""Faces of Labeled Faces in the Wild (LFW): gender, smile, emotion; people split into three disjoint parts."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.merging.families import FACES, Data, Part

UNLABELLED = 255
"""Label of a face that nobody has labelled for a task."""

TRAINED, CHOSEN, REPORTED = 256, 2500, 3000
"""Most faces that networks are fitted on, that choose a budget, and that report."""

SPLIT = (0.25, 0.6)
"""Shares of the people at which fitting ends and choosing ends, where networks are only fitted."""

TRAINING = (0.45, 0.75)
"""The same where networks are trained."""


@dataclass(frozen=True, slots=True)
class Faces:
    """RGB images float32 [faces, 64, 64, 3] in 0..255 and class numbers [faces] by task, some `UNLABELLED`."""

    images: np.ndarray
    labels: dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class People:
    """Faces to fit on, of which no label is used, to choose by, and to report on: no person is in two of them."""

    unlabelled: np.ndarray
    selection: Faces
    report: Faces


def load_people(folder: Path, seed: int) -> People:
    """Read `lfw/lfw_labels.npz` and the images beside it; ModuleNotFoundError without pillow (extra `images`)."""
    with np.load(folder / "lfw" / "lfw_labels.npz", allow_pickle=False) as found:
        names, identity = found["name"], found["identity"]
        labels = {t: found[t] for t in ("gender", "smile")}
    train, selection, report = (
        rows[:most] for rows, most in zip(split(identity, seed), (TRAINED, CHOSEN, REPORTED), strict=True)
    )
    archive = folder / "lfw" / "lfw_wide64_rgb_q92.zip"

    def faces(rows: np.ndarray) -> Faces:
        return Faces(_images(archive, names[rows]), {t: a[rows] for t, a in labels.items()})

    return People(_images(archive, names[train]), faces(selection), faces(report))


def load_faces(folder: Path) -> Data:
    """All faces [n, 3, 64, 64], about zero mean and unit variance, in three parts to train networks with.

    -1 where nobody has labelled a face for a task. ModuleNotFoundError without pillow (extra `images`).
    """
    with np.load(folder / "lfw" / "lfw_labels.npz", allow_pickle=False) as found:
        names, identity = found["name"], found["identity"]
        labels = {t: np.where(found[t] == UNLABELLED, -1, found[t].astype(np.int64)) for t in FACES}
    images = _images(folder / "lfw" / "lfw_wide64_rgb_q92.zip", names).transpose(0, 3, 1, 2)
    images = np.ascontiguousarray((images - 127.5) / 63.75)
    parts = (Part(images[rows], {t: a[rows] for t, a in labels.items()}) for rows in split(identity, 0, TRAINING))
    return Data(*parts)


def split(
    identity: np.ndarray, seed: int, ends_at: tuple[float, float] = SPLIT
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the three parts, in an order of their own; all rows of one person are in the same part."""
    rng = np.random.default_rng(seed)
    people = rng.permutation(np.unique(identity))
    ends = [round(share * len(people)) for share in ends_at]
    order = rng.permutation(len(identity))
    train, selection, report = (order[np.isin(identity[order], part)] for part in np.split(people, ends))
    return train, selection, report


def _images(archive: Path, names: np.ndarray) -> np.ndarray:
    from PIL import Image  # an extra, and only for these files

    with zipfile.ZipFile(archive) as held:
        images = [np.asarray(Image.open(io.BytesIO(held.read(str(n)))).convert("RGB")) for n in names]
    return np.stack(images).astype(np.float32)
