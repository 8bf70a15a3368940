"""Eight wake-word networks by other people in one library: every combination priced, compiled, run and compared.

The commands are those that a user types; nothing of the compiler is imported. The networks read the same 16
embeddings of 96 numbers; a device that waits for any subset of the eight words calls one function.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import models_folder
from benchmarks.newcomer import Walk
from benchmarks.results import keep
from benchmarks.settings import say

SHAPE = (1, 16, 96)
SPREAD = 10.0
"""About the standard deviation of embeddings of speech."""

LIMIT = 300.0
"""Seconds that everything may take."""


def walk(path: Walk, files: list[Path]) -> dict[str, Any]:
    """All commands; what they have made. SystemExit where one fails, bits that differ between subsets included."""
    for file in files:
        shutil.copy(file, path.folder)
    path.run(f"taskgraft init {' '.join(f.name for f in files)} --name wakewords --quiet")
    costs = json.loads(path.run("taskgraft cost release.toml --json"))
    path.run("taskgraft compile release.toml --set subsets.include=every --quiet")
    embeddings = np.random.default_rng(0).normal(0, SPREAD, SHAPE).astype(np.float32)
    np.savez(path.folder / "sample.npz", signal=embeddings)
    path.run("taskgraft run dist/wakewords --input sample.npz --all-combinations --quiet")
    bundle = path.folder / "dist/wakewords/host"
    manifest = json.loads((bundle / "manifest.json").read_text())
    return {
        "networks": len(files),
        "combinations_priced": len(costs["combinations"]),
        "functions": len({s["symbol"] for s in manifest["subsets"]}),
        "library_bytes": (bundle / "libwakewords.so").stat().st_size,
        "weights_bytes": (bundle / "weights.bin").stat().st_size,
    }


def whole(found: dict[str, Any]) -> bool:
    """Whether every combination has a price and a function."""
    count = 2 ** found["networks"] - 1
    return bool(found["combinations_priced"] == found["functions"] == count)


def main(arguments: list[str]) -> int:
    """Print the steps. 1 where it took too long or is not right, 2 where the networks are not here."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks wakewords", description=__doc__)
    networks = models_folder() / "wakewords"
    parser.add_argument("--networks", type=Path, default=networks, help="folder of the files")
    parser.add_argument("--save", type=Path, help="folder for wakewords.json")
    options = parser.parse_args(arguments)
    files = sorted(options.networks.glob("*.onnx"))
    if not files:
        say(f"no networks in {options.networks}; name their folder with --networks")
        return 2
    with tempfile.TemporaryDirectory(prefix="taskgraft-wakewords-") as folder:
        path = Walk(Path(folder))
        found = walk(path, files)
    print(path.text())
    print(f"{path.seconds:.0f} s of {LIMIT:.0f}; {found}")
    if options.save:
        keep(options.save, "wakewords", path.record("wakewords") | found)
    return int(path.seconds > LIMIT or not whole(found))
