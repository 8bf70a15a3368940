"""The worker of one contender: `python -m benchmarks.peers.worker ENGINE`, spoken to on standard input and output.

One JSON object per line in each direction. Every request has "do":

    {"do": "load", "model": PATH, "feeds": NPZ, "options": {...}, "cpus": [1]}
                                        -> {"version": "1.2", "note": "", "inner": 1}
    {"do": "outputs", "to": NPZ}        one call; its outputs, by the names of the ONNX file, go to the file
    {"do": "run", "calls": n, "batch": k, "flush": bytes}
                                        -> {"cpu": [s, ...], "wall": [s, ...], "share": 0.99}
    {"do": "quit"}

`run` times n times k calls and gives seconds per call: `cpu` of the calling thread, `wall` clock. `share` is the
calling thread's part of the whole process' CPU time: below 1 the engine computes in other threads too. With `flush`
a buffer of that many bytes is rewritten before each timed call, so that weights and code have left the caches.
An answer {"error": TEXT} ends the conversation.

This file and the engines run in the engines' own environments: they import numpy and the engine, and only the
bundle's engine imports the compiler.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import traceback
from functools import partial
from typing import IO, Any

import numpy as np

from benchmarks.peers.engine import Engine, read_arrays, write_arrays

Message = dict[str, Any]


class Conversation:
    """Answers requests about one engine."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._engine: Engine | None = None
        self._buffer = np.zeros(0, np.uint8)

    def answer(self, request: Message) -> Message:
        """The reply to one request; raises what the engine raises."""
        if request["do"] == "load":
            return self._load(request)
        assert self._engine is not None, "load comes first"
        if request["do"] == "outputs":
            self._engine.call()
            write_arrays(request["to"], self._engine.outputs())
            return {}
        assert request["do"] == "run", request
        return self._run(self._engine, request)

    def _load(self, request: Message) -> Message:
        # Before the engine is imported: many size their thread pools then.
        os.sched_setaffinity(0, request["cpus"])
        engine = importlib.import_module(self._module)
        self._engine = engine.load(request["model"], read_arrays(request["feeds"]), request["options"])
        return {"version": self._engine.version, "note": self._engine.note, "inner": self._engine.inner}

    def _run(self, engine: Engine, request: Message) -> Message:
        flush = request["flush"]
        if self._buffer.nbytes != flush:
            self._buffer = np.zeros(flush, np.uint8)
        return timed(engine, request["calls"], request["batch"], self._buffer)


def timed(engine: Engine, calls: int, batch: int, buffer: np.ndarray) -> Message:
    """Seconds per call of `calls` batches; the buffer is rewritten before each unless it is empty."""
    measure = partial(_outside, engine) if engine.seconds is None else partial(_inside, engine)
    found: list[tuple[float, float]] = []
    gc.disable()
    thread, process = time.thread_time_ns(), time.process_time_ns()
    for _ in range(calls):
        if buffer.nbytes:
            np.add(buffer, 1, out=buffer)
        found.append(measure(batch))
    thread, process = time.thread_time_ns() - thread, time.process_time_ns() - process
    gc.enable()
    cpu, wall = zip(*found, strict=True)
    return {"cpu": cpu, "wall": wall, "share": min(1.0, thread / max(1, process))}


def _outside(engine: Engine, batch: int) -> tuple[float, float]:
    """CPU and wall seconds per call of a batch."""
    call, count = engine.call, batch * engine.inner
    wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
    for _ in range(batch):
        call()
    cpu, wall = time.thread_time_ns() - cpu, time.perf_counter_ns() - wall
    return cpu / count * 1e-9, wall / count * 1e-9


def _inside(engine: Engine, batch: int) -> tuple[float, float]:
    """The same by the engine's own clock."""
    assert engine.seconds is not None
    total = 0.0
    for _ in range(batch):
        engine.call()
        total += engine.seconds()
    return total / batch, total / batch


def serve(module: str, requests: IO[str], replies: IO[str]) -> int:
    """Answer until `quit`, the end of the input or an error; the exit status."""
    conversation = Conversation(module)
    for line in requests:
        request = json.loads(line)
        if request["do"] == "quit":
            return 0
        try:
            reply = conversation.answer(request)
        except Exception as error:  # whatever an engine raises is its answer
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)
        if "error" in reply:
            return 1
    return 0


def main(arguments: list[str]) -> int:
    """Serve the engine module named; what it prints goes to standard error and cannot break the protocol."""
    with os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)
        return serve(arguments[0], sys.stdin, replies)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
