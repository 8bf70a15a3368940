"""What the worker needs of an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]


class Engine(NamedTuple):
    """A loaded model with its inputs bound. Each engine's module has `load(model, feeds, options) -> Engine`.

    `model` is a path, `feeds` maps input names to arrays, `options` holds `threads` and what the study adds.
    """

    version: str
    call: Callable[[], object]
    """Compute every output once."""
    outputs: Callable[[], Arrays]
    """The outputs of the last call, by the names in the ONNX file."""
    note: str = ""
    """What a reader of the result should know, e.g. that the engine copies its inputs."""
    inner: int = 1
    """How often one call computes the model."""
    seconds: Callable[[], float] | None = None
    """The engine's own clock: seconds of the last call that count. None: the whole call counts."""
    keep: object = None
    """Whatever must live as long as the engine: many use buffers whose owner they do not hold."""


def write_arrays(path: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Named arrays into one .npz file; any name will do."""
    np.savez(path, names=np.array(list(arrays), np.str_), **{f"a{i}": a for i, a in enumerate(arrays.values())})


def read_arrays(path: str) -> Arrays:
    """What `write_arrays` wrote, in C order."""
    with np.load(path) as file:
        return {
            str(n): np.ascontiguousarray(file[f"a{i}"]).reshape(file[f"a{i}"].shape)
            for i, n in enumerate(file["names"])
        }
