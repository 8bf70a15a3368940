"""A job is a named function from bytes to bytes; whatever runs it, and wherever, its result is the same.

That makes results interchangeable: equal jobs run once, a job whose worker is lost runs again, and a result that is
kept stands for running the job.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

from compiler.errors import CompilerError, ConfigError, JobError
from compiler.progress import Say, silent, tracked
from compiler.workers.store import Store

MOST_NAMED = 5
"""Jobs that a line about a lost worker names."""
_TOOLS = ("apache-tvm", "apache-tvm-ffi", "numpy")
"""Packages that the result of a job depends on besides our own."""


@dataclass(frozen=True, slots=True)
class Job:
    """`function`, written "module:function", called with `payload`. `name` is for progress and errors alone."""

    name: str
    function: str
    payload: bytes

    @property
    def key(self) -> str:
        """SHA-256 (hex) of everything the result depends on: payload, function, our code, versions of its tools."""
        head = f"{code_version()} {self.function} ".encode()
        return hashlib.sha256(head + self.payload).hexdigest()


class Executor(Protocol):
    """Runs jobs, at one or many places."""

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, bytes]]:
        """The number and the result of every job, in the order they end.

        A job whose worker is lost runs again. JobError where that fails too; an error of a job itself is raised
        with the job's name in front, as JobError unless it is a CompilerError already.
        """
        ...


class Here:
    """One job after another in this process."""

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, bytes]]:
        """See `Executor`."""
        for number, job in enumerate(jobs):
            try:
                result = call(job.function, job.payload, code_version())
            except Exception as error:
                raise failed(job, error) from error
            yield number, result


@dataclass(frozen=True)
class Workers:
    """What runs jobs, and where results are kept."""

    executor: Executor
    store: Store

    def perform(self, jobs: Sequence[Job], stage: str, say: Say = silent) -> list[bytes]:
        """The results of `jobs`, in their order; `say` is told how many are done under the name `stage`.

        Equal jobs run once, and not at all where the store has their result. Raises what `Executor.run` raises, and
        ConfigError where the store cannot be written.
        """
        keys = [job.key for job in jobs]
        found = {key: kept for key in dict.fromkeys(keys) if (kept := self.store.load(key)) is not None}
        missing = {key: job for key, job in zip(keys, jobs, strict=True) if key not in found}
        names = sorted(missing, key=lambda key: -len(missing[key].payload))  # the longest first: a short tail
        for number, result in tracked(say, stage, self.executor.run([missing[n] for n in names]), len(names)):
            found[names[number]] = result
            self.store.save(names[number], result)
        return [found[key] for key in keys]


def call(function: str, payload: bytes, expected: str) -> bytes:
    """What a worker does with a job. `expected`: the code version of who asks.

    ConfigError where this process runs other code, whose results would differ.
    """
    if code_version() != expected:
        raise ConfigError(
            f"this worker has other versions of taskgraft, {', '.join(_TOOLS)} than the process that gave it the "
            "job; install the same ones in both"
        )
    module, _, name = function.partition(":")
    made: Callable[[bytes], bytes] = getattr(importlib.import_module(module), name)
    return made(payload)


def failed(job: Job, error: BaseException) -> CompilerError:
    """The error of a job, told with its name."""
    if isinstance(error, CompilerError):
        error.args = (f"{job.name}: {error}", *error.args[1:])
        return error
    return JobError(f"{job.name}: {type(error).__name__}: {error}")


def again(jobs: Sequence[str]) -> str:
    """What is said of jobs, by name, that run again; beyond MOST_NAMED they are counted."""
    more = f" and {len(jobs) - MOST_NAMED} more" if len(jobs) > MOST_NAMED else ""
    return f"again: {', '.join(jobs[:MOST_NAMED])}{more}"


@functools.cache
def code_version() -> str:
    """SHA-256 (hex) of our sources and the versions of the packages they compute with."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256("".join(f"{tool} {_version(tool)}\n" for tool in _TOOLS).encode())
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _version(tool: str) -> str:
    try:
        return version(tool)
    except PackageNotFoundError:
        return "none"
