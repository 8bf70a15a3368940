"""Runs a generated library's programs natively through ctypes, without the C driver: kernels and plan alone."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from compiler.codegen.program import Argument, Call, Library, Program


def aligned(size: int, fill: int = 0xFF) -> np.ndarray:
    """A 64-byte aligned byte array; the default fill makes unwritten floats NaN."""
    raw = np.full(size + 64, fill, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


class Memory:
    """What the calls of one program read and write. The workspace and every other scratch end in a canary."""

    CANARY = 256

    def __init__(self, library: Library, program: Program, feeds: Mapping[str, np.ndarray], level: int = 0) -> None:
        self.level = level
        self.inputs = [np.ascontiguousarray(feeds[p.name], p.type.dtype.numpy) for p in library.inputs]
        self.outputs = [np.zeros(p.type.shape, p.type.dtype.numpy) for t in library.tasks for p in t.outputs]
        self.workspace = aligned(program.workspace_bytes + self.CANARY)
        self.scratch = aligned(library.scratch_bytes + self.CANARY)
        owners = [bit for bit, task in enumerate(library.tasks) for _ in task.outputs]
        self._owned = {at for at, bit in enumerate(owners) if program.mask >> bit & 1}
        self._sizes = (program.workspace_bytes, library.scratch_bytes)

    def addresses(self, call: Call, pool: np.ndarray, elsewhere: bool) -> list[ctypes.c_void_p]:
        """Arguments of a call; `elsewhere`: with the scratch that another thread has."""
        return [self._address(a, pool, elsewhere) for a in call.arguments]

    def _address(self, argument: Argument, pool: np.ndarray, elsewhere: bool) -> ctypes.c_void_p:
        if argument.kind == "none":
            return ctypes.c_void_p(None)
        if argument.kind == "scratch" and elsewhere:
            return ctypes.c_void_p(self.scratch.ctypes.data)
        bases = {"pool": pool, "workspace": self.workspace, "scratch": self.workspace}
        if argument.kind in bases:
            at = argument.at + self.level * argument.stride
            return ctypes.c_void_p(bases[argument.kind].ctypes.data + at)
        assert argument.kind == "input" or argument.at in self._owned, "the output of a task that is not asked for"
        arrays = self.inputs if argument.kind == "input" else self.outputs
        return ctypes.c_void_p(arrays[argument.at].ctypes.data)

    def written(self) -> list[np.ndarray]:
        """Views of the bytes that calls may write."""
        return [self.workspace, *(o.reshape(-1).view(np.uint8) for o in self.outputs)]

    def check_canaries(self) -> None:
        for array, size in zip((self.workspace, self.scratch), self._sizes, strict=True):
            assert (array[size:] == 0xFF).all(), "a kernel wrote beyond its memory"


def loaded(objects: Iterable[bytes], folder: Path, *flags: str) -> ctypes.CDLL:
    """Objects linked into one shared library for this machine, and loaded; start files would take longer."""
    paths = []
    for number, code in enumerate(objects):
        paths.append(folder / f"{number}.o")
        paths[-1].write_bytes(code)
    lean = ["-nostartfiles"] if paths else []  # of nothing at all the linker makes what cannot be loaded
    subprocess.run(["gcc", "-shared", *lean, "-o", folder / "kernels.so", *paths, *flags], check=True)
    return ctypes.CDLL(str(folder / "kernels.so"))


class NativeLibrary:
    """Kernels of a library, loaded; `run` executes one program."""

    MOST_RANGES = 24
    """Ranges that `check_units` divides the units of a call into."""

    def __init__(self, library: Library, folder: Path) -> None:
        self.library = library
        self._kernels = loaded(library.objects, folder, "-lm")
        self._pool = aligned(len(library.pool))
        self._pool[:] = np.frombuffer(library.pool, np.uint8)

    @staticmethod
    def _parts(count: int) -> list[tuple[int, ...]]:
        """Ranges that cover the units of a divided kernel, unevenly; one empty argument list for the others."""
        if not count:
            return [()]
        cut = (count + 1) // 3
        return [(cut, count), (0, cut)]

    def run(self, program: Program, feeds: Mapping[str, np.ndarray], level: int = 0) -> dict[str, list[np.ndarray]]:
        """Outputs of the program's tasks; asserts that nothing beyond the stated workspace is written."""
        return self.run_in(Memory(self.library, program, feeds, level), program)

    def run_in(self, memory: Memory, program: Program) -> dict[str, list[np.ndarray]]:
        """The same in memory that an earlier call may have left something in."""
        for call in program.calls:
            for i, part in enumerate(self._parts(call.parts)):
                self._call(call, memory, (*_active(call, program), *part), elsewhere=call.shared and i > 0)
        memory.check_canaries()
        made = iter(memory.outputs)
        found = {t.name: [next(made) for _ in t.outputs] for t in self.library.tasks}
        return {t: o for i, (t, o) in enumerate(found.items()) if program.mask >> i & 1}

    def run_units(self, program: Program, number: int, memory: Memory, begin: int, end: int) -> None:
        """Some units of one call of a program, which has no members."""
        call = program.calls[number]
        self._call(call, memory, (begin, end) if call.parts else ())

    def check_units(self, program: Program, feeds: Mapping[str, np.ndarray]) -> None:
        """Assert that the units of every shared call write bytes of their own and read none that others write."""
        memory = Memory(self.library, program, feeds)
        for call in program.calls:
            active = _active(call, program)
            if call.shared:
                self._check_units(call, memory, active)
            else:
                self._call(call, memory, (*active, 0, call.parts) if call.parts else active)
        memory.check_canaries()

    def _check_units(self, call: Call, memory: Memory, active: tuple[int, ...]) -> None:
        before = [a.copy() for a in memory.written()]
        self._call(call, memory, (*active, 0, call.parts), elsewhere=True)
        after = [a.copy() for a in memory.written()]
        taken = [np.zeros(a.shape, bool) for a in before]
        for part in self._ranges(call.parts):
            for array, old in zip(memory.written(), before, strict=True):
                array[:] = old
            memory.scratch[: self.library.scratch_bytes] = 0xFF
            self._call(call, memory, (*active, *part), elsewhere=True)
            for array, old, new, mine in zip(memory.written(), before, after, taken, strict=True):
                changed = array != old
                assert not (changed & mine).any(), (call.kernel, call.nodes, part, "writes what other units write")
                assert (array == new)[changed].all(), (call.kernel, call.nodes, part, "depends on other units")
                mine |= changed
        for array, old, new, mine in zip(memory.written(), before, after, taken, strict=True):
            assert not ((old != new) & ~mine).any(), (call.kernel, call.nodes, "writes nothing in some part")
            array[:] = new

    def _ranges(self, count: int) -> list[tuple[int, int]]:
        cuts = sorted({count * i // self.MOST_RANGES for i in range(self.MOST_RANGES + 1)})
        return list(itertools.pairwise(cuts))

    def _call(self, call: Call, memory: Memory, numbers: tuple[int, ...], elsewhere: bool = False) -> None:
        function = getattr(self._kernels, call.kernel)
        assert function(*memory.addresses(call, self._pool, elsewhere), *numbers) == 0, call


def _active(call: Call, program: Program) -> tuple[int, ...]:
    """The argument that says which members of a kernel a program needs; none where it has no members."""
    return (call.active(program.mask),) if call.members else ()
