"""A newcomer's path, timed: an empty folder, three networks by other people, a library, a page, a C program.

The commands are those of docs/tutorial.md, as a user types them; nothing of the compiler is imported.
The three networks want their images in three ways: age as BGR in 0..255 (SSR-Net), emotion as grey in -1..1
(mini-XCEPTION), head pose as RGB, channels first, in about -1..1 (FSA-Net). The program's numbers must be those of
the files in onnxruntime.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.cases import MODELS, models_folder
from benchmarks.host import facts
from benchmarks.results import keep
from benchmarks.settings import say

FILES = {
    "age": "ssrnet_age_imdb.onnx",
    "emotion": "minixc_emotion_fer.onnx",
    "pose": "fsanet_1x1.onnx",
}
"""Task -> file, in the folder of networks."""
SIZE = (1, 64, 64, 3)
ANSWERS = {
    'model = "age.onnx"': "adapter = [{ bgr = true }]",
    'model = "emotion.onnx"': 'adapter = [{ layout = "NCHW" }, { gray = true }, { scale = 0.00784313725490196, '
    'offset = -1.0 }, { layout = "NHWC" }]',
    'model = "pose.onnx"': 'adapter = [{ layout = "NCHW" }, { offset = -127.5 }, { scale = 0.0078125 }]',
}
"""Line of the proposed release file -> the adapter that stands behind it once the user has said what values are."""
LIMIT = 600.0
"""Seconds that the whole path may take."""
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Step:
    """A command with the seconds that it took, on the clock and of a processor."""

    command: str
    seconds: float
    processor_seconds: float


class Walk:
    """The folder in which the commands run, and the steps so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[Step] = []

    def run(self, command: str, inside: str = ".") -> str:
        """Type a command; returns its output. SystemExit with what it printed where it fails."""
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        start, before = time.perf_counter(), _children()
        done = subprocess.run(
            command,
            shell=True,
            cwd=self.folder / inside,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        if done.returncode:
            raise SystemExit(f"$ {command}\nended with status {done.returncode}:\n{done.stdout}{done.stderr}")
        took = time.perf_counter() - start, _children() - before
        self.steps.append(Step(command, *(round(seconds, 1) for seconds in took)))
        return done.stdout

    @property
    def seconds(self) -> float:
        """What all steps took on the clock."""
        return sum(step.seconds for step in self.steps)

    def text(self) -> str:
        """A line per step."""
        return "\n".join(
            f"{s.seconds:6.1f} s ({s.processor_seconds:5.1f} s of a processor)  {s.command}" for s in self.steps
        )

    def record(self, study: str) -> dict[str, Any]:
        """How a study went, JSON-ready."""
        head = {"command": f"python -m benchmarks {study}", "machine": facts(), "seconds": round(self.seconds, 1)}
        return head | {"steps": [asdict(step) for step in self.steps]}


def _children() -> float:
    """Processor seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def answered(text: str) -> str:
    """The release file once adapters say what values the networks were trained on. SystemExit where it changed."""
    for line, adapter in ANSWERS.items():
        found = re.subn(rf"^{re.escape(line)}\n(adapter = .*\n)?", f"{line}\n{adapter}\n", text, flags=re.M)
        text = found[0]
        if found[1] != 1:
            raise SystemExit(f"the release file has {found[1]} lines '{line}'")
    return text


def expected(folder: Path, image: np.ndarray) -> dict[str, float]:
    """First output of every file in onnxruntime for an RGB image [1, 64, 64, 3] with values of 0..255."""
    feeds = {
        "age": image[..., ::-1],
        "emotion": (image @ np.array([0.299, 0.587, 0.114], np.float32))[..., None] / 127.5 - 1,
        "pose": (image.transpose(0, 3, 1, 2) - 127.5) / 128,
    }
    found = {}
    for task, feed in feeds.items():
        session = onnxruntime.InferenceSession(folder / f"{task}.onnx", providers=["CPUExecutionProvider"])
        (port,) = session.get_inputs()
        found[task] = float(session.run(None, {port.name: np.ascontiguousarray(feed, np.float32)})[0].ravel()[0])
    return found


def walk(path: Walk, networks: Path) -> dict[str, tuple[float, float]]:
    """All commands; task -> (what the C program prints, what onnxruntime gives)."""
    for task, file in FILES.items():
        shutil.copy(networks / file, path.folder / f"{task}.onnx")
    path.run("taskgraft init age.onnx emotion.onnx pose.onnx --name faces")
    release = path.folder / "release.toml"
    release.write_text(answered(release.read_text()))
    path.run("taskgraft inspect release.toml")
    path.run("taskgraft cost release.toml")
    path.run("taskgraft compile release.toml")
    path.run("taskgraft report dist/faces")
    build, run = (s.strip() for s in _commands((path.folder / "dist/faces/host/example/main.c").read_text()))
    path.run(build, "dist/faces/host")
    image = np.random.default_rng(0).uniform(0, 255, SIZE).astype(np.float32)
    (path.folder / "photo").mkdir()
    (path.folder / "photo" / "in_000.bin").write_bytes(image.tobytes())
    path.run(run, "dist/faces/host")
    printed = path.run("./dist/faces/host/demo photo")
    ours = {task: float(value) for task, value in re.findall(r"^(\w+)\[0\] = (\S+)$", printed, re.M)}
    return {task: (ours[task], value) for task, value in expected(path.folder, image).items()}


def _commands(source: str) -> list[str]:
    """The indented lines of the first comment: how the program is built and run."""
    return re.findall(r"^     (\S.*)$", source.partition("*/")[0], re.M)


def right(found: Mapping[str, tuple[float, float]]) -> bool:
    """Whether the program printed what onnxruntime gives."""
    return all(abs(a - b) <= TOLERANCE * max(1.0, abs(b)) for a, b in found.values())


def main(arguments: list[str]) -> int:
    """Print the steps. 1 where it took too long or is not right, 2 where the networks are not here."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks newcomer", description=__doc__)
    parser.add_argument("--networks", type=Path, default=models_folder(), help=f"folder of the files ({MODELS})")
    parser.add_argument("--save", type=Path, help="folder for newcomer.json")
    options = parser.parse_args(arguments)
    missing = [file for file in FILES.values() if not (options.networks / file).exists()]
    if missing:
        say(f"{', '.join(missing)}: not in {options.networks}; name their folder with --networks")
        return 2
    with tempfile.TemporaryDirectory(prefix="taskgraft-newcomer-") as folder:
        path = Walk(Path(folder))
        found = walk(path, options.networks)
    print(path.text())
    for task, (ours, theirs) in found.items():
        print(f"{task}[0]: {ours:.6g} printed, {theirs:.6g} in onnxruntime")
    print(f"{path.seconds:.0f} s of {LIMIT:.0f}, {'right' if right(found) else 'WRONG'}")
    if options.save:
        keep(options.save, "newcomer", path.record("newcomer") | {"values": found})
    return int(path.seconds > LIMIT or not right(found))
