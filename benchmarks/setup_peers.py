"""Install the engines that the speed studies compare with, each in a virtual environment of its own."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.peers import PEERS, VENVS, Peer, default_venvs
from benchmarks.settings import chosen

_LINES = 4
"""Lines of pip's complaint that are shown."""


def install(peer: Peer, venvs: Path, python: str) -> str:
    """Make the environment of a peer unless it is there; what happened, or why it failed."""
    folder = peer.folder(venvs)
    interpreter = folder / "bin" / "python"
    if not peer.requirements:
        return "runs in this environment"
    if not interpreter.exists() and (problem := _problem([python, "-m", "venv", str(folder)])):
        return f"failed: {problem}"
    problem = _problem([str(interpreter), "-m", "pip", "install", "--quiet", *peer.requirements])
    return f"failed: {problem}" if problem else f"{', '.join(peer.requirements)} in {folder}"


def _problem(command: list[str]) -> str:
    """Run a command; the end of what it complains about, or nothing."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stderr or done.stdout).strip().splitlines()
    return " | ".join(lines[-_LINES:]) or f"status {done.returncode}" if done.returncode else ""


def main(arguments: list[str]) -> int:
    """0 if every peer named (default: all) is there afterwards."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks setup-peers", description=__doc__)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=", ".join(PEERS))
    parser.add_argument("--venvs", type=Path, default=default_venvs(), help=f"folder (default: {VENVS}, or .peers)")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environments")
    given = parser.parse_args(arguments)
    failed = False
    for name in chosen(given.peers, PEERS, "peer"):
        outcome = install(PEERS[name], given.venvs.absolute(), given.python)
        failed |= outcome.startswith("failed")
        print(f"{name}: {outcome}", flush=True)
    return int(failed)
