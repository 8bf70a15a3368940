"""Calibration inputs that are never all in memory: an .npy file, a folder of arrays, a Python iterable.

A sample is one array per network input, with or without its leading batch axis. A folder holds one file per
sample, in the order of their names: .npz files with an array per input, .npy files for a network of one input, or a
folder of .npy files per input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from compiler.calibration.data import (
    Arrays,
    CalibrationSet,
    failing_as,
    feed_of,
    load_arrays,
    named_function,
    reason_of,
)
from compiler.errors import ConfigError
from compiler.ir.graph import Value

Sample = Mapping[str, np.ndarray]
Opener = Callable[[], Iterable[Sample]]
"""Every call starts the same samples again."""

IMAGES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"))


class StreamedSet:
    """Feeds of a network from samples that are read when they are asked for.

    Called, it starts the feeds again: input name -> array of exactly the input's shape. A last incomplete batch is
    left out. ConfigError where a sample lacks an input or does not fit, or where there is none.
    """

    def __init__(self, samples: Opener, inputs: tuple[Value, ...], limit: int = 0) -> None:
        self._samples, self._inputs, self._limit = samples, inputs, limit
        first = next(iter(self._opened()), None)
        if first is None:
            raise ConfigError("the data holds no sample")
        self._steps = {v.ref.name: _step(v, first) for v in inputs}
        if len(set(self._steps.values())) > 1:
            listed = ", ".join(f"{step} for '{name}'" for name, step in self._steps.items())
            raise ConfigError(f"a call takes different numbers of samples per input: {listed}; give batches of all")
        self._count: int | None = None
        if self.batch_size > 1 and next(iter(self()), None) is None:
            raise ConfigError(f"the data holds fewer samples than a call of the network takes: {self.batch_size}")

    @property
    def batch_size(self) -> int:
        """Samples per feed."""
        return max(self._steps.values())

    @property
    def batches(self) -> int:
        """Number of feeds; the first question reads everything once."""
        if self._count is None:
            self._count = sum(1 for _ in self())
        return self._count

    def __call__(self) -> Iterator[Arrays]:
        samples = iter(self._opened())
        while len(part := list(islice(samples, self.batch_size))) == self.batch_size:
            yield {v.ref.name: self._batch(v, part) for v in self._inputs}

    def _opened(self) -> Iterable[Sample]:
        return islice(self._samples(), min(self._limit, sys.maxsize) or None)

    def _batch(self, value: Value, part: Sequence[Sample]) -> np.ndarray:
        if any(_step(value, sample) != len(part) for sample in part):
            raise ConfigError(f"some samples for input '{value.ref}' are whole batches and others are not")
        return feed_of(value, np.stack([_of(value, sample) for sample in part]).reshape(value.shape))


Feeds = CalibrationSet | StreamedSet
"""What starts the feeds of a network at every call."""


def _of(value: Value, sample: Sample) -> np.ndarray:
    if not isinstance(sample, Mapping):
        raise ConfigError(f"a sample is {type(sample).__name__}; give dicts from input name to numpy array")
    if value.ref.name not in sample:
        have = ", ".join(sorted(sample)) or "nothing"
        raise ConfigError(f"a sample lacks input '{value.ref}'; it has {have}")
    return np.asarray(sample[value.ref.name])


def _step(value: Value, sample: Sample) -> int:
    """Samples that make one feed of an input; ConfigError where shapes do not fit."""
    shape = _of(value, sample).shape
    if shape == value.shape:
        return 1
    if shape == value.shape[1:]:
        return value.shape[0]
    wanted = ", ".join(map(str, value.shape[1:]))
    raise ConfigError(f"a sample for input '{value.ref}' has shape {list(shape)}; expected [{wanted}]")


# ---------------------------------------------------------------------- sources
def open_calibration(source: str, folder: Path, inputs: tuple[Value, ...], limit: int) -> Feeds:
    """The unlabelled inputs that a release names: an .npz or .npy file or a folder of arrays, relative to
    `folder`, or "package.module:function" that returns a dict of arrays or an iterable of samples.

    ConfigError where the source cannot be read or does not fit the inputs.
    """
    path = folder / source
    if ":" in source and not path.exists():
        return _from_function(source, inputs, limit)
    if path.is_dir():
        return StreamedSet(_folder(path, inputs), inputs, limit)
    if path.suffix == ".npy":
        name = _only(inputs, path)
        rows = _array(path)
        if not rows.ndim:
            raise ConfigError(f"{path}: holds a single number; give an array of samples")
        return StreamedSet(lambda: ({name: row} for row in rows), inputs, limit)
    return CalibrationSet(load_arrays(source, folder), inputs, limit)


def _from_function(where: str, inputs: tuple[Value, ...], limit: int) -> Feeds:
    function = named_function(where)
    with failing_as(where):
        made = function()
    if isinstance(made, Mapping):
        return CalibrationSet(load_arrays(where, Path()), inputs, limit)
    if not isinstance(made, Iterable):
        raise ConfigError(f"'{where}' must return a dict from name to numpy array, or an iterable of such dicts")
    once = iter(made) is made  # a generator runs once: call for another one

    def samples() -> Iterator[Sample]:
        with failing_as(where):
            found = function() if once else made
        if once and found is made:
            raise ConfigError(
                f"'{where}' returns one iterator again and again, which has nothing left after the first time; "
                f"return a new one at every call, or a list"
            )
        with failing_as(where):
            yield from found

    return StreamedSet(samples, inputs, limit)


def _only(inputs: tuple[Value, ...], path: Path) -> str:
    if len(inputs) != 1:
        names = ", ".join(f"'{v.ref}'" for v in inputs)
        raise ConfigError(
            f"{path}: is one array, but the networks read {names}; give .npz files or a folder per input"
        )
    return inputs[0].ref.name


def _array(path: Path) -> np.ndarray:
    """The array of an .npy file, mapped and not read."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        raise ConfigError(f"{path}: not an .npy file of plain numbers{reason_of(error)}") from error
    if not isinstance(found, np.ndarray):
        found.close()
        raise ConfigError(f"{path}: holds arrays by name, as an .npz file does; call it so")
    return found


