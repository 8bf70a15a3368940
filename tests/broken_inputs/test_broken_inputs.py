"""Every broken input ends in one clear message and the right exit status, in bounded memory, and leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.broken_inputs.cases import CASES, RELEASE, Case, release

PEAK_BYTES = 600 << 20
"""Resident memory; of it the imports take about 120 MB, 450 MB where the tensor compiler is loaded."""
TABLE = Path(__file__).with_name("README.md")


SERVER = """
import json, os, pathlib, runpy, sys
import compiler.cli, compiler.commands.graphs, compiler.tables  # what every case imports, once
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(job["folder"])
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.dup2(os.open(job["stderr"], os.O_WRONLY | os.O_CREAT), 2)
        sys.argv[1:] = job["arguments"]
        try:
            runpy.run_module("compiler", run_name="__main__", alter_sys=True)
        finally:
            pathlib.Path(job["report"]).write_text(pathlib.Path("/proc/self/status").read_text())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs the command line in a child per case and reports its peak, which begins with what the imports take; a child
of this process would begin with all that the tests hold."""

Run = Callable[[list[str], Path, Path], tuple[int, str]]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """(arguments, working folder, where the report goes) -> (exit status, what was written to stderr)."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def one(arguments: list[str], folder: Path, report: Path) -> tuple[int, str]:
        errors = report.with_name("stderr")
        job = {"arguments": arguments, "folder": str(folder), "stderr": str(errors), "report": str(report)}
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        return int(server.stdout.readline()), errors.read_text(errors="replace")

    with server:
        yield one


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
def test_broken_input(case: Case, run: Run, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(range(16)))
    folder = tmp_path / "here"
    folder.mkdir()
    arguments = case.make(folder)
    before = listing(tmp_path)
    report = tmp_path / "status"
    status, said = run(arguments, folder, report)
    assert status == case.status, said
    assert case.words in said
    assert "Traceback" not in said
    assert peak_bytes(report) < PEAK_BYTES
    assert listing(tmp_path) - {"status", "stderr"} == before


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
