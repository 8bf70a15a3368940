"""Time a bundle on a device over ssh: copy the program and its samples, run, read JSON. No Python needed there."""

from __future__ import annotations

import re
import shlex
import tempfile
from pathlib import Path

from compiler.codegen.bundle import Bundle
from compiler.codegen.emulate import build_program
from compiler.codegen.link import find_toolchain, run_tool
from compiler.codegen.target import Target
from compiler.errors import ConfigError, TargetError

_TIMEOUT = 3600


def bench_remote(
    bundle: Bundle,
    target: Target,
    destination: str,
    *,
    seconds: float = 0.5,
    threads: int = 1,
    ssh: str = "ssh",
    scp: str = "scp",
) -> str:
    """JSON of the bundle's timing loop, run on `destination` (`user@host`) in a folder that is removed afterwards.

    ConfigError if `destination` is not a host name; TargetError without a compiler for `target` or without ssh;
    LoweringError with the remote program's words if it fails, for one because the CPU lacks a feature.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.@:\[\]-]+", destination) or destination.startswith("-"):
        raise ConfigError(f"'{destination}' is not a host; expected user@host")
    toolchain = find_toolchain(target)
    if toolchain is None or not bundle.linked:
        raise TargetError(f"no C compiler for {target.name} on this machine to build the timing loop")
    with tempfile.TemporaryDirectory(prefix="taskgraft-") as work:
        program = build_program(bundle, target, toolchain, "bench", Path(work), static=True)
        there = run_tool((ssh, destination, "mktemp -d"), bundle.path).strip()
        if not re.fullmatch(r"/[A-Za-z0-9_./-]+", there):
            raise TargetError(f"{destination} answered '{there}' to mktemp; expected a folder")
        try:
            samples = [f"golden/{path.name}" for path in sorted((bundle.path / "golden").glob("in_*.bin"))]
            run_tool((scp, "-q", str(program), *samples, f"{destination}:{there}/"), bundle.path)
            command = f"cd {shlex.quote(there)} && ./{program.name} . {seconds:g} {threads}"
            return run_tool((ssh, destination, command), bundle.path, _TIMEOUT)
        finally:
            run_tool((ssh, destination, f"rm -rf {shlex.quote(there)}"), bundle.path)
