"""Measured time of every entry of a bundle, on this machine or on a board over ssh."""

from __future__ import annotations

import json
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiler.codegen.bundle import Bundle
from compiler.codegen.emulate import build_program, run_bench
from compiler.codegen.link import find_toolchain
from compiler.codegen.target import find_target
from compiler.errors import BundleError, ConfigError, TargetError

_REMOTE = 'd=$(mktemp -d) && trap \'rm -rf "$d"\' EXIT && cd "$d" && tar xf - && ./bench golden {seconds}'
_TIMEOUT = 600


def bench(bundle: Bundle, *, ssh: str = "", seconds: float = 0.5) -> Mapping[str, Any]:
    """What the bundle's timing loop reports: its JSON, `rows` per subset.

    `ssh` is `user@board`: the loop is built here, sent with its inputs in one connection, run in a temporary
    folder there and removed. TargetError where it cannot be built or run, BundleError where it prints no JSON.
    """
    target = find_target(bundle.target)
    if not ssh:
        return _parsed(run_bench(bundle, target, seconds=seconds))
    if ssh.startswith("-") or any(c.isspace() for c in ssh):
        raise ConfigError(f"--ssh {ssh!r} is not user@host")
    toolchain = find_toolchain(target)
    if toolchain is None or not bundle.linked:
        raise TargetError(f"no C compiler for {target.name} on this machine, so there is nothing to send")
    with tempfile.TemporaryDirectory(prefix="taskgraft-") as work:
        program = build_program(bundle, target, toolchain, "bench", Path(work), static=True)
        archive = Path(work) / "bench.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(program, "bench")
            tar.add(bundle.path / "golden", "golden")
        return _parsed(_over_ssh(ssh, archive, seconds))


def _over_ssh(host: str, archive: Path, seconds: float) -> str:
    command = ["ssh", "-o", "BatchMode=yes", host, _REMOTE.format(seconds=float(seconds))]
    try:
        with archive.open("rb") as stream:
            done = subprocess.run(
                command, stdin=stream, capture_output=True, text=True, timeout=_TIMEOUT, check=False
            )
    except FileNotFoundError:
        raise TargetError("--ssh needs the ssh program, which is not on PATH") from None
    except subprocess.TimeoutExpired:
        raise TargetError(f"{host}: no result after {_TIMEOUT} seconds") from None
    if done.returncode:
        raise TargetError(f"{host}: the timing loop ended with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _parsed(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BundleError(f"the timing loop did not print JSON: {error}") from error
    return found if isinstance(found, dict) else {"rows": found}
