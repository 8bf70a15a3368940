"""Running English text with three tags per word; see `models.training.conllu`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.merging.families import TAGS, WINDOW, Data, Part
from models.training.conllu import NOTHING, Treebank, load_treebank


def load_words(folder: Path) -> Data:
    """Windows [n, 2, WINDOW] of word and suffix numbers, and class numbers [n, WINDOW] of each tag.

    Sentences follow each other, in the order of the treebank and cut at its length: windows need no padding. The
    treebank's development part selects, its test part reports.
    """
    bank = load_treebank(folder / "ud_ewt")
    return Data(*(_windows(bank, part) for part in ("train", "dev", "test")))


def _windows(bank: Treebank, part: str) -> Part:
    tagged = getattr(bank, part)
    there = tagged.words > NOTHING
    count = int(there.sum()) // WINDOW

    def cut(numbers: np.ndarray) -> np.ndarray:
        return numbers[there][: count * WINDOW].reshape(count, WINDOW)

    read = np.stack([cut(tagged.words), cut(tagged.suffixes)], axis=1)
    return Part(read, {task: cut(tagged.tags[task]) for task in TAGS})
