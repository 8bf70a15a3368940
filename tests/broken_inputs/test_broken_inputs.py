"""Every broken input ends in one clear message and the right exit status, in bounded memory, and leaves nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.broken_inputs.cases import CASES, RELEASE, Case, release

PEAK_BYTES = 550 << 20
"""Resident memory beside the files of shared libraries; of it the imports take about 400 MB."""
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
            reports = [pathlib.Path("/proc/self", name).read_text() for name in ("status", "smaps")]
            pathlib.Path(job["report"]).write_text("".join(reports))
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
    """Peak resident memory from copies of /proc/PID/status and smaps.

    Pages that shared libraries still have from their files do not count: the system maps as many as happen to be
    in its cache, which for the tensor compiler is anything up to 360 MB.
    """
    peak, library = 0, False
    for line in report.read_text().splitlines():
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            library = ".so" in line.rpartition("/")[2]
        key, _, rest = line.partition(":")
        if key == "VmHWM" or (library and key in ("Rss", "Anonymous")):
            peak += -int(rest.split()[0]) if key == "Rss" else int(rest.split()[0])
    return peak << 10


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


def test_memory_is_counted_without_the_files_of_libraries(tmp_path: Path) -> None:
    report = tmp_path / "status"
    heap, library = "7f00-7f01 rw-p 0 00:00 0", "7f02-7f03 r-xp 0 fe:00 7     /usr/lib/libm.so.6"
    pages = "Rss: 300 kB\nPss: 300 kB\nAnonymous: 40 kB"
    report.write_text(f"VmHWM: 1000 kB\nVmRSS: 900 kB\n{heap}\n{pages}\n{library}\n{pages}\n{heap}\n{pages}\n")
    assert peak_bytes(report) == (1000 - 300 + 40) << 10
