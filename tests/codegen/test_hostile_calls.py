"""A C program that calls a library as it should not: what docs/bundle.md says holds, nothing else is written."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from compiler.codegen.target import find_target
from tests.codegen.handmade import KERNELS, compile_kernels, tiny_bundle, tiny_library

HOST = find_target("host")
SOURCE = Path(__file__).with_name("hostile_calls.c")
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def sanitizes(folder: Path) -> bool:
    """Whether programs under AddressSanitizer can be built and run here."""
    (folder / "empty.c").write_text("int main(void) { return 0; }")
    done = subprocess.run(
        ["gcc", *SANITIZED, "empty.c", "-o", "empty"], cwd=folder, capture_output=True, check=False
    )
    return (
        done.returncode == 0
        and subprocess.run([folder / "empty"], capture_output=True, check=False).returncode == 0
    )


def run(folder: Path, *flags: str, listed: tuple[int, ...] = (1, 2, 3)) -> subprocess.CompletedProcess:
    """Build the program with driver and kernels, all of them with `flags`, and run it."""
    bundle = tiny_bundle(tiny_library(compile_kernels(HOST, folder), listed), HOST, folder / "dist")
    (folder / "kernels.c").write_text(KERNELS)
    sources = [SOURCE, "src/tiny_driver.c", "src/weights.S", folder / "kernels.c"]
    command = ["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-g", *flags, "-DEXIT=0", "-I.", *sources]
    subprocess.run([*command, "-o", folder / "hostile", "-lpthread"], cwd=bundle.path, check=True)
    return subprocess.run([folder / "hostile"], capture_output=True, text=True, check=False, timeout=120)


def test_wrong_calls_are_refused_and_right_ones_served(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (0, "0 failures\n"), done.stdout + done.stderr


def test_nothing_is_read_or_written_beyond_its_end(tmp_path: Path) -> None:
    if shutil.which("gcc") is None or not sanitizes(tmp_path):
        pytest.skip("needs a gcc with AddressSanitizer")
    done = run(tmp_path, *SANITIZED)
    assert (done.returncode, done.stdout) == (0, "0 failures\n"), done.stdout + done.stderr
