"""Networks that are trained, then pruned while they are trained on: what the studies of high ratios share.

Two networks of the kind that DARB (Ren et al., AAAI 2020, arXiv 1911.08020) was made for: an LSTM that tags words
(Universal Dependencies, English Web Treebank) and a perceptron with wide hidden layers on MNIST; and a network of
convolutions on the same images. Every pattern and density starts from the same dense network and gets the same
epochs, rate and rounds. What is finished can be kept: by what decides it, so that an interrupted study goes on.
Needs the extra `train`.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from compiler.calibration.moments import content_key
from compiler.workers.store import Store
from models.training.conllu import Tagged, load_treebank
from models.training.masked import PATTERNS, Masks, Pattern, Stored, Units, channels, narrow, steps_to

BATCH = 128
ALIKE = 8
"""Batches among which sentences are ordered by length."""
CHANNELS, NARROW_BLOCKS, NARROW_DARB = "channels", "channels+block16x1", "channels+darb"
OF_UNITS: Mapping[str, Callable[[Sequence[Units]], Pattern]] = {
    CHANNELS: channels,
    NARROW_BLOCKS: partial(narrow, inner=PATTERNS["block16x1"]),
    NARROW_DARB: partial(narrow, inner=PATTERNS["darb"]),
}
"""Patterns that take whole hidden units away, for good."""
STAYING = (NARROW_BLOCKS,)
"""Patterns in which a single weight that has left does not come back either: their record was made so."""
NAMES = (*PATTERNS, *OF_UNITS)
METHOD = "2"
"""Number of how networks are trained here; what another one made is not used."""
EMBEDDED = 64, 32
"""Entries of a word's and of a suffix's vector."""
HIDDEN = 128
"""Hidden units of the tagger, in each direction."""
TAGGED = "universal"
"""Which tags of the treebank it tells."""

Batch = tuple[Tensor, ...]
"""Inputs, then labels with -1 where there is none."""


class Tagger(nn.Module):
    """Word and suffix embeddings, one bidirectional LSTM, a linear layer: [b, n] twice to [b, n, tags]."""

    def __init__(self, words: int, suffixes: int, tags: int) -> None:
        super().__init__()
        self.word = nn.Embedding(words, EMBEDDED[0], padding_idx=0)
        self.suffix = nn.Embedding(suffixes, EMBEDDED[1], padding_idx=0)
        self.dropout = nn.Dropout(0.3)
        self.lstm = nn.LSTM(sum(EMBEDDED), HIDDEN, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * HIDDEN, tags)

    def forward(self, words: Tensor, suffixes: Tensor) -> Tensor:
        """Scores of every tag for every token."""
        x = self.dropout(torch.cat([self.word(words), self.suffix(suffixes)], dim=-1))
        scores: Tensor = self.out(self.dropout(self.lstm(x)[0]))
        return scores

    def matrices(self) -> list[nn.Parameter]:
        """What is pruned: input and recurrent weights of both directions, and the output layer."""
        return [p for n, p in [*self.lstm.named_parameters(), *self.out.named_parameters()] if p.dim() == 2]

    def units(self) -> list[Units]:
        """Hidden units, each with its four gates and its readers, the same one in both directions as ONNX has it.

        Entries of the embeddings stay: their weights are small where the entries are large, so that by magnitude
        the wrong ones would leave.
        """
        gates = [(m, 0, g * HIDDEN) for m in range(4) for g in range(4)]
        readers = [(1, 1, 0), (3, 1, 0), (4, 1, 0), (4, 1, HIDDEN)]
        return [Units(HIDDEN, (*gates, *readers))]


class Wide(nn.Sequential):
    """Two wide hidden layers: [b, 784] to [b, 10]."""

    shape: ClassVar = (1, 784)

    def __init__(self, hidden: Sequence[int] = (512, 256)) -> None:
        self.hidden = first, second = tuple(hidden)
        super().__init__(nn.Linear(784, first), nn.ReLU(), nn.Dropout(0.2), nn.Linear(first, second), nn.ReLU())
        self.append(nn.Linear(second, 10))

    def matrices(self) -> list[nn.Parameter]:
        """What is pruned: all three layers."""
        return [p for p in self.parameters() if p.dim() == 2]

    def units(self) -> list[Units]:
        """Hidden units of both layers; inputs and outputs are the network's interface and stay."""
        return [Units(width, ((i, 0, 0), (i + 1, 1, 0))) for i, width in enumerate(self.hidden)]


KERNEL = 3
"""Extent of the convolutions."""


