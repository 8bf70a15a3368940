"""Run a bundle's selftest or bench: natively, or under user-mode emulation with the exact CPU of the target."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compiler.codegen.bundle import Bundle
from compiler.codegen.link import Toolchain, find_toolchain, run_tool
from compiler.codegen.selftest import SKIPPED
from compiler.codegen.target import Target
from compiler.errors import TargetError
from compiler.ir.types import TaskSet

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class SelftestResult:
    """Outcome of a selftest. `reason` is empty when passed; `output` is what the program printed."""

    status: Status
    reason: str
    output: str


def run_selftest(
    bundle: Bundle, target: Target, *, quick: bool = False, cpu: str = "", timeout: float = 600
) -> SelftestResult:
    """Build the selftest against the shared and the static library and run both.

    `quick` runs the full set and the single tasks on one sample. `cpu` replaces the emulated processor, to see a
    library refuse one that lacks a feature. Skipped, with the reason, where a tool or a CPU feature is missing.
    """
    toolchain, runner = find_toolchain(target), _runner(target, cpu)
    if not bundle.linked or toolchain is None:
        return SelftestResult("skipped", f"no C compiler for {target.name} on this machine", "")
    if runner is None:
        return SelftestResult("skipped", f"this machine cannot run or emulate {target.name}", "")
    results = []
    with tempfile.TemporaryDirectory(prefix="taskgraft-") as work:
        for static in (False, True):
            program = build_program(bundle, target, toolchain, "selftest", Path(work), static=static)
            command = [*runner, str(program), str(bundle.path / "golden"), *["--quick"] * quick]
            results.append(_execute(command, timeout))
    return next((r for r in results if r.status != "passed"), results[-1])


def run_bench(bundle: Bundle, target: Target, *, seconds: float = 0.5, threads: int = 1) -> str:
    """Build and run the timing loop on this machine; returns its JSON. TargetError where it cannot run natively."""
    toolchain = find_toolchain(target)
    if not target.native or toolchain is None or not bundle.linked:
        raise TargetError(f"{target.name} cannot be timed on this machine; emulated time says nothing about speed")
    with tempfile.TemporaryDirectory(prefix="taskgraft-") as work:
        program = build_program(bundle, target, toolchain, "bench", Path(work), static=True)
        return run_tool((str(program), "golden", str(seconds), str(threads)), bundle.path, 600)


def fastest_calls(bundle: Bundle, target: Target, *, seconds: float) -> dict[TaskSet, float]:
    """Seconds of a call of every combination: the fastest round, as what disturbs a run only adds to it.

    At level 0, of a portfolio at the cheapest level. `seconds`: time that every combination is measured for at
    every level. TargetError where it cannot run natively.
    """
    found = json.loads(run_bench(bundle, target, seconds=seconds))
    rows = bundle.manifest["subsets"]
    wanted = {("+".join(r["tasks"]), r["level"]) for r in rows if r.get("cheapest", r["level"] == 0)}
    return {
        frozenset(s["tasks"].split("+")): float(s["seconds_min"])
        for s in found["subsets"]
        if (s["tasks"], s["level"]) in wanted
    }


def build_program(
    bundle: Bundle, target: Target, toolchain: Toolchain, program: str, folder: Path, *, static: bool
) -> Path:
    """Compile `src/<program>.c` of the bundle against the static or the shared library; returns the executable."""
    out = folder / f"{program}-{'static' if static else 'shared'}"
    library = (f"lib{bundle.name}.a",) if static else (f"lib{bundle.name}.so", "-Wl,-rpath,$ORIGIN")
    if not static:  # found through a link beside the program: a comma or a colon in a path would end a run path
        beside = folder / bundle.library.name
        beside.unlink(missing_ok=True)
        beside.symlink_to(bundle.library.resolve())
    # -fPIE: lld lays out position-dependent ARM programs wrongly.
    flags = ("-std=c11", "-O2", "-fPIE", *toolchain.baseline, *["-static"] * (static and not target.native), "-I.")
    run_tool((*toolchain.cc, *flags, f"src/{program}.c", *library, "-lm", "-lpthread", "-o", str(out)), bundle.path)
    return out


def _runner(target: Target, cpu: str) -> list[str] | None:
    """What precedes the program on the command line; None where it cannot run."""
    if target.native:
        return []
    if target.emulator is None:
        return None
    program = next((path for name in target.emulator.programs if (path := shutil.which(name))), None)
    return [program, "-cpu", cpu or target.emulator.cpu, "-L", target.emulator.sysroot] if program else None


def _execute(command: list[str], timeout: float) -> SelftestResult:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return SelftestResult("failed", f"no result after {timeout:g} seconds", "")
    lines = done.stdout.strip().splitlines()
    last = lines[-1] if lines else ""
    if done.returncode == 0 and last == "PASSED":
        return SelftestResult("passed", "", done.stdout)
    if done.returncode == SKIPPED:
        return SelftestResult("skipped", last, done.stdout)
    reason = f"ended with status {done.returncode}: {last or done.stderr.strip()}"
    return SelftestResult("failed", reason, done.stdout + done.stderr)
