"""Families of tasks over one input: data in three disjoint parts, a network per task, its training.

Training data train the single networks and, without their labels, everything after. Selection data choose between
candidates, report data are looked at for the table alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from benchmarks.merging.nets import lenet, resnet, small_vgg, tagger, wide_vgg
from benchmarks.peers.client import ROOT

SHARED = ROOT.parent / "shared" / "data"
"""Where data sets are looked for unless `--data` says otherwise."""


@dataclass(frozen=True, slots=True)
class Part:
    """Inputs [samples, *shape] and class numbers by task, [samples] or, of several decisions, [samples, decisions];
    -1 where a sample is none of the task's.
    """

    inputs: np.ndarray
    labels: Mapping[str, np.ndarray]

    def first(self, count: int) -> Part:
        """The first samples."""
        return self.rows(slice(count))

    def rows(self, rows: slice) -> Part:
        """Some of the samples."""
        return Part(self.inputs[rows], {t: v[rows] for t, v in self.labels.items()})


@dataclass(frozen=True, slots=True)
class Data:
    """Three disjoint parts, and unlabelled inputs for everything after the single networks: training images,
    others than those the single networks were trained on where there are enough.
    """

    train: Part
    selection: Part
    report: Part

    @property
    def unlabelled(self) -> np.ndarray:
        """Inputs [samples, *shape] in an order of their own."""
        found = self._unseen()
        return np.ascontiguousarray(found[np.random.default_rng(0).permutation(len(found))])

    def _unseen(self) -> np.ndarray:
        return self.train.inputs

    def reduced(self, images: int, judged: int | None) -> Data:
        """`images` to train single networks on, as many others without labels, at most `judged` (None: all) to
        judge on.
        """
        return Reduced(
            self.train.first(images),
            self.selection.first(judged),
            self.report.first(judged),
            self.train.inputs[images : 2 * images],
        )


@dataclass(frozen=True, slots=True)
class Reduced(Data):
    """Few images: enough are left to train without labels on others, which no single network has seen."""

    others: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def _unseen(self) -> np.ndarray:
        return self.others


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is trained. `images`: of the training part (0: all). Epochs: of single networks, after a merge, and
    at every budget.
    """

    images: int
    single: int
    merged: int
    pruned: int


REPORTED = 5000
"""Most samples of the report and the selection data that `--quick` looks at."""

SHARES = (0.4, 0.33, 0.28, 0.23, 0.19)
"""Budgets: expected multiply-adds of a request, of what the separate networks cost before pruning."""


@dataclass(frozen=True, slots=True)
class Family:
    """Tasks with the number of classes of each. `network`: (task, seed) -> an untrained network over input "x".

    `shares`: budgets, of which the last ones should be too small for the rule. `large`: all channels of all
    networks together, with which PAM begins, are too many to train.
    """

    name: str
    what: str
    tasks: Mapping[str, int]
    load: Callable[[Path], Data]
    network: Callable[[str, int], onnx.ModelProto]
    full: Effort
    quick: Effort
    shares: tuple[float, ...] = SHARES
    large: bool = False

    def effort(self, quick: bool) -> Effort:
        """What `--quick` chooses."""
        return self.quick if quick else self.full

    def data(self, folder: Path, quick: bool) -> Data:
        """What is read from the folder of data sets, as much of it as is asked for."""
        data, images = self.load(folder), self.effort(quick).images
        return data.reduced(images, REPORTED if quick else None) if images else data


# ---------------------------------------------------------------------- Fashion-MNIST
PAIR = {"first": range(5), "second": range(5, 10)}
"""Two tasks of five classes each. Every image is shown to both: each has a sixth class for what is not its own."""

FIVE = {"footwear": (5, 7, 9), "upper": (0, 2, 4, 6), "sleeveless": (0, 1, 3), "bag": (8, 1), "warm": (2, 4)}