class Convolutional(nn.Sequential):
    """Three convolutions, each halved by a pooling, and one over what is left: [b, 1, 28, 28] to [b, 10]."""

    shape: ClassVar = (1, 1, 28, 28)

    def __init__(self, hidden: Sequence[int] = (32, 64, 128)) -> None:
        self.hidden = first, second, third = tuple(hidden)
        super().__init__(_convolution(1, first), nn.ReLU(), nn.MaxPool2d(2))
        self.extend([_convolution(first, second), nn.ReLU(), nn.MaxPool2d(2)])
        self.extend([_convolution(second, third), nn.ReLU(), nn.MaxPool2d(2)])
        self.extend([nn.Conv2d(third, 10, KERNEL), nn.Flatten()])

    def matrices(self) -> list[nn.Parameter]:
        """What is pruned: all four layers."""
        return [p for p in self.parameters() if p.dim() > 1]

    def units(self) -> list[Units]:
        """Channels of the three convolutions, each with its readers: the next kernel's inputs at every point."""
        layers = self.matrices()
        found = []
        for i, (own, reader) in enumerate(pairwise(layers)):
            points = reader[0, 0].numel()
            found.append(Units(len(own), ((i, 0, 0), *((i + 1, 1, p * len(own)) for p in range(points)))))
        return found


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, KERNEL, padding=KERNEL // 2)


@dataclass(frozen=True)
class Case:
    """A network, its data, and how long it is trained: densely, per round, and in the last round. `make` may be
    given other numbers of hidden units or channels.
    """

    name: str
    make: Callable[..., Any]
    train: Batch
    dev: Batch
    test: Batch
    rate: float
    epochs: tuple[int, int, int]
    left_out: str

    @cached_property
    def identity(self) -> str:
        """Digest of all that a training depends on but the seed and what is pruned."""
        arrays = [a.numpy() for part in (self.train, self.dev, self.test) for a in part]
        recipe = [METHOD, torch.__version__, self.name, self.rate, self.epochs, str(self.make())]
        return content_key(json.dumps(recipe), *arrays)


@dataclass(frozen=True)
class Trained:
    """Values after a training, weights that are masked being zero, and the accuracies that they have."""

    state: Mapping[str, Tensor]
    dev: float
    test: float
    stored: Stored
    minutes: float


def tagger(data: Path, quick: bool) -> Case:
    """The LSTM tagger."""
    bank = load_treebank(data / "ud_ewt")

    def part(tagged: Tagged, most: int | None = None) -> Batch:
        return tuple(torch.from_numpy(a[:most]) for a in (tagged.words, tagged.suffixes, tagged.tags[TAGGED]))

    return Case(
        "lstm-tagger",
        lambda: Tagger(bank.words, bank.suffixes, len(bank.tags[TAGGED])),
        part(bank.train, 1024 if quick else None),
        part(bank.dev),
        part(bank.test),
        3e-3,
        (1, 1, 1) if quick else (12, 1, 4),
        f"embedding tables of {bank.words} words and {bank.suffixes} suffixes",
    )


def mlp(data: Path, quick: bool) -> Case:
    """A wide perceptron on MNIST."""
    parts = _digits(data, quick, Wide.shape[1:])
    return Case("mlp-mnist", Wide, *parts, 1e-3, (1, 1, 1) if quick else (12, 2, 12), "nothing")


def cnn(data: Path, quick: bool) -> Case:
    """A convolutional network on MNIST."""
    parts = _digits(data, quick, Convolutional.shape[1:])
    return Case("cnn-mnist", Convolutional, *parts, 1e-3, (1, 1, 1) if quick else (6, 1, 6), "nothing")


def _digits(data: Path, quick: bool, shape: tuple[int, ...]) -> tuple[Batch, Batch, Batch]:
    """Images of MNIST [n, *shape]; the last 5,000 training images are the development part."""
    with np.load(data / "mnist" / "mnist.npz") as held:
        x, y = (np.concatenate([held[f"{k}_train"], held[f"{k}_test"]]) for k in ("x", "y"))
    x = torch.from_numpy((x.reshape(-1, *shape) / 255.0).astype(np.float32))
    y = torch.from_numpy(y.astype(np.int64))
    train, dev, test = slice(0, 2000 if quick else 55000), slice(55000, 60000), slice(60000, None)
    return (x[train], y[train]), (x[dev], y[dev]), (x[test], y[test])


CASES = {"mlp-mnist": mlp, "cnn-mnist": cnn, "lstm-tagger": tagger}


# ---------------------------------------------------------------------- training
def batches(data: Batch, draw: np.random.Generator) -> Iterator[Batch]:
    """The full batches of a shuffled epoch; sentences of a batch are of like length and cut behind the longest."""
    order = draw.permutation(len(data[0]))
    lengths = (data[-1] >= 0).sum(-1).numpy() if data[-1].dim() > 1 else None
    if lengths is not None:
        wide = [order[i : i + ALIKE * BATCH] for i in range(0, len(order), ALIKE * BATCH)]
        order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in wide])
    starts = np.arange(0, len(order) - BATCH + 1, BATCH)
    for start in draw.permutation(starts):
        chosen = order[start : start + BATCH]
        part = tuple(a[torch.from_numpy(chosen)] for a in data)
        yield part if lengths is None else tuple(a[:, : lengths[chosen].max()] for a in part)


