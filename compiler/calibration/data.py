"""Calibration and evaluation data: arrays by name, from an .npz file without pickle or from a Python callable."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import ConfigError
from compiler.ir.graph import Value
from compiler.references import imported

Arrays = dict[str, np.ndarray]


def archived(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays as .npz, whatever they are called: `numpy.savez` takes some names for its own arguments."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as part:
                np.lib.format.write_array(part, np.asanyarray(array), allow_pickle=False)
    return made.getvalue()


NAMELESS = "one array without a name; save each under its own in an .npz file (np.savez)"
"""What is wrong with an .npy file where arrays go by name."""


def load_arrays(source: str, folder: Path) -> Arrays:
    """The arrays of `source`: an .npz file relative to `folder`, or "package.module:function" called without
    arguments.

    Only a release file may name a function, never a model. Raises ConfigError where the source cannot be read,
    holds objects, or returns anything but arrays.
    """
    if ":" in source and not (folder / source).exists():
        return _called(source)
    file = folder / source
    if file.suffix == ".npy":
        raise ConfigError(f"{file}: {NAMELESS}")
    try:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError(NAMELESS)
        with archive:
            return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged archive ends in a dozen unrelated types, of zlib and tokenize among them
        raise ConfigError(f"{file}: not an .npz file of plain arrays{reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """What numpy said of a file that it cannot read, behind a colon; it is never advised to load objects."""
    return "" if "allow_pickle" in str(error) else f": {error}"


def with_samples(arrays: Mapping[str, np.ndarray], names: Iterable[str]) -> None:
    """ConfigError where an array of these names is a single number: it has no axis of samples."""
    single = [n for n in names if not arrays[n].ndim]
    if single:
        raise ConfigError(
            f"the data hold a single number as {', '.join(map(repr, single))}; give an array of samples"
        )


def named_function(where: str) -> Callable[..., Any]:
    """The function called "package.module:function"; ConfigError where it cannot be imported."""
    found = imported(where)
    if not callable(found):
        raise ConfigError(f"'{where}' is not a function")
    return found  # type: ignore[no-any-return]


@contextmanager
def failing_as(where: str) -> Iterator[None]:
    """ConfigError that names the function of a user where it raises anything."""
    try:
        yield
    except Exception as error:
        raise ConfigError(f"'{where}' failed: {type(error).__name__}: {error}") from error


def _called(where: str) -> Arrays:
    function = named_function(where)
    with failing_as(where):
        made = function()
    if not isinstance(made, Mapping) or not all(isinstance(v, np.ndarray) for v in made.values()):
        raise ConfigError(f"'{where}' must return a dict from name to numpy array")
    return dict(made)


class CalibrationSet:
    """Samples of every network input, in the order of the file; arrays are [samples, *shape without the batch].

    Called, it starts the feeds again: input name -> array of exactly the input's shape, batch by batch. A last
    incomplete batch is left out.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], inputs: tuple[Value, ...], limit: int = 0) -> None:
        missing = [v.ref.name for v in inputs if v.ref.name not in arrays]
        if missing:
            have = ", ".join(sorted(arrays)) or "nothing"
            raise ConfigError(f"the data lacks input {', '.join(map(repr, missing))}; it has {have}")
        with_samples(arrays, (v.ref.name for v in inputs))
        self.arrays = {v.ref.name: arrays[v.ref.name][: limit or None] for v in inputs}
        self._inputs = inputs
        self._steps = {v.ref.name: _step(v, self.arrays[v.ref.name]) for v in inputs}
        counts = {n: len(arrays[n]) // step for n, step in self._steps.items()}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"'{n}' {count}" for n, count in counts.items())
            raise ConfigError(f"the data hold different numbers of batches per input: {listed}")
        self.batches = min((len(a) // self._steps[n] for n, a in self.arrays.items()), default=0)
        if not self.batches:
            raise ConfigError("the data holds less than one batch of the network's inputs")

    @property
    def batch_size(self) -> int:
        """Samples per feed."""
        return next(iter(self._steps.values()))

    def __call__(self) -> Iterator[Arrays]:
        for i in range(self.batches):
            yield {v.ref.name: self._batch(v, i) for v in self._inputs}

    def _batch(self, value: Value, index: int) -> np.ndarray:
        step = self._steps[value.ref.name]
        part = self.arrays[value.ref.name][index * step : (index + 1) * step]
        return feed_of(value, part.reshape(value.shape))


def feed_of(value: Value, array: np.ndarray) -> np.ndarray:
    """`array` as `typed`; ConfigError too for data that hold NaN, which nothing can be learned or judged by."""
    made = typed(value, array)
    if value.dtype.is_float and np.isnan(made).any():
        raise ConfigError(f"data for input '{value.ref}' hold NaN; nothing can be learned or judged by it")
    return made


def typed(value: Value, array: np.ndarray) -> np.ndarray:
    """A copy of `array` in the element type of a network input, in C order.

    ConfigError for data that are no numbers, and where an integer or boolean input would get other values than the
    data have: fractions, say, because they were scaled for another network; or a float input infinity for a number.
    """
    if array.dtype.kind not in "biuf":
        raise ConfigError(f"data for input '{value.ref}' are {array.dtype}; the network reads {value.dtype.value}")
    with np.errstate(invalid="ignore", over="ignore"):
        made = np.array(array, value.dtype.numpy, order="C")
    if not value.dtype.is_float and not np.array_equal(made, array):
        raise ConfigError(
            f"data for input '{value.ref}' hold numbers from {array.min():g} to {array.max():g} that its type "
            f"{value.dtype.value} does not have; give the values that the network was trained on"
        )
    if value.dtype.is_float and np.isinf(made).sum() > np.isinf(array).sum():
        raise ConfigError(
            f"data for input '{value.ref}' hold numbers that are infinite in its type {value.dtype.value}; give "
            f"the values that the network was trained on"
        )
    return made


def _step(value: Value, array: np.ndarray) -> int:
    """Rows of the data that make one feed; ConfigError where shapes do not fit."""
    if not value.size:
        raise ConfigError(f"input '{value.ref}' is {value.type}: there is nothing to feed it with")
    if array.shape[1:] == value.shape[1:] and value.rank:
        return value.shape[0]
    if array.shape[1:] == value.shape:
        return 1
    raise ConfigError(
        f"data for input '{value.ref}' has shape {list(array.shape)}; expected "
        f"[samples, {', '.join(map(str, value.shape[1:]))}]"
    )