def _folder(path: Path, inputs: tuple[Value, ...]) -> Opener:
    entries = sorted(path.iterdir())
    images = [e for e in entries if e.suffix.lower() in IMAGES]
    if images:
        raise ConfigError(f"{images[0]}: images are not decoded here; save them as .npy arrays, or name a function")
    if any(e.is_dir() for e in entries):
        return _folder_per_input(path, inputs)
    files = [e for e in entries if e.suffix in (".npy", ".npz")]
    if not files:
        raise ConfigError(f"{path}: holds no .npy or .npz file")
    name = _only(inputs, path) if any(f.suffix == ".npy" for f in files) else ""

    def samples() -> Iterator[Sample]:
        for file in files:
            yield {name: _array(file)} if file.suffix == ".npy" else load_arrays(file.name, path)

    return samples


def _folder_per_input(path: Path, inputs: tuple[Value, ...]) -> Opener:
    files = {v.ref.name: sorted((path / v.ref.name).glob("*.npy")) for v in inputs}
    counts = {name: len(found) for name, found in files.items()}
    if missing := [str(path / name) for name in files if not (path / name).is_dir()]:
        raise ConfigError(f"{path}: has folders, one per input is expected; there is no {', '.join(missing)}")
    if len(set(counts.values())) != 1 or not all(counts.values()):
        shown = ", ".join(f"'{name}' {count}" for name, count in counts.items())
        raise ConfigError(f"{path}: folders per input hold different numbers of .npy files: {shown}")

    def samples() -> Iterator[Sample]:
        for row in zip(*files.values(), strict=True):
            yield {name: _array(file) for name, file in zip(files, row, strict=True)}

    return samples
