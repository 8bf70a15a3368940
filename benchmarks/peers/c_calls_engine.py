"""Our own contender called from C: a loop over the function of a bundle's only task, built by the C compiler.

For networks with one input and one output.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import compiler
from benchmarks.peers.engine import Arrays, Engine

CALLS = 1000
"""Calls of the library in one call of the loop."""

_SOURCE = """
#include "{name}.h"
int call_often(long calls, const void *input, void *output, void *workspace, unsigned long bytes)
{{
    {name}_call call = {{.size = sizeof call, .workspace = workspace, .workspace_bytes = bytes}};
    int code = 0;
    for (long i = 0; i < calls && code == 0; ++i) code = {symbol}(input, output, &call);
    return code;
}}
"""


def load(model: str, feeds: Arrays, options: dict[str, Any]) -> Engine:
    """The bundle in folder `model`. RuntimeError without a C compiler, or where a call fails."""
    cc = shutil.which("gcc") or shutil.which("cc")
    if cc is None:
        raise RuntimeError("no gcc or cc on PATH: the library cannot be called from C")
    folder = Path(model)
    manifest = json.loads((folder / "manifest.json").read_text())
    (port,), (subset,), ((_, given),) = manifest["io"]["outputs"], manifest["subsets"], feeds.items()
    result = np.empty(port["shape"], port["dtype"])
    workspace = np.zeros(subset["workspace_bytes"] + 64, np.uint8)
    start = workspace.ctypes.data + -workspace.ctypes.data % 64
    function = _built(cc, folder, manifest["name"], subset["symbol"])

    def call() -> None:
        code = function(CALLS, given.ctypes.data, result.ctypes.data, start, subset["workspace_bytes"])
        if code:
            raise RuntimeError(f"the library returned {code}")

    keep = (given, result, workspace)
    return Engine(compiler.__version__, call, lambda: {port["label"]: result}, inner=CALLS, keep=keep)


def _built(cc: str, folder: Path, name: str, symbol: str) -> Any:
    """The loop, linked with the bundle's library where it lies."""
    with tempfile.TemporaryDirectory() as work:
        source, loop = Path(work, "loop.c"), Path(work, "loop.so")
        source.write_text(_SOURCE.format(name=name, symbol=symbol))
        library = folder / f"lib{name}.so"
        command = [cc, "-O2", "-shared", "-fPIC", f"-I{folder}", str(source), str(library), f"-Wl,-rpath,{folder}"]
        subprocess.run([*command, "-o", str(loop)], check=True)
        function = ctypes.CDLL(str(loop)).call_often
    pointer = ctypes.c_void_p
    function.argtypes = (ctypes.c_long, pointer, pointer, pointer, ctypes.c_ulong)
    return function
