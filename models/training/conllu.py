"""Sentences of a Universal Dependencies treebank as arrays: a word and a suffix number per token, and its tag."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
Sentence = list[tuple[str, str]]

LENGTH = 48
"""Tokens of a sentence that are read; longer ones are cut."""

NOTHING, UNKNOWN = 0, 1
"""Numbers of padding, and of words and suffixes that are rare in the training part."""

_SUFFIX, _RARE = 3, 2


@dataclass(frozen=True)
class Tagged:
    """words and suffixes [sentences, LENGTH], tags likewise with -1 for padding."""

    words: Numbers
    suffixes: Numbers
    tags: Numbers


@dataclass(frozen=True)
class Treebank:
    """The three parts of a treebank under the numbering of the first."""

    train: Tagged
    dev: Tagged
    test: Tagged
    words: int
    suffixes: int
    tags: tuple[str, ...]


def load_treebank(folder: Path, name: str = "en_ewt-ud") -> Treebank:
    """Read NAME-{train,dev,test}.conllu.gz; tags are UPOS."""
    parts = {part: list(_sentences(folder / f"{name}-{part}.conllu.gz")) for part in ("train", "dev", "test")}
    words = _numbering(w.lower() for s in parts["train"] for w, _ in s)
    suffixes = _numbering(_suffix(w) for s in parts["train"] for w, _ in s)
    tags = tuple(sorted({t for s in parts["train"] for _, t in s}))
    made = {p: _arrays(s, words, suffixes, tags) for p, s in parts.items()}
    return Treebank(made["train"], made["dev"], made["test"], len(words) + 2, len(suffixes) + 2, tags)


def _sentences(path: Path) -> Iterator[Sentence]:
    sentence: Sentence = []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            fields = line.rstrip("\n").split("\t")
            if len(fields) > 3 and fields[0].isdigit():
                sentence.append((fields[1], fields[3]))
            elif not line.strip() and sentence:
                yield sentence
                sentence = []
    if sentence:
        yield sentence


def _suffix(word: str) -> str:
    """The last letters, with what the case and digits of the word say."""
    shape = "A" if word.isupper() else "Aa" if word[:1].isupper() else "0" if word[:1].isdigit() else "a"
    return f"{shape}:{word[-_SUFFIX:].lower()}"


def _numbering(names: Iterator[str]) -> dict[str, int]:
    counts = Counter(names)
    frequent = sorted(n for n, c in counts.items() if c >= _RARE)
    return {n: i for i, n in enumerate(frequent, UNKNOWN + 1)}


def _arrays(
    sentences: list[Sentence], words: dict[str, int], suffixes: dict[str, int], tags: tuple[str, ...]
) -> Tagged:
    made = Tagged(*(np.full((len(sentences), LENGTH), fill, np.int64) for fill in (NOTHING, NOTHING, -1)))
    place = {t: i for i, t in enumerate(tags)}
    for row, sentence in enumerate(sentences):
        for column, (word, tag) in enumerate(sentence[:LENGTH]):
            made.words[row, column] = words.get(word.lower(), UNKNOWN)
            made.suffixes[row, column] = suffixes.get(_suffix(word), UNKNOWN)
            made.tags[row, column] = place.get(tag, -1)
    return made
