"""Every broken input ends in one clear message and the right exit status, in bounded memory, and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.broken_inputs.cases import CASES, RELEASE, Case, release

PEAK_BYTES = 600 << 20
"""Resident memory; of it the imports take about 120 MB, 450 MB where the tensor compiler is loaded."""
TABLE = Path(__file__).with_name("README.md")


MEASURED = """
import pathlib, runpy, sys
report = pathlib.Path(sys.argv.pop(1))
try:
    runpy.run_module("compiler", run_name="__main__", alter_sys=True)
finally:
    report.write_text(pathlib.Path("/proc/self/status").read_text())
"""
"""Runs the command line and reports its peak; the peak that `wait4` gives includes this process at the fork."""


def peak_bytes(report: Path) -> int:
    """Peak resident memory from a copy of /proc/PID/status."""
    line = next(row for row in report.read_text().splitlines() if row.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "compiler", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


def listing(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_broken_input(case: Case, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(range(16)))
    folder = tmp_path / "here"
    folder.mkdir()
    arguments = case.make(folder)
    before = listing(tmp_path)
    report = tmp_path / "status"
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(report), *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    assert done.returncode == case.status, done.stderr
    assert case.words in done.stderr
    assert "Traceback" not in done.stderr
    assert peak_bytes(report) < PEAK_BYTES
    assert listing(tmp_path) - {"status"} == before


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    arguments = release(tmp_path, RELEASE)
    arguments.remove("--quiet")
    before = listing(tmp_path)
    process = subprocess.Popen(
        command(arguments),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 130, first + rest
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert listing(tmp_path) == before


def test_the_table_lists_every_case() -> None:
    rows = ["| input | exit | message holds |", "|---|--:|---|"]
    rows += [f"| {c.what} | {c.status} | {f'`{c.words}`' if c.words else 'accepted'} |" for c in CASES]
    rows.append("| an interrupt while compiling | 130 | `interrupted` |")
    assert "\n".join(rows) in TABLE.read_text()
