"""Runs cases in a child process that may crash, hang or eat memory; the parent only waits and takes notes.

One child at a time serves many cases and is replaced after a crash, a hang, or `CASES_PER_CHILD` cases, since
every case loads a library that stays loaded.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import resource
import signal
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Literal

from benchmarks.fuzz.case import Case
from benchmarks.fuzz.compare import Refused, Unrunnable, Wrong
from benchmarks.fuzz.stages import check
from benchmarks.host import processor_seconds

Verdict = Literal["right", "refused", "unrunnable", "wrong", "error", "crash", "hang"]
FOUND: tuple[Verdict, ...] = ("wrong", "error", "crash", "hang")
"""Verdicts that are defects."""
CASES_PER_CHILD = 150
CLOCK = 10
"""Seconds on the clock for every second of processor time that a case may take."""
MEMORY = 8 << 30
"""Address space of a child; beyond it allocation fails."""


@dataclass(frozen=True)
class Result:
    """What became of a case. `stage`: where it ended; `detail`: message or traceback."""

    name: str
    verdict: Verdict
    stage: str
    detail: str = ""
    reasons: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    nodes: int = 0
    unjudged: int = 0
    seconds: float = 0.0

    @property
    def found(self) -> bool:
        """Whether this is a defect."""
        return self.verdict in FOUND

    @property
    def signature(self) -> tuple[str, str, str]:
        """Equal for findings with the same cause, as far as their text tells: numbers and names are left out."""
        last = self.detail.strip().splitlines()[-1] if self.detail.strip() else ""
        return self.verdict, self.stage, re.sub(r"'[^']*'|[-+.\d]+(e[-+]\d+)?", "#", last)[:160]


def run_here(case: Case, tell: Connection | None = None) -> Result:
    """Run a case in this process. `tell` is sent the name of each stage."""
    stage = ["start"]

    def entered(name: str) -> None:
        stage[0] = name
        if tell is not None:
            tell.send(name)

    start = time.perf_counter()
    kept: dict[str, object] = {}
    verdict: Verdict = "right"
    try:
        done = check(case, entered)
        kept = {"skipped": tuple(done.skipped), "nodes": done.nodes, "unjudged": done.unjudged}
    except Refused as refusal:
        verdict, kept = "refused", {"detail": str(refusal), "reasons": refusal.reasons}
    except Unrunnable as error:
        verdict, kept = "unrunnable", {"detail": str(error)}
    except Wrong as error:
        verdict, kept = "wrong", {"detail": str(error)}
    except Exception:  # whatever leaves the compiler here is what is being looked for
        verdict, kept = "error", {"detail": traceback.format_exc()}
    return Result(case.name, verdict, stage[0], seconds=time.perf_counter() - start, **kept)  # type: ignore[arg-type]


def _serve(pipe: Connection) -> None:
    """The child: cases in, stage names and results out."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(run_here(pipe.recv(), pipe))


@dataclass
class Worker:
    """A child that runs cases one after the other, with a limit of processor `seconds` each. A context manager.

    Processor time, so that a busy machine makes no finding; ten times as much may pass on the clock.
    """

    seconds: float = 60.0
    _child: BaseProcess | None = None
    _pipe: Connection | None = None
    _served: int = 0
    _stage: str = field(default="start")

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def run(self, case: Case) -> Result:
        """What becomes of the case; never raises for anything the case does."""
        pipe = self._ready()
        self._stage, start = "start", time.monotonic()
        pipe.send(case)
        try:
            for message in self._messages(pipe, start):
                if isinstance(message, Result):
                    return message
                self._stage = str(message)
        except EOFError:
            return self._lost(case, start)
        self._stop()
        return Result(case.name, "hang", self._stage, f"more than {self.seconds:g} s", seconds=self.seconds)

    def _messages(self, pipe: Connection, start: float) -> Iterator[object]:
        """What the child sends, until it has used up its time."""
        assert self._child is not None and self._child.pid is not None
        child = self._child.pid
        used = processor_seconds(child)
        while time.monotonic() - start < CLOCK * self.seconds:
            if pipe.poll(min(1.0, self.seconds)):
                yield pipe.recv()
            elif processor_seconds(child) - used > self.seconds:
                return

    def _lost(self, case: Case, start: float) -> Result:
        assert self._child is not None
        self._child.join()
        code = self._child.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        self._stop()
        return Result(case.name, "crash", self._stage, how, seconds=time.monotonic() - start)

    def _ready(self) -> Connection:
        self._served += 1
        if self._served > CASES_PER_CHILD:
            self._stop()
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, other = context.Pipe()
            self._child = context.Process(target=_serve, args=(other,), daemon=True)
            self._child.start()
            other.close()
        return self._pipe

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.join()
        if self._pipe is not None:
            self._pipe.close()
        self._child = self._pipe = None
        self._served = 0
