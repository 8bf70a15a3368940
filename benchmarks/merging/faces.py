"""Faces of Labeled Faces in the Wild (LFW) with gender and smile, people split into three disjoint parts."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

UNLABELLED = 255
"""Label of a face that nobody has labelled for a task."""

TRAINED, CHOSEN, REPORTED = 256, 2500, 3000
"""Most faces that networks are fitted on, that choose a budget, and that report."""

SPLIT = (0.25, 0.6)
"""Shares of the people at which fitting ends and choosing ends."""


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


def split(identity: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the three parts, in an order of their own; all rows of one person are in the same part."""
    rng = np.random.default_rng(seed)
    people = rng.permutation(np.unique(identity))
    ends = [round(share * len(people)) for share in SPLIT]
    order = rng.permutation(len(identity))
    train, selection, report = (order[np.isin(identity[order], part)] for part in np.split(people, ends))
    return train, selection, report


def _images(archive: Path, names: np.ndarray) -> np.ndarray:
    from PIL import Image  # an extra, and only for these files

    with zipfile.ZipFile(archive) as held:
        images = [np.asarray(Image.open(io.BytesIO(held.read(str(n)))).convert("RGB")) for n in names]
    return np.stack(images).astype(np.float32)
