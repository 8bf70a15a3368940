"""Jobs on a Dask cluster. The only module that imports dask; needs the extra `cluster`.

Scheduler and workers run whatever code they are sent, by design of Dask: use clusters you trust.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any

from distributed import Client, KilledWorker, wait

from compiler.errors import ConfigError, JobError
from compiler.progress import Say, silent
from compiler.workers.jobs import Job, again, call, code_version, failed

CONNECT = 10.0
"""Seconds for the scheduler to answer, and for a first worker to be there."""
LONELY = 60.0
"""Seconds to wait for a new worker after the last one was lost."""
_STEP = 1.0


class Cluster:
    """The workers of the Dask scheduler at `address`, such as tcp://host:8786; a context manager that disconnects.

    A job whose worker is lost runs on another one; Dask gives it up after its setting `allowed-failures`.
    ConfigError where no scheduler answers or it has no worker.
    """

    def __init__(self, address: str, say: Say = silent) -> None:
        self._say = say
        self._names: dict[str, str] = {}
        """Of jobs under way: name by key."""
        try:
            self._client = Client(address, timeout=CONNECT, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--cluster {address}: no Dask scheduler answers ({error}); start one with `dask scheduler`, and "
                "workers with `dask worker ADDRESS`"
            ) from None
        try:
            self._client.wait_for_workers(1, timeout=CONNECT)
        except TimeoutError:
            self._client.close()
            raise ConfigError(
                f"--cluster {address}: the scheduler has no workers; start some with `dask worker {address}`"
            ) from None
        self._client.subscribe_topic("all", self._event)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; jobs that nobody waits for are dropped."""
        self._client.unsubscribe_topic("all")
        self._client.close()

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, bytes]]:
        """See `Executor`."""
        running: dict[Any, int] = {}
        for number, job in enumerate(jobs):
            key = f"taskgraft-{job.key}"
            self._names[key] = job.name
            running[self._client.submit(call, job.function, job.payload, code_version(), key=key)] = number
        try:
            while running:
                for future in self._next(list(running)):
                    number = running.pop(future)
                    yield number, _result(future, jobs[number])
        finally:
            self._names.clear()
            self._client.cancel(list(running))

    def _next(self, futures: Sequence[Any]) -> Sequence[Any]:
        """Those that have ended, at least one; JobError where there is nobody left to run them."""
        lonely = 0.0
        while True:
            try:
                with self._client.as_current():  # else `wait` looks for a default client, on another loop or none
                    return list(wait(futures, timeout=_STEP, return_when="FIRST_COMPLETED").done)
            except TimeoutError:
                lonely = 0.0 if self._client.nthreads() else lonely + _STEP
            if lonely >= LONELY:
                raise JobError(
                    f"{len(futures)} jobs are left, and the cluster has had no worker for {LONELY:.0f} s; start "
                    "workers and the command again"
                )

    async def _event(self, event: tuple[float, Any]) -> None:
        """What the scheduler tells of its workers."""
        _, told = event
        if not isinstance(told, dict) or told.get("action") != "remove-worker" or told.get("expected"):
            return
        lost = {*told["processing-tasks"], *told["lost-computed-tasks"]}
        names = [name for key, name in self._names.items() if key in lost]
        if names:
            self._say(f"worker {told['worker']} was lost; {again(names)}")


def _result(future: Any, job: Job) -> bytes:
    try:
        return bytes(future.result())
    except KilledWorker as error:
        raise JobError(
            f"{job.name}: every worker that ran it was lost, {error.allowed_failures + 1} in all (killed, for "
            "instance for lack of memory)"
        ) from error
    except CancelledError as error:
        raise JobError(f"{job.name}: the scheduler has dropped it or is gone") from error
    except Exception as error:
        raise failed(job, error) from error
