"""Runs a generated library's programs natively through ctypes, without the C driver: kernels and plan alone."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from compiler.codegen.program import Argument, Library, Program


def aligned(size: int, fill: int = 0xFF) -> np.ndarray:
    """A 64-byte aligned byte array; the default fill makes unwritten floats NaN."""
    raw = np.full(size + 64, fill, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


class NativeLibrary:
    """Kernels of a library, loaded; `run` executes one program."""

    CANARY = 256

    def __init__(self, library: Library, folder: Path) -> None:
        self.library = library
        (folder / "kernels.o").write_bytes(library.object_code)
        path = folder / "kernels.so"
        subprocess.run(["gcc", "-shared", "-o", path, folder / "kernels.o", "-lm"], check=True)
        self._kernels = ctypes.CDLL(str(path))
        self._pool = aligned(len(library.pool))
        self._pool[:] = np.frombuffer(library.pool, np.uint8)

    @staticmethod
    def _parts(count: int) -> list[tuple[int, ...]]:
        """Ranges that cover the units of a divided kernel, unevenly; one empty argument list for the others."""
        if not count:
            return [()]
        cut = (count + 1) // 3
        return [(cut, count), (0, cut)]

    def run(self, program: Program, feeds: Mapping[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
        """Outputs of the program's tasks; asserts that nothing beyond the stated workspace is written."""
        inputs = [np.ascontiguousarray(feeds[p.name], p.type.dtype.numpy) for p in self.library.inputs]
        ports = [p for t in self.library.tasks for p in t.outputs]
        outputs = [np.zeros(p.type.shape, p.type.dtype.numpy) for p in ports]
        workspace = aligned(program.workspace_bytes + self.CANARY)

        other = aligned(self.library.scratch_bytes)

        def address(argument: Argument, elsewhere: bool) -> ctypes.c_void_p:
            if argument.kind == "scratch" and elsewhere:
                return ctypes.c_void_p(other.ctypes.data)
            bases = {"pool": self._pool, "workspace": workspace, "scratch": workspace}
            if argument.kind in bases:
                return ctypes.c_void_p(bases[argument.kind].ctypes.data + argument.at)
            arrays = inputs if argument.kind == "input" else outputs
            return ctypes.c_void_p(arrays[argument.at].ctypes.data)

        for call in program.calls:
            for i, part in enumerate(self._parts(call.parts)):
                arguments = (address(a, call.shared and i > 0) for a in call.arguments)
                status = getattr(self._kernels, call.kernel)(*arguments, *part)
                assert status == 0, call
        assert (workspace[program.workspace_bytes :] == 0xFF).all(), "a kernel wrote beyond the workspace"
        made = iter(outputs)
        found = {t.name: [next(made) for _ in t.outputs] for t in self.library.tasks}
        return {t: o for i, (t, o) in enumerate(found.items()) if program.mask >> i & 1}
