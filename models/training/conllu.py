"""Sentences of a Universal Dependencies treebank as arrays: a word and a suffix number per token, and its tags."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]


class Token(NamedTuple):
    """A word and what each of `COLUMNS` says of it."""

    word: str
    tags: tuple[str, ...]


Sentence = list[Token]

COLUMNS = {"universal": 3, "language": 4, "relation": 7}
"""Task -> column of CoNLL-U: UPOS, XPOS, and DEPREL without what is behind its colon."""

LENGTH = 48
"""Tokens of a sentence that are read; longer ones are cut."""

NOTHING, UNKNOWN = 0, 1
"""Numbers of padding, and of words and suffixes that are rare in the training part."""

_SUFFIX, _RARE = 3, 2


@dataclass(frozen=True)
class Tagged:
    """words and suffixes [sentences, LENGTH], and per task tags likewise with -1 for padding."""

    words: Numbers
    suffixes: Numbers
    tags: Mapping[str, Numbers]


@dataclass(frozen=True)
class Treebank:
    """The three parts of a treebank under the numbering of the first."""

    train: Tagged
    dev: Tagged
    test: Tagged
    words: int
    suffixes: int
    tags: Mapping[str, tuple[str, ...]]


def load_treebank(folder: Path, name: str = "en_ewt-ud") -> Treebank:
    """Read NAME-{train,dev,test}.conllu.gz; tags are those of the first part."""
    parts = {part: list(_sentences(folder / f"{name}-{part}.conllu.gz")) for part in ("train", "dev", "test")}
    tokens = [token for sentence in parts["train"] for token in sentence]
    words = _numbering(t.word.lower() for t in tokens)
    suffixes = _numbering(_suffix(t.word) for t in tokens)
    columns = zip(COLUMNS, zip(*(t.tags for t in tokens), strict=True), strict=True)
    tags = {task: tuple(sorted(set(found))) for task, found in columns}
    made = {p: _arrays(s, words, suffixes, tags) for p, s in parts.items()}
    return Treebank(made["train"], made["dev"], made["test"], len(words) + 2, len(suffixes) + 2, tags)


def _sentences(path: Path) -> Iterator[Sentence]:
    sentence: Sentence = []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            fields = line.rstrip("\n").split("\t")
            if len(fields) > max(COLUMNS.values()) and fields[0].isdigit():
                sentence.append(Token(fields[1], tuple(fields[c].partition(":")[0] for c in COLUMNS.values())))
            elif not line.strip() and sentence:
                yield sentence
                sentence = []
    if sentence:
        yield sentence


def _suffix(word: str) -> str:
    """The last letters, with what the case and digits of the word say."""
    shape = "A" if word.isupper() else "Aa" if word[:1].isupper() else "0" if word[:1].isdigit() else "a"
    return f"{shape}:{word[-_SUFFIX:].lower()}"


def _numbering(names: Iterable[str]) -> dict[str, int]:
    counts = Counter(names)
    frequent = sorted(n for n, c in counts.items() if c >= _RARE)
    return {n: i for i, n in enumerate(frequent, UNKNOWN + 1)}


def _arrays(
    sentences: list[Sentence],
    words: Mapping[str, int],
    suffixes: Mapping[str, int],
    tags: Mapping[str, tuple[str, ...]],
) -> Tagged:
    def filled(number: int) -> Numbers:
        return np.full((len(sentences), LENGTH), number, np.int64)

    made = Tagged(filled(NOTHING), filled(NOTHING), {task: filled(-1) for task in tags})
    places = {task: {t: i for i, t in enumerate(names)} for task, names in tags.items()}
    for row, sentence in enumerate(sentences):
        for column, token in enumerate(sentence[:LENGTH]):
            made.words[row, column] = words.get(token.word.lower(), UNKNOWN)
            made.suffixes[row, column] = suffixes.get(_suffix(token.word), UNKNOWN)
            for (task, place), tag in zip(places.items(), token.tags, strict=True):
                made.tags[task][row, column] = place.get(tag, -1)
    return made
