"""The workers that a command line or a program asks for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from compiler.errors import ConfigError
from compiler.progress import Say, silent
from compiler.workers.jobs import Executor, Here, Workers
from compiler.workers.pool import Pool
from compiler.workers.store import Store


@contextlib.contextmanager
def open_workers(
    count: int = 1, *, cluster: str = "", cache: str | Path | None = None, say: Say = silent
) -> Iterator[Workers | None]:
    """What runs the jobs of a build until the block ends; None where nothing but this process was asked for.

    `count`: worker processes on this machine. `cluster`: address of a Dask scheduler in their place. `cache`: a
    folder that keeps results, shared by any number of builds. ConfigError where both or no workers are asked for,
    the extra `cluster` is not installed, or the scheduler does not answer.
    """
    if cluster and count != 1:
        raise ConfigError("jobs go either to --workers on this machine or to a --cluster; give one of the two")
    store = Store(None if cache is None else Path(cache))
    with contextlib.ExitStack() as stack:
        if cluster:
            yield Workers(stack.enter_context(_connected(cluster, say)), store)
        elif count != 1:
            yield Workers(stack.enter_context(Pool(count, say)), store)
        else:
            yield None if cache is None else Workers(Here(), store)


def _connected(address: str, say: Say) -> contextlib.AbstractContextManager[Executor]:
    try:
        from compiler.workers.cluster import Cluster
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--cluster needs Dask, and {error.name} is not installed: pip install 'taskgraft[cluster]'"
        ) from None
    return Cluster(address, say)