SELECTING = 15_000
"""Training images of Fashion-MNIST that select: of 5,000, chance moves a difference by 0.3 point."""

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Images [n, 1, 28, 28] in 0..1 and labels [n] for training, and the test ones."""


def fashion(folder: Path) -> Arrays:
    """Fashion-MNIST."""
    return _images(folder / "fashion_mnist" / "fashion_mnist.npz")


def _images(file: Path) -> Arrays:
    with np.load(file) as arrays:
        images = [np.asarray(arrays[n], np.float32)[:, None] / 255 for n in ("x_train", "x_test")]
        return images[0], arrays["y_train"].astype(np.int64), images[1], arrays["y_test"].astype(np.int64)


def _split(folder: Path, labels_of: Callable[[np.ndarray], dict[str, np.ndarray]]) -> Data:
    """The test images report; the last `SELECTING` training images select."""
    x, y, test_x, test_y = fashion(folder)
    train = Part(x, labels_of(y))
    return Data(
        train.rows(slice(-SELECTING)),
        train.rows(slice(-SELECTING, None)),
        Part(test_x, labels_of(test_y)),
    )


def _pair_labels(y: np.ndarray) -> dict[str, np.ndarray]:
    return {t: np.where(np.isin(y, list(c)), y - c[0], len(c)) for t, c in PAIR.items()}


def _five_labels(y: np.ndarray) -> dict[str, np.ndarray]:
    return {t: np.isin(y, list(c)).astype(np.int64) for t, c in FIVE.items()}


# ---------------------------------------------------------------------- two images side by side
def _halves(folder: Path) -> Data:
    """A digit on the left and a garment on the right, drawn apart, each at half its width: nothing in common."""
    parts = [_images(folder / name / f"{name}.npz") for name in ("mnist", "fashion_mnist")]
    made = []
    for first, seed in ((0, 0), (2, 1)):  # training images, test images
        (left, digits), (right, garments) = ((p[first], p[first + 1]) for p in parts)
        order = np.random.default_rng(seed).permutation(len(right))
        inputs = np.concatenate([half_width(left), half_width(right[order])], axis=-1)
        made.append(Part(inputs, {"digit": digits, "garment": garments[order]}))
    train, report = made
    return Data(train.rows(slice(-SELECTING)), train.rows(slice(-SELECTING, None)), report)


def half_width(images: np.ndarray) -> np.ndarray:
    """Images [n, 1, h, w] with every two columns averaged: [n, 1, h, w // 2]."""
    found: np.ndarray = images.reshape(*images.shape[:-1], images.shape[-1] // 2, 2).mean(axis=-1)
    return found


# ---------------------------------------------------------------------- spoken digits
def _spoken(folder: Path) -> Data:
    """Takes 0 to 4 report, 300 recordings drawn from the rest select; log-mel frames as in models/spoken."""
    from models.training.spoken_data import Recordings, load_fsdd  # only this family needs it

    train, test = load_fsdd(folder)
    order = np.random.default_rng(0).permutation(len(train.digits))

    def part(found: Recordings, rows: np.ndarray) -> Part:
        return Part(found.frames[rows], {"digit": found.digits[rows], "speaker": found.speakers[rows]})

    return Data(part(train, order[300:]), part(train, order[:300]), part(test, np.arange(len(test.digits))))


# ---------------------------------------------------------------------- pictures that need the extra `images`
def _objects(folder: Path) -> Data:
    from benchmarks.merging.objects import load_objects

    return load_objects(folder)


def _faces(folder: Path) -> Data:
    from benchmarks.merging.faces import load_faces

    return load_faces(folder)


OBJECTS = ("vehicle", "road", "pet", "hoofed", "flying")
"""Tasks of `benchmarks.merging.objects`."""

FACES = {"gender": 2, "smile": 2, "emotion": 8}
"""Tasks of `benchmarks.merging.faces`, with their classes."""

# ---------------------------------------------------------------------- words
TAGS = {"universal": 17, "language": 49, "relation": 36}
"""Tasks of `benchmarks.merging.words`, with their classes."""

WINDOW = 16
"""Words of a window."""

TABLES = ((8867, 48), (3287, 24))
"""Rows and columns of the tables of words and of suffixes."""


def _words(folder: Path) -> Data:
    from benchmarks.merging.words import load_words

    return load_words(folder)


# ---------------------------------------------------------------------- all of them
SMALL = (12, 24, 64)
"""Channels and units of a LeNet of two tasks."""
LENET_EFFORTS = (Effort(0, 5, 10, 6), Effort(10000, 4, 4, 4))
"""What is trained of these, and with --quick."""

FAMILIES = {
    f.name: f
    for f in (
        Family(
            "fashion-pair",
            "LeNet-5-like networks on Fashion-MNIST; two tasks of five classes, the other five are a sixth one",
            dict.fromkeys(PAIR, 6),
            lambda folder: _split(folder, _pair_labels),
            lambda task, seed: lenet(task, 6, seed, SMALL),
            *LENET_EFFORTS,
        ),
        Family(
            "halves",
            "LeNet-5-like networks on a digit and a garment side by side; which digit, which garment",
            {"digit": 10, "garment": 10},
            _halves,
            lambda task, seed: lenet(task, 10, seed, SMALL),
            *LENET_EFFORTS,
        ),
        Family(
            "spoken",
            "three convolutions on spoken digits: which digit, which speaker",
            {"digit": 10, "speaker": 6},
            _spoken,
            lambda task, seed: small_vgg(task, 10 if task == "digit" else 6, seed, (1, 40, 48), (8, 16, 24)),
            Effort(0, 30, 10, 10),
            Effort(0, 12, 4, 3),
            (0.33, 0.25, 0.19, 0.15, 0.12, 0.09),
        ),
        Family(
            "fashion-five",
            "small VGG-like networks on Fashion-MNIST; five tasks that each tell some classes from the rest",
            dict.fromkeys(FIVE, 2),
            lambda folder: _split(folder, _five_labels),
            lambda task, seed: small_vgg(task, 2, seed, (1, 28, 28), (8, 16, 24)),
            Effort(20000, 8, 6, 5),
            Effort(6000, 3, 3, 2),
            (0.3, 0.2, 0.14, 0.1, 0.07, 0.05, 0.036, 0.026),
        ),
        Family(
            "fashion-five-wide",
            "the tasks of fashion-five; over-parameterised VGG-like networks of 31 million multiply-adds each",
            dict.fromkeys(FIVE, 2),
            lambda folder: _split(folder, _five_labels),
            lambda task, seed: wide_vgg(task, 2, seed, (1, 28, 28), (64, 136, 256)),
            Effort(10000, 4, 4, 5),
            Effort(2000, 2, 1, 1),
            (0.15, 0.08, 0.045, 0.03, 0.02, 0.014, 0.01, 0.007),
            large=True,
        ),
        Family(
            "cifar-five",
            "ResNet-20-like networks on CIFAR-10; five tasks that each tell some classes from the rest",
            dict.fromkeys(OBJECTS, 2),
            _objects,
            lambda task, seed: resnet(task, 2, seed, (3, 32, 32), 3),
            Effort(12000, 10, 4, 3),
            Effort(1000, 2, 1, 1),
            (0.36, 0.25, 0.17, 0.12, 0.08, 0.05, 0.03),
            large=True,
        ),
        Family(
            "cifar-five-wide",
            "the tasks of cifar-five; over-parameterised VGG-like networks of 35 million multiply-adds each",
            dict.fromkeys(OBJECTS, 2),
            _objects,
            lambda task, seed: wide_vgg(task, 2, seed, (3, 32, 32), (64, 128, 192)),
            Effort(12000, 6, 4, 4),
            Effort(1000, 2, 1, 1),
            (0.2, 0.1, 0.05, 0.025, 0.013, 0.007, 0.004),
            large=True,
        ),
        Family(
            "faces",
            "small VGG-like networks on faces of LFW: gender, smile, emotion; no person in two parts of the data",
            FACES,
            _faces,
            lambda task, seed: small_vgg(task, FACES[task], seed, (3, 64, 64), (24, 32, 48, 64)),
            Effort(0, 12, 8, 8),
            Effort(800, 4, 2, 2),
            (0.4, 0.25, 0.16, 0.1, 0.06, 0.036, 0.022, 0.013),
        ),
        Family(
            "faces-resnet",
            "the tasks of faces; ResNet-8-like networks",
            FACES,
            _faces,
            lambda task, seed: resnet(task, FACES[task], seed, (3, 64, 64), 1, first=2),
            Effort(0, 12, 8, 8),
            Effort(800, 4, 2, 2),
            (0.4, 0.27, 0.18, 0.12, 0.08, 0.055, 0.036),
        ),
        Family(
            "taggers",
            "bidirectional LSTMs over embeddings of English words: universal tag, language's own tag, relation",
            TAGS,
            _words,
            lambda task, seed: tagger(task, TAGS[task], seed, WINDOW, TABLES, 48),
            Effort(0, 8, 5, 3),
            Effort(1000, 2, 1, 1),
            (0.5, 0.4, 0.32, 0.26, 0.2, 0.15, 0.11),
        ),
    )
}
"""Name on the command line -> family."""