def train(net: Any, case: Case, epochs: int, seed: int, masks: Masks, rate: float) -> None:
    """Adam with a rate that falls linearly to zero; weights that masks hide take part in no output."""
    optimizer = torch.optim.Adam(net.parameters(), rate)
    total = epochs * (len(case.train[0]) // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total)
    loss = nn.CrossEntropyLoss(ignore_index=-1)
    draw = np.random.default_rng(seed)
    net.train()
    for _ in range(epochs):
        for *inputs, labels in batches(case.train, draw):
            optimizer.zero_grad()
            with masks.applied():
                loss(net(*inputs).flatten(0, -2), labels.flatten()).backward()
            optimizer.step()
            schedule.step()
    net.eval()


def accuracy(net: Any, data: Batch, masks: Masks) -> float:
    """Share of labels that are the largest output."""
    right = counted = 0
    with torch.no_grad(), masks.applied():
        for start in range(0, len(data[0]), 256):
            *inputs, labels = (a[start : start + 256] for a in data)
            found = net(*inputs).argmax(-1)
            right += int(((found == labels) & (labels >= 0)).sum())
            counted += int((labels >= 0).sum())
    return right / counted


def thinned(net: Any, case: Case, pattern: str, density: float, seed: int) -> Masks:
    """Fine-tune `net` down to `density`, round by round."""
    masks = Masks(net.matrices(), pattern_of(net, pattern), returning=pattern not in STAYING)

    def sparser(step: float) -> tuple[Any, Masks]:
        masks.shrink(step)
        return net, masks

    return in_rounds(case, density, seed, sparser)[1]


def in_rounds(
    case: Case, density: float, seed: int, smaller: Callable[[float], tuple[Any, Masks]]
) -> tuple[Any, Masks]:
    """A network that is trained at every step to `density`; `smaller` makes it so from what the last step left."""
    rounds = steps_to(density)
    for number, step in enumerate(rounds):
        net, masks = smaller(step)
        epochs = case.epochs[1] if number + 1 < len(rounds) else case.epochs[2]
        with less_dropout(net, step):
            train(net, case, epochs, seed + number + 1, masks, case.rate)
    return net, masks


@contextmanager
def less_dropout(net: nn.Module, share: float) -> Iterator[None]:
    """Less dropout the fewer weights there are (Han et al., arXiv 1506.02626): by the root of their share."""
    rates = {m: m.p for m in net.modules() if isinstance(m, nn.Dropout)}
    for module, rate in rates.items():
        module.p = rate * share**0.5
    try:
        yield
    finally:
        for module, rate in rates.items():
            module.p = rate


# ---------------------------------------------------------------------- what is made once
def dense(case: Case, seed: int, store: Store) -> Trained:
    """The network with all its weights."""

    def make() -> tuple[Any, Masks]:
        net = case.make()
        masks = Masks(net.matrices(), PATTERNS["darb"])
        train(net, case, case.epochs[0], seed, masks, case.rate)
        return net, masks

    return once(case, make, seed, store, "dense")


def pruned(case: Case, start: Trained, pattern: str, density: float, seed: int, store: Store) -> Trained:
    """The dense network `start` with `density` of the weights of its matrices left in a pattern, trained on."""

    def make() -> tuple[Any, Masks]:
        net = case.make()
        net.load_state_dict(start.state)
        return net, thinned(net, case, pattern, density, seed)

    return once(case, make, seed, store, pattern, repr(density))


def pattern_of(net: Any, name: str) -> Pattern:
    """A pattern by its name; where it takes units away, of those of the network."""
    return OF_UNITS[name](net.units()) if name in OF_UNITS else PATTERNS[name]


def once(case: Case, make: Callable[[], tuple[Any, Masks]], seed: int, store: Store, *parts: str) -> Trained:
    """What `make` trains, from the store where it was made before; `parts` say what it is beside case and seed."""
    key = f"{case.name}-{content_key(case.identity, str(seed), *parts)}"
    if (held := store.load(key)) is not None:
        return _read(held)
    began = time.monotonic()
    torch.manual_seed(seed)
    net, masks = make()
    minutes = (time.monotonic() - began) / 60
    with masks.applied():
        state = {k: v.clone() for k, v in net.state_dict().items()}
    scores = accuracy(net, case.dev, masks), accuracy(net, case.test, masks)
    found = Trained(state, *scores, masks.stored, minutes)
    store.save(key, _written(found))
    return found


def _written(found: Trained) -> bytes:
    buffer = io.BytesIO()
    torch.save({**vars(found), "stored": asdict(found.stored)}, buffer)
    return buffer.getvalue()


def _read(content: bytes) -> Trained:
    held = torch.load(io.BytesIO(content), weights_only=True)
    return Trained(**{**held, "stored": Stored(**held["stored"])})
