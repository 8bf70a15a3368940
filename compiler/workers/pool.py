"""Jobs in processes of this machine."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from compiler.errors import ConfigError, JobError
from compiler.progress import Say, silent
from compiler.workers.jobs import Job, again, call, code_version, failed


class Pool:
    """`count` worker processes, started when the first job comes; a context manager that ends them.

    Processes are spawned: they import the main module again, so a script that uses a pool guards its own work by
    `if __name__ == "__main__"`. ConfigError unless `count` is at least 1.
    """

    def __init__(self, count: int, say: Say = silent) -> None:
        if count < 1:
            raise ConfigError(f"--workers {count}: give the number of worker processes, 1 or more")
        self._count, self._say = count, say
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; those in a job finish it first."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, bytes]]:
        """See `Executor`. No more jobs are given out than there are workers: what a lost one had is known."""
        waiting = iter(range(len(jobs)))
        running: dict[Future[bytes], int] = {}
        try:
            while True:
                for number in itertools.islice(waiting, self._count - len(running)):
                    running[self._submit(jobs[number])] = number
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                lost = []
                for future in done:
                    number = running.pop(future)
                    error = future.exception()
                    if isinstance(error, BrokenProcessPool):
                        lost.append(number)
                    elif error is not None:
                        raise failed(jobs[number], error) from error
                    else:
                        yield number, future.result()
                if lost:
                    yield from self._again(jobs, sorted([*lost, *running.values()]))
                    running.clear()
        finally:
            for future in running:
                future.cancel()

    def _submit(self, job: Job) -> Future[bytes]:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._count, context, initializer=_prepare)
        try:
            return self._pool.submit(call, job.function, job.payload, code_version())
        except BrokenProcessPool:
            self._say("a worker process was lost while it had nothing to do")
            self._pool = None
            return self._submit(job)

    def _again(self, jobs: Sequence[Job], lost: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """Run the jobs that were under way when a worker was lost, each alone, so that one that kills is known."""
        self._say(f"a worker process was lost; {again([jobs[number].name for number in lost])}")
        self._pool = None
        for number in lost:
            error = (future := self._submit(jobs[number])).exception()
            if isinstance(error, BrokenProcessPool):
                raise JobError(
                    f"{jobs[number].name}: its worker process was lost twice (killed, for instance for lack of "
                    "memory: fewer workers need less; or the script has no `if __name__ == '__main__'`)"
                ) from error
            if error is not None:
                raise failed(jobs[number], error) from error
            yield number, future.result()


def _prepare() -> None:
    """In a new worker: interrupts are the parent's to handle, and no worker outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
