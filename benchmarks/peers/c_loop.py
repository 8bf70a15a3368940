"""Yardsticks written as a loop in C, built where they run."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile

FLAGS = ("-O3", "-ffp-contract=fast", "-shared", "-fPIC", "-x", "c", "-")


def built(source: str, march: str, parallel: bool = False, **macros: int) -> tuple[ctypes.CDLL, str]:
    """A library of `source`, compiled for the compiler's `-march` value `march`, and the compiler's version.
    `parallel`: with OpenMP.

    RuntimeError where there is no compiler.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise RuntimeError("no gcc or cc on PATH: what the core can do cannot be measured")
    flags = [
        f"-march={march}",
        *(f"-D{name}={value}" for name, value in macros.items()),
        *["-fopenmp"] * parallel,
        *FLAGS,
    ]
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/loop.so"
        subprocess.run([compiler, *flags, "-o", library], input=source.encode(), check=True)
        loaded = ctypes.CDLL(library)
    asked = subprocess.run([compiler, "-dumpfullversion"], capture_output=True, text=True, check=True)
    return loaded, asked.stdout.strip()
