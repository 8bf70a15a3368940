"""Are outputs right? onnxruntime is the judge, as in `taskgraft verify`.

An error is relative to the output's scale. Allowed are 1e-4, or four times what onnxruntime's own optimised and
unoptimised results differ on that input, whichever is more: some networks divide by almost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.peers.client import PeerError
from compiler.check import SPREADS, relative
from compiler.codegen.golden import TOLERANCE

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Expected:
    """Outputs by their names in the ONNX file, and the largest error each may have."""

    outputs: Arrays
    limits: Mapping[str, float]

    @classmethod
    def of(cls, outputs: Arrays, unoptimised: Arrays) -> Expected:
        """From two results of onnxruntime."""
        spreads = {name: error_of(unoptimised[name], array) for name, array in outputs.items()}
        return cls(outputs, {name: max(TOLERANCE, SPREADS * spread) for name, spread in spreads.items()})

    def check(self, found: Arrays) -> float:
        """The worst error; PeerError where an output is missing or further off than it may be."""
        missing = sorted(set(self.outputs) - set(found))
        if missing:
            raise PeerError(f"no output {', '.join(missing)}; there are {', '.join(found)}")
        errors = {name: error_of(found[name], array) for name, array in self.outputs.items()}
        for name, error in errors.items():
            if not error <= self.limits[name]:
                limit = f"{self.limits[name]:.1e} is allowed"
                raise PeerError(f"output '{name}' is {error:.1e} of its scale off onnxruntime's; {limit}")
        return max(errors.values())


def error_of(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative error of a float output, share of elements that differ of any other; inf for another size."""
    if found.size != expected.size:
        return float("inf")
    shaped = found.reshape(expected.shape)
    if expected.dtype.kind == "f":
        return relative(shaped, expected)
    return float(np.mean(shaped != expected)) if expected.size else 0.0
