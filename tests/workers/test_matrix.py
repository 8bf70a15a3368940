"""Targets x subsets x levels by one process, by a pool and by a Dask cluster that lose a worker: the same bytes."""

from __future__ import annotations

import pytest

from benchmarks.workers import Killing, kill_a_busy_worker, kill_a_process
from compiler.errors import ConfigError, JobError
from compiler.workers.choose import open_workers
from compiler.workers.jobs import Workers
from compiler.workers.pool import Pool
from compiler.workers.store import Store
from tests.workers.cheap import job
from tests.workers.matrix import TARGETS, libraries


@pytest.fixture(scope="module")
def alone():
    """What one process makes of the matrix."""
    found = libraries(None)
    assert {(len(made.programs), len(made.levels)) for made in found.values()} == {(3, 3)}
    assert len({made.objects for made in found.values()}) == len(TARGETS)
    return found


@pytest.mark.slow
def test_a_pool_that_loses_a_process_makes_the_same_bytes(alone, tmp_path):
    told: list[str] = []
    with Pool(2, told.append) as pool:
        killing = Killing(pool, kill_a_process)
        assert libraries(Workers(killing, Store(tmp_path / "kept"))) == alone
    assert killing.seen >= killing.after
    assert len(told) == 1
    assert told[0].startswith("a worker process was lost")
    kept = sorted((tmp_path / "kept").iterdir())
    with open_workers(cache=tmp_path / "kept") as here:
        assert libraries(here) == alone
    assert sorted((tmp_path / "kept").iterdir()) == kept, "nothing was compiled again"
    assert len(kept) == sum(len(made.kernels) for made in alone.values())


# ---------------------------------------------------------------------- dask
@pytest.fixture(scope="module")
def dask_cluster():
    """Two worker processes with a scheduler."""
    distributed = pytest.importorskip("distributed", reason="needs Dask: pip install 'taskgraft[cluster]'")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    # no default client: a compiler's process has none either
    with distributed.LocalCluster(**options) as made, distributed.Client(made, set_as_default=False) as client:
        client.run(__import__, "compiler.codegen.lower")  # so that a worker is killed at work, not while it loads
        yield client


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_makes_the_same_bytes(alone, dask_cluster):
    told: list[str] = []
    with open_workers(cluster=dask_cluster.scheduler.address, say=told.append) as workers:
        killing = Killing(workers.executor, lambda: kill_a_busy_worker(dask_cluster))
        assert libraries(Workers(killing, Store(None))) == alone
    assert killing.seen >= killing.after
    assert len(told) == 1
    assert "was lost; again: kernel k_matrix_" in told[0]


def test_a_failing_job_of_a_cluster_is_one_error_with_its_name(dask_cluster):
    with open_workers(cluster=dask_cluster.scheduler.address) as workers:
        with pytest.raises(JobError, match=r"^kernel k_7: ValueError: seven is no shape$"):
            workers.perform([job("reverse", 1), job("fail", 2, "kernel k_7")], "kernels")
        assert workers.perform([job("reverse", "ab")], "texts") == [b"ba"]


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    cluster = pytest.importorskip("compiler.workers.cluster", reason="needs Dask: pip install 'taskgraft[cluster]'")
    monkeypatch.setattr(cluster, "CONNECT", 0.3)
    with pytest.raises(ConfigError, match=r"^--cluster tcp://127\.0\.0\.1:9: no Dask scheduler answers"):
        cluster.Cluster("tcp://127.0.0.1:9")
