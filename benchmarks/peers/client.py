"""The parent's side of a worker: start it, ask it, end it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.peers.engine import read_arrays, write_arrays

ROOT = Path(__file__).resolve().parents[2]
_CALM = {"OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
"""numpy's own threads, which no engine computes with, spin for a while after they were made."""
TAIL = 12
"""Lines of a worker's standard error that an error message quotes."""


class PeerError(Exception):
    """An engine refused, failed or took too long; the text is the reason a table prints."""


@dataclass(frozen=True)
class Samples:
    """Seconds per call of one round, by both clocks; `share`: see benchmarks.peers.worker."""

    cpu: tuple[float, ...]
    wall: tuple[float, ...]
    share: float


@dataclass(frozen=True)
class Launch:
    """How to start an engine: its interpreter, module and additional environment."""

    name: str
    python: Path
    module: str
    environment: Mapping[str, str] = field(default_factory=dict)


class Worker:
    """A running worker process; a context manager. Every method raises PeerError with the engine's own words."""

    def __init__(self, launch: Launch, patience: float) -> None:
        """Start the process. `patience`: seconds to wait for an answer before the worker is killed."""
        self.name, self.patience = launch.name, patience
        self.version = self.note = ""
        self.inner = 1
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed in __exit__
        self._work = tempfile.TemporaryDirectory(prefix="taskgraft-peer-")
        environment = {**os.environ, **_CALM, **launch.environment, "PYTHONPATH": str(ROOT)}
        command = [str(launch.python), "-m", "benchmarks.peers.worker", launch.module]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            cwd=self._work.name,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process and forget its files."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._log.close()
        self._work.cleanup()

    def load(
        self, model: Path, feeds: Mapping[str, np.ndarray], cpus: Sequence[int], options: Mapping[str, Any]
    ) -> None:
        """Load the model and bind the inputs; the process may use the processors `cpus` only."""
        path = Path(self._work.name) / "feeds.npz"
        write_arrays(str(path), feeds)
        request = {"model": str(model), "feeds": str(path), "options": dict(options), "cpus": list(cpus)}
        reply = self._ask("load", **request)
        self.version, self.note, self.inner = reply["version"], reply["note"], reply["inner"]

    def outputs(self) -> dict[str, np.ndarray]:
        """One call; its outputs by their names in the ONNX file."""
        path = Path(self._work.name) / "outputs.npz"
        self._ask("outputs", to=str(path))
        return read_arrays(str(path))

    def run(self, calls: int, batch: int = 1, flush: int = 0) -> Samples:
        """Time `calls` batches of `batch` calls, after rewriting `flush` bytes before each."""
        reply = self._ask("run", calls=calls, batch=batch, flush=flush)
        return Samples(tuple(reply["cpu"]), tuple(reply["wall"]), reply["share"])

    def _ask(self, what: str, **details: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        line = json.dumps({"do": what, **details}) + "\n"
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerError(self._death()) from None
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._process.stdout, selectors.EVENT_READ)
            if not waiting.select(self.patience):
                self._process.kill()
                raise PeerError(f"no answer to '{what}' within {self.patience:g} s")
        answer = self._process.stdout.readline()
        if not answer:
            raise PeerError(self._death())
        reply: dict[str, Any] = json.loads(answer)
        if "error" in reply:
            raise PeerError(_one_line(reply["error"]))
        return reply

    def _death(self) -> str:
        status = self._process.wait()
        self._log.seek(0)
        return _one_line(f"the worker ended with status {status}: {last_words(self._log.read())}")


def last_words(log: str) -> str:
    """The lines of a log that name an error, else its last ones; files of packages without where these lie here."""
    lines = [re.sub(r"/\S*/site-packages/", "", line).strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"error|assert|exception|abort|terminate", line, re.IGNORECASE)]
    return " | ".join(telling[:TAIL] or lines[-TAIL:])


def _one_line(text: str, most: int = 400) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[: most - 3] + "..."
