"""Pruning ratios by gradual masked fine-tuning: DARB against blocks and single weights, on networks trained here.

Two networks of the kind that DARB (Ren et al., AAAI 2020, arXiv 1911.08020) was made for: an LSTM that tags words
(Universal Dependencies, English Web Treebank) and a perceptron with wide hidden layers on MNIST. The dense network
is trained first; every pattern and density starts from it. The ratio counts the weights of all recurrent and fully
connected matrices over those stored; embedding tables, of which a call reads a few rows, are left out and named.
`darb_ratio` is the largest ratio whose accuracy on the development part, never on the test part, lies at most half
a point below the dense network's. Needs the extra `train`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.host import facts
from benchmarks.results import keep
from models.training.conllu import Tagged, load_treebank
from models.training.masked import PATTERNS, Masks, Pattern, steps_to

ALLOWED = 0.005
DENSITIES = (1 / 8, 1 / 13, 1 / 16, 1 / 20, 1 / 25)
BATCH = 128
ALIKE = 8
"""Batches among which sentences are ordered by length."""

Batch = tuple[Tensor, ...]
"""Inputs, then labels with -1 where there is none."""


class Tagger(nn.Module):
    """Word and suffix embeddings, one bidirectional LSTM, a linear layer: [b, n] twice to [b, n, tags]."""

    def __init__(self, words: int, suffixes: int, tags: int) -> None:
        super().__init__()
        self.word = nn.Embedding(words, 64, padding_idx=0)
        self.suffix = nn.Embedding(suffixes, 32, padding_idx=0)
        self.dropout = nn.Dropout(0.3)
        self.lstm = nn.LSTM(96, 128, batch_first=True, bidirectional=True)
        self.out = nn.Linear(256, tags)

    def forward(self, words: Tensor, suffixes: Tensor) -> Tensor:
        """Scores of every tag for every token."""
        x = self.dropout(torch.cat([self.word(words), self.suffix(suffixes)], dim=-1))
        scores: Tensor = self.out(self.dropout(self.lstm(x)[0]))
        return scores

    def matrices(self) -> list[nn.Parameter]:
        """What is pruned: both matrices of both directions, and the output layer."""
        return [p for n, p in [*self.lstm.named_parameters(), *self.out.named_parameters()] if p.dim() == 2]


class Wide(nn.Sequential):
    """Two wide hidden layers: [b, 784] to [b, 10]."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(784, 512), nn.ReLU(), nn.Dropout(0.2), nn.Linear(512, 256), nn.ReLU())
        self.append(nn.Linear(256, 10))

    def matrices(self) -> list[nn.Parameter]:
        """What is pruned: all three layers."""
        return [p for p in self.parameters() if p.dim() == 2]


@dataclass(frozen=True)
class Case:
    """A network, its data, and how long it is trained: densely, per round, and in the last round."""

    name: str
    make: Callable[[], Any]
    train: Batch
    dev: Batch
    test: Batch
    rate: float
    epochs: tuple[int, int, int]
    left_out: str


@dataclass(frozen=True)
class Row:
    """One network, pattern and density. Accuracies are shares; ratios are over the pruned matrices."""

    network: str
    pattern: str
    density: float
    ratio: float
    bytes_ratio: float
    dense_dev: float
    dense_test: float
    dev: float
    test: float
    minutes: float

    @property
    def allowed(self) -> bool:
        """Whether the development part lost at most half a point."""
        return self.dense_dev - self.dev <= ALLOWED


def tagger(data: Path, quick: bool) -> Case:
    """The LSTM tagger."""
    bank = load_treebank(data / "ud_ewt")

    def part(tagged: Tagged, most: int | None = None) -> Batch:
        return tuple(torch.from_numpy(a[:most]) for a in (tagged.words, tagged.suffixes, tagged.tags))

    return Case(
        "lstm-tagger",
        lambda: Tagger(bank.words, bank.suffixes, len(bank.tags)),
        part(bank.train, 1024 if quick else None),
        part(bank.dev),
        part(bank.test),
        3e-3,
        (1, 1, 1) if quick else (12, 1, 4),
        f"embedding tables of {bank.words} words and {bank.suffixes} suffixes",
    )


def mlp(data: Path, quick: bool) -> Case:
    """A wide perceptron on MNIST; the last 5,000 training images are the development part."""
    with np.load(data / "mnist" / "mnist.npz") as held:
        x, y = (np.concatenate([held[f"{k}_train"], held[f"{k}_test"]]) for k in ("x", "y"))
    x = torch.from_numpy((x.reshape(len(x), -1) / 255.0).astype(np.float32))
    y = torch.from_numpy(y.astype(np.int64))
    cuts = (slice(0, 2000 if quick else 55000), slice(55000, 60000), slice(60000, None))
    train, dev, test = ((x[c], y[c]) for c in cuts)
    return Case("mlp-mnist", Wide, train, dev, test, 1e-3, (1, 1, 1) if quick else (12, 2, 12), "nothing")


