"""Faces of Labeled Faces in the Wild (LFW): gender, smile, emotion; people split into three disjoint parts."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from benchmarks.merging.families import FACES, Data, Part
from benchmarks.merging.people import UNLABELLED, People, Seen, split

TRAINED, CHOSEN, REPORTED = 256, 2500, 3000
"""Most faces that networks are fitted on, that choose a budget, and that report."""

TRAINING = (0.45, 0.75)
"""Shares of the people at which training ends and choosing ends."""


def load_people(folder: Path, seed: int) -> People:
    """RGB faces [n, 64, 64, 3] in 0..255 by `lfw/lfw_labels.npz`; ModuleNotFoundError without pillow (extra
    `images`).
    """
    with np.load(folder / "lfw" / "lfw_labels.npz", allow_pickle=False) as found:
        names, identity = found["name"], found["identity"]
        labels = {t: found[t] for t in ("gender", "smile")}
    train, selection, report = (
        rows[:most] for rows, most in zip(split(identity, seed), (TRAINED, CHOSEN, REPORTED), strict=True)
    )
    archive = folder / "lfw" / "lfw_wide64_rgb_q92.zip"

    def faces(rows: np.ndarray) -> Seen:
        return Seen(_images(archive, names[rows]), {t: a[rows] for t, a in labels.items()})

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


def _images(archive: Path, names: np.ndarray) -> np.ndarray:
    from PIL import Image  # an extra, and only for these files

    with zipfile.ZipFile(archive) as held:
        images = [np.asarray(Image.open(io.BytesIO(held.read(str(n)))).convert("RGB")) for n in names]
    return np.stack(images).astype(np.float32)
