"""Cycles of a loop by the model of a processor core that llvm-mca has, and what that core could do.

The model runs the loop again and again: caches hit, branches are foreseen. How many multiply-adds a cycle takes at
most is asked of the same model, with a loop of nothing but independent ones.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from benchmarks.disassembly import Loop
from compiler.codegen.target import Target

NEWEST, OLDEST = 24, 16
"""Versions of LLVM whose programs are looked for by number, before one without. Older ones know the name of
neoverse-n1 too, but take cortex-a57's model for it."""
ITERATIONS = 200
CORES = {"cortex-a76": "neoverse-n1", "cortex-a7": "cortex-a57"}
"""Processors without a model of their own -> the nearest core with one: neoverse-n1 is a cortex-a76 for servers;
cortex-a57 is the latest with a model of the 32-bit state that knows every instruction of our kernels."""
_INDEPENDENT = {
    "aarch64": [f"fmla v{n}.4s, v30.4s, v31.s[0]" for n in range(24)],
    "armv7": [f"vfma.f32 q{n}, q14, q15" for n in range(12)],
    "x86_64-8": [f"vfmadd231ps %ymm14, %ymm15, %ymm{n}" for n in range(12)],
    "x86_64-16": [f"vfmadd231ps %zmm30, %zmm31, %zmm{n}" for n in range(24)],
}

_LABEL = ".Lagain"


class NoModel(Exception):
    """Nothing here estimates the loop; the message says why."""


@dataclass(frozen=True)
class Core:
    """A model of a core."""

    program: str
    target: Target
    cpu: str
    version: str
    multiply_adds: float
    """Vector multiply-adds per cycle at most: its pipes of full width."""

    @property
    def label(self) -> str:
        """What to call it in a table."""
        return f"{self.cpu} by llvm-mca {self.version}"

    def cycles(self, loop: Loop) -> float:
        """Cycles of one turn of the loop; NoModel where the program does not know an instruction."""
        return _cycles(self.program, self.target, self.cpu, _assembly(loop))


@cache
def core_of(target: Target) -> Core:
    """The model for a target. NoModel where llvm-mca is missing or does not know the core."""
    program = mca()
    if program is None:
        raise NoModel("llvm-mca is not installed: apt-get install llvm")
    version = _run([program, "--version"], "")
    number = re.search(r"LLVM version (\S+)", version)
    cpu = CORES.get(target.mcpu, target.mcpu)
    if cpu == "neoverse-n1" and number and int(number[1].partition(".")[0]) < OLDEST:
        reason = f"llvm-mca {number[1]} takes the model of cortex-a57 for {cpu}"
        raise NoModel(f"{reason}: apt-get install llvm-{OLDEST}, or newer")
    key = target.arch if target.arch != "x86_64" else f"x86_64-{target.lanes}"
    independent = _INDEPENDENT[key]
    most = len(independent) / _cycles(program, target, cpu, independent)
    return Core(program, target, cpu, number[1] if number else "", round(most, 1))


def mca() -> str | None:
    """The newest llvm-mca on the path: older ones lack models."""
    names = [*(f"llvm-mca-{n}" for n in range(NEWEST, OLDEST - 1, -1)), "llvm-mca"]
    return next((found for name in names if (found := shutil.which(name))), None)


def _assembly(loop: Loop) -> list[str]:
    """The loop's body, branches to a label of its own."""
    lines = [f"{_LABEL}:"]
    for instruction in loop.body:
        if instruction.target is None:
            lines.append(str(instruction))
        else:
            before = instruction.operands.rpartition(",")[0]
            lines.append(f"{instruction.name} {before}{', ' if before else ''}{_LABEL}")
    return lines


def _cycles(program: str, target: Target, cpu: str, lines: Sequence[str]) -> float:
    command = [program, f"-mtriple={target.mtriple}", f"-mcpu={cpu}", f"-iterations={ITERATIONS}"]
    if target.mattr and target.arch == "armv7":
        command.append(f"-mattr={','.join(target.mattr)}")
    text = _run(command, "\n".join(lines) + "\n")
    found = re.search(r"Total Cycles:\s+(\d+)", text)
    if found is None:
        raise NoModel(f"{cpu}: llvm-mca printed no cycles")
    return int(found[1]) / ITERATIONS


def _run(command: Sequence[str], text: str) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line]
        raise NoModel(f"llvm-mca: {lines[0] if lines else f'status {done.returncode}'}")
    return done.stdout