CASES = {"mlp-mnist": mlp, "lstm-tagger": tagger}


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


def rows(case: Case, patterns: Sequence[str], densities: Sequence[float], seed: int) -> Iterator[Row]:
    """Every pattern and density, each from the same dense network."""
    torch.manual_seed(seed)
    net = case.make()
    whole = Masks(net.matrices(), PATTERNS["darb"])
    train(net, case, case.epochs[0], seed, whole, case.rate)
    dense = {k: v.clone() for k, v in net.state_dict().items()}
    scores = accuracy(net, case.dev, whole), accuracy(net, case.test, whole)
    print(f"{case.name}: dense {scores[0]:.4f} dev, {scores[1]:.4f} test", flush=True)
    for pattern in patterns:
        for density in densities:
            start = time.monotonic()
            net.load_state_dict(dense)
            masks = thinned(net, case, PATTERNS[pattern], density, seed)
            found = accuracy(net, case.dev, masks), accuracy(net, case.test, masks)
            minutes = (time.monotonic() - start) / 60
            stored = masks.stored
            yield Row(case.name, pattern, density, stored.ratio, stored.bytes_ratio, *scores, *found, minutes)


def thinned(net: Any, case: Case, pattern: Pattern, density: float, seed: int) -> Masks:
    """Fine-tune `net` down to `density`, round by round, with less dropout the fewer weights there are (Han et al.,
    arXiv 1506.02626: by the square root of their share)."""
    masks = Masks(net.matrices(), pattern)
    rounds = steps_to(density)
    rates = {m: m.p for m in net.modules() if isinstance(m, nn.Dropout)}
    for number, step in enumerate(rounds):
        masks.shrink(step)
        for module, rate in rates.items():
            module.p = rate * step**0.5
        epochs = case.epochs[1] if number + 1 < len(rounds) else case.epochs[2]
        train(net, case, epochs, seed + number + 1, masks, case.rate)
    for module, rate in rates.items():
        module.p = rate
    return masks


# ---------------------------------------------------------------------- reporting
def record(found: Sequence[Row], case: Case, seed: int, command: str) -> dict[str, Any]:
    """JSON-ready; `darb_ratio` and the best ratio of every other pattern, None where none is within the limit."""
    patterns = dict.fromkeys(r.pattern for r in found)
    best = {p: max((r.ratio for r in found if r.pattern == p and r.allowed), default=None) for p in patterns}
    machine = facts()
    return {
        "command": command,
        "seeds": [seed],
        "versions": {**machine["versions"], "torch": torch.__version__},
        "machine": machine["cpu"],
        "network": case.name,
        "darb_ratio": best.get("darb"),
        "ratios": best,
        "allowed_loss": ALLOWED,
        "left_out": case.left_out,
        "rows": [asdict(r) for r in found],
    }


def line(row: Row) -> str:
    """One row of the table."""
    sizes = f"{row.ratio:6.1f}x {row.bytes_ratio:6.1f}x bytes"
    parts = ("dev", row.dev, row.dense_dev), ("test", row.test, row.dense_test)
    change = "  ".join(f"{name} {now:.4f} ({now - was:+.4f})" for name, now, was in parts)
    return f"{row.network:14} {row.pattern:13} {sizes}  {change}  {row.minutes:.1f} min"


def main(arguments: list[str]) -> int:
    """Train, prune and print; `--save` writes a file per network."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks darb", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with ud_ewt/ and mnist/")
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES), help="networks")
    parser.add_argument("--pattern", nargs="*", default=list(PATTERNS), choices=list(PATTERNS), help="patterns")
    parser.add_argument("--density", nargs="*", type=float, default=list(DENSITIES), help="shares that stay")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few steps at one density: does it run?")
    parser.add_argument("--json", action="store_true", help="print the record as JSON")
    parser.add_argument("--save", type=Path, help="folder for pruning-darb-NETWORK.json")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cases = [CASES[name](given.data, given.quick) for name in given.only]
    densities = given.density[-1:] if given.quick else given.density
    for case in cases:
        found = []
        for row in rows(case, given.pattern, densities, given.seed):
            found.append(row)
            if not given.json:
                print(line(row), flush=True)
        made = record(found, case, given.seed, f"python -m benchmarks darb --data DATA --seed {given.seed}")
        if given.json:
            print(json.dumps(made, indent=1))
        if given.save:
            keep(given.save, f"pruning-darb-{case.name}", made)
    return 0
