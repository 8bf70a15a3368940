"""Functions for jobs that cost nothing, among them some that go wrong."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from compiler.errors import LoweringError
from compiler.workers.jobs import Job


def job(function: str, payload: object, name: str = "") -> Job:
    """A job that calls a function of this file."""
    text = str(payload)
    return Job(name or f"{function} {text}", f"{__name__}:{function}", text.encode())


def reverse(payload: bytes) -> bytes:
    return payload[::-1]


def count(payload: bytes) -> bytes:
    """Adds a line to the file that the payload names."""
    with Path(payload.decode()).open("a") as file:
        file.write("called\n")
    return b"done"


def die_once(payload: bytes) -> bytes:
    """Kills its process unless the file that the payload names exists; it does afterwards."""
    path = Path(payload.decode())
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return b"survived"


def die(payload: bytes) -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    return payload


def fail(payload: bytes) -> bytes:
    raise ValueError("seven is no shape")


def refuse(payload: bytes) -> bytes:
    raise LoweringError("TVM cannot compile it")
