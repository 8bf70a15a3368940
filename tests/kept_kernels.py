"""Machine code of kernels, kept for one run of the tests: many tests compile the same small networks.

A result stands for compiling only the same function for the same target; `compiler.workers` keeps results by the
same rule. Processes that tests start compile for themselves.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm

Compile = Callable[[Any, Mapping[str, object]], tuple[bytes, int]]
"""A PrimFunc and a target to an object and its bytes of scratch."""


@dataclass(frozen=True)
class KeptKernels:
    """Stands in for `compile`, and calls it for what is not yet in `folder`, which processes may share."""

    compile: Compile
    folder: Path

    def __call__(self, func: Any, target: Mapping[str, object]) -> tuple[bytes, int]:
        path = (
            self.folder
            / hashlib.sha256(f"{json.dumps(dict(target))} {tvm.ir.save_json(func)}".encode()).hexdigest()
        )
        if not path.exists():
            self._write(path, *self.compile(func, target))
        kept = path.read_bytes()
        return kept[8:], int.from_bytes(kept[:8], "little")

    def _write(self, path: Path, code: bytes, scratch: int) -> None:
        """Whole or not at all: another process may be looking."""
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(scratch.to_bytes(8, "little") + code)
        unfinished.replace(path)
